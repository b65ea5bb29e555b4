"""`python -m benchmarks.gpu --output DIR`: what docs/speed.md has to know from a GPU, in calls of at most ten minutes.

    PYTHONPATH=src python -m benchmarks.gpu --output results/gpu    # what is missing there, for nine minutes
    PYTHONPATH=src python -m benchmarks.gpu --output results/gpu --only profile_deit_tiny infer_deit_tiny
    PYTHONPATH=src python -m benchmarks.gpu --output /tmp/gpu --device cpu    # every part on micro models: does it run?
    python -m benchmarks.speed --page                               # then the page, from the files

From a clone, without installation. Each part of the plan runs in a process of its own and writes one file when it is
done; a further call measures what is missing, so a file that is deleted is measured again. A part begins only if it
probably ends within the time, and is stopped where it does not.

Speeds are those of `vitgraft bench`: models in turns, wall time. float32 is measured with TF32 products.
"""

import argparse
import functools
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

try:
    import torch
    from torch import nn
    from torch.profiler import ProfilerActivity, profile, record_function

    import vitgraft  # noqa: F401  registers the models
    from vitgraft.machine import record, synchronize
    from vitgraft.models.spec import ModelSpec, input_size_of
    from vitgraft.terminal import write_json
    from vitgraft.tools.bench import DTYPES, BenchConfig, bench, fused_attention
    from vitgraft.weights.create import create_at
except ModuleNotFoundError as error:
    needed = "torch, torchvision, timm (1.0.29 or later), filelock and pydantic, and of a clone PYTHONPATH=src"
    raise SystemExit(f"benchmarks.gpu: {error}. It needs {needed}") from None

__all__ = ["PAIRS", "PLAN", "measure", "profile_model"]

ROOT = Path(__file__).resolve().parent.parent
PAIRS = {
    "deit_tiny": ("deit_tiny_patch16_224", "graft_deit_tiny_patch16_224"),
    "swin_tiny": ("swin_tiny_patch4_window7_224", "graft_swin_tiny_patch4_window7_224"),
}
BATCHES = (1, 8, 64, 256)
SIZES = (224, 448, 896, 1792)


@dataclass(frozen=True)
class Scale:
    """How large models, images and times are.

    Args:
        pairs: Plain and grafted model of each pair.
        shrink: What 224 and other sizes of images are divided by.
        largest_batch: Larger ones become this one.
        rounds: Of `vitgraft bench`.
        round_seconds: Of `vitgraft bench`.
        part_seconds: Of a part; None takes the plan's.
    """

    pairs: Mapping[str, tuple[str, str]]
    shrink: int = 1
    largest_batch: int = 256
    rounds: int = 9
    round_seconds: float = 0.05
    part_seconds: float | None = None

    def batches(self, batches: Sequence[int]) -> list[int]:
        """Images of a step."""
        return list(dict.fromkeys(min(batch, self.largest_batch) for batch in batches))

    def sizes(self, sizes: Sequence[int]) -> list[int]:
        """Sides of images."""
        return list(dict.fromkeys(max(32, size // self.shrink // 32 * 32) for size in sizes))


_DEIT = "deit_tiny_patch16_224:patch_size=4:depth=2:embed_dim=48:num_heads=3"
_SWIN = "swin_tiny_patch4_window7_224:embed_dim=24:depths=[2,1]:num_heads=[1,2]:window_size=4"
SCALES = {
    "cuda": Scale(PAIRS),
    "cpu": Scale(
        {"deit_tiny": (_DEIT, f"graft_{_DEIT}:graft.window_size=4"), "swin_tiny": (_SWIN, f"graft_{_SWIN}")},
        shrink=7,
        largest_batch=2,
        rounds=1,
        round_seconds=0.001,
        part_seconds=20,
    ),
}


@dataclass(frozen=True)
class Part:
    """A part of the plan.

    Args:
        seconds: About how long it takes on a GPU: a guess, until a file has its `seconds`.
        measure: Gives what the file holds beside the record of the machine.
    """

    seconds: float
    measure: Callable[[Scale, str], dict[str, Any]]


def _bench(
    pair: str, scale: Scale, device: str, batches: Sequence[int] = (64,), sizes: Sequence[int] = (224,), **options: Any
) -> dict[str, Any]:
    """Records of `vitgraft bench`, one for each batch size."""
    options = {"rounds": scale.rounds, **options}
    if "compile" in options.get("runs", ()):
        # two attention settings would mean twice the graphs, each of which takes up to a minute
        options["fused_attn"] = "on"
    tables = []
    for batch in scale.batches(batches):
        config = BenchConfig(
            device=device,
            batch_size=batch,
            img_sizes=scale.sizes(sizes),
            round_seconds=scale.round_seconds,
            **options,
        )
        tables.append(bench(scale.pairs[pair], config))
        print_table(tables[-1])
    return {"tables": tables}


def print_table(table: Mapping[str, Any]) -> None:
    """Prints the rows of a record of `vitgraft bench`, one line each."""
    for row in table["results"]:
        ratio, speed = row["ratio_to_first"], row["images_per_second"]["median"]
        kernels = "" if row["gpu_kernels"] is None else f", {row['gpu_kernels']['launches']} launches"
        print(
            f"  {row['mode']} {row['dtype']} {row['run']} batch {row['batch_size']} side {row['input_size'][1]}: "
            f"{speed:,.0f} images/s, ratio {ratio['median']:.3f} ({ratio['min']:.3f} to {ratio['max']:.3f}), "
            f"fused {row['fused_attn']}{kernels}, first step {row['first_step_seconds']:.1f} s: {row['model'][:40]}",
            flush=True,
        )


# part of a model (the first pattern that its name matches) -> what its own operators are counted as
ROLES = (
    (r"^patch_embed|downsample", "patches"),
    (r"(^|\.)(qkv|proj|fc\d?|reduction|head)$", "linear layers"),
    (r"\.graft\.levels\.\d+\.down$", "graft: down (LayerNorm, GELU, pooling)"),
    (r"\.graft\.levels\.\d+\.up$", "graft: up (LayerNorm, GELU, gate, interpolation)"),
    (r"\.graft\.levels\.\d+\.attn$", "graft: attention without its linear layers"),
    (r"\.graft\.levels\.\d+\.norm$", "graft: norm"),
    (r"\.graft$", "graft: additions"),
    (r"\.(norm1|norm2)$", r"\1"),
    (r"\.attn$", "attention without its linear layers"),
    (r"\.mlp$", "MLP without its linear layers"),
    (r"blocks\.\d+$", "block: additions and partitions"),
)
PREFIX = "vitgraft role: "
REST = "rest"


def _role(name: str) -> str | None:
    """What the operators of a module are counted as; None: as those of the module around it."""
    for pattern, role in ROLES:
        found = re.search(pattern, name)
        if found:
            return found.expand(role)
    return None


def _mark_roles(model: nn.Module) -> list[Any]:
    """Hooks that surround what has a role with a range of the profiler; their handles."""
    handles = []
    for name, module in model.named_modules():
        role = _role(name)
        if role is None:
            continue
        ranges: list[record_function] = []

        def begin(_module, _args, ranges=ranges, role=role):
            ranges.append(record_function(PREFIX + role))
            ranges[-1].__enter__()

        def end(_module, _args, _output, ranges=ranges):
            ranges.pop().__exit__(None, None, None)

        handles += [module.register_forward_pre_hook(begin), module.register_forward_hook(end)]
    return handles


def _own_times(profiler: profile, device: torch.device) -> Iterator[tuple[str, str, float]]:
    """(kernel on a GPU, operator on a CPU; role; microseconds)."""
    for event in profiler.events():
        if event.device_type != torch.autograd.DeviceType.CPU:
            continue
        above = event
        while above is not None and not above.name.startswith(PREFIX):
            above = above.cpu_parent
        role = REST if above is None else above.name.removeprefix(PREFIX)
        if device.type == "cuda":
            # the ranges themselves are drawn on the GPU's time line too
            kernels = [kernel for kernel in event.kernels if not kernel.name.startswith(PREFIX)]
            yield from ((kernel.name, role, kernel.duration) for kernel in kernels)
        else:
            yield "hooks" if event.name.startswith(PREFIX) else event.name, role, event.self_cpu_time_total


def profile_model(spec: str, img_size: int, batch: int, dtype: str, device: torch.device, steps: int = 3) -> dict:
    """Where the time of a forward pass goes.

    Args:
        spec: The model.
        img_size: Side of its images.
        batch: How many.
        dtype: Of `vitgraft bench`.
        device: Where.
        steps: How many passes are profiled.

    Returns:
        JSON values; "microseconds" are those of one pass: of kernels on a GPU, of operators on a CPU.
    """
    with fused_attention(True):
        model = create_at(ModelSpec.parse(spec), img_size).to(device, DTYPES[dtype]).eval()
    images = torch.randn(batch, *input_size_of(model, img_size), device=device, dtype=DTYPES[dtype])
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
    with torch.no_grad(), fused_attention(True):
        for _ in range(3):
            model(images)
        handles = _mark_roles(model)
        model(images)
        synchronize(device)
        with profile(activities=activities) as profiler:
            for _ in range(steps):
                model(images)
            synchronize(device)
        for handle in handles:
            handle.remove()
    times, calls = Counter(), Counter()
    for kernel, role, microseconds in _own_times(profiler, device):
        times[kernel, role] += microseconds / steps
        calls[kernel, role] += 1 / steps
    roles = Counter()
    for (_, role), microseconds in times.items():
        roles[role] += microseconds
    return {
        "model": spec,
        "batch_size": batch,
        "img_size": img_size,
        "dtype": dtype,
        "microseconds": sum(roles.values()),
        "by_role": dict(roles.most_common()),
        "by_kernel": [
            {"kernel": kernel[:160], "role": role, "microseconds": microseconds, "calls": calls[kernel, role]}
            for (kernel, role), microseconds in times.most_common(200)
        ],
    }


def _profile(pair: str, scale: Scale, device: str) -> dict[str, Any]:
    profiles = []
    for dtype in ("bfloat16-weights", "float32"):
        for spec in scale.pairs[pair]:
            (size,), (batch,) = scale.sizes((224,)), scale.batches((64,))
            profiles.append(profile_model(spec, size, batch, dtype, torch.device(device)))
            print(f"  {spec[:40]} {dtype}: {profiles[-1]['microseconds'] / 1e3:.2f} ms in kernels", flush=True)
            for role, microseconds in profiles[-1]["by_role"].items():
                print(f"    {microseconds / 1e3:8.2f} ms  {role}", flush=True)
    return {"profiles": profiles}


def _kernel(name: str, _scale: Scale, device: str) -> dict[str, Any]:
    # imported here, since Triton's interpreter is chosen when Triton is imported
    from benchmarks import kernels

    return kernels.measure(device, [name])


def _plan() -> Iterator[tuple[str, Part]]:
    """Name of a file -> its part, the most wanted first."""
    both = ("float32", "bfloat16-weights")
    compiled = {"runs": ("eager", "compile"), "memory": False}

    def parts(name: str, seconds: Mapping[str, float], measure: Callable, **options: Any) -> Iterator[tuple[str, Part]]:
        for pair in PAIRS:
            yield name.format(pair), Part(seconds[pair], functools.partial(measure, pair, **options))

    def each(deit: float, swin: float) -> dict[str, float]:
        return {"deit_tiny": deit, "swin_tiny": swin}

    yield from parts("profile_{}", each(20, 25), _profile)
    yield from parts("infer_{}", each(60, 80), _bench, batches=BATCHES, dtypes=both, memory=False)
    yield from parts("train_{}", each(25, 30), _bench, modes=("train",), dtypes=("float32", "bfloat16"))
    yield from parts("compiled_{}_bf16", each(60, 100), _bench, dtypes=("bfloat16-weights",), **compiled)
    # compiling them takes longer than running them
    for name in ("norm_and_pool", "upsample_add_norm", "window_attention"):
        yield f"kernel_{name}", Part(60, functools.partial(_kernel, name))
    graphs = {"compile_mode": "reduce-overhead", **compiled}
    yield from parts(
        "cuda_graphs_{}_bf16", each(60, 90), _bench, batches=(1, 64), dtypes=("bfloat16-weights",), **graphs
    )
    options = {"fused_attn": "on", "memory": False, "rounds": 3}
    yield from parts("growth_{}", each(30, 40), _bench, batches=(8,), sizes=SIZES, dtypes=both, **options)
    options = {"modes": ("train",), "dtypes": ("float32", "bfloat16"), "rounds": 1}
    yield from parts("memory_{}", each(15, 20), _bench, batches=(8,), sizes=(1024,), **options)
    yield from parts("compiled_{}_fp32", each(60, 100), _bench, dtypes=("float32",), **compiled)
    yield from parts(
        "train_{}_compiled_bf16", each(90, 160), _bench, modes=("train",), dtypes=("bfloat16",), **compiled
    )
    yield from parts("cuda_graphs_{}_fp32", each(60, 90), _bench, batches=(1, 64), dtypes=("float32",), **graphs)
    options = {"compile_mode": "max-autotune-no-cudagraphs", **compiled}
    yield from parts("autotuned_{}_bf16", each(150, 240), _bench, dtypes=("bfloat16-weights",), **options)


PLAN = dict(_plan())


def measure(name: str, device: str, folder: Path) -> None:
    """Measures one part of the plan, in this process.

    Args:
        name: Of the file, without its ending.
        device: "cuda", or "cpu" for micro models.
        folder: Where the file is written.
    """
    torch.set_float32_matmul_precision("high")  # TF32
    start = time.monotonic()
    found = PLAN[name].measure(SCALES[device], device)
    seconds = round(time.monotonic() - start, 1)
    command = f"python -m benchmarks.gpu --only {name} --device {device}"
    write_json(folder / f"{name}.json", {"command": command, "seconds": seconds, **record("gpu", device, **found)})


def run(command: Sequence[str], seconds: float) -> str:
    """Runs a command in the clone: "done", "failed" or "out of time"; the latter ends it and what it has started.

    Args:
        command: The command.
        seconds: The most that it may take.
    """
    path = [str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = {"KINETO_LOG_LEVEL": "6", **os.environ, "PYTHONPATH": os.pathsep.join(path)}  # the profiler's own lines
    if not torch.cuda.is_available():
        env["TRITON_INTERPRET"] = "1"
    process = subprocess.Popen(command, cwd=ROOT, env=env, start_new_session=True)
    try:
        return "failed" if process.wait(seconds) else "done"
    except subprocess.TimeoutExpired:
        return "out of time"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def work(names: Sequence[str], device: str, folder: Path, minutes: float) -> dict[str, str]:
    """Measures what is missing of some parts, within a time.

    Args:
        names: Of the parts.
        device: "cuda" or "cpu".
        folder: Of the files.
        minutes: The time.

    Returns:
        Part -> "done", "failed", "out of time" or "not begun", of those that were missing.
    """
    end = time.monotonic() + 60 * minutes
    found = {}
    for name in names:
        if (folder / f"{name}.json").exists():
            continue
        left, needs = end - time.monotonic(), SCALES[device].part_seconds or PLAN[name].seconds
        if left < needs:
            found[name] = "not begun"
            continue
        print(f"{name}: {left:.0f} s left, takes about {needs:.0f}", flush=True)
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.gpu", "--part", name]
        found[name] = run([*command, "--device", device, "--output", str(folder.resolve())], left)
        print(f"{name}: {found[name]}", flush=True)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """The command line: 0 if nothing failed, 1 if a part did, 2 if an argument is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--output", type=Path, required=True, metavar="DIR", help="where the files are and are written")
    add("--only", nargs="+", default=list(PLAN), metavar="NAME", help=f"parts: {', '.join(PLAN)}")
    add("--minutes", type=float, default=9, help="the time of this call (default: 9)")
    add("--device", choices=SCALES, default="cuda", help="cpu: micro models, to see that every part runs")
    add("--part", choices=PLAN, help=argparse.SUPPRESS)  # in a process of its own
    args = parser.parse_args(argv)
    if unknown := [name for name in args.only if name not in PLAN]:
        parser.error(f"--only {unknown[0]}: there are {', '.join(PLAN)}")
    if args.minutes <= 0:
        parser.error(f"--minutes {args.minutes:g}: should be above 0, and 9 where a call may take ten")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch finds no GPU here; --device cpu shows that the script runs")
    if args.part:
        measure(args.part, args.device, args.output)
        return 0
    args.output.mkdir(parents=True, exist_ok=True)
    found = work(args.only, args.device, args.output, args.minutes)
    for outcome in ("done", "failed", "out of time", "not begun"):
        names = [name for name, how in found.items() if how == outcome]
        if names:
            print(f"{outcome}: {' '.join(names)}")
    if any(how in ("out of time", "not begun") for how in found.values()):
        print("the same command measures what is missing")
    return int("failed" in found.values())


if __name__ == "__main__":
    raise SystemExit(main())
