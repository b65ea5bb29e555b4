"""The demo's report: one HTML file with everything inside, which opens from disk without server or network."""

import dataclasses
import html
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from vitgraft.data.digits import DigitScenes
from vitgraft.grafting import grafts
from vitgraft.html_page import inline_image, page
from vitgraft.metrics.figures import figure_class, png_of
from vitgraft.tools.receptive_field import effective_receptive_fields, erf_area

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["DemoOptions", "DemoResult", "write_demo_report"]

HEADINGS = ("model", "accuracy", "parameters", "MMAC", "images/s", "training")
COLORS = {"full": "#7a7a7a", "windows": "#d1812f", "grafted": "#2f7d4f"}
STYLE = """
body { font: 16px/1.55 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1.2rem; color: #222; }
h1 { font-size: 1.7rem; margin-bottom: .2rem } h2 { font-size: 1.2rem; margin-top: 2.4rem }
table { border-collapse: collapse; margin: 1rem 0 } th, td { padding: .35rem .9rem; border-bottom: 1px solid #ddd; }
td + td, th + th { text-align: right } th { text-align: left; background: #f5f6f7 } tr.grafted { background: #e9f4ec }
img { max-width: 100%; height: auto } p.note { color: #555; font-size: .9rem }
code { background: #f2f2f2; padding: 0 .25em }
"""


@dataclass(frozen=True)
class DemoOptions:
    """What the demo trains. The defaults take about five minutes on two CPU cores.

    Args:
        seed: Of the scenes, the initial weights and the order of the batches.
        steps: Optimizer steps of each model.
        train_scenes, test_scenes: Numbers of scenes; they are made of different digit scans.
    """

    seed: int = 0
    steps: int = 700
    batch_size: int = 32
    train_scenes: int = 8000
    test_scenes: int = 1000
    lr: float = 1.5e-3
    patch_size: int = 8
    window_size: int = 2
    embed_dim: int = 64
    depth: int = 4
    num_heads: int = 4


@dataclass
class DemoResult:
    """The results of one model. Curves are lists of (step, value)."""

    name: str
    accuracy: float
    params: int
    macs: int
    images_per_second: float
    train_seconds: float
    loss_curve: list[tuple[int, float]] = dataclasses.field(default_factory=list)
    accuracy_curve: list[tuple[int, float]] = dataclasses.field(default_factory=list)

    def texts(self) -> list[str]:
        """A row under `HEADINGS`."""
        costs = [f"{self.accuracy:.1%}", f"{self.params:,}", f"{self.macs / 1e6:.1f}"]
        return [self.name, *costs, f"{self.images_per_second:.0f}", f"{self.train_seconds:.0f} s"]


def _figure(size: tuple[float, float], rows: int, columns: int) -> tuple["Figure", Any]:
    """A figure and its axes, rows by columns."""
    figure = figure_class()(figsize=size)
    return figure, figure.subplots(rows, columns, squeeze=False)


def _image(figure: "Figure", alt: str) -> str:
    return inline_image(png_of(figure, dpi=130), alt)


def _show(axis: Any, image: Any, title: str, **options: Any) -> Any:
    """Draws an image without ticks."""
    axis.set_title(title, fontsize=options.pop("fontsize", 9))
    axis.set_xticks([])
    axis.set_yticks([])
    return axis.imshow(image, **options)


def _smooth(curve: list[tuple[int, float]], window: int) -> tuple[list[int], list[float]]:
    """Running mean over the last `window` values."""
    steps, values = zip(*curve, strict=True)
    means = [sum(values[max(0, i - window + 1) : i + 1]) / min(window, i + 1) for i in range(len(values))]
    return list(steps), means


def _curves(results: dict[str, DemoResult]) -> str:
    figure, ((loss, accuracy),) = _figure((11, 3.8), 1, 2)
    for kind, result in results.items():
        steps, values = _smooth(result.loss_curve, 25)
        loss.plot(steps, values, color=COLORS[kind], label=result.name)
        accuracy.plot(*zip(*result.accuracy_curve, strict=True), "o-", ms=3.5, color=COLORS[kind], label=result.name)
    loss.set(xlabel="step", ylabel="training loss (mean of 25 steps)")
    accuracy.set(xlabel="step", ylabel="accuracy on test scenes", ylim=(0, 1.02))
    for axis in (loss, accuracy):
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    accuracy.legend(frameon=False)
    return _image(figure, "learning curves of the three models")


def _predictions(models: dict[str, nn.Module], test: DigitScenes, count: int = 12) -> str:
    count = min(count, len(test))
    images = torch.stack([test[i][0] for i in range(count)])
    labels = [test[i][1] for i in range(count)]
    names = test.class_names
    with torch.inference_mode():
        guesses = {kind: model(images).argmax(1).tolist() for kind, model in models.items()}
    columns = 6
    rows = -(-count // columns)
    figure, axes = _figure((11, 2.45 * rows), rows, columns)
    for axis in axes.flat:
        axis.axis("off")
    for i, axis in zip(range(count), axes.flat, strict=False):
        axis.imshow(test.scene(i).image)
        axis.set_title(f"label {names[labels[i]]}", fontsize=10, pad=3)
        for place, kind in enumerate(models):
            right = guesses[kind][i] == labels[i]
            text = f"{kind} {names[guesses[kind][i]]} {'✓' if right else '✗'}"
            style = {"ha": "center", "va": "top", "fontsize": 8.5, "color": "#1b7a3d" if right else "#b3261e"}
            axis.text(0.5, -0.04 - 0.12 * place, text, transform=axis.transAxes, **style)
    figure.subplots_adjust(hspace=0.62, wspace=0.08)
    return _image(figure, "test scenes with the predictions of the three models")


def _scales(model: nn.Module, image: torch.Tensor, scene: Any) -> str:
    """Maps of one graft: the block's input, the output of each level, what is added."""
    name, graft = next(iter(grafts(model).items()))
    inputs: list[torch.Tensor] = []
    handle = graft.register_forward_pre_hook(lambda _module, args: inputs.append(args[0]))
    with torch.inference_mode():
        model(image[None])
        handle.remove()
        x0 = inputs[0]
        panels = [("block input $X^0$", x0)]
        panels += [(f"level {b + 1}: $Z^{b + 1}$", z) for b, z in enumerate(graft.pyramid(x0))]
        panels.append(("added to the attention: up($Z^1$)", graft(x0)))
    figure, (axes,) = _figure((11, 2.7), 1, len(panels) + 1)
    _show(axes[0], scene, "scene")
    for axis, (title, grid) in zip(axes[1:], panels, strict=True):
        _show(axis, grid[0].norm(dim=-1).numpy(), f"{title}\n{grid.shape[1]} x {grid.shape[2]}", cmap="viridis")
    return _image(figure, f"the scales of the graft on {name}")


def _receptive_fields(models: dict[str, nn.Module], images: torch.Tensor, block: int) -> tuple[str, dict[str, float]]:
    fields = {
        kind: effective_receptive_fields(model, [model.blocks[block]], images)[0] for kind, model in models.items()
    }
    areas = {kind: erf_area(field) for kind, field in fields.items()}
    figure, (axes,) = _figure((11, 3.9), 1, len(fields))
    for axis, (kind, field) in zip(axes, fields.items(), strict=True):
        image, style = field.clamp_min(1e-4).log10().numpy(), {"cmap": "magma", "vmin": -4, "vmax": 0}
        shown = _show(axis, image, f"{kind}: covers {areas[kind]:.0%}", fontsize=10, **style)
    bar = figure.colorbar(shown, ax=axes, shrink=0.75, ticks=[-4, -3, -2, -1, 0])
    bar.ax.set_yticklabels(["0.0001", "0.001", "0.01", "0.1", "1"])
    bar.set_label("|gradient|, largest = 1", fontsize=9)
    return _image(figure, f"effective receptive field of block {block}"), areas


def _table(results: dict[str, DemoResult]) -> str:
    head = "".join(f"<th>{heading}</th>" for heading in HEADINGS)
    rows = {kind: "".join(f"<td>{text}</td>" for text in result.texts()) for kind, result in results.items()}
    body = "".join(f'<tr class="{kind}">{row}</tr>' for kind, row in rows.items())
    return f"<table><tr>{head}</tr>{body}</table>"


def write_demo_report(
    path: Path,
    models: dict[str, nn.Module],
    results: dict[str, DemoResult],
    test: DigitScenes,
    options: DemoOptions,
    record: dict[str, Any],
) -> Path:
    """Writes the report of a demo run.

    Args:
        path: The HTML file.
        models: The trained models by kind ("full", "windows", "grafted"), in eval mode.
        results: Their results.
        test: The test scenes.
        options: What was trained.
        record: What goes to results.json, for the versions and the machine.

    Returns:
        The path.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    images = torch.stack([test[i][0] for i in range(min(32, len(test)))])
    block = 1  # the first block that carries a graft
    fields, areas = _receptive_fields(models, images, block)
    machine = record["machine"]
    margin = results["grafted"].accuracy - results["windows"].accuracy
    ahead = max(results, key=lambda kind: results[kind].accuracy)
    body = f"""
<h1>Windows, full attention, and a graft</h1>
<p>Three small vision transformers learned the same scenes of real handwritten digits for {options.steps} steps of
{options.batch_size} scenes. Small digits of one class lie on the left and of another on the right. The large digit in
the middle selects the side that counts: 0 the left, 1 the right; the label is the digit of that side. A window of
{options.window_size} x {options.window_size} tokens sees the small digits or a part of the large one, not both: a
model of windows only can name the two candidates, and guess.</p>
{_table(results)}
<p>Windows with grafts against windows only: {100 * margin:+.1f} points. Ahead: {results[ahead].name}.
Chance is {1 / len(test.class_names):.0%}; naming a candidate without knowing the side gives about 50 %.</p>
<h2>Learning curves</h2>{_curves(results)}
<h2>Test scenes and the predictions of the three models</h2>{_predictions(models, test)}
<h2>The scales of one graft</h2>{_scales(models["grafted"], images[0], test.scene(0).image)}
<p class="note">Norm over the channels of each token. The first graft of the trained model: the block's tokens are
pooled to coarser levels, attended there (globally on the coarsest), and brought back.</p>
<h2>What a token of block {block} sees</h2>{fields}
<p class="note">Effective receptive field: gradient of the center token after block {block} with respect to the image,
mean over {len(images)} test scenes. Covered: fraction of the pixels with more than 0.1 % of the largest gradient
({", ".join(f"{kind} {area:.0%}" for kind, area in areas.items())}).</p>
<h2>How this was made</h2>
<p class="note"><code>{html.escape(record["command"])}</code>, seed {options.seed}; {options.train_scenes:,} training
scenes, {options.test_scenes:,} test scenes of other digit scans. torch {machine["torch"]}, timm {machine["timm"]},
vitgraft {machine["vitgraft"]}, {html.escape(str(machine["device_name"]))}, {machine["threads"]} threads. Speeds are of
inference in batches of 64, measured in turns.</p>
"""
    path.write_text(page("vitgraft demo", STYLE, body), encoding="utf-8")
    return path
