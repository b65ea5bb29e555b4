"""Reading recipes: numbers, bases, merging, the arguments of the command line, and what is refused."""

import pytest

from vitgraft.errors import RecipeError

pytest.importorskip("pytorch_lightning")
from vitgraft.training.recipe import load_yaml, merge, parse_arguments, read_recipe


def _write(folder, name, text):
    path = folder / name
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "value"),
    [("5e-4", 5e-4), ("1E5", 1e5), ("-2.5e-1", -0.25), (".5e1", 5.0), ("1e", "1e"), ("e5", "e5"), ("12", 12)],
)
def test_exponents_are_numbers(text, value):
    loaded = load_yaml(text)
    assert loaded == value and type(loaded) is type(value)


def test_a_key_given_twice_is_an_error(tmp_path):
    path = _write(tmp_path, "a.yaml", "model:\n  lr: 1\n  lr: 2\n")
    with pytest.raises(RecipeError, match=r"a\.yaml: not readable as YAML: 'lr' is given twice"):
        read_recipe(path)


def test_base_is_below(tmp_path):
    _write(tmp_path, "_b.yaml", "model: {class_path: C, init_args: {lr: 1, opt: sgd}}\ntrainer: {max_epochs: 3}\n")
    path = _write(tmp_path, "a.yaml", "base: _b.yaml\nmodel: {init_args: {lr: 2}}\n")
    assert read_recipe(path) == {
        "model": {"class_path": "C", "init_args": {"lr": 2, "opt": "sgd"}},
        "trainer": {"max_epochs": 3},
    }


def test_one_base_is_the_most(tmp_path):
    _write(tmp_path, "c.yaml", "model: {}\n")
    _write(tmp_path, "b.yaml", "base: c.yaml\n")
    with pytest.raises(RecipeError, match=r"b\.yaml has a base itself"):
        read_recipe(_write(tmp_path, "a.yaml", "base: b.yaml\n"))


@pytest.mark.parametrize(
    ("text", "message"),
    [("[1, 2]", "has sections"), ("a: [", "not readable as YAML"), ("base: 3", "not the name of a file")],
)
def test_files_that_are_not_recipes(tmp_path, text, message):
    with pytest.raises(RecipeError, match=message):
        read_recipe(_write(tmp_path, "a.yaml", text))


def test_missing_file_and_missing_base(tmp_path):
    with pytest.raises(RecipeError, match=r"none\.yaml: No such file"):
        read_recipe(tmp_path / "none.yaml")
    with pytest.raises(RecipeError, match=r"gone\.yaml: No such file"):
        read_recipe(_write(tmp_path, "a.yaml", "base: gone.yaml"))


def test_options_of_another_class_are_dropped():
    below = {"model": {"class_path": "A", "init_args": {"x": 1}}}
    assert merge(below, {"model": {"class_path": "B"}}) == {"model": {"class_path": "B"}}
    assert merge(below, {"model": {"class_path": "A"}}) == below
    assert below == {"model": {"class_path": "A", "init_args": {"x": 1}}}


def test_arguments():
    line = "--config a.yaml --smoke --model.lr 1e-3 --model.graft={'levels':1} -c b.yaml --data.root x --data.train+ y"
    arguments, values = parse_arguments([*line.split(), "--model.lr_batch", "-3"])
    assert arguments.config == ["a.yaml", "b.yaml"] and arguments.smoke and not arguments.resume
    model = {"lr": 1e-3, "graft": {"levels": 1}, "lr_batch": -3}
    assert values == {"model": model, "data": {"root": "x", "train": ["y"]}}


def test_all_errors_of_the_arguments_at_once():
    with pytest.raises(RecipeError) as caught:
        parse_arguments(["recipe.yaml", "--model.lr", "--data.root"])
    assert len(caught.value.errors) == 3
    assert "'recipe.yaml'" in str(caught.value) and "--data.root: a value is missing" in str(caught.value)
