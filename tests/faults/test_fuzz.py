"""Files with seeded damage, on every route that reads them: an error in a sentence, or what was written is read.

Each damaged file goes through the command line's `main` in this process. A few of each kind always; 200 each in some
ten minutes by `VITGRAFT_FUZZ=200 pytest tests/faults/test_fuzz.py`. For one file again: `damaged(kind's bytes, seed)`.
"""

import json
import os
import random
import shutil
import signal
import time
import traceback
import warnings
from functools import partial

import pytest
import timm
import torch
import yaml
from conftest import RECIPE, run_main
from PIL import Image
from safetensors.torch import save_file

import vitgraft
from vitgraft.cli import main
from vitgraft.errors import VitgraftError
from vitgraft.weights.files import read_checkpoint

pytest.importorskip("pytorch_lightning")

pytestmark = pytest.mark.filterwarnings("ignore")
run = partial(run_main, main)
LIMIT_S = 60
FILES = int(os.environ.get("VITGRAFT_FUZZ", 8))
MODEL = "vit_tiny_patch16_224"
OPTIONS = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
PAGE = b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head><body>Please sign in</body></html>\n"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 132735\n"
SHORT = [
    "--trainer.limit_train_batches",
    "1",
    "--trainer.limit_val_batches",
    "1",
    "--trainer.num_sanity_val_steps",
    "0",
]


def damaged(data: bytes, seed: int) -> bytes:
    """A file with one of eight kinds of damage, in the turn of the seeds."""
    draw = random.Random(seed)
    kind = ("cut", "flip", "flip", "zeros", "insert", "swap", "shuffle", "another")[seed % 8]
    changed = bytearray(data)
    # a third of it at the ends, where headers and directories are
    at = draw.choice((draw.randrange(len(data)), draw.randrange(min(len(data), 600)), -draw.randint(1, 300))) % len(
        data
    )
    length = draw.choice((1, 8, 64, 4096))
    if kind == "cut":
        return data[:at]
    if kind == "flip":
        for place in {at, *(draw.randrange(len(data)) for _ in range(draw.choice((0, 0, 3))))}:
            changed[place] ^= 1 << draw.randrange(8)
    elif kind == "zeros":
        changed[at : at + length] = bytes(len(changed[at : at + length]))
    elif kind == "insert":
        changed[at:at] = draw.randbytes(length)
    elif kind == "swap":
        other = draw.randrange(len(data))
        first, second = sorted((at, other))
        length = min(length, second - first, len(data) - second)
        changed[first : first + length], changed[second : second + length] = (
            changed[second : second + length],
            changed[first : first + length],
        )
    elif kind == "shuffle":  # a block twice, and another one lost
        changed[at : at + length] = changed[at : at + length] * 2
        del changed[draw.randrange(len(data)) :][:length]
    else:
        return (PAGE, POINTER, b"", b"\0" * len(data), draw.randbytes(len(data)))[seed // 8 % 5]
    return bytes(changed)


@pytest.fixture(scope="module")
def whole(class_folders, tmp_path_factory):
    """A whole file of each kind, in a folder with what is read beside it."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "recipe.yaml").write_text(RECIPE)
    words = ["fit", "--config", folder / "recipe.yaml", "--data.root", class_folders, "--out", folder / "run", *SHORT]
    assert main([*map(str, words)]) == 0
    for name in ("best.ckpt", "last-previous.ckpt"):
        (folder / "run" / name).unlink(missing_ok=True)
    weights = read_checkpoint(folder / "run" / "last.ckpt")["state_dict"]
    torch.save(weights, folder / "weights.pth")
    save_file(weights, folder / "weights.safetensors")
    coco = folder / "coco"
    for split in ("train", "val"):
        (coco / split).mkdir(parents=True)
        images = [{"id": i, "file_name": f"{i}.png", "width": 64, "height": 64} for i in range(4)]
        for image in images:
            Image.new("RGB", (64, 64), (60 * image["id"], 9, 9 * len(split))).save(coco / split / image["file_name"])
        polygon = [8, 8, 40, 8, 40, 40, 8, 40]
        one = {"category_id": 1, "bbox": [8, 8, 32, 32], "area": 1024, "iscrowd": 0, "segmentation": [polygon]}
        values = {
            "images": images,
            "annotations": [{**one, "id": i, "image_id": i, "category_id": 1 + i % 2} for i in range(4)],
            "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
        }
        (coco / "annotations").mkdir(exist_ok=True)
        (coco / "annotations" / f"instances_{split}.json").write_text(json.dumps(values, indent=1))
    detector = {
        "model": {
            "class_path": "Detection",
            "init_args": {"model": "graft_swin_tiny_patch4_window7_224", "lr": 1e-4}
            | {"model_kwargs": {"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1]}},
        },
        "data": {"class_path": "DetectionData", "init_args": {"batch_size": 2, "workers": 0}}
        | {"root": str(coco), "short_side": 64, "min_side": 1},
        "trainer": {"max_epochs": 1, "accelerator": "cpu", "devices": 1, "enable_progress_bar": False},
    }
    (folder / "detector.yaml").write_text(yaml.safe_dump(detector))
    return folder


KINDS = {
    "run checkpoint": "run/last.ckpt",
    "pth": "weights.pth",
    "safetensors": "weights.safetensors",
    "coco": "coco/annotations/instances_train.json",
    "recipe": "recipe.yaml",
}


def routes(kind, folder, file, class_folders):
    """Name -> arguments of a command that reads the file, or a function that does."""
    fit = ["fit", "--config", folder / "recipe.yaml", "--data.root", class_folders, *SHORT]
    started = ["--checkpoints.enabled", "false", "--trainer.logger", "false", "--out", folder / "started"]
    named = f"{MODEL}:num_classes=3:checkpoint_path={file}" + "".join(f":{k}={v}" for k, v in OPTIONS.items())
    image = class_folders / "val" / "cat" / "0.png"
    weights = {
        "initial weights": [*fit, "--model.checkpoint_path", file, *started],
        "info": ["info", named],
        "load_official": lambda: vitgraft.load_official(timm.create_model(MODEL, num_classes=3, **OPTIONS), file),
    }
    if kind == "run checkpoint":
        return weights | {
            "resume": [*fit, "--out", folder / "run", "--resume", "--trainer.logger", "false"],
            "validate": ["validate", "--ckpt_path", folder / "run", "--data.root", class_folders],
            "test": ["test", "--ckpt_path", folder / "run", "--data.root", class_folders],
            "predict": ["predict", "--ckpt", folder / "run", image],
            "export": ["export", folder / "run", folder / "exported"],
        }
    if kind in ("pth", "safetensors"):
        plain = named.replace(f":checkpoint_path={file}", "").replace(":num_classes=3", "")
        return weights | {
            "predict": ["predict", "--ckpt", named, image],
            "export": ["export", plain, folder / "exported", "--checkpoint", file, "--num-classes", "3"],
        }
    if kind == "coco":
        return {
            "fit": ["fit", "--config", folder / "detector.yaml", *SHORT, *started],
            "check-data": ["check-data", folder / "coco"],
        }
    return {"config": ["fit", "--config", file, "--data.root", class_folders, "--smoke"]}


class Hang(BaseException):
    """A route took longer than `LIMIT_S`."""


def _hang(*_):
    raise Hang


def outcome(words, capsys):
    """What is wrong with how a route ended, "" where nothing is; and its exit code."""
    try:
        before = signal.signal(signal.SIGALRM, _hang)
        signal.alarm(LIMIT_S)
        if callable(words):
            try:
                words()
                return "", 0
            except VitgraftError:
                return "", 2
        code, out, err = run(capsys, *map(str, words))
    except Hang:
        return f"more than {LIMIT_S} s, at {traceback.format_exc().splitlines()[-20:]}", -1
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:200]} at {traceback.format_exc().splitlines()[-4:-1]}", -1
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        capsys.readouterr()
    if "Traceback" in out + err:
        return "traceback: " + err[-300:], code
    if code not in (0, 1, 2) or (code and not err and not out):
        return f"exit code {code}: {err[-200:]}", code
    return "", code


def same(a, b):
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def fuzz(kind, whole, folder, class_folders, capsys, seeds):
    """All that is wrong, a line each."""
    shutil.copytree(whole, folder)
    text = (folder / "detector.yaml").read_text().replace(str(whole), str(folder))
    (folder / "detector.yaml").write_text(text)
    file = folder / KINDS[kind]
    data = file.read_bytes()
    original = read_checkpoint(file) if kind in ("run checkpoint", "pth") else None
    kept = {path.name: path.read_bytes() for path in file.parent.iterdir() if path.is_file()}
    wrong, codes, started = [], {}, time.monotonic()
    for seed in seeds:
        for route, words in routes(kind, folder, file, class_folders).items():
            file.write_bytes(damaged(data, seed))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                error, code = outcome(words, capsys)
            codes.setdefault(route, []).append(code)
            if error:
                wrong.append(f"seed {seed}, {route}: {error}")
            for name in ("exported", "started"):
                shutil.rmtree(folder / name, ignore_errors=True)
            if route in ("resume", "validate", "test"):
                shutil.rmtree(file.parent)
                file.parent.mkdir()
                for name, content in kept.items():
                    (file.parent / name).write_bytes(content)
        if original is not None:
            file.write_bytes(damaged(data, seed))
            try:
                found = read_checkpoint(file)
            except VitgraftError:
                continue
            if not same(original, found):
                wrong.append(f"seed {seed}: loaded with other values, without a word")
    counts = ", ".join(f"{route} {len(c)} ({c.count(0)} ran)" for route, c in codes.items())
    print(f"{kind}: {counts}; {time.monotonic() - started:.0f} s")
    return wrong


@pytest.mark.parametrize("kind", KINDS)
def test_whole_files_run_on_every_route(kind, whole, tmp_path, class_folders, capsys):
    """Without this, errors of the commands would pass for errors of the damaged files."""
    folder = tmp_path / "x"
    shutil.copytree(whole, folder)
    for route, words in routes(kind, folder, folder / KINDS[kind], class_folders).items():
        if not callable(words):
            code, _, err = run(capsys, *map(str, words))
            assert code == 0, f"{route}: {err}"
            shutil.rmtree(folder / "started", ignore_errors=True)


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files(kind, whole, tmp_path, class_folders, capsys):
    wrong = fuzz(kind, whole, tmp_path / "x", class_folders, capsys, range(FILES))
    assert not wrong, "\n".join([f"{len(wrong)} of {FILES}", *wrong])
