"""What a checkpoint seems to be, by the names of its tensors, for error messages."""

import re
from collections.abc import Mapping

import torch

from vitgraft.weights.load_report import some

__all__ = ["PEFT", "describe"]

PEFT = re.compile(r"\.(lora_\w+|base_layer|modules_to_save)\.")
CLASSIFIER = r"(head|head\.fc|fc|classifier)\.weight$"
TABLE = "relative_position_bias_table"
OUTER = r"^((module|_orig_mod|(base_)?model|backbone(\.features)?)\.)+"
_TIMM = "The same weights under timm's names would fit: timm.create_model(NAME, pretrained=True)"
_BACKBONE = "The checkpoint of a backbone alone, or of one under the names of its authors, would fit"
# Patterns that the names match, each of them one; what the checkpoint is; what would work instead
FAMILIES: tuple[tuple[tuple[str, ...], str, str], ...] = (
    (
        (PEFT.pattern,),
        "a PEFT adapter, which is not merged",
        "Load it onto its base model with PEFT and save the state_dict of merge_and_unload()",
    ),
    ((r"\bencoder\.layers?\.\d+\..*attention\.",), "a model of Hugging Face transformers", _TIMM),
    ((r"^features\.\d+\.\d+\.attn\.",), "a Swin of torchvision", _TIMM),
    ((r"^stage1_conv_embed\.",), "a CSWin", ""),
    ((TABLE, r"^layers\.0\.downsample"), "a Swin, named as its authors do", ""),
    ((TABLE, r"^layers\."), "a Swin", ""),
    ((r"^patch_embed1\.", r"^pos_embed1$"), "a PVT v1", ""),
    ((r"^tokens_to_token\.attention1\.w$",), "a T2T-ViT", ""),
    ((r"^tokens_to_token\.",), "a T2T-ViT_t", ""),
    ((r"^cls_token\.proj\.weight$",), "a RegionViT", ""),
    ((r"^layer1\.1\.attn\.query\.weight$", r"x_pos_embed"), "a Vision Longformer with absolute positions", ""),
    ((r"^layer1\.1\.attn\.query\.weight$",), "a Vision Longformer with relative position bias", ""),
    ((r"^pos_embed$", r"^blocks\.0\.attn\.qkv\.weight$"), "a ViT or DeiT", ""),
    ((r"(^|\.)layer1\.0\.conv1\.weight$",), "a ResNet", ""),
    ((r"^(neck|rpn|rpn_head|roi_heads?|bbox_head|mask_head)\.",), "a detector", _BACKBONE),
    ((r"^(decode_head|auxiliary_head)\.",), "a segmentation model", _BACKBONE),
)


def describe(weights: Mapping[str, torch.Tensor], wrapper: str | None = None) -> str:
    """One sentence on what the checkpoint seems to be, and one on what would work, where that is known."""
    names = [re.sub(OUTER, "", name) for name in weights]
    family, advice = "a model of a family this loader has no rules for", ""
    for patterns, known, instead in FAMILIES:
        if all(any(re.search(pattern, name) for name in names) for pattern in patterns):
            family, advice = known, instead
            break
    if any(".graft." in name for name in names):
        family, advice = f"{family}, with grafts", ""
    heads = [value for value, name in zip(weights.values(), names, strict=True) if re.match(CLASSIFIER, name)]
    head = f"a classifier of {heads[0].shape[0]} classes" if heads else "no classifier"
    where = f" under '{wrapper}'" if wrapper else ""
    text = (
        f"The checkpoint looks like {family}: {len(weights)} tensors{where}, {head}, names like {some(list(weights))}."
    )
    return f"{text} {advice}." if advice else text
