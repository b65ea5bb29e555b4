"""Models of users' own: a graft that would not be used, or would get another grid, is an error and never silent."""

import copy
import types

import pytest
import timm
import torch
from small_models import assert_unchanged, images, snapshot, wake
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

import vitgraft
from vitgraft import GraftError

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

SMALL = {"img_size": 64, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "num_classes": 5}
GRAFT = {"window_size": 2, "init": "identity"}


class Helper(Block):
    """Calls its children from another method."""

    def mix(self, x):
        return x + self.drop_path1(self.ls1(self.attn(self.norm1(x))))

    def forward(self, x, **_):
        x = self.mix(x)
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


class NoDropPath(Block):
    def forward(self, x, **_):
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


class NoNorm(Block):
    def forward(self, x, **_):
        x = x + self.drop_path1(self.ls1(self.attn(x)))
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


class OtherNames(Block):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.before = self.norm1
        del self.norm1

    def forward(self, x, **_):
        x = x + self.drop_path1(self.ls1(self.attn(self.before(x))))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


def named(model):
    model.blocks[1].graft = nn.Identity()
    return model


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: VisionTransformer(**SMALL, block_fn=NoDropPath), "calls norm1 and never calls drop_path1 afterwards"),
        (lambda: VisionTransformer(**SMALL, block_fn=NoNorm), "does not call norm1, where X0 is read"),
        (lambda: VisionTransformer(**SMALL, block_fn=OtherNames), r"blocks.0 \(OtherNames\) has no child 'norm1'"),
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


@pytest.mark.parametrize(
    "make",
    [
        lambda: VisionTransformer(**SMALL, block_fn=Helper),
        lambda: patched(VisionTransformer(**SMALL)),
        lambda: adapted(VisionTransformer(**SMALL, dynamic_img_size=True)),
        lambda: overlapping(VisionTransformer(**SMALL)),
    ],
    ids=["another method", "patched forward", "wrapped", "patches that overlap"],
)
def test_forwards_of_other_kinds_are_grafted(make):
    torch.manual_seed(0)
    model, image = make().eval(), images(1, 3, 64, 64)
    with torch.no_grad():
        expected = model(image)
        vitgraft.graft(model, **GRAFT)
        assert torch.equal(model(image), expected)
        assert not torch.equal(wake(model)(image), expected)


def test_a_child_that_is_replaced_after_grafting_is_an_error():
    model, image = vitgraft.graft(VisionTransformer(**SMALL).eval(), **GRAFT), images(1, 3, 64, 64)
    model.blocks[1].norm1 = nn.LayerNorm(32)
    with pytest.raises(GraftError, match=r"its graft was not used.*replaced after grafting"):
        model(image)


class Raises(nn.Module):
    def forward(self, x, **_):
        raise RuntimeError("on purpose")


def test_nothing_is_left_of_a_block_that_raised():
    model, image = vitgraft.graft(VisionTransformer(**SMALL).eval(), **GRAFT), images(1, 3, 64, 64)
    expected = model(image)
    attn, model.blocks[1].attn = model.blocks[1].attn, Raises()
    with pytest.raises(RuntimeError, match="on purpose"):
        model(image)
    model.blocks[1].attn = attn
    model.blocks[1].drop_path1(torch.zeros(1, 65, 32))  # adds nothing: X0 of the failed call is gone
    assert torch.equal(model(image), expected)


def test_children_may_be_called_by_themselves():
    """As scripts that draw attention do."""
    model, image = vitgraft.graft(VisionTransformer(**SMALL).eval(), **GRAFT), images(1, 3, 64, 64)
    expected = model(image)
    x = model._pos_embed(model.patch_embed(image))
    model.blocks[1].attn.qkv(model.blocks[1].norm1(x))
    assert torch.equal(model(image), expected)


def seen(model, image):
    found = set()
    for graft in vitgraft.grafts(model).values():
        graft.register_forward_pre_hook(lambda _m, args: found.add(tuple(args[0].shape[1:3])))
    with torch.no_grad():
        model(image)
    return found


@pytest.mark.parametrize("first", ["wrap", "graft"])
@pytest.mark.parametrize(
    "wrap", [checkpoint_wrapper, lambda block: torch.compile(block, backend="eager", fullgraph=True)]
)
def test_wrapped_blocks_get_their_grid(wrap, first):
    torch.compiler.reset()  # its limit of graphs is that of the process
    torch.manual_seed(0)
    model = VisionTransformer(**SMALL, dynamic_img_size=True).eval()
    whole = wake(vitgraft.graft(copy.deepcopy(model), img_size=(64, 128), **GRAFT))
    if first == "graft":
        vitgraft.graft(model, img_size=(64, 128), **GRAFT)
    for i, block in enumerate(model.blocks):
        model.blocks[i] = wrap(block)
    if first == "wrap":
        vitgraft.graft(model, img_size=(64, 128), **GRAFT)
    wake(model)
    with torch.no_grad():
        for size in ((64, 128), (128, 64)):  # as many tokens
            torch.testing.assert_close(model(images(1, 3, *size)), whole(images(1, 3, *size)))


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
