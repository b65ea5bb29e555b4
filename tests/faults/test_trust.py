"""A checkpoint, a run folder, a json, a tar or a name from elsewhere starts no code and opens no file outside."""

import csv
import io
import json
import shutil
import sys
import tarfile
from functools import partial

import pytest
import torch
from conftest import RECIPE, run_main
from PIL import Image

from vitgraft.cli import main
from vitgraft.data.coco import open_coco
from vitgraft.data.readers.folder_or_tar import Files, FileSource, open_class_folders
from vitgraft.errors import DataError, ImageError, UntrustedError
from vitgraft.metrics.classification import ClassificationMetrics
from vitgraft.metrics.report_writer import write_report
from vitgraft.predict.load import open_model
from vitgraft.predict.run import predictions
from vitgraft.predict.writers import CsvWriter, HtmlWriter
from vitgraft.terminal import csv_cell, markdown_table, printable, warn
from vitgraft.untrusted import check_class_paths, class_paths

pytest.importorskip("pytorch_lightning")

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
run = partial(run_main, main)
TASK, DATA = "vitgraft.tasks.classification.Classification", "vitgraft.data.classification.ImageData"
MODULE = """\
from pathlib import Path
Path(__file__).with_name("code_ran").touch()
from vitgraft.tasks.classification import Classification
from vitgraft.data.classification import ImageData
"""


@pytest.fixture(scope="module")
def trained(class_folders, tmp_path_factory):
    """A run of one epoch."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "tiny.yaml").write_text(RECIPE)
    words = ["fit", "--config", folder / "tiny.yaml", "--data.root", class_folders, "--out", folder / "run"]
    assert main([*map(str, words)]) == 0
    return folder


@pytest.fixture
def stranger(trained, tmp_path, monkeypatch):
    """A run folder from elsewhere, with a module that leaves `code_ran` beside it when it is imported."""
    shutil.copytree(trained / "run", tmp_path / "run")
    shutil.copy(trained / "tiny.yaml", tmp_path)
    (tmp_path / "stranger.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("stranger", None)


def change(folder, task=TASK, data=None, **options):
    """Gives the checkpoints of a run another task and options, and its record another class of data."""
    for path in (folder / "run").glob("*.ckpt"):
        content = torch.load(path, weights_only=True)
        torch.save({**content, "task": task, "hyper_parameters": {**content["hyper_parameters"], **options}}, path)
    if data is not None:
        record = json.loads((folder / "run" / "run.json").read_text())
        record["recipe"]["data"] |= data
        (folder / "run" / "run.json").write_text(json.dumps(record))


def routes(folder, class_folders):
    """Every command that reads a run folder."""
    run, root, image = folder / "run", ["--data.root", class_folders], class_folders / "val" / "cat" / "0.png"
    return {
        "validate": ["validate", "--ckpt_path", run, *root],
        "test": ["test", "--ckpt_path", run / "last.ckpt", *root],
        "predict": ["predict", "--ckpt", run, image],
        "export": ["export", run, folder / "exported"],
        "resume": ["fit", "--config", folder / "tiny.yaml", "--out", run, "--resume", *root],
    }


NESTED = {"class_path": "stranger.Classification"}
HARM = {
    "task": ({"task": "stranger.Classification"}, "task: class_path='stranger.Classification'"),
    "an option": ({"opt_kwargs": {"deep": [NESTED]}}, "opt_kwargs.deep[0].class_path='stranger.Classification'"),
    "text of an option": (
        {"data_config": {"mean": '{"class\\u005fpath": "stranger.Classification"}'}},
        "data_config.mean.class_path='stranger.Classification'",
    ),
}


@pytest.mark.parametrize("harm", HARM)
@pytest.mark.parametrize("route", ["validate", "test", "predict", "export", "resume"])
def test_a_checkpoint_starts_no_code(capsys, stranger, class_folders, route, harm):
    options, named = HARM[harm]
    change(stranger, **options)
    words = routes(stranger, class_folders)[route]
    code, _, err = run(capsys, *map(str, words))
    assert code == 2 and named in err and "--trust" in err and "Traceback" not in err
    assert not (stranger / "code_ran").exists() and "stranger" not in sys.modules


@pytest.mark.parametrize("route", ["validate", "test", "predict", "export", "resume"])
def test_trust_leads_out(capsys, stranger, class_folders, route):
    change(stranger, task="stranger.Classification")
    words = [*map(str, routes(stranger, class_folders)[route]), "--trust"]
    code, _, err = run(capsys, *words)
    assert code == 0, err
    # only the commands that build the run's own task import it; predict and export take vitgraft's of that name
    assert (stranger / "code_ran").exists() == (route in ("validate", "test"))


def test_the_record_of_a_run_starts_no_code(capsys, stranger, class_folders):
    from vitgraft.training.lightning_cli import with_data_of_run

    change(stranger, data={"class_path": "stranger.ImageData"})
    recipe = {"model": {"class_path": "vitgraft.tasks.segmentation.Segmentation", "init_args": {}}}
    with pytest.raises(UntrustedError, match=r"run\.json: recipe\.data: class_path='stranger\.ImageData'.*--trust"):
        with_data_of_run(recipe, str(stranger / "run" / "last.ckpt"))
    assert not (stranger / "code_ran").exists()
    found = with_data_of_run(recipe, str(stranger / "run" / "last.ckpt"), trust=True)
    assert found["data"]["class_path"] == "stranger.ImageData"


def test_what_the_user_names_is_his(capsys, stranger, class_folders):
    """A recipe is code: a class of the user's own, in a recipe of his, needs no --trust."""
    recipe = stranger / "own.yaml"
    recipe.write_text(RECIPE.replace("class_path: Classification", "class_path: stranger.Classification"))
    words = [str(w) for w in ("--config", recipe, "--data.root", class_folders, "--out", stranger / "own")]
    assert run(capsys, "fit", *words)[0] == 0
    change(stranger, task="stranger.Classification")
    assert run(capsys, "fit", *words, "--resume")[0] == 0
    assert run(capsys, "validate", *words, "--ckpt_path", str(stranger / "run"))[0] == 0


def test_python_asks_as_well(stranger):
    change(stranger, task="stranger.Classification")
    with pytest.raises(UntrustedError, match="trust=True"):
        open_model(stranger / "run")
    open_model(stranger / "run", trust=True).save_pretrained(stranger / "exported")
    assert not (stranger / "code_ran").exists()


def test_trust_is_no_advice_where_it_would_not_help(capsys, stranger, class_folders):
    change(stranger, task="stranger.Regression")
    code, _, err = run(capsys, *map(str, routes(stranger, class_folders)["predict"]))
    assert code == 2 and "its task is" in err and "predictions need Classification" in err and "--trust" not in err


@pytest.mark.parametrize("route", ["predict", "export"])
def test_a_model_of_a_foreign_class_is_named(capsys, stranger, class_folders, route):
    change(stranger, model={"class_path": "stranger.Model"})
    code, _, err = run(capsys, *map(str, routes(stranger, class_folders)[route]))
    assert code == 2 and "its model is stranger.Model; predictions need one" in err and "--trust" not in err


def test_own_classes_by_both_names():
    check_class_paths("x", {"class_path": "Classification", "init_args": {"a": {"class_path": TASK}, "b": "n: 1"}})
    for name in ("vitgraft.tasks.classification.pl", "vitgraft.weights.files.shutil", "Regression", 3, None):
        with pytest.raises(UntrustedError):
            check_class_paths("x", {"class_path": name})
    assert class_paths({"a": "{class_path: b.C}"}) == {"b.C": "a.class_path"}


def test_values_that_hold_themselves_or_are_too_deep():
    circle = {"a": []}
    circle["a"].append(circle)
    assert class_paths(circle) == {}
    deep = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(UntrustedError, match="too deep"):
        class_paths(deep)


# files outside the dataset


@pytest.fixture
def secret(tmp_path):
    """An image beside the dataset."""
    Image.new("RGB", (40, 40), "red").save(tmp_path / "secret.png")
    (tmp_path / "set" / "train").mkdir(parents=True)
    Image.new("RGB", (40, 40)).save(tmp_path / "set" / "train" / "a.png")
    return tmp_path / "secret.png"


@pytest.mark.parametrize("how", ["absolute", "above", "above, from inside"])
def test_a_json_opens_no_file_outside_its_set(secret, how):
    root = secret.parent / "set"
    name = {"absolute": str(secret), "above": "../../secret.png", "above, from inside": "x/../../../secret.png"}[how]
    images = [{"id": i, "file_name": n, "width": 40, "height": 40} for i, n in enumerate(["a.png", name])]
    objects = [{"id": i, "image_id": i, "category_id": 1, "bbox": [1, 1, 20, 20], "area": 400} for i in (0, 1)]
    for kept in (images, images[1:]):
        values = {"images": kept, "annotations": objects, "categories": [{"id": 1, "name": "a"}]}
        (root / "instances_train.json").write_text(json.dumps(values))
        if len(kept) == 1:
            with pytest.raises(DataError, match="not in"):
                open_coco(root, "instances_train.json").load(0)
        else:
            source = open_coco(root, "instances_train.json")
            source.load(0)
            with pytest.raises(ImageError, match=r"leads out of the dataset|No such file"):
                source.load(1)


def test_links_in_a_tar_lead_nowhere(secret):
    path = secret.parent / "set.tar"
    with tarfile.open(path, "w") as tar:
        tar.add(secret.parent / "set" / "train" / "a.png", "cat/a.png")
        for kind, name in ((tarfile.SYMTYPE, "cat/b.png"), (tarfile.LNKTYPE, "cat/c.png")):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, str(secret)
            tar.addfile(member)
        member = tarfile.TarInfo("cat/../../secret.png")
        data = b"of the tar"
        member.size = len(data)
        tar.addfile(member, io.BytesIO(data))
    source = open_class_folders(path)
    names = [source.name(i) for i in range(len(source))]
    assert len([name for name in names if name.endswith(("b.png", "c.png"))]) == 0
    assert secret.read_bytes() not in [source.read(i) for i in range(len(source))]


def test_a_folder_has_no_files_outside(secret):
    files = Files(secret.parent / "set")
    for name in (str(secret), "../secret.png", "train/../../secret.png"):
        assert not files.has(name) and files.read(name) is None
        with pytest.raises(ImageError, match="leads out"):
            FileSource(files, [name]).read(0)
    assert files.has("train/../train/a.png")


# names in what is written and shown

NAMES = [
    "=HYPERLINK('http://x')",
    "+1",
    "-cmd",
    "@sum",
    "\tx",
    "\x1b[2J\x1b]0;title\x07bad",
    "<script>alert(1)</script>",
]


def test_formulas_in_csv():
    assert [csv_cell(name)[0] for name in NAMES[:5]] == ["'"] * 5
    assert csv_cell("cat") == "cat" and csv_cell("'x") == "'x" and csv_cell(-1.5) == -1.5 and csv_cell(None) is None
    assert csv_cell("'=1") == "''=1", "taking one off gives back what it was"


@pytest.mark.parametrize(
    "text", ["\x1b[31mred", "a\x07", "b\x9b31m", "c\u202edcba", "d\u2028e", "\r overwritten", "\x7f"]
)
def test_escapes_are_shown(text, capsys):
    shown = printable(text)
    assert shown.isprintable() and "\\" in shown
    warn(text)
    assert capsys.readouterr().err == f"warning: {shown}\n"


def test_plain_text_stays():
    for text in ("cat", "Übergröße 猫", "two\nlines", "👩‍🔬"):
        assert printable(text) == text
    assert printable(b"caf\xe9".decode(errors="surrogateescape")) == "caf\\udce9"


def test_markdown_has_no_tags():
    assert "<script" not in markdown_table(["name"], [NAMES[6:]]) and "\x1b" not in markdown_table(["name"], [NAMES])
    assert markdown_table(["a"], [["1 < 2"]]) == "| a |\n| --- |\n| 1 < 2 |\n"


def test_reports_of_hostile_class_names(tmp_path):
    metric = ClassificationMetrics(len(NAMES))
    metric.update(torch.eye(len(NAMES)), torch.arange(len(NAMES)))
    write_report(tmp_path, metric.report(), NAMES)
    rows = list(csv.DictReader((tmp_path / "classes.csv").open(newline="")))
    assert [row["name"] for row in rows] == [csv_cell(name) for name in NAMES]
    page = (tmp_path / "classes.md").read_text()
    assert "\x1b" not in page and "<script" not in page
    assert json.loads((tmp_path / "metrics.json").read_text())["class_names"] == NAMES


def test_predictions_with_hostile_names(tmp_path, trained):
    change(_copy(trained, tmp_path), class_names=NAMES[4:])
    predictor = open_model(tmp_path / "run")
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("=1+1.png", "\x1b[2Jx.png"):
        Image.new("RGB", (32, 32)).save(folder / name)
    files = Files(folder)
    found = list(predictions(predictor, FileSource(files, files.images())))
    for one, name in zip(found, files.images(), strict=True):
        one.image = name
    for writer, path in ((CsvWriter, tmp_path / "p.csv"), (HtmlWriter, tmp_path / "p.html")):
        with writer(path, predictor) as out:
            for one in found:
                out.add(one)
    cells = [cell for row in csv.reader((tmp_path / "p.csv").open(newline="")) for cell in row]
    assert "'=1+1.png" in cells and not any(cell.startswith(("=", "+", "-", "@", "\t", "\r")) for cell in cells)
    page = (tmp_path / "p.html").read_text()
    assert "\x1b" not in page and "<script>alert" not in page and "\\x1b[2Jx.png" in page


def test_the_terminal_obeys_no_name(tmp_path, trained, capsys):
    change(_copy(trained, tmp_path), class_names=NAMES[4:])
    (tmp_path / "images").mkdir()
    Image.new("RGB", (32, 32)).save(tmp_path / "images" / "a\x1b[2J.png")
    (tmp_path / "images" / "b\x1b[2J.png").write_bytes(b"no image")
    code, out, err = run(capsys, "predict", "--ckpt", str(tmp_path / "run"), str(tmp_path / "images"))
    assert code == 0 and "\x1b" not in out + err and "\\x1b[2J" in out and "\\x1b[2J" in err


def test_check_data_obeys_no_name(tmp_path, capsys):
    for name in ("a\x1b[2J", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x\x1b[2J.png").write_bytes(b"no image")
    for form in ("terminal", "markdown"):
        code, out, err = run(capsys, "check-data", str(tmp_path), "--format", form)
        assert code == 1 and "\x1b" not in out + err and "\\x1b[2J" in out


def _copy(trained, folder):
    shutil.copytree(trained / "run", folder / "run")
    return folder
