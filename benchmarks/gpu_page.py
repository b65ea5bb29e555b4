"""The section "On a GPU" of docs/speed.md, from the files of `python -m benchmarks.gpu`."""

import json
import re
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.gpu import PLAN
from vitgraft.terminal import markdown_table

__all__ = ["make_section"]

PAIRS = {"deit_tiny": "DeiT-T", "swin_tiny": "Swin-T"}
DTYPES = {"float32": "float32 (TF32)", "bfloat16-weights": "bfloat16", "bfloat16": "bfloat16 autocast"}
PARTS = (
    # what, file
    ("inference", "infer_{}"),
    ("training step", "train_{}"),
    ("inference, compiled", "compiled_{}_bf16"),
    ("inference, compiled", "compiled_{}_fp32"),
    ("training step, compiled", "train_{}_compiled_bf16"),
    ("inference, compiled, CUDA graphs", "cuda_graphs_{}_bf16"),
    ("inference, compiled, CUDA graphs", "cuda_graphs_{}_fp32"),
    ("inference, compiled, autotuned", "autotuned_{}_bf16"),
)
TIMING = re.compile(
    r"  (?P<kernel>\w+), (?P<model>.+), (?P<dtype>\w+), batch (?P<batch>\d+): error (?P<error>\S+); "
    r"plain (?P<plain>\S+) ms, compiled (?P<compiled>[\d.]+), Triton (?P<triton>[\d.]+) "
)
"""What `benchmarks.kernels` prints of a timing."""

CONDITIONS = "float32 is measured with TF32 products; images are 224 x 224."
TEXT = """\
{machine}

### Speed

Both models in turns, wall time. A ratio is the median over the rounds (range in parentheses) of the speed of the model
with grafts as a multiple of the plain one's. "Launches" are those of kernels, with grafts and plain.

{speed}
Where two and a half times the launches cost more than the kernels themselves, the ratio is that of the launches: about
a third in eager mode up to batch 64. CUDA graphs (`torch.compile(mode="reduce-overhead")`) take the launches away, and
what is left is the time in kernels. It is longer than the plain model's: the grafts' linear layers are cheap, but each
of their norms, poolings, upsamplings and additions reads and writes whole maps, on which a tiny model spends most of
its time on a GPU this fast.

### Where the time goes

Milliseconds in kernels of a forward pass of 64 images in bfloat16, eager mode, by role.

{roles}
Our Swin calls attention inside the block, so its row "attention without its linear layers" is within "block".

### Memory of a training step

The most that was allocated, 64 images, as a multiple of the plain model's.

{memory}
### Three Triton kernels

(a) norm1 beside LayerNorm, GELU and pooling, (b) gate, upsampling, addition and norm2, (c) attention in shifted windows
without copies into windows and back; each beside its plain version (`benchmarks/kernels.py`), without a backward. Times
are in microseconds for 64 images, of the fastest tile.

{kernels}
In bfloat16 (a) takes an eighth to a quarter of the eager time and (b) a fifth to a third; of what `torch.compile` makes
of the same functions they save a fifth to two thirds. (b) in float32 computes its products in three TF32 passes and is
slower than the compiled version on Swin-T's first stage. By the kernels of the profile, (a) and (b) together would save
DeiT-T with grafts about 0.9 of its 3.3 ms. No model uses them yet.

{missing}
"""


def _tables(record: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for table in record["tables"]:
        yield from table["results"]


def _both(rows: list[Mapping[str, Any]]) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """(with grafts, plain) of each batch, dtype and run."""
    plain = {_key(row): row for row in rows if not row["model"].startswith("graft_")}
    for row in rows:
        if row["model"].startswith("graft_"):
            yield row, plain[_key(row)]


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row["dtype"], row["run"], row["batch_size"]


def _speed(records: Mapping[str, Mapping[str, Any]]) -> str:
    table = []
    for what, name in PARTS:
        for pair, model in PAIRS.items():
            compiled = "compiled" in what
            for mine, theirs in _both(list(_tables(records.get(name.format(pair), {"tables": []})))):
                if compiled and mine["run"] == "eager":
                    continue
                speeds = [f"{row['images_per_second']['median']:,.0f}" for row in (mine, theirs)]
                ratio = mine["ratio_to_first"]
                ratio = f"**{ratio['median']:.2f}** ({ratio['min']:.2f} to {ratio['max']:.2f})"
                launches = ", ".join(str(row["gpu_kernels"]["launches"]) for row in (mine, theirs))
                table.append([what, model, DTYPES[mine["dtype"]], str(mine["batch_size"]), *speeds, ratio, launches])
    headings = ("", "model", "", "batch", "with grafts, images/s", "plain", "ratio", "launches")
    return markdown_table(headings, table)


def _roles(records: Mapping[str, Mapping[str, Any]]) -> str:
    found = {}
    for pair, model in PAIRS.items():
        for profile in records.get(f"profile_{pair}", {"profiles": []})["profiles"]:
            if profile["dtype"] == "bfloat16-weights":
                grafted = "with grafts" if profile["model"].startswith("graft_") else "plain"
                found[f"{model}, {grafted}"] = {**profile["by_role"], "**together**": profile["microseconds"]}
    names = sorted({name for roles in found.values() for name in roles}, key=lambda name: (name[0] == "*", name))
    table = [[name, *(_milliseconds(roles.get(name)) for roles in found.values())] for name in names]
    return markdown_table(("", *found), table)


def _milliseconds(microseconds: float | None) -> str:
    return "-" if microseconds is None else f"{microseconds / 1e3:.2f}"


def _memory(records: Mapping[str, Mapping[str, Any]]) -> str:
    table = []
    for pair, model in PAIRS.items():
        for mine, theirs in _both(list(_tables(records.get(f"train_{pair}", {"tables": []})))):
            bytes_ = [row["peak_memory_bytes"] for row in (mine, theirs)]
            if None not in bytes_:
                cells = [f"{value / 2**20:,.0f}" for value in bytes_]
                table.append([model, DTYPES[mine["dtype"]], *cells, f"**{bytes_[0] / bytes_[1]:.2f}**"])
    return markdown_table(("model", "", "with grafts, MiB", "plain, MiB", "ratio"), table)


def _kernels(folder: Path) -> str:
    table = []
    for path in sorted(folder.glob("kernel*.log")):
        for row in TIMING.finditer(path.read_text(encoding="utf-8")):
            times = [f"{1e3 * float(row[name]):.0f}" for name in ("plain", "compiled", "triton")]
            table.append([row["kernel"], row["model"], row["dtype"], row["error"], *times])
    return markdown_table(("kernel", "shapes of", "", "relative error", "eager", "compiled", "Triton"), table)


def _missing(records: Mapping[str, Mapping[str, Any]]) -> str:
    names = ", ".join(f"`{name}`" for name in PLAN if name not in records)
    text = "Every part of the plan was measured" if not names else f"Not measured yet: {names}"
    command = (
        "`python -m benchmarks.gpu --output results/gpu` measures what is missing, in calls of at most ten minutes."
    )
    return textwrap.fill(f"{text}. {command}", 120, break_on_hyphens=False)


def make_section(folder: Path) -> str:
    """The section's text.

    Args:
        folder: results/gpu.
    """
    records = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}
    machines = {(r["machine"]["device_name"], r["machine"]["torch"], r["date"][:10]) for r in records.values()}
    loads = [record["machine"]["load_average"] for record in records.values()]
    texts = [f"Measured on one {name}, torch {torch}, {date}" for name, torch, date in sorted(machines)]
    machine = f"{'; '.join(texts)}, while other cores of the machine worked (load average {min(loads):.0f} to "
    return TEXT.format(
        machine=textwrap.fill(f"{machine}{max(loads):.0f}, 16 cores). {CONDITIONS}", 120),
        speed=_speed(records),
        roles=_roles(records),
        memory=_memory(records),
        kernels=_kernels(folder),
        missing=_missing(records),
    )
