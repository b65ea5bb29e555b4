"""The paper's tables: complete, within tolerance or explained, in every format."""

import io
import json

import pytest
from rich.console import Console

from vitgraft.report import tables
from vitgraft.report.paper import TABLES, PaperRow
from vitgraft.report.spec import ModelSpec
from vitgraft.report.tables import Cost, Row, count_table, read_top1, spec_of


@pytest.fixture(scope="module")
def counted():
    return {number: count_table(table) for number, table in TABLES.items()}


def test_every_table_and_row_is_there():
    assert {number: len(table.rows) for number, table in TABLES.items()} == {
        "1": 18, "2": 4, "5": 6, "6": 7, "7": 2, "A": 4,
    }  # fmt: skip
    for table in TABLES.values():
        for row in table.rows:
            assert len(row.setting) == len(table.columns)
            assert float(row.params) > 5 and 1 < float(row.macs) < 15 and 72 <= float(row.top1) <= 84
            assert row.model is not None


def test_a_model_of_ours_has_one_cost_in_all_tables(counted):
    found = {}
    for rows in counted.values():
        for row in rows:
            if row.cost is not None:
                assert found.setdefault(str(spec_of(row.paper)), row.cost) == row.cost


def test_counts_agree_with_the_print_or_say_why(counted):
    rows = [row for rows in counted.values() for row in rows if row.cost is not None]
    assert len(rows) == 41
    for row in rows:
        assert row.within_tolerance or row.paper.note, (row.paper, row.cost)


def test_known_models(counted):
    here = {row.paper.label: row.cost for row in counted["1"]}
    assert here["Swin-T"] == Cost(28_288_354, 4_490_566_656)
    assert here["TNT-B"] == Cost(65_428_680, 14_049_082_880)
    assert here["PVT-M"] == Cost(44_208_104, 6_659_175_424)
    assert {row.paper.label: row.cost for row in counted["2"]}["CrossViT-9"] == Cost(8_553_296, 1_840_796_160)


@pytest.mark.parametrize(
    ("printed", "params", "macs", "expected"),
    [
        ("29", 28.288e6, 4.5e9, True),  # 28.5 would still print as 29, and 28.288 is less than 1 % below that
        ("29", 28.2e6, 4.5e9, False),
        ("29.0", 28.288e6, 4.5e9, False),
        ("29", 29e6, 4.72e9, True),
        ("29", 29e6, 4.73e9, False),
        ("29", 29e6, 4.27e9, False),
    ],
)
def test_tolerance(printed, params, macs, expected):
    assert Row(PaperRow("x", printed, "4.5", "80"), Cost(int(params), int(macs)), None).within_tolerance is expected


# label, setting -> parameters (10^6), MAC (10^9): an independent count of the same reading of the paper
INDEPENDENT = {
    "1": {("Swin-T + GrafT",): (33.948, 4.875), ("Swin-S + GrafT",): (64.414, 9.581), ("CSWin-T",): (22.321, 4.324)},
    "2": {("DeiT-T + GrafT",): (7.877, 1.223)},
    "6": {
        ("(a) Swin-T + GrafT", "1 scale"): (33.436, 4.842),
        ("(a) Swin-T + GrafT", "3 scales"): (33.948, 4.875),
        ("(b) DeiT-T + GrafT", "4 grafts"): (6.502, 1.154),
        ("(b) DeiT-T + GrafT", "8 grafts"): (7.288, 1.193),
        ("(b) DeiT-T + GrafT", "11 grafts"): (7.877, 1.223),
    },
}


@pytest.mark.parametrize("number", INDEPENDENT)
def test_grafted_models_have_the_counts_of_an_independent_reading(counted, number):
    here = {(row.paper.label, *row.paper.setting): row.cost for row in counted[number]}
    for key, (params, macs) in INDEPENDENT[number].items():
        assert (round(here[key].params / 1e6, 3), round(here[key].macs / 1e9, 3)) == (params, macs), key


def test_rows_out_of_tolerance_are_known(counted):
    out = {(n, row.paper.label) for n, rows in counted.items() for row in rows if row.within_tolerance is False}
    # CSWin-T + GrafT and a level to the left: see their notes
    assert out == {("1", "CSWin-T + GrafT"), ("A", "DeiT-T + GrafT")}


def test_difference():
    row = Row(PaperRow("x", "10", "2.0", "80"), Cost(11_000_000, 1_900_000_000), None)
    assert row.difference("params") == pytest.approx(0.1) and row.difference("macs") == pytest.approx(-0.05)
    assert Row(row.paper, None, None).difference("macs") is None


def test_formats_say_the_same(counted):
    some = {number: counted[number] for number in ("2", "A")}
    markdown = tables.to_markdown(some)
    assert "| DeiT-T | 5.7 | 5.717 | +0.3% | 1.3 | 1.254 | -3.6% | 72.2 | not measured |" in markdown
    assert "| PVT-T | 13.2 | 13.229 | +0.2% | 1.9 | 1.933 | +1.7% | 75.1 | not measured |" in markdown

    file = io.StringIO()
    tables.print_terminal(some, Console(file=file, width=80))
    lines = file.getvalue().splitlines()
    (line,) = (line for line in lines if line.startswith("CrossViT-9"))
    assert line.split() == ["CrossViT-9", "8.6", "8.553", "-0.5%", "1.8", "1.841", "+2.3%", "73.9", "not", "measured"]

    result = json.loads(json.dumps(tables.to_json(some)))
    assert [table["table"] for table in result["tables"]] == ["2", "A"]
    first, _, pvt, _ = result["tables"][0]["rows"]
    assert first["paper"] == {"params_m": "5.7", "macs_g": "1.3", "top1": "72.2"}
    assert first["here"] == {"params": 5_717_416, "macs": 1_253_683_200, "top1": None}
    assert first["difference"]["params"] == pytest.approx(0.003055, abs=1e-5) and first["within_tolerance"] is True
    assert pvt["model"] == "pvt_tiny" and pvt["available"] is True and pvt["within_tolerance"] is True
    assert (
        result["tables"][1]["rows"][2]["left levels"] == "0" and result["tables"][1]["rows"][2]["right levels"] == "2"
    )


def test_measured_accuracy_fills_the_column(tmp_path):
    run = {"kind": "classification", "dataset": "imagenet1k", "model": "graft_deit_tiny_patch16_224"}
    (tmp_path / "a.json").write_text(json.dumps({**run, "metrics": {"top1": 75.0}}))
    (tmp_path / "b.json").write_text(json.dumps({**run, "metrics": {"top1": 75.94}}))
    (tmp_path / "c.json").write_text(
        json.dumps({**run, "model_options": {"graft": {"blocks": 8}}, "metrics": {"top1": 74.0}})
    )
    (tmp_path / "d.json").write_text(json.dumps({**run, "dataset": "cifar10", "metrics": {"top1": 99.0}}))
    (tmp_path / "e.json").write_text(json.dumps({"kind": "bench"}))
    top1 = read_top1(tmp_path)
    eight = str(ModelSpec(run["model"], {"graft": {"blocks": 8}}))
    assert top1 == {run["model"]: 75.94, eight: 74.0}
    row = count_table(TABLES["2"], top1)[-1]
    assert tables.cells(row)[-2:] == ["76.1", "75.9"]
    assert [row.top1 for row in count_table(TABLES["A"], top1)] == [None, None, None, 74.0]


@pytest.mark.parametrize("text", ["{", "[]", '{"kind": "classification"}'])
def test_a_broken_result_file_is_named(tmp_path, text):
    (tmp_path / "broken.json").write_text(text)
    with pytest.raises(ValueError, match=r"broken\.json: not a result file"):
        read_top1(tmp_path)
