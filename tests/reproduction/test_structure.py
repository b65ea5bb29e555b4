"""Table 8 is read off the models, and equals the paper's."""

import pytest
import timm

import vitgraft
from reproduction.paper import TABLES
from reproduction.structure import Structure, structure_of
from reproduction.tables import count_table

SMALL = {"img_size": 32, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}


def test_table_8_agrees_but_for_one_word():
    rows = {row.paper.label: row for row in count_table(TABLES["8"])}
    different = {label for label, row in rows.items() if not row.within_tolerance}
    assert different == {"RegionViT-S"} and rows["RegionViT-S"].paper.note
    assert rows["RegionViT-S"].here == Structure("Pyramid", "2", "Attention over both")


def _vit(**options):
    return timm.create_model("vit_tiny_patch16_224", **{**SMALL, **options})


@pytest.mark.parametrize(
    ("options", "scales", "fusion"),
    [
        ({"window_size": 2, "levels": [2]}, "3", "Learnable W-Bilinear + E-Wise add."),
        ({"window_size": 4}, "2", "Learnable W-Bilinear + E-Wise add."),
        ({"window_size": 4, "left_levels": 1}, "3", "Learnable W-Bilinear + E-Wise add."),
        ({"window_size": 4, "upsample": "nearest"}, "2", "Nearest + E-Wise add."),
    ],
)
def test_it_follows_the_configuration(options, scales, fusion):
    assert structure_of(vitgraft.graft(_vit(), **options)) == Structure("Homogeneous", scales, fusion)


def test_a_graft_that_is_taken_off_is_gone():
    model = vitgraft.strip(vitgraft.graft(_vit(), window_size=4))
    assert structure_of(model) == Structure("Homogeneous", "None", "None")


def test_a_model_without_feature_info_is_refused():
    import torch

    with pytest.raises(ValueError, match="Linear has no feature_info"):
        structure_of(torch.nn.Linear(2, 2))
