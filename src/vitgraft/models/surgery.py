"""graft() and strip(): putting grafts on a backbone that exists, and taking them off again.

A grafted block is the backbone's block plus one child called `graft`; every parameter of the backbone keeps its name.
How a block is found and run is in `_points.py` and `_grafted.py`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from vitgraft.config import GraftConfig
from vitgraft.errors import GraftError, NoGraftPointError
from vitgraft.layers.graft import GrafT
from vitgraft.models._grafted import (
    GraftedBlock,
    GraftedGridSource,
    GraftedModel,
    grafted_class,
    original_class,
)
from vitgraft.models._points import GraftPoint, find_grid_source, find_point

__all__ = ["GraftSite", "TrainReport", "find_sites", "graft", "grafts", "is_grafted", "strip", "train_grafts_only"]

Size = tuple[int, int]
_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


@dataclass
class GraftSite:
    """A block that can carry a graft, as one run of the model met it.

    Args:
        name: Name of the block in the model.
        feat_size: Grid (height, width) of the block in tokens.
        dim: Channels.
        num_heads: The block's own heads.
        tokens: Flat tokens, prefix tokens included; None where the block runs on a map.
        stage: Counts the changes of the grid, from 0.
        image_size: Image (height, width) by whose shape the grid was worked out, where images of another shape could
            have as many tokens; None where the model tells the grid, or takes images of one size only.
    """

    name: str
    block: nn.Module
    point: GraftPoint
    feat_size: Size
    dim: int
    num_heads: int
    tokens: int | None
    stage: int = 0
    image_size: Size | None = None


def is_grafted(model: nn.Module) -> bool:
    """Whether the model carries grafts, or had its attention replaced by `graft`."""
    return any(isinstance(m, (GraftedBlock, GraftedModel)) for m in model.modules())


def grafts(model: nn.Module) -> dict[str, GrafT]:
    """The grafts of a model by the name of their block, in the order of the model's modules."""
    return {name.removesuffix(".graft"): m for name, m in model.named_modules() if isinstance(m, GrafT)}


def _input_size(model: nn.Module, img_size: int | Size | None) -> tuple[int, int, int]:
    """Channels, height and width of the image that tells the grids."""
    cfg = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None) or {}
    cfg = cfg if isinstance(cfg, Mapping) else vars(cfg)
    channels, H, W = cfg.get("input_size") or (3, 224, 224)
    embed = getattr(model, "patch_embed", None)
    built = getattr(embed, "img_size", None) or getattr(model, "img_size", None)
    if img_size is not None:
        size = tuple(img_size) if isinstance(img_size, (tuple, list)) else (img_size, img_size)
        if len(size) != 2 or not all(isinstance(n, int) and n > 0 for n in size):
            raise GraftError(f"img_size={img_size!r} is neither a number of pixels >= 1 nor a (height, width) of such")
        H, W = size
    elif built is not None:
        H, W = (built, built) if isinstance(built, int) else tuple(built)[:2]
    # where timm's builder did not make the model, the first convolution counts, whatever its name
    stems = (cfg["first_conv"] or ()) if "first_conv" in cfg else ("",)
    stems = (stems,) if isinstance(stems, str) else stems
    for name, module in model.named_modules():
        # a feature wrapper puts its own name before, a linear stem has another kind of layer there
        if isinstance(module, nn.Conv2d) and any(not stem or f".{name}".endswith(f".{stem}") for stem in stems):
            channels = module.in_channels  # built with in_chans, which the configuration does not know
            break
    return channels, H, W


def _num_heads(block: nn.Module, dim: int) -> int:
    """Heads of the block: its own word, else that of a child, else one head per 32 channels."""
    for module in block.modules():
        heads = getattr(module, "num_heads", None)
        if isinstance(heads, int) and heads > 0 and dim % heads == 0:
            return heads
    return next(heads for heads in range(max(1, dim // 32), 0, -1) if dim % heads == 0)


class _Watch:
    """Forward hooks, for one run only, that note what each candidate block reads and where its result goes."""

    def __init__(self, model: nn.Module, image_size: Size):
        self.image_size = image_size
        self.blocks = [(n, m, find_point(m)) for n, m in model.named_modules() if find_point(m) is not None]
        self.model = model
        self.seen: dict[str, dict[str, Any]] = {}
        self.handles: list = []

    def __enter__(self) -> "_Watch":
        for name, block, point in self.blocks:
            self.handles.append(block.register_forward_pre_hook(self._note(name, "args"), with_kwargs=True))
            for key, child in (("x0", point.reads), ("result", point.adds)):
                module = getattr(block, child, None) if child else None
                if isinstance(module, nn.Module) and not isinstance(module, nn.ModuleList):
                    self.handles.append(module.register_forward_pre_hook(self._note(name, key), with_kwargs=True))
        for name, module in self.model.named_modules():
            source = find_grid_source(module)
            # forward_features and forward_intermediates are run by forward, with the same image
            if source is not None:
                self.handles.append(module.register_forward_pre_hook(self._note(name, "input"), with_kwargs=True))
        return self

    def _note(self, name: str, key: str):
        def hook(_module: nn.Module, args: tuple, kwargs: dict) -> None:
            notes = self.seen.setdefault(name, {})
            # the first call after the block began: a shared drop_path is called again for the feed-forward branch
            if key == "result" and "x0" not in notes and "args" in notes:
                return
            if key not in notes:
                notes[key] = (args, kwargs)

        return hook

    def __exit__(self, *_: Any) -> None:
        for handle in self.handles:
            handle.remove()


def _run_once(model: nn.Module, img_size: int | Size | None) -> "_Watch":
    """Runs one blank image in eval mode without gradients and gives back what the blocks met."""
    parameter = next(model.parameters())
    image = torch.zeros(1, *_input_size(model, img_size), device=parameter.device, dtype=parameter.dtype)
    modes = {m: m.training for m in model.modules()}
    model.eval()
    try:
        with torch.no_grad(), _Watch(model, tuple(image.shape[2:])) as watch:
            model(image)
    except Exception as error:
        raise GraftError(
            f"{type(model).__name__} does not run on a blank image of {tuple(image.shape[1:])}: {error}. "
            "Say a size that it takes with graft(model, img_size=...), or build it for this one"
        ) from error
    finally:
        for module, mode in modes.items():
            module.training = mode
    return watch


def find_sites(model: nn.Module, img_size: int | Size | None = None) -> list[GraftSite]:
    """All blocks of `model` that can carry a graft, in the order in which they run.

    The model runs once on a blank image, in eval mode and without gradients; nothing of it changes.

    Args:
        model: A timm model or any module built of timm's blocks.
        img_size: Height and width of the image that tells the grids; None takes the model's own.

    Raises:
        GraftError: The model does not run on such an image, or the grid of a block's tokens can't be told.
    """
    watch = _run_once(model, img_size)
    order = [name for name in watch.seen if "args" in watch.seen[name]]
    points = {name: (block, point) for name, block, point in watch.blocks}
    sites: list[GraftSite] = []
    for name in order:
        block, point = points[name]
        site = _site(model, watch, name, block, point)
        if site is not None:
            if sites:
                site.stage = sites[-1].stage + (site.feat_size != sites[-1].feat_size)
            sites.append(site)
    return sites


def _site(model: nn.Module, watch: _Watch, name: str, block: nn.Module, point: GraftPoint) -> GraftSite | None:
    notes = watch.seen[name]
    args, kwargs = notes["args"]
    x0 = notes["x0"][0][0] if "x0" in notes else args[0]
    result = notes["result"][0][0] if "result" in notes else x0
    image_size = None
    if point.to_grid is not None:
        x0 = point.to_grid(block, x0, _source_grid(model, watch, name))
        return GraftSite(name, block, point, tuple(x0.shape[1:3]), x0.shape[3], _num_heads(block, x0.shape[3]), None)
    if x0.dim() == 4:
        dim, size = (x0.shape[1], x0.shape[2:]) if point.maps else (x0.shape[3], x0.shape[1:3])
        tokens = None
    else:
        dim, tokens = x0.shape[2], x0.shape[1]
        size, told = _token_size(model, watch, name, point, tokens, args, kwargs)
        image_size = None if told else watch.image_size
    windowed = point.from_grid is not None
    if not windowed and x0.numel() != result.numel():
        return None  # the block changes the resolution or the width: X0 and the attention's result do not match
    return GraftSite(name, block, point, tuple(size), dim, _num_heads(block, dim), tokens, image_size=image_size)


def _source_grid(model: nn.Module, watch: _Watch, name: str) -> Size | None:
    """Grid by the word of the nearest module above block `name` that knows it."""
    parts = name.split(".")
    for depth in range(len(parts), -1, -1):
        parent_name = ".".join(parts[:depth])
        parent = model.get_submodule(parent_name)
        source = find_grid_source(parent)
        if source is not None and "input" in watch.seen.get(parent_name, {}):
            return source.grid(parent, watch.seen[parent_name]["input"][0][0])
    return None


def _token_size(
    model: nn.Module, watch: _Watch, name: str, point: GraftPoint, tokens: int, args: tuple, kwargs: dict
) -> tuple[Size, bool]:
    """Grid of `tokens` flat tokens, and whether the model tells it: in the block's arguments, by its grid source, or by
    its patch grid for images of one size. Else it is worked out of the image's shape.

    Raises:
        GraftError: No grid of the image's shape has so many tokens.
    """
    if point.grid is not None:
        return point.grid(*args, **kwargs), True
    size = _source_grid(model, watch, name)
    if size is not None:
        return size, True
    embed = getattr(model, "patch_embed", None)
    grid = getattr(embed, "grid_size", None)
    prefix = getattr(model, "num_prefix_tokens", None)
    built = grid is not None and _pair(getattr(embed, "img_size", None)) == watch.image_size
    if built and 0 <= tokens - grid[0] * grid[1] <= max(prefix or 0, 2):
        return tuple(grid), bool(getattr(embed, "strict_img_size", False))
    H, W = watch.image_size
    size = grid_like(watch.image_size, tokens, (0, 1, 2) if prefix is None else (prefix, 0))
    if size is None:
        raise GraftError(
            f"{name}: the grid of its {tokens} tokens in an image of {H} x {W} can't be told, and a graft needs it. "
            "Give img_size=(height, width) of images as the model takes them; of a model with several inputs, graft "
            "the part that sees images"
        )
    return size, False


def _pair(size: Any) -> Size | None:
    return (size, size) if isinstance(size, int) else tuple(size)[-2:] if size is not None else None


def grid_like(image_size: Size, tokens: int, prefixes: Sequence[int]) -> Size | None:
    """The grid (height, width) of that many tokens, prefix tokens included, that some stride makes of an image.

    Args:
        image_size: Height and width in pixels.
        tokens: Grid and prefix tokens.
        prefixes: How many of them may be prefix tokens, the likelier first.

    Returns:
        The grid whose shape is the nearest to the image's, None where there is none. Possible are those with a stride
        s for which H / s and W / s, both rounded down or both up, are height and width.

    >>> grid_like((64, 256), 65, (0, 1)), grid_like((224, 224), 196, (0, 1)), grid_like((64, 64), 37, (0,))
    ((4, 16), (14, 14), None)
    """
    H, W = image_size

    def strides(side: int, count: int, up: bool) -> tuple[float, float]:
        if up:
            return side / count, side / (count - 1) if count > 1 else math.inf
        return side / (count + 1), side / count

    found: list[tuple[float, int, Size]] = []
    for order, prefix in enumerate(prefixes):
        for h in range(1, tokens - prefix + 1):
            w, rest = divmod(tokens - prefix, h)
            for up in (False, True) if not rest else ():
                (low_h, high_h), (low_w, high_w) = strides(H, h, up), strides(W, w, up)
                if max(low_h, low_w) < min(high_h, high_w):
                    found.append((abs(math.log(h * W / (w * H))), order, (h, w)))
    return min(found)[2] if found else None


def auto_levels(feat_size: Size, window_size: int) -> int:
    """How often a grid of `feat_size` (H, W) is halved until one window covers it: "global at the coarsest"."""
    levels, side = 0, max(feat_size)
    while side > window_size:
        levels, side = levels + 1, -(-side // 2)
    return levels


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
            most = auto_levels(site.feat_size, 1)
            if wanted[site.stage] > most:
                h, w = site.feat_size
                raise GraftError(
                    f"levels={wanted} wants {wanted[site.stage]} levels below a {h} x {w} map ({site.name}); it can be "
                    f"halved {most} times until one token is left"
                )
        return [wanted[site.stage] for site in sites]
    auto = [auto_levels(site.feat_size, config.window_size) for site in sites]
    return [min(n, wanted) for n in auto] if isinstance(wanted, int) else auto


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

    Every check comes before the first change. The backbone's parameters keep their names and values; what is new
    stands under `<block>.graft`. Modules are made on the device and in the dtype of their block.

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
    if config.backbone_attention == "window":
        _check_window_attention(model, sites)
    if config.swin_padding == "authors":
        _check_swin(sites)
    for i in chosen:
        heads = config.num_heads
        if heads is not None and sites[i].dim % heads:
            raise GraftError(f"num_heads={heads} does not divide the {sites[i].dim} channels of {sites[i].name}")
    if config.ffn == "separate":
        for i in chosen:
            if not sites[i].point.plain:
                raise GraftError(
                    f"ffn='separate' is fused after the block, and {type(sites[i].block).__name__} ({sites[i].name}) "
                    "maps several tensors at once: use ffn='shared'"
                )
    made = {i: _make(config, sites[i], levels[i]) for i in chosen}
    # from here on the model changes, and nothing can fail
    for i, site in enumerate(sites):
        if i in made or _changes_backbone(config):
            _attach(site, made.get(i), config)
    _attach_model(model, config, next((site.image_size for site in sites if site.image_size), None))
    return model


def _make(config: GraftConfig, site: GraftSite, levels: int) -> GrafT:
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
        ffn_ratio=config.ffn_ratio if config.ffn == "separate" else None,
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
    side = config.backbone_window_size or config.window_size
    block._graft_window = (side, side) if config.backbone_attention == "window" else None
    block._graft_fused_last = config.ffn == "separate"
    block._graft_authors_padding = config.swin_padding == "authors"
    if module is not None:
        block.graft = module
    block.__class__ = grafted_class(type(block), ("block",), ())


def _attach_model(model: nn.Module, config: GraftConfig, image_size: Size | None) -> None:
    for module in list(model.modules()):
        source = find_grid_source(module)
        blocks = getattr(module, source.blocks, None) if source is not None else None
        if blocks is None or not any(isinstance(b, GraftedBlock) for b in blocks.children()):
            continue
        module._graft_grid_source = source
        for block in blocks.children():
            if isinstance(block, GraftedBlock):
                block._graft_grid_varies = source.varies(module)
        roles = ("model", "grid") if module is model else ("grid",)
        module.__class__ = grafted_class(type(module), roles, source.methods)
    if not isinstance(model, GraftedModel):
        if image_size is None:
            model.__class__ = grafted_class(type(model), ("model",), ())
        else:
            methods = tuple(m for m in ("forward_features", "forward_intermediates") if hasattr(model, m))
            model._graft_image_size = image_size
            model.__class__ = grafted_class(type(model), ("model", "sized"), methods or ("forward",))
    model.graft_config = config


def refresh_grids(model: nn.Module, img_size: int | Size | None) -> None:
    """Tells the grafted blocks the grids of another image size, after the backbone's `set_input_size`."""
    blocks = {n: m for n, m in model.named_modules() if isinstance(m, GraftedBlock)}
    made = {name: type(block) for name, block in blocks.items()}
    roles = type(model)
    try:  # the backbone itself runs: grafted blocks would compare its tokens with the grids that they know
        for block in blocks.values():
            block.__class__ = original_class(type(block))
        model.__class__ = original_class(roles)
        watch = _run_once(model, img_size)
    finally:
        for name, block in blocks.items():
            block.__class__ = made[name]
        model.__class__ = roles
    for name, block, point in watch.blocks:
        if name not in blocks or "args" not in watch.seen.get(name, {}):
            continue
        site = _site(model, watch, name, block, point)
        if site is not None:
            block._graft_feat_size, block._graft_tokens = site.feat_size, site.tokens
            if site.image_size is not None:
                model._graft_image_size = site.image_size


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
        if isinstance(module, (GraftedBlock, GraftedGridSource, GraftedModel)):
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
    classifier = model.get_classifier() if hasattr(model, "get_classifier") else None
    heads = classifier if isinstance(classifier, (tuple, list)) else (classifier,)
    head_ids = {id(p) for h in heads if isinstance(h, nn.Module) for p in h.parameters()}
    norm_ids = {
        id(p)
        for m in model.modules()
        # timm's fused norms have children, their activation; of other classes with that word in their names,
        # such as blocks, what has children is no norm
        if isinstance(m, _NORMS) or ("norm" in type(m).__name__.lower() and not list(m.children()))
        for p in m.parameters(recurse=False)
    }
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
