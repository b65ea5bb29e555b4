"""`vitgraft visualize`: maps are where they should be, and a method that a model does not have is refused."""

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image

import vitgraft

pytest.importorskip("matplotlib")
from vitgraft.tools import visualize

OPTIONS = {"img_size": 32, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2, "num_classes": 2}


def vit(**options):
    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", **{**OPTIONS, **options})


@pytest.fixture(scope="module")
def spotting():
    """A classifier that was trained to notice a bright patch, wherever it is."""
    model = vit(class_token=False, global_pool="avg", depth=1).train()
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(120):
        images = torch.randn(32, 3, 32, 32, generator=generator) * 0.2
        labels = torch.arange(32) % 2
        for image, label in zip(images, labels, strict=True):
            y, x = torch.randint(8, (2,), generator=generator).tolist()
            image[:, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4] += 3.0 * label
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize("place", [(1, 6), (5, 2)])
def test_the_evidence_is_where_the_bright_patch_is(spotting, place):
    pytest.importorskip("captum")
    y, x = place
    image = torch.zeros(1, 3, 32, 32)
    image[:, :, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4] = 3.0
    found = visualize.class_activation(spotting, image, 1)
    assert found.shape == (8, 8) and found.min() >= 0 and divmod(int(found.argmax()), 8) == place
    assert not any(parameter.requires_grad for parameter in spotting.parameters())


def test_rollout_by_hand():
    """Two blocks: (A2 + I) / 2 (A1 + I) / 2, the row of the class token, without that token's own column."""
    model = vit().eval()
    image = torch.randn(1, 3, 32, 16).repeat(1, 1, 1, 2)
    maps = []

    def keep(module, args):
        q, k, _ = module.qkv(args[0]).view(1, 65, 3, 2, 12).permute(2, 0, 3, 1, 4)
        maps.append((q @ k.transpose(-1, -2) / 12**0.5).softmax(-1)[0].mean(0))

    handles = [block.attn.register_forward_pre_hook(keep) for block in model.blocks]
    with torch.no_grad():
        model(image)
    for handle in handles:
        handle.remove()
    first, second = (0.5 * one + 0.5 * torch.eye(65) for one in maps)
    found = visualize.attention_rollout(model, image)
    assert torch.allclose(found, (second @ first)[0, 1:].view(8, 8), atol=1e-6)
    assert all(block.attn.fused_attn for block in model.blocks)  # as it was
    with torch.no_grad():
        assert not model.blocks[0].attn.attn_drop._forward_hooks


def test_scales_of_the_first_a_middle_and_the_last_graft():
    model = vitgraft.graft(vit(depth=5, class_token=False, global_pool="avg"), window_size=4).eval()
    image = torch.randn(1, 3, 32, 32)
    maps = visualize.graft_scales(model, lambda: model(image))
    names = list(vitgraft.grafts(model))
    assert list(maps) == [names[0], names[round((len(names) - 1) / 2)], names[-1]]
    assert [(key, tuple(one.shape)) for key, one in maps[names[0]].items()] == [("Z1", (4, 4)), ("added", (8, 8))]
    x = torch.randn(1, 8, 8, 24)
    module = vitgraft.grafts(model)[names[-1]]
    with torch.no_grad():
        alone = visualize.graft_scales(model, lambda: module(x))
        assert torch.allclose(alone[names[-1]]["added"], module(x)[0].norm(dim=-1))
        assert torch.allclose(alone[names[-1]]["Z1"], module.pyramid(x)[0][0].norm(dim=-1))
    assert not module._forward_hooks


def test_models_that_do_not_have_a_method():
    image = torch.randn(1, 3, 32, 32)
    swin = timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=32, embed_dim=16, depths=(1, 1), num_heads=(1, 2), window_size=4
    ).eval()
    with pytest.raises(vitgraft.VitgraftError, match=r"rollout: .*Give --method grad-cam or scales"):
        visualize.attention_rollout(swin, image)
    with pytest.raises(vitgraft.VitgraftError, match="no grafts; give --method"):
        visualize.graft_scales(swin, lambda: None)
    with pytest.raises(vitgraft.VitgraftError, match="norm1"):
        visualize.class_activation(torch.nn.Flatten(), image, 0)


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "an image.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8)).save(path)
    return path


def test_the_command(run_command, trained, image, tmp_path):
    out = tmp_path / "pictures"
    code, _, err = run_command("visualize", "--ckpt", trained, image, "--output", out)
    assert code == 0, err
    assert [path.name for path in out.iterdir()] == ["an image.png"]
    with Image.open(out / "an image.png") as drawn:
        assert drawn.width > 600
    (tmp_path / "broken.png").write_bytes(b"no image")
    code, out_text, err = run_command("visualize", "--ckpt", trained, tmp_path / "broken.png", image, "--output", out)
    assert code == 0 and "broken.png" in out_text + err
    assert run_command("visualize", "--ckpt", trained, tmp_path / "broken.png", "--output", out)[0] == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--class", "unicorn"], "--class unicorn: the model has cat, dog, eel"),
        (["--class", "3"], "--class 3"),
        (["--method", "saliency"], "grad-cam"),
        (["--device", "cuda:99"], "--device cuda:99"),
    ],
)
def test_options_that_do_not_fit(run_command, trained, image, tmp_path, words, message):
    code, _, err = run_command("visualize", "--ckpt", trained, image, "--output", tmp_path / "out", *words)
    assert code == 2 and message in err
