"""The paper's figures: what is drawn is what the tables say, and what is measured is the structure."""

import json
from pathlib import Path

import pytest
import torch

from reproduction import figures
from reproduction.__main__ import main
from reproduction.paper import TABLES
from reproduction.receptive_field import (
    SYSTEMS,
    StageField,
    build,
    load_photos,
    measure_receptive_fields,
    stages_of,
    to_markdown,
    to_record,
)
from reproduction.tradeoff import draw_tradeoff, rows_of


def _drawn(ax):
    return {(float(x), float(y)) for line in ax.lines for x, y in line.get_xydata()}


def test_every_printed_system_is_drawn_where_the_table_says():
    figure = draw_tradeoff()
    for ax, number in zip(figure.axes, "12", strict=True):
        printed = {(float(row.macs), float(row.scores[0])) for row in TABLES[number].rows}
        assert _drawn(ax) == printed
        labels = {text.get_text() for text in ax.texts} - {""}
        assert labels == {row.label for row in TABLES[number].rows}


def test_each_graft_has_an_arrow_from_its_base():
    figure = draw_tradeoff()
    arrows = [text for ax in figure.axes for text in ax.texts if text.get_text() == ""]
    grafted = [point for point in rows_of("1", "2") if point.grafted]
    assert len(arrows) == len(grafted) == 4
    assert (arrows[0].xyann, arrows[0].xy) == ((4.5, 81.3), (5.1, 82.7))  # Swin-T to Swin-T + GrafT


def test_the_speed_panel_holds_what_was_measured():
    speeds = {"swin_tiny_patch4_window7_224": 40.0, "graft_swin_tiny_patch4_window7_224": 36.0}
    figure = draw_tradeoff(speeds, "somewhere")
    assert _drawn(figure.axes[2]) == {(4.5, 40.0), (5.1, 36.0)}
    assert "somewhere" in figure.axes[2].get_title()


@pytest.mark.slow
def test_windows_keep_a_token_inside_and_grafts_let_it_out():
    photos = load_photos()[:1]
    results = measure_receptive_fields(photos, ["DeiT-T, windows", "DeiT-T + GrafT", "Swin-T", "Swin-T + GrafT"])
    seen = {(one.system, one.stage): one.theoretical for one in results}
    assert all(seen["DeiT-T, windows", f"block {i}"] == 0.25 for i in (3, 6, 9, 12))  # one window of four
    assert seen["DeiT-T + GrafT", "block 3"] == 1.0
    # 7 x 7 windows twice, shifted by 3 tokens of 4 pixels: 14 x 14 tokens at most
    assert seen["Swin-T", "stage 1"] == pytest.approx(14 * 14 / 56**2, abs=1e-3)
    assert seen["Swin-T + GrafT", "stage 1"] > 0.99


def test_areas_and_their_table():
    field = torch.zeros(10, 10)
    field[0, 0], field[0, 1], field[0, 2] = 1.0, 0.01, 1e-5
    one = StageField("Swin-T", "stage 1", field)
    assert (one.theoretical, one.effective) == (pytest.approx(0.03), pytest.approx(0.02))
    assert "| Swin-T | stage 1: 3.0% / 2.0% |" in to_markdown(to_record([one], 1, (0,)))


def test_stages_are_read_at_four_depths():
    for system in SYSTEMS:
        assert len(stages_of(build(system))) == 4


def test_command_draws_from_a_bench_file(tmp_path, capsys):
    record = {
        "machine": {"device": "cpu", "device_name": "a chip", "threads": 2},
        "results": [
            {
                "mode": "infer",
                "dtype": "float32",
                "batch_size": 8,
                "model": "swin_tiny_patch4_window7_224",
                "images_per_second": {"median": 40.0},
            }
        ],
    }
    (tmp_path / "bench.json").write_text(json.dumps(record))
    arguments = ["figures", "tradeoff", "--bench", str(tmp_path / "bench.json"), "--out", str(tmp_path / "out")]
    assert main(arguments) == 0
    assert (tmp_path / "out" / "tradeoff.png").read_bytes().startswith(b"\x89PNG")
    assert "a chip, 2 threads" in (tmp_path / "out" / "tradeoff.svg").read_text()
    assert "tradeoff.svg" in capsys.readouterr().out
    page = (tmp_path / "out" / "figures.md").read_text()
    assert "(tradeoff.png)" in page and "(receptive_field.png)" not in page


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "unknown figure nothing; there are tradeoff, receptive_field"),
        (["receptive_field", "--photos", "missing"], "--photos missing: no such folder"),
        (["tradeoff", "--bench", "missing.json"], "missing.json: not a file that vitgraft bench --output wrote"),
    ],
)
def test_bad_requests(arguments, message, tmp_path, capsys):
    assert main(["figures", *arguments, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_empty_folder_of_photos(tmp_path):
    with pytest.raises(ValueError, match="no image found"):
        load_photos(tmp_path)
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"broken\.jpg: .*not an image"):
        load_photos(tmp_path)


def test_the_page_has_the_areas_of_the_folder(tmp_path):
    field = torch.eye(10)
    record = to_record([StageField("Swin-T", f"stage {i}", field) for i in (1, 2)], 37, (0, 1))
    (tmp_path / "receptive_field.json").write_text(json.dumps(record))
    page = figures.page(tmp_path)
    assert "over 37 photos and 2 seeds" in page
    assert "| Swin-T | stage 1: 10.0% / 10.0% | stage 2: 10.0% / 10.0% |" in page


def test_the_page_in_docs_is_that_of_its_numbers():
    """Stale? `python -m reproduction figures --photos DIR --out docs/pictures`."""
    folder = Path(__file__).parents[2] / "docs" / "pictures"
    assert (folder / "figures.md").read_text(encoding="utf-8") == figures.page(folder)
    rows = json.loads((folder / "receptive_field.json").read_text())["rows"]
    seen = {(row["system"], row["stage"]): row["theoretical"] for row in rows}
    assert len(seen) == 4 * len(SYSTEMS)
    assert all(seen["DeiT-T, windows", f"block {i}"] == 0.25 for i in (3, 6, 9, 12))
    assert seen["Swin-T", "stage 1"] < 0.1 and seen["Swin-T + GrafT", "stage 1"] > 0.99
