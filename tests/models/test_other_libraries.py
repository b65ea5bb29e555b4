"""Models of torchvision, transformers and open_clip, and blocks of users' own: grafted, trained, copied, stripped."""

import collections
import copy
import io
import sys
import types

import pytest
import torch
from small_models import images, wake
from torch import nn

import vitgraft
from vitgraft import GraftError
from vitgraft.grafting.trace import output_tensors
from vitgraft.tools.survey_models import OTHER_MODELS

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

# transformers' own hooks for intermediate outputs, which their first forward installs, cannot be pickled
NOT_PICKLED = {"mask2former"}


def build(key: str) -> nn.Module:
    small = OTHER_MODELS[key]
    pytest.importorskip(small.library)
    torch.manual_seed(0)
    return small.make().eval()


def outputs(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    output = model(x)
    return [t for t in output_tensors(dict(output) if hasattr(output, "items") else output) if t.is_floating_point()]


def equal(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("key", OTHER_MODELS)
def test_one_life_of_a_grafted_model(key):
    model, small = build(key), OTHER_MODELS[key]
    side = small.img_size
    x = images(2, 3, side, side)
    with torch.no_grad():
        expected, names = outputs(model, x), list(model.state_dict())
    vitgraft.graft(model, init="identity", img_size=side, **small.graft)
    with torch.no_grad():
        assert equal(outputs(model, x), expected)
        awake = outputs(wake(model), x)
        assert not equal(awake, expected)
    sum(out.square().sum() for out in outputs(model, x) if out.requires_grad).backward()
    grafted = {n: p for n, p in model.named_parameters() if ".graft." in n}
    assert grafted and all(p.grad is not None for p in grafted.values())
    assert all(p.grad.abs().sum() > 0 for n, p in grafted.items() if n.endswith("levels.0.up.proj.weight"))
    with torch.no_grad():
        assert equal(outputs(copy.deepcopy(model), x), awake)
        if key not in NOT_PICKLED:
            file = io.BytesIO()
            torch.save(model, file)
            file.seek(0)
            assert equal(outputs(torch.load(file, weights_only=False), x), awake)
        vitgraft.strip(model)
        assert equal(outputs(model, x), expected) and list(model.state_dict()) == names


def skip_if_it_fails_alone(run, key: str, error: Exception) -> None:
    """Raises the grafted model's error where the model without grafts has none."""
    try:
        run(build(key))
    except type(error):
        pytest.skip("fails without grafts too")
    raise error


@pytest.mark.slow
@pytest.mark.parametrize("key", ["torchvision vit", "torchvision swin", "vit", "dinov2", "clip", "swin", "open_clip"])
def test_compile_where_the_model_compiles_alone(key):
    model, x = build(key), images(1, 3, 64, 64)

    def compiled(model: nn.Module) -> list[torch.Tensor]:
        torch.compiler.reset()
        with torch.no_grad():
            return outputs(torch.compile(model, fullgraph=True, backend="eager"), x)

    wake(vitgraft.graft(model, window_size=2, img_size=64))
    try:
        actual = compiled(model)
    except torch._dynamo.exc.TorchDynamoException as error:
        skip_if_it_fails_alone(compiled, key, error)
    with torch.no_grad():
        torch.testing.assert_close(actual, outputs(model, x))


@pytest.mark.slow
@pytest.mark.parametrize("key", ["torchvision vit", "torchvision swin", "vit", "dinov2", "clip", "swin", "open_clip"])
def test_onnx_where_the_model_exports_alone(key, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs vitgraft[export]")
    pytest.importorskip("onnxscript", reason="needs vitgraft[export]")
    model, x = build(key), images(1, 3, 64, 64)
    wake(vitgraft.graft(model, window_size=2, img_size=64))

    def export(model: nn.Module) -> list[torch.Tensor]:
        path = tmp_path / "model.onnx"
        torch.onnx.export(model, (x,), path, input_names=["image"], dynamo=True, verbose=False)
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        return [torch.from_numpy(out) for out in session.run(None, {"image": images(1, 3, 64, 64, seed=1).numpy()})]

    try:
        exported = export(model)
    except torch.onnx.errors.OnnxExporterError as error:
        skip_if_it_fails_alone(export, key, error)
    with torch.no_grad():
        expected = outputs(model, images(1, 3, 64, 64, seed=1))
    for actual, out in zip(exported, expected, strict=False):
        torch.testing.assert_close(actual, out, rtol=1e-3, atol=1e-3)


class DinoBlock(nn.Module):
    """The form of facebookresearch's DINOv2 block: in eval mode nothing follows `ls1` before the sum."""

    def __init__(self, dim: int):
        super().__init__()
        self.norm1, self.attn, self.ls1 = (
            nn.LayerNorm(dim),
            nn.MultiheadAttention(dim, 2, batch_first=True),
            nn.Identity(),
        )
        self.norm2, self.mlp, self.ls2 = nn.LayerNorm(dim), nn.Linear(dim, dim), nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normed = self.norm1(x)
        x = x + self.ls1(self.attn(normed, normed, normed)[0])
        return x + self.ls2(self.mlp(self.norm2(x)))


def of_blocks(block: type[nn.Module]) -> nn.Module:
    """A user's plain ViT."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.blocks = nn.Conv2d(3, 32, 8, 8), nn.Sequential(*(block(32) for _ in range(3)))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.blocks(self.stem(x).flatten(2).transpose(1, 2)).mean(1)

    torch.manual_seed(0)
    return Model().eval()


@pytest.mark.parametrize("key", ["torchvision vit", "torchvision swin", "vit", "deit", "swin", "beit", "poolformer"])
def test_the_classifier_trains_with_the_grafts(key):
    model = vitgraft.graft(build(key), window_size=2, img_size=OTHER_MODELS[key].img_size)
    report = vitgraft.train_grafts_only(model)
    trained = {n for n, p in model.named_parameters() if p.requires_grad and ".graft." not in n}
    assert report.head > 0 and {n.split(".")[0] for n in trained} <= {"classifier", "heads", "head"}
    assert vitgraft.train_grafts_only(model, head=False).head == 0


class Refuses(nn.Module):
    """A head that takes no value that is not finite, on the class token's image-wide sum."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not x.isfinite().all():
            raise ValueError("not finite")
        return x.sum(1)


def test_a_model_that_refuses_what_is_not_finite_has_read_it():
    import timm

    model = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=3, global_pool="")
    model = nn.Sequential(model, Refuses())
    model[0].head = nn.Identity()
    vitgraft.graft(model, window_size=2, img_size=64)
    assert list(vitgraft.grafts(model)) == ["0.blocks.1", "0.blocks.2"]


def check(model: nn.Module) -> None:
    x = images(2, 3, 64, 32)
    with torch.no_grad():
        expected = model(x)
        vitgraft.graft(model, init="identity", window_size=2, img_size=(64, 32))
        assert torch.equal(model(x), expected) and not torch.equal(wake(model)(x), expected)


def test_blocks_of_the_form_of_dinov2(monkeypatch):
    module = types.ModuleType("dinov2.layers.block")
    monkeypatch.setitem(sys.modules, "dinov2.layers.block", module)
    block = type("Block", (DinoBlock,), {"__module__": "dinov2.layers.block"})
    check(of_blocks(block))


def test_an_attention_that_returns_a_named_tuple():
    Output = collections.namedtuple("Output", "result weights")

    class Attention(nn.MultiheadAttention):
        def forward(self, *args):
            return Output(*super().forward(*args))

    class Named(DinoBlock):
        def __init__(self, dim: int):
            super().__init__(dim)
            self.attn = Attention(dim, 2, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            normed = self.norm1(x)
            x = x + self.attn(normed, normed, normed).result
            return x + self.mlp(self.norm2(x))

    vitgraft.register_block(Named, output_of="attn")
    check(of_blocks(Named))


def test_the_hint_about_many_prefix_tokens_leads_out():
    class Registers(DinoBlock):
        pass

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.blocks = nn.Conv2d(3, 32, 8, 8), nn.Sequential(*(self.kind(32) for _ in range(3)))
            self.tokens = nn.Parameter(torch.randn(1, 12, 32))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.stem(x).flatten(2).transpose(1, 2)
            return self.blocks(torch.cat((self.tokens.expand(x.shape[0], -1, -1), x), 1)).mean(1)

    class More(Registers):
        pass

    for kind, prefix in ((Registers, None), (More, 12)):
        vitgraft.register_block(kind, output_of="ls1", prefix_tokens=prefix)
        Model.kind = kind
        if prefix is None:
            with pytest.raises(GraftError, match=r"register_block\(..., grid=... or prefix_tokens=...\)"):
                vitgraft.graft(Model(), window_size=2, img_size=64)
        else:
            check(Model().eval())


def test_a_block_of_ones_own():
    class Mine(DinoBlock):
        pass

    model = of_blocks(Mine)
    with pytest.raises(vitgraft.NoGraftPointError, match=r"Mine has that form: vitgraft.register_block"):
        vitgraft.graft(model, img_size=64)
    vitgraft.register_block(Mine, output_of="ls1")
    check(model)
    with pytest.raises(GraftError, match="registered already"):
        vitgraft.register_block(Mine, output_of="ls1")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({}, "give one of them"),
        ({"output_to": "ls1", "output_of": "attn"}, "give one of them"),
        ({"output_to": ""}, "output_of=''"),
        ({"output_of": "ls1", "layout": "bchw"}, "layout='bchw' is not one of 'tokens', 'nhwc', 'nchw'"),
        ({"output_of": "ls1", "prefix_tokens": -2}, "prefix_tokens=-2"),
    ],
)
def test_bad_specs(options, reason):
    class Mine(DinoBlock):
        pass

    with pytest.raises(GraftError, match=reason):
        vitgraft.register_block(Mine, **options)
    with pytest.raises(GraftError, match="takes a class"):
        vitgraft.register_block(Mine(8), output_of="ls1")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"input_from": "norm9", "output_of": "ls1"}, r"no child 'norm9', .*children are norm1, attn, ls1"),
        ({"output_to": "drop"}, "no child 'drop'"),
        ({"input_from": "norm2", "output_of": "ls1"}, "never calls ls1 afterwards"),
        ({"output_of": "ls1", "prefix_tokens": 1}, "cannot be inferred"),
    ],
)
def test_specs_that_do_not_fit_the_block(options, reason):
    class Mine(DinoBlock):
        pass

    vitgraft.register_block(Mine, **options)
    with pytest.raises(GraftError, match=reason):
        vitgraft.graft(of_blocks(Mine), img_size=64)


def transformers_model(name: str, config: str, **options) -> nn.Module:
    library = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 64, "patch_size": 8}
    return getattr(library, name)(getattr(library, config)(**{**sizes, **options})).eval()


@pytest.mark.parametrize(
    ("name", "config", "options"),
    [
        ("Dinov2Backbone", "Dinov2Config", {"mlp_ratio": 2}),
        ("DINOv3ViTBackbone", "DINOv3ViTConfig", {"intermediate_size": 64}),
        ("BeitBackbone", "BeitConfig", {"intermediate_size": 64}),
    ],
)
@pytest.mark.parametrize("ffn", ["shared", "separate"])
def test_the_last_map_of_a_backbone_is_grafted(name, config, options, ffn):
    """transformers collects the maps by hooks of its own, which must see the block with its graft."""
    model, x = transformers_model(name, config, **options), images(1, 3, 64, 64)
    with torch.no_grad():
        before = model(x).feature_maps[-1]
        vitgraft.graft(model, window_size=2, ffn=ffn)
        assert [key.split(".")[-1] for key in vitgraft.grafts(model)] == ["1", "2"]
        for key, graft in vitgraft.grafts(model).items():
            if not key.endswith("2"):
                graft.init_identity()
        assert not torch.equal(model(x).feature_maps[-1], before)


def test_hooks_of_others_see_the_block_with_its_graft():
    """Where the graft is added to the block's own output."""
    import timm

    model = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=3).eval()
    seen = []
    model.blocks[1].register_forward_hook(lambda module, args, output: seen.append(output))
    vitgraft.graft(model, window_size=2, ffn="separate")
    model.blocks[2].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    seen.clear()
    model(images(1, 3, 64, 64))
    assert torch.equal(*seen)


def test_on_the_meta_device_the_blocks_are_those_of_any_device():
    """Or it is an error that says what to give."""

    def make() -> nn.Module:
        return OTHER_MODELS["torchvision vit"].make()

    with torch.device("meta"):
        with pytest.raises(GraftError, match=r"blocks=\(1, 2, 3\) grafts that block, blocks=\(1, 2\) leaves it out"):
            vitgraft.graft(make(), window_size=2)
        model = vitgraft.graft(make(), window_size=2, blocks=(1, 2))
    assert list(vitgraft.grafts(model)) == list(vitgraft.grafts(vitgraft.graft(make(), window_size=2)))


@pytest.mark.filterwarnings("ignore")
def test_a_model_that_is_loaded_from_the_meta_device(tmp_path):
    """As from_pretrained makes it."""
    library = pytest.importorskip("transformers")

    class Grafted(library.ViTForImageClassification):
        def __init__(self, config):
            super().__init__(config)
            vitgraft.graft(self, window_size=2, blocks=(1, 2))

    options = {
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "image_size": 64,
        "patch_size": 8,
    }
    model = Grafted(library.ViTConfig(**options)).eval()
    model.save_pretrained(tmp_path)
    x = images(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(Grafted.from_pretrained(tmp_path).eval()(x).logits, model(x).logits)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_of_transformers_swin(reentrant):
    """Its stages are checkpointed, and their blocks inside them."""
    library = pytest.importorskip("transformers")
    torch.manual_seed(0)
    swin = {"image_size": 64, "patch_size": 4, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 2]}
    model = library.SwinModel(library.SwinConfig(**swin, window_size=4, drop_path_rate=0.0))
    wake(vitgraft.graft(model, window_size=2)).train().double()
    other = copy.deepcopy(model)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    for each in (model, other):
        each(images(2, 3, 64, 64).double()).last_hidden_state[..., 0].square().sum().backward()
    grads = [{n: p.grad for n, p in m.named_parameters() if ".graft." in n} for m in (model, other)]
    assert grads[0] and all(torch.allclose(grads[0][n], grads[1][n]) for n in grads[0])


class Masked(nn.Module):
    """A masked autoencoder's encoder: a quarter of the patches in random order, as many as a grid of half the side."""

    def __init__(self):
        from timm.layers import PatchEmbed
        from timm.models.vision_transformer import Block

        super().__init__()
        self.patch_embed = PatchEmbed(64, 8, 3, 32)
        self.pos_embed = nn.Parameter(torch.randn(1, 64, 32))
        self.cls = nn.Parameter(torch.zeros(1, 1, 32))
        self.blocks = nn.ModuleList(Block(32, 2) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patch_embed(x) + self.pos_embed
        kept = torch.rand(x.shape[:2]).argsort(1)[:, :16]
        x = torch.cat((self.cls.expand(len(x), -1, -1), x.gather(1, kept[..., None].expand(-1, -1, 32))), 1)
        for block in self.blocks:
            x = block(x)
        return x


def test_tokens_chosen_at_random_are_no_grid():
    with pytest.raises(GraftError, match="other tokens of the same image at each run"):
        vitgraft.graft(Masked(), window_size=2)


def test_an_attention_result_of_another_layout():
    """SAM's attention returns windows."""

    class Windows(DinoBlock):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            B, N, C = x.shape
            windows = self.ls1(self.norm1(x).view(4 * B, N // 4, C))
            return x + windows.view(B, N, C)

    vitgraft.register_block(Windows, output_of="ls1")
    with pytest.raises(GraftError, match="another layout than X0"):
        vitgraft.graft(of_blocks(Windows), img_size=64)

    class Registered(Windows):
        pass

    vitgraft.register_block(Registered, output_of="ls1", from_grid=lambda block, g, result: g.reshape(result.shape))
    check(of_blocks(Registered))


def test_a_block_that_is_the_model():
    from timm.models.pvt_v2 import Block

    model = vitgraft.graft(Alone(Block(32, 2)), window_size=2, img_size=8, blocks=(0,))
    block = model.block
    assert list(vitgraft.grafts(block)) == [""]
    assert vitgraft.train_grafts_only(block).grafts > 0
    assert all(p.requires_grad for p in block.graft.parameters())


class Alone(nn.Module):
    def __init__(self, block: nn.Module):
        super().__init__()
        self.stem, self.block = nn.Conv2d(3, 32, 1), block

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        return self.block(x.flatten(2).transpose(1, 2), x.shape[2:]).mean(1)


@pytest.mark.parametrize("part", ["patch_embed", "blocks"])
def test_a_part_that_was_copied_keeps_the_grid(part):
    """PEFT's modules_to_save copies parts."""
    import timm

    model = vitgraft.graft(timm.create_model("vit_tiny_patch16_224", img_size=64, depth=3).eval(), window_size=2)
    x = images(1, 3, 64, 64)
    expected = model(x)
    setattr(model, part, copy.deepcopy(getattr(model, part)))
    assert torch.equal(model(x), expected)
