"""`vitgraft bench`: how fast models are side by side, on this machine, in this run.

The models take turns: each round times every model once (A B C A B C ...), so that a machine that slows down or is
shared slows all of them, and the ratio to the first model is the median of the ratios *within* a round. Before the
first round every model is warmed up; a time runs from idle device to idle device.

"infer" is a forward pass in eval mode without gradients; "train" a whole step: forward pass, cross entropy, backward
pass, optimizer. bfloat16 is autocast over float32 weights in both. Images are random: loading is not measured.
"""

import contextlib
import functools
import gc
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from vitgraft.errors import CommandError
from vitgraft.machine import matmul_rate, peak_bytes, record, timed
from vitgraft.models.spec import ModelSpec, input_size_of
from vitgraft.options import Count, Positive, type_errors
from vitgraft.terminal import print_table
from vitgraft.tools.count import count_macs, count_params
from vitgraft.weights.create import create_at

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
OPTIMIZERS = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}

MEMORY_NOTE = (
    "weights and optimizer state plus the most that PyTorch's allocator handed out during a step; what libraries "
    "allocate by themselves (oneDNN's scratch) is not seen"
)


@dataclass(frozen=True)
class BenchConfig:
    """How to measure.

    Args:
        device: "cpu", "cuda" or "cuda:N".
        dtypes: "bfloat16" is autocast.
        modes: Forward passes, or training steps.
        batch_size: Images per step.
        img_size: Side of the square images; None takes each model's own size.
        rounds: How often each model is timed.
        round_seconds: Approximate length of one timing; a fast model takes more steps for it.
        compile: Whether the models run through `torch.compile`.
        fused_attn: timm's switch for fused attention while the models are made and run: "on" includes paths that
            timm calls experimental (Swin's), "off" is attention written out, "fastest" tries both for every model.
        optimizer: Of the training step.
        memory: Whether to measure the peak memory, which takes one more step per model.

    Raises:
        CommandError: Naming all options with values that are not possible.
    """

    device: str = "cpu"
    dtypes: Sequence[Literal["float32", "bfloat16"]] = ("float32",)
    modes: Sequence[Literal["infer", "train"]] = ("infer",)
    batch_size: Count = 16
    img_size: Count | None = None
    rounds: Count = 10
    round_seconds: Positive = 1.0
    compile: bool = False
    fused_attn: Literal["fastest", "on", "off"] = "fastest"
    optimizer: Literal["adamw", "sgd"] = "adamw"
    memory: bool = True

    def __post_init__(self) -> None:
        errors = type_errors(BenchConfig, vars(self))
        try:
            device = torch.device(self.device)
            if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
                errors.append(f"device={self.device!r}: PyTorch finds no such CUDA device here; use 'cpu'")
        except RuntimeError as error:
            errors.append(f"device={self.device!r}: {error}")
        if errors:
            raise CommandError("bench: " + "; ".join(errors))


@dataclass
class Entry:
    """A model that is ready to be timed: `step()` is one inference or training step on its batch."""

    spec: ModelSpec
    fused_attn: bool
    model: nn.Module
    step: Callable[[], object]
    input_size: tuple[int, int, int]
    peak_bytes: int | None = None
    trial: dict[str, float] = field(default_factory=dict)
    steps: int = 1
    images_per_second: list[float] = field(default_factory=list)


Make = Callable[[ModelSpec], tuple[nn.Module, tuple[int, int, int]]]
"""A spec to the module that is timed and the (channels, height, width) of its images."""


def bench(
    specs: Sequence[str | ModelSpec],
    config: BenchConfig | None = None,
    report: Callable[[str], None] | None = None,
    make: Make | None = None,
) -> dict[str, Any]:
    """Measures the models side by side, in every mode and dtype of the configuration.

    Args:
        specs: The models; the first is what the others are compared with.
        config: How to measure.
        report: Gets a line about each piece of work, for a progress bar: it is called `total_reports(...)` times.
        make: Makes what is timed for a spec, on the CPU, instead of the timm model itself.

    Returns:
        JSON values: "machine", "config" and "results", one result per mode, dtype and model.

    Raises:
        ModelSpecError: A model is unknown or does not take its options.
    """
    config, report = config or BenchConfig(), report or (lambda _: None)
    parsed = [ModelSpec.parse(spec) if isinstance(spec, str) else spec for spec in specs]
    make = make or functools.partial(_whole_model, img_size=config.img_size)
    for spec in parsed:  # all names and options are checked before the first minute is spent
        make(spec)
    device = torch.device(config.device)
    results = []
    for mode in config.modes:
        for dtype in config.dtypes:
            results += _compare(parsed, make, mode, dtype, device, config, report)
    memory = MEMORY_NOTE if config.memory else "not measured"
    return record("bench", device, config=asdict(config), memory=memory, results=results)


def _whole_model(spec: ModelSpec, img_size: int | None) -> tuple[nn.Module, tuple[int, int, int]]:
    model = create_at(spec, img_size)
    return model, input_size_of(model, img_size)


def total_reports(models: int, config: BenchConfig) -> int:
    """How often `bench` calls `report`."""
    return len(config.modes) * len(config.dtypes) * models * (1 + config.rounds)


def _compare(
    specs: Sequence[ModelSpec],
    make: Make,
    mode: str,
    dtype: str,
    device: torch.device,
    config: BenchConfig,
    report: Callable[[str], None],
) -> list[dict[str, Any]]:
    entries = []
    for spec in specs:
        report(f"{mode} {dtype}: preparing {spec}")
        entries.append(_prepare(spec, make, mode, dtype, device, config))
    peak = matmul_rate(device, DTYPES[dtype])
    for number in range(config.rounds):
        for one in entries:
            report(f"{mode} {dtype}: round {number + 1} of {config.rounds}, {one.spec}")
            with fused_attention(one.fused_attn):
                seconds = timed(one.step, one.steps, device)
            one.images_per_second.append(one.steps * config.batch_size / seconds)
        # the best of the run is the peak: what it is compared with may have had a quieter moment
        peak = max(peak, matmul_rate(device, DTYPES[dtype]))
    return [_result(one, entries[0], mode, dtype, peak, config) for one in entries]


def _prepare(spec: ModelSpec, make: Make, mode: str, dtype: str, device: torch.device, config: BenchConfig) -> Entry:
    """The model at the attention setting that is set, or at the faster one after a short trial; warmed up."""
    tried: list[tuple[float, Entry]] = []
    for fused in {"on": [True], "off": [False], "fastest": [True, False]}[config.fused_attn]:
        with fused_attention(fused):
            one = _entry(spec, make, fused, mode, dtype, device, config)
            seconds = timed(one.step, 1, device)
            if seconds < config.round_seconds:  # a longer step is warm after the first, and shows its time in one
                timed(one.step, 1, device)
                steps = max(1, round(config.round_seconds / 2 / timed(one.step, 1, device)))
                seconds = min(timed(one.step, steps, device) for _ in range(2)) / steps
        tried.append((seconds, one))
    seconds, best = min(tried, key=lambda pair: pair[0])
    best.trial = {"on" if one.fused_attn else "off": config.batch_size / taken for taken, one in tried}
    best.steps = max(1, round(config.round_seconds / seconds))
    del tried, one
    _free(device)
    return best


def _entry(
    spec: ModelSpec, make: Make, fused: bool, mode: str, dtype: str, device: torch.device, config: BenchConfig
) -> Entry:
    _free(device)
    model, input_size = make(spec)
    model = model.to(device)
    images = torch.randn(config.batch_size, *input_size, device=device)
    with torch.no_grad():
        classes = model.eval()(images[:1]).shape[-1] if mode == "train" else 0
    model.train(mode == "train")
    run = torch.compile(model) if config.compile else model
    autocast = torch.autocast(device.type, DTYPES[dtype], enabled=dtype != "float32")
    optimizer = None

    def infer() -> None:
        with torch.no_grad(), autocast:
            run(images)

    def update() -> None:
        with autocast:
            loss = F.cross_entropy(run(images), labels)
        loss.backward()
        optimizer.step()

    def train() -> None:
        update()
        optimizer.zero_grad()

    step = infer
    if mode == "train":
        step = train
        labels = torch.randint(classes, (config.batch_size,), device=device)
        optimizer = OPTIMIZERS[config.optimizer](model.parameters(), lr=1e-5)
    one = Entry(spec, fused, model, step, input_size)
    step()  # makes the optimizer's state
    if config.memory:
        # without the release of the gradients, which the profiler would see as memory of unknown size
        held = _tensor_bytes(model, optimizer)
        one.peak_bytes = held + peak_bytes(update if mode == "train" else infer, device)
        model.zero_grad()
    return one


def _result(one: Entry, first: Entry, mode: str, dtype: str, peak: float, config: BenchConfig) -> dict[str, Any]:
    speeds = one.images_per_second
    low, median, high = np.quantile(speeds, (0.25, 0.5, 0.75)).tolist()
    ratios = [mine / theirs for mine, theirs in zip(speeds, first.images_per_second, strict=True)]
    macs = count_macs(one.model, one.input_size, training=mode == "train")
    return {
        "model": str(one.spec),
        "mode": mode,
        "dtype": dtype,
        "batch_size": config.batch_size,
        "input_size": list(one.input_size),
        "fused_attn": "on" if one.fused_attn else "off",
        "fused_attn_trial_images_per_second": one.trial,
        "params": count_params(one.model),
        "macs_per_image": macs,
        "images_per_second": {"median": median, "q25": low, "q75": high, "rounds": speeds},
        "steps_per_round": one.steps,
        "ratio_to_first": {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)},
        "peak_memory_bytes": one.peak_bytes,
        "achieved_flops_per_second": 2 * macs * median,
        "matmul_peak_flops_per_second": peak,
        "share_of_matmul_peak": 2 * macs * median / peak,
    }


HEADINGS = ("model", "images/s", "25-75 %", "ratio", "min-max", "memory\nMiB", "MAC\nG", "fraction\nof peak", "fused")


def print_terminal(result: dict[str, Any], console) -> None:
    """Prints the result of `bench`: one table per mode and dtype, and under it what it was measured on."""
    config, machine = result["config"], result["machine"]
    for mode, dtype in dict.fromkeys((row["mode"], row["dtype"]) for row in result["results"]):
        rows = [row for row in result["results"] if (row["mode"], row["dtype"]) == (mode, dtype)]
        what = "inference" if mode == "infer" else f"training step ({config['optimizer']})"
        precision = "bfloat16 autocast" if dtype == "bfloat16" else dtype
        title = f"{what}, {precision}, batch {config['batch_size']}"
        console.print(title, style="bold", highlight=False, soft_wrap=True)
        print_table(console, HEADINGS, map(_texts, rows))
        peak = f"{rows[0]['matmul_peak_flops_per_second'] / 1e9:.4g} GFLOP/s"
        console.print(f"matmul peak in this run: {peak} ({dtype}); 1 MAC = 2 FLOP", style="dim", soft_wrap=True)
        console.print()
    versions = ", ".join(f"{name} {machine[name]}" for name in ("vitgraft", "torch", "timm", "python"))
    for line in (
        f"{machine['device']} ({machine['device_name']}), {machine['threads']} of {machine['cpu_count']} CPU threads, "
        f"{'torch.compile' if config['compile'] else 'eager'}, {config['rounds']} rounds, the models in turn",
        f"{versions}, {machine['platform']}, float32 matmul precision {machine['float32_matmul_precision']}",
        f"fused: timm's set_fused_attn, experimental paths included where on; set to {config['fused_attn']}",
        f"memory: {result['memory']}",
    ):
        console.print(line, style="dim", highlight=False, soft_wrap=True, markup=False)


def _texts(row: dict[str, Any]) -> list[str]:
    speed, ratio, memory = row["images_per_second"], row["ratio_to_first"], row["peak_memory_bytes"]
    return [
        row["model"],
        f"{speed['median']:.4g}",
        f"{speed['q25']:.4g}-{speed['q75']:.4g}",
        f"{ratio['median']:.3f}",
        f"{ratio['min']:.3f}-{ratio['max']:.3f}",
        "-" if memory is None else f"{memory / 2**20:.0f}",
        f"{row['macs_per_image'] / 1e9:.3f}",
        f"{row['share_of_matmul_peak']:.0%}",
        row["fused_attn"],
    ]


@contextlib.contextmanager
def fused_attention(on: bool) -> Iterator[None]:
    """timm's switch for fused attention, for models made or run inside; "on" includes its experimental paths."""
    from timm.layers import config, set_fused_attn

    usual = config.use_fused_attn(), config.use_fused_attn(experimental=True)
    set_fused_attn(on, experimental=on)
    try:
        yield
    finally:
        set_fused_attn(usual[0], experimental=usual[1])


def _tensor_bytes(model: nn.Module, optimizer: torch.optim.Optimizer | None) -> int:
    tensors = [*model.parameters(), *model.buffers()]
    for state in optimizer.state.values() if optimizer is not None else ():
        tensors += [value for value in state.values() if isinstance(value, torch.Tensor)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
