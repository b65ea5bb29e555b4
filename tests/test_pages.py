"""README and docs/: their Python runs, and the commands, files and links in them exist."""

import ast
import re
import shlex
from pathlib import Path

import pytest
import timm
import torch

import vitgraft
from vitgraft.cli import main

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "results/README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
# a block that does not run here carries a comment with the reason in the line before it
CODE = re.compile(r"^(?P<marked><!-- not run: [^\n]+ -->\n)?```(?P<language>\w*)\n(?P<text>.*?)^```$", re.S | re.M)
# what makes a block quick, and independent of the network
QUICKER = {
    "pretrained=True": "pretrained=False",
    '"vit_small_patch14_dinov2"': '"vit_small_patch14_dinov2", img_size=224',
    "512, 768": "64, 96",
}
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


def blocks(name: str, language: str, marked: bool = False) -> list[str]:
    found = CODE.finditer((ROOT / name).read_text())
    return [block["text"] for block in found if block["language"] == language and bool(block["marked"]) == marked]


def commands(name: str) -> list[list[str]]:
    """The command lines of a page: those of blocks without a language, and those inside of sentences."""
    text = (ROOT / name).read_text().replace("\\\n", " ")
    lines = "\n".join(block["text"] for block in CODE.finditer(text) if not block["language"]).splitlines()
    lines += re.findall(r"`([^`\n]+)`", CODE.sub("", text))
    starts = re.compile(r"^(vitgraft [a-z]|python -m (reproduction|benchmarks|vitgraft))")
    return [shlex.split(line, comments=True) for line in lines if starts.match(line)]


def _vit(folder: Path) -> Path:
    """A small model as transformers saves it, in place of a published one."""
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64, image_size=64, patch_size=4
    )
    transformers.ViTForImageClassification(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", [name for name in NAMES if blocks(name, "python")])
def test_the_python_of_a_page_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = "\n".join(blocks(name, "python"))
    for slow, quick in QUICKER.items():
        text = text.replace(slow, quick)
    given = {"timm": timm, "torch": torch, "vitgraft": vitgraft, "images": torch.zeros(1, 3, 224, 224)}
    if "(NAME)" in text:
        given |= {"NAME": str(_vit(tmp_path / "published")), "DIR": str(tmp_path / "saved")}
    exec(compile(text, name, "exec"), given)


@pytest.mark.parametrize("name", [name for name in NAMES if blocks(name, "python", marked=True)])
def test_the_imports_of_a_block_that_does_not_run(name):
    for text in blocks(name, "python", marked=True):
        tree = ast.parse(text)
        tree.body = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
        exec(compile(tree, name, "exec"), {})


@pytest.fixture(scope="module")
def help_of():
    """The help text of a command, made once."""
    texts = {}

    def help_of(module: str, command: str, capsys) -> str:
        if (module, command) not in texts:
            if module == "reproduction":
                from reproduction.__main__ import main as run
            else:
                run = main
            try:
                code = run([command, "--help"])
            except SystemExit as end:
                code = end.code
            texts[module, command] = capsys.readouterr().out if not code else ""
        return texts[module, command]

    return help_of


@pytest.mark.parametrize("name", [name for name in NAMES if commands(name)])
def test_the_commands_of_a_page_exist(name, help_of, capsys):
    for words in commands(name):
        if words[0] == "python" and words[2] != "reproduction":
            assert (ROOT / f"{words[2].replace('.', '/')}.py").exists() or (
                ROOT / f"src/{words[2].replace('.', '/')}.py"
            ).exists(), words
            continue
        module, arguments = ("vitgraft", words[1:]) if words[0] == "vitgraft" else (words[2], words[3:])
        for command in arguments[:1]:
            text = help_of(module, command, capsys)
            assert text, words
            if command not in ("fit", "validate", "test"):  # theirs are checked with the recipes
                flags = {word.split("=")[0] for word in arguments if word.startswith("--")}
                assert not [flag for flag in flags if not re.search(rf"{flag}\b", text)], words


@pytest.mark.parametrize("name", NAMES)
def test_recipes_and_files_of_a_page_exist(name):
    text = (ROOT / name).read_text()
    files = re.findall(r"recipes/[\w/]+\.yaml|\b(?:tests|src|docs|reproduction|benchmarks)/[\w/.]+\.\w+", text)
    assert not [path for path in files if not (ROOT / path).is_file()]


def anchors(page: Path) -> set[str]:
    """What `#...` may follow a link to a page: its headings, as GitHub and the docs site write them."""
    headings = re.findall(r"^#+ (.+)$", CODE.sub("", page.read_text()), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", [*NAMES, "CHANGELOG.md", "reproduction/study/PROTOCOL.md"])
def test_links_of_a_page_lead_somewhere(name):
    page = ROOT / name
    for link in re.findall(r"\]\(([^)\s]+)\)", CODE.sub("", page.read_text())):
        if "://" not in link:
            file, _, anchor = link.partition("#")
            target = page.parent / file if file else page
            assert target.is_file(), link  # the docs site has no pages of folders
            assert not anchor or anchor in anchors(target), link


def test_every_page_is_in_the_table_of_contents():
    """docs/README.md, whose tables are the navigation of the docs site too."""
    rows = [line for line in (ROOT / "docs/README.md").read_text().splitlines() if line.startswith("|")]
    linked = {(ROOT / "docs" / link).resolve() for link in re.findall(r"\]\(([^)\s]+)\)", "\n".join(rows))}
    assert not {page for page in (ROOT / "docs").rglob("*.md") if page != ROOT / "docs/README.md"} - linked


def test_the_readme_is_short():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 92 and max(map(len, lines)) <= 120
