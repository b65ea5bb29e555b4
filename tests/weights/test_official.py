import argparse
import copy
import json
import re

import pytest
import timm
import torch
from conftest import shared
from open_mmlab import as_open_mmlab
from safetensors.torch import save_file
from torch import nn

import vitgraft
from vitgraft.errors import CheckpointError
from vitgraft.models.dense import DenseFeatures
from vitgraft.models.swin import SwinTransformer
from vitgraft.weights.official import load_official

SWIN = {"embed_dim": 16, "depths": (2, 2), "num_heads": (1, 2), "num_classes": 7, "window_size": 4}
CSWIN = {"embed_dim": 16, "depths": (1, 1), "num_heads": (2, 2), "split_sizes": (1, 2), "num_classes": 7}


def swin(seed=0, **kwargs):
    torch.manual_seed(seed)
    return SwinTransformer(**{**SWIN, **kwargs}).eval()


def cswin(seed=0, **kwargs):
    torch.manual_seed(seed)
    return timm.create_model("cswin_tiny_224", **{**CSWIN, **kwargs}).eval()


def as_authors(model):
    """A Swin's state dict under its authors' names, buffers included."""
    named = {}
    for name, value in model.state_dict().items():
        name = re.sub(r"layers\.(\d+)\.downsample", lambda m: f"layers.{int(m[1]) - 1}.downsample", name)
        named[name.replace("head.fc.", "head.")] = value
    named["layers.0.blocks.1.attn_mask"] = torch.zeros(2)
    named["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(16, 16, dtype=torch.long)
    return named


def assert_same(one, other):
    one, other = one.state_dict(), other.state_dict()
    assert list(one) == list(other)
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=0, msg=name)


def unchanged(model):
    """Call the result to check that nothing has moved since."""
    before = copy.deepcopy(model)
    return lambda: assert_same(model, before)


def test_swin_authors_names():
    source, model = swin(1), swin(2)
    report = load_official(model, {"model": as_authors(source), "epoch": 3})
    assert_same(model, source)
    assert report.wrapper == "model" and report.missing == report.unexpected == report.reshaped == []
    assert [line.split(":")[0] for line in report.skipped] == [
        "layers.0.blocks.1.attn_mask",
        "layers.0.blocks.0.attn.relative_position_index",
    ]
    assert f"{len(report.loaded)} tensors loaded from 'model'" in str(report)


def test_official_tiny_conformance_names_load_into_timm_swin():
    meta = json.loads(shared("conformance", "swin_tiny_dense_512.json").read_text())
    state = {name: torch.randn(shape) for name, shape, dtype in meta["state_dict"] if dtype.startswith("float")}
    model = timm.create_model("swin_tiny_patch4_window7_224", num_classes=0)
    with pytest.raises(CheckpointError, match=r"DenseFeatures"):
        load_official(model, state)
    report = load_official(DenseFeatures(model), state)
    assert len(report.loaded) == len(state)
    torch.testing.assert_close(model.layers[2].downsample.norm.weight.data, state["layers.1.downsample.norm.weight"])


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_files(tmp_path, suffix):
    source, model, path = cswin(1), cswin(2), tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(source.state_dict(), path)
    else:  # as timm's training script writes it
        torch.save({"state_dict": source.state_dict(), "args": argparse.Namespace(lr=1.0)}, path)
    report = load_official(model, str(path))
    assert_same(model, source)
    assert report.wrapper == (None if suffix == ".safetensors" else "state_dict")


PREFIXES = ["module.", "_orig_mod.", "module._orig_mod.model.", "model.model.", "base_model.model.", "student."]


@pytest.mark.parametrize("prefix", [*PREFIXES, "module.backbone.", "encoder.0.backbone."])
def test_names_of_wrappers(prefix):
    """Of DataParallel, torch.compile, Lightning's modules, PEFT, and of anybody else."""
    source, model = swin(1), swin(2)
    report = load_official(model, {"state_dict": {prefix + name: v for name, v in source.state_dict().items()}})
    assert_same(model, source)
    assert report.wrapper == "state_dict"


@pytest.mark.parametrize("prefix", ["", *PREFIXES])
def test_a_detector_in_a_wrapper(prefix):
    source, model = DenseFeatures(swin(1), out_indices=(0, 1)), DenseFeatures(swin(2), out_indices=(0, 1))
    state = {f"backbone.{name.removeprefix('backbone.')}": value for name, value in source.state_dict().items()}
    state = {prefix + name: value for name, value in {**state, "neck.fpn.weight": torch.zeros(3)}.items()}
    assert load_official(model, state).skipped == ["neck.fpn.weight: not of the backbone"]
    assert_same(model, source)


def test_one_of_two_models_in_a_file_is_not_guessed():
    state = {f"{who}.{name}": value for who in ("student", "teacher") for name, value in swin(1).state_dict().items()}
    model = swin(2)
    check = unchanged(model)
    for strict in (True, False):
        with pytest.raises(CheckpointError, match=r"names begin with 'student\.' and are the model's behind it"):
            load_official(model, state, strict)
    check()


def test_models_inside_wrappers():
    source, compiled = swin(1), torch.compile(swin(2))
    load_official(compiled, source.state_dict())
    assert_same(compiled._orig_mod, source)
    parallel = torch.nn.DataParallel(swin(2))
    load_official(parallel, source.state_dict())
    assert_same(parallel.module, source)


@pytest.mark.parametrize("grafted", [False, True])
@pytest.mark.parametrize(
    ("name", "options", "cut"),
    [
        (  # timm holds this one in a wrapper
            "vit_tiny_patch16_224",
            {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 3, "num_heads": 2},
            {"norm", "blocks.2"},
        ),
        (  # and makes this one of parts, stages.0 as stages_0
            "nextvit_small",
            {},
            {"norm", "stages.2", "stages.3"},
        ),
    ],
)
def test_features_only(name, options, cut, grafted):
    """Everything that is left of the model is filled, and what was cut off is listed."""
    source = timm.create_model(name, **options)
    features = timm.create_model(name, features_only=True, out_indices=(0, 1), **options).eval()
    if grafted:
        vitgraft.graft(features, window_size=2, blocks=(0,), levels=1)
    report = load_official(features, source.state_dict())
    assert all(".graft." in name for name in report.missing) and bool(report.missing) == grafted
    gone = {line.split(":")[0] for line in report.skipped if line.endswith("features_only cut it off")}
    assert gone == {key for key in source.state_dict() if any(key.startswith(f"{part}.") for part in cut)}
    image = torch.randn(1, 3, 32, 32)
    vitgraft.strip(features) if grafted else None
    with torch.no_grad():
        wanted = source.eval().forward_intermediates(image, indices=[0, 1], intermediates_only=True)
        for have, want in zip(features(image), wanted, strict=True):
            torch.testing.assert_close(have, want)
    with pytest.raises(CheckpointError, match="are missing"):
        part = {key: value for key, value in source.state_dict().items() if not key.startswith("patch_embed.")}
        load_official(features, {key: value for key, value in part.items() if not key.startswith("stem.")})


def test_features_only_is_strict_about_the_rest():
    """A part that is left but smaller, a deeper model, and tensors of something else are not "cut off"."""
    swin_options = {"embed_dim": 16, "num_heads": (1, 1, 2, 2), "img_size": 224}
    small, name = {**swin_options, "depths": (2, 2, 2, 2)}, "swin_tiny_patch4_window7_224"
    source = timm.create_model(name, **{**swin_options, "depths": (2, 2, 4, 2)})
    with pytest.raises(CheckpointError, match="have no place in the model"):
        load_official(timm.create_model(name, features_only=True, **small), source.state_dict())
    fitting = timm.create_model(name, **small).state_dict()
    with pytest.raises(CheckpointError, match=r"neck.weight"):
        load_official(timm.create_model(name, features_only=True, **small), {**fitting, "neck.weight": torch.ones(1)})
    vit = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "num_heads": 2}
    deep = timm.create_model("vit_tiny_patch16_224", depth=4, **vit).state_dict()
    with pytest.raises(CheckpointError, match="have no place in the model"):
        load_official(timm.create_model("vit_tiny_patch16_224", features_only=True, depth=3, **vit), deep)


def test_the_authors_swin_goes_into_features_only():
    """Their merging is a stage earlier than timm's, whose flattened stages are called layers_1."""
    options = {"embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2)}
    source = timm.create_model("swin_tiny_patch4_window7_224", **options)
    features = timm.create_model("swin_tiny_patch4_window7_224", features_only=True, **options)
    report = load_official(features, {"model": as_authors(source)})
    assert not report.missing and not report.unexpected
    own = features.state_dict()
    assert torch.equal(own["layers_1.downsample.reduction.weight"], source.layers[1].downsample.reduction.weight)


def test_averaged_weights_are_preferred_and_reported():
    raw, ema = cswin(1), cswin(2)
    content = {
        "state_dict": raw.state_dict(),
        "state_dict_ema": {f"module.{k}": v for k, v in ema.state_dict().items()},
    }
    model = cswin(3)
    report = load_official(model, content)
    assert_same(model, ema)
    assert (report.wrapper, report.passed_over) == ("state_dict_ema", ["state_dict"])
    assert "from 'state_dict_ema' (not taken: state_dict)" in str(report)
    load_official(model, content, wrapper="state_dict")
    assert_same(model, raw)
    with pytest.raises(CheckpointError, match=r"wrapper='model'.*'state_dict_ema', 'state_dict'"):
        load_official(model, content, wrapper="model")


def test_own_dense_state_dict_round_trip():
    source, model = DenseFeatures(swin(1), out_indices=(0, 1)), DenseFeatures(swin(2), out_indices=(0, 1))
    nn.init.normal_(source.norm1.weight)
    assert load_official(model, source.state_dict()).missing == []
    assert_same(model, source)


def test_cswin_segmentation_norms_count_from_one():
    big = {"depths": (1, 1, 1, 1), "num_heads": (2, 2, 2, 2), "split_sizes": (1, 2, 7, 7)}
    source, model = DenseFeatures(cswin(1, **big)), DenseFeatures(cswin(2, **big))
    for i in range(4):
        nn.init.normal_(getattr(source, f"norm{i}").weight)
    state = {}
    for name, value in source.state_dict().items():
        name = re.sub(r"^norm(\d)", lambda m: f"norm{int(m[1]) + 1}", name)
        state[f"backbone.{name.removeprefix('backbone.')}"] = value
    load_official(model, {"state_dict": state})
    assert_same(model, source)


def test_classification_weights_into_dense_features():
    model = DenseFeatures(swin(2), out_indices=(0, 1))
    report = load_official(model, as_authors(swin(1)))
    assert report.missing == ["norm0.weight", "norm0.bias", "norm1.weight", "norm1.bias"]
    assert {line.split(":")[0] for line in report.skipped} >= {"backbone.norm.weight", "backbone.head.weight"}


def test_grafted_model():
    source, model = swin(1), swin(2)
    model.layers[0].blocks[1].graft = nn.Linear(16, 16)
    graft = copy.deepcopy(model.layers[0].blocks[1].graft)
    report = load_official(model, as_authors(source))
    assert report.missing == ["layers.0.blocks.1.graft.weight", "layers.0.blocks.1.graft.bias"]
    assert "2 new, of grafts" in str(report)
    assert_same(model.layers[0].blocks[1].graft, graft)
    torch.testing.assert_close(model.norm.weight, source.norm.weight)

    other = swin(3)
    other.layers[1].blocks[1].graft = nn.Linear(32, 32)
    check = unchanged(other)
    with pytest.raises(CheckpointError, match="another graft configuration"):
        load_official(other, model.state_dict())
    with pytest.raises(CheckpointError, match=r"same grafts"):
        load_official(swin(4), model.state_dict())
    check()


def test_tables_of_another_window_are_resized():
    source, model = swin(1, window_size=3), swin(2)
    table = source.layers[0].blocks[0].attn.relative_position_bias_table
    nn.init.constant_(table, 2.5)
    report = load_official(model, as_authors(source))
    assert len(report.reshaped) == 4 and "(25, 1) -> (49, 1)" in report.reshaped[0]
    got = model.layers[0].blocks[0].attn.relative_position_bias_table
    torch.testing.assert_close(got, torch.full_like(got, 2.5))  # a constant stays constant


def test_deit_at_another_size_and_without_class_token():
    vit = {"embed_dim": 24, "depth": 1, "num_heads": 2, "num_classes": 5}
    source = timm.create_model("vit_tiny_patch16_224", img_size=64, **vit)
    nn.init.normal_(source.pos_embed)
    state = {"model": source.state_dict()}
    model = timm.create_model("vit_tiny_patch16_224", img_size=96, **vit)
    assert load_official(model, state).reshaped == ["pos_embed: (1, 17, 24) -> (1, 37, 24)"]
    torch.testing.assert_close(model.pos_embed[:, :1], source.pos_embed[:, :1])

    windowed = timm.create_model(
        "vit_tiny_patch16_224", img_size=64, class_token=False, global_pool="avg", fc_norm=False, **vit
    )
    report = load_official(windowed, state)
    torch.testing.assert_close(windowed.pos_embed, source.pos_embed[:, 1:])
    assert report.skipped == ["cls_token: the model has no class token"]


def test_other_classes():
    model = swin(2, num_classes=3)
    check = unchanged(model)
    with pytest.raises(CheckpointError, match=r"7 classes against 3.*num_classes=7.*reset_classifier\(3\)"):
        load_official(model, as_authors(swin(1)))
    check()
    report = load_official(model, as_authors(swin(1)), strict=False)
    assert [line for line in report.skipped if "classes" in line] == [
        "head.fc.weight: 7 classes, the model has 3",
        "head.fc.bias: 7 classes, the model has 3",
    ]
    headless = swin(2, num_classes=0)
    assert "head.weight: the model has no classifier" in load_official(headless, as_authors(swin(1))).skipped


def remove(name):
    return lambda state: {k: v for k, v in state.items() if k != name}


@pytest.mark.parametrize(
    "change, message",
    [
        (remove("norm.weight"), r"1 tensors of the model are missing \(norm.weight\)"),
        (remove("head.weight"), "num_classes=0"),
        (lambda s: {**s, "alien": torch.zeros(1)}, r"1 tensors have no place in the model \(alien\)"),
        (lambda s: {**s, "norm.weight": torch.zeros(5)}, r"norm.weight is \(5,\) in the checkpoint and \(32,\)"),
        (lambda s: {"optimizer": {"lr": 1}}, "state of an optimizer and no weights.*optimizer"),
        (lambda s: {f"{i}.{k}": v for i, (k, v) in enumerate(s.items())}, "nothing was loaded"),
        (lambda s: [s], "not a list"),
    ],
)
def test_what_does_not_fit_changes_nothing(change, message):
    model = swin(2)
    check = unchanged(model)
    with pytest.raises(CheckpointError, match=message):
        load_official(model, change(as_authors(swin(1))))
    check()


def test_error_describes_what_the_file_looks_like():
    with pytest.raises(
        CheckpointError, match=r"looks like a CSWin: \d+ tensors under 'model', a classifier of 7 class"
    ):
        load_official(swin(), {"model": cswin().state_dict()})
    with pytest.raises(CheckpointError, match="looks like a Swin, named as its authors do"):
        load_official(cswin(), as_authors(swin()))


def renamed(state, *pairs):
    for old, new in pairs:
        state = {re.sub(old, new, name): value for name, value in state.items()}
    return state


def as_transformers(state):
    return renamed(
        state,
        (r"^layers\.", "swin.encoder.layers."),
        (r"\.attn\.", ".attention.self."),
        (r"\.mlp\.fc1", ".intermediate.dense"),
        (r"\.mlp\.fc2", ".output.dense"),
        (r"\.norm1\.", ".layernorm_before."),
        (r"\.norm2\.", ".layernorm_after."),
        (r"^patch_embed\.proj", "swin.embeddings.patch_embeddings.projection"),
    )


def as_adapter(state):
    pairs = (r"^", "base_model.model."), (r"qkv\.weight", "qkv.base_layer.weight")
    lora = {name: torch.zeros(2, 16) for name in state if name.endswith("qkv.weight")}
    return renamed(state, *pairs) | renamed(lora, pairs[0], ("qkv", "qkv.lora_A.default"))


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (as_transformers, "Hugging Face transformers.*timm's names"),
        (as_adapter, "PEFT adapter.*merge_and_unload"),
        (lambda state: cswin().state_dict(), "a CSWin"),
        (lambda state: timm.create_model("pvt_tiny", num_classes=7).state_dict(), "a PVT v1"),
        (lambda state: timm.create_model("resnet10t").state_dict(), "a ResNet"),
        (lambda state: {"rpn.head.conv.weight": torch.zeros(1), "roi_heads.x": torch.zeros(1)}, "a detector"),
        (lambda state: {"state": {0: {"exp_avg": torch.zeros(1)}}, "param_groups": []}, "state of an optimizer"),
    ],
    ids=["transformers", "peft", "cswin", "pvt", "resnet", "detector", "optimizer"],
)
def test_a_file_of_something_else_is_an_error_also_when_not_strict(change, message, strict):
    model = swin(2)
    check = unchanged(model)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_official(model, change(swin(1).state_dict()), strict)
    assert "strict=False" not in str(caught.value)
    check()


def test_not_strict_takes_a_part_and_a_larger_model():
    source, model = swin(1), swin(2)
    name = "patch_embed.proj.weight"
    assert load_official(model, {name: source.state_dict()[name]}, strict=False).loaded == [name]
    deeper = swin(3, depths=(6, 6))
    assert len(load_official(model, deeper.state_dict(), strict=False).unexpected) > len(model.state_dict())
    assert torch.equal(model.layers[1].blocks[1].mlp.fc1.weight, deeper.layers[1].blocks[1].mlp.fc1.weight)


def test_not_strict_lists_the_rest():
    state = remove("norm.weight")({**as_authors(swin(1)), "alien": torch.zeros(1)})
    report = load_official(swin(2), state, strict=False)
    assert (report.missing, report.unexpected) == (["norm.weight"], ["alien"])


NORMS = {f"backbone.norm{i}.{name}": torch.rand(16 * (i + 1)) for i in (0, 1) for name in ("weight", "bias")}


@pytest.mark.parametrize("around", [{}, {"neck.convs.0.weight": torch.zeros(1), **NORMS}])
def test_a_swin_of_mmdetection(around):
    source, model = swin(1, num_classes=0), DenseFeatures(swin(2), (0, 1))
    nn.init.normal_(source.layers[1].downsample.norm.weight)
    weights = as_open_mmlab(as_authors(source))
    report = load_official(model, {"meta": {}, "state_dict": {**weights, **around}})
    assert not report.unexpected and len(report.missing) == (0 if around else 4)
    whole = DenseFeatures(source, (0, 1))
    whole.load_state_dict({name.removeprefix("backbone."): v for name, v in around.items()}, strict=False)
    images = torch.rand(1, 3, 32, 32)
    for ours, theirs in zip(model(images), whole(images), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_patch_merging_of_mmdetection():
    """Its own formula (mmdet/models/layers/transformer/utils.py PatchMerging), with its weights, is ours."""
    merging = swin(1).layers[1].downsample
    nn.init.normal_(merging.norm.weight)
    weights = as_open_mmlab({f"layers.0.downsample.{k}": v for k, v in merging.state_dict().items()}, "")
    norm, bias, reduction = (
        weights[f"stages.0.downsample.{k}"] for k in ("norm.weight", "norm.bias", "reduction.weight")
    )
    x = torch.rand(2, 4, 6, 16)
    unfolded = nn.functional.unfold(x.permute(0, 3, 1, 2), 2, stride=2).transpose(1, 2)
    theirs = nn.functional.layer_norm(unfolded, norm.shape, norm, bias) @ reduction.T
    torch.testing.assert_close(merging(x).flatten(1, 2), theirs)


def test_bad_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth"):
        load_official(swin(), tmp_path / "nowhere.pth")
    for name, text in (("text.pth", "no checkpoint"), ("text.safetensors", "no checkpoint"), ("empty.pth", "")):
        (tmp_path / name).write_text(text)
        with pytest.raises(CheckpointError, match=name):
            load_official(swin(), tmp_path / name)
    torch.save({"model": as_authors(swin()), "extra": pytest.approx}, tmp_path / "code.pth")
    with pytest.raises(CheckpointError, match="weights_only=False"):
        load_official(swin(), tmp_path / "code.pth")
    with pytest.raises(CheckpointError, match="meta device"):
        load_official(swin(device="meta"), as_authors(swin()))


def test_grafts_of_blocks_that_the_model_leaves_out_are_named_with_the_option():
    """As of a ViT that was grafted before blocks under a class token were left out; the hint leads out."""

    def grafted(**options):
        model = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=4, embed_dim=24, num_heads=3)
        return vitgraft.graft(model, window_size=2, **options)

    stored = grafted(blocks=(1, 2, 3)).state_dict()
    with (
        pytest.warns(UserWarning, match=r"blocks=\(1, 2, 3\)"),
        pytest.raises(CheckpointError, match=r"blocks=\(...\)"),
    ):
        vitgraft.load_official(grafted(), stored)
    assert not vitgraft.load_official(grafted(blocks=(1, 2, 3)), stored).missing


@pytest.mark.parametrize("strict", [True, False])
def test_grafts_that_transformers_saved_under_other_names(tmp_path, strict):
    """The error gives the reason and what to do, which works."""
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=32,
        patch_size=8,
    )

    def grafted():
        return vitgraft.graft(transformers.ViTForImageClassification(config), window_size=2)

    source, model = grafted(), grafted()
    source.save_pretrained(tmp_path / "renamed")
    check = unchanged(model)
    with pytest.raises(CheckpointError, match=r"vit\.encoder\.layer\.1; the model's are in vit\.layers\.1") as caught:
        load_official(model, tmp_path / "renamed" / "model.safetensors", strict)
    check()
    assert "model.save_pretrained(DIR, save_original_format=False)" in str(caught.value)
    assert "timm.create_model" not in str(caught.value) and "blocks=(...)" not in str(caught.value)
    source.save_pretrained(tmp_path / "plain", save_original_format=False)
    report = load_official(model, tmp_path / "plain" / "model.safetensors", strict)
    assert len(report.loaded) == len(source.state_dict()) and not report.missing
    assert_same(model, source)
