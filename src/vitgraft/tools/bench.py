"""`vitgraft bench`: how fast models are side by side, on this machine, in this run.

Every model is timed in every way of running it that was asked for, and in both of timm's attention settings. All take
turns: each round times every one once (A B C A B C ...), so that a machine that slows down or is shared slows all of
them, and a ratio is the median of the ratios *within* a round. Of the attention settings the faster one is reported, so
that the model that others are compared with is always in its best one.

CPU time is measured beside wall time. With one thread on a CPU it is what counts, since other processes change it
least; with several threads (which wait for each other) and on a GPU wall time counts.

"infer" is a forward pass in eval mode without gradients; "train" a whole step: forward pass, cross entropy, backward
pass, optimizer (fused). Images are random: loading is not measured.
"""

import contextlib
import functools
import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from vitgraft.errors import CommandError
from vitgraft.machine import gpu_kernels, matmul_rate, peak_bytes, record, timed
from vitgraft.models.frozen import freeze
from vitgraft.models.spec import ModelSpec, input_size_of
from vitgraft.options import Count, Positive, type_errors
from vitgraft.terminal import print_table
from vitgraft.tools.count import count_macs, count_params
from vitgraft.weights.create import create_at

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "bfloat16-weights": torch.bfloat16}
OPTIMIZERS = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}
FOR_INFERENCE = ("compile-frozen", "freeze")

MEMORY_NOTE = (
    "weights and optimizer state plus the most that PyTorch's allocator handed out during a step; what libraries "
    "allocate by themselves (oneDNN's scratch) is not seen"
)


@dataclass(frozen=True)
class BenchConfig:
    """How to measure.

    Args:
        device: "cpu", "cuda" or "cuda:N".
        dtypes: "bfloat16" is autocast over float32 weights, "bfloat16-weights" a model and images in bfloat16.
        modes: Forward passes, or training steps.
        runs: How the models are run: "eager", "compile" (torch.compile), or, in inference alone, "compile-frozen"
            (torch.compile with the weights as constants, which it may lay out anew) and "freeze" (`vitgraft.freeze`).
        compile_mode: torch.compile's.
        batch_size: Images per step.
        img_sizes: Sides of the square images; empty takes each model's own size.
        channels_last: Whether models and images are in channels_last memory.
        rounds: How often each model is timed.
        round_seconds: Approximate length of one timing; a fast model takes more steps for it.
        fused_attn: timm's switch for fused attention while the models are made and run: "on" includes paths that
            timm calls experimental (Swin's), "off" is attention written out, "fastest" measures both in every round
            and reports the faster one.
        optimizer: Of the training step, PyTorch's fused one.
        memory: Whether to measure the peak memory, which takes one more step per model.

    Raises:
        CommandError: Naming all options with values that are not possible.
    """

    device: str = "cpu"
    dtypes: Sequence[Literal["float32", "bfloat16", "bfloat16-weights"]] = ("float32",)
    modes: Sequence[Literal["infer", "train"]] = ("infer",)
    runs: Sequence[Literal["eager", "compile", "compile-frozen", "freeze"]] = ("eager",)
    compile_mode: Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"] = "default"
    batch_size: Count = 16
    img_sizes: Sequence[Count] = ()
    channels_last: bool = False
    rounds: Count = 10
    round_seconds: Positive = 1.0
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
        frozen = [run for run in self.runs if run in FOR_INFERENCE]
        if frozen and "train" in self.modes:
            errors.append(f"runs={frozen[0]!r} is for inference: leave out modes='train', or measure it by itself")
        if errors:
            raise CommandError("bench: " + "; ".join(errors))

    @property
    def fused_settings(self) -> tuple[bool, ...]:
        """The attention settings that are measured."""
        return {"on": (True,), "off": (False,), "fastest": (True, False)}[self.fused_attn]

    @property
    def clock(self) -> Literal["cpu", "wall"]:
        """The time that counts."""
        return "cpu" if torch.device(self.device).type == "cpu" and torch.get_num_threads() == 1 else "wall"


@dataclass
class Entry:
    """A model that is ready to be timed: `step()` is one inference or training step on its batch."""

    spec: ModelSpec
    run: str
    fused_attn: bool
    model: nn.Module
    step: Callable[[], object]
    input_size: tuple[int, int, int]
    img_size: int | None
    first_step_seconds: float
    peak_bytes: int | None = None
    kernels: dict[str, int] | None = None
    steps: int = 1
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def time(self, device: torch.device) -> None:
        """Adds seconds a step, wall and CPU time, of one round."""
        with fused_attention(self.fused_attn):
            start = time.process_time()
            self.wall.append(timed(self.step, self.steps, device) / self.steps)
            self.cpu.append((time.process_time() - start) / self.steps)


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
    makes = {size: make or functools.partial(_whole_model, img_size=size) for size in config.img_sizes or (None,)}
    for one in makes.values():  # all names and options are checked before the first minute is spent
        for spec in parsed:
            one(spec)
    device = torch.device(config.device)
    results = []
    for mode in config.modes:
        for dtype in config.dtypes:
            rows = [
                row
                for size, one in makes.items()
                for row in _compare(parsed, one, size, mode, dtype, device, config, report)
            ]
            _add_exponents(rows)
            results += rows
    memory = MEMORY_NOTE if config.memory else "not measured"
    return record("bench", device, config=asdict(config), clock=config.clock, memory=memory, results=results)


def _whole_model(spec: ModelSpec, img_size: int | None) -> tuple[nn.Module, tuple[int, int, int]]:
    model = create_at(spec, img_size)
    return model, input_size_of(model, img_size)


def total_reports(models: int, config: BenchConfig) -> int:
    """How often `bench` calls `report`."""
    tables = len(config.modes) * len(config.dtypes) * max(1, len(config.img_sizes))
    return tables * models * len(config.runs) * len(config.fused_settings) * (1 + config.rounds)


def _compare(
    specs: Sequence[ModelSpec],
    make: Make,
    img_size: int | None,
    mode: str,
    dtype: str,
    device: torch.device,
    config: BenchConfig,
    report: Callable[[str], None],
) -> list[dict[str, Any]]:
    what = f"{mode} {dtype}" + (f" {img_size}" if img_size else "")
    entries = []
    for spec in specs:
        for run in config.runs:
            for fused in config.fused_settings:
                report(f"{what}: preparing {spec}, {run}")
                entries.append(_entry(spec, make, img_size, run, fused, mode, dtype, device, config))
    for one in entries:
        with fused_attention(one.fused_attn), _compiling(one.run):
            one.step()  # models of one class share compiled code, of which some is compiled again when another is made
    peak = matmul_rate(device, DTYPES[dtype])
    for number in range(config.rounds):
        for one in entries:
            report(f"{what}: round {number + 1} of {config.rounds}, {one.spec}, {one.run}")
            one.time(device)
        # the best of the run is the peak: what it is compared with may have had a quieter moment
        peak = max(peak, matmul_rate(device, DTYPES[dtype]))

    def fastest(candidates: list[Entry]) -> Entry:
        return min(candidates, key=lambda one: statistics.median(getattr(one, config.clock)))

    def settings(spec: ModelSpec, run: str) -> list[Entry]:
        return [one for one in entries if one.spec is spec and one.run == run]

    firsts = {run: fastest(settings(specs[0], run)) for run in config.runs}
    best = fastest(list(firsts.values()))
    return [
        _result(settings(spec, run), fastest(settings(spec, run)), firsts[run], best, mode, dtype, peak, config)
        for spec in specs
        for run in config.runs
    ]


@contextlib.contextmanager
def _compiling(run: str) -> Iterator[None]:
    """Settings of torch.compile for the calls in which it compiles."""
    if not run.startswith("compile"):
        yield
        return
    from torch._dynamo import config as dynamo
    from torch._inductor import config as inductor

    # models of one class share their code, of which by default few are compiled
    with dynamo.patch(recompile_limit=1000), inductor.patch(freezing=run == "compile-frozen"):
        yield


def _entry(
    spec: ModelSpec,
    make: Make,
    img_size: int | None,
    run: str,
    fused: bool,
    mode: str,
    dtype: str,
    device: torch.device,
    config: BenchConfig,
) -> Entry:
    """A model that has made its first steps."""
    _free(device)
    with fused_attention(fused):
        model, input_size = make(spec)
        layout = {"memory_format": torch.channels_last} if config.channels_last else {}
        model = model.to(device, DTYPES[dtype] if dtype == "bfloat16-weights" else torch.float32, **layout)
        images = torch.randn(config.batch_size, *input_size, device=device)
        images = images.to(next(model.parameters()).dtype, **layout)
        with torch.no_grad():
            classes = model.eval()(images[:1]).shape[-1] if mode == "train" else 0
        model.train(mode == "train")
        forward = model
        if run == "freeze":
            forward = freeze(model)
        elif run != "eager":
            # not of free sizes, which torch.compile would take those of another model's images for
            forward = torch.compile(model, mode=config.compile_mode, dynamic=False)
        autocast = torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16")
        optimizer = None

        def infer() -> None:
            with torch.no_grad(), autocast:
                forward(images)

        def update() -> None:
            with autocast:
                loss = F.cross_entropy(forward(images), labels)
            loss.backward()
            optimizer.step()

        def train() -> None:
            update()
            optimizer.zero_grad()

        step = infer
        if mode == "train":
            step = train
            labels = torch.randint(classes, (config.batch_size,), device=device)
            optimizer = OPTIMIZERS[config.optimizer](model.parameters(), lr=1e-5, fused=True)
        with _compiling(run):
            first = timed(step, 1, device)  # compiles, and makes the optimizer's state
        one = Entry(spec, run, fused, model, step, input_size, img_size, first)
        if config.memory:
            # without the release of the gradients, which the profiler would see as memory of unknown size
            held = _tensor_bytes(model, optimizer)
            one.peak_bytes = held + peak_bytes(update if mode == "train" else infer, device)
            model.zero_grad()
        if device.type == "cuda":
            one.kernels = gpu_kernels(step, device)
        if first < config.round_seconds or run != "eager":  # a longer step is warm after the first
            first = min(timed(step, 1, device) for _ in range(2))
        one.steps = max(1, round(config.round_seconds / first))
    return one


def _ratios(mine: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """Of the speeds, by the seconds of each round."""
    ratios = [other / own for own, other in zip(mine, theirs, strict=True)]
    return {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}


def _result(
    settings: Sequence[Entry],
    one: Entry,
    first: Entry,
    best: Entry,
    mode: str,
    dtype: str,
    peak: float,
    config: BenchConfig,
) -> dict[str, Any]:
    speeds = [config.batch_size / seconds for seconds in one.wall]
    low, median, high = np.quantile(speeds, (0.25, 0.5, 0.75)).tolist()
    macs = count_macs(one.model, one.input_size, training=mode == "train")
    seconds = statistics.median(getattr(one, config.clock)) / config.batch_size
    return {
        "model": str(one.spec),
        "mode": mode,
        "dtype": dtype,
        "run": one.run,
        "batch_size": config.batch_size,
        "img_size": one.img_size,
        "input_size": list(one.input_size),
        "fused_attn": "on" if one.fused_attn else "off",
        "seconds_by_fused_attn": {
            "on" if other.fused_attn else "off": statistics.median(getattr(other, config.clock)) for other in settings
        },
        "params": count_params(one.model),
        "macs_per_image": macs,
        "images_per_second": {"median": median, "q25": low, "q75": high, "rounds": speeds},
        "cpu_seconds_per_image": [cpu / config.batch_size for cpu in one.cpu],
        "seconds_per_image": seconds,
        "first_step_seconds": one.first_step_seconds,
        "steps_per_round": one.steps,
        "ratio_to_first": _ratios(one.wall, first.wall),
        "cpu_ratio_to_first": _ratios(one.cpu, first.cpu),
        "ratio_to_best_of_first": _ratios(getattr(one, config.clock), getattr(best, config.clock)),
        "peak_memory_bytes": one.peak_bytes,
        "gpu_kernels": one.kernels,
        "achieved_flops_per_second": 2 * macs / seconds,
        "matmul_peak_flops_per_second": peak,
        "share_of_matmul_peak": 2 * macs / seconds / peak,
    }


def _add_exponents(rows: Sequence[dict[str, Any]]) -> None:
    """Adds p of time ~ pixels^p, from each image size to the next larger one and over all sizes, to each result."""
    for row in rows:
        same = [other for other in rows if (other["model"], other["run"]) == (row["model"], row["run"])]
        same.sort(key=lambda other: math.prod(other["input_size"]))
        before = same[: same.index(row)]
        row["exponent_from_previous"] = _exponent(before[-1], row) if before else None
        row["exponent_from_smallest"] = _exponent(before[0], row) if before else None


def _exponent(small: dict[str, Any], large: dict[str, Any]) -> float:
    pixels = math.prod(large["input_size"]) / math.prod(small["input_size"])
    return math.log(large["seconds_per_image"] / small["seconds_per_image"]) / math.log(pixels) if pixels > 1 else 0.0


HEADINGS = (
    "model", "run", "side", "images/s", "25-75 %", "CPU ms\n/image", "ratio\nwall", "ratio\nCPU",
    "to first's\nbest run", "memory\nMiB", "fraction\nof peak", "exponent", "fused",
)  # fmt: skip


def print_terminal(result: dict[str, Any], console) -> None:
    """Prints the result of `bench`: one table per mode and dtype, and under it what it was measured on."""
    config, machine = result["config"], result["machine"]
    for mode, dtype in dict.fromkeys((row["mode"], row["dtype"]) for row in result["results"]):
        rows = [row for row in result["results"] if (row["mode"], row["dtype"]) == (mode, dtype)]
        what = "inference" if mode == "infer" else f"training step ({config['optimizer']})"
        precision = {"bfloat16": "bfloat16 autocast", "bfloat16-weights": "bfloat16 weights"}.get(dtype, dtype)
        title = f"{what}, {precision}, batch {config['batch_size']}"
        console.print(title, style="bold", highlight=False, soft_wrap=True)
        texts = [_texts(row) for row in rows]
        shown = [i for i, name in enumerate(HEADINGS) if i < 4 or len({row[i] for row in texts} - {"-", "1.000"})]
        print_table(console, [HEADINGS[i] for i in shown], ([row[i] for i in shown] for row in texts), left=(0, 1))
        peak = f"{rows[0]['matmul_peak_flops_per_second'] / 1e9:.4g} GFLOP/s"
        console.print(f"matmul peak in this run: {peak} ({dtype}); 1 MAC = 2 FLOP", style="dim", soft_wrap=True)
        console.print()
    versions = ", ".join(f"{name} {machine[name]}" for name in ("vitgraft", "torch", "timm", "python"))
    allocator = ", ".join(f"{name}={value}" for name, value in machine["allocator"].items()) or "PyTorch's defaults"
    for line in (
        f"{machine['device']} ({machine['device_name']}), {machine['threads']} of {machine['cpu_count']} CPU threads, "
        f"{', '.join(config['runs'])}, {config['rounds']} rounds, all in turn; {result['clock']} time counts",
        f"{versions}, {machine['platform']}, float32 matmul precision {machine['float32_matmul_precision']}",
        f"load {machine['load_average']}; allocator: {allocator}",
        f"fused: timm's set_fused_attn, experimental paths included where on; set to {config['fused_attn']}",
        "ratio: speed as a multiple of the first model's in the same run; best run: its fastest one here",
        f"memory: {result['memory']}",
    ):
        console.print(line, style="dim", highlight=False, soft_wrap=True, markup=False)


def _texts(row: dict[str, Any]) -> list[str]:
    speed, memory, exponent = row["images_per_second"], row["peak_memory_bytes"], row["exponent_from_previous"]
    return [
        row["model"],
        row["run"],
        f"{row['input_size'][1]}",
        f"{speed['median']:.4g}",
        f"{speed['q25']:.4g}-{speed['q75']:.4g}",
        f"{1e3 * statistics.median(row['cpu_seconds_per_image']):.4g}",
        *(f"{row[name]['median']:.3f}" for name in ("ratio_to_first", "cpu_ratio_to_first", "ratio_to_best_of_first")),
        "-" if memory is None else f"{memory / 2**20:.0f}",
        f"{row['share_of_matmul_peak']:.0%}",
        "-" if exponent is None else f"{exponent:.2f}",
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
