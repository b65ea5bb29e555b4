"""Damage of files of weights is an error with the file, the cause and the way out, wherever they are read."""

import json
import shutil
import struct
import zipfile
from functools import partial

import numpy as np
import pytest
import timm
import torch
from conftest import RECIPE, run_main
from safetensors.torch import save_file

import vitgraft
from vitgraft.cli import main
from vitgraft.errors import CheckpointError, DataError, RecipeError, RunFolderError
from vitgraft.tasks._initial_weights import load_initial_weights
from vitgraft.weights import files
from vitgraft.weights.files import DamagedCheckpointError, read_checkpoint

pytest.importorskip("pytorch_lightning")

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
run = partial(run_main, main)
MODEL = "vit_tiny_patch16_224"
OPTIONS = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 3}
PAGE = b"\n<!DOCTYPE html>\n<html><body>Not found</body></html>"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 99\n"


def weights(**changes):
    torch.manual_seed(0)
    return {**timm.create_model(MODEL, **OPTIONS).state_dict(), **changes}


def each(change):
    return {name: change(value) for name, value in weights().items()}


def save(content, path):
    (save_file if path.suffix == ".safetensors" else torch.save)(content, path)
    return path


def flipped(path):
    """A bit of the largest tensor."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 64
    path.write_bytes(data)


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def replaced(content):
    return lambda path: path.write_bytes(content)


HARM = {
    "empty": (replaced(b""), "is empty; copy or download it again"),
    "page": (replaced(PAGE), "is an HTML page"),
    "pointer": (replaced(POINTER), "is a Git LFS pointer.*git lfs pull"),
    "cut": (cut, r"cut short.*download it again"),
    "flipped": (flipped, "does not have its checksum; copy or download it again"),
    "nan": (lambda path: save(weights(norm=torch.tensor([1, torch.nan])), path), "1 of its .* NaN or infinite.*norm"),
    "text": (replaced(b"These are the weights of a model"), "is a text file .*not a checkpoint; copy or download"),
    "complex": (lambda path: save(each(lambda value: value * 1j), path), r"no real numbers.*\(torch\.complex64\)"),
    "integers": (lambda path: save(each(torch.Tensor.char), path), r"no real numbers.*\(torch\.int8\)"),
    "zeros": (lambda path: save(each(torch.zeros_like), path), "each of its .* matrices holds one value alone"),
    "infinite": (lambda path: save(weights(**{"norm.bias": torch.full((32,), torch.inf)}), path), r"norm\.bias"),
}
CASES = [
    (suffix, harm)
    for suffix in (".pth", ".ckpt", ".safetensors")
    for harm in HARM
    if (suffix, harm) != (".safetensors", "flipped")
]


@pytest.mark.parametrize(("suffix", "harm"), CASES)
def test_every_reader_refuses_damage(tmp_path, suffix, harm):
    path = save(weights(), tmp_path / f"weights{suffix}")
    read_checkpoint(path)
    damage, words = HARM[harm]
    damage(path)
    model = timm.create_model(MODEL, **OPTIONS)
    before = model.norm.bias.clone()
    for call in (
        lambda: read_checkpoint(path),
        lambda: vitgraft.load_official(model, path),
        lambda: load_initial_weights(model, path),
    ):
        with pytest.raises(CheckpointError, match=f"weights\\{suffix} .*{words}"):
            call()
    assert torch.equal(model.norm.bias, before)


def commands(path, folder, class_folders):
    named = f"{MODEL}:checkpoint_path={path}" + "".join(f":{name}={value}" for name, value in OPTIONS.items())
    plain = f"{MODEL}" + "".join(f":{name}={value}" for name, value in OPTIONS.items() if name != "num_classes")
    fit = ["fit", "--config", folder / "tiny.yaml", "--data.root", class_folders, "--out", folder / "run"]
    return {
        "fit": [*fit, "--model.checkpoint_path", path],
        "info": ["info", named],
        "predict": ["predict", "--ckpt", named, class_folders / "val" / "cat" / "0.png"],
        "export": ["export", plain, folder / "exported", "--checkpoint", path, "--num-classes", 3],
    }


@pytest.mark.parametrize("harm", ["flipped", "page", "nan"])
@pytest.mark.parametrize("command", ["fit", "info", "predict", "export"])
def test_every_command_refuses_damage(capsys, tmp_path, class_folders, command, harm):
    """A flipped bit of initial weights trained to NaN once, and the learning rate was blamed."""
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    path = save(weights(), tmp_path / "weights.pth")
    HARM[harm][0](path)
    code, _, err = run(capsys, *map(str, commands(path, tmp_path, class_folders)[command]))
    assert code == 2 and str(path) in err and "Traceback" not in err
    assert not (tmp_path / "run").exists() and not (tmp_path / "exported").exists()


def test_an_exported_folder_is_checked_too(capsys, tmp_path, class_folders):
    plain = f"{MODEL}" + "".join(f":{name}={value}" for name, value in OPTIONS.items() if name != "num_classes")
    assert run(capsys, "export", plain, str(tmp_path / "out"), "--num-classes", "3")[0] == 0
    image = str(class_folders / "val" / "cat" / "0.png")
    assert run(capsys, "predict", "--ckpt", str(tmp_path / "out"), image)[0] == 0
    for harm in ("cut", "nan", "page", "pointer"):
        HARM[harm][0](tmp_path / "out" / "model.safetensors")
        code, _, err = run(capsys, "predict", "--ckpt", str(tmp_path / "out"), image)
        assert code == 2 and "model.safetensors" in err and "Traceback" not in err, err
    shutil.copy(save(weights(), tmp_path / "whole.safetensors"), tmp_path / "out" / "model.safetensors")
    (tmp_path / "out" / "config.json").write_text("{")
    code, _, err = run(capsys, "predict", "--ckpt", str(tmp_path / "out"), image)
    assert code == 2 and "a model in timm's hub format" in err


def test_a_run_goes_back_to_the_checkpoint_before_nan(tmp_path, capsys):
    path = tmp_path / "last.ckpt"
    for value in (1.0, torch.nan):
        files.write({"state_dict": {"w": torch.tensor([value])}, "epoch": 3, "global_step": 30}, path)
    content, used = files.read_or_previous(path)
    assert used == files.previous(path) and content["state_dict"]["w"].item() == 1
    assert "NaN or infinite" in capsys.readouterr().err
    files.copy(path, tmp_path / "best.ckpt")
    files.previous(path).unlink()
    with pytest.raises(DamagedCheckpointError) as caught:
        files.read_or_previous(path)
    assert "best.ckpt" not in str(caught.value), "its weights are NaN as well"


def test_what_is_infinite_by_design(tmp_path):
    """Masks of attention, the state of an optimizer, integers, float8."""
    content = {
        "state_dict": {
            "attn_mask": torch.full((3,), -torch.inf),
            "layers.0.blocks.1.attn_mask": torch.full((3,), -torch.inf),
            "n": torch.tensor(3),
            "eight": torch.ones(3).to(torch.float8_e4m3fn),
            "none": torch.zeros(0),
            "repeated": torch.ones(1).expand(1000),
        },
        "optimizer_states": [{"state": {0: {"exp_avg": torch.tensor([torch.nan])}}}],
    }
    torch.save(content, tmp_path / "x.ckpt")
    assert read_checkpoint(tmp_path / "x.ckpt").keys() == content.keys()


def test_a_lying_shape(tmp_path):
    """A tensor of a terabyte in a file of a kilobyte, whose values would be read again and again."""
    lying = torch.zeros(2).as_strided((2, 2, 10**6, 10**6), (1, 0, 0, 0))
    torch.save({"w": lying}, tmp_path / "x.pth")
    assert read_checkpoint(tmp_path / "x.pth")["w"].shape == lying.shape
    torch.save({"w": torch.zeros(64).as_strided((32, 32), (1, 1))}, tmp_path / "x.pth")
    with pytest.raises(DamagedCheckpointError, match="w claims 1024 values and has fewer"):
        read_checkpoint(tmp_path / "x.pth")


def test_a_zip_bomb(tmp_path):
    save(weights(), tmp_path / "w.pth")
    with zipfile.ZipFile(tmp_path / "w.pth") as old, zipfile.ZipFile(tmp_path / "b.pth", "w") as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry), compress_type=zipfile.ZIP_DEFLATED)
    with pytest.raises(DamagedCheckpointError, match=r"not a file of torch\.save, or damaged: .* is compressed"):
        read_checkpoint(tmp_path / "b.pth")


def header(values, body=b""):
    text = values if isinstance(values, bytes) else json.dumps(values).encode()
    return struct.pack("<Q", len(text)) + text + body


LYING = {
    "short": (b"\1\2", "its header of 513 bytes does not fit into its 2"),
    "header past the end": (struct.pack("<Q", 10**12) + b"{}", "its header of 1000000000000 bytes"),
    "no json": (header(b"\xff\xfe"), "its header can't be read"),
    "a list": (header([1]), "its header can't be read"),
    "cut": (
        header({"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}, b"\0" * 9),
        "cut short, .* of .* bytes",
    ),
    "more": (
        header({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, b"\0" * 9),
        "5 bytes follow its end",
    ),
    "shape": (
        header({"w": {"dtype": "F32", "shape": [9], "data_offsets": [0, 4]}}, b"\0" * 4),
        "safetensors file, or damaged",
    ),
    "overlap": (
        header({n: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for n in "ab"}, b"\0" * 4),
        "safetensors file, or damaged",
    ),
}


@pytest.mark.parametrize("kind", LYING)
def test_lying_safetensors(tmp_path, kind):
    data, words = LYING[kind]
    (tmp_path / "x.safetensors").write_bytes(data)
    with pytest.raises(DamagedCheckpointError, match=f"x.safetensors .*{words}"):
        read_checkpoint(tmp_path / "x.safetensors")


def test_a_zip_under_the_name_of_safetensors(tmp_path):
    torch.save(weights(), tmp_path / "x.safetensors")
    with pytest.raises(DamagedCheckpointError, match=r"name it \.pth"):
        read_checkpoint(tmp_path / "x.safetensors")
    (tmp_path / "x.safetensors").rename(tmp_path / "x.pth")
    read_checkpoint(tmp_path / "x.pth")


def test_npz_has_checksums(tmp_path):
    from vitgraft.weights.create import create

    np.savez(tmp_path / "w.npz", a=np.ones(1000))
    flipped(tmp_path / "w.npz")
    with pytest.raises(DamagedCheckpointError, match="does not have its checksum"):
        create(MODEL, checkpoint_path=str(tmp_path / "w.npz"), **OPTIONS)


@pytest.mark.parametrize(("content", "words"), [(PAGE, "is an HTML page"), (POINTER, "is a Git LFS pointer")])
def test_recipes_and_json_are_the_file_itself(tmp_path, content, words):
    from vitgraft.data.coco import open_coco
    from vitgraft.training.recipe import read_recipe

    (tmp_path / "recipe.yaml").write_bytes(content)
    with pytest.raises(RecipeError, match=words):
        read_recipe(tmp_path / "recipe.yaml")
    (tmp_path / "instances_train.json").write_bytes(content)
    with pytest.raises(DataError, match=words):
        open_coco(tmp_path, "instances_train.json")


@pytest.mark.parametrize("text", ["{", "[]", '{"recipe": 3}', '{"versions": []}', ""])
def test_a_broken_record_of_a_run(tmp_path, text):
    from vitgraft.training.run_folder import read_record

    (tmp_path / "run.json").write_text(text)
    with pytest.raises(RunFolderError, match=r"run\.json can't be read .*delete it"):
        read_record(tmp_path)


def test_a_checkpoint_of_a_wrong_shape(tmp_path):
    torch.save({"task": 3, "hyper_parameters": [], "state_dict": {}}, tmp_path / "last.ckpt")
    with pytest.raises(CheckpointError, match="not a checkpoint of a vitgraft run"):
        files.read_run(tmp_path)
