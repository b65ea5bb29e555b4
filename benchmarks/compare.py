"""Two checkouts of vitgraft side by side: are the outputs of their models equal, and which is faster?

    git worktree add ../before COMMIT
    python -m benchmarks.compare ../before --models graft_deit_tiny_patch16_224 --batch-size 1 8

Each checkout runs in a process of its own with one thread, and the two take turns, so that a disturbance meets both.
Weights are the same function of names and shapes in both. Times are CPU time of a forward pass, medians over the
rounds; a ratio above 1 means that this checkout is faster than the other.
"""

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def fill(model) -> None:
    """Weights that depend on names and shapes alone, so that no branch of a model is zero."""
    import torch

    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
                noise = torch.randn(value.shape, generator=torch.Generator().manual_seed(seed))
                value.copy_(1 + 0.02 * noise if name.endswith("running_var") else 0.05 * noise)


def serve() -> None:
    """Answers requests, one JSON object a line: makes a model (its output's hash), or runs it (CPU seconds)."""
    import timm
    import torch

    import vitgraft  # noqa: F401  registers the models

    torch.set_num_threads(1)
    model = image = None
    for line in sys.stdin:
        request = json.loads(line)
        if "model" in request and not timm.is_model(request["model"]):
            print(json.dumps({"hash": None, "mean": float("nan")}), flush=True)
            continue
        with torch.no_grad():
            if "model" in request:
                model = timm.create_model(request["model"]).eval()
                fill(model)
                generator = torch.Generator().manual_seed(0)
                image = torch.randn(request["batch_size"], *model.pretrained_cfg["input_size"], generator=generator)
                output = model(image)
                answer = {"hash": hashlib.sha256(output.numpy().tobytes()).hexdigest(), "mean": float(output.mean())}
            else:
                start = time.process_time()
                model(image)
                answer = {"seconds": time.process_time() - start}
        print(json.dumps(answer), flush=True)


def start(root: Path) -> subprocess.Popen:
    """A process of the checkout at `root`."""
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", Path(__file__), "--serve"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root / "src"), "OMP_NUM_THREADS": "1"},
    )


def ask(process: subprocess.Popen, **request) -> dict:
    """Sends a request and waits for its answer."""
    process.stdin.write(json.dumps(request) + "\n")
    process.stdin.flush()
    line = process.stdout.readline()
    if not line:
        raise SystemExit("a checkout's process ended; its error stands above")
    return json.loads(line)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("other", type=Path, nargs="?", help="root of the other checkout")
    parser.add_argument("--models", nargs="+", help="registered names (default: all grafted ones)")
    parser.add_argument("--batch-size", type=int, nargs="+", default=[1], metavar="N")
    parser.add_argument("--rounds", type=int, default=11, help="of one pass each (default: 11); 0 compares outputs")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        return serve()
    if args.other is None or not (args.other / "src" / "vitgraft").is_dir():
        parser.error(f"{args.other}: no checkout of vitgraft there; git worktree add makes one")
    import timm

    import vitgraft  # noqa: F401

    print("model | batch | outputs | other / this, CPU time")
    both = [start(args.other.resolve()), start(ROOT)]
    for name in args.models or timm.list_models("graft_*"):
        for batch_size in args.batch_size:
            made = [ask(process, model=name, batch_size=batch_size) for process in both]
            if made[0]["hash"] is None or made[1]["hash"] is None:
                print(f"{name} | {batch_size} | not in both checkouts | -", flush=True)
                continue
            times = [[ask(process)["seconds"] for process in both] for _ in range(args.rounds)]
            equal = "equal" if made[0] == made[1] else f"DIFFERENT: means {made[0]['mean']:.8g}, {made[1]['mean']:.8g}"
            ratio = f"{statistics.median(a / b for a, b in times):.3f}" if times else "-"
            print(f"{name} | {batch_size} | {equal} | {ratio}", flush=True)
    return None


if __name__ == "__main__":
    main()
