"""Which vision transformers can be grafted, tried on the installed libraries and not only claimed.

`vitgraft families` runs `survey()`; its Markdown is docs/families.md.
"""

import importlib.metadata
import importlib.util
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

from vitgraft.grafting import blocks, graft, grafts
from vitgraft.grafting.trace import find_targets, output_tensors

__all__ = [
    "FAMILIES",
    "LIBRARIES",
    "NOT_GRAFTABLE",
    "OTHER_MODELS",
    "FamilyResult",
    "SmallModel",
    "family_of",
    "survey",
    "to_markdown",
    "try_model",
]

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
        family: File of the library without the parts that all files share.
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


def _small(library: str, family: str, name: str, make: Callable[[], nn.Module]) -> SmallModel:
    return SmallModel(library, family, name, make, 64, {"window_size": 2})


def _transformers(
    family: str, cls: str, config: str, /, *, img_size: int = 64, graft: Mapping | None = None, **options: Any
) -> SmallModel:
    def make() -> nn.Module:
        import transformers

        # a configuration inside another is given by its class and its options
        nested = {k: getattr(transformers, v[0])(**v[1]) for k, v in options.items() if isinstance(v, tuple)}
        return getattr(transformers, cls)(getattr(transformers, config)(**{**options, **nested}))

    return SmallModel("transformers", family, cls, make, img_size, {"window_size": 2} if graft is None else graft)


_hidden = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2}
_vit = {**_hidden, "intermediate_size": 64, "image_size": 64, "patch_size": 8}
_dino = {**_hidden, "mlp_ratio": 2, "image_size": 64, "patch_size": 8}
_swin = {"image_size": 64, "patch_size": 4, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 2], "window_size": 4}
_eomt = {**_vit, "num_register_tokens": 4, "num_blocks": 2, "num_queries": 20, "num_upscale_blocks": 1}
_four_stages = {
    **_swin,
    "depths": [2, 2, 1, 1],
    "num_heads": [2] * 4,
    "out_features": [f"stage{i}" for i in range(1, 5)],
}

# models of other libraries by a short name
OTHER_MODELS: dict[str, SmallModel] = {
    "torchvision vit": _small("torchvision", "vision_transformer", "VisionTransformer", _torchvision_vit),
    "torchvision swin": _small("torchvision", "swin_transformer", "SwinTransformer", _torchvision_swin),
    "torchvision swin v2": _small(
        "torchvision", "swin_transformer", "SwinTransformer (v2)", partial(_torchvision_swin, 2)
    ),
    "torchvision maxvit": _small("torchvision", "maxvit", "MaxVit", _torchvision_maxvit),
    "vit": _transformers("vit", "ViTForImageClassification", "ViTConfig", **_vit),
    "deit": _transformers("deit", "DeiTForImageClassification", "DeiTConfig", **_vit),
    "dinov2": _transformers("dinov2", "Dinov2Model", "Dinov2Config", **_dino),
    "dinov2 registers": _transformers(
        "dinov2_with_registers", "Dinov2WithRegistersModel", "Dinov2WithRegistersConfig", **_dino
    ),
    "dinov3": _transformers("dinov3_vit", "DINOv3ViTModel", "DINOv3ViTConfig", num_register_tokens=4, **_vit),
    "swin": _transformers("swin", "SwinForImageClassification", "SwinConfig", **_swin),
    "swin v2": _transformers("swinv2", "Swinv2ForImageClassification", "Swinv2Config", **_swin),
    "donut": _transformers("donut", "DonutSwinModel", "DonutSwinConfig", **_swin),
    "maskformer swin": _transformers("maskformer", "MaskFormerSwinModel", "MaskFormerSwinConfig", **_swin),
    "beit": _transformers("beit", "BeitForImageClassification", "BeitConfig", **_vit),
    "data2vec": _transformers("data2vec", "Data2VecVisionForImageClassification", "Data2VecVisionConfig", **_vit),
    "siglip": _transformers("siglip", "SiglipVisionModel", "SiglipVisionConfig", **_vit),
    "clip": _transformers("clip", "CLIPVisionModel", "CLIPVisionConfig", **_vit),
    "metaclip 2": _transformers("metaclip_2", "MetaClip2VisionModel", "MetaClip2VisionConfig", **_vit),
    "owlvit": _transformers("owlvit", "OwlViTVisionModel", "OwlViTVisionConfig", **_vit),
    "clipseg": _transformers("clipseg", "CLIPSegVisionModel", "CLIPSegVisionConfig", **_vit),
    "chinese clip": _transformers("chinese_clip", "ChineseCLIPVisionModel", "ChineseCLIPVisionConfig", **_vit),
    "ijepa": _transformers("ijepa", "IJepaForImageClassification", "IJepaConfig", **_vit),
    "vit msn": _transformers("vit_msn", "ViTMSNForImageClassification", "ViTMSNConfig", **_vit),
    "sam": _transformers(
        "sam",
        "SamVisionModel",
        "SamVisionConfig",
        **_vit,
        mlp_dim=64,
        window_size=4,
        global_attn_indexes=[1, 3],
        output_channels=16,
    ),
    "eomt": _transformers("eomt", "EomtForUniversalSegmentation", "EomtConfig", **_eomt),
    "eomt dinov3": _transformers("eomt_dinov3", "EomtDinov3ForUniversalSegmentation", "EomtDinov3Config", **_eomt),
    "poolformer": _transformers(
        "poolformer",
        "PoolFormerForImageClassification",
        "PoolFormerConfig",
        img_size=128,
        hidden_sizes=[16, 16, 32, 32],
        depths=[2, 1, 1, 1],
    ),
    "focalnet": _transformers(
        "focalnet",
        "FocalNetForImageClassification",
        "FocalNetConfig",
        image_size=64,
        embed_dim=16,
        depths=[2, 1],
        focal_levels=[2, 2],
        focal_windows=[3, 3],
    ),
    "mask2former": _transformers(
        "mask2former",
        "Mask2FormerForUniversalSegmentation",
        "Mask2FormerConfig",
        backbone_config=("SwinConfig", _four_stages),
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        dim_feedforward=32,
        num_queries=5,
        encoder_feedforward_dim=32,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
    ),
    "rt-detr": _transformers(
        "rt_detr",
        "RTDetrForObjectDetection",
        "RTDetrConfig",
        img_size=256,
        graft={"blocks": (1,)},
        num_queries=10,
        encoder_layers=2,
        decoder_layers=1,
        d_model=32,
        encoder_hidden_dim=32,
        encoder_ffn_dim=32,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        decoder_ffn_dim=32,
        eval_size=None,
        decoder_in_channels=[32, 32, 32],
    ),
    "open_clip": _small("open_clip", "transformer", "VisionTransformer", _open_clip),
}

# (library, family) -> why a graft has no place in it
NOT_GRAFTABLE: dict[tuple[str, str], str] = {
    (path.split(".")[0], path.split(".")[2]): reason for path, reason in blocks.NOT_GRAFTABLE.items()
}


@dataclass(frozen=True)
class FamilyResult:
    """The outcome of one family: `grafts` of `blocks` grafted and identity kept, or the reason why not."""

    library: str
    family: str
    model: str
    grafts: int
    blocks: int
    reason: str = ""
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether the family can be grafted."""
        return not self.reason


def family_of(model: nn.Module) -> str:
    """timm's file of the model's class or of its nearest base class there; "" for a model from elsewhere."""
    for cls in type(model).__mro__:
        if cls.__module__.startswith("timm.models."):
            return cls.__module__.rsplit(".", 1)[-1]
    return ""


def _output(model: nn.Module, image: torch.Tensor) -> list[torch.Tensor]:
    output = model(image)
    return [t for t in output_tensors(dict(output) if hasattr(output, "items") else output) if t.is_floating_point()]


def _equal(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return len(a) == len(b) and all(map(torch.equal, a, b))


def try_model(small: SmallModel) -> FamilyResult:
    """Grafts a small model with init="identity" and compares it, bit for bit, with the backbone.

    After that the projection of each graft gets other weights and the output must change: a graft that is never run
    would pass the first comparison.
    """
    start = time.perf_counter()
    here = small.library, small.family, small.name
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            torch.manual_seed(0)
            model = small.make().eval()
            size = small.img_size or model.pretrained_cfg["input_size"][-1]
            image = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
            before, names = _output(model, image), set(model.state_dict())
            targets = find_targets(model, size)
            graft(model, init="identity", img_size=size, **small.graft)
            after = _output(model, image)
            made = grafts(model)
            for one in made.values():
                nn.init.normal_(one.levels[0].up.proj.weight)
            changed = _output(model, image)
    except Exception as error:
        return FamilyResult(*here, 0, 0, f"{type(error).__name__}: {error}")
    reason = ""
    if not _equal(before, after):
        reason = "identity grafts change its output"
    elif _equal(before, changed):
        reason = "its grafts do not change the output"
    elif not names <= set(model.state_dict()):
        reason = "its parameters changed their names"
    return FamilyResult(*here, len(made), len(targets), reason, time.perf_counter() - start)


def known_families(library: str) -> dict[str, SmallModel | str]:
    """What is known of a library: a small model of each family, or why the family cannot be grafted."""
    models = map(_timm, FAMILIES) if library == "timm" else OTHER_MODELS.values()
    known: dict[str, SmallModel | str] = {f"{m.family} {m.name}": m for m in models if m.library == library}
    known |= {family: reason for (of, family), reason in NOT_GRAFTABLE.items() if of == library}
    return dict(sorted(known.items()))


def survey(names: Sequence[str] = ()) -> Iterator[FamilyResult]:
    """Tries families, one after the other; a library that is not installed is one result.

    Args:
        names: Libraries, families, or both; none for all.
    """
    for library in LIBRARIES:
        known = known_families(library)
        if names and library not in names:
            known = {key: value for key, value in known.items() if key.split()[0] in names}
        if known and importlib.util.find_spec(library) is None:
            yield FamilyResult(library, "-", "-", 0, 0, "the library is not installed")
            continue
        for key, value in known.items():
            yield FamilyResult(library, key, "-", 0, 0, value) if isinstance(value, str) else try_model(value)


_NOTES = {
    "timm": "Not counted: files of convolutional networks in which attention is an optional layer inside a bottleneck "
    "(byobnet, cspnet, cspnext, nfnet, vovnet).",
    "transformers": "Files of other models that use the blocks of one of these work as well.",
}


def to_markdown(results: list[FamilyResult]) -> str:
    """docs/families.md."""
    lines = [
        "# Which models can be grafted",
        "",
        "Made by `vitgraft families --output docs/families.md`, which grafts one small model of each family, checks "
        "that identity grafts leave its output equal bit for bit, and that other weights change it. Blocks of your "
        "own: `vitgraft.register_block` (docs/method.md).",
    ]
    for library in dict.fromkeys(r.library for r in results):
        of_it = [r for r in results if r.library == library]
        if importlib.util.find_spec(library) is None:
            lines += ["", f"## {library}", "", "Not installed, and so not tried."]
            continue
        count = f"{sum(r.ok for r in of_it)} of {len(of_it)} families with attention blocks"
        version = importlib.metadata.version("open_clip_torch" if library == "open_clip" else library)
        lines += [
            "",
            f"## {library}",
            "",
            f"{library} {version}: {count}. {_NOTES.get(library, '')}".rstrip(),
            "",
            "| file | tried with | blocks with an attention residual | grafted by default | result |",
            "|---|---|---|---|---|",
        ]
        for r in of_it:
            counts = f"{r.blocks} | {r.grafts}" if r.ok else "- | -"
            lines.append(f"| `{r.family}` | `{r.model}` | {counts} | {'grafted' if r.ok else 'no: ' + r.reason} |")
    return "\n".join(lines) + "\n"
