"""The layout that CONTRIBUTING draws: rooms import only rooms below, in no circle, and a file name means one thing.

Imports inside functions and for type checks count as well.
"""

import ast
from collections import Counter, defaultdict
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
UTILITIES = "vitgraft: errors, config, randomness, machine, terminal, atomic, options"
# from the bottom to the top
ROOMS = (
    UTILITIES,
    "vitgraft.layers",
    "vitgraft.grafting",
    "vitgraft.models",
    "vitgraft.weights",
    "vitgraft.data",
    "vitgraft.metrics",
    "vitgraft.tasks",
    "vitgraft.predict",
    "vitgraft.training",
    "vitgraft.tools",
    "vitgraft.commands",
    "vitgraft",  # what users import, and the command line: above all the rooms
    "reproduction",
    "benchmarks",
)
TOP = ("vitgraft", "vitgraft.cli", "vitgraft.__main__")
# the part of each room that is for this task, what a room is built on
SHARED_NAMES = {"classification.py", "detection.py", "segmentation.py", "base.py", "__init__.py"}


def name_of(path: Path) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


def source_files(root: Path) -> dict[str, Path]:
    """Module -> its file, of the package and of what stands beside it."""
    found = {}
    for base, folder in ((root / "src", "vitgraft"), (root, "reproduction"), (root, "benchmarks")):
        found |= {name_of(path.relative_to(base)): path for path in (base / folder).rglob("*.py")}
    return found


def imports_of(path: Path, modules) -> set[str]:
    """The project's modules that a file imports anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in modules else node.module for name in whole}
    return found & set(modules)


def room_of(module: str) -> str:
    parts = module.split(".")
    if module in TOP or parts[0] != "vitgraft":
        return parts[0]
    room = ".".join(parts[:2])
    return room if room in ROOMS else UTILITIES


def upward(graph: dict[str, set[str]]) -> list[str]:
    """Imports of a room above."""
    return [
        f"{module} imports {other}"
        for module, others in graph.items()
        for other in others
        if ROOMS.index(room_of(other)) > ROOMS.index(room_of(module))
    ]


MODULES = source_files(ROOT)
GRAPH = {module: imports_of(path, MODULES) - {module} for module, path in MODULES.items()}


def test_no_import_circle():
    try:
        TopologicalSorter(GRAPH).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_rooms_import_only_what_is_below():
    assert not upward(GRAPH)


def test_these_checks_can_fail(tmp_path):
    """An import inside a function, of a room above."""
    folder = tmp_path / "src" / "vitgraft"
    for name, text in (
        ("__init__", ""),
        ("errors", ""),
        ("layers/__init__", "def f():\n    from vitgraft.models import swin\n"),
        ("models/__init__", ""),
        ("models/swin", "import vitgraft.errors\nfrom vitgraft import layers\n"),
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.py").write_text(text)
    modules = source_files(tmp_path)
    graph = {module: imports_of(path, modules) for module, path in modules.items()}
    assert graph["vitgraft.models.swin"] == {"vitgraft.errors", "vitgraft.layers"}
    assert upward(graph) == ["vitgraft.layers imports vitgraft.models.swin"]
    with pytest.raises(CycleError):
        TopologicalSorter(graph).prepare()


def test_every_folder_of_the_package_is_a_room():
    folders = {f"vitgraft.{path.name}" for path in (ROOT / "src/vitgraft").iterdir() if any(path.glob("*.py"))}
    assert folders == {room for room in ROOMS if room.startswith("vitgraft.")}


def test_a_file_name_means_one_thing():
    places = defaultdict(list)
    for path in sorted((ROOT / "src/vitgraft").rglob("*.py")):
        places[path.name].append(str(path.relative_to(ROOT)))
    assert [found for name, found in places.items() if len(found) > 1 and name not in SHARED_NAMES] == []


def test_files_of_tests_differ_in_name():
    """pytest imports a test file by its name alone, so that of two with one name the second cannot be collected."""
    names = Counter(path.name for path in (ROOT / "tests").rglob("*.py"))
    assert [name for name, times in names.items() if times > 1 and name != "conftest.py"] == []


@pytest.mark.parametrize("module", [name for name in MODULES if room_of(name) in ("reproduction", "benchmarks")])
def test_what_is_not_in_the_wheel_uses_public_names(module):
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("vitgraft"):
            names = [*node.module.split("."), *(alias.name for alias in node.names)]
            assert not [name for name in names if name.startswith("_") and name != "__version__"]
