"""docs/zoo.md agrees with the code."""

import re
from pathlib import Path

import timm

from reproduction.vectors import VECTORS
from vitgraft.tools.count import count_macs, count_params

TEXT = (Path(__file__).parents[2] / "docs" / "zoo.md").read_text()


def test_rows_are_the_registered_models_with_their_counts():
    rows = re.findall(r"^\| `(\w+)` \| \[.*?\]\(.*?\) \| ([\d,]+) \| ([\d.]+) \| (\S+) \| (\S+) \|$", TEXT, re.M)
    names = {n for p in ("pvt_*", "t2t_*", "vil_*", "regionvit_*") for n in timm.list_models(p) if "pvt_v2" not in n}
    assert {row[0] for row in rows} == names
    compared = {name for name, _ in VECTORS.values()}
    for name, params, macs, float32, float64 in rows:
        model = timm.create_model(name, device="meta")
        assert f"{count_params(model):,}" == params
        assert f"{count_macs(model, (3, 224, 224)) / 1e9:.3f}" == macs
        assert (float32 != "-") == (name in compared)
        if name in compared:
            assert float(float32) <= 1e-5 and float(float64) <= 1e-9


def test_speed_has_every_model():
    rows = dict(re.findall(r"^\| `(\w+)` \| [\d.]+ \| [\d.]+ \| ([\d.]+) \|$", TEXT, re.M))
    assert len(rows) == 15 and all(float(ratio) >= 1 for ratio in rows.values())
