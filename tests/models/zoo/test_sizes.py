"""Image sizes of the zoo: what is padded, masked, resized or not seen, as in the authors' code."""

import pytest
import timm
import torch

import vitgraft
from vitgraft.errors import CheckpointError
from vitgraft.models.zoo.regionvit import _mask

TINY_VIL = {"embed_dims": (12, 12, 24, 24), "depths": (1, 1, 2, 1), "num_heads": (1, 1, 2, 2), "num_classes": 5}
TINY_PVT = {"embed_dims": (8, 16, 16, 32), "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 2), "num_classes": 5}


def authors_mask(H, W, M, pad_bottom, pad_right):
    """IBM/RegionViT regionvit/regionvit.py, convert_to_flatten_layout: who sees whom in each of H x W regions."""
    N = 1 + M * M
    right = torch.zeros(N, N)
    right[1:, 1:] = torch.tensor(
        [[float(q % M < M - pad_right and k % M < M - pad_right) for k in range(M * M)] for q in range(M * M)]
    )
    right[0, 0] = 1
    right[0, 1:] = torch.tensor([float(k % M < M - pad_right) for k in range(M * M)])
    right[1:, 0] = right[0, 1:]
    rows = M * (M - pad_bottom) + 1
    bottom = torch.zeros(N, N)
    bottom[:rows, :rows] = 1
    corner = right.clone()
    corner[:rows, :rows] = 1
    regions = {}
    for i in range(H):
        for j in range(W):
            last_row, last_column = i == H - 1, j == W - 1
            regions[i, j] = corner if last_row and last_column else bottom if last_row else right if last_column else 1
    return torch.stack([torch.ones(N, N) * regions[i, j] for i in range(H) for j in range(W)])


@pytest.mark.parametrize("pad", [(0, 3), (2, 0), (1, 4), (6, 6)])
def test_regionvits_mask_is_the_authors(pad):
    """In the corner nothing is hidden where only rows or only columns are padded."""
    seen = _mask(torch.zeros(1), (2, 3), 7, pad, torch.float64) == 0
    assert torch.equal(seen[:, 0], authors_mask(2, 3, 7, *pad).bool())


@pytest.mark.parametrize("rel_pos", [False, True])
def test_vil_does_not_see_what_is_over_a_patch(rel_pos):
    options = {"embed_dims": (24, 24, 24, 24), **TINY_VIL, "rel_pos": rel_pos, "img_size": (70, 101)}
    model = timm.create_model("vil_tiny_rpb", **options).eval()
    image = torch.randn(1, 3, 70, 101)
    other = image.clone()
    other[..., 68:, :], other[..., 100:] = 9.0, 9.0
    with torch.no_grad():
        assert torch.equal(model(image), model(other))
    assert [tuple(f.shape[2:]) for f in model.forward_intermediates(image, intermediates_only=True)] == [
        (17, 25), (8, 12), (4, 6), (2, 3),
    ]  # fmt: skip


def test_vil_goes_from_any_size_to_any_other():
    torch.manual_seed(0)
    model = timm.create_model("vil_tiny_rpb", **TINY_VIL, img_size=(64, 96)).eval()
    for size in ((64, 64), (96, 64), (64, 128)):
        model.set_input_size(size)
        assert model(torch.randn(1, 3, *size)).isfinite().all()
    square = timm.create_model("vil_tiny_rpb", **TINY_VIL, img_size=64)
    before = {name: t.clone() for name, t in square.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"is not of a square map.*then set_input_size"):
        vitgraft.load_official(square, model.state_dict())
    assert all(torch.equal(t, before[name]) for name, t in square.state_dict().items())


def test_pvt_moves_all_positions_where_one_stage_shows_another_size():
    """28 x 112 tokens are as many as 56 x 56, and other ones."""
    torch.manual_seed(0)
    source = timm.create_model("pvt_tiny", **TINY_PVT, img_size=224).eval()
    long = timm.create_model("pvt_tiny", **TINY_PVT, img_size=(112, 448)).eval()
    report = vitgraft.load_official(long, source.state_dict())
    assert [line.split(":")[0] for line in report.reshaped] == [f"pos_embed{i}" for i in range(1, 5)]
    image = torch.randn(1, 3, 112, 448)
    with torch.no_grad():
        torch.testing.assert_close(long(image), source(image))
        again = timm.create_model("pvt_tiny", **TINY_PVT, img_size=(112, 448)).eval()
        assert not vitgraft.load_official(again, long.state_dict()).reshaped  # of this very size
        assert torch.equal(again(image), long(image))
