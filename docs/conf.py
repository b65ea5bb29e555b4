"""The docs site, made by `make site`.

Sphinx reads the Markdown of the repository where it lies, so that links between pages, to recipes and sources hold.
"""

import re
import shutil
from pathlib import Path
from typing import Annotated, get_args, get_origin

import sphinx.util.typing

import vitgraft

ROOT = Path(__file__).resolve().parents[1]

project = "vitgraft"
version = release = vitgraft.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "README"
include_patterns = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "results/README.md", "docs/**"]
include_patterns += ["reproduction/study/PROTOCOL.md"]  # linked from docs/study.md
exclude_patterns = [".*", "runs", "src", "tests"]

html_theme = "furo"
html_title = f"vitgraft {version}"
html_show_copyright = False
highlight_language = "none"  # blocks without a language are commands and trees of files

myst_heading_anchors = 4  # anchors as GitHub makes them
default_role = "literal"  # docstrings have `name` for code
autodoc_inherit_docstrings = False
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
napoleon_numpy_docstring = False
napoleon_use_ivar = True
smartquotes = False
# names of other libraries: their indices would need the network
nitpick_ignore_regex = [(r"py:.*", r"(?!vitgraft\.).*")]

stringify = sphinx.util.typing.stringify_annotation


def stringify_plain(annotation, *args, **kwargs) -> str:
    """`Annotated[int, the range]` as `int`; autodoc has no option for it."""
    return stringify(get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation, *args, **kwargs)


sphinx.util.typing.stringify_annotation = stringify_plain  # before autodoc is loaded


def contents() -> str:
    """The site's navigation: the sections of docs/README.md with the pages that they link to."""
    sections = re.split(r"^## (.+)$", (ROOT / "docs/README.md").read_text(encoding="utf-8"), flags=re.M)
    parts = ["```{toctree}\n:hidden:\n\ndocs/README\n```"]
    for caption, text in zip(sections[1::2], sections[2::2], strict=True):
        rows = "\n".join(line for line in text.splitlines() if line.startswith("|"))
        pages = [(ROOT / "docs" / link).resolve() for link in re.findall(r"\]\(([\w./-]+\.(?:md|rst))\)", rows)]
        names = dict.fromkeys(str(page.relative_to(ROOT).with_suffix("")) for page in pages)
        parts.append("\n".join(["```{toctree}", ":hidden:", f":caption: {caption}", "", *names, "```"]))
    return "\n\n".join(parts)


def add_contents(app, name: str, source: list[str]) -> None:
    if name == root_doc:
        source[0] += "\n" + contents()


def add_index(app, error: Exception | None) -> None:
    if not error:
        shutil.copyfile(app.outdir / "README.html", app.outdir / "index.html")  # what a server shows of a folder


def setup(app) -> None:
    app.connect("build-finished", add_index)
    app.connect("source-read", add_contents)
