"""What `vitgraft info` prints of grafted models."""

import io

import pytest
from rich.console import Console

from vitgraft.tools.count import count_macs, count_params
from vitgraft.tools.info import describe_model, print_terminal
from vitgraft.weights.create import create

SIZE = (3, 224, 224)


# without its grafts the DeiT is a windowed one: 196 tokens, no class token, 49 keys a query
WINDOWED_DEIT = 12 * (12 * 192**2 * 196 + 2 * 196 * 49 * 192) + 196 * 768 * 192 + 192 * 1000


@pytest.mark.parametrize(
    ("name", "base"),
    [("graft_deit_tiny_patch16_224", WINDOWED_DEIT), ("graft_swin_tiny_patch4_window7_224", 4_490_566_656)],
)
def test_backbone_and_grafts_add_up(name, base):
    model = create(name)
    info = describe_model(model, SIZE)
    assert (info.params, info.macs) == (count_params(model), count_macs(model, SIZE))
    assert info.macs - info.graft_macs == base
    named = [(key, value.numel()) for key, value in model.named_parameters() if ".graft." in key]
    assert info.graft_params == sum(count for _, count in named) > 0
    assert [graft.block for graft in info.grafts] == list(dict.fromkeys(key.split(".graft.")[0] for key, _ in named))


def test_levels():
    info = describe_model(create("graft_swin_tiny_patch4_window7_224"), SIZE)
    assert [graft.levels for graft in info.grafts] == [
        [(28, 28), (14, 14), (7, 7)],
        *[[(14, 14), (7, 7)]] * 2,
        *[[(7, 7)]] * 6,
    ]
    left = describe_model(create("graft_deit_tiny_patch16_224:graft.left_levels=2:graft.blocks=1"), SIZE).grafts
    assert [(graft.left, graft.levels) for graft in left] == [([(56, 56), (28, 28)], [(7, 7)])]


def test_prints_a_tree():
    file = io.StringIO()
    print_terminal("DeiT", describe_model(create("graft_deit_tiny_patch16_224"), SIZE), Console(file=file, width=60))
    text = file.getvalue()
    assert "blocks.1 ... blocks.11 (11 blocks)  14 x 14, 192 channels" in text and "level 7 x 7" in text
    assert "backbone_attention = 'window'" in text and "7.877 M parameters, 1.223 G MAC" in text
