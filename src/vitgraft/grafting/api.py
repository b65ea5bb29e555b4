"""graft() and strip(): putting grafts on a model that exists, and taking them off again.

A grafted block is the backbone's block plus one child called `graft`; every parameter of the backbone keeps its name.
Which blocks there are is in `blocks.py` and `trace.py`, how grafts are attached in `inject.py`.
"""

import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from vitgraft.config import GraftConfig
from vitgraft.errors import GraftError, NoGraftPointError
from vitgraft.grafting.blocks import NOT_GRAFTABLE, class_path
from vitgraft.grafting.inject import GraftHooks, GridSource, TokenGrid, detach_hooks, has_hooks
from vitgraft.grafting.replace import SwinBlock, WindowedAttention, replace_child, restore_children
from vitgraft.grafting.trace import GraftTarget, find_targets
from vitgraft.layers.graft import GrafT, max_levels, plan_levels

__all__ = ["TrainReport", "graft", "grafts", "is_grafted", "strip", "train_grafts_only"]

Size = tuple[int, int]
_HEADS = ("classifier", "cls_classifier", "distillation_classifier", "heads", "head")
_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def is_grafted(model: nn.Module) -> bool:
    """Whether the model carries grafts, or had its attention replaced by `graft`."""
    return any(has_hooks(m) or "graft_config" in m.__dict__ for m in model.modules())


def grafts(model: nn.Module) -> dict[str, GrafT]:
    """The grafts of a model by the name of their block, in the order of the model's modules.

    Where PEFT's `modules_to_save` has wrapped a graft, it is the copy that trains.
    """
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, GrafT):
            # PEFT lists its original first and the active copy after it
            found[f".{name}".rsplit(".graft", 1)[0].removeprefix(".")] = module
    return found


def _levels(config: GraftConfig, targets: list[GraftTarget]) -> list[int]:
    """Number of levels of each target.

    Raises:
        GraftError: `levels` asks for more than the maps have.
    """
    wanted = config.levels
    if isinstance(wanted, tuple):
        stages = targets[-1].stage + 1
        if len(wanted) != stages:
            raise GraftError(
                f"levels={wanted} has {len(wanted)} entries, the model has {stages} stages (maps of {_maps(targets)} "
                f"tokens): give {stages}, a single number, or 'auto'"
            )
        for target in targets:
            most = max_levels(target.feat_size, config.level_sizes)
            if wanted[target.stage] > most:
                h, w = target.feat_size
                raise GraftError(
                    f"levels={wanted} asks for {wanted[target.stage]} levels below the {h} x {w} map of {target.name}, "
                    f"which has at most {most} with level_sizes={config.level_sizes!r}"
                )
        return [wanted[target.stage] for target in targets]

    def plan(levels: Any) -> list[int]:
        return [len(plan_levels(t.feat_size, config.window_size, levels, config.level_sizes)) for t in targets]

    auto = plan("auto")
    if not isinstance(wanted, int):
        return auto
    planned = plan(wanted)
    # halved further than "auto" does, levels are smaller than the window
    most = max(auto if config.level_sizes == "halve" else planned)
    if wanted > most > 0:
        raise GraftError(
            f"levels={wanted}: with window_size={config.window_size} and level_sizes={config.level_sizes!r} no block "
            f"of this model gets more than {most}; a tuple, one entry per stage, sets more"
        )
    return planned


def _maps(targets: list[GraftTarget]) -> str:
    return ", ".join(dict.fromkeys(f"{h} x {w}" for h, w in (t.feat_size for t in targets)))


def _choose(config: GraftConfig, targets: list[GraftTarget], levels: list[int]) -> list[int]:
    """Indices of the blocks that get a graft.

    Raises:
        GraftError: `blocks` names blocks that are not there or get no level.
    """
    able = [i for i, n in enumerate(levels) if n > 0 or config.left_levels > 0]
    if isinstance(config.blocks, tuple):
        for i in config.blocks:
            if i >= len(targets):
                raise GraftError(
                    f"blocks={config.blocks}: there is no block {i}; this model has blocks 0 to {len(targets) - 1}"
                )
            if i not in able:
                h, w = targets[i].feat_size
                raise GraftError(
                    f"blocks={config.blocks}: block {i} ({targets[i].name}) has a {h} x {w} map, which gets no level "
                    f"with {_no_level(config)}"
                )
        return sorted(config.blocks)
    # the paper leaves the first layer alone: its features are not encoded enough (section 3.3)
    able = [i for i in able if i > 0]
    unread = [i for i in able if targets[i].is_read is False]
    if unread and unread != able:
        warnings.warn(
            f"{targets[unread[0]].name} gets no graft, since the model's output does not depend on the patch tokens "
            f"that it returns (only on its class token); blocks={tuple(able)} grafts it too, for dense features",
            stacklevel=3,
        )
        able = [i for i in able if i not in unread]
    unknown = [targets[i].name for i in able if targets[i].is_read is None]
    if unknown:
        raise GraftError(
            f"whether the output depends on the patch tokens of {unknown[0]} cannot be seen on the meta device: "
            f"blocks={tuple(able)} grafts that block, blocks={tuple(able[:-1])} leaves it out"
        )
    if config.blocks == "all_but_first":
        return able
    if config.blocks > len(able):
        raise GraftError(
            f"blocks={config.blocks}: only {len(able)} blocks of this model can carry a graft; give at most {len(able)}"
        )
    return able[len(able) - config.blocks :]


def _no_level(config: GraftConfig) -> str:
    """The option by which a map gets no level, and what would give it one."""
    if config.levels == 0 or isinstance(config.levels, tuple):
        return f"levels={config.levels!r}: give a larger number, or 'auto'"
    if config.level_sizes != "halve":
        return f"level_sizes={config.level_sizes!r}: give smaller sizes, or 'halve'"
    return (
        f"levels={config.levels!r} and window_size={config.window_size}: a smaller window_size, or a tuple of levels, "
        "gives it one"
    )


def _why_nothing(model: nn.Module, targets: list[GraftTarget], config: GraftConfig) -> str:
    name = type(model).__name__
    if targets:
        if config.blocks == ():
            return f"{name}: blocks=() leaves all blocks without a graft; 'all_but_first' is the default"
        if len(targets) == 1 and config.blocks == "all_but_first":
            return f"{name}: blocks='all_but_first' leaves its only block without a graft; blocks=(0,) gives it one"
        return (
            f"{name}: none of its {len(targets)} blocks (maps of {_maps(targets)} tokens) gets a level with "
            f"{_no_level(config)}"
        )
    # the class that is repeated most often, as blocks are
    blocks = [type(m) for m in model.modules() if any("attn" in n or "attention" in n for n, _ in m.named_children())]
    hint = ""
    if blocks:
        path = class_path(max(blocks, key=blocks.count))
        hint = (
            f'. If {path} has that form: vitgraft.register_block({path.rpartition(".")[2]}, input_from="<its norm>", '
            'output_to="<its drop path>")'
        )
    return (
        f"{name} has no block that can carry a graft: none is known to have the form x + attention(norm(x)). "
        f"`vitgraft families` lists what can be grafted{hint}"
    )


def _changes_backbone(config: GraftConfig) -> bool:
    """Whether every block computes something else, also those without a graft."""
    return config.backbone_attention == "window" or config.swin_padding == "authors"


def _check_swin(targets: list[GraftTarget]) -> None:
    from timm.models.swin_transformer import SwinTransformerBlock

    for target in targets:
        if not isinstance(target.block, SwinTransformerBlock):
            raise GraftError(
                f"swin_padding='authors' is for timm's Swin (v1) blocks; {target.name} is a "
                f"{type(target.block).__name__}. Use swin_padding='timm'"
            )


def _check_window_attention(targets: list[GraftTarget]) -> None:
    from timm.layers import Attention

    for target in targets:
        attn = getattr(target.block, "attn", None)
        if not isinstance(attn, Attention) or target.source is None:
            raise GraftError(
                f"backbone_attention='window' replaces the attention of plain ViT blocks; {target.name} has "
                f"{type(attn).__name__}. Use backbone_attention='keep'"
            )
        if target.prefix:
            raise GraftError(
                f"backbone_attention='window': {target.prefix} prefix token(s) cannot live in windows; create "
                "the model with class_token=False, reg_tokens=0, global_pool='avg', or use backbone_attention='keep'"
            )


def _check_model(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise GraftError(f"graft() takes an nn.Module, such as timm.create_model(name) makes; got {model!r:.80}")
    for module in model.modules():
        for cls in type(module).__mro__:
            reason = NOT_GRAFTABLE.get(cls.__module__)
            if reason:
                raise NoGraftPointError(f"{type(module).__name__} ({cls.__module__}) cannot be grafted: {reason}")
    if is_grafted(model):
        raise GraftError(f"{type(model).__name__} is grafted already; vitgraft.strip(model) gives the backbone back")
    drops = (getattr(module, "patch_drop", None) for module in model.modules())
    if any(drop is not None and not isinstance(drop, nn.Identity) for drop in drops):
        raise GraftError(
            "patch_drop_rate > 0 drops tokens, and a graft needs the whole grid: create the model with "
            "patch_drop_rate=0"
        )


def _check_targets(config: GraftConfig, targets: list[GraftTarget], chosen: list[int]) -> None:
    for target in targets:
        if hasattr(target.block, "graft"):
            raise GraftError(
                f"{target.name} has a child or attribute called 'graft' already, the name that grafts take"
            )
    if config.backbone_attention == "window":
        _check_window_attention(targets)
    if config.swin_padding == "authors":
        _check_swin(targets)
    for target in (targets[i] for i in chosen):
        if config.num_heads is not None and config.width is None and target.dim % config.num_heads:
            raise GraftError(f"num_heads={config.num_heads} does not divide the {target.dim} channels of {target.name}")
        if config.ffn != "shared" and not target.whole:
            raise GraftError(
                f"ffn={config.ffn!r} is fused after the block, and {type(target.block).__name__} ({target.name}) "
                "does not return a tensor of X0's shape for one: use ffn='shared'"
            )


def graft(
    model: nn.Module,
    config: GraftConfig | Mapping[str, Any] | None = None,
    **options: Any,
) -> nn.Module:
    """Grafts a vision transformer, in place, and returns it.

    A model that cannot be grafted is left as it was. To find its blocks and their grids the model runs on a blank image
    (forward hooks of yours fire). Classes and `forward` methods stay as they are, the backbone's parameters keep their
    names and values; what is new stands under `<block>.graft`. Modules are made on the device and in the dtype of their
    block.

    Args:
        model: A model of timm, torchvision, transformers or open_clip, or any module built of their blocks, or of
            blocks made known by `register_block`; pretrained or not.
        config: A `GraftConfig` or a mapping of its options; None is the paper's final model.
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
    targets = find_targets(model, config.img_size)
    levels = _levels(config, targets) if targets else []
    chosen = _choose(config, targets, levels) if targets else []
    if not targets or not (chosen or (config.blocks == () and _changes_backbone(config))):
        raise NoGraftPointError(_why_nothing(model, targets, config))
    _check_targets(config, targets, chosen)
    made = {i: _make(config, targets[i], levels[i], n % 2 == 1) for n, i in enumerate(chosen)}
    _attach(model, config, targets, made)
    _forget_compiled()
    return model


def _forget_compiled() -> None:
    """Code that was compiled before would run without the hooks."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()


def _make(config: GraftConfig, target: GraftTarget, levels: int, odd: bool) -> GrafT:
    parameter = next(target.block.parameters())
    own = replace(config, shifted_windows=config.shifted_windows and odd)
    dd = {"device": parameter.device, "dtype": parameter.dtype}
    module = GrafT(target.dim, target.num_heads, target.feat_size, levels, own, **dd)
    return module.train(target.block.training)


def _attach(model: nn.Module, config: GraftConfig, targets: list[GraftTarget], made: dict[int, GrafT]) -> None:
    sources: dict[tuple[str, int | None], GridSource] = {}

    def token_grid(target: GraftTarget) -> TokenGrid | None:
        if target.source is None:  # the block itself is given it
            return TokenGrid(GridSource(model_id=id(model)), prefix=target.prefix) if target.flat else None
        name, patch, ratio = target.source
        if (name, patch) not in sources:
            source = sources[name, patch] = GridSource(patch, id(model))
            source.attach(model.get_submodule(name))
        return TokenGrid(sources[name, patch], ratio, target.prefix)

    for i, target in enumerate(targets):
        block = target.block
        if config.swin_padding == "authors":
            parent, _, name = target.name.rpartition(".")
            block = SwinBlock.from_timm(block)
            replace_child(model.get_submodule(parent), name, block)
        grid = token_grid(target)
        if config.backbone_attention == "window":
            side = config.backbone_window_size or config.window_size
            replace_child(block, "attn", WindowedAttention(block.attn, grid, (side, side)))
        if i in made:
            block.graft = made[i]
        spec = target.spec
        if config.ffn != "shared":  # fused after the block
            spec = replace(spec, input_from="", output_to=None, output_of="")
        GraftHooks(block, spec, grid).attach()
    model.no_weight_decay = _NoWeightDecay(model)
    model.graft_config = config


class _NoWeightDecay:
    """In place of the model's `no_weight_decay`: its names, and those of the grafts' embeddings and position biases."""

    def __init__(self, model: nn.Module):
        self.model = model

    def __call__(self) -> set[str]:
        of_class = getattr(type(self.model), "no_weight_decay", None)
        names = set(of_class(self.model)) if of_class is not None else set()
        learned = ("anti_alias", "relative_position_bias_table")
        return names | {n for n, _ in self.model.named_parameters() if ".graft." in f".{n}" and n.endswith(learned)}


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
        if has_hooks(module) and isinstance(module._modules.get("graft"), nn.Module):
            del module.graft
        detach_hooks(module)
        if module.__dict__.pop("graft_config", None) is not None:
            del module.no_weight_decay
    for module in list(model.modules()):  # afterwards, since the originals take over what children are left
        restore_children(module)
    _forget_compiled()
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


def is_norm(module: nn.Module) -> bool:
    """Whether it is a normalization layer: torch's, or what is named so; timm's fused ones hold an activation, while
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
        norms: Whether the backbone's normalization layers train too.
        head: Whether the classifier trains too, which a new set of classes needs: what timm's `get_classifier` gives,
            or the child `classifier`, `heads` or `head` of models of transformers and torchvision. Layers that you put
            around the model are frozen with the rest; thaw them afterwards.

    Raises:
        GraftError: The model carries no graft.
    """
    if not grafts(model):
        raise GraftError(f"{type(model).__name__} carries no graft to train; vitgraft.graft(model) adds them")
    kinds = {"grafts": 0, "norms": 0, "head": 0, "frozen": 0}
    inner = model
    while isinstance(inner, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        inner = inner.module
    heads = inner.get_classifier() if hasattr(inner, "get_classifier") else [getattr(inner, n, None) for n in _HEADS]
    heads = heads if isinstance(heads, (tuple, list)) else (heads,)
    head_ids = {id(p) for h in heads if isinstance(h, nn.Module) for p in h.parameters()}
    norm_ids = {id(p) for m in model.modules() if is_norm(m) for p in m.parameters(recurse=False)}
    for name, parameter in model.named_parameters():
        if ".graft." in f".{name}":
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
