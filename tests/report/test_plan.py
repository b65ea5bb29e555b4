"""`vitgraft plan`: the arithmetic written out, the recipes, and that the page of the docs is not stale."""

import json
import math
import re

import pytest

from vitgraft.cli import main
from vitgraft.errors import RecipeError
from vitgraft.report.plan import Assumptions, count, find_recipes, make_plan
from vitgraft.report.plan_page import to_markdown
from vitgraft.training.recipe import read_recipe

ROOT = __import__("pathlib").Path(__file__).resolve().parents[2]
RECIPES = ROOT / "recipes" / "imagenet1k"
PAGE = ROOT / "docs" / "cost.md"

RECIPE = """\
model:
  class_path: Classification
  init_args: {model: deit_tiny_patch16_224, num_classes: 1000, lr: 5e-4, lr_batch: 512}
data: {init_args: {batch_size: 128, workers: 10}}
trainer: {max_epochs: 300, precision: bf16-mixed}
"""
MACS = 1_253_683_200


def counted(model):
    return 5_717_416, MACS, (3, 224, 224)


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "deit.yaml"
    path.write_text(RECIPE)
    return path


def run(capsys, *words):
    code = main(["plan", *map(str, words)])
    return code, *capsys.readouterr()


def test_the_arithmetic_written_out(recipe):
    plan = make_plan(recipe, Assumptions(doubling=0.9, images_per_core=50), (1, 8, 64), counted)
    one, eight, many = plan.rows
    rate = 0.16 * 312e12
    batches = 1_281_167 // 128
    flops = 300 * 2 * MACS * (3 * batches * 128 + 50_000)
    assert plan.flops == pytest.approx(flops)
    assert one.hours == pytest.approx(flops / rate / 3600)
    assert eight.hours == pytest.approx(flops / (8 * 0.9**3 * rate) / 3600)
    assert many.hours == pytest.approx(flops / (64 * 0.9**6 * rate) / 3600)
    assert eight.gpu_hours == pytest.approx(8 * eight.hours)
    assert one.images_per_second == pytest.approx(rate / (6 * MACS))
    assert one.loader_cores == math.ceil(rate / (6 * MACS) / 50)
    assert one.megabytes_per_second == pytest.approx(0.11 * one.images_per_second)
    # 10 processes of 50 images/s are slower than the GPU
    assert one.hours_with_workers == pytest.approx(300 * (batches * 128 + 50_000) / 500 / 3600)
    assert (one.steps_per_epoch, eight.steps_per_epoch) == (math.ceil(batches / 8), 1_281_167 // 1024)
    assert eight.steps == 300 * 1251


def test_the_batch_stays_or_the_rate_follows(recipe):
    kept = make_plan(recipe, Assumptions(), (1, 8, 64), counted)
    assert [(r.batch_size, r.accumulate, r.total_batch) for r in kept.rows] == [
        (128, 8, 1024),
        (128, 1, 1024),
        (16, 1, 1024),
    ]
    assert [r.lr for r in kept.rows] == pytest.approx([1e-3] * 3)
    scaled = make_plan(recipe, Assumptions(keep_batch=False), (1, 8, 64), counted)
    assert [r.total_batch for r in scaled.rows] == [128, 1024, 8192]
    assert [r.lr for r in scaled.rows] == pytest.approx([1.25e-4, 1e-3, 8e-3])


def test_options_make_the_run_so(recipe):
    """The words of each row, put into the recipe, give that row's batch."""
    from vitgraft.training.recipe import parse_words

    for row in make_plan(recipe, Assumptions(), (1, 2, 8, 64), counted).rows:
        values = parse_words(["fit", *row.options.split()]).values
        devices = values["trainer"]["devices"] * values["trainer"].get("num_nodes", 1)
        batch = values.get("data", {}).get("batch_size", 128)
        assert devices == row.gpus
        assert devices * batch * values["trainer"].get("accumulate_grad_batches", 1) == row.total_batch == 1024


def test_devices_of_the_recipe_say_what_its_batch_is_for(recipe):
    recipe.write_text(RECIPE.replace("max_epochs", "devices: 4, max_epochs"))
    assert make_plan(recipe, Assumptions(), (1,), counted).rows[0].total_batch == 512


def test_repeated_augmentation_counts_as_the_sampler_does(recipe):
    recipe.write_text(RECIPE.replace("workers: 10", "workers: 10, repeated_aug: true"))
    plan = make_plan(recipe, Assumptions(), (8,), counted)
    assert plan.drawn == 1_281_167 // 256 * 256
    assert plan.rows[0].steps_per_epoch == 1251


def test_a_measured_rate_wins(recipe):
    plan = make_plan(recipe, Assumptions(tflops=30, gpu="v100"), (1,), counted)
    assert plan.rate == 30e12


@pytest.mark.parametrize(
    "words, message",
    [
        (["--gpu", "q100", "--utilisation", "3"], "--gpu='q100': one of a100"),
        (["--gpu", "q100", "--utilisation", "3"], "--utilisation=3.0: above 0, at most 1"),
        (["--gpu", "v100"], "no peak for bfloat16"),
        (["--tflops", "-1"], "--tflops=-1.0: above 0"),
        (["--gpus", "7"], "can't be shared out equally"),
        (["--images", "100", "--gpus", "8"], "at most 12 would work"),
        (["--output", "none/x.md"], "does not exist"),
    ],
)
def test_bad_requests(capsys, recipe, words, message):
    code, _, err = run(capsys, "--config", recipe, *words)
    assert code == 2 and message in err


def test_recipes_that_can_not_be_planned(capsys, tmp_path, recipe):
    for text, message in (
        (RECIPE.replace("num_classes: 1000", "num_classes: 10"), "give --images N"),
        (RECIPE.replace("max_epochs: 300", "max_steps: 5"), "needs a number of epochs"),
        ("trainer: {max_epochs: 1}", "names no model"),
        (RECIPE.replace("deit_tiny_patch16_224", "deit_tny_patch16_224"), "close names: deit_tiny"),
    ):
        recipe.write_text(text)
        code, _, err = run(capsys, "--config", recipe)
        assert code == 2 and message in err
    assert run(capsys, "--config", tmp_path / "none.yaml")[0] == 2
    (tmp_path / "empty").mkdir()
    with pytest.raises(RecipeError, match="no recipe"):
        find_recipes([tmp_path / "empty"])


def test_terminal_and_json_say_the_same(capsys, recipe, tmp_path):
    pytest.importorskip("rich")
    code, out, _ = run(capsys, "--config", recipe, "--gpus", 8, "--images", 10240)
    assert code == 0 and "1.25 GMAC" in out and "assum" not in out.split("- each GPU")[0]
    assert run(capsys, "--config", recipe, "--gpus", 8, "--images", 10240, "--output", tmp_path / "p.json")[0] == 0
    (plan,) = json.loads((tmp_path / "p.json").read_text())["recipes"]
    assert plan["macs"] == MACS and plan["params"] == 5_717_416  # counted, not given
    assert plan["rows"][0]["steps"] == 3000 and "3,000" in out


def counts_of_the_page() -> dict[str, tuple[int, int]]:
    """(parameters, MAC) by recipe, as docs/cost.md has them."""
    rows = re.findall(r"^\| \[(\w+)\]\(#\w+\) \| ([\d,]+) \| ([\d,]+) \|", PAGE.read_text(), re.MULTILINE)
    return {name: (int(params.replace(",", "")), int(macs.replace(",", ""))) for name, params, macs in rows}


def page(counts) -> str:
    plans = [make_plan(path, Assumptions(), (1, 8, 64), counts(path)) for path in find_recipes([RECIPES])]
    return to_markdown(plans, Assumptions(), "vitgraft plan --config recipes/imagenet1k --output docs/cost.md")


def test_the_page_is_what_the_recipes_say_now():
    """All but the counts, which take longer and are checked below."""
    known = counts_of_the_page()
    assert page(lambda path: lambda model: (*known[path.stem], (3, 224, 224))) == PAGE.read_text(), (
        "docs/cost.md is stale: vitgraft plan --config recipes/imagenet1k --output docs/cost.md"
    )


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(path.stem, marks=() if path.stem == "deit_tiny" else pytest.mark.slow)
        for path in find_recipes([RECIPES])
    ],
)
def test_the_counts_of_the_page_are_those_of_the_models(name):
    *counts, size = count(read_recipe(RECIPES / f"{name}.yaml")["model"]["init_args"])
    assert tuple(counts) == counts_of_the_page()[name] and size == (3, 224, 224)
