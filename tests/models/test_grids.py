"""The grid of a block's tokens: what the graft sees has the image's shape, or is an error; identity can't tell."""

import copy
import pickle

import pytest
import timm
import torch
from timm.models.vision_transformer import Block
from torch import nn
from zoo import images, wake

import vitgraft
from vitgraft import GraftError
from vitgraft.models.surgery import find_sites, grid_like

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
    model = vitgraft.graft(timm.create_model(name, **options).eval(), window_size=2, img_size=size, levels=1)
    assert seen(model, images(1, 3, *size)) == expected


@pytest.mark.parametrize("key", ["qwen3", "deepseek"])
def test_models_of_any_size_tell_their_grid_at_every_call(key):
    name, options, size, expected = FLAT[key]
    model = vitgraft.graft(timm.create_model(name, **options).eval(), window_size=2)
    side = options["img_size"]
    assert seen(model, images(1, 3, side, side)) == {(8, 8)}
    assert seen(model, images(1, 3, *size)) == expected  # as many tokens, another shape
    assert seen(copy.deepcopy(model), images(1, 3, size[1], size[0])) == {grid[::-1] for grid in expected}


def test_another_shape_of_as_many_tokens_is_refused_where_tokens_do_not_tell():
    model = vitgraft.graft(timm.create_model("levit_128s").eval())
    with torch.no_grad():
        model(images(1, 3, 224, 224))
        for again in (model, pickle.loads(pickle.dumps(model))):
            with pytest.raises(ValueError, match="grafted for images of 224 x 224 and got 112 x 448"):
                again(images(1, 3, 112, 448))
        vitgraft.strip(model)(images(1, 3, 112, 448))  # what timm makes of it is timm's matter


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
    assert vitgraft.is_grafted(model) and type(model).__name__.startswith("Grafted")


def test_grid_like_finds_every_grid_of_a_stride():
    for stride in (8, 14, 16):
        for h in range(1, 16):
            for w in range(1, 16):
                for prefix in (0, 1, 2):
                    assert grid_like((h * stride, w * stride), h * w + prefix, (0, 1, 2)) == (h, w)
    assert grid_like((100, 300), 7 * 19, (0,)) == (7, 19)  # 16 pixels a token, rounded up
    assert grid_like((224, 224), 60, (0,)) is None and grid_like((64, 64), 12, (0, 1, 2)) is None


class Words(nn.Module):
    """A user's model whose tokens are no grid."""

    def __init__(self):
        super().__init__()
        self.stem, self.blocks = nn.Conv2d(3, 32, 16, 16), nn.Sequential(Block(32, 2), Block(32, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks(self.stem(x).flatten(2).transpose(1, 2)[:, :12])


def test_tokens_that_are_no_grid_are_an_error_that_says_so():
    model = Words()
    for call in (find_sites, vitgraft.graft):
        with pytest.raises(
            GraftError, match=r"blocks.0: the grid of its 12 tokens in an image of 64 x 64 can't be told"
        ):
            call(model, img_size=64)
    assert not vitgraft.is_grafted(model)
