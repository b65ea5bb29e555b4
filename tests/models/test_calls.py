"""What a graft notes lives for one call of one block in one thread: threads, activation checkpointing, replicas."""

import copy
import gc
import io
import threading
import weakref

import pytest
import timm
import torch
from small_models import BACKBONES, backbone, images, wake
from torch import nn
from torch.utils.checkpoint import checkpoint

import vitgraft
from vitgraft import GraftError

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

SIZES = [(64, 64), (32, 128), (128, 32), (64, 96), (96, 64), (96, 96), (64, 144), (144, 64)]


@pytest.mark.parametrize("key", ["vit class token", "swin", "pvt v2"])
def test_threads_share_a_model(key):
    """8 threads, 40 forwards each, 8 sizes, some of them with equal numbers of tokens."""
    options = {"vit class token": {"dynamic_img_size": True}, "swin": {"strict_img_size": False}}.get(key, {})
    model = wake(vitgraft.graft(backbone(key, **options), window_size=2, blocks=(0, 1)))
    batches = [images(1, 3, *size, seed=i) for i, size in enumerate(SIZES)]
    with torch.no_grad():
        expected = [model(x) for x in batches]
    wrong, start = [], threading.Barrier(len(batches))

    def run(i: int) -> None:
        start.wait()
        with torch.no_grad():
            wrong.extend(i for _ in range(40) if not torch.equal(model(batches[i]), expected[i]))

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(batches))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def vit() -> nn.Module:
    return wake(
        vitgraft.graft(backbone("vit class token", dynamic_img_size=True), window_size=2, blocks=(0, 1))
    ).train()


def gradients(model: nn.Module, batches: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    model.zero_grad()
    outs = [model(x) for x in batches]
    sum(out.square().sum() for out in outs).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("every", [1, 2, 3])
def test_two_sizes_of_as_many_tokens_before_one_backward(every):
    """8 x 16 and 16 x 8 tokens: checkpointed blocks run again after both, each with its own grid."""
    from timm.models import checkpoint_seq

    batches = [images(2, 3, 128, 256), images(2, 3, 256, 128, seed=1)]
    model = vit()
    expected = gradients(model, batches)
    blocks = model.blocks

    class Segments(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = blocks

        def forward(self, x):
            return checkpoint_seq(self.parts, x, every=every)

    model.blocks = nn.Sequential(Segments())
    actual = gradients(model, batches)
    torch.testing.assert_close({n.replace(".0.parts", ""): g for n, g in actual.items()}, expected)


def test_reentrant_checkpoints_give_the_gradient_or_an_error():
    """They lose what belongs to a tensor: right with one size of so many tokens, an error with two."""
    model = vit()
    batches = [images(2, 3, 128, 256), images(2, 3, 256, 128, seed=1)]
    one, two = gradients(model, batches[:1]), copy.deepcopy(model)
    for each in (model, two):
        for i, block in enumerate(each.blocks):
            run = block.forward
            each.blocks[i].forward = lambda x, run=run, **_: checkpoint(run, x, use_reentrant=True)
    torch.testing.assert_close(gradients(model, batches[:1]), one)
    with pytest.raises(GraftError, match=r"8 x 16 or 16 x 8|16 x 8 or 8 x 16"):
        gradients(two, batches)


def test_a_forward_that_is_checkpointed_without_its_hooks():
    """As transformers does it."""
    model = vit()
    batches = [images(2, 3, 128, 256), images(2, 3, 256, 128, seed=1)]
    expected = gradients(model, batches)
    for block in model.blocks:
        run = block.forward
        block.forward = lambda x, run=run, **_: checkpoint(run, x, use_reentrant=False)
    torch.testing.assert_close(gradients(model, batches), expected)


@pytest.mark.parametrize("reentrant", [False, True])
def test_nothing_keeps_a_model_alive(reentrant):
    """Neither what a thread noted, nor a `forward` that ran without its block's hooks."""
    model = vit()
    for block in model.blocks:
        run = block.forward
        block.forward = lambda x, run=run, **_: checkpoint(run, x, use_reentrant=reentrant)
    gradients(model, [images(2, 3, 64, 64)])
    alive = weakref.ref(model.blocks[1].graft)
    del model, block, run
    gc.collect()
    assert alive() is None


def test_a_static_input_has_the_grid_of_the_last_image():
    """The same tensor with other contents, as with CUDA graphs."""
    model, grids = vit(), []
    model.blocks[1].graft.register_forward_pre_hook(lambda _m, args: grids.append(tuple(args[0].shape[1:3])))
    static = torch.zeros(1, 129, 24, requires_grad=True)
    for size in ((128, 256), (256, 128)):
        model.patch_embed(images(1, 3, *size))
        model.blocks[1](static)
    assert grids == [(8, 16), (16, 8)]


def test_a_saved_input_loads_as_plain_weights():
    """A tensor that a block has run on is saved with its attributes."""
    model, file = vit(), io.BytesIO()
    x = images(1, 17, 24).requires_grad_()
    model.patch_embed(images(1, 3, 64, 64))
    model.blocks[1](x)
    torch.save(x, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=True), x)


def test_the_forward_of_a_block_that_is_its_own_input_names_the_call():
    model = vitgraft.graft(
        timm.create_model("swinv2_tiny_window8_256", img_size=64, depths=(2, 1, 1, 1)), window_size=2
    )
    block = model.layers[0].blocks[1]
    with pytest.raises(GraftError, match=r"call block\(x\), not block.forward\(x\)"):
        block.forward(images(1, 16, 16, 96))
    assert block(images(1, 16, 16, 96)).shape == (1, 16, 16, 96)


def test_crops_of_two_sizes_are_read_before_the_blocks_run():
    """As self-distillation does it."""
    model = vit().eval()
    crops = [images(1, 3, 64, 64), images(1, 3, 32, 48, seed=1)]
    with torch.no_grad():
        expected = [model.blocks(model._pos_embed(model.patch_embed(x))) for x in crops]
        tokens = [model._pos_embed(model.patch_embed(x)) for x in crops]
        for x, same in zip(tokens, expected, strict=True):
            assert torch.equal(model.blocks(x), same)
        ambiguous = [model._pos_embed(model.patch_embed(images(1, 3, *size))) for size in ((32, 128), (128, 32))]
        with pytest.raises(GraftError, match="Run the model on one image size at a time"):
            model.blocks(ambiguous[0])


def test_a_replica_uses_its_own_graft():
    """nn.DataParallel copies modules shallowly: hooks and all, with other parameters."""
    model = vit().eval()
    x = images(1, 3, 64, 64)
    model.patch_embed(x)
    block, tokens = model.blocks[1], images(1, 17, 24)
    expected = block(tokens)
    replica = block._replicate_for_data_parallel()
    replica._modules["graft"] = nn.Identity()
    assert not torch.equal(replica(tokens), expected) and torch.equal(block(tokens), expected)


def test_a_copied_child_stays_a_child_of_its_block():
    """PEFT's modules_to_save copies a norm and runs the copy instead."""
    model, x = vit().eval(), images(1, 3, 64, 64)
    expected = model(x)
    model.blocks[1].norm1 = copy.deepcopy(model.blocks[1].norm1)
    assert torch.equal(model(x), expected)


def test_grafts_that_peft_has_wrapped_keep_their_names():
    class ModulesToSave(nn.Module):  # its layout
        def __init__(self, module):
            super().__init__()
            self.original_module = module
            self.modules_to_save = nn.ModuleDict({"default": copy.deepcopy(module)})

        def forward(self, x):
            return self.modules_to_save["default"](x)

    model, x = vit().eval(), images(1, 3, 64, 64)
    names, expected = list(vitgraft.grafts(model)), model(x)
    for name in names:
        block = model.get_submodule(name)
        block.graft = ModulesToSave(block.graft)
    assert list(vitgraft.grafts(model)) == names and torch.equal(model(x), expected)
    assert vitgraft.grafts(model)[names[0]] is model.blocks[0].graft.modules_to_save["default"]


def test_symbolic_tracing_names_what_to_use_instead():
    from torchvision.models.feature_extraction import create_feature_extractor
    from torchvision.models.vision_transformer import VisionTransformer

    model = VisionTransformer(64, 16, 3, 2, 24, 48).eval()
    vitgraft.graft(model, window_size=2, blocks=(1,))
    with pytest.raises(GraftError, match="features_only"):
        create_feature_extractor(model, ["encoder"])


@pytest.mark.parametrize("key", sorted(BACKBONES))
def test_no_images_are_a_batch_too(key):
    try:
        backbone(key)(torch.zeros(0, 3, BACKBONES[key][2], BACKBONES[key][2]))
    except RuntimeError:
        pytest.skip("the backbone itself takes no batch of 0")
    model = vitgraft.graft(backbone(key), window_size=2)
    assert model(torch.zeros(0, 3, BACKBONES[key][2], BACKBONES[key][2])).shape == (0, 5)


def test_a_copy_of_the_whole_model_has_grids_of_its_own():
    """A compiled copy may run in one thread while the model runs in another."""
    model = timm.create_model("vit_tiny_patch16_224", img_size=64, patch_size=8, depth=3, dynamic_img_size=True).eval()
    wake(vitgraft.graft(model, window_size=2))
    compiled = torch.compile(copy.deepcopy(model), backend="eager")
    torch.compiler.reset()
    x, other = images(1, 3, 64, 64), images(1, 3, 32, 64)
    with torch.no_grad():
        expected, between = model(x), []
        # the compiled copy runs between the patch projection of the model and its blocks
        handle = model.blocks[0].register_forward_pre_hook(lambda *_: between.append(compiled(other)))
        assert torch.equal(model(x), expected) and between
        handle.remove()
