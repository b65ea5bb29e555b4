"""graft() and strip(): putting grafts on a backbone that exists, and taking them off again.

A grafted block is the backbone's block plus one child called `graft`; every parameter of the backbone keeps its name.
Where grafts go is in `sites.py`, how a grafted block runs in `_grafted.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from vitgraft.config import GraftConfig
from vitgraft.errors import GraftError, NoGraftPointError
from vitgraft.layers.graft import GrafT, max_levels, plan_levels
from vitgraft.models._grafted import (
    GraftedBlock,
    GraftedForOneSize,
    GraftedGridSource,
    GraftedModel,
    GraftedResizable,
    grafted_class,
    original_class,
)
from vitgraft.models._points import find_grid_source, find_point
from vitgraft.models.sites import GraftSite, above, find_sites, run_once

__all__ = ["TrainReport", "graft", "grafts", "is_grafted", "strip", "train_grafts_only"]

Size = tuple[int, int]
_GRAFTED = (GraftedBlock, GraftedForOneSize, GraftedGridSource, GraftedModel, GraftedResizable)
_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def is_grafted(model: nn.Module) -> bool:
    """Whether the model carries grafts, or had its attention replaced by `graft`."""
    return any(isinstance(m, (GraftedBlock, GraftedModel)) for m in model.modules())


def grafts(model: nn.Module) -> dict[str, GrafT]:
    """The grafts of a model by the name of their block, in the order of the model's modules."""
    return {name.removesuffix(".graft"): m for name, m in model.named_modules() if isinstance(m, GrafT)}


def _levels(config: GraftConfig, sites: list[GraftSite]) -> list[int]:
    """Levels of each site; raises where a tuple does not fit."""
    wanted = config.levels
    if isinstance(wanted, tuple):
        stages = sites[-1].stage + 1
        if len(wanted) != stages:
            sizes = list(dict.fromkeys((s.stage, s.feat_size) for s in sites))
            maps = ", ".join(f"{h} x {w}" for _, (h, w) in sizes)
            raise GraftError(
                f"levels={wanted} has {len(wanted)} entries, the model has {stages} stages (maps of {maps} tokens): "
                f"give {stages}, a single number, or 'auto'"
            )
        for site in sites:
            most = max_levels(site.feat_size, config.level_sizes)
            if wanted[site.stage] > most:
                h, w = site.feat_size
                raise GraftError(
                    f"levels={wanted} wants {wanted[site.stage]} levels below a {h} x {w} map ({site.name}); it can be "
                    f"halved {most} times until one token is left"
                )
        return [wanted[site.stage] for site in sites]
    wanted = "auto" if wanted == "nominal" else wanted
    return [len(plan_levels(site.feat_size, config.window_size, wanted, config.level_sizes)) for site in sites]


def _choose(config: GraftConfig, sites: list[GraftSite], levels: list[int]) -> list[int]:
    """Indices of the sites that get a graft."""
    able = [i for i, n in enumerate(levels) if n > 0 or config.left_levels > 0]
    if isinstance(config.blocks, tuple):
        outside = [i for i in config.blocks if i >= len(sites)]
        if outside:
            raise GraftError(
                f"blocks={config.blocks}: there is no block {outside[0]}; this model has blocks 0 to {len(sites) - 1}"
            )
        for i in config.blocks:
            if i not in able:
                h, w = sites[i].feat_size
                raise GraftError(
                    f"blocks={config.blocks}: block {i} ({sites[i].name}) has a {h} x {w} map, which gets no level "
                    f"with levels={config.levels!r} and window_size={config.window_size}; give levels as a tuple or "
                    "a smaller window"
                )
        return sorted(config.blocks)
    # the paper leaves the first layer alone: its features are not encoded enough (section 3.3)
    able = [i for i in able if i > 0]
    if config.blocks == "all_but_first":
        return able
    if config.blocks > len(able):
        raise GraftError(
            f"blocks={config.blocks}: only {len(able)} blocks of this model can carry a graft; give at most {len(able)}"
        )
    return able[len(able) - config.blocks :]


def _why_nothing(model: nn.Module, sites: list[GraftSite], config: GraftConfig) -> str:
    name = type(model).__name__
    if sites:
        if len(sites) == 1 and config.blocks == "all_but_first":
            return f"{name}: blocks='all_but_first' leaves its only block without a graft; blocks=(0,) gives it one"
        sizes = ", ".join(dict.fromkeys(f"{h} x {w}" for h, w in (s.feat_size for s in sites)))
        return (
            f"{name}: none of its {len(sites)} blocks gets a graft with levels={config.levels!r}, window_size="
            f"{config.window_size} and blocks={config.blocks!r} (maps of {sizes} tokens); a smaller window_size or a "
            "tuple of levels would give some"
        )
    return (
        f"{name} has no block that can carry a graft: none is known to have the form x + attention(norm(x)). "
        "`vitgraft families` lists what can be grafted"
    )


def _changes_backbone(config: GraftConfig) -> bool:
    """Whether every block computes something else, also those without a graft."""
    return config.backbone_attention == "window" or config.swin_padding == "authors"


def _check_swin(sites: list[GraftSite]) -> None:
    from timm.models.swin_transformer import SwinTransformerBlock

    for site in sites:
        if not isinstance(site.block, SwinTransformerBlock):
            raise GraftError(
                f"swin_padding='authors' is for timm's Swin (v1) blocks; {site.name} is a {type(site.block).__name__}. "
                "Use swin_padding='timm'"
            )


def _check_blocks(sites: list[GraftSite]) -> None:
    for site in sites:
        if "forward" in site.block.__dict__:
            raise GraftError(
                f"{site.name} has a forward of its own (set on the instance), which a graft can't run: graft the model "
                "before patching it, or make it a method of the block's class"
            )
        if hasattr(site.block, "graft"):
            raise GraftError(f"{site.name} has a child or attribute called 'graft' already, the name that grafts take")


def _check_window_attention(model: nn.Module, sites: list[GraftSite]) -> None:
    from timm.layers import Attention

    for site in sites:
        attn = getattr(site.block, "attn", None)
        if not isinstance(attn, Attention) or site.tokens is None:
            raise GraftError(
                f"backbone_attention='window' replaces the attention of plain ViT blocks; {site.name} has "
                f"{type(attn).__name__}. Use backbone_attention='keep'"
            )
        H, W = site.feat_size
        if site.tokens != H * W:
            raise GraftError(
                f"backbone_attention='window': {site.tokens - H * W} prefix token(s) cannot live in windows; create "
                "the model with class_token=False, reg_tokens=0, global_pool='avg', or use backbone_attention='keep'"
            )


def _check_model(model: nn.Module) -> None:
    from vitgraft.models.families import NOT_GRAFTABLE, family_of

    if not isinstance(model, nn.Module):
        raise GraftError(f"graft() takes an nn.Module, such as timm.create_model(name) makes; got {model!r:.80}")
    for module in model.modules():
        family = family_of(module)
        if family in NOT_GRAFTABLE:
            raise NoGraftPointError(f"{type(module).__name__} ({family}) cannot be grafted: {NOT_GRAFTABLE[family]}")
    if is_grafted(model):
        raise GraftError(f"{type(model).__name__} is grafted already; vitgraft.strip(model) gives the backbone back")
    drops = (getattr(module, "patch_drop", None) for module in model.modules())
    if any(drop is not None and not isinstance(drop, nn.Identity) for drop in drops):
        raise GraftError(
            "patch_drop_rate > 0 drops tokens, and a graft needs the whole grid: create the model with "
            "patch_drop_rate=0"
        )


def graft(
    model: nn.Module,
    config: GraftConfig | Mapping[str, Any] | None = None,
    *,
    img_size: int | Size | None = None,
    **options: Any,
) -> nn.Module:
    """Grafts a vision transformer, in place, and returns it.

    A model that cannot be grafted is left as it was. To see its grids the model runs on a blank image, and again to see
    that its grafts are reached if there is code in it that is not timm's (forward hooks of yours fire). The backbone's
    parameters keep their names and values; what is new stands under `<block>.graft`. Modules are made on the device and
    in the dtype of their block.

    Args:
        model: A timm model, or any module built of timm's blocks; pretrained or not.
        config: A `GraftConfig` or a mapping of its options; None is the paper's final model.
        img_size: Image height and width that fix the grids and so the number of levels; None takes the model's own.
        **options: Single options of `GraftConfig`, on top of `config`.

    Returns:
        The same module.

    Raises:
        GraftError: An option is impossible for this model, or it is grafted already.
        NoGraftPointError: No block can carry a graft.

    Example:
        >>> model = timm.create_model("vit_small_patch14_dinov2", pretrained=True)
        >>> model = vitgraft.graft(model, init="identity")
    """
    config = GraftConfig.make(config, **options)
    _check_model(model)
    if not any(find_point(m) for m in model.modules()):
        raise NoGraftPointError(_why_nothing(model, [], config))
    sites = find_sites(model, img_size)
    windows_only = config.blocks == () and _changes_backbone(config)
    levels = _levels(config, sites) if sites else []
    chosen = _choose(config, sites, levels) if sites else []
    if not sites or (not chosen and not windows_only):
        raise NoGraftPointError(_why_nothing(model, sites, config))
    _check_blocks(sites)
    if config.backbone_attention == "window":
        _check_window_attention(model, sites)
    if config.swin_padding == "authors":
        _check_swin(sites)
    for i in chosen:
        heads = config.num_heads
        if heads is not None and config.width is None and sites[i].dim % heads:
            raise GraftError(f"num_heads={heads} does not divide the {sites[i].dim} channels of {sites[i].name}")
    if config.ffn != "shared":
        for i in chosen:
            if not sites[i].point.plain:
                raise GraftError(
                    f"ffn={config.ffn!r} is fused after the block, and {type(sites[i].block).__name__} "
                    f"({sites[i].name}) "
                    "maps several tensors at once: use ffn='shared'"
                )
    made = {i: _make(config, sites[i], levels[i], n % 2 == 1) for n, i in enumerate(chosen)}
    for i, site in enumerate(sites):
        if i in made or _changes_backbone(config):
            _attach(site, made.get(i), config)
    _attach_model(model, config, sites)
    if not _is_known(model, sites):  # that every graft is reached shows when it runs
        try:
            run_once(model, img_size)
        except GraftError as error:
            strip(model)
            raise GraftError(f"{type(model).__name__} can't be grafted: {error.__cause__ or error}") from error
    return model


def _is_known(model: nn.Module, sites: list[GraftSite]) -> bool:
    """Whether all that runs the blocks is timm's code, of which `vitgraft families` knows that it reaches grafts."""
    names = {name for site in sites for name in (site.name, *above(site.name))}
    modules = [model.get_submodule(name) for name in names]
    ours = ("timm.", "vitgraft.", "torch.nn.modules.")
    return all(type(m).__module__.startswith(ours) and "forward" not in m.__dict__ for m in modules)


def _make(config: GraftConfig, site: GraftSite, levels: int, odd: bool) -> GrafT:
    parameter = next(site.block.parameters())
    module = GrafT(
        site.dim,
        config.num_heads or site.num_heads,
        site.feat_size,
        levels,
        window_size=(config.window_size, config.window_size),
        downsample=config.downsample,
        upsample=config.upsample,
        left_levels=config.left_levels,
        ffn_ratio=config.ffn_ratio,
        level_sizes=config.level_sizes,
        width=config.width,
        gate=config.gate,
        relative_position_bias=config.relative_position_bias,
        attention=config.attention,
        shift=config.shifted_windows and odd,
        ffn=config.ffn,
        device=parameter.device,
        dtype=parameter.dtype,
    )
    if config.init == "identity":
        module.init_identity()
    return module.train(site.block.training)


def _attach(site: GraftSite, module: GrafT | None, config: GraftConfig) -> None:
    block = site.block
    block._graft_point = site.point
    block._graft_feat_size = site.feat_size
    block._graft_tokens = site.tokens
    block._graft_prefix = site.prefix
    side = config.backbone_window_size or config.window_size
    block._graft_window = (side, side) if config.backbone_attention == "window" else None
    block._graft_fused_last = config.ffn != "shared"
    block._graft_authors_padding = config.swin_padding == "authors"
    if module is not None:
        block.graft = module
    block.__class__ = grafted_class(type(block), ("block",))


def _attach_model(model: nn.Module, config: GraftConfig, sites: list[GraftSite]) -> None:
    roles: dict[str, list[str]] = {"": ["model"]}
    for name, module in model.named_modules():
        source = find_grid_source(module)
        blocks = getattr(module, source.blocks, None) if source is not None else None
        children = list(blocks.children()) if blocks is not None else []
        inside = [[m for m in child.modules() if isinstance(m, GraftedBlock)] for child in children]
        if any(inside):
            roles.setdefault(name, []).append("grid")
            module._graft_grid_source = source
            module._graft_positions = frozenset(i for i, found in enumerate(inside) if found)
            for block in (block for found in inside for block in found):
                block._graft_grid_varies = source.varies(module)
        if hasattr(module, "set_input_size") and (module is model or hasattr(module, "patch_embed")):
            roles.setdefault(name, []).append("resizable")
    for reader in {site.reader for site in sites if site.reader is not None}:
        roles.setdefault(reader.name, []).append("one_size")
        owner, module = model.get_submodule(reader.owner), model.get_submodule(reader.name)
        module._graft_image_size = reader.image_size
        module._graft_reader_of = original_class(type(owner)).__name__
    for name, names in roles.items():
        module = model.get_submodule(name)
        module.__class__ = grafted_class(type(module), tuple(dict.fromkeys(names)))
    model.graft_config = config


def refresh_grids(model: nn.Module, img_size: int | Size | None) -> None:
    """Tells the grafted blocks the grids of another image size, after the backbone's `set_input_size`."""
    made = {name: type(m) for name, m in model.named_modules() if isinstance(m, _GRAFTED)}
    modules = {name: model.get_submodule(name) for name in made}
    try:  # the backbone itself runs: grafted modules would compare its tokens and images with what they know
        for module in modules.values():
            module.__class__ = original_class(type(module))
        sites = find_sites(model, img_size)
    finally:
        for name, module in modules.items():
            module.__class__ = made[name]
    for site in sites:
        if not isinstance(site.block, GraftedBlock):
            continue
        site.block._graft_feat_size, site.block._graft_tokens = site.feat_size, site.tokens
        site.block._graft_prefix = site.prefix
        if site.reader is not None:
            model.get_submodule(site.reader.name)._graft_image_size = site.reader.image_size


def strip(model: nn.Module) -> nn.Module:
    """Takes all grafts off, in place: the backbone as it was, its own attention included, and returns it.

    Weights that were trained stay trained, and parameters that `train_grafts_only` froze stay frozen:
    `model.requires_grad_(True)` thaws them.

    Raises:
        GraftError: The model carries no graft.
    """
    if not is_grafted(model):
        raise GraftError(f"{type(model).__name__} carries no graft: there is nothing to strip")
    for module in list(model.modules()):
        if isinstance(module, _GRAFTED):
            module.__class__ = original_class(type(module))
            module._modules.pop("graft", None)
            for name in [n for n in module.__dict__ if n.startswith("_graft_") or n == "graft_config"]:
                delattr(module, name)
    return model


@dataclass(frozen=True)
class TrainReport:
    """What trains after `train_grafts_only`: numbers of parameters, by kind."""

    grafts: int
    norms: int
    head: int
    frozen: int

    @property
    def trained(self) -> int:
        """Number of parameters that train."""
        return self.grafts + self.norms + self.head

    def __str__(self) -> str:
        total = self.trained + self.frozen
        return (
            f"training {self.trained:,} of {total:,} parameters ({self.trained / total:.1%}): grafts {self.grafts:,}, "
            f"norms {self.norms:,}, head {self.head:,}; frozen {self.frozen:,}"
        )


def _is_norm(module: nn.Module) -> bool:
    """Whether it is a normalisation layer: torch's, or what is named so; timm's fused ones hold an activation, while
    blocks with that word in their names hold layers with parameters."""
    if isinstance(module, _NORMS):
        return True
    named_so = "norm" in type(module).__name__.lower()
    return named_so and not any(True for child in module.children() for _ in child.parameters())


def train_grafts_only(model: nn.Module, *, norms: bool = False, head: bool = True) -> TrainReport:
    """Freezes the backbone, so that the grafts alone train.

    Sets `requires_grad` of every parameter. Statistics of BatchNorm layers are not parameters: keep such layers in eval
    mode if they are not to move.

    Args:
        model: A grafted model.
        norms: Whether the backbone's normalisation layers train too.
        head: Whether the classifier trains too, which a new set of classes needs: what timm's `get_classifier` gives.
            Layers that you put around the model are frozen with the rest; thaw them afterwards.

    Raises:
        GraftError: The model carries no graft.
    """
    if not grafts(model):
        raise GraftError(f"{type(model).__name__} carries no graft to train; vitgraft.graft(model) adds them")
    kinds = {"grafts": 0, "norms": 0, "head": 0, "frozen": 0}
    inner = model
    while isinstance(inner, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        inner = inner.module
    classifier = inner.get_classifier() if hasattr(inner, "get_classifier") else None
    heads = classifier if isinstance(classifier, (tuple, list)) else (classifier,)
    head_ids = {id(p) for h in heads if isinstance(h, nn.Module) for p in h.parameters()}
    norm_ids = {id(p) for m in model.modules() if _is_norm(m) for p in m.parameters(recurse=False)}
    for name, parameter in model.named_parameters():
        if ".graft." in name:
            kind, trains = "grafts", True
        elif id(parameter) in head_ids:
            kind, trains = "head", head
        elif id(parameter) in norm_ids:
            kind, trains = "norms", norms
        else:
            kind, trains = "frozen", False
        parameter.requires_grad_(trains)
        kinds[kind if trains else "frozen"] += parameter.numel()
    return TrainReport(**kinds)
