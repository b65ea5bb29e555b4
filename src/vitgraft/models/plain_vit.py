"""The last map of a plain ViT of any library, for images of any size.

timm's models return it by `forward_intermediates`. torchvision's ViT takes one size only, so its parts are run here and
its position embedding is interpolated. Of all others (transformers, open_clip, models of known blocks) a forward hook
on the last block collects the tokens, and the rest of the model runs as it is: nothing stops it early.

B batch, C channels, P prefix tokens, h x w grid of tokens.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from timm.layers import resample_abs_pos_embed
from torch import nn
from torchvision.models.vision_transformer import VisionTransformer as TorchvisionViT

from vitgraft.errors import GraftError, NoGraftPointError
from vitgraft.grafting.inject import of_this_thread
from vitgraft.grafting.trace import GraftTarget, find_targets, input_size
from vitgraft.models.dense import DenseFeatures

__all__ = ["Collected", "PlainMap", "plain_map"]

Size = tuple[int, int]


class Collected:
    """A tensor that a hook collects in one call of a model and one thread."""

    def __init__(self) -> None:
        self.traced: torch.Tensor | None = None  # while a compiler traces

    def expect(self) -> None:
        """Begins a call. Outside of one nothing is collected: a checkpointed block runs again in the backward pass."""
        if not torch.compiler.is_compiling():
            of_this_thread("collected")[self] = None

    def _note(self, x: torch.Tensor) -> None:
        if torch.compiler.is_compiling():
            self.traced = x
        elif self in of_this_thread("collected"):
            of_this_thread("collected")[self] = x

    def note_input(self, module: nn.Module, args: tuple) -> None:
        """Forward pre-hook: collects the first argument."""
        self._note(args[0])

    def note_output(self, module: nn.Module, args: tuple, output: Any) -> None:
        """Forward hook: collects the output, or the first entry of it."""
        self._note(output[0] if isinstance(output, (tuple, list)) else output)

    def take(self) -> torch.Tensor:
        """What was collected, once.

        Raises:
            GraftError: The module did not run.
        """
        # a part that is compiled by itself leaves what it has traced
        found, self.traced = self.traced, None
        if not torch.compiler.is_compiling():
            mine = of_this_thread("collected").pop(self, None)
            found = found if mine is None else mine
        if found is None:
            raise GraftError("a block whose map is needed did not run in this call")
        return found


class PlainMap:
    """How the last map of a plain ViT is computed.

    Args:
        channels: C.
        patch: Side of a token in pixels.
        size: The only (height, width) in pixels that the model takes; None for any multiples of `patch`.
    """

    def __init__(self, channels: int, patch: int, size: Size | None):
        self.channels, self.patch, self.size = channels, patch, size

    def __call__(self, model: nn.Module, x: torch.Tensor) -> torch.Tensor:
        """Images (B, in_chans, H, W), sides multiples of `patch`, to the map (B, C, H / patch, W / patch)."""
        raise NotImplementedError


class _TimmMap(PlainMap):
    def __init__(self, model: nn.Module):
        info = getattr(model, "feature_info", None)
        reductions = sorted({level["reduction"] for level in info}) if isinstance(info, list) else []
        if len(reductions) > 1:
            raise ValueError(
                f"{type(model).__name__} has strides {reductions}: a simple feature pyramid is made from a plain ViT "
                "of one stride"
            )
        dense = DenseFeatures(model, out_indices=(-1,), norm=False)
        self.index = dense.out_indices[0]
        super().__init__(dense.feature_info.channels()[0], dense.feature_info.reduction()[0], dense.size)

    def __call__(self, model: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return model.forward_intermediates(x, indices=[self.index], intermediates_only=True)[0]


class _TorchvisionMap(PlainMap):
    def __init__(self, model: TorchvisionViT):
        super().__init__(model.hidden_dim, model.patch_size, None)
        _remove_unused(model, self, _blank(model, (2 * self.patch, 2 * self.patch)))

    def __call__(self, model: nn.Module, x: torch.Tensor) -> torch.Tensor:
        x = model.conv_proj(x)
        B, C, h, w = x.shape
        x = torch.cat((model.class_token.expand(B, -1, -1), x.flatten(2).transpose(1, 2)), 1)
        built = model.image_size // model.patch_size
        # the same numbers as without interpolation at the size that the model was built for
        x = x + resample_abs_pos_embed(model.encoder.pos_embedding, (h, w), (built, built), num_prefix_tokens=1)
        x = model.encoder.layers(model.encoder.dropout(x))
        return x[:, 1:].transpose(1, 2).reshape(B, C, h, w)


class _HookedMap(PlainMap):
    def __init__(self, model: nn.Module):
        target, size = _last_block(model)
        self.prefix, self.layout = target.prefix, target.spec.layout
        self.options = {}
        if "interpolate_pos_encoding" in inspect.signature(model.forward).parameters:
            self.options["interpolate_pos_encoding"] = True
        self.tokens = Collected()
        target.block.register_forward_hook(self.tokens.note_output)
        super().__init__(target.dim, _patch(model, target, size), None)
        image = _blank(model, (2 * self.patch, 3 * self.patch))
        if not _runs(model, self, image):
            self.size, image = size, _blank(model, size)
        _remove_unused(model, self, image)

    def __call__(self, model: nn.Module, x: torch.Tensor) -> torch.Tensor:
        h, w = x.shape[-2] // self.patch, x.shape[-1] // self.patch
        self.tokens.expect()
        model(x, **self.options)
        x = self.tokens.take()
        if x.dim() == 4:
            return x if self.layout == "nchw" else x.permute(0, 3, 1, 2).contiguous()
        if x.shape[1] != h * w + self.prefix:
            raise GraftError(
                f"the last block of {type(model).__name__} returns {x.shape[1]} tokens for a {h} x {w} grid with "
                f"{self.prefix} prefix tokens: a pyramid needs the whole grid"
            )
        return x[:, self.prefix :].transpose(1, 2).reshape(x.shape[0], x.shape[2], h, w)


def _last_block(model: nn.Module) -> tuple[GraftTarget, Size]:
    """The last block of a plain ViT, and the size of the image that the model is made for."""
    name = type(model).__name__
    try:
        targets = find_targets(model)
    except GraftError as error:
        raise GraftError(f"no pyramid can be made from {name}: {error}") from error
    if not targets:
        raise NoGraftPointError(
            f"{name} has no forward_intermediates of timm and no blocks that are known: "
            "vitgraft.register_block(ITS_BLOCK, ...) makes them known; `vitgraft families` lists what is"
        )
    grids = list(dict.fromkeys(target.feat_size for target in targets))
    if len(grids) > 1:
        maps = ", ".join(f"{h} x {w}" for h, w in grids)
        raise ValueError(
            f"{name} is hierarchical, with maps of {maps} cells: give timm's model of this family, whose stages pass "
            "through, or a plain ViT of one stride"
        )
    last = targets[-1]
    if last.spec.to_grid is not None or not last.whole:
        raise GraftError(f"no pyramid can be made from {name}: {last.name} does not return the tokens of its grid")
    return last, input_size(model, None)[1:]


def _patch(model: nn.Module, target: GraftTarget, size: Size) -> int:
    """Side of a token in pixels: the stride of the patch projection where it has one, else from the sizes."""
    sides = [size[0] // target.feat_size[0]]
    if target.source is not None:
        sides.insert(0, getattr(model.get_submodule(target.source[0]), "stride", None))
        sides[0] = sides[0][0] if isinstance(sides[0], tuple) else sides[0]
    for side in sides:
        if isinstance(side, int) and tuple(pixels // side for pixels in size) == target.feat_size:
            return side
    h, w = target.feat_size
    raise GraftError(
        f"{type(model).__name__}: a grid of {h} x {w} tokens for an image of {size[0]} x {size[1]} pixels has no "
        "whole, square patch, which a pyramid needs"
    )


def _blank(model: nn.Module, size: Size) -> torch.Tensor:
    parameter = next(model.parameters())
    return torch.zeros(1, input_size(model, None)[0], *size, device=parameter.device, dtype=parameter.dtype)


def _in_eval_mode(model: nn.Module, run: Callable[[], Any]) -> Any:
    """What `run()` gives while the model is in eval mode; modes are left as they were."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.compiler.set_stance("force_eager"):
            return run()
    finally:
        for module, mode in modes.items():
            module.training = mode


@torch.no_grad()
def _runs(model: nn.Module, read: PlainMap, image: torch.Tensor) -> bool:
    try:
        _in_eval_mode(model, lambda: read(model, image))
    except Exception:  # libraries refuse a size, or a missing layer, in ways of their own
        return False
    return True


@torch.enable_grad()
def _remove_unused(model: nn.Module, read: PlainMap, image: torch.Tensor) -> None:
    """Replaces layers that the map does not depend on (classifier, pooler, final norm): DDP would wait for them.

    Where the model does not run without such a layer, or the parameter is not a layer's, it is frozen instead.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        return
    total = _in_eval_mode(model, lambda: read(model, image)).sum()
    gradients = torch.autograd.grad(total, trained, allow_unused=True)
    unused = {id(p) for p, gradient in zip(trained, gradients, strict=True) if gradient is None}
    removed: list[str] = []
    for name, layer in list(model.named_modules()):  # a whole pooler before its layers
        own = [id(parameter) for parameter in layer.parameters()]
        if not name or not own or not unused.issuperset(own) or name.startswith(tuple(removed)):
            continue
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, nn.Identity())
        if _runs(model, read, image):
            removed.append(f"{name}.")
        else:
            setattr(model.get_submodule(parent), child, layer)
    for parameter in trained:
        if id(parameter) in unused:
            parameter.requires_grad_(False)


def plain_map(model: nn.Module) -> PlainMap:
    """How the last map of a plain ViT is computed. The model loses what the map does not depend on.

    Raises:
        TypeError: No module, or a timm model made with features_only=True.
        ValueError: A hierarchical model.
        GraftError: The model does not run on a blank image, or does not keep the grid of its tokens.
        NoGraftPointError: Not of timm, torchvision or blocks that are known.
    """
    if hasattr(model, "feature_info") or not isinstance(model, nn.Module):
        return _TimmMap(model)
    if isinstance(model, TorchvisionViT):
        return _TorchvisionMap(model)
    return _HookedMap(model)
