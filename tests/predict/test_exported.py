"""Exports in timm's hub format, loaded in a process of its own where only vitgraft was imported."""

import json
import subprocess
import sys

import pytest
import timm
import torch
from safetensors import safe_open

import vitgraft
from vitgraft import cli
from vitgraft.data.transforms import Preprocessing
from vitgraft.errors import CheckpointError, GraftError
from vitgraft.predict.exported import export_hub
from vitgraft.predict.load import open_model
from vitgraft.weights import files as checkpoint_files
from vitgraft.weights.create import build_model

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
GRAFT = {"window_size": 2}
LOADS = """
import json, sys
import torch
import timm, vitgraft
model = timm.create_model(f"local-dir:{sys.argv[1]}", pretrained=True).eval()
images = torch.linspace(-1, 1, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32)
data = timm.data.resolve_model_data_config(model)
with torch.no_grad():
    torch.save(model(images), sys.argv[2])
seen = {"config": data, "labels": model.pretrained_cfg.get("label_names")}
print(json.dumps({**seen, "lightning": "pytorch_lightning" in sys.modules}))
"""


@pytest.fixture(params=["grafted name", "grafted by options", "no grafts"])
def run(request, tmp_path):
    """A folder as a finished run leaves it, and its options."""
    name, graft = {
        "grafted name": ("graft_deit_tiny_patch16_224", GRAFT),
        "grafted by options": ("vit_tiny_patch16_224", GRAFT),
        "no grafts": ("vit_tiny_patch16_224", None),
    }[request.param]
    options = {
        "model": name,
        "num_classes": 3,
        "model_kwargs": SMALL,
        "graft": graft,
        "class_names": ["ant", "bee", "cat"],
        "data_config": {
            "input_size": [3, 32, 32], "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "crop_pct": 1.0,
            "interpolation": "bilinear",
        },
    }  # fmt: skip
    weights = {}
    for seed, key in enumerate(("state_dict", "state_dict_ema")):
        torch.manual_seed(seed)
        model = build_model(name, 3, SMALL, graft)
        torch.nn.init.normal_(model.head.weight)
        weights[key] = model.state_dict()
    content = {"task": "vitgraft.tasks.classification.Classification", "hyper_parameters": options, **weights}
    (tmp_path / "run").mkdir()
    checkpoint_files.write(content, tmp_path / "run" / "best.ckpt")
    return tmp_path / "run", options


one_run = pytest.mark.parametrize("run", ["no grafts"], indirect=True)


def test_run_loads_in_another_process(run, tmp_path, capsys):
    folder, options = run
    assert cli.main(["export", str(folder), str(tmp_path / "out")]) == 0
    assert "local-dir:" in capsys.readouterr().out
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["README.md", "config.json", "model.safetensors"]
    config, tensors = ((tmp_path / "out" / name).stat().st_mode for name in ("config.json", "model.safetensors"))
    assert tensors == config
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["vitgraft"]["weights"] == "ema"
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        assert "patch_embed.proj.weight" in file.keys()  # noqa: SIM118  no mapping
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LOADS, tmp_path / "out", tmp_path / "logits.pt"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert not seen["lightning"]
    assert seen["labels"] == options["class_names"]
    for name, value in options["data_config"].items():
        assert seen["config"][name] == value, name
    expected = open_model(folder, "ema").model
    images = torch.linspace(-1, 1, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(torch.load(tmp_path / "logits.pt"), expected(images))
    assert open_model(tmp_path / "out").class_names == ("ant", "bee", "cat")


@one_run
@pytest.mark.parametrize("weights", ["raw", "ema"])
def test_the_weights_of_an_export(run, tmp_path, weights):
    assert open_model(run[0], weights).save_pretrained(tmp_path / "out") == tmp_path / "out"
    exported, expected = open_model(tmp_path / "out").model, open_model(run[0], weights).model
    assert torch.equal(exported.head.weight, expected.head.weight)


def test_export_of_a_model_by_name(tmp_path, capsys):
    spec = "graft_deit_tiny_patch16_224:" + ":".join(f"{k}={v}" for k, v in {**SMALL, "graft.window_size": 2}.items())
    assert cli.main(["export", spec, str(tmp_path / "out"), "--num-classes", "5"]) == 0
    assert timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).num_classes == 5


@one_run
def test_run_as_onnx(run, tmp_path, capsys):
    pytest.importorskip("onnxruntime")
    assert cli.main(["export", str(run[0]), str(tmp_path / "a.onnx"), "--weights", "raw"]) == 0
    assert "raw weights of" in capsys.readouterr().out


@one_run
def test_what_is_refused(run, tmp_path, capsys):
    folder, _ = run
    for arguments, message in (
        ([str(folder), str(folder)], "is not empty"),
        ([str(tmp_path / "none.ckpt"), str(tmp_path / "x")], "none.ckpt"),
        ([str(folder), str(tmp_path / "x"), "--num-classes", "3"], "a run knows its own"),
        ([str(folder), str(tmp_path / "x"), "--opset", "20"], "ends in .onnx"),
        (["deit_tiny_patch16_224", str(tmp_path / "x"), "--weights", "ema"], "--weights is for a run"),
    ):
        assert cli.main(["export", *arguments]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_nothing_is_left_of_an_export_that_does_not_load(tmp_path):
    model = timm.create_model("vit_tiny_patch16_224", num_classes=2, **SMALL)
    with pytest.raises(CheckpointError, match="timm can't load the export"):
        export_hub(model, tmp_path / "out", "resnet10t", {}, Preprocessing((32, 32)))
    assert list(tmp_path.iterdir()) == []


def test_tied_and_channels_last_weights_are_exported(tmp_path):
    """Tied tensors are in the file under each of their names, as timm wants them, and tied again where it is loaded."""

    @timm.models.register_model
    def vit_of_tied_blocks(pretrained=False, **options):
        model = timm.create_model("vit_tiny_patch16_224", pretrained, **options)
        model.blocks[1].mlp.fc2.weight = model.blocks[0].mlp.fc2.weight
        model.blocks[1].norm1 = model.blocks[0].norm1
        return model

    try:
        model = vit_of_tied_blocks(num_classes=2, **SMALL).to(memory_format=torch.channels_last)
        export_hub(model, tmp_path / "out", "vit_of_tied_blocks", SMALL, Preprocessing((32, 32)))
        loaded = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    finally:
        timm.models._registry._model_entrypoints.pop("vit_of_tied_blocks")
    assert loaded.blocks[1].norm1 is loaded.blocks[0].norm1
    assert torch.equal(loaded.patch_embed.proj.weight, model.patch_embed.proj.weight)
    assert model.state_dict()["blocks.1.norm1.weight"].data_ptr() == model.blocks[0].norm1.weight.data_ptr()


def test_the_name_grafted():
    model = timm.create_model("grafted", backbone="vit_tiny_patch16_224", graft=GRAFT, num_classes=4, **SMALL)
    assert model.num_classes == 4 and any(".graft." in name for name in model.state_dict())
    with pytest.raises(GraftError, match="give backbone=NAME"):
        timm.create_model("grafted")
    with pytest.raises(GraftError, match="has grafts already"):
        timm.create_model("grafted", backbone="graft_deit_tiny_patch16_224")
    with pytest.raises(GraftError, match="backbone='nope' is no model"):
        timm.create_model("grafted", backbone="nope")


@pytest.mark.parametrize(
    ("backbone", "options", "window", "reductions"),
    [
        ("vit_tiny_patch16_224", SMALL, 2, [8, 8]),
        ("swin_tiny_patch4_window7_224", {"embed_dim": 16, "depths": (1, 2, 2, 1), "img_size": 64}, 2, [4, 8, 16, 32]),
        ("pvt_v2_b0", {}, 2, [4, 8, 16, 32]),
        ("maxvit_pico_rw_256", {"img_size": 64}, 2, [2, 4, 8, 16, 32]),
    ],
)
def test_features_of_the_name_grafted(backbone, options, window, reductions):
    """Maps at the backbone's own indices, equal to those of the whole model."""
    given = {"backbone": backbone, "graft": vitgraft.GraftConfig(window_size=window), **options}
    if backbone == "pvt_v2_b0":
        given["pretrained_cfg_overlay"] = {"input_size": (3, 64, 64)}
    indices = {"out_indices": (0, 1)} if "vit_tiny" in backbone else {}
    model = timm.create_model("grafted", features_only=True, **given, **indices).eval()
    assert model.feature_info.reduction() == reductions
    side = options.get("img_size", 64)
    whole = timm.create_model("grafted", **given).eval()
    inside = {name.removeprefix("model."): value for name, value in model.state_dict().items()}
    whole.load_state_dict(inside, strict=False)
    image = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        maps, expected = model(image), whole.forward_intermediates(image, intermediates_only=True)
    assert [side // m.shape[-1] for m in maps] == reductions and vitgraft.is_grafted(model.model)
    for one, other in zip(maps, expected, strict=True):
        assert torch.equal(one, other) or torch.equal(one, model.model.norm(other) if "vit" in backbone else other)
