"""`python -m reproduction zoo`: docs/zoo.md, the zoo's models beside the official vectors and the plain formulas."""

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import timm
import torch

import vitgraft
from reproduction.vectors import VECTORS
from vitgraft.errors import CommandError
from vitgraft.machine import record
from vitgraft.terminal import markdown_table, write_json
from vitgraft.tools.count import count_macs, count_params

ROOT = Path(__file__).resolve().parent.parent
SPEED = ROOT / "results" / "zoo_speed.json"
PAGE = ROOT / "docs" / "zoo.md"
BATCH, ROUNDS = 2, 11

PAPERS = {
    "pvt": ("PVT v1", "2102.12122"),
    "t2t": ("T2T-ViT", "2101.11986"),
    "regionvit": ("RegionViT", "2106.02689"),
    "vil": ("ViL", "2103.15358"),
}
MODELS = (
    "pvt_tiny", "pvt_small", "pvt_medium", "pvt_large",
    "t2t_vit_14", "t2t_vit_t_14", "t2t_vit_t_19",
    "regionvit_tiny", "regionvit_small", "regionvit_medium", "regionvit_base",
    "vil_tiny", "vil_tiny_rpb", "vil_small_rpb", "vil_medium_deep_rpb",
)  # fmt: skip

TEXT = """# The zoo: the systems the paper compares with

Models of the paper's tables that timm does not have, written from their papers in timm's interface. Parameter names are
the authors', so `vitgraft.load_official(model, "their_checkpoint.pth")` reads the published files as they are. Made by
`python -m reproduction zoo`.

```python
model = timm.create_model("regionvit_small", num_classes=10)            # after `import vitgraft`
maps = timm.create_model("pvt_tiny", features_only=True)(images)        # strides 4, 8, 16, 32
```

## Equal to the official models

Largest difference of the logits from those of the official code, over all vectors of a model (inputs that need padding
or interpolation included), weights sent through `load_official`. Logits have a standard deviation of about 1; the
official code itself differs by 3e-6 between float32 and float64. "-": no vector of this size, the code is that of its
neighbors.

{table}

MAC are those of the official code to the last digit, except for ViL: its authors' code projects keys and values twice
with the same weights, and computes and masks the windows outside the map. That is left out here (tiny: 1.390 instead of
1.460 G); the tests check that the difference is exactly that (`reproduction.vectors.official_extra_macs`).

## Input sizes

| family | sizes |
|---|---|
| PVT v1 | any from 32 x 32 up; position embeddings are interpolated, \
also where another shape has as many tokens (112 x 448), where the authors leave them |
| RegionViT | any from 4 x 4 up; padded and masked by the authors' rules |
| T2T-ViT | `img_size`; any with `dynamic_img_size=True`, as timm's ViT; `model.set_input_size(...)` changes it |
| ViL | `img_size`, from 32 x 32 up; `model.set_input_size(...)` changes it |

`load_official` resizes position embeddings and tables of a checkpoint that was trained at another size, with a note.
Another size than the model takes is an error that names what would work.

Features: PVT, RegionViT and ViL give a map per stage; T2T-ViT gives its blocks' maps at stride 16, as timm's ViT does.
RegionViT's maps are its local tokens; its classifier reads the regional ones.

## Speed

Images per second of the thread's CPU time, inference on {machine}, one thread, float32,
batch {batch} of 224 x 224, medians of {rounds} rounds that take turns; "plain" is the same model with its attention
written as softmax(q k^T) v with PyTorch's own operators (`tests/reference/zoo_plain.py`; ViL's neighborhoods by
`unfold`). The ratio is the median of the rounds' ratios.
{busy}

{speed}

## Why PVT v1 is not taken from transformers

transformers has it (`PvtForImageClassification`), and it computes the same function: with the same weights its float64
logits are equal to the official ones, once the epsilons of its norms are set one by one (before that they are 1e-5 to
3e-5 off). It is not taken because

- its parameters have other names, so a published checkpoint needs a table of names for each depth;
- its interface is not timm's: no `features_only`, `forward_intermediates`, `reset_classifier`, layer decay groups,
  `in_chans`, or registered name, which detection, segmentation, `vitgraft bench` and the recipes use;
- it would make transformers a dependency of the core for one file of 300 lines.

## Grafts

Not needed for the paper's tables. `vitgraft.graft(model)` works on T2T-ViT, which is a ViT of timm behind its stem; PVT
v1, RegionViT and ViL it refuses with a `NoGraftPointError`, and leaves them as they were.
"""


def total_reports(speed: bool) -> int:
    """How often `write_page` calls its `report`."""
    return len(VECTORS) + (len(MODELS) if speed else 0)


def differences(report: Callable[[str], None]) -> dict[str, tuple[float, float]]:
    """Model -> largest difference from its vectors in float32 and float64."""
    folder = Path(os.environ.get("VITGRAFT_SHARED", ROOT.parent / "shared")) / "conformance"
    if not folder.is_dir():
        raise CommandError(f"{folder}: no such folder; $VITGRAFT_SHARED names the one that holds conformance/")
    sys.path.insert(0, str(folder))
    import compare

    found: dict[str, tuple[float, float]] = {}
    for vector, (name, options) in VECTORS.items():
        report(vector)
        result = compare.check(timm.create_model(name, **options), vector, load=vitgraft.load_official)
        if not result["ok"]:
            raise CommandError(f"{vector}: {result}")
        old = found.get(name, (0.0, 0.0))
        found[name] = (max(old[0], result["float32"]), max(old[1], result["float64"]))
    return found


def measure(report: Callable[[str], None]) -> None:
    """Ours and plain in turns, one thread; to results/zoo_speed.json."""
    sys.path.insert(0, str(ROOT / "tests"))
    from reference.zoo_plain import plain

    torch.set_num_threads(1)
    results = []
    for name in MODELS:
        report(name)
        torch.manual_seed(0)
        ours = timm.create_model(name).eval()
        models, x = {"ours": ours, "plain": plain(ours)}, torch.randn(BATCH, 3, 224, 224)
        rates: dict[str, list[float]] = {"ours": [], "plain": []}
        with torch.inference_mode():
            for one in models.values():
                one(x)
            for turn in range(ROUNDS):
                for key in sorted(models, reverse=turn % 2 == 1):
                    # the thread's own time: what else runs on the machine does not count
                    start = time.thread_time()
                    models[key](x)
                    rates[key].append(BATCH / (time.thread_time() - start))
        ratio = statistics.median(a / b for a, b in zip(rates["ours"], rates["plain"], strict=True))
        results.append({"model": name, "images_per_second": rates, "ratio": ratio})
    setting = {"load_average": os.getloadavg(), "clock": "thread CPU time", "batch_size": BATCH}
    write_json(SPEED, record("zoo_speed", "cpu", **setting, results=results))


def write_page(speed: bool, report: Callable[[str], None]) -> Path:
    """Writes docs/zoo.md and returns its path.

    Args:
        speed: Measure the speed first.
        report: Gets a line about each piece of work, `total_reports(speed)` times.

    Raises:
        CommandError: The vectors are not there, or a model differs from one.
    """
    if speed:
        measure(report)
    found = differences(report)
    models = []
    for name in MODELS:
        model = timm.create_model(name, device="meta")
        label, paper = PAPERS[name.partition("_")[0]]
        counts = [f"{count_params(model):,}", f"{count_macs(model, (3, 224, 224)) / 1e9:.3f}"]
        errors = [f"{value:.1e}" for value in found[name]] if name in found else ["-", "-"]
        models.append([f"`{name}`", f"[{label}](https://arxiv.org/abs/{paper})", *counts, *errors])
    measured = json.loads(SPEED.read_text())
    speeds = []
    for one in measured["results"]:
        medians = (statistics.median(one["images_per_second"][key]) for key in ("ours", "plain"))
        speeds.append([f"`{one['model']}`", *(f"{median:.1f}" for median in medians), f"{one['ratio']:.2f}"])
    machine, load = measured["machine"], measured["load_average"][1]
    busy = ""
    if load > machine["cpu_count"]:
        busy = f"The machine did other work too (load {load:.0f}), so the images/s are lower than they would be alone."
    headings = ("model", "paper", "parameters", "MAC (G)", "float32", "float64")
    text = TEXT.format(
        table=markdown_table(headings, models).rstrip(),
        machine=f"{machine['device_name']} ({machine['cpu_capability']}), torch {machine['torch']}",
        batch=measured["batch_size"],
        rounds=len(measured["results"][0]["images_per_second"]["ours"]),
        speed=markdown_table(("model", "images/s", "plain", "ratio"), speeds).rstrip(),
        busy=busy,
    )
    PAGE.write_text(text)
    return PAGE
