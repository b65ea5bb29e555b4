"""Frozen models compute what the model computes, and are for inference alone."""

import copy
import io
import pickle

import pytest
import timm
import torch
from registered import GRAFTED, images, make
from torch import nn

import vitgraft
from vitgraft import FrozenModelError, freeze
from vitgraft.models.frozen import PackedLinear

SMALL_VIT = {"depth": 2, "embed_dim": 24, "num_heads": 3, "img_size": 64, "num_classes": 5}


def vit(**options):
    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", **{**SMALL_VIT, **options}).eval()


def packed(model):
    return [module for module in model.modules() if isinstance(module, PackedLinear)]


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("name", GRAFTED)
def test_the_registered_models(name, context):
    model = make(name)
    frozen = freeze(model)
    assert packed(frozen) and not packed(model)
    with context():
        for size in GRAFTED[name].sizes:
            for batch in (1, 3):
                x = images(name, batch, size)
                torch.testing.assert_close(frozen(x), model(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vit_tiny_patch16_224", {**SMALL_VIT, "init_values": 0.1}),
        ("swin_tiny_patch4_window7_224", {"img_size": 56, "depths": (2, 1), "embed_dim": 12, "num_heads": (1, 2)}),
        ("beit_base_patch16_224", {**SMALL_VIT, "num_heads": 2}),  # reads a layer's weight
        ("mixer_s32_224", {"img_size": 224}),
        ("convnext_atto", {"depths": (1, 1, 1, 1), "dims": (8, 8, 8, 8)}),
        ("eva02_tiny_patch14_224", {**SMALL_VIT, "img_size": 28, "patch_size": 14}),
    ],
)
def test_models_of_timm(name, options):
    torch.manual_seed(0)
    model = timm.create_model(name, **options).eval()
    side = options.get("img_size", 64)
    x = torch.randn(2, 3, side, side)
    with torch.no_grad():
        torch.testing.assert_close(freeze(model)(x), model(x), rtol=1e-5, atol=1e-5)


def test_gelu_is_part_of_the_layer_where_it_follows():
    model = freeze(vit())
    assert model.blocks[0].mlp.fc1.gelu == "none" and type(model.blocks[0].mlp.act) is nn.Identity
    assert model.blocks[0].mlp.fc2.gelu is None and model.blocks[0].attn.qkv.gelu is None
    other = freeze(vit(act_layer="silu"))
    assert other.blocks[0].mlp.fc1.gelu is None and type(other.blocks[0].mlp.act) is nn.SiLU
    tanh = nn.Sequential(nn.Linear(8, 8), nn.GELU("tanh"), nn.Linear(8, 3), nn.Linear(3, 8), nn.GELU())
    frozen, x = freeze(tanh), torch.randn(4, 8)
    assert [layer.gelu for layer in packed(frozen)] == ["tanh", None, "none"]
    torch.testing.assert_close(frozen(x), tanh(x).detach(), rtol=1e-5, atol=1e-6)


def test_layers_with_hooks_are_left_alone():
    model, seen = vit(), []
    model.blocks[0].mlp.act.register_forward_hook(lambda module, args, output: seen.append(output.shape))
    model.blocks[1].attn.proj.register_forward_hook(lambda module, args, output: seen.append(output.shape))
    frozen = freeze(model)
    with torch.no_grad():
        torch.testing.assert_close(
            frozen(images("graft_deit_tiny_patch16_224")), model(images("graft_deit_tiny_patch16_224"))
        )
    assert len(seen) == 4
    assert type(frozen.blocks[1].attn.proj) is nn.Linear and type(frozen.blocks[0].mlp.act) is nn.GELU


def test_a_model_that_was_grafted_in_bfloat16():
    model = vitgraft.graft(vit(), window_size=2).to(torch.bfloat16).eval()
    x = torch.randn(2, 3, 64, 64, dtype=torch.bfloat16)
    with torch.no_grad():
        torch.testing.assert_close(freeze(model)(x), model(x), rtol=0.05, atol=0.05)


def test_autocast_computes_as_ever():
    model, x = vit(), torch.randn(2, 3, 64, 64)
    frozen = freeze(model)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(frozen(x), model(x)) and frozen(x).dtype == torch.bfloat16


@pytest.mark.parametrize("shape", [(0, 8), (3, 0, 8), (8,), (2, 3, 4, 8)])
def test_any_shape(shape):
    layer, x = nn.Linear(8, 5), torch.randn(shape)
    torch.testing.assert_close(freeze(layer)(x), layer(x))
    strided = torch.randn(6, 8, 3).transpose(1, 2)
    torch.testing.assert_close(freeze(layer)(strided), layer(strided))


def test_training_is_refused():
    frozen = freeze(vit())
    assert not frozen.training and not any(parameter.requires_grad for parameter in frozen.parameters())
    frozen.eval()
    with pytest.raises(FrozenModelError, match=r"for inference: train the one it was made from"):
        frozen.train()


def test_the_gradient_of_an_image_is_the_models():
    model = vit()
    frozen, grads = freeze(model), []
    for one in (model, frozen):
        x = torch.ones(1, 3, 64, 64, requires_grad=True)
        one(x).square().sum().backward()
        grads.append(x.grad)
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-6)


CHANGES = {
    "in place": lambda layer: layer.weight.add_(1),
    "another parameter": lambda layer: setattr(layer, "weight", nn.Parameter(torch.zeros_like(layer.weight))),
    "data": lambda layer: setattr(layer.weight, "data", torch.zeros_like(layer.weight)),
    "precision": lambda layer: layer.double(),
    "state dict": lambda layer: layer.load_state_dict(nn.Linear(24, 96).state_dict()),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_changed_weights_are_noticed(change):
    frozen, x = freeze(vit()), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        frozen(x)
        change(frozen.blocks[0].mlp.fc1)
        with pytest.raises(FrozenModelError, match=r"weight has changed since vitgraft\.freeze"):
            frozen(x)


def test_a_new_bias_counts():
    model, x = vit(), torch.randn(1, 3, 64, 64)
    frozen = freeze(model)
    for one in (model, frozen):
        with torch.no_grad():
            one.blocks[0].mlp.fc1.bias.fill_(2)
    with torch.no_grad():
        torch.testing.assert_close(frozen(x), model(x), rtol=1e-5, atol=1e-5)


def test_copies_and_files():
    frozen, x = freeze(vitgraft.graft(vit(), window_size=2)), torch.randn(2, 3, 64, 64)
    file = io.BytesIO()
    torch.save(frozen, file)
    file.seek(0)
    with torch.no_grad():
        want = frozen(x)
        for other in (
            copy.deepcopy(frozen),
            pickle.loads(pickle.dumps(frozen)),
            torch.load(file, weights_only=False),
            freeze(frozen),
        ):
            assert torch.equal(other(x), want) and len(packed(other)) == len(packed(frozen))


def test_the_state_dict_is_the_models():
    model = vit()
    state = freeze(model).state_dict()
    assert list(state) == list(model.state_dict())
    model.load_state_dict(state)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:.*torch.jit:FutureWarning")
@pytest.mark.parametrize("way", ["trace", "export", pytest.param("compile", marks=pytest.mark.slow)])
def test_graphs(way):
    frozen, x = freeze(vit()), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        want = frozen(x)
        if way == "trace":
            run = torch.jit.trace(frozen, x)
        elif way == "export":
            run = torch.export.export(frozen, (x,)).module()
        else:
            run = torch.compile(frozen, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(run(x), want, rtol=1e-5, atol=1e-5)


def test_what_cannot_be_frozen(monkeypatch):
    with pytest.raises(FrozenModelError, match="this model is on meta: move it"):
        freeze(nn.Linear(3, 3, device="meta"))
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    with pytest.raises(FrozenModelError, match="which this PyTorch was built without"):
        freeze(vit())


def test_without_oneDNNs_bfloat16_the_layers_are_pytorchs(monkeypatch):
    monkeypatch.setattr("vitgraft.models.frozen._packable", lambda weight: False)
    model, x = vit(), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(freeze(model)(x), model(x))
