import copy

import pytest
import timm
import torch
from reference.swin_attention import swin_attention
from torch import nn

import vitgraft
from vitgraft.models.dense import DenseFeatures
from vitgraft.models.swin import SwinBlock, SwinTransformer
from vitgraft.weights import official as checkpoints

TINY = "swin_tiny_patch4_window7_224"
SMALL = {"embed_dim": 16, "depths": (2, 2, 2, 2), "num_heads": (1, 2, 4, 8), "num_classes": 7, "window_size": 4}


def small(**kwargs):
    torch.manual_seed(0)
    return SwinTransformer(**{**SMALL, **kwargs}).eval()


@torch.no_grad()
@pytest.mark.parametrize("name", ["swin_tiny_dense_200x304", "swin_tiny_dense_512"])
def test_official_dense_vectors(compare, name):
    meta, _ = compare.load_vector(name)
    model = DenseFeatures(SwinTransformer()).eval()
    assert sum(p.numel() for p in model.parameters()) == meta["total_params"]
    report = checkpoints.load_official(model, {"state_dict": compare.official_state_dict(meta)})
    assert not (report.missing or report.unexpected or report.reshaped)
    x = torch.from_numpy(__import__("fill").make_input(meta["input"]["height"], meta["input"]["width"]))
    assert max(compare.check_features(model(x), name).values()) < 1e-5
    assert max(compare.check_features(model.double()(x.double()), name).values()) < 1e-9


@torch.no_grad()
def test_equals_timm_where_the_window_divides():
    theirs = timm.create_model(TINY).eval()
    ours = SwinTransformer().eval()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 224, 224)
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("size", [(5, 9), (8, 3), (3, 4), (4, 4), (8, 8), (1, 5), (2, 2), (1, 1)])
@pytest.mark.parametrize("shift", [0, 2])
@pytest.mark.parametrize("single", [False, True])
def test_block_against_reference(size, shift, single):
    torch.manual_seed(1)
    block = SwinBlock(8, (16, 16), num_heads=2, window_size=4, shift_size=shift).double()
    nn.init.normal_(block.attn.qkv.bias)  # padded tokens are made of biases alone
    nn.init.normal_(block.attn.relative_position_bias_table)
    x = torch.randn(2, *size, 8, dtype=torch.float64)
    block.shift_single_window = single
    torch.testing.assert_close(block._attn(x), swin_attention(block.attn, x, 4, shift, single), rtol=0, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("grafted", [False, True])
@pytest.mark.parametrize("kind", ["ours", "timm's with the authors' padding"])
def test_dense_tasks_shift_a_single_window(kind, grafted):
    """As the authors' dense-task code; a classifier, even with the same blocks, does not."""
    options = {"levels": (1, 0, 0, 0)} if grafted else {"blocks": ()}
    model = small(num_classes=0)
    if kind != "ours":
        torch.manual_seed(0)
        model = timm.create_model(TINY, **{**SMALL, "num_classes": 0, "img_size": 128, "strict_img_size": False})
        options["swin_padding"] = "authors"
    model = model.double().eval()
    if options != {"blocks": ()}:
        vitgraft.graft(model, **options)
    block, image = model.layers[3].blocks[1], torch.randn(1, 3, 64, 64, dtype=torch.float64)
    x = torch.randn(1, 2, 2, 128, dtype=torch.float64)

    def expected(single: bool) -> torch.Tensor:
        y = x + swin_attention(block.attn, block.norm1(x), 4, 2, single)
        return y + block.mlp(block.norm2(y))

    assert not torch.allclose(expected(False), expected(True))
    torch.testing.assert_close(block(x), expected(False), rtol=0, atol=1e-12)
    maps = DenseFeatures(model)(image)
    torch.testing.assert_close(block(x), expected(True), rtol=0, atol=1e-12)
    copied = DenseFeatures(copy.deepcopy(model), prune=False)
    torch.testing.assert_close(copied(image), maps, rtol=0, atol=0)


def test_shift_single_window_is_an_option():
    image = torch.randn(1, 3, 64, 64)
    plain, shifted = small(), small(shift_single_window=True)
    assert not torch.allclose(plain(image), shifted(image))
    dense = DenseFeatures(small(), norm=False)
    torch.testing.assert_close(dense(image), shifted.forward_intermediates(image, intermediates_only=True))


def test_from_timm_shares_the_parameters():
    theirs = timm.create_model(TINY, depths=(2,), num_heads=(3,), embed_dim=24, img_size=28).eval()
    block = theirs.layers[0].blocks[1]
    assert block.window_size == (7, 7) and block.shift_size == (0, 0)  # timm: the map is one window
    ours = SwinBlock.from_timm(block)
    assert ours.shift_size == (3, 3) and not ours.training
    assert ours.attn.qkv.weight is block.attn.qkv.weight
    assert list(ours.state_dict()) == list(block.state_dict())
    x = torch.randn(1, 7, 7, 24)
    torch.testing.assert_close(ours(x), block(x))


@torch.no_grad()
def test_resolutions_of_every_size():
    model = small()
    for size in [(1, 1), (37, 61), (16, 130), (64, 64), (4, 4)]:
        maps = model.forward_intermediates(torch.randn(2, 3, *size), intermediates_only=True)
        model.set_input_size(size)
        assert [tuple(m.shape[2:]) for m in maps] == [s.output_resolution for s in model.layers]
        assert {block.window_size for stage in model.layers for block in stage.blocks} == {(4, 4)}


def test_window_changes_only_when_asked():
    model = small()
    model.set_input_size(window_size=3)
    assert model.layers[0].blocks[1].shift_size == (1, 1)
    assert model.layers[0].blocks[0].attn.relative_position_bias_table.shape == (25, 1)
    assert torch.isfinite(model(torch.randn(1, 3, 50, 34))).all()


def test_bad_arguments():
    with pytest.raises(ValueError, match="always_partition=False"):
        small().set_input_size(64, always_partition=False)
    small(dynamic_img_size=True)  # the value that is decided
