"""Starts miniature runs (`small_run.py`) and compares what they left."""

import functools
import json
import os
import select
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from vitgraft.weights import files as checkpoint_files

SCRIPT = Path(__file__).with_name("small_run.py")
SRC = Path(__file__).parents[2] / "src"


def make_images(root, train=19, val=4, broken=()):
    """A folder of 3 classes of small noise: 57 training and 12 validation images; those in `broken` are cut short."""
    random = np.random.RandomState(0)
    for split, count in (("train", train), ("val", val)):
        for label in range(3):
            folder = root / split / f"class{label}"
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = random.randint(0, 150, (20, 20, 3)) + 50 * label
                path = folder / f"{i:02}.png"
                Image.fromarray(pixels.astype(np.uint8)).save(path)
                if f"{split}/class{label}/{path.name}" in broken:
                    path.write_bytes(path.read_bytes()[:60])
    return root


@functools.cache
def _server():
    """The process that starts the runs; it ends when its input does."""
    return subprocess.Popen(
        [sys.executable, "-W", "ignore::UserWarning:torch", SCRIPT],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SRC)},
    )


def runs(*options, timeout=300):
    """Exit codes of the runs, one after the other, and what they printed."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        server = _server()
        server.stdin.write(json.dumps({"runs": options, "log": str(log)}) + "\n")
        server.stdin.flush()
        ready, _, _ = select.select([server.stdout], [], [], timeout)
        answer = server.stdout.readline() if ready else ""
        text = log.read_text() if log.exists() else ""
        if not answer:
            server.kill()
            _server.cache_clear()
        assert answer, f"no answer within {timeout} s, or the server ended:\n{text}"
        return json.loads(answer), text


def difference(a, b, where=""):
    """Every place where two checkpoints differ, and by how much."""
    if isinstance(a, torch.Tensor):
        if a.shape != b.shape or a.dtype != b.dtype:
            return [f"{where}: {a.shape} {a.dtype} / {b.shape} {b.dtype}"]
        largest = (a.double() - b.double()).abs().max().item() if a.numel() else 0.0
        return [] if torch.equal(a, b) else [f"{where}: {largest}"]
    if isinstance(a, dict):
        found = [f"{where}.{key}: only in one" for key in a.keys() ^ b.keys()]
        return found + [d for key in a.keys() & b.keys() for d in difference(a[key], b[key], f"{where}.{key}")]
    if isinstance(a, list | tuple):
        found = [] if len(a) == len(b) else [f"{where}: lengths {len(a)} and {len(b)}"]
        return found + [
            d for i, (x, y) in enumerate(zip(a, b, strict=False)) for d in difference(x, y, f"{where}[{i}]")
        ]
    return [] if a == b else [f"{where}: {a!r} / {b!r}"]


def assert_same_run(whole, resumed, names=("last.ckpt", "best.ckpt")):
    """Everything in the checkpoints is equal: weights, averages, optimizer, counters, sums, best score."""
    for name in names:
        found = difference(
            checkpoint_files.read_checkpoint(whole / name), checkpoint_files.read_checkpoint(resumed / name), name
        )
        assert not found, "\n".join(found)
    a, b = (json.loads((folder / "metrics.json").read_text()) for folder in (whole, resumed))
    assert b, "the last process trained nothing"
    assert {name: a[name] for name in b} == b, "metrics of the last process"
