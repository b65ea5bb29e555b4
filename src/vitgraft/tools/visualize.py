"""`vitgraft visualize`: what a model looks at, drawn beside its image.

grad-cam    gradient x activation of the last block's norm1, summed over channels and positive parts alone (the form of
            Grad-CAM without averaged gradients: Draelos and Carin 2020, "Use HiResCAM instead of Grad-CAM"), by captum
rollout     attention rollout (Abnar and Zuidema 2020, section 3), from the attention maps that timm extracts
scales      the graft's own levels: the norm of Z_b (equation 3) over channels at each token, and of what the graft adds
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from timm.utils import AttentionExtract
from torch import Tensor, nn

from vitgraft.data.decode import decode_image
from vitgraft.data.readers.open import open_files
from vitgraft.errors import CommandError, ImageError, MissingExtraError, VitgraftError
from vitgraft.grafting import grafts
from vitgraft.metrics.figures import figure_class, png_of
from vitgraft.predict.base import Predictor
from vitgraft.predict.load import open_model
from vitgraft.predict.run import move, unused_stem
from vitgraft.terminal import Progress, note, short_name, warn

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["METHODS", "attention_rollout", "class_activation", "figure_of", "graft_scales", "visualize"]

METHODS = ("grad-cam", "rollout", "scales")
MOST_GRAFTS = 3  # shown: the first, the last and one between
Row = tuple[str, list[tuple[str, np.ndarray | None]]]
"""Title, and (title, map (h, w) or None for the image alone) of each panel."""


class VisualizeError(VitgraftError, ValueError):
    """A method that this model does not have."""


def class_activation(model: nn.Module, pixels: Tensor, target: int) -> Tensor:
    """Where the evidence for a class is, at the input of the last block.

    Args:
        model: A classifier of timm, grafted or not, in evaluation mode.
        pixels: (1, 3, H, W), standardized.
        target: Number of the class.

    Returns:
        float32 (h, w), 0 and above.

    Raises:
        VisualizeError: The model has no block with a `norm1`.
        MissingExtraError: captum is not installed.
    """
    try:
        from captum.attr import LayerGradientXActivation
    except ImportError as error:
        raise MissingExtraError("captum", "visualize") from error

    layers = [module for name, module in model.named_modules() if name.rsplit(".", 1)[-1] == "norm1"]
    if not layers:
        raise VisualizeError("grad-cam: the model has no block with a norm1; give --method scales, or a ViT of timm")
    with torch.enable_grad(), _unfrozen(model):
        found = LayerGradientXActivation(model, layers[-1]).attribute(pixels, target=target).detach()
    return _as_map(found.sum(-1), pixels, model).clamp(min=0)


def _as_map(values: Tensor, pixels: Tensor, model: nn.Module) -> Tensor:
    """(1, N) or (1, h, w) to (h, w); tokens that are no patches are left out."""
    if values.ndim == 3:
        return values[0].float()
    values = values[0, getattr(model, "num_prefix_tokens", 0) :]
    height, width = pixels.shape[2:]
    h = round((len(values) * height / width) ** 0.5)
    if h == 0 or len(values) % h:
        raise VisualizeError(f"{len(values)} tokens are no map of an image of {height} x {width} pixels")
    return values.view(h, -1).float()


@contextlib.contextmanager
def _unfrozen(model: nn.Module) -> Iterator[None]:
    """Parameters need gradients, so that activations do."""
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    model.requires_grad_(True)
    try:
        yield
    finally:
        for parameter, needed in before:
            parameter.requires_grad_(needed)


@torch.no_grad()
def attention_rollout(model: nn.Module, pixels: Tensor) -> Tensor:
    """How much of each patch reaches the classifier through attention, all blocks together.

    Attention averaged over heads, one half of it the residual connection, is multiplied from block to block; of models
    without a class token the mean over all tokens.

    Args:
        model: A ViT of timm with attention over the whole image in every block.
        pixels: (1, 3, H, W), standardized.

    Returns:
        float32 (h, w).

    Raises:
        VisualizeError: Some block attends in windows or otherwise, or timm finds no attention maps.
    """
    fused = [(one, one.fused_attn) for one in model.modules() if getattr(one, "fused_attn", False)]
    for module, _ in fused:
        module.fused_attn = False
    extract = None
    try:
        extract = AttentionExtract(model, method="hook")
        maps = [one for one in extract(pixels).values() if isinstance(one, Tensor) and one.ndim == 4]
    except RuntimeError as error:
        raise VisualizeError(f"rollout: {error} Give --method grad-cam or scales") from error
    finally:
        for module, value in fused:
            module.fused_attn = value
        for handle in [] if extract is None else getattr(extract.hooks, "_handles", []):
            handle.remove()
    shapes = {tuple(one.shape[-2:]) for one in maps}
    blocks = len(getattr(model, "blocks", maps))
    if len(shapes) != 1 or len(maps) != blocks or any(one.shape[0] != len(pixels) for one in maps):
        raise VisualizeError(
            "rollout: needs attention over the whole image in every block, and this model attends in windows, or at "
            "several resolutions. Give --method grad-cam or scales"
        )
    tokens = shapes.pop()[0]
    together = torch.eye(tokens, device=pixels.device)
    for one in maps:
        mixed = 0.5 * one[0].float().mean(0) + 0.5 * torch.eye(tokens, device=pixels.device)
        together = mixed @ together
    rows = together[:1] if getattr(model, "num_prefix_tokens", 0) else together
    return _as_map(rows.mean(0, keepdim=True), pixels, model)


@torch.no_grad()
def graft_scales(model: nn.Module, run: Callable[[], object]) -> dict[str, dict[str, Tensor]]:
    """The maps of a few grafts: of each level, and of what the graft adds to its block.

    Args:
        model: With grafts.
        run: Runs the model on one image.

    Returns:
        Name of a block -> "Z1", "Z2" ..., "added" -> float32 (h, w), the norm over channels.

    Raises:
        VisualizeError: The model has no grafts.
    """
    found = grafts(model)
    if not found:
        raise VisualizeError("scales: the model has no grafts; give --method grad-cam or rollout")
    names = list(found)
    places = np.linspace(0, len(names) - 1, min(MOST_GRAFTS, len(names))).round().astype(int)
    maps: dict[str, dict[str, Tensor]] = {}

    def keep(name: str) -> Callable:
        def hook(graft: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            levels = {f"Z{number}": one for number, one in enumerate(graft.pyramid(args[0]), start=1)}
            maps[name] = {key: one[0].float().norm(dim=-1).cpu() for key, one in {**levels, "added": output}.items()}

        return hook

    handles = [found[names[place]].register_forward_hook(keep(names[place])) for place in places]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return maps


def figure_of(image: np.ndarray, rows: Sequence[Row]) -> "Figure":
    """The image and maps on it, each scaled to its own largest and smallest value.

    Args:
        image: uint8 (H, W, 3).
        rows: What is drawn.
    """
    height, width = image.shape[:2]
    columns = max(len(panels) for _, panels in rows)
    side = 2.6
    figure = figure_class()(figsize=(side * columns, (side * height / width + 0.35) * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    gray = image.mean(2).astype(np.uint8)
    for (row_title, panels), row in zip(rows, grid, strict=True):
        for number, ((title, heat), axes) in enumerate(zip(panels, row, strict=False)):
            axes.set_title(f"{row_title} {title}".strip() if number == 0 else title, fontsize=8)
            if heat is None:
                axes.imshow(image)
                continue
            axes.imshow(gray, cmap="gray", vmin=0, vmax=255)
            axes.imshow(_enlarged(heat, (height, width)), cmap="inferno", alpha=0.6)
    return figure


def _enlarged(heat: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return F.interpolate(torch.from_numpy(heat)[None, None], size=size, mode="bilinear")[0, 0].numpy()


def _rows(predictor: Predictor, pixels: Tensor, methods: Sequence[str], target: int | None) -> list[Row]:
    """The panels of one image; of all methods that the model has where none is asked for."""
    model, batch = predictor.model, pixels[None]
    rows: list[Row] = [("", [("image", None)])]

    def grad_cam() -> None:
        with torch.no_grad():
            probabilities = model(batch).float().softmax(1)[0]
        number = int(probabilities.argmax()) if target is None else target
        name = f"{short_name(predictor.class_names[number], 22)} {probabilities[number]:.0%}"
        rows[0][1].append((f"grad-cam: {name}", class_activation(model, batch, number).cpu().numpy()))

    def rollout() -> None:
        rows[0][1].append(("attention rollout", attention_rollout(model, batch).cpu().numpy()))

    def scales() -> None:
        size = tuple(pixels.shape[1:])
        found = graft_scales(model, lambda: predictor.predict_batch([pixels], [size]))
        for block, maps in found.items():
            named = [(f"{key} ({one.shape[0]} x {one.shape[1]})", one.numpy()) for key, one in maps.items()]
            rows.append((block.rsplit("backbone.", 1)[-1], [("", None), *named]))

    draw = {"grad-cam": grad_cam, "rollout": rollout, "scales": scales}
    for method in methods or (METHODS if predictor.task == "classification" else ("scales",)):
        try:
            draw[method]()
        except VisualizeError:
            if methods:
                raise
    if len(rows) == len(rows[0][1]) == 1:
        raise VisualizeError(f"{predictor.source} is a {predictor.noun} without grafts: there is nothing to draw of it")
    return rows if len(rows[0][1]) > 1 else rows[1:]  # each row of scales has the image too


def _shown(predictor: Predictor, pixels: Tensor) -> np.ndarray:
    """What the model sees, uint8 (H, W, 3)."""
    used = predictor.preprocessing
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (used.mean, used.std))
    return ((pixels.cpu() * std + mean).clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()


def visualize(
    source: str | Path,
    paths: Sequence[str],
    output: Path,
    methods: Sequence[str] = (),
    class_name: str | None = None,
    device: str | None = None,
    trust: bool = False,
) -> int:
    """Draws images one by one into a folder; 0, or 1 where no image could be drawn.

    Args:
        source: What `vitgraft.load` takes.
        paths: Images, folders, or a tar.
        output: Folder.
        methods: Of `METHODS`; empty takes those that the model has.
        class_name: Name or number of the class of grad-cam; None takes the predicted one.
        device: Where the model runs; None: on the GPU where there is one.
        trust: Whether a checkpoint may name classes that are not vitgraft's.

    Raises:
        VisualizeError: A method that the model does not have.
        CommandError: A class that it does not have, or a device that is not there.
    """
    images = open_files(list(paths))
    predictor = open_model(source, trust=trust)
    move(predictor, device)
    if predictor.task != "classification" and (wrong := [one for one in methods if one != "scales"]):
        raise VisualizeError(f"{wrong[0]}: {predictor.source} is a {predictor.noun}; of those there is --method scales")
    target = None if class_name is None else _class_number(class_name, predictor.class_names)
    output.mkdir(parents=True, exist_ok=True)
    stems: set[str] = set()
    drawn = 0
    with Progress(len(images)) as step:
        for number in range(len(images)):
            step(images.name(number))
            try:
                image = decode_image(images.read(number), images.name(number))
                pixels = predictor.transform(image).to(predictor.device)
            except ImageError as error:
                warn(f"not drawn: {error}")
                continue
            rows = _rows(predictor, pixels, methods, target)
            name = f"{unused_stem(images.name(number), stems)}.png"
            (output / name).write_bytes(png_of(figure_of(_shown(predictor, pixels), rows), dpi=130))
            drawn += 1
    note(f"{drawn} image{'' if drawn == 1 else 's'} drawn in {output} by {predictor.source}")
    return 0 if drawn else 1


def _class_number(text: str, names: Sequence[str]) -> int:
    if text in names:
        return list(names).index(text)
    if text.isdecimal() and int(text) < len(names):
        return int(text)
    raise CommandError(f"--class {text}: the model has {', '.join(names[:8])}{' ...' if len(names) > 8 else ''}")
