"""Run folders as records, and seeds side by side."""

import csv
import json
import statistics

import pytest

from reproduction.__main__ import main
from reproduction.results import read_record, read_records, summarize, to_markdown

COLUMNS = ("epoch", "step", "train/loss", "val/acc", "val/acc5", "val/ece", "val/loss", "val/acc_ema")


def make_run(folder, seed=0, accuracies=(0.25, 0.5), graft=None, root="/data/digits", epochs=2):
    folder.mkdir(parents=True)
    recipe = {
        "seed_everything": seed,
        "out": str(folder),
        "model": {"class_path": "Classification", "init_args": {"model": "a_model", "graft": graft, "seed": seed}},
        "data": {"class_path": "ImageData", "init_args": {"root": root, "seed": seed}},
        "trainer": {"max_epochs": epochs},
    }
    (folder / "run.json").write_text(json.dumps({"recipe": recipe, "versions": {"torch": "2.15.0"}}))
    with open(folder / "metrics.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for epoch, accuracy in enumerate(accuracies):
            writer.writerow({"epoch": epoch, "step": 10 * epoch + 4, "train/loss": 1.5})
            values = {"val/acc": accuracy, "val/acc5": 0.9, "val/ece": 0.03, "val/loss": 1.25, "val/acc_ema": 0.125}
            writer.writerow({"epoch": epoch, "step": 10 * epoch + 9, **values})
    return folder


def test_a_record_holds_the_last_evaluation_and_all_of_them(tmp_path):
    record = read_record(make_run(tmp_path / "run", seed=3, graft={"levels": 1}))
    assert record["kind"] == "classification" and record["dataset"] == "digits" and record["seed"] == 3
    assert record["metrics"] == {"top1": 50.0, "top5": 90.0, "ece": 3.0, "loss": 1.25, "top1_ema": 12.5}
    assert [(entry["epoch"], entry["step"], entry["top1"]) for entry in record["curve"]] == [
        (0, 9, 25.0),
        (1, 19, 50.0),
    ]
    assert record["model_options"] == {"graft": {"levels": 1}} and record["versions"] == {"torch": "2.15.0"}
    assert "out" not in record["recipe"]


def test_seeds_are_put_together_and_recipes_kept_apart(tmp_path):
    accuracies = (0.50, 0.53, 0.54)
    runs = [make_run(tmp_path / f"a{seed}", seed, (value,)) for seed, value in enumerate(accuracies)]
    runs.append(make_run(tmp_path / "b", 0, (0.4,), graft={"levels": 1}))
    first, second = summarize(read_records(runs))
    assert first["seeds"] == [0, 1, 2] and first["top1"]["values"] == pytest.approx([50, 53, 54])
    assert first["top1"]["mean"] == pytest.approx(statistics.fmean((50, 53, 54)))
    assert first["top1"]["spread"] == pytest.approx(2.0816659994661326)
    assert second["seeds"] == [0] and second["top1"]["spread"] is None
    table = to_markdown([first, second])
    assert "| a0 | digits | 52.33 ± 2.08 | 50.00, 53.00, 54.00 |" in table and "| b | digits | 40.00 | 40.00 |" in table


def test_evaluations_of_a_checkpoint_stand_beside_the_last_one(tmp_path):
    runs = [make_run(tmp_path / f"run{seed}", seed) for seed in (0, 1)]
    for number, run in enumerate(runs):
        for place, more in (("test", {}), ("validate_ema", {"limited": "only a part of the dataset was measured"})):
            values = {
                "metrics": {"top1": 0.25 * (1 + number), "top5": 0.8, "ece": None},
                "checkpoint": "/x/best.ckpt",
                **more,
            }
            (run / place).mkdir()
            (run / place / "metrics.json").write_text(json.dumps({**values, "weights": "raw", "split": "test"}))
    first = read_record(runs[0])["evaluations"]
    assert first == {
        "test": {
            "metrics": {"top1": 25.0, "top5": 80.0},
            "checkpoint": "best.ckpt",
            "weights": "raw",
            "split": "test",
        }
    }
    table = to_markdown(summarize(read_records(runs)))
    assert "| top-1 %, test |" in table and table.rstrip().endswith("| 37.50 ± 17.68 |")


def test_command_writes_one_file_a_run_that_the_tables_can_read(tmp_path, capsys):
    from reproduction.scores import read_scores

    runs = [str(make_run(tmp_path / f"run{seed}", seed, accuracies=[0.5] * 300, epochs=300)) for seed in (0, 1)]
    out = tmp_path / "results"
    assert main(["results", *runs, "--dataset", "imagenet1k", "--output", str(out)]) == 0
    assert "50.00 ± 0.00" in capsys.readouterr().out
    assert sorted(path.name for path in out.iterdir()) == ["run0.json", "run1.json"]
    assert read_scores(out) == {("classification", "a_model", "top-1"): 50.0}
    assert str(tmp_path) not in (out / "run0.json").read_text()


def test_what_is_no_run_is_named(tmp_path, capsys):
    good = make_run(tmp_path / "good")
    empty = make_run(tmp_path / "empty", accuracies=())
    assert main(["results", str(good), str(empty), str(tmp_path / "none"), "--output", str(tmp_path / "out")]) == 2
    message = capsys.readouterr().err
    assert "empty: nothing was evaluated yet" in message and "none: not the folder of a run" in message
    assert not (tmp_path / "out").exists()
