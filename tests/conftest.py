"""Shared by all tests: `shared(...)` finds the reference data, or skips by name when it is not there; a folder of class
folders, a recipe of a tiny ViT on it, and its run."""

import os
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("VITGRAFT_SHARED", ROOT.parent / "shared"))


def pytest_collection_modifyitems(items):
    """Files with the most slow tests first: of two processes, none is left with one of them in the end."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


def shared(*parts: str) -> Path:
    """Path inside the shared reference data. Without it the calling test is skipped, or fails where
    VITGRAFT_REQUIRE_SHARED is set (as CI does), so that a skip can't pass for a success there."""
    path = SHARED.joinpath(*parts)
    if not path.exists():
        message = f"needs the shared reference data: {'/'.join(parts)} not found (set VITGRAFT_SHARED)"
        if os.environ.get("VITGRAFT_REQUIRE_SHARED"):
            pytest.fail(message)
        pytest.skip(message)
    return path


@pytest.fixture
def compare(monkeypatch):
    """The module that compares a model with the official implementations' conformance vectors."""
    monkeypatch.syspath_prepend(str(shared("conformance")))
    return __import__("compare")


def run_main(main, capsys, *arguments):
    """Exit code, stdout and stderr of a command line."""
    try:
        code = main(arguments)
    except SystemExit as stop:
        code = stop.code
    return code, *capsys.readouterr()


RECIPE = """\
model:
  class_path: Classification
  init_args:
    model: vit_tiny_patch16_224
    model_kwargs: {img_size: 32, patch_size: 8, embed_dim: 32, depth: 2, num_heads: 2}
    lr: 1e-2
data:
  class_path: ImageData
  init_args: {batch_size: 8, workers: 0}
trainer:
  max_epochs: 1
  accelerator: cpu
  devices: 1
  enable_progress_bar: false
"""


@pytest.fixture(scope="session")
def class_folders(tmp_path_factory):
    """root/{train,val}/{cat,dog,eel}: 8 and 3 images of 32 x 32 in each; a class has its color."""
    root = tmp_path_factory.mktemp("class_folders")
    generator = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 3)):
        for number, name in enumerate(("cat", "dog", "eel")):
            (root / split / name).mkdir(parents=True)
            for image in range(count):
                pixels = generator.integers(0, 60, (32, 32, 3))
                pixels[..., number] += 150
                Image.fromarray(pixels.astype(np.uint8)).save(root / split / name / f"{image}.png")
    return root


@pytest.fixture
def recipe(tmp_path):
    """A recipe file that takes about a second."""
    path = tmp_path / "tiny.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture
def run_command(capsys):
    """Runs the command line, and returns the exit code, stdout and stderr."""
    from vitgraft.cli import main

    def run(*words):
        capsys.readouterr()
        try:
            code = main([str(word) for word in words])
        except SystemExit as stop:
            code = stop.code
        return code, *capsys.readouterr()

    return run


@pytest.fixture(scope="session")
def trained(class_folders, tmp_path_factory):
    """The folder of a run of the recipe; a test that changes its checkpoints takes a copy."""
    from vitgraft.cli import main

    folder = tmp_path_factory.mktemp("trained")
    (folder / "tiny.yaml").write_text(RECIPE)
    words = ["fit", "--config", folder / "tiny.yaml", "--data.root", class_folders, "--out", folder / "run"]
    assert main([*map(str, words), "--model.graft", "{window_size: 2}", "--model.lr", "0.003"]) == 0
    return folder / "run"


WAITING = '''
import os

from vitgraft.data.classification import ImageData


class WaitingData(ImageData):
    """Waits for ever for each image of the split WAITING: a pipe of that name is read, which nobody writes."""

    def samples(self, split, train):
        samples = super().samples(split, train)
        if os.path.basename(os.environ["WAITING"]) == split:
            samples.load = lambda index: open(os.environ["WAITING"], "rb").read()
        return samples
'''


@pytest.fixture
def waiting(tmp_path):
    """-> what a run needs that waits for ever for an image of a split: words of its command, environment, the pipe."""

    def make(split):
        folder = tmp_path / "waiting"
        folder.mkdir()
        (folder / "waiting.py").write_text(WAITING)
        os.mkfifo(folder / split)
        env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(folder), "WAITING": str(folder / split)}
        return SimpleNamespace(
            words=["--data.class_path", "waiting.WaitingData", "--data.batch_size", "8"], env=env, pipe=folder / split
        )

    return make
