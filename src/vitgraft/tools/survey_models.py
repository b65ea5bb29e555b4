"""Small models of every family of vision transformers, for the survey (`survey.py`) and the tests."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from torch import nn

from vitgraft.grafting import blocks

__all__ = ["FAMILIES", "LIBRARIES", "NOT_GRAFTABLE", "OTHER_MODELS", "SmallModel", "known_families"]

LIBRARIES = ("timm", "torchvision", "transformers", "open_clip")

# timm file -> a small model of it and what makes it quick to try: options of the model, of the graft (graft), the size
# of the image that is run (run_size)
FAMILIES: dict[str, tuple[str, dict]] = {
    "beit": ("beit_base_patch16_224", {"depth": 3}),
    "cait": ("cait_xxs24_224", {"depth": 3}),
    "coat": ("coat_tiny", {}),
    "convit": ("convit_tiny", {}),
    "cpubone": ("cpubone_nano", {"graft": {"window_size": 3}}),
    "crossvit": ("crossvit_tiny_240", {}),
    "csatv2": ("csatv2", {}),
    "davit": ("davit_tiny", {}),
    "deepseek_vit": ("deepseek_vit_412m", {"depth": 2, "img_size": 224}),
    "deit": ("deit_tiny_distilled_patch16_224", {"depth": 3}),
    "edgenext": ("edgenext_xx_small", {}),
    "efficientformer": ("efficientformer_l3", {"graft": {"window_size": 3}}),
    "efficientformer_v2": ("efficientformerv2_s0", {}),
    "efficientvit_mit": ("efficientvit_b0", {}),
    "efficientvit_msra": ("efficientvit_m0", {"graft": {"window_size": 4}}),
    "eva": ("eva02_tiny_patch14_224", {"depth": 3}),
    "fastvit": ("fastvit_sa12", {}),
    "gcvit": ("gcvit_xxtiny", {}),
    "hieradet_sam2": ("sam2_hiera_tiny", {"run_size": 256}),
    "iformer": ("iformer_t", {"graft": {"window_size": 3}}),
    "levit": ("levit_128s", {}),
    "lowformer": ("lowformer_b0", {"graft": {"window_size": 3}}),
    "maxxvit": ("maxvit_pico_rw_256", {}),
    "metaformer": ("caformer_s18", {}),
    "mobilenetv3": ("mobilenetv4_hybrid_medium", {}),
    "mobilevit": ("mobilevit_xxs", {}),
    "mvitv2": ("mvitv2_tiny", {}),
    "nest": ("nest_tiny", {}),
    "nextvit": ("nextvit_small", {}),
    "pit": ("pit_ti_224", {}),
    "pvt_v2": ("pvt_v2_b0", {}),
    "qwen3_vit": ("qwen3_vit_88m", {"depth": 2, "img_size": 224}),
    "shvit": ("shvit_s1", {"graft": {"window_size": 3}}),
    "swiftformer": ("swiftformer_xs", {}),
    "swin_transformer": ("swin_tiny_patch4_window7_224", {"depths": (2, 2, 2, 2)}),
    "swin_transformer_v2": ("swinv2_tiny_window8_256", {"depths": (2, 2, 2, 2)}),
    "swin_transformer_v2_cr": ("swinv2_cr_tiny_224", {"depths": (2, 2, 2, 2)}),
    "tiny_vit": ("tiny_vit_5m_224", {}),
    "tnt": ("tnt_s_legacy_patch16_224", {"depth": 3}),
    "twins": ("twins_svt_small", {}),
    "visformer": ("visformer_tiny", {}),
    "vision_transformer": ("vit_tiny_patch16_224", {"depth": 3}),
    "vision_transformer_hybrid": ("vit_tiny_r_s16_p8_224", {"img_size": 384, "depth": 3}),
    "vision_transformer_relpos": ("vit_srelpos_small_patch16_224", {"depth": 3}),
    "vision_transformer_sam": ("samvit_base_patch16_224", {"depth": 3}),
    "volo": ("volo_d1_224", {}),
    "xcit": ("xcit_nano_12_p8_224", {}),
}


@dataclass(frozen=True)
class SmallModel:
    """A model that is quick to try.

    Args:
        library: Name of its library, as it is imported.
        family: File of the library without the parts that all files have in common.
        name: Registered name or class.
        make: Makes the model.
        img_size: Side of the image that it is run on; None for the model's own.
        graft: Options of `graft`.
    """

    library: str
    family: str
    name: str
    make: Callable[[], nn.Module]
    img_size: int | None = None
    graft: Mapping[str, Any] = field(default_factory=dict)


def _timm(family: str) -> SmallModel:
    import timm

    name, options = FAMILIES[family]
    options = dict(options)
    graft_options, size = options.pop("graft", {}), options.pop("run_size", options.get("img_size"))
    return SmallModel("timm", family, name, partial(timm.create_model, name, **options), size, graft_options)


def _torchvision_vit() -> nn.Module:
    from torchvision.models.vision_transformer import VisionTransformer

    model = VisionTransformer(64, 8, 4, 2, 32, 64, num_classes=5)
    nn.init.normal_(model.heads.head.weight)  # zero at first
    return model


def _torchvision_swin(version: int = 1) -> nn.Module:
    from torchvision.models import swin_transformer as swin

    blocks = {"block": swin.SwinTransformerBlockV2, "downsample_layer": swin.PatchMergingV2} if version == 2 else {}
    return swin.SwinTransformer([4, 4], 16, [2, 2], [2, 2], [4, 4], num_classes=5, **blocks)


def _torchvision_maxvit() -> nn.Module:
    from torchvision.models.maxvit import MaxVit

    return MaxVit((64, 64), 16, 4, [16, 32], [2, 1], 8, 0.0, num_classes=5)


def _open_clip() -> nn.Module:
    from open_clip.transformer import VisionTransformer

    return VisionTransformer(image_size=64, patch_size=8, width=32, layers=4, heads=2, mlp_ratio=2, output_dim=16)


# transformers: name -> file, model class, options of its configuration; a configuration inside another one is (class,
# options)
_hidden = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2}
_vit = {**_hidden, "intermediate_size": 64, "image_size": 64, "patch_size": 8}
_dino = {**_hidden, "mlp_ratio": 2, "image_size": 64, "patch_size": 8}
_swin = {"image_size": 64, "patch_size": 4, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 2], "window_size": 4}
_eomt = {**_vit, "num_register_tokens": 4, "num_blocks": 2, "num_queries": 20, "num_upscale_blocks": 1}
_stages = [f"stage{number}" for number in range(1, 5)]
_swin_stages = {**_swin, "depths": [2, 2, 1, 1], "num_heads": [2] * 4, "out_features": _stages}
_sam = {**_vit, "mlp_dim": 64, "window_size": 4, "global_attn_indexes": [1, 3], "output_channels": 16}
_segformer = {"hidden_sizes": [16] * 4, "depths": [2, 1, 1, 1], "num_attention_heads": [1, 1, 2, 2]}
_poolformer = {"hidden_sizes": [16, 16, 32, 32], "depths": [2, 1, 1, 1]}
_focalnet = {"image_size": 64, "embed_dim": 16, "depths": [2, 1], "focal_levels": [2, 2], "focal_windows": [3, 3]}
_mask2former = {
    "backbone_config": ("SwinConfig", _swin_stages),
    **dict.fromkeys(("feature_size", "mask_feature_size", "hidden_dim", "dim_feedforward"), 32),
    **{"encoder_feedforward_dim": 32, "encoder_layers": 1, "decoder_layers": 2},
    **{"num_attention_heads": 2, "num_queries": 5},
}
_rt_detr = {
    **{"d_model": 32, "encoder_hidden_dim": 32, "encoder_ffn_dim": 32, "decoder_in_channels": [32, 32, 32]},
    **{"encoder_layers": 2, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2},
    **{"num_queries": 10, "eval_size": None},
}
_TRANSFORMERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "vit": ("vit", "ViTForImageClassification", _vit),
    "deit": ("deit", "DeiTForImageClassification", _vit),
    "dinov2": ("dinov2", "Dinov2Model", _dino),
    "dinov2 registers": ("dinov2_with_registers", "Dinov2WithRegistersModel", _dino),
    "dinov3": ("dinov3_vit", "DINOv3ViTModel", {**_vit, "num_register_tokens": 4}),
    "swin": ("swin", "SwinForImageClassification", _swin),
    "swin v2": ("swinv2", "Swinv2ForImageClassification", _swin),
    "donut": ("donut", "DonutSwinModel", _swin),
    "maskformer swin": ("maskformer", "MaskFormerSwinModel", _swin),
    "beit": ("beit", "BeitForImageClassification", _vit),
    "data2vec": ("data2vec", "Data2VecVisionForImageClassification", _vit),
    "siglip": ("siglip", "SiglipVisionModel", _vit),
    "clip": ("clip", "CLIPVisionModel", _vit),
    "metaclip 2": ("metaclip_2", "MetaClip2VisionModel", _vit),
    "owlvit": ("owlvit", "OwlViTVisionModel", _vit),
    "clipseg": ("clipseg", "CLIPSegVisionModel", _vit),
    "chinese clip": ("chinese_clip", "ChineseCLIPVisionModel", _vit),
    "ijepa": ("ijepa", "IJepaForImageClassification", _vit),
    "vit msn": ("vit_msn", "ViTMSNForImageClassification", _vit),
    "aimv2": ("aimv2", "Aimv2VisionModel", _vit),
    "altclip": ("altclip", "AltCLIPVisionModel", _vit),
    "blip": ("blip", "BlipVisionModel", _vit),
    "blip 2": ("blip_2", "Blip2VisionModel", _vit),
    "instructblip": ("instructblip", "InstructBlipVisionModel", _vit),
    "sam": ("sam", "SamVisionModel", _sam),
    "sam hq": ("sam_hq", "SamHQVisionModel", _sam),
    "segformer": ("segformer", "SegformerForImageClassification", _segformer),
    "glpn": ("glpn", "GLPNForDepthEstimation", {**_segformer, "decoder_hidden_size": 16}),
    "eomt": ("eomt", "EomtForUniversalSegmentation", _eomt),
    "eomt dinov3": ("eomt_dinov3", "EomtDinov3ForUniversalSegmentation", _eomt),
    "poolformer": ("poolformer", "PoolFormerForImageClassification", _poolformer),
    "focalnet": ("focalnet", "FocalNetForImageClassification", _focalnet),
    "mask2former": ("mask2former", "Mask2FormerForUniversalSegmentation", _mask2former),
    "rt-detr": ("rt_detr", "RTDetrForObjectDetection", _rt_detr),
}


def _make_transformers(cls: str, options: Mapping[str, Any]) -> nn.Module:
    import transformers

    options = {k: getattr(transformers, v[0])(**v[1]) if isinstance(v, tuple) else v for k, v in options.items()}
    model_class = getattr(transformers, cls)
    return model_class(model_class.config_class(**options))


def _small(library: str, family: str, name: str, make: Callable[[], nn.Module]) -> SmallModel:
    return SmallModel(library, family, name, make, 64, {"window_size": 2})


# models of other libraries by a short name
OTHER_MODELS: dict[str, SmallModel] = {
    "torchvision vit": _small("torchvision", "vision_transformer", "VisionTransformer", _torchvision_vit),
    "torchvision swin": _small("torchvision", "swin_transformer", "SwinTransformer", _torchvision_swin),
    "torchvision swin v2": _small(
        "torchvision", "swin_transformer", "SwinTransformer (v2)", partial(_torchvision_swin, 2)
    ),
    "torchvision maxvit": _small("torchvision", "maxvit", "MaxVit", _torchvision_maxvit),
    **{
        name: _small("transformers", family, cls, partial(_make_transformers, cls, options))
        for name, (family, cls, options) in _TRANSFORMERS.items()
    },
    "open_clip": _small("open_clip", "transformer", "VisionTransformer", _open_clip),
}
OTHER_MODELS["poolformer"] = replace(OTHER_MODELS["poolformer"], img_size=128)
OTHER_MODELS["rt-detr"] = replace(OTHER_MODELS["rt-detr"], img_size=256, graft={"blocks": (1,)})

# (library, family) -> why a graft has no place in it
NOT_GRAFTABLE: dict[tuple[str, str], str] = {
    (path.split(".")[0], path.split(".")[2]): reason for path, reason in blocks.NOT_GRAFTABLE.items()
}


def known_families(library: str) -> dict[str, SmallModel | str]:
    """What is known of a library: a small model of each family, or why the family cannot be grafted."""
    models = map(_timm, FAMILIES) if library == "timm" else OTHER_MODELS.values()
    known: dict[str, SmallModel | str] = {f"{m.family} {m.name}": m for m in models if m.library == library}
    known |= {family: reason for (of, family), reason in NOT_GRAFTABLE.items() if of == library}
    return dict(sorted(known.items()))
