"""images/s of the paper's systems: what is measured, written, and read back."""

import json
import statistics

import pytest

from reproduction import speed, systems
from reproduction.__main__ import main
from reproduction.paper import TABLES, PaperTable
from reproduction.speed import Speed, measure_speeds, read_speeds, speed_reports, speeds_of
from vitgraft.models.spec import ModelSpec
from vitgraft.tools.bench import BenchConfig

MICRO = "vit_tiny_patch16_224:depth=1:embed_dim=48:img_size=32:num_classes=5"
SWIN = "graft_swin_tiny_patch4_window7_224:depths=[1,1,1,1]:embed_dim=24"


@pytest.fixture
def record(monkeypatch):
    found = {"classification": [MICRO, MICRO.replace("depth=1", "depth=2")], "detection": [SWIN]}
    monkeypatch.setattr(speed, "systems", lambda numbers: found)
    monkeypatch.setattr("reproduction.detection.IMAGE_SIZE", (64, 96))
    monkeypatch.setattr("reproduction.detection.BOX_PROPOSALS", 2)
    monkeypatch.setattr("reproduction.detection.MASK_PROPOSALS", 1)
    small = BenchConfig(batch_size=2, rounds=3, round_seconds=0.01, memory=False)
    monkeypatch.setattr(speed, "CONFIG", small)
    monkeypatch.setattr(speed, "DENSE_CONFIG", BenchConfig(batch_size=1, rounds=2, round_seconds=0.01, memory=False))
    lines = []
    measured = measure_speeds(lines.append)
    assert len(lines) == speed_reports() == 2 * (2 * 4 + 3)  # two attention settings
    return json.loads(json.dumps(measured))


def test_what_is_measured_can_be_read(record, tmp_path):
    (tmp_path / "bench.json").write_text(json.dumps(record))
    assert record["kind"] == "bench" and "config" not in record
    assert [(row["task"], row["model"]) for row in record["results"]] == [
        ("classification", MICRO), ("classification", MICRO.replace("depth=1", "depth=2")), ("detection", SWIN),
    ]  # fmt: skip
    assert {task: config["batch_size"] for task, config in record["configs"].items()} == {
        "classification": 2, "detection": 1,
    }  # fmt: skip
    assert record["results"][2]["input_size"] == [3, 64, 96]
    speeds, where = speeds_of(read_speeds(tmp_path / "bench.json"))
    assert where.endswith("float32, batch 2") and record["machine"]["device_name"] in where
    first, second = speeds["classification", MICRO], speeds["classification", MICRO.replace("depth=1", "depth=2")]
    assert len(first.rounds) == 3 and first.median == statistics.median(first.rounds)
    expected = statistics.median(b / a for a, b in zip(first.rounds, second.rounds, strict=True))
    assert second.ratio_to(first) == pytest.approx(expected) and first.ratio_to(first) == 1


def test_rounds_that_were_not_side_by_side():
    assert Speed(10.0, (9.0, 10.0, 11.0)).ratio_to(Speed(20.0, (20.0,))) == 0.5


def test_every_row_and_its_base_is_measured_once():
    found = systems.systems()
    for table in TABLES.values():
        if isinstance(table, PaperTable):
            for row in table.rows:
                assert {str(row.spec), str(table.base_of(row))} <= set(found[table.task])
    assert all(len(specs) == len(set(specs)) for specs in found.values())
    assert {task: len(specs) for task, specs in found.items()} == {
        "classification": 33, "detection": 10, "segmentation": 2,
    }  # fmt: skip
    assert systems.systems(["8"]) == {}


def test_systems_of_dense_tasks_have_the_tables_sizes():
    spec = ModelSpec.parse("graft_swin_tiny_patch4_window7_224:graft.blocks=[]")
    assert systems.build_system("detection", spec, "meta")[1] == (3, 800, 1280)
    assert systems.build_system("segmentation", spec, "meta")[1] == (3, 512, 2048)


def test_the_command_writes_what_it_measured(monkeypatch, tmp_path, capsys):
    row = {"task": "classification", "mode": "infer", "dtype": "float32", "batch_size": 8}
    models = {"deit_tiny_patch16_224": 50.0, "graft_deit_tiny_patch16_224": 40.0}
    results = [{**row, "model": m, "images_per_second": {"median": v, "rounds": [v]}} for m, v in models.items()]
    machine = {"device": "cpu", "device_name": "a chip", "threads": 2}
    asked = []
    monkeypatch.setattr(
        speed, "measure_speeds", lambda *args: asked.append(args[1:]) or {"machine": machine, "results": results}
    )
    bench, out = tmp_path / "bench.json", tmp_path / "tables.md"
    assert main(["tables", "--table", "7", "--speed", "--bench", str(bench), "--output", str(out)]) == 0
    assert asked == [(["7"], "cpu")]
    assert "| +1.9% | 76.1 | not measured | 40 | 0.80 |" in out.read_text()
    assert main(["tables", "--table", "7", "--bench", str(bench), "--format", "markdown"]) == 0
    assert capsys.readouterr().out == out.read_text()
