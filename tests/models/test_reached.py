"""Models of users' own: a graft that would not be reached, or would see another grid, is an error and never silent."""

import types

import pytest
import timm
import torch
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from zoo import assert_unchanged, images, snapshot, wake

import vitgraft
from vitgraft import GraftError

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

SMALL = {"img_size": 64, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "num_classes": 5}
GRAFT = {"window_size": 2, "init": "identity"}


class Helper(Block):
    """Calls its children from another method, where no stand-in can be."""

    def mix(self, x):
        return x + self.drop_path1(self.ls1(self.attn(self.norm1(x))))

    def forward(self, x, **_):
        x = self.mix(x)
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


class NoDropPath(Block):
    def forward(self, x, **_):
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


class Adapter(nn.Module):
    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, x):
        return self.block(x)


def patched(model):
    for block in model.blocks:
        block.forward = types.MethodType(type(block).forward, block)
    return model


def adapted(model):
    for i, block in enumerate(model.blocks):
        model.blocks[i] = Adapter(block)
    return model


def overlapping(model):
    model.patch_embed.proj = nn.Conv2d(3, 32, 8, stride=6)
    model.pos_embed = nn.Parameter(torch.zeros(1, 101, 32))
    return model


def named(model):
    model.blocks[1].graft = nn.Identity()
    return model


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: VisionTransformer(**SMALL, block_fn=Helper), "does not call self.norm1 and then self.drop_path1"),
        (lambda: VisionTransformer(**SMALL, block_fn=NoDropPath), "does not call self.norm1 and then self.drop_path1"),
        (lambda: patched(VisionTransformer(**SMALL)), "has a forward of its own"),
        (lambda: adapted(VisionTransformer(**SMALL, dynamic_img_size=True)), "unexpected keyword argument"),
        (lambda: overlapping(VisionTransformer(**SMALL)), "101 tokens, and its model says that they are a 8 x 8 grid"),
        (lambda: named(VisionTransformer(**SMALL)), "attribute called 'graft' already"),
    ],
)
def test_what_can_not_be_grafted_says_so_and_stays_as_it_was(make, reason):
    torch.manual_seed(0)
    model = make().eval()
    before, image = snapshot(model), images(1, 3, 64, 64)
    with torch.no_grad():
        expected = model(image)
        with pytest.raises(GraftError, match=reason):
            vitgraft.graft(model, **GRAFT)
        assert not vitgraft.is_grafted(model) and torch.equal(model(image), expected)
    assert_unchanged(before, snapshot(model))


def seen(model, image):
    found = set()
    for graft in vitgraft.grafts(model).values():
        graft.register_forward_pre_hook(lambda _m, args: found.add(tuple(args[0].shape[1:3])))
    with torch.no_grad():
        model(image)
    return found


@pytest.mark.parametrize("first", ["wrap", "graft"])
@pytest.mark.parametrize("wrap", [checkpoint_wrapper, lambda block: torch.compile(block, backend="eager")])
def test_wrapped_blocks_are_told_their_grid(wrap, first):
    model = VisionTransformer(**SMALL, dynamic_img_size=True).eval()
    if first == "graft":
        vitgraft.graft(model, img_size=(64, 128), **GRAFT)
    for i, block in enumerate(model.blocks):
        model.blocks[i] = wrap(block)
    if first == "wrap":
        vitgraft.graft(model, img_size=(64, 128), **GRAFT)
    for size in ((64, 128), (128, 64)):  # as many tokens
        assert seen(model, images(1, 3, *size)) == {(size[0] // 8, size[1] // 8)}


def test_tokens_that_are_added_later_are_an_error():
    model = vitgraft.graft(VisionTransformer(**SMALL).eval(), **GRAFT)
    with pytest.raises(ValueError, match="70 tokens for a 8 x 8 grid, 6 more, where it was grafted with 1 prefix"):
        model.blocks[1](torch.randn(1, 70, 32), graft_grid=(8, 8))


class Remembers(VisionTransformer):
    calls = 0

    def forward_features(self, x, **kwargs):
        self.calls += 1
        self.last = x
        return super().forward_features(x, **kwargs)


def test_what_a_forward_leaves_on_self_is_there():
    model = vitgraft.graft(Remembers(**SMALL).eval(), **GRAFT)
    before, image = model.calls, images(2, 3, 64, 64)
    with torch.no_grad():
        model(image)
    assert model.calls == before + 1 and model.last is image


class Stem(nn.Sequential):
    def forward(self, x):
        return super().forward(x).flatten(2).transpose(1, 2)


def test_a_stem_of_ones_own():
    model = VisionTransformer(**SMALL).eval()
    model.patch_embed = Stem(nn.Conv2d(3, 32, 8, 8))
    vitgraft.graft(model, img_size=64, **GRAFT)
    assert seen(model, images(1, 3, 64, 64)) == {(8, 8)}


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "pvt_v2_b0"])
def test_identity_under_autocast(name):
    """At a size where a level's windows do not fit: padding must not lift the sum to float32."""
    swin = {"img_size": 256, "embed_dim": 16, "depths": (1, 2, 1, 1), "num_heads": (1, 1, 2, 2)}
    torch.manual_seed(0)
    model = timm.create_model(name, **(swin if name.startswith("swin") else {"depths": (1, 2, 1, 1)})).eval()
    image = images(1, 3, 256, 256)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = model(image)
        vitgraft.graft(model, img_size=256, init="identity")
        assert torch.equal(model(image), expected)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):  # which keeps its casts of weights to the end
        assert not torch.equal(wake(model)(image), expected)


def test_the_head_inside_data_parallel_trains():
    model = vitgraft.graft(VisionTransformer(**SMALL), **GRAFT)
    assert vitgraft.train_grafts_only(nn.DataParallel(model)).head == 5 * 33


def test_a_mask_by_name_is_no_image():
    model = vitgraft.graft(VisionTransformer(**SMALL, dynamic_img_size=True).eval(), img_size=(64, 128), **GRAFT)
    image, mask = images(1, 3, 64, 128), torch.ones(1, 1, 129, 129, dtype=torch.bool)
    with torch.no_grad():
        torch.testing.assert_close(model.forward_features(attn_mask=mask, x=image), model.forward_features(image))
