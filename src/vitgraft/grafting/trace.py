"""Which blocks of a model can carry a graft, and on what grid: one run of the model on a blank image shows it.

The hooks that will add the grafts (`inject.py`) watch that run, so that a block whose children are not called as its
`BlockSpec` has it is found before anything is changed. Blocks on maps show their grid. That of flat tokens is the grid
of the last convolution before them with as many cells, or follows from the image that the model received.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from vitgraft.errors import GraftError
from vitgraft.grafting.blocks import ANY_PREFIX, BlockSpec, find_spec, first_argument
from vitgraft.grafting.inject import BlockHooks

__all__ = ["GraftTarget", "find_targets", "input_size"]

Size = tuple[int, int]

MAX_PREFIX = 8  # more tokens than these beside a grid are no class and register tokens that a model leaves undeclared
PATCHES = (16, 14, 8, 32, 4, 2, 12, 10, 7)


@dataclass
class GraftTarget:
    """A block that can carry a graft, as one run of the model met it.

    Args:
        name: Name of the block in the model.
        block: The block itself.
        spec: Where a graft is attached to it.
        feat_size: Grid (height, width) of the block in tokens.
        dim: Channels.
        num_heads: The block's own heads.
        stage: Number of changes of the grid before it.
        prefix: Prefix tokens in front of the grid's.
        source: Where the grid of flat tokens comes from: name of a module, side of a patch in pixels if it is that of
            the image which the module receives (else None), and side of a token in cells of the module's map. None
            where the block's tokens are a map, or the block is given the grid.
        flat: Whether the tokens are flat.
        whole: Whether the block maps one tensor of X0's shape to another, as fusing after it needs.
        is_read: Whether the model's output depends on the tokens of the grid that the block returns; None where this
            cannot be seen (on the meta device).
    """

    name: str
    block: nn.Module
    spec: BlockSpec
    feat_size: Size
    dim: int
    num_heads: int
    stage: int = 0
    prefix: int = 0
    source: tuple[str, int | None, int] | None = None
    flat: bool = False
    whole: bool = True
    is_read: bool | None = True


def _config_value(model: nn.Module, name: str) -> Any:
    """A value of the model's configuration, in the way of timm or of transformers."""
    for module in model.modules():
        for cfg in ("pretrained_cfg", "default_cfg", "config"):
            cfg = getattr(module, cfg, None)
            outer = cfg if isinstance(cfg, Mapping) else getattr(cfg, "__dict__", {})
            for values in (outer, getattr(outer.get("backbone_config"), "__dict__", {})):
                if values.get(name) is not None:
                    return values[name]
    return None


def _pair(size: Any) -> Size:
    return (size, size) if isinstance(size, int) else tuple(size)[-2:]


def input_size(model: nn.Module, img_size: int | Size | None) -> tuple[int, int, int]:
    """Channels, height and width of the blank image: the model's own, or those of a model inside it."""
    channels, *size = _config_value(model, "input_size") or (_config_value(model, "num_channels") or 3, 224, 224)
    built = (
        getattr(part, "img_size", None) or getattr(part, "image_size", None)
        for module in model.modules()
        for part in (getattr(module, "patch_embed", None), module)
    )
    built = next((size for size in built if isinstance(size, (int, tuple, list))), _config_value(model, "image_size"))
    if img_size is not None:
        size = _pair(img_size)
    elif built is not None:
        size = _pair(built)
    # built with in_chans, which timm's configuration does not know; a feature wrapper puts its own name before
    stems = _config_value(model, "first_conv")
    stems = ("",) if stems is None else (stems,) if isinstance(stems, str) else stems
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and any(not stem or f".{name}".endswith(f".{stem}") for stem in stems):
            channels = module.in_channels
            break
    return (channels, *size)


def _num_heads(block: nn.Module, dim: int) -> int:
    """Heads of the block: its own, else those of a child, else one head per 32 channels."""
    for module in block.modules():
        for name in ("num_heads", "num_attention_heads"):
            heads = getattr(module, name, None)
            if isinstance(heads, int) and heads > 0 and dim % heads == 0:
                return heads
    return next(heads for heads in range(max(1, dim // 32), 0, -1) if dim % heads == 0)


def above(name: str) -> list[str]:
    """Names of the modules that hold module `name`, the nearest first, the model's own ("") last."""
    parts = name.split(".")
    return [".".join(parts[:depth]) for depth in range(len(parts) - 1, -1, -1)]


class _Probe(BlockHooks):
    """Hooks that note the first call of a block and change nothing."""

    def __init__(self, block: nn.Module, spec: BlockSpec, maps: list):
        super().__init__(block, spec)
        self.maps = maps
        self.maps_before: int | None = None  # None until the block has run
        self.input: torch.Tensor | None = None
        self.output: Any = None
        self.x0: torch.Tensor | None = None
        self.result: torch.Tensor | None = None
        self.grid: Size | None = None
        self.error: str | None = None

    def begin(self, block: nn.Module, args: tuple, kwargs: dict) -> None:
        if self.maps_before is None:
            self.maps_before, self.input = len(self.maps), first_argument(args, kwargs)
        super().begin(block, args, kwargs)

    def note_grid(self, size: Size) -> None:
        self.grid = self.grid or size

    def combine(self, call: Any, result: torch.Tensor) -> torch.Tensor:
        if self.x0 is None:
            self.x0, self.result = call.x0, result
        return result

    def end(self, block: nn.Module, args: tuple, output: Any) -> Any:
        if self.output is None:
            self.output = output[0] if isinstance(output, (tuple, list)) else output
        return super().end(block, args, output)

    def fail(self, call: Any) -> None:
        self.error = self.error or self.reason(call)


def _run(model: nn.Module, image: torch.Tensor) -> Any:
    """The model's output for an image, in eval mode without gradients; modes are left as they were."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        # code that is compiled now would be taken again after grafting
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            return model(image)
    except Exception as error:
        raise GraftError(
            f"{type(model).__name__} does not run on a blank image of {tuple(image.shape[1:])}: {error}. "
            "Give a size that it takes with graft(model, img_size=...), build it for this one, or graft the part of it "
            "that receives images"
        ) from error
    finally:
        for module, mode in modes.items():
            module.training = mode


def find_targets(model: nn.Module, img_size: int | Size | None = None) -> list[GraftTarget]:
    """All blocks of `model` that can carry a graft, in the order in which they run.

    The model runs on a blank image, in eval mode and without gradients; nothing of it changes.

    Args:
        model: A vision transformer.
        img_size: Height and width of the image; None takes the model's own.

    Raises:
        GraftError: The model does not run on such an image, a block does not call its children as its spec has it,
            or the grid of a block's tokens cannot be inferred.
    """
    candidates = {name: (module, find_spec(module)) for name, module in model.named_modules()}
    candidates = {name: (block, spec) for name, (block, spec) in candidates.items() if spec is not None}
    for name, (block, spec) in candidates.items():
        for child in (spec.input_from, spec.output_to or spec.output_of or ""):
            try:
                block.get_submodule(child)
            except AttributeError as error:
                children = ", ".join(key for key, _ in block.named_children())
                raise GraftError(
                    f"{name} ({type(block).__name__}) has no child {child!r}, which its spec names; its children are "
                    f"{children}"
                ) from error
    if not candidates:
        return []
    parameter = next(model.parameters())
    image = torch.zeros(1, *input_size(model, img_size), device=parameter.device, dtype=parameter.dtype)
    maps: list[tuple[str, int | None, Size]] = []  # convolutions and readers of images, in the order in which they ran
    probes = {name: _Probe(block, spec, maps) for name, (block, spec) in candidates.items()}
    order: list[str] = []
    handles = list(_watch_maps(model, candidates, maps, image.shape[1]))
    try:
        for name, probe in probes.items():
            handles.append(probe.block.register_forward_pre_hook(lambda *_, name=name: order.append(name)))
            handles += probe.register()
        output = _run(model, image)
    finally:
        for handle in handles:
            handle.remove()
    targets = []
    for name in dict.fromkeys(order):
        if probes[name].error is not None:
            raise GraftError(f"{name} ({type(probes[name].block).__name__}) cannot be grafted. {probes[name].error}")
        target = _target(model, name, probes[name])
        if target is not None:
            if targets:
                target.stage = targets[-1].stage + (target.feat_size != targets[-1].feat_size)
            targets.append(target)
    _check_order(model, image, targets, probes)
    if targets and targets[-1].prefix:
        targets[-1].is_read = _is_read(model, image, output, targets[-1])
    return targets


def _check_order(model: nn.Module, image: torch.Tensor, targets: list[GraftTarget], probes: Mapping) -> None:
    """Fewer tokens than patches may be some that were chosen at random, as a masked autoencoder does.

    Raises:
        GraftError: A second run of the same image gives a block other tokens.
    """
    fewer = [target for target in targets if target.source is not None and target.source[2] > 1]
    if not fewer or image.is_meta:
        return
    again = _Probe(fewer[0].block, fewer[0].spec, [])
    handles = again.register()
    try:
        _run(model, image)
    finally:
        for handle in handles:
            handle.remove()
    if not torch.equal(again.x0, probes[fewer[0].name].x0):
        raise GraftError(
            f"{fewer[0].name} gets other tokens of the same image at each run: a graft needs the whole grid, row by "
            "row. Graft the model without its random masking"
        )


def _watch_maps(model: nn.Module, candidates: Mapping, maps: list, channels: int) -> Iterator[Any]:
    """Hooks on all convolutions, and on all modules that receive an image, outside of the blocks."""
    inside = {id(m) for block, _ in candidates.values() for m in block.modules()}
    for name, module in model.named_modules():
        if id(module) in inside:
            continue
        if isinstance(module, nn.Conv2d):

            def note(_module: nn.Module, _args: tuple, output: torch.Tensor, name: str = name) -> None:
                maps.append((name, None, tuple(output.shape[-2:])))

            yield module.register_forward_hook(note)
        if isinstance(module, nn.Conv2d) or any(True for _ in module.children()) or not name:

            def note_image(_module: nn.Module, args: tuple, kwargs: dict, name: str = name) -> None:
                x = first_argument(args, kwargs)
                # a model may make colors of gray images before another model reads them; features have more channels
                if isinstance(x, torch.Tensor) and x.dim() == 4 and x.shape[1] <= max(channels, 4):
                    maps.append((name, 1, tuple(x.shape[-2:])))

            yield module.register_forward_pre_hook(note_image, with_kwargs=True)


def _target(model: nn.Module, name: str, probe: _Probe) -> GraftTarget | None:
    block, spec, x0, result = probe.block, probe.spec, probe.x0, probe.result
    if spec.from_grid is None and x0.numel() != result.numel():
        return None  # the block changes the resolution or the width: X0 and the attention's result do not match
    if spec.from_grid is None and x0.dim() == result.dim() and x0.shape != result.shape:
        raise GraftError(
            f"{name} ({type(block).__name__}): the attention's result {tuple(result.shape)} has another layout than X0 "
            f"{tuple(x0.shape)}, so that a graft cannot be added {spec.path}; register_block(..., from_grid=...) "
            "brings the graft into that layout"
        )
    whole = all(isinstance(x, torch.Tensor) and x.shape == x0.shape for x in (probe.input, probe.output))
    x = x0 if spec.to_grid is None else spec.to_grid(block, x0)
    source, prefix = None, 0
    if x.dim() == 3:
        dim, tokens, size = x.shape[2], x.shape[1], probe.grid
        if size is None:
            source, size = _source(model, name, probe, tokens)
        prefix = tokens - size[0] * size[1]
        if prefix < 0:
            raise GraftError(
                f"{name} is given a grid of {size[0]} x {size[1]} and gets {tokens} tokens, which are fewer"
            )
    elif spec.layout == "nchw" and spec.to_grid is None:
        dim, size = x.shape[1], x.shape[2:]
    else:
        dim, size = x.shape[3], x.shape[1:3]
    size = int(size[0]), int(size[1])
    return GraftTarget(name, block, spec, size, dim, _num_heads(block, dim), 0, prefix, source, x.dim() == 3, whole)


def _prefixes(model: nn.Module, name: str, spec: BlockSpec) -> Callable[[int, int], bool]:
    """Whether so many tokens beside a grid may be prefix tokens, where a token is so many cells of a map wide."""
    if spec.prefix_tokens is not None:
        return lambda prefix, ratio: prefix == spec.prefix_tokens or (spec.prefix_tokens == ANY_PREFIX and prefix >= 0)
    declared = (getattr(model.get_submodule(parent), "num_prefix_tokens", None) for parent in above(name))
    declared = next((number for number in declared if isinstance(number, int)), None)
    if declared is not None:
        return lambda prefix, ratio: prefix in (declared, 0)
    # the coarser the grid, the more numbers of tokens come near it
    return lambda prefix, ratio: 0 <= prefix <= (MAX_PREFIX if ratio == 1 else 2)


def _source(model: nn.Module, name: str, probe: _Probe, tokens: int) -> tuple[tuple[str, int | None, int], Size]:
    """Where the grid of so many flat tokens comes from, and the grid.

    Raises:
        GraftError: No map has so many cells.
    """
    accepts = _prefixes(model, name, probe.spec)
    maps = probe.maps[: probe.maps_before][::-1]
    for ratio in (1, 2, 4, 8, 16, 32):
        for module, patch, (height, width) in maps:
            size = -(-height // ratio), -(-width // ratio)
            if not patch and accepts(tokens - size[0] * size[1], ratio):
                return (module, None, ratio), size
    for module, patch, (height, width) in maps:
        for side in PATCHES if patch else ():
            size = height // side, width // side
            if height % side == width % side == 0 and accepts(tokens - size[0] * size[1], side):
                return (module, side, 1), size
    images = dict.fromkeys(f"{h} x {w}" for _, patch, (h, w) in maps if patch)
    raise GraftError(
        f"{name}: the grid of its {tokens} tokens cannot be inferred from an image of {' or '.join(images) or '?'}. "
        "Give img_size=(height, width) of images as the model takes them; of a model with several inputs, graft the "
        "part that receives images; a block of your own may need register_block(..., grid=... or prefix_tokens=...)"
    )


def output_tensors(output: Any) -> Iterator[torch.Tensor]:
    """All tensors in a model's output."""
    if isinstance(output, torch.Tensor):
        yield output
    elif isinstance(output, Mapping):
        yield from (tensor for value in output.values() for tensor in output_tensors(value))
    elif isinstance(output, (tuple, list)):
        yield from (tensor for value in output for tensor in output_tensors(value))


def _is_read(model: nn.Module, image: torch.Tensor, output: Any, last: GraftTarget) -> bool | None:
    """Whether the output depends on the grid's tokens that the last block returns: not so under a class token."""
    if image.is_meta:
        pools = (getattr(model.get_submodule(parent), "global_pool", None) for parent in above(last.name))
        pool = next((pool for pool in pools if isinstance(pool, str)), None)  # timm's models state it
        return None if pool is None else pool != "token"

    def spoil(_block: nn.Module, _args: tuple, output: Any) -> Any:
        x = output[0] if isinstance(output, (tuple, list)) else output
        x = torch.cat((x[:, : last.prefix], torch.full_like(x[:, last.prefix :], torch.nan)), dim=1)
        return type(output)((x, *output[1:])) if isinstance(output, (tuple, list)) else x

    def broken(output: Any) -> bool:
        return any(tensor.is_floating_point() and bool(tensor.isnan().any()) for tensor in output_tensors(output))

    # before hooks of others, such as those by which transformers collects the maps of a backbone
    handle = last.block.register_forward_hook(spoil, prepend=True)
    try:
        return broken(output) or broken(_run(model, image))
    except GraftError:  # a model that refuses what is not finite has read it
        return True
    finally:
        handle.remove()
