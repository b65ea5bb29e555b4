"""The survey of timm's families: each is tried, and none of the installed timm is forgotten."""

import ast
import re
from pathlib import Path

import pytest
import timm.models

import vitgraft
from vitgraft.tools import survey_models
from vitgraft.tools.survey import FamilyResult, survey, to_markdown
from vitgraft.tools.survey_models import FAMILIES

# files whose attention is an optional extra of a convolutional network (over channels, or a layer of byobnet's many)
CONVOLUTIONAL = {"byobnet", "cspnet", "cspnext", "nfnet", "vovnet"}

NOT_GRAFTABLE = {
    family: reason for (library, family), reason in survey_models.NOT_GRAFTABLE.items() if library == "timm"
}

ATTENTION = re.compile(r"attn|attention|token_mixer|mhsa|msa$|shsa$", re.IGNORECASE)


def files_with_attention() -> dict[str, set[str]]:
    """timm's files that define a class, or set an attribute, with attention in its name."""
    found: dict[str, set[str]] = {}
    for path in sorted(Path(timm.models.__file__).parent.glob("[!_]*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            name = node.name if isinstance(node, ast.ClassDef) else None
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                name = node.attr
            if name and ATTENTION.search(name):
                found.setdefault(path.stem, set()).add(name)
    return found


def test_no_file_of_the_installed_timm_is_forgotten():
    found = files_with_attention()
    assert len(found) > 40
    known = FAMILIES.keys() | NOT_GRAFTABLE.keys() | CONVOLUTIONAL
    forgotten = {file: names for file, names in found.items() if file not in known}
    assert not forgotten, "add these files to FAMILIES or NOT_GRAFTABLE"


def test_every_known_file_exists():
    files = {path.stem for path in Path(timm.models.__file__).parent.glob("*.py")}
    assert FAMILIES.keys() | NOT_GRAFTABLE.keys() | CONVOLUTIONAL <= files
    assert not FAMILIES.keys() & NOT_GRAFTABLE.keys()


def test_at_least_forty_are_claimed():
    assert len(FAMILIES) >= 40


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_the_claim_holds(family):
    (result,) = (result for result in survey([family]) if result.library == "timm")
    assert result.ok, result.reason
    assert 0 < result.grafts <= result.blocks
    assert result.family == family == file_of(result.model)


def file_of(name: str) -> str:
    """The file of the entry point: a class may come from the file it is built on (DeiT, PiT's hybrids)."""
    return timm.models.model_entrypoint(name).__module__.rsplit(".", 1)[-1]


@pytest.mark.parametrize("family", sorted(NOT_GRAFTABLE))
def test_what_cannot_be_grafted_has_a_reason(family):
    (result,) = (result for result in survey([family]) if result.library == "timm")
    assert not result.ok and result.reason == NOT_GRAFTABLE[family]


@pytest.mark.parametrize(
    "name,options",
    [
        ("efficientvim_m1", {}),
        ("hiera_tiny_224", {}),
        ("inception_next_atto", {}),
        ("naflexvit_base_patch16_gap", {"depth": 2, "embed_dim": 24, "num_heads": 3}),
        ("repvit_m0_9", {}),
    ],
)
def test_what_cannot_be_grafted_says_so(name, options):
    model = timm.create_model(name, **options)
    modules = (cls.__module__.rpartition(".")[2] for cls in type(model).__mro__)
    family = next(name for name in modules if name in NOT_GRAFTABLE)
    with pytest.raises(vitgraft.NoGraftPointError, match=re.escape(NOT_GRAFTABLE[family])):
        vitgraft.graft(model)


def test_markdown():
    text = to_markdown([FamilyResult("timm", "pit", "pit_ti_224", 9, 12), *survey(["repvit"])])
    assert "1 of 2 families" in text
    assert "| `pit` | `pit_ti_224` | 12 | 9 | grafted |" in text
    assert f"| `repvit` | `-` | - | - | no: {NOT_GRAFTABLE['repvit']} |" in text


def test_a_failing_family_is_reported_and_not_raised(monkeypatch):
    monkeypatch.setitem(FAMILIES, "vision_transformer", ("vit_tiny_patch16_224", {"depth": 0}))
    result = next(survey(["vision_transformer"]))
    assert not result.ok and "Error" in result.reason


def test_docs_list_every_family_of_every_library():
    text = (Path(__file__).resolve().parents[2] / "docs" / "families.md").read_text()
    for library in survey_models.LIBRARIES:
        _, _, section = text.partition(f"\n## {library}\n")
        section = section.partition("\n## ")[0]
        expected = [key.split()[0] for key in survey_models.known_families(library)]
        assert re.findall(r"^\| `([^`]+)`", section, re.MULTILINE) == expected
