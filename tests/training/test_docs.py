"""The YAML of docs/training.md and docs/coming_from_*.md: the command line's parser takes it."""

import json
import re
from pathlib import Path

import pytest

from vitgraft.errors import RecipeError

pl = pytest.importorskip("pytorch_lightning")
from vitgraft.training import lightning_cli  # noqa: E402
from vitgraft.training.recipe import load_yaml, merge, read_recipe  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

ROOT = Path(__file__).resolve().parents[2]
BLOCKS = [load_yaml(text) for text in re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/training.md").read_text(), re.S)]
SECTIONS = [block["trainer"] for block in BLOCKS if list(block) == ["trainer"]]


class _Parsed(lightning_cli.VitgraftCLI):
    """Parses and makes nothing."""

    def instantiate_classes(self) -> None:
        self.model = self.datamodule = self.trainer = None


def _parse(recipe: dict):
    errors = lightning_cli.recipe_errors(recipe, lightning_cli.TOP, {"data": lightning_cli.DATA}, lightning_cli.PARTS)
    if errors:
        raise RecipeError(errors)
    recipe = lightning_cli.with_class_paths(recipe, {"data": lightning_cli.DATA})
    return _Parsed(["fit", "--config", json.dumps(recipe)]).config.fit


def test_sections_for_every_way_are_there():
    kinds = [section.get("strategy") for section in SECTIONS]
    paths = [kind["class_path"] if isinstance(kind, dict) else kind for kind in kinds]
    assert {"ddp", "ModelParallelStrategy", "DDPStrategy"} <= set(paths) and len(SECTIONS) >= 6


@pytest.mark.parametrize("section", SECTIONS)
def test_the_parser_takes_a_section(section):
    recipe = merge(read_recipe(ROOT / "recipes/imagenet1k/graft_swin_tiny.yaml"), {"trainer": section})
    parsed = _parse(recipe).trainer
    assert parsed.devices == section["devices"] and parsed.accelerator == section["accelerator"]
    if isinstance(section.get("strategy"), dict):
        assert parsed.strategy.class_path.endswith(f".{section['strategy']['class_path']}")
        assert section["strategy"]["init_args"].items() <= vars(parsed.strategy.init_args).items()


def test_an_unknown_strategy_is_refused():
    recipe = merge(
        read_recipe(ROOT / "recipes/imagenet1k/swin_tiny.yaml"), {"trainer": {"strategy": {"class_path": "X"}}}
    )
    with pytest.raises(RecipeError, match=r"trainer\.strategy="):
        _parse(recipe)


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("coming_from_*.md")), ids=lambda page: page.stem)
def test_recipes_of_who_comes_from_elsewhere(page):
    """A block is a whole recipe, or goes over the one that the comment before it names."""
    text = page.read_text()
    found = re.findall(r"^<!-- (?:whole recipe|over (\S+)) -->\n```yaml\n(.*?)^```$", text, re.S | re.M)
    assert len(found) == text.count("```yaml") > 0
    for below, block in found:
        _parse(merge(read_recipe(ROOT / below), load_yaml(block)) if below else load_yaml(block))


def test_the_recipe_of_the_page(tmp_path):
    (recipe,) = [dict(block) for block in BLOCKS if "base" in block]
    assert (ROOT / "recipes/imagenet1k" / recipe.pop("base")).is_file()
    parsed = _parse(recipe)
    assert parsed.model.init_args.lr == 5e-4 and parsed.model.init_args.graft == {"levels": 1}
