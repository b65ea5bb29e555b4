"""How `vitgraft plan` shows its numbers: in the terminal, and as the page `docs/cost.md`."""

from collections.abc import Sequence

from vitgraft.report.plan import GPUS, Assumptions, RecipePlan, Row
from vitgraft.report.terminal import print_whole

__all__ = ["print_terminal", "to_markdown"]

DETAIL = (
    "GPUs",
    "batch per GPU",
    "accumu- lated",
    "total batch",
    "learning rate",
    "steps per epoch",
    "steps",
    "loader images/s",
    "loader MB/s",
    "loader cores",
    "GPU hours",
    "wall time",
    "wall time, its workers",
)


def print_terminal(plans: Sequence[RecipePlan], assumptions: Assumptions, console) -> None:
    """Prints a table for each recipe and, once, what was assumed.

    Args:
        console: of rich.
    """
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    for plan in plans:
        console.print(f"[bold]{escape(plan.name)}[/bold]: {escape(_headline(plan))}", soft_wrap=True, highlight=False)
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
        for heading in DETAIL:
            table.add_column(heading.replace(" ", "\n"), justify="right")
        for row in plan.rows:
            table.add_row(*_cells(row))
        print_whole(console, table)
        for row in plan.rows:
            console.print(f"  {row.gpus} GPU{'s' * (row.gpus > 1)}: {row.options}", style="dim", soft_wrap=True)
        console.print()
    for line in assumed(plans, assumptions):
        console.print(f"- {escape(line)}", style="dim", highlight=False, soft_wrap=True)


def to_markdown(plans: Sequence[RecipePlan], assumptions: Assumptions, command: str) -> str:
    """A page: the recipes side by side, each in detail, and what was assumed.

    Args:
        command: what makes the page, for its first line.
    """
    gpus = [row.gpus for row in plans[0].rows]
    imagenet = all(plan.images == 1_281_167 for plan in plans)
    title = "What ImageNet costs" if imagenet else "What these recipes cost"
    lines = [f"<!-- made by: {command} -->", f"# {title}", ""]
    lines += [
        "Multiply-accumulates (MAC) are counted by `vitgraft.report.count`, steps and learning rates follow from the",
        "recipes; times, images/s and cores rest on the assumptions below, and none of them was measured.",
        "",
        "## Side by side",
        "",
        "| recipe | parameters | MAC of one image | epochs | steps | EFLOP | GPU hours | "
        + " | ".join(f"wall time, {n} GPU{'s' * (n > 1)}" for n in gpus)
        + " |",
        "|---|---:|---:|---:|---:|---:|---:|" + "---:|" * len(gpus),
    ]
    for plan in plans:
        row = plan.rows[0]
        cells = [
            f"[{plan.name}](#{plan.name})", f"{plan.params:,}", f"{plan.macs:,}", str(plan.epochs),
            f"{row.steps:,}", f"{plan.flops / 1e18:.2f}", f"{row.gpu_hours:.0f}",
            *(_time(row.hours) for row in plan.rows),
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        "Steps and GPU hours are those of the first number of GPUs; wall times are those of GPUs that never wait",
        "for images. The column 'wall time, its workers' further down counts the recipe's loader processes in: where",
        "it is longer, the loader is the limit; more cores, or images that are stored smaller, would make it faster.",
        "",
        "## What is assumed",
        "",
    ]
    lines += [f"- {line}" for line in assumed(plans, assumptions)]
    lines += [
        "",
        "Put in your own: `vitgraft bench MODEL --mode train --dtype bfloat16 --device cuda` measures what a GPU",
        "achieves (images/s; for `--tflops`: 6 x MAC x images/s), and `python -m vitgraft.data.bench_loader PHOTOS`",
        "what a core reads. Then `vitgraft plan --config RECIPE --tflops ... --images-per-core ...`; all options:",
        "`vitgraft plan --help`.",
    ]
    for plan in plans:
        lines += ["", f"## {plan.name}", "", f"{_headline(plan)}.", ""]
        heads = [*(heading.replace("- ", "") for heading in DETAIL), "options"]
        lines += ["| " + " | ".join(heads) + " |", "|" + "---:|" * len(DETAIL) + "---|"]
        lines += ["| " + " | ".join([*_cells(row), f"`{row.options}`"]) + " |" for row in plan.rows]
    return "\n".join(lines) + "\n"


def assumed(plans: Sequence[RecipePlan], assumptions: Assumptions) -> list[str]:
    """What was taken for granted, a sentence each."""
    dtypes = sorted({plan.dtype for plan in plans})
    if assumptions.tflops is not None:
        speed = f"{assumptions.tflops:g} TFLOP/s achieved by each GPU"
    else:
        each = ", ".join(
            f"{GPUS[assumptions.gpu][dtype] * assumptions.utilisation:.3g} TFLOP/s in {dtype} "
            f"({assumptions.utilisation:.0%} of the {GPUS[assumptions.gpu][dtype]:g} of the data sheet)"
            for dtype in dtypes
        )
        speed = f"each GPU is an {assumptions.gpu.upper()} and achieves {each}"
    images = " or ".join(f"{n:,}" for n in sorted({plan.images for plan in plans}))
    val_images = " or ".join(f"{n:,}" for n in sorted({plan.val_images for plan in plans}))
    workers = " or ".join(map(str, sorted({row.workers for plan in plans for row in plan.rows})))
    if assumptions.keep_batch:
        batch = "the total batch is the recipe's: accumulated on fewer GPUs, in smaller batches on more"
    else:
        batch = "the batch of each GPU is the recipe's; the total batch and the learning rate follow from the GPUs"
    return [
        speed,
        "1 MAC is 2 FLOP; training costs 3 forward passes of each image; optimizer and input are hidden behind them",
        f"every doubling of the number of GPUs keeps {assumptions.doubling:.0%} of the speed",
        f"{images} training images of {assumptions.kilobytes:g} kB, {val_images} more for validation after each epoch",
        f"a CPU core reads, decodes and augments {assumptions.images_per_core:g} images/s, and each of the recipe's "
        f"{workers} loader processes for each GPU has one",
        batch,
    ]


def _headline(plan: RecipePlan) -> str:
    size = " x ".join(map(str, plan.input_size[1:]))
    return (
        f"{plan.model} at {size}, {plan.macs / 1e9:.3g} GMAC, {plan.params / 1e6:.3g} M parameters; {plan.epochs} "
        f"epochs of {plan.drawn:,} images in {plan.dtype}: {plan.flops / 1e18:.3g} EFLOP; learning rate {plan.lr_rule}"
    )


def _cells(row: Row) -> list[str]:
    return [
        str(row.gpus), str(row.batch_size), str(row.accumulate), f"{row.total_batch:,}", f"{row.lr:.3g}",
        f"{row.steps_per_epoch:,}", f"{row.steps:,}", f"{row.images_per_second:,.0f}",
        f"{row.megabytes_per_second:,.0f}", f"{row.loader_cores:,}", f"{row.gpu_hours:,.3g}", _time(row.hours),
        _time(row.hours_with_workers),
    ]  # fmt: skip


def _time(hours: float) -> str:
    if hours >= 48:
        return f"{hours / 24:.1f} days"
    if hours >= 1:
        return f"{hours:.1f} h"
    return f"{hours * 60:.0f} min" if hours >= 1 / 60 else f"{hours * 3600:.0f} s"
