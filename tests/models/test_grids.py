"""The grid of a block's tokens: what the graft sees has the image's shape, or is an error; identity can't tell."""

import copy
import pickle

import pytest
import timm
import torch
from small_models import images, wake
from timm.models.vision_transformer import Block
from torch import nn

import vitgraft
from vitgraft import GraftError
from vitgraft.grafting.trace import find_targets

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

SMALL = {"embed_dim": 32, "depth": 2, "num_heads": 2}
# family -> model, its options, an image of 1:4, the grids (height, width) of its grafts
FLAT = {
    "beit": ("beit_base_patch16_224", {**SMALL, "img_size": (64, 256)}, (64, 256), {(4, 16)}),
    "cait": ("cait_xxs24_224", {**SMALL, "img_size": (64, 256)}, (64, 256), {(4, 16)}),
    "convit": ("convit_tiny", {**SMALL, "img_size": (64, 256)}, (64, 256), {(4, 16)}),
    "crossvit": ("crossvit_tiny_240", {"img_size": (120, 480)}, (120, 480), {(7, 28), (10, 40)}),
    "deepseek": ("deepseek_vit_412m", {**SMALL, "img_size": 112}, (56, 224), {(4, 16)}),
    "levit": ("levit_128s", {"img_size": (112, 448)}, (112, 448), {(7, 28), (4, 14), (2, 7)}),
    "levit_conv": ("levit_conv_128s", {"img_size": (112, 448)}, (112, 448), {(7, 28), (4, 14), (2, 7)}),
    "qwen3": ("qwen3_vit_88m", {**SMALL, "img_size": 128}, (64, 256), {(4, 16)}),
    "relpos": ("vit_srelpos_small_patch16_224", {**SMALL, "img_size": (64, 256)}, (64, 256), {(4, 16)}),
    "tnt": ("tnt_s_legacy_patch16_224", {"depth": 2, "img_size": (64, 256)}, (64, 256), {(4, 16)}),
    "vit": ("vit_tiny_patch16_224", {**SMALL, "img_size": (64, 256)}, (64, 256), {(4, 16)}),
}


# of two blocks under a class token none is grafted by default
ALL = {"tnt": (0, 1), "vit": (0, 1)}


def seen(model: nn.Module, image: torch.Tensor) -> set[tuple[int, int]]:
    """The grids that the grafts are given."""
    found = set()
    handles = [
        graft.register_forward_pre_hook(lambda _m, args: found.add(tuple(args[0].shape[1:3])))
        for graft in vitgraft.grafts(model).values()
    ]
    with torch.no_grad():
        model(image)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("key", FLAT)
def test_grids_have_the_shape_of_the_image(key):
    name, options, size, expected = FLAT[key]
    model = vitgraft.graft(
        timm.create_model(name, **options).eval(),
        window_size=2,
        img_size=size,
        levels=1,
        blocks=ALL.get(key, "all_but_first"),
    )
    assert seen(model, images(1, 3, *size)) == expected


def test_a_metaformer_takes_every_size():
    plain = timm.create_model("caformer_s18").eval()
    model = vitgraft.graft(copy.deepcopy(plain), window_size=2, levels=1, init="identity")
    for size, expected in (
        ((128, 128), {(32, 32), (16, 16), (8, 8), (4, 4)}),
        ((64, 256), {(16, 64), (8, 32), (4, 16), (2, 8)}),
        ((100, 60), {(25, 15), (13, 8), (7, 4), (4, 2)}),
    ):
        image = images(1, 3, *size)
        assert seen(model, image) == expected
        with torch.no_grad():
            assert torch.equal(model(image), plain(image))
    model.set_grad_checkpointing()
    model.train()(image).sum().backward()
    assert all(p.grad is not None for n, p in model.named_parameters() if ".graft." in n)


@pytest.mark.parametrize("key", ["qwen3", "deepseek"])
def test_models_of_any_size_tell_their_grid_at_every_call(key):
    name, options, size, expected = FLAT[key]
    model = vitgraft.graft(timm.create_model(name, **options).eval(), window_size=2)
    side = options["img_size"]
    assert seen(model, images(1, 3, side, side)) == {(8, 8)}
    assert seen(model, images(1, 3, *size)) == expected  # as many tokens, another shape
    assert seen(copy.deepcopy(model), images(1, 3, size[1], size[0])) == {grid[::-1] for grid in expected}


def test_another_shape_of_as_many_tokens_is_refused_where_the_model_is_of_one_size():
    model = vitgraft.graft(timm.create_model("levit_128s").eval())
    for again in (model, pickle.loads(pickle.dumps(model))):
        again(images(1, 3, 224, 224))
        with pytest.raises(GraftError, match="49 tokens for a 4 x 14 grid"):  # its second stage stays 7 x 7
            again(images(1, 3, 112, 448))


@pytest.mark.parametrize("name", ["beit_base_patch16_224", "vit_srelpos_small_patch16_224"])
def test_set_input_size_where_the_grid_is_fixed(name):
    plain = timm.create_model(name, **SMALL).eval()
    model = vitgraft.graft(copy.deepcopy(plain), init="identity")
    for each in (plain, model):
        each.set_input_size((320, 192))
    image = images(1, 3, 320, 192)
    assert seen(model, image) == {(20, 12)}
    with torch.no_grad():
        assert torch.equal(model(image), plain(image)) and not torch.equal(wake(model)(image), plain(image))
    assert vitgraft.is_grafted(model)


class Around(nn.Module):
    """A user's model around a backbone: it resizes its images first, and calls things by names of its own."""

    def __init__(self, net: nn.Module, size: tuple[int, int] | None = None, method: str = "forward"):
        super().__init__()
        self.net, self.size, self.method = net, size, method

    def forward(self, pixel_values: torch.Tensor, labels: None = None) -> torch.Tensor:
        if self.size is not None:
            pixel_values = nn.functional.interpolate(pixel_values, self.size)
        return getattr(self.net, self.method)(x=pixel_values)


@pytest.mark.parametrize("method", ["forward", "forward_features"])
@pytest.mark.parametrize("key", FLAT)
def test_models_inside_a_model_that_resizes(key, method):
    """The grid is that of what the inner model sees, and every image that the outer one takes is taken."""
    name, options, size, expected = FLAT[key]
    model = Around(timm.create_model(name, **options).eval(), size, method)
    vitgraft.graft(model, window_size=2, img_size=(160, 160), levels=1, blocks=ALL.get(key, "all_but_first"))
    for image in (images(1, 3, 160, 160), images(1, 3, 96, 240)):
        assert seen(model, image) == expected
    with torch.no_grad():
        torch.testing.assert_close(model(pixel_values=image), model(image))
        pickle.loads(pickle.dumps(model))(pixel_values=image, labels=None)


@pytest.mark.parametrize("key", ["levit", "cait"])
def test_an_inner_model_is_stripped(key):
    name, options, size, _ = FLAT[key]
    net = timm.create_model(name, **options).eval()
    model = vitgraft.graft(Around(net), window_size=2, img_size=size, levels=1)
    with torch.no_grad():
        for call in (model, model.net, model.net.forward_features):
            call(images(1, 3, *size))
    vitgraft.strip(model)
    assert not any(name.startswith("_graft") for m in model.modules() for name in m.__dict__)


class Functional(nn.Module):
    """A user's model that reads its image by itself."""

    def __init__(self):
        super().__init__()
        self.weight, self.blocks = nn.Parameter(torch.randn(32, 3, 16, 16)), nn.Sequential(Block(32, 2), Block(32, 2))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.blocks(nn.functional.conv2d(image, self.weight, stride=16).flatten(2).transpose(1, 2))


def test_a_model_that_reads_its_image_itself():
    model = vitgraft.graft(Functional(), img_size=(64, 256), window_size=2)
    assert seen(model, images(1, 3, 64, 256)) == {(4, 16)}
    model(image=images(1, 3, 64, 256))
    assert seen(model, images(1, 3, 256, 64)) == {(16, 4)}


@pytest.mark.parametrize("way", ["inside", "features_only"])
@pytest.mark.parametrize("name", ["beit_base_patch16_224", "vit_srelpos_small_patch16_224"])
def test_set_input_size_of_an_inner_model(name, way):
    if way == "inside":
        model = Around(timm.create_model(name, **SMALL))
        inner = model.net
    else:
        model = timm.create_model(name, features_only=True, out_indices=(0, 1), **SMALL)
        inner = model.model
    vitgraft.graft(model.eval(), window_size=2, levels=1)
    inner.set_input_size((320, 192))
    assert seen(model, images(1, 3, 320, 192)) == {(20, 12)}


class Words(nn.Module):
    """A user's model whose tokens are no grid."""

    def __init__(self):
        super().__init__()
        self.stem, self.blocks = nn.Conv2d(3, 32, 16, 16), nn.Sequential(Block(32, 2), Block(32, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks(self.stem(x).flatten(2).transpose(1, 2)[:, :12])


def test_tokens_that_are_no_grid_are_an_error_that_says_so():
    model = Words()
    for call in (find_targets, vitgraft.graft):
        with pytest.raises(GraftError, match=r"blocks.0: the grid of its 12 tokens cannot be inferred"):
            call(model, img_size=64)
    assert not vitgraft.is_grafted(model)
