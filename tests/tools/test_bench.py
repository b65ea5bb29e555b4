"""The benchmark: what it measures on a micro model, and the fields of its JSON."""

import io
import json
import statistics

import pytest
import timm
import torch
from rich.console import Console

from vitgraft.errors import ModelSpecError
from vitgraft.tools.bench import BenchConfig, bench, fused_attention, print_terminal, total_reports
from vitgraft.tools.count import count_macs, count_params

MICRO = "vit_tiny_patch16_224:depth=1:embed_dim=48:img_size=32:num_classes=5"


@pytest.fixture(scope="module")
def result():
    config = BenchConfig(modes=("infer", "train"), batch_size=2, img_sizes=(32,), rounds=2, round_seconds=0.01)
    lines = []
    found = bench([MICRO, MICRO.replace("depth=1", "depth=3")], config, lines.append)
    assert len(lines) == total_reports(2, config) == 2 * 2 * 2 * 3
    return json.loads(json.dumps(found))


def test_schema(result):
    assert set(result) == {"kind", "date", "machine", "config", "clock", "memory", "results"}
    assert result["kind"] == "bench"
    for name in ("device", "device_name", "threads", "cpu_count", "python", "torch", "timm", "vitgraft"):
        assert result["machine"][name]
    assert {"load_average", "allocator"} <= set(result["machine"])
    assert result["config"]["dtypes"] == ["float32"] and result["config"]["batch_size"] == 2
    assert [(row["mode"], row["model"][:36]) for row in result["results"]] == [
        (mode, f"vit_tiny_patch16_224:depth={depth}:embed_d") for mode in ("infer", "train") for depth in (1, 3)
    ]
    for row in result["results"]:
        speed = row["images_per_second"]
        assert len(speed["rounds"]) == 2 and 0 < speed["q25"] <= speed["median"] <= speed["q75"]
        assert row["dtype"] == "float32" and row["fused_attn"] in ("on", "off") and row["steps_per_round"] >= 1
        assert row["input_size"] == [3, 32, 32] and row["peak_memory_bytes"] > row["params"] * 4
        assert len(row["cpu_seconds_per_image"]) == 2 and row["first_step_seconds"] > 0 and row["gpu_kernels"] is None
        expected = 2 * row["macs_per_image"] / row["seconds_per_image"] / row["matmul_peak_flops_per_second"]
        assert row["share_of_matmul_peak"] == pytest.approx(expected)


def test_of_the_attention_settings_the_faster_one_counts(result):
    for row in result["results"]:
        by_setting = row["seconds_by_fused_attn"]
        assert set(by_setting) == {"on", "off"}
        assert row["seconds_per_image"] * 2 == pytest.approx(min(by_setting.values()))
        assert by_setting[row["fused_attn"]] == min(by_setting.values())


def test_one_thread_counts_cpu_time(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    config = BenchConfig(rounds=3, round_seconds=0.001, batch_size=1, memory=False, fused_attn="off")
    assert config.clock == "cpu"
    found = bench([MICRO], config)
    (row,) = found["results"]
    assert found["clock"] == "cpu"
    assert row["seconds_per_image"] == statistics.median(row["cpu_seconds_per_image"])
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert config.clock == "wall"


def test_several_image_sizes_give_an_exponent():
    spec = "vit_tiny_patch16_224:depth=1:embed_dim=48:num_classes=5"
    config = BenchConfig(
        img_sizes=(32, 64, 128), rounds=1, round_seconds=0.001, batch_size=1, memory=False, fused_attn="off"
    )
    rows = bench([spec], config)["results"]
    assert [row["input_size"][1] for row in rows] == [32, 64, 128]
    assert rows[0]["exponent_from_previous"] is None
    growth = rows[2]["seconds_per_image"] / rows[0]["seconds_per_image"]
    assert 16 ** rows[2]["exponent_from_smallest"] == pytest.approx(growth)
    assert 4 ** (rows[1]["exponent_from_previous"] + rows[2]["exponent_from_previous"]) == pytest.approx(growth)


def test_a_frozen_model_beside_the_model():
    config = BenchConfig(
        runs=("eager", "freeze"), rounds=1, round_seconds=0.001, batch_size=1, memory=False, fused_attn="off"
    )
    rows = bench([MICRO], config)["results"]
    assert [row["run"] for row in rows] == ["eager", "freeze"]
    assert rows[0]["macs_per_image"] == rows[1]["macs_per_image"] and rows[0]["params"] == rows[1]["params"]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16-weights"])
def test_runs_are_compared_with_the_first_model_and_with_its_best_run(dtype):
    config = BenchConfig(
        dtypes=(dtype,), runs=("eager", "compile", "compile-frozen"), rounds=2, round_seconds=0.001, batch_size=1,
        memory=False, fused_attn="off", channels_last=True,
    )  # fmt: skip
    rows = bench([MICRO, MICRO.replace("depth=1", "depth=2")], config)["results"]
    assert [row["run"] for row in rows] == ["eager", "compile", "compile-frozen"] * 2
    assert all(row["ratio_to_first"]["median"] == 1 for row in rows[:3])
    assert min(abs(row["ratio_to_best_of_first"]["median"] - 1) for row in rows[:3]) == 0
    assert rows[1]["first_step_seconds"] > 10 * rows[0]["seconds_per_image"]  # it compiles


def test_ratios_are_of_the_same_round(result):
    first, second = result["results"][:2]
    pairs = zip(second["images_per_second"]["rounds"], first["images_per_second"]["rounds"], strict=True)
    ratios = sorted(mine / theirs for mine, theirs in pairs)
    assert first["ratio_to_first"] == {"median": 1, "min": 1, "max": 1}
    assert second["ratio_to_first"] == pytest.approx(
        {"min": ratios[0], "median": (ratios[0] + ratios[1]) / 2, "max": ratios[1]}
    )


def test_counts_and_memory(result):
    model = timm.create_model("vit_tiny_patch16_224", depth=1, embed_dim=48, img_size=32, num_classes=5)
    infer, train = result["results"][0], result["results"][2]
    assert infer["params"] == train["params"] == count_params(model)
    assert infer["macs_per_image"] == count_macs(model, (3, 32, 32))
    assert train["macs_per_image"] == count_macs(model, (3, 32, 32), training=True) > 2 * infer["macs_per_image"]
    # AdamW: weights, gradients and two moments
    assert train["peak_memory_bytes"] > 4 * 4 * count_params(model) > infer["peak_memory_bytes"]


def test_prints_what_it_was_measured_on(result):
    file = io.StringIO()
    print_terminal(result, Console(file=file, width=200))
    text = file.getvalue()
    assert "inference, float32, batch 2" in text and "training step (adamw), float32, batch 2" in text
    for value in (MICRO, torch.__version__, timm.__version__, "eager, 2 rounds", "set to fastest", "oneDNN", "load "):
        assert value in text


def test_bfloat16_is_autocast_and_sgd_has_no_moments():
    config = BenchConfig(
        dtypes=("bfloat16",), modes=("train",), batch_size=1, rounds=1, round_seconds=0.001, fused_attn="off",
        optimizer="sgd", memory=False,
    )  # fmt: skip
    (row,) = bench([MICRO], BenchConfig(**{**config.__dict__, "img_sizes": (32,)}))["results"]
    assert row["dtype"] == "bfloat16" and row["fused_attn"] == "off" and row["peak_memory_bytes"] is None
    assert set(row["seconds_by_fused_attn"]) == {"off"}


def test_unknown_models_are_found_before_anything_is_measured():
    lines = []
    with pytest.raises(ModelSpecError, match="vit_tny"):
        bench([MICRO, "vit_tny_patch16_224"], BenchConfig(), lines.append)
    assert lines == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtypes": ("float16",)}, r"dtypes\[0\]='float16': should be 'float32', 'bfloat16' or 'bfloat16-weights'"),
        ({"modes": ("eval",)}, r"modes\[0\]='eval'"),
        ({"runs": ("compile-frozen",), "modes": ("train",)}, "runs='compile-frozen' is for inference"),
        ({"compile_mode": "fast"}, "compile_mode='fast': should be 'default', "),
        ({"rounds": 0}, "rounds=0: should be greater than or equal to 1"),
        ({"fused_attn": "yes"}, "fused_attn='yes': should be 'fastest', 'on' or 'off'"),
    ],
)
def test_config_errors(options, message):
    with pytest.raises(ValueError, match=message):
        BenchConfig(**options)


@pytest.mark.parametrize("on", [True, False])
def test_fused_attention_switch_applies_to_swin_and_is_restored(on):
    before = timm.layers.use_fused_attn(), timm.layers.use_fused_attn(experimental=True)
    with fused_attention(on):
        model = timm.create_model("swin_tiny_patch4_window7_224", depths=(1,), num_heads=(3,))
    assert model.layers[0].blocks[0].attn.fused_attn is on
    assert (timm.layers.use_fused_attn(), timm.layers.use_fused_attn(experimental=True)) == before
