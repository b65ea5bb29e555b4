"""Which blocks of a model can carry a graft, and on what grid: one run of the model on a blank image tells.

`find_sites` watches that run by forward hooks. Blocks on maps show their grid; that of flat tokens is told by the
block's arguments or its model (`_points.py`), or worked out of the shape of the image that the backbone read.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from vitgraft.errors import GraftError
from vitgraft.models._grafted import first_argument
from vitgraft.models._points import GraftPoint, find_grid_source, find_point

__all__ = ["GraftSite", "ImageReader", "above", "find_sites", "grid_like", "run_once"]

Size = tuple[int, int]


@dataclass
class GraftSite:
    """A block that can carry a graft, as one run of the model met it.

    Args:
        name: Name of the block in the model.
        block: The block itself.
        point: How a graft hangs on it.
        feat_size: Grid (height, width) of the block in tokens.
        dim: Channels.
        num_heads: The block's own heads.
        tokens: Flat tokens, prefix tokens included; None where the block runs on a map.
        stage: Counts the changes of the grid, from 0.
        prefix: Prefix tokens in front of the grid's.
        reader: Where images of other shapes could have as many tokens and the model does not tell the grid: what read
            the image by which the grid was worked out.
    """

    name: str
    block: nn.Module
    point: GraftPoint
    feat_size: Size
    dim: int
    num_heads: int
    tokens: int | None
    stage: int = 0
    prefix: int = 0
    reader: "ImageReader | None" = None


@dataclass(frozen=True)
class ImageReader:
    """The module that reads the image of a model: its stem, mostly.

    Args:
        owner: Name of the model that it belongs to: the innermost that holds the block and an image reader.
        name: Name of the module.
        image_size: Height and width of the image that it got.
    """

    owner: str
    name: str
    image_size: Size


def _input_size(model: nn.Module, img_size: int | Size | None) -> tuple[int, int, int]:
    """Channels, height and width of the image that tells the grids: the model's own, or those of a model inside it."""
    cfgs = (getattr(m, "pretrained_cfg", None) or getattr(m, "default_cfg", None) for m in model.modules())
    cfg = next(filter(None, cfgs), {})
    cfg = cfg if isinstance(cfg, Mapping) else vars(cfg)
    channels, H, W = cfg.get("input_size") or (3, 224, 224)
    sizes = (getattr(getattr(m, "patch_embed", None), "img_size", None) for m in model.modules())
    built = next(filter(None, sizes), None) or getattr(model, "img_size", None)
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

    def __init__(self, model: nn.Module, channels: int):
        self.blocks = [(n, m, find_point(m)) for n, m in model.named_modules() if find_point(m) is not None]
        self.model = model
        self.channels = channels
        self.seen: dict[str, dict[str, Any]] = {}
        self.images: list[tuple[str, torch.Tensor]] = []  # names of the modules that got an image, as they ran
        self.handles: list = []

    def __enter__(self) -> "_Watch":
        in_blocks = {id(m) for _, block, _ in self.blocks for m in block.modules()}
        for name, module in self.model.named_modules():
            # attention per head, before its norms and dropouts, looks like an image of few channels
            layer = isinstance(module, nn.Conv2d) or any(True for _ in module.children())
            if layer and id(module) not in in_blocks:
                self.handles.append(module.register_forward_pre_hook(self._note_image(name), with_kwargs=True))
            if find_grid_source(module) is not None:
                self.handles.append(module.register_forward_pre_hook(self._note(name, "input"), with_kwargs=True))
        for name, block, point in self.blocks:
            self.handles.append(block.register_forward_pre_hook(self._note(name, "args"), with_kwargs=True))
            for key, child in (("x0", point.reads), ("result", point.adds)):
                module = getattr(block, child, None) if child else None
                if isinstance(module, nn.Module) and not isinstance(module, nn.ModuleList):
                    self.handles.append(module.register_forward_pre_hook(self._note(name, key), with_kwargs=True))
        return self

    def _note_image(self, name: str):
        def hook(_module: nn.Module, args: tuple, kwargs: dict) -> None:
            x = first_argument(args, kwargs)
            # a model may turn grey images to colours before another model reads them; features have more channels
            if isinstance(x, torch.Tensor) and x.dim() == 4 and x.shape[1] <= max(self.channels, 4):
                self.images.append((name, x))

        return hook

    def _note(self, name: str, key: str):
        def hook(_module: nn.Module, args: tuple, kwargs: dict) -> None:
            notes = self.seen.setdefault(name, {})
            # the first call after the block began: a shared drop_path is called again for the feed-forward branch
            if key == "result" and "x0" not in notes and "args" in notes:
                return
            if key not in notes:
                notes[key] = (args, kwargs)
                notes.setdefault("images", len(self.images))

        return hook

    def images_inside(self, owner: str, block: str) -> list[tuple[str, torch.Tensor]]:
        """Names of the modules inside module `owner` that got an image before block `block` ran, and the image."""
        prefix = f"{owner}." if owner else ""
        before = self.images[: self.seen[block]["images"]]
        return [(name, x) for name, x in before if name != owner and name.startswith(prefix)]

    def image_reader(self, block: str) -> ImageReader:
        """What read the image whose tokens block `block` got."""
        for owner in above(block):
            inside = self.images_inside(owner, block)
            if inside:
                # of all that saw an image, the last that ran: a model may resize or crop first
                size = inside[-1][1].shape[2:]
                name = min((name for name, x in inside if x.shape[2:] == size), key=lambda name: name.count("."))
                return ImageReader(owner, name, tuple(size))
            own = [x for name, x in self.images if name == owner]
            if own:
                return ImageReader(owner, owner, tuple(own[-1].shape[2:]))
        raise GraftError(f"{block}: no module of {type(self.model).__name__} that runs before it reads an image")

    def __exit__(self, *_: Any) -> None:
        for handle in self.handles:
            handle.remove()


def above(name: str) -> list[str]:
    """Names of the modules that hold module `name`, the nearest first, the model's own ("") last."""
    parts = name.split(".")
    return [".".join(parts[:depth]) for depth in range(len(parts) - 1, -1, -1)]


def run_once(model: nn.Module, img_size: int | Size | None) -> "_Watch":
    """Runs one blank image in eval mode without gradients and gives back what the blocks met."""
    parameter = next(model.parameters())
    image = torch.zeros(1, *_input_size(model, img_size), device=parameter.device, dtype=parameter.dtype)
    modes = {m: m.training for m in model.modules()}
    model.eval()
    try:
        with torch.no_grad(), _Watch(model, image.shape[1]) as watch:
            model(image)
    except Exception as error:
        raise GraftError(
            f"{type(model).__name__} does not run on a blank image of {tuple(image.shape[1:])}: {error}. "
            "Say a size that it takes with graft(model, img_size=...), build it for this one, or graft the part of it "
            "that reads images"
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
    watch = run_once(model, img_size)
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
    x0 = first_argument(*notes.get("x0", notes["args"]))
    result = first_argument(*notes["result"]) if "result" in notes else x0
    reader = None
    if point.to_grid is not None:
        x0 = point.to_grid(block, x0, _source_grid(model, watch, name))
        return GraftSite(name, block, point, tuple(x0.shape[1:3]), x0.shape[3], _num_heads(block, x0.shape[3]), None)
    if x0.dim() == 4:
        dim, size = (x0.shape[1], x0.shape[2:]) if point.maps else (x0.shape[3], x0.shape[1:3])
        tokens = None
    else:
        dim, tokens = x0.shape[2], x0.shape[1]
        size = point.grid(*args, **kwargs) if point.grid is not None else _source_grid(model, watch, name)
        if size is not None and point.grid is None:
            _check_prefix(model, name, tokens, size)
        if size is None:
            reader = watch.image_reader(name)
            size, told = _token_size(model, reader, name, tokens)
            reader = None if told else reader
    windowed = point.from_grid is not None
    if not windowed and x0.numel() != result.numel():
        return None  # the block changes the resolution or the width: X0 and the attention's result do not match
    prefix = 0 if tokens is None else tokens - size[0] * size[1]
    return GraftSite(name, block, point, tuple(size), dim, _num_heads(block, dim), tokens, prefix=prefix, reader=reader)


def _told_prefix(model: nn.Module, name: str) -> int | None:
    """Number of prefix tokens by the word of the nearest module above block `name` that says it."""
    said = (getattr(model.get_submodule(parent), "num_prefix_tokens", None) for parent in above(name))
    return next((number for number in said if number is not None), None)


def _check_prefix(model: nn.Module, name: str, tokens: int, size: Size) -> None:
    more, prefix = tokens - size[0] * size[1], _told_prefix(model, name)
    if more < 0 or (more > 2 if prefix is None else more not in (prefix, 0)):
        wanted = "" if prefix is None else f", and {prefix} prefix token(s)"
        raise GraftError(
            f"{name} gets {tokens} tokens, and its model says that they are a {size[0]} x {size[1]} grid{wanted}: "
            "patches that overlap, or tokens added by hand, can't be grafted"
        )


def _source_grid(model: nn.Module, watch: _Watch, name: str) -> Size | None:
    """Grid by the word of the nearest module above block `name` that knows it."""
    for parent_name in above(name):
        parent = model.get_submodule(parent_name)
        source = find_grid_source(parent)
        if source is None:
            continue
        if "input" in watch.seen.get(parent_name, {}):
            return source.grid(parent, first_argument(*watch.seen[parent_name]["input"]))
        images = watch.images_inside(parent_name, name)
        if images:  # its forward_features was called, for which there are no hooks
            return source.grid(parent, images[-1][1])
    return None


def _token_size(model: nn.Module, reader: ImageReader, name: str, tokens: int) -> tuple[Size, bool]:
    """Grid of `tokens` flat tokens: the patch grid of the model that block `name` belongs to, or what the image's shape
    makes of their number; and whether that model takes images of this one size only.

    Raises:
        GraftError: No grid of the image's shape has so many tokens.
    """
    owner = model.get_submodule(reader.owner)
    embed = getattr(owner, "patch_embed", None)
    grid = getattr(embed, "grid_size", None)
    prefix = _told_prefix(model, name)
    built = grid is not None and _pair(getattr(embed, "img_size", None)) == reader.image_size
    if built and 0 <= tokens - grid[0] * grid[1] <= max(prefix or 0, 2):
        return tuple(grid), bool(getattr(embed, "strict_img_size", False))
    if prefix is not None:
        size = grid_like(reader.image_size, tokens, (prefix, 0))
    elif any("token" in parameter for parameter, _ in owner.named_parameters(recurse=False)):
        size = grid_like(reader.image_size, tokens, (0, 1, 2))
    else:
        size = grid_like(reader.image_size, tokens, (0,)) or grid_like(reader.image_size, tokens, (1, 2))
    if size is None:
        H, W = reader.image_size
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
