"""Small plain ViTs of timm, torchvision and transformers, and what they are to become the backbone of."""

from functools import partial

import timm
import torch
import torchvision

SMALL = {"embed_dim": 32, "depth": 3, "num_heads": 2}


def of_timm(name: str, img_size: int = 64, **options) -> torch.nn.Module:
    return timm.create_model(name, img_size=img_size, **{**SMALL, **options})


def of_transformers(cls: str, config: str, patch_size: int, **options) -> torch.nn.Module:
    import transformers

    small = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 4 * patch_size}
    return getattr(transformers, cls)(getattr(transformers, config)(patch_size=patch_size, **small, **options))


def of_torchvision() -> torch.nn.Module:
    model = torchvision.models.VisionTransformer(64, 16, num_layers=3, num_heads=2, hidden_dim=32, mlp_dim=64)
    torch.nn.init.normal_(model.heads.head.weight)
    return model


HF_SIZES = {"intermediate_size": 64}
# prefix tokens: 1, 2, 5, 5, 1 and rotary, 1, 1, 5, 1, 1
VITS = {
    "timm deit": partial(of_timm, "deit_tiny_patch16_224"),
    "timm deit distilled": partial(of_timm, "deit_tiny_distilled_patch16_224"),
    "timm dinov2 reg": partial(of_timm, "vit_small_patch14_reg4_dinov2", 56),
    "timm dinov3": partial(of_timm, "vit_small_patch16_dinov3"),
    "timm eva02": partial(of_timm, "eva02_tiny_patch14_224", 56),
    "transformers vit": partial(of_transformers, "ViTForImageClassification", "ViTConfig", 16, **HF_SIZES),
    "transformers dinov2": partial(of_transformers, "Dinov2Model", "Dinov2Config", 14),
    "transformers dinov3": partial(
        of_transformers, "DINOv3ViTModel", "DINOv3ViTConfig", 16, num_register_tokens=4, **HF_SIZES
    ),
    "transformers siglip": partial(of_transformers, "SiglipVisionModel", "SiglipVisionConfig", 16, **HF_SIZES),
    "torchvision vit": of_torchvision,
}
# the six of the figure
SIX = ("timm deit", "timm dinov2 reg", "timm dinov3", "timm eva02", "transformers dinov2", "torchvision vit")
# square, not square, no multiple of 32 nor of a patch
SIZES = ((64, 64), (96, 64), (70, 100))


def make(name: str, seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return VITS[name]()


def without_gradient(model: torch.nn.Module) -> list[str]:
    """Parameters that train and got no gradient, for which DistributedDataParallel would wait."""
    return [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
