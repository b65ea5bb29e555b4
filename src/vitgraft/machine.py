"""What a speed was measured on and with: device names, versions, the peak of matrix products, memory."""

import functools
import json
import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from vitgraft._version import __version__


def device_name(device: torch.device) -> str:
    """The product name of a GPU, or of the CPU as the operating system gives it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    except OSError:  # not Linux
        names = []
    return names[0] if names else (platform.processor() or platform.machine())


def _allocator() -> dict[str, str]:
    """Environment variables that set how memory is allocated; of libraries that are loaded first, the file names."""
    names = [n for n in os.environ if n.startswith(("MALLOC_", "PYTORCH_CUDA_ALLOC", "PYTORCH_ALLOC", "TCMALLOC_"))]
    found = {name: os.environ[name] for name in sorted(names)}
    preloaded = [Path(path).name for path in os.environ.get("LD_PRELOAD", "").replace(":", " ").split()]
    return found | ({"LD_PRELOAD": " ".join(preloaded)} if preloaded else {})


def describe(device: torch.device) -> dict[str, Any]:
    """Hardware, load, versions and the global settings that change the speed."""
    import timm

    return {
        "device": str(device),
        "device_name": device_name(device),
        "cpu_count": os.cpu_count() or 0,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "allocator": _allocator(),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "cuda": torch.version.cuda or "" if device.type == "cuda" else "",
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "platform": platform.platform(terse=True),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "vitgraft": __version__,
    }


def record(kind: str, device: torch.device | str, **values: Any) -> dict[str, Any]:
    """A measurement as a file in `results/` holds it: its kind, the date, the machine and the values."""
    date = datetime.now(UTC).isoformat(timespec="seconds")
    return {"kind": kind, "date": date, "machine": describe(torch.device(device)), **values}


def source_commit() -> str | None:
    """The commit of the clone that this package runs from, with "+" where files differ from it; None elsewhere."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        run = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10)
        run.check_returncode()
        return run.stdout.strip()

    try:
        if not git("ls-files", Path(__file__).name):  # a package inside somebody else's clone
            return None
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "-uno", "--", ".") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def synchronize(device: torch.device) -> None:
    """Waits until the device has done all that was queued; a CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(
    function: Callable[[], object], times: int, device: torch.device, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Seconds that `times` calls take, from idle device to idle device.

    Args:
        function: What is called.
        times: How often.
        device: What it runs on.
        clock: Seconds; `time.process_time` for CPU time.
    """
    synchronize(device)
    start = clock()
    for _ in range(times):
        function()
    synchronize(device)
    return clock() - start


def gpu_kernels(step: Callable[[], object], device: torch.device) -> dict[str, int]:
    """What a step does on a CUDA GPU: "kernels" that run there, copies included, and "launches" by the CPU (of a CUDA
    graph one for all its kernels)."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        step()
        synchronize(device)
    events = profiler.events()
    return {
        "kernels": sum(event.device_type == torch.autograd.DeviceType.CUDA for event in events),
        "launches": sum("LaunchKernel" in event.name or "GraphLaunch" in event.name for event in events),
    }


def matmul_rate(device: torch.device, dtype: torch.dtype, seconds: float = 0.02) -> float:
    """FLOP/s of the fastest square matrix product that was found: the peak that achieved rates are compared with.

    Plain and transposed right-hand sides are tried (a linear layer's weight is transposed; where hardware lacks a
    dtype, one of the two can be many times slower), in sizes that double until a product takes long enough.

    Args:
        device: Where.
        dtype: Of both operands. float32 runs at the precision that is set (`float32_matmul_precision`).
        seconds: How long the largest product takes at most about; its side is 8192 at most.
    """
    alone = device.type == "cpu" and torch.get_num_threads() == 1  # CPU time, which other processes change least
    clock = time.process_time if alone else time.perf_counter
    size, best = 128, 0.0
    while True:
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        out = torch.empty(size, size, device=device, dtype=dtype)
        products = [functools.partial(torch.mm, a, right, out=out) for right in (b, b.t())]
        taken = [min(timed(product, 1, device, clock) for _ in range(3)) for product in products]
        best = max(best, 2 * size**3 / min(taken))
        if min(taken) >= seconds or size >= 8192:
            return best
        size *= 2


def peak_bytes(step: Callable[[], object], device: torch.device) -> int:
    """Most bytes that PyTorch's allocator hands out on a device during a call, above what was there before it.

    On a CPU the growth of the process (RSS) would not do: freed memory stays with the process, so that the second
    model of a run seems to need none. Buffers that libraries allocate by themselves (oneDNN's scratch) are not seen.
    """
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        step()
        return torch.cuda.max_memory_allocated(device) - before
    # the profiler's C++ library writes its stages to stderr unless set otherwise before its first use
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    changes = [event for event in events if event.get("name") == "[memory]" and event["args"]["Device Type"] == 0]
    held = peak = 0
    for event in sorted(changes, key=lambda event: event["args"]["Ev Idx"]):
        held += event["args"]["Bytes"]
        peak = max(peak, held)
    return peak


def free_memory(device: torch.device) -> int:
    """Bytes of memory that a device has left; of a CPU within the limit of its container."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free = 1024 * int(lines["MemAvailable"].split()[0])
    except (OSError, KeyError, ValueError):  # not Linux
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 8 * 10**9
    try:
        limit, used = (Path(f"/sys/fs/cgroup/memory.{name}").read_text().strip() for name in ("max", "current"))
        return free if limit == "max" else max(min(free, int(limit) - int(used)), 0)
    except (OSError, ValueError):
        return free
