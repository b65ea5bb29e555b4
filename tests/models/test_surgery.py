"""graft() and strip() on backbones that exist: nothing of the backbone is lost, and the graft does what it should."""

import copy
import importlib
import io
import pickle

import pytest
import timm
import torch
from small_models import BACKBONES, TINY, assert_unchanged, backbone, image, images, snapshot, wake
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn

import vitgraft
from vitgraft import GrafT

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture(scope="module")
def vit():
    return backbone("vit class token")


@pytest.mark.parametrize("key", BACKBONES)
def test_identity_then_strip(key):
    """One life of a grafted model: equal to the backbone, different once it learned, and the backbone again."""
    model = backbone(key)
    x = image(key)
    before = snapshot(model)
    with torch.no_grad():
        expected = model(x)
        grafted = vitgraft.graft(model, init="identity", window_size=2)
        assert grafted is model
        assert vitgraft.is_grafted(model)
        assert torch.equal(model(x), expected)
        names = list(model.state_dict())
        assert [n for n in names if ".graft." not in n] == list(before[1])
        assert len(vitgraft.grafts(model)) > 0
        wake(model)
        assert not torch.equal(model(x), expected)
        assert vitgraft.strip(model) is model
        assert not vitgraft.is_grafted(model)
        assert torch.equal(model(x), expected)
    assert_unchanged(before, snapshot(model))


@pytest.mark.parametrize("key", ["vit average pooling", "swin", "pvt v2", "twins", "mobilevit"])
def test_every_graft_is_run_and_trains(key):
    model = vitgraft.graft(backbone(key), window_size=2).train()
    model(image(key)).square().sum().backward()
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        # keys of a window of one token have no influence, nor a bias that softmax cancels
        if ".graft." in name and name.endswith(("proj.weight", "down.norm.weight", "up.norm.bias")):
            assert p.grad.abs().sum() > 0, name


@pytest.mark.parametrize("key", ["vit class token", "vit registers", "swin", "mobilevit", "pit"])
@pytest.mark.parametrize("way", ["deepcopy", "pickle", "torch.save"])
def test_copies_carry_the_grafts(key, way):
    model = wake(vitgraft.graft(backbone(key), window_size=2))
    if way == "deepcopy":
        other = copy.deepcopy(model)
    elif way == "pickle":
        other = pickle.loads(pickle.dumps(model))
    else:
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    x = image(key)
    with torch.no_grad():
        expected = model(x)
        assert torch.equal(other(x), expected)
        assert type(other) is type(model) and other.graft_config == model.graft_config
        vitgraft.strip(other)
        assert not torch.equal(other(x), expected)
        assert torch.equal(model(x), expected)  # the copy is one of its own


def test_backbone_weights_load_under_their_own_names():
    model = vitgraft.graft(backbone("swin"), window_size=2)
    source = backbone("swin").state_dict()
    missing, unexpected = model.load_state_dict(source, strict=False)
    assert not unexpected
    assert all(".graft." in n for n in missing)
    assert len(missing) == len(model.state_dict()) - len(source)


@pytest.mark.parametrize(
    "options,said",
    [
        ({"window_size": 2, "levels": 1}, "levels.1"),
        ({"window_size": 3}, "size mismatch"),
        ({"window_size": 2, "downsample": "linear"}, "down.proj"),
        ({"window_size": 2, "upsample": "nearest"}, "anti_alias"),
        ({"window_size": 2, "blocks": (2,)}, "graft"),
        ({"window_size": 2, "ffn": "separate"}, "graft.ffn"),
    ],
)
def test_weights_of_another_configuration_do_not_load(options, said):
    model = vitgraft.graft(backbone("swin"), window_size=2)
    other = vitgraft.graft(backbone("swin"), **options)
    with pytest.raises(RuntimeError, match=said):
        model.load_state_dict(other.state_dict())


def test_where_the_graft_is_added(vit):
    """Y0 = X0 + drop_path(attention + graft), equation 4: stochastic depth acts on the sum, the FFN is shared."""
    model = wake(vitgraft.graft(copy.deepcopy(vit), window_size=2))
    block, plain = model.blocks[1], vit.blocks[1]
    x = images(2, 17, 24)
    g = block.graft(x[:, 1:].view(2, 4, 4, 24)).flatten(1, 2)
    attended = plain.attn(plain.norm1(x))
    expected = attended + torch.cat((torch.zeros(2, 1, 24), g), dim=1)
    seen = []
    block.drop_path1.register_forward_hook(lambda _m, args, _out: seen.append(args[0]))
    model.patch_embed(image("vit class token"))  # a block alone has the grid of the last image
    out = block(x)
    torch.testing.assert_close(seen[0], expected)
    y = x + expected
    torch.testing.assert_close(out, y + plain.mlp(plain.norm2(y)))


def test_stochastic_depth_drops_attention_and_graft_together():
    model = wake(vitgraft.graft(backbone("swin", drop_path_rate=0.9), window_size=2)).train()
    block = model.layers[1].blocks[1]
    x = images(64, 8, 8, 32)
    block.mlp = nn.Identity()
    block.drop_path2 = nn.Dropout(1.0)
    block.drop_path1.drop_prob = 0.5
    same = (block(x) == x).flatten(1).all(dim=1)
    assert 10 < same.sum() < 54


@pytest.mark.parametrize("key", ["vit class token", "vit average pooling"])
@pytest.mark.parametrize("pad", [False, True])
def test_a_dynamic_vit_takes_any_size(key, pad):
    model = backbone(key, dynamic_img_size=True, dynamic_img_pad=pad)
    sizes = [(64, 64), (32, 112), (16, 16), (48, 80), (64, 64)] + ([(50, 33), (17, 90)] if pad else [])
    batches = [images(1, 3, *size, seed=i) for i, size in enumerate(sizes)]
    with torch.no_grad():
        expected = [model(x) for x in batches]
        vitgraft.graft(model, init="identity", window_size=2)
        for x, before in zip(batches, expected, strict=True):
            assert torch.equal(model(x), before)
        wake(model)
        first = [model(x) for x in batches]
        for x, before, same in zip(reversed(batches), reversed(expected), reversed(first), strict=True):
            after = model(x)
            assert torch.equal(after, same)  # nothing of the batch before is kept
            assert not torch.equal(after, before)


def test_not_square_flat_tokens_are_read_row_by_row():
    """A graft that mixes up rows and columns would still give the right shapes."""
    model = vitgraft.graft(backbone("vit class token", dynamic_img_size=True), window_size=2)
    seen = []
    model.blocks[1].graft.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    model.blocks[1].register_forward_pre_hook(lambda _m, args, kwargs: seen.append(args[0]), with_kwargs=True)
    model(images(1, 3, 32, 96))
    tokens, grid = seen
    assert grid.shape == (1, 2, 6, 24)
    assert torch.equal(grid[0, 1, 2], tokens[0, 1 + 6 + 2])


@pytest.mark.parametrize("key", ["vit class token", "swin", "swin v2", "eva 02", "deit iii"])
def test_set_input_size(key):
    old, new = backbone(key), vitgraft.graft(backbone(key), init="identity", window_size=2)
    side = BACKBONES[key][2] * 3 // 2
    for model in (old, new):
        model.set_input_size(img_size=(side, 2 * side))
    x = images(1, 3, side, 2 * side)
    with torch.no_grad():
        expected = old(x)
        assert torch.equal(new(x), expected)
        assert not torch.equal(wake(new)(x), expected)


@pytest.mark.parametrize("key", ["vit class token", "swin", "pvt v2", "swin v2"])
def test_gradient_checkpointing_changes_nothing(key):
    """Two forwards of different sizes before one backward, where the backbone takes them: no state may be kept."""
    dynamic = key in ("vit class token", "pvt v2")
    options = {"dynamic_img_size": True} if key.startswith("vit") else {}
    model = wake(vitgraft.graft(backbone(key, **options), window_size=2)).train()
    batches = [image(key), images(2, 3, 32, 96) if dynamic else images(1, 3, 64, 64, seed=1)]

    def step(checkpointing: bool):
        model.set_grad_checkpointing(checkpointing)
        model.zero_grad()
        torch.manual_seed(0)
        outs = [model(x) for x in batches]
        sum(out.square().sum() for out in outs).backward()
        return outs, {name: p.grad.clone() for name, p in model.named_parameters()}

    outs, grads = step(False)
    outs_again, grads_again = step(True)
    for a, b in zip(outs, outs_again, strict=True):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(grads_again, grads)


def test_grafting_in_training_leaves_modes_and_statistics():
    """graft() runs the model once: neither BatchNorm nor the training mode of any part may notice."""
    model = backbone("mobilevit").train()
    model.stem.eval()
    before = snapshot(model)
    vitgraft.graft(model, window_size=2)
    assert all(m.graft.training for m in model.modules() if hasattr(m, "graft"))
    vitgraft.strip(model)
    assert_unchanged(before, snapshot(model))


def test_a_features_only_model_can_be_grafted():
    model = timm.create_model("vit_tiny_patch16_224", **{**TINY, "img_size": 64}, features_only=True).eval()
    x = images(1, 3, 64, 64)
    expected = model(x)
    vitgraft.graft(model, init="identity", window_size=2, img_size=64)
    assert all(torch.equal(a, b) for a, b in zip(model(x), expected, strict=True))
    assert not torch.equal(wake(model)(x)[-1], expected[-1])


class LoudBlock(Block):
    """A user's block: another formula around the inherited one."""

    def forward(self, x: torch.Tensor, attn_mask: torch.Tensor | None = None) -> torch.Tensor:
        return 2 * super().forward(x)


class LoudViT(VisionTransformer):
    """A user's model that calls the inherited method."""

    def forward_features(self, x: torch.Tensor, **kwargs) -> torch.Tensor:
        return super().forward_features(x, **kwargs) + 1


@pytest.mark.parametrize("way", ["as it is", "pickle"])
def test_a_users_own_subclasses(way):
    torch.manual_seed(0)
    options = {"img_size": 64, "depth": 3, "embed_dim": 24, "num_heads": 3, "num_classes": 5}
    model = LoudViT(**options, block_fn=LoudBlock).eval()
    x = images(1, 3, 64, 64)
    with torch.no_grad():
        expected = model(x)
        vitgraft.graft(model, init="identity", window_size=2)
        if way == "pickle":
            model = pickle.loads(pickle.dumps(model))
        assert type(model) is LoudViT and type(model.blocks[1]) is LoudBlock
        assert torch.equal(model(x), expected)
        assert not torch.equal(wake(model)(x), expected)
        vitgraft.strip(model)
    assert type(model) is LoudViT and type(model.blocks[1]) is LoudBlock


@pytest.mark.parametrize("channels", [1, 4, 6, 13])
@pytest.mark.parametrize("key", ["vit class token", "swin", "mobilevit"])
def test_images_of_other_channels(key, channels):
    model = vitgraft.graft(backbone(key, in_chans=channels), window_size=2)
    assert model(image(key, channels=channels)).shape == (2, 5)


def test_grafts_lists_them_in_order():
    model = vitgraft.graft(backbone("swin"), window_size=2)
    made = vitgraft.grafts(model)
    assert list(made) == ["layers.0.blocks.1", "layers.1.blocks.0", "layers.1.blocks.1", "layers.2.blocks.0"]
    assert all(isinstance(g, GrafT) for g in made.values())
    assert [len(g.levels) for g in made.values()] == [3, 2, 2, 1]
    assert vitgraft.grafts(backbone("swin")) == {}


@pytest.mark.parametrize("norms", [False, True])
@pytest.mark.parametrize("head", [False, True])
def test_train_grafts_only(norms, head):
    model = vitgraft.graft(backbone("vit class token"), window_size=2, init="identity").train()
    report = vitgraft.train_grafts_only(model, norms=norms, head=head)

    def kind(name: str) -> str:
        if ".graft." in name:
            return "graft"
        if name.startswith("head."):
            return "head"
        return "norm" if "norm" in name else "rest"

    trains = {"graft": True, "head": head, "norm": norms, "rest": False}
    size = {k: sum(p.numel() for n, p in model.named_parameters() if kind(n) == k) for k in trains}
    assert (report.grafts, report.norms, report.head) == (
        size["graft"],
        size["norm"] * norms,
        size["head"] * head,
    )
    assert report.trained == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert report.trained + report.frozen == sum(p.numel() for p in model.parameters())
    assert f"{report.trained:,}" in str(report) and f"{report.frozen:,}" in str(report)

    wake(model)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=1.0)
    model(image("vit class token")).square().sum().backward()
    optimizer.step()
    for name, p in model.named_parameters():
        moved = not torch.equal(p, before[name])
        if moved:
            assert trains[kind(name)], name
    for k in ("graft", "head", "norm"):
        assert any(not torch.equal(p, before[n]) for n, p in model.named_parameters() if kind(n) == k) == trains[k]


NORMS = {
    name: f"{module}.{name}"
    for module, names in {
        "norm": "LayerNorm2d RmsNorm RmsNormFp32 RmsNorm2d SimpleNorm SimpleNorm2d",
        "norm_act": "BatchNormAct2d GroupNorm1Act LayerNormAct LayerNormAct2d RmsNormAct RmsNormAct2d",
        "evo_norm": "EvoNorm2dB0 EvoNorm2dB1 EvoNorm2dB2 EvoNorm2dS0 EvoNorm2dS1 EvoNorm2dS2",
        "filter_response_norm": "FilterResponseNormTlu2d FilterResponseNormAct2d",
        "split_batchnorm": "SplitBatchNorm2d",
        "grn": "GlobalResponseNorm",
    }.items()
    for name in names.split()
}


def test_norms_with_their_activation_are_norms():
    model = vitgraft.graft(timm.create_model("mobilevit_xxs"), img_size=64, window_size=2)
    report = vitgraft.train_grafts_only(model, norms=True)
    own = [m for n, m in model.named_modules() if ".graft" not in n and isinstance(m, (nn.BatchNorm2d, nn.LayerNorm))]
    assert any(list(m.children()) for m in own)  # timm's BatchNormAct2d
    assert report.norms == sum(p.numel() for m in own for p in m.parameters())
    assert all(p.requires_grad for m in own for p in m.parameters())


@pytest.mark.parametrize("norm", ["BatchNorm2d", "InstanceNorm2d", "SyncBatchNorm", *NORMS])
def test_every_norm_is_one(norm):
    if norm in NORMS:
        module, name = NORMS[norm].rsplit(".", 1)
        layer = getattr(importlib.import_module(f"timm.layers.{module}"), name)(16)
    else:
        layer = getattr(nn, norm)(16, affine=True)
    model = vitgraft.graft(backbone("vit average pooling"), window_size=2)
    model.norm_of_ours = layer
    own = [p for n, p in model.named_parameters() if "norm" in n and ".graft." not in n]
    report = vitgraft.train_grafts_only(model, norms=True)
    assert report.norms == sum(p.numel() for p in own) and all(p.requires_grad for p in own)
    assert list(layer.parameters())


def test_train_grafts_only_again_with_other_choices():
    model = vitgraft.graft(backbone("swin"), window_size=2)
    vitgraft.train_grafts_only(model, norms=True)
    report = vitgraft.train_grafts_only(model, head=False)
    assert report.norms == report.head == 0
    assert all((".graft." in n) == p.requires_grad for n, p in model.named_parameters())


def test_every_block_spec_can_be_pickled():
    from vitgraft.grafting.blocks import BLOCKS

    for spec in BLOCKS.values():
        assert pickle.loads(pickle.dumps(spec)) == spec


def test_classes_and_forwards_stay_as_they_are():
    model = backbone("vit class token")
    before = [(type(m), type(m).forward) for m in model.modules()]
    vitgraft.graft(model, window_size=2)
    assert [(type(m), type(m).forward) for n, m in model.named_modules() if ".graft" not in n] == before
    assert not any("forward" in m.__dict__ for m in model.modules())


def test_a_block_whose_tokens_nobody_reads_gets_no_graft_unless_it_is_named():
    """Under a class token the last block's patch tokens are not read: a graft there would get no gradient."""
    with pytest.warns(UserWarning, match="blocks.2 gets no graft"):
        model = vitgraft.graft(backbone("vit class token"), window_size=2).train()
    model(image("vit class token")).sum().backward()
    assert list(vitgraft.grafts(model)) == ["blocks.1"]
    assert all(
        p.grad.abs().sum() > 0 for n, p in model.named_parameters() if n.endswith("graft.levels.0.up.proj.weight")
    )
    named = vitgraft.graft(backbone("vit class token"), window_size=2, blocks=(1, 2))
    meta = vitgraft.graft(timm.create_model("vit_tiny_patch16_224", depth=3, device="meta"))
    assert list(vitgraft.grafts(named)) == ["blocks.1", "blocks.2"] and list(vitgraft.grafts(meta)) == ["blocks.1"]
    assert len(vitgraft.grafts(vitgraft.graft(backbone("vit average pooling"), window_size=2))) == 2
