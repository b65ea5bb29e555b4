"""Small timm models that the tests graft: a few blocks, a few channels, maps of at least 4 x 4 tokens."""

import timm
import torch
from torch import nn

TINY = {"depth": 3, "embed_dim": 24, "num_heads": 3, "num_classes": 5}
SWIN = {"depths": (2, 2, 1), "embed_dim": 16, "num_heads": (1, 2, 4), "num_classes": 5, "img_size": 64}

# what is tested -> timm model, its options, side of the image
BACKBONES: dict[str, tuple[str, dict, int]] = {
    "vit class token": ("vit_tiny_patch16_224", {**TINY, "img_size": 64}, 64),
    "vit average pooling": (
        "vit_tiny_patch16_224",
        {**TINY, "img_size": 64, "class_token": False, "global_pool": "avg"},
        64,
    ),
    "vit map pooling": ("vit_base_patch16_siglip_224", {**TINY, "img_size": 64}, 64),
    "vit patch 8": ("vit_small_patch8_224", {**TINY, "img_size": 32}, 32),
    "vit registers": ("vit_small_patch14_reg4_dinov2", {**TINY, "img_size": 56}, 56),
    "vit post norm": ("vit_srelpos_small_patch16_224", {**TINY, "img_size": 64}, 64),
    "vit parallel": ("vit_small_patch16_18x2_224", {**TINY, "img_size": 64}, 64),
    "dinov2": ("vit_small_patch14_dinov2", {**TINY, "img_size": 56}, 56),
    "deit distilled": ("deit_tiny_distilled_patch16_224", {**TINY, "img_size": 64}, 64),
    "deit iii": ("deit3_small_patch16_224", {**TINY, "img_size": 64}, 64),
    "swin": ("swin_tiny_patch4_window7_224", SWIN, 64),
    "swin v2": ("swinv2_tiny_window8_256", SWIN, 64),
    "eva 02": ("eva02_tiny_patch14_224", {**TINY, "img_size": 56}, 56),
    "dinov3": ("vit_small_patch16_dinov3", {**TINY, "img_size": 64}, 64),
    "beit": ("beit_base_patch16_224", {**TINY, "img_size": 64}, 64),
    "cait": ("cait_xxs24_224", {**TINY, "img_size": 64}, 64),
    "pvt v2": ("pvt_v2_b0", {"depths": (2, 1, 1, 1), "num_classes": 5}, 64),
    "twins": ("twins_svt_small", {"depths": (2, 2, 2, 1), "num_classes": 5}, 64),
    "pit": ("pit_ti_224", {"depth": (2, 1, 1), "num_classes": 5, "img_size": 64}, 64),
    "davit": ("davit_tiny", {"depths": (1, 1, 1, 1), "num_classes": 5}, 64),
    "mobilevit": ("mobilevit_xxs", {"num_classes": 5}, 64),
    "xcit": ("xcit_nano_12_p16_224", {"depth": 2, "num_classes": 5}, 64),
}


def backbone(key: str, **options) -> nn.Module:
    """A model of BACKBONES in eval mode, with weights that do not depend on what ran before."""
    name, fixed, _ = BACKBONES[key]
    torch.manual_seed(0)
    return timm.create_model(name, **{**fixed, **options}).eval()


def image(key: str, batch: int = 2, channels: int = 3) -> torch.Tensor:
    """Random images of the model's size."""
    return images(batch, channels, BACKBONES[key][2], BACKBONES[key][2])


def images(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def wake(model: nn.Module) -> nn.Module:
    """Draws all parameters of the grafts anew, so that identity grafts add something that can be seen."""
    generator = torch.Generator().manual_seed(1)
    for name, p in model.named_parameters():
        if ".graft." in name:
            p.data = torch.randn(p.shape, generator=generator).to(p.dtype) * 0.3
    return model


def snapshot(model: nn.Module) -> tuple:
    """All that a refused `graft` must leave alone."""
    return (
        [(name, type(m), m.training, sorted(m.__dict__)) for name, m in model.named_modules()],
        {name: (t.data_ptr(), t.clone()) for name, t in model.state_dict().items()},
        {name: p.requires_grad for name, p in model.named_parameters()},
    )


def assert_unchanged(before: tuple, after: tuple) -> None:
    assert before[0] == after[0]
    assert before[1].keys() == after[1].keys()
    for name, (pointer, value) in before[1].items():
        assert after[1][name][0] == pointer and torch.equal(after[1][name][1], value), name
    assert before[2] == after[2]
