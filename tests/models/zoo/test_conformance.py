"""Every vector of the official implementations, sent through `load_official` as a checkpoint would be."""

import numpy as np
import pytest
import timm
import torch

import vitgraft
from reproduction import vectors
from vitgraft.tools.count import count_macs, count_params

# an intermediate output in float32 differs from the official one by 5e-6 to 2e-5, where values reach 38
INTERMEDIATE = 5e-5


def grid(tokens: torch.Tensor, H: int, W: int) -> torch.Tensor:
    """(B, N, C) to (B, C, H, W)."""
    return tokens.transpose(1, 2).unflatten(2, (H, W))


def pvt(model, x) -> dict[str, torch.Tensor]:
    state = model._embed(x)
    found = {}
    for i in range(4):
        state = model._stage(i, state)
        found[f"stage{i + 1}"] = model._map(i, state)
        found[f"stage{i + 1}_token"] = state[0][:, : state[0].shape[1] - state[1][0] * state[1][1]]
    size = found["stage1"].shape[2:]
    tokens = model.patch_embed1(x)
    found["embed"] = grid(tokens, *size)
    tokens = tokens + (model.pos_embed1 if size == (56, 56) else 0)
    if size == (56, 56):
        found["block1"] = grid(model.block1[0](tokens, size), *size)
    return found


def t2t(model, x) -> dict[str, torch.Tensor]:
    stem, found = model.tokens_to_token, {}
    layers = {"t2t1": (stem.attention1, 56), "t2t2": (stem.attention2, 28), "embed": (stem.project, 14)}
    kept = {}
    hooks = [
        layer.register_forward_hook(lambda m, i, o, key=key: kept.update({key: o}))
        for key, (layer, _) in layers.items()
    ]
    maps = model.forward_intermediates(x, return_prefix_tokens=True, intermediates_only=True)
    for hook in hooks:
        hook.remove()
    for key, (_, side) in layers.items():
        found[key] = grid(kept[key], side, side)
    for i, (level, token) in enumerate(maps, 1):
        found[f"block{i}"], found[f"block{i}_token"] = level, token
    return found


def regionvit(model, x) -> dict[str, torch.Tensor]:
    state = model._embed(x)
    found = {"embed_regional": state[0], "embed": state[1]}
    for i in range(4):
        state = model._stage(i, state)
        found[f"stage{i + 1}_regional"], found[f"stage{i + 1}"] = state
    return found


def vil(model, x) -> dict[str, torch.Tensor]:
    tokens = model.layer1[0](x)
    found = {"embed_token": tokens[:, :1], "embed": model._map(0, tokens)}
    state = x
    for i in range(4):
        state = model._stage(i, state)
        found[f"stage{i + 1}_token"], found[f"stage{i + 1}"] = state[:, :1], model._map(i, state)
    return found


def cswin(model, x) -> dict[str, torch.Tensor]:
    grids = {"embed": model.stage1_conv_embed(x)}
    grids["block1"] = model.stage1[0](grids["embed"])
    found = {name: grid.permute(0, 3, 1, 2) for name, grid in grids.items()}
    stages = model.forward_intermediates(x, intermediates_only=True)
    return found | {f"stage{i}": stage for i, stage in enumerate(stages, 1)}


INTERMEDIATES = {"pvt": pvt, "t2t": t2t, "regionvit": regionvit, "vil": vil, "cswin": cswin}
VECTORS = {**vectors.VECTORS, "cswin_tiny_224": ("cswin_tiny_224", {})}


@pytest.mark.parametrize("vector", VECTORS)
@torch.no_grad()
def test_official_vector(compare, vector):
    name, options = VECTORS[vector]
    model = timm.create_model(name, **options).eval()
    report = compare.check(model, vector, load=vitgraft.load_official)
    assert report["ok"], report

    meta, reference = compare.load_vector(vector)
    vitgraft.load_official(model, compare.official_state_dict(meta))
    size = (meta["input"]["height"], meta["input"]["width"])
    x = torch.from_numpy(__import__("fill").make_input(*size))
    found = INTERMEDIATES[name.partition("_")[0]](model, x)
    checked = [key for key in meta["intermediates"] if key in found]
    assert len(checked) >= len(meta["intermediates"]) - 1
    for key in checked:
        assert compare.check_intermediate(found[key].numpy(), vector, key) < INTERMEDIATE, key
    features = model.forward_head(model.forward_features(x), pre_logits=True)
    np.testing.assert_allclose(features.numpy(), reference["features"], atol=1e-5)


@pytest.mark.parametrize("vector", VECTORS)
def test_names_and_counts(compare, vector):
    meta, _ = compare.load_vector(vector)
    name, options = VECTORS[vector]
    model = timm.create_model(name, device="meta", **options)
    missing, unexpected, wrong = compare.names_and_shapes_differ(model, meta)
    # stored under two names, computed, or empty: `load_official` says so of each
    twice = {second for second, _ in meta["shared_tensors"]}
    assert not unexpected and not wrong
    assert all(n in twice or n.endswith("relative_position_index") or n == "layer4.0.cls_pos_embed" for n in missing)
    assert count_params(model) == meta["total_params"]
    macs = count_macs(model, (3, meta["input"]["height"], meta["input"]["width"]))
    assert macs == meta["macs"] - vectors.official_extra_macs(model)


# published sizes without a vector: parameters, MAC at 224 x 224
OTHERS = {
    "vil_medium_deep_rpb": (39_782_296, 8_924_882_880),  # published: 39.7 M, 9.1 G, see official_extra_macs
    "pvt_large": (61_369_320, 9_813_765_632),  # counted from transformers' model, reference_counts.json
    "regionvit_base": (72_747_232, 13_046_458_368),  # published: 72.7 M, 13.0 G
    "t2t_vit_t_19": (39_172_942, 9_784_935_552),  # published: 39.2 M, 9.8 G
}


@pytest.mark.parametrize("name", OTHERS)
def test_counts_of_sizes_without_a_vector(name):
    model = timm.create_model(name, device="meta")
    assert (count_params(model), count_macs(model, (3, 224, 224))) == OTHERS[name]
