"""The demo: the same start for all models, the same numbers for the same seed, a report that needs nothing else."""

import json
import re
from dataclasses import replace

import pytest
import torch

import vitgraft

for extra in ("pytorch_lightning", "sklearn", "rich", "matplotlib"):
    pytest.importorskip(extra)
from vitgraft.tools.demo import MODELS, DemoOptions, build_model, run_demo  # noqa: E402

TINY = DemoOptions(steps=4, batch_size=8, train_scenes=32, test_scenes=20, embed_dim=16, depth=2, num_heads=2)
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "new" / "folder"
    return out, run_demo(out, TINY, command="vitgraft demo --seed 0 --steps 4")


def test_the_three_models_start_from_the_same_backbone():
    models = {kind: build_model(kind, TINY, 64, 10) for kind in MODELS}
    start = models["full"].state_dict()
    for kind, model in models.items():
        backbone = {name: value for name, value in model.state_dict().items() if ".graft." not in name}
        assert backbone.keys() >= start.keys(), kind
        assert all(torch.equal(backbone[name], start[name]) for name in start), kind
    assert not vitgraft.grafts(models["full"]) and not vitgraft.grafts(models["windows"])
    assert list(vitgraft.grafts(models["grafted"])) == ["blocks.1"]
    with pytest.raises(ValueError, match="kind='conv': choose one of full, windows, grafted"):
        build_model("conv", TINY, 64, 10)


def test_windows_alone_pass_nothing_on_and_grafts_do():
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    changed = images.clone()
    changed[..., :16, :16] += 1  # the first window: 2 x 2 tokens of 8 x 8 pixels
    for kind, travels in (("full", True), ("windows", False), ("grafted", True)):
        model = build_model(kind, TINY, 64, 10).eval()
        with torch.no_grad():
            moved = (model.forward_features(images) - model.forward_features(changed)).abs().amax((0, 2)).view(8, 8) > 0
        assert moved[:2, :2].all()
        moved[:2, :2] = False
        assert moved.any() == travels, kind


def test_record_holds_metrics_options_versions_and_hardware(run):
    out, results = run
    record = json.loads((out / "results.json").read_text())
    assert record["command"] == "vitgraft demo --seed 0 --steps 4"
    assert record["options"]["steps"] == 4 and record["options"]["seed"] == 0
    assert list(record["results"]) == list(results) == ["full", "windows", "grafted"]
    for key in ("torch", "timm", "vitgraft", "threads", "device_name"):
        assert record["machine"][key], key
    for kind, result in record["results"].items():
        assert [step for step, _ in result["loss_curve"]] == [1, 2, 3, 4], kind
        assert [step for step, _ in result["accuracy_curve"]] == [1, 2, 3, 4], kind
        assert result["accuracy"] == result["accuracy_curve"][-1][1]
        assert round(result["accuracy"] * 20, 4) == int(round(result["accuracy"] * 20, 4)), "20 test scenes"
        assert result["images_per_second"] > 0 and result["train_seconds"] > 0
        model = build_model(kind, TINY, 64, 10)
        assert result["params"] == sum(parameter.numel() for parameter in model.parameters())
    full, windows, grafted = (record["results"][kind] for kind in MODELS)
    assert windows["macs"] < full["macs"] and windows["macs"] < grafted["macs"]
    assert windows["params"] == full["params"] < grafted["params"]


def test_report_shows_everything_and_needs_no_network(run):
    out, results = run
    page = (out / "report.html").read_text()
    images = re.findall(r'<img alt="([^"]+)" src="data:image/png;base64,[A-Za-z0-9+/=]+">', page)
    assert [alt.split(" ")[0] for alt in images] == ["learning", "test", "the", "effective"]
    assert page.count("<img") == 4
    assert not re.search(r"https?://|<script|<link|@import|url\(", page)
    for result in results.values():
        row = f"<td>{result.name}</td><td>{result.accuracy:.1%}</td><td>{result.params:,}</td>"
        assert row in page
    assert "vitgraft demo --seed 0 --steps 4" in page


def test_the_same_seed_gives_the_same_numbers_another_seed_others(run, tmp_path):
    _, first = run
    again = run_demo(tmp_path / "again", TINY, report=False)
    other = run_demo(tmp_path / "other", replace(TINY, seed=1), report=False)
    for kind in MODELS:
        assert again[kind].loss_curve == first[kind].loss_curve
        assert again[kind].accuracy_curve == first[kind].accuracy_curve
        assert other[kind].loss_curve != first[kind].loss_curve
    assert not (tmp_path / "again" / "report.html").exists()


def test_accuracy_is_that_of_the_last_step_when_ten_does_not_divide_the_steps(tmp_path):
    results = run_demo(tmp_path, replace(TINY, steps=23), report=False)
    for result in results.values():
        steps = [step for step, _ in result.accuracy_curve]
        assert steps == [*range(2, 23, 2), 23]
        assert result.accuracy == result.accuracy_curve[-1][1]
