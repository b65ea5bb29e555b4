import copy
import io
import threading

import pytest
import timm
import torch
from plain_vits import SIX, SIZES, VITS, make, of_timm, without_gradient
from torch.nn import functional as F

import vitgraft
from vitgraft import GraftError
from vitgraft.models.dense import DenseFeatures
from vitgraft.models.feature_pyramid import SimpleFeaturePyramid, pyramid
from vitgraft.models.swin import SwinTransformer

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

VIT = {"img_size": 64, "embed_dim": 32, "depth": 2, "num_heads": 2, "dynamic_img_size": True}


def vit(patch=16, graft=False):
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", patch_size=patch, **VIT)
    return vitgraft.graft(model, window_size=4) if graft else model


def layer_norm(x, eps=1e-6):
    return (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True, correction=0) + eps).sqrt()


@pytest.mark.parametrize("patch, graft", [(16, False), (8, True), (4, False), (14, False), (32, False)])
@pytest.mark.parametrize("out_channels", [None, 24])
def test_strides_and_sizes(patch, graft, out_channels):
    net = pyramid(vit(patch, graft), out_channels=out_channels)
    assert isinstance(net, SimpleFeaturePyramid) and net.feature_info.reduction() == [4, 8, 16, 32]
    maps = net(torch.randn(1, 3, 96, 70))
    assert [tuple(m.shape[2:]) for m in maps] == [(24, 18), (12, 9), (6, 5), (3, 3)]
    assert [m.shape[1] for m in maps] == net.feature_info.channels()
    if out_channels is None and patch == 16:
        assert net.feature_info.channels() == [8, 16, 32, 32]
    sum((m**3).sum() for m in maps).backward()
    assert [name for name, p in net.named_parameters() if p.grad is None] == []


def test_against_the_written_out_formula():
    net = pyramid(vit(), out_channels=24).eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        source = net.backbone.forward_intermediates(x, indices=[1], intermediates_only=True)[0]
        first = net.levels[0]
        up = F.conv_transpose2d(source, first[0].weight, first[0].bias, stride=2)
        up = F.conv_transpose2d(F.gelu(layer_norm(up)), first[3].weight, first[3].bias, stride=2)
        want = layer_norm(F.conv2d(layer_norm(F.conv2d(up, first[4].weight)), first[6].weight, padding=1))
        torch.testing.assert_close(net(x)[0], want, rtol=1e-4, atol=1e-4)
        last = net.levels[3]
        pooled = source.unfold(2, 2, 2).unfold(3, 2, 2).amax((-1, -2))
        want = layer_norm(F.conv2d(layer_norm(F.conv2d(pooled, last[1].weight)), last[3].weight, padding=1))
        torch.testing.assert_close(net(x)[3], want, rtol=1e-4, atol=1e-4)


def test_patches_of_14_pixels_keep_their_place():
    """A map that is a ramp over the image is the same ramp at stride 16: cell i lies at pixel (i + 0.5) * 16."""
    net = pyramid(vit(14)).eval()
    net.levels = torch.nn.ModuleList([torch.nn.Identity()])
    net.strides, net.made_from = (16,), [0]

    def ramp(x, **kwargs):
        centers = (torch.arange(x.shape[-1] // 14) + 0.5) * 14
        return [centers.expand(1, 32, x.shape[-2] // 14, -1)]

    net.backbone.forward_intermediates = ramp
    (level,) = net(torch.zeros(1, 3, 96, 800))
    want = (torch.arange(50) + 0.5) * 16
    torch.testing.assert_close(level[0, 0, 3, :-1], want[:-1])


def test_stages_by_their_stride():
    small = {"embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 4, 8), "window_size": 4}
    net = pyramid(SwinTransformer(**small))
    assert isinstance(net, DenseFeatures) and hasattr(net, "norm3")
    assert net.feature_info.reduction() == [4, 8, 16, 32] and net.feature_info.channels() == [16, 32, 64, 128]
    net = pyramid(timm.create_model("resnet10t"), norm=False)  # five levels, from stride 2
    assert net.feature_info.reduction() == [4, 8, 16, 32]
    assert [m.shape[-1] for m in net(torch.randn(1, 3, 64, 64))] == [16, 8, 4, 2]


def test_models_without_these_maps():
    with pytest.raises(ValueError, match=r"strides=\(4, 8, 16, 32\)"):
        pyramid(timm.create_model("levit_128s"))
    with pytest.raises(vitgraft.NoGraftPointError, match="Linear"):
        pyramid(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="one stride"):
        SimpleFeaturePyramid(timm.create_model("resnet10t"))
    with pytest.raises(TypeError, match="features_only"):
        pyramid(timm.create_model("resnet10t", features_only=True))


def grafted(name, **options):
    return vitgraft.graft(make(name), window_size=2, blocks=(1, 2), **options)


def check_sizes(net, sizes=SIZES):
    strides = net.feature_info.reduction()
    for size in sizes:
        maps = net(torch.randn(1, 3, *size))
        assert [tuple(m.shape[1:]) for m in maps] == [
            (c, -(-size[0] // s), -(-size[1] // s)) for c, s in zip(net.feature_info.channels(), strides, strict=True)
        ]
    sum((m**3).sum() for m in maps).backward()
    assert without_gradient(net) == []


@pytest.mark.parametrize("source", ["last", "levels"])
@pytest.mark.parametrize("name", VITS)
def test_plain_vits_of_three_libraries(name, source):
    model = make(name) if source == "last" else grafted(name)
    net = pyramid(model, source=source)
    check_sizes(net)
    # what is frozen is no layer of its own
    assert {n for n, p in net.named_parameters() if not p.requires_grad} <= {"backbone.embeddings.mask_token"}
    assert not any("head" in n or "pooler" in n for n, _ in net.backbone.named_parameters())


@pytest.mark.parametrize("name", ["timm deit", "timm deit distilled", "timm dinov2 reg", "timm dinov3", "timm eva02"])
def test_any_image_size_needs_no_option_of_timm(name):
    """The maps are those of a model that was made with dynamic_img_size, and at the model's own size its own."""
    options = VITS[name].keywords | {"img_size": VITS[name].args[1] if VITS[name].args[1:] else 64}
    dynamic = of_timm(VITS[name].args[0], dynamic_img_size=True, **options).eval()
    model, plain = make(name).eval(), make(name).eval()
    dynamic.load_state_dict(model.state_dict())
    net = pyramid(model).eval()
    patch = net.patch

    def last(model, x):
        return model.forward_intermediates(x, indices=[2], intermediates_only=True)[0]

    with torch.no_grad():
        for grid in ((4, 4), (6, 4), (3, 9)):
            x = torch.randn(1, 3, patch * grid[0], patch * grid[1])
            assert torch.equal(net.read(model, x), last(dynamic, x))
            if grid == (4, 4):
                torch.testing.assert_close(net.read(model, x), last(plain, x))


@pytest.mark.parametrize("name", ["transformers vit", "transformers dinov2", "transformers dinov3"])
def test_the_map_is_the_last_hidden_state_of_transformers(name):
    model = make(name).eval()
    # of the last block, before the final norm
    norm = next(m for n, m in model.named_modules() if n.split(".")[-1] in ("layernorm", "norm"))
    seen = []
    norm.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    x = torch.randn(2, 3, *(2 * [model.config.image_size]))
    with torch.no_grad():
        model(x)
        net = pyramid(model)
        tokens = net.read(model, x).flatten(2).transpose(1, 2)
    assert torch.equal(tokens, seen[0][:, -tokens.shape[1] :])


def test_the_map_of_torchvision_is_that_of_its_encoder():
    model = make("torchvision vit").eval()
    seen = []
    model.encoder.ln.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        model(x)
        net = pyramid(model)
        torch.testing.assert_close(net.read(model, x).flatten(2).transpose(1, 2), seen[0][:, 1:])


def test_levels_are_those_that_the_last_graft_computed():
    """From the graft's own formula on its X0; the graft runs once."""
    model = grafted("timm deit").eval()
    graft, calls = model.blocks[2].graft, []
    graft.register_forward_pre_hook(lambda module, args: calls.append(args[0]))
    net = pyramid(model, source="levels", strides=(8, 16, 32, 64)).eval()
    with torch.no_grad():
        maps = net(torch.randn(1, 3, 128, 96))
        assert len(calls) == 1
        (z,) = graft.pyramid(calls[0])
        z = z.permute(0, 3, 1, 2)
        torch.testing.assert_close(maps[2], net.levels[2](z))
        # one level: stride 64 is pooled from it, the odd column kept
        torch.testing.assert_close(maps[3], layer_norm(F.max_pool2d(F.pad(z, (0, 1, 0, 0), mode="replicate"), 2)))


def test_levels_of_another_width_and_patch():
    model = make("timm dinov2 reg")
    model = vitgraft.graft(model, window_size=1, levels=2, width=16, num_heads=2, blocks=(1, 2))
    net = pyramid(model, source="levels", out_channels=None, strides=(8, 16, 32, 64))
    assert net.feature_info.channels() == [16, 32, 16, 16] and len(net.collected) == 2
    check_sizes(net)


def test_windows_of_the_whole_grid_change_nothing():
    for name in ("timm deit", "timm dinov2 reg"):
        net, windows = pyramid(make(name)).eval(), pyramid(make(name), window_size=9, global_blocks=1).eval()
        assert list(net.state_dict()) == list(windows.state_dict())
        x = torch.randn(2, 3, 100, 70)
        with torch.no_grad():
            torch.testing.assert_close(windows(x), net(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("class_token", [True, False])
def test_windows_against_masked_attention(class_token):
    """A token attends to its window and the class token, which attends to all."""
    options = {} if class_token else {"class_token": False, "global_pool": "avg"}
    model = of_timm("deit_tiny_patch16_224", depth=2, **options).eval()
    net = pyramid(copy.deepcopy(model), window_size=2, global_blocks=(1,)).eval()
    x, P = torch.randn(1, 3, 64, 96), int(class_token)
    seen = []
    net.backbone.blocks[0].attn.register_forward_hook(lambda module, args, output: seen.extend((args[0], output)))
    with torch.no_grad():
        net(x)
        window = (torch.arange(4)[:, None] // 2 * 3 + torch.arange(6) // 2).flatten()
        mask = torch.ones(P + 24, P + 24, dtype=torch.bool)
        mask[P:, P:] = window[:, None] == window
        torch.testing.assert_close(seen[1], model.blocks[0].attn(seen[0], attn_mask=mask))


def test_windows_where_the_grid_is_no_multiple_and_blocks_that_stay_global():
    net = pyramid(of_timm("deit_tiny_patch16_224", depth=8), window_size=3)
    kinds = [type(block.attn).__name__ for block in net.backbone.blocks]
    assert kinds == ["WindowedAttention", "Attention"] * 4  # the last of each quarter, as in ViTDet
    check_sizes(net)
    net = pyramid(grafted("timm deit"), window_size=2, global_blocks=0, source="levels")
    assert all(type(block.attn).__name__ == "WindowedAttention" for block in net.backbone.blocks)
    check_sizes(net)


def cases():
    """Pyramids of all ways by which a map is found."""
    yield pyramid(grafted("timm dinov2 reg"), source="levels", window_size=2, global_blocks=1)
    yield pyramid(grafted("transformers dinov2"), source="levels")
    yield pyramid(grafted("torchvision vit"), source="levels")


def test_threads_copies_and_pickles_give_the_same_maps():
    for net in cases():
        net.eval()
        inputs = [torch.randn(1, 3, *size) for size in SIZES]
        with torch.no_grad():
            expected = [net(x) for x in inputs]
        results = {}

        def work(i, net=net, inputs=inputs, results=results):
            with torch.no_grad():
                results[i] = [net(inputs[i]) for _ in range(5)][-1]

        threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        for i in range(3):
            torch.testing.assert_close(results[i], expected[i], rtol=0, atol=0)
        copied = copy.deepcopy(net)
        file = io.BytesIO()
        if not type(net.backbone).__module__.startswith("transformers"):  # its capturing hooks cannot be pickled
            torch.save(net, file)
            file.seek(0)
            copied = torch.load(file, weights_only=False)
        torch.nn.init.zeros_(next(net.backbone.parameters()))  # a copy shares nothing
        with torch.no_grad():
            for x, maps in zip(inputs, expected, strict=True):
                torch.testing.assert_close(copied(x), maps, rtol=0, atol=0)


def test_activation_checkpointing_gives_the_same_gradients():
    """Also of two images before one backward pass, with as many tokens on other grids."""
    windows = pyramid(make("timm dinov2 reg"), window_size=2, global_blocks=1)
    for net in (windows, *list(cases())[:2]):
        inputs = [torch.randn(1, 3, 70, 112), torch.randn(1, 3, 112, 70)]
        gradients = []
        for enable in (False, True):
            net.train().zero_grad()
            net.set_grad_checkpointing(enable)
            sum((m**3).sum() for x in inputs for m in net(x)).backward()
            gradients.append([p.grad.clone() for p in net.parameters() if p.requires_grad])
        torch.testing.assert_close(*gradients)
        net.set_grad_checkpointing(False)


def test_grafts_stay_attached_and_can_be_stripped():
    """Tracing a grafted model leaves its hooks alone."""
    model = grafted("transformers dinov2").eval()
    x = torch.randn(1, 3, 56, 56)
    with torch.no_grad():
        net = pyramid(model).eval()
        own = net(x)
        vitgraft.strip(model)
        bare = pyramid(make("transformers dinov2")).eval()
        bare.levels.load_state_dict(net.levels.state_dict())
        torch.testing.assert_close(net(x), bare(x))
        assert not torch.equal(own[0], bare(x)[0])


def test_a_frozen_backbone_stays_frozen():
    model = make("transformers vit").requires_grad_(False)
    net = pyramid(model)
    assert not any(p.requires_grad for p in net.backbone.parameters())
    model = grafted("torchvision vit")
    vitgraft.train_grafts_only(model, head=False)
    assert {n.split(".graft.")[-1] == n for n, p in pyramid(model).backbone.named_parameters() if p.requires_grad} == {
        False
    }


@pytest.mark.parametrize("device", ["meta"])
def test_pyramids_without_memory(device):
    for name in ("timm deit", "transformers vit", "torchvision vit"):
        net = pyramid(make(name).to(device))
        assert net.feature_info.channels() == [8, 16, 32, 32] and {p.device.type for p in net.parameters()} == {device}


@pytest.mark.parametrize("strides", [(), (8, 4), (4, 4), (4, 12), (4, 8.0), (0, 4)])
def test_strides_are_rising_powers_of_two(strides):
    with pytest.raises(ValueError, match="rising powers of two"):
        pyramid(make("timm deit"), strides=strides)


def test_options_that_are_impossible():
    vit, swin = make("timm deit"), timm.create_model("resnet10t")
    names = list(vit.state_dict())
    with pytest.raises(ValueError, match="source='middle'"):
        pyramid(vit, source="middle")
    with pytest.raises(ValueError, match="out_channels=0"):
        pyramid(vit, out_channels=0)
    with pytest.raises(GraftError, match=r"has no grafts: vitgraft.graft\(model\) first, or use source='last'"):
        pyramid(vit, source="levels")
    with pytest.raises(ValueError, match="window_size=0"):
        pyramid(vit, window_size=0)
    with pytest.raises(ValueError, match=r"global_blocks=4.* 3 blocks"):
        pyramid(vit, window_size=2)
    with pytest.raises(ValueError, match=r"global_blocks=\(3,\).* 0 to 2"):
        pyramid(vit, window_size=2, global_blocks=(3,))
    assert list(vit.state_dict()) == names  # nothing was removed before
    for name, reason in (("timm eva02", "EvaAttention"), ("torchvision vit", "no such blocks")):
        with pytest.raises(GraftError, match=f"window_size=2.*{reason}"):
            pyramid(make(name), window_size=2, global_blocks=1)
    for option in ({"out_channels": 8}, {"source": "levels"}, {"window_size": 2}):
        with pytest.raises(ValueError, match="hierarchical"):
            pyramid(swin, **option)
    with pytest.raises(ValueError, match=r"strides=\(4, 8, 64\)"):
        pyramid(swin, strides=(4, 8, 64))
    with pytest.raises(GraftError, match="level_sizes='halve'"):
        pyramid(grafted("timm deit", level_sizes=(2,)), source="levels")


def test_models_that_are_no_plain_vits():
    import torchvision

    swin = torchvision.models.SwinTransformer([4, 4], 16, [1, 1, 1, 1], [1, 1, 2, 2], [4, 4])
    with pytest.raises(ValueError, match=r"hierarchical.*timm"):
        pyramid(swin)
    with pytest.raises(vitgraft.NoGraftPointError, match="register_block"):
        pyramid(torchvision.models.resnet18())
    with pytest.raises(TypeError):
        pyramid("deit_tiny_patch16_224")


def test_a_model_of_one_size_names_it():
    net = pyramid(of_timm("beit_base_patch16_224"))
    assert len(net(torch.randn(1, 3, 64, 64))) == 4
    with pytest.raises(ValueError, match="64 x 64 pixels only, not 96 x 64"):
        net(torch.randn(1, 3, 96, 64))
    open_clip = pytest.importorskip("open_clip")
    net = pyramid(open_clip.transformer.VisionTransformer(64, 16, 32, 3, 2, 2.0, output_dim=16))
    assert len(net(torch.randn(1, 3, 64, 64))) == 4
    with pytest.raises(ValueError, match="64 x 64 pixels only"):
        net(torch.randn(1, 3, 64, 80))


COMPILED = {
    **{name: lambda name=name: pyramid(make(name)) for name in SIX},
    "levels timm": lambda: pyramid(grafted("timm deit"), source="levels", window_size=2, global_blocks=1),
    "levels transformers": lambda: pyramid(grafted("transformers vit"), source="levels"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPILED)
def test_compile(name):
    net = COMPILED[name]().eval()
    torch.compiler.reset()
    compiled = torch.compile(net, fullgraph=True, backend="eager", dynamic=False)
    with torch.no_grad():
        for size in SIZES:
            x = torch.randn(1, 3, *size)
            torch.testing.assert_close(compiled(x), net(x))


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPILED)
def test_onnx(name, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs vitgraft[export]")
    pytest.importorskip("onnxscript", reason="needs vitgraft[export]")
    net, path = COMPILED[name]().eval(), tmp_path / "maps.onnx"
    torch.onnx.export(net, (torch.randn(1, 3, 96, 64),), path, input_names=["image"], dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    x = torch.randn(1, 3, 96, 64)
    with torch.no_grad():
        for out, want in zip(session.run(None, {"image": x.numpy()}), net(x), strict=True):
            torch.testing.assert_close(torch.from_numpy(out), want, rtol=1e-3, atol=1e-3)
