"""The report of a run that trains: written, over the whole run, and never the end of a run."""

import pytest

pytest.importorskip("pytorch_lightning")
pytest.importorskip("matplotlib")

from vitgraft.training.callbacks import run_report

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


@pytest.fixture
def words(recipe, class_folders, tmp_path):
    return ["fit", "--config", recipe, "--data.root", class_folders, "--out", tmp_path / "run"]


def test_curves_and_page_of_a_resumed_run_cover_all_of_it(run_command, words, tmp_path, monkeypatch):
    drawn = []
    real = run_report.curves_figure
    monkeypatch.setattr(run_report, "curves_figure", lambda *given: drawn.append(given) or real(*given))
    words += ["--trainer.max_epochs", 3, "--model.sched", "constant"]
    code, _, err = run_command(*words)
    assert code == 0, err
    curves, updates, title = drawn[-1]
    assert updates == 3 and title == "run" and list(curves["val/acc"][0]) == [3, 6, 9]
    assert (tmp_path / "run" / "curves.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "run" / "report.html").read_text()
    assert "9 updates, epoch 3" in page and "top-1 accuracy" in page and page.count("data:image/png") == 1
    assert len(drawn) == 2  # the first validation, and the end: no second one within 20 seconds

    assert run_command(*words, "--resume")[0] == 0
    assert list(drawn[-1][0]["val/acc"][0]) == [3, 6, 9]
