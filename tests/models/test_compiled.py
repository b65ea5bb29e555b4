"""The same numbers wherever a grafted model runs: compiled, exported, in onnxruntime, in bf16, in several processes."""

import io
import os

import pytest
import timm
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from small_models import images, wake
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import vitgraft
from vitgraft.tools.export import export_onnx

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

# As small as all parts of a graft are still run at 64 pixels: tracing takes a second per block.
MODELS = {
    "deit": (
        "graft_deit_tiny_patch16_224",
        {"depth": 2, "embed_dim": 24, "num_heads": 3, "graft": {"window_size": 2, "levels": 1}},
    ),
    "swin": (
        "graft_swin_tiny_patch4_window7_224",
        {"depths": (2, 1), "embed_dim": 16, "num_heads": (1, 2), "graft": {"window_size": 3, "levels": 2}},
    ),
    "cswin": (
        "graft_cswin_tiny_224",
        {
            "depths": (2, 1),
            "embed_dim": 16,
            "num_heads": (2, 2),
            "split_sizes": (1, 7),
            "graft": {"window_size": 3, "levels": 2},
        },
    ),
    "user's vit": ("vit_tiny_patch16_224", {"depth": 2, "embed_dim": 24, "num_heads": 3, "img_size": 64}),
}
FAMILIES = ["deit", "swin", "cswin"]


def make(key: str) -> nn.Module:
    torch.manual_seed(0)
    name, options = MODELS[key]
    model = timm.create_model(name, num_classes=5, **options).eval()
    if not name.startswith("graft_"):
        vitgraft.graft(model, window_size=2, blocks=(0,))
    return wake(model)


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.slow
@pytest.mark.parametrize("key", MODELS)
def test_compile(key):
    """One graph without breaks, gradients too."""
    model = make(key).train()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = images(2, 3, *((64, 64) if key == "user's vit" else (48, 80)))
    grads = []
    for run in (model, compiled):
        model.zero_grad()
        torch.manual_seed(0)
        out = run(x)
        out.square().sum().backward()
        grads.append((out.detach(), {n: p.grad.clone() for n, p in model.named_parameters()}))
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("key", FAMILIES)
def test_compiled_models_take_another_size(key):
    model = make(key)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        for size in [(64, 64), (40, 52), (64, 64)]:
            x = images(2, 3, *size)
            torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_compile_with_inductor():
    model = make("deit")
    x = images(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(model, fullgraph=True)(x), model(x), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("key", ["deit", "user's vit"])  # test_onnx exports the others by torch.export too
def test_torch_export(key):
    model = make(key)
    x = images(2, 3, 64, 64)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: batch},))
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    exported = torch.export.load(file).module()
    with torch.no_grad():
        for other in (x, images(5, 3, 64, 64, seed=1)):
            torch.testing.assert_close(exported(other), model(other), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("key", MODELS)
def test_trace(key):
    """With PyTorch's own check of the trace. Another batch size works where the backbone's own code lets it."""
    model = make(key)
    traced = torch.jit.trace(model, images(2, 3, 64, 64))
    file = io.BytesIO()
    torch.jit.save(traced, file)
    file.seek(0)
    traced = torch.jit.load(file)
    with torch.no_grad():
        for x in (images(2, 3, 64, 64, seed=1), images(5, 3, 64, 64, seed=2)):
            torch.testing.assert_close(traced(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("key", MODELS)
def test_script_is_refused(key):
    with pytest.raises(vitgraft.GraftError, match=r"torch\.jit\.script is not supported"):
        torch.jit.script(make(key))


@pytest.mark.slow
@pytest.mark.parametrize("key", FAMILIES)
def test_onnx(key, tmp_path):
    """With any number of images, of maps that windows do not divide."""
    pytest.importorskip("onnxscript", reason="needs vitgraft[export]")
    pytest.importorskip("onnxruntime", reason="needs vitgraft[export]")
    done = export_onnx(make(key), tmp_path / "model.onnx", (3, 40, 52))
    assert done.ok, done.differences


@pytest.mark.parametrize("key", MODELS)
@pytest.mark.parametrize("train", [False, True])
def test_bf16_autocast(key, train):
    model = make(key).train(train)
    x = images(2, 3, 64, 64)
    torch.manual_seed(0)
    exact = model(x)
    torch.manual_seed(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(x)
    assert out.isfinite().all()
    torch.testing.assert_close(out.float(), exact, rtol=0.1, atol=0.1 * exact.abs().max().item())
    if train:
        out.float().square().sum().backward()
        assert all(p.grad.isfinite().all() and p.grad.dtype == torch.float32 for p in model.parameters())


@pytest.mark.parametrize("key", FAMILIES)
def test_channels_last_and_fused_attention_change_nothing(key):
    model = make(key)
    x = images(2, 3, 48, 80)
    with torch.no_grad():
        expected = model(x)
        torch.testing.assert_close(model(x.to(memory_format=torch.channels_last)), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model(x).detach(), expected, rtol=1e-4, atol=1e-5)  # attention with gradients


@pytest.mark.parametrize("key", FAMILIES)
def test_inference_mode_first_then_training(key):
    """Masks and indices that were cached in inference mode must not get into a graph that needs gradients."""
    model = make(key).train()
    x = images(2, 3, 72, 40)
    with torch.inference_mode():
        model(x)
    model(x).square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def _ddp_steps(rank: int, world: int, store: str, results) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    for key in MODELS:
        model = make(key).train()
        if key == "user's vit":
            vitgraft.train_grafts_only(model, head=True)
        parallel = DistributedDataParallel(model, find_unused_parameters=False)
        optimizer = torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=0.1)
        for step in range(2):  # an unused parameter shows at the second forward
            optimizer.zero_grad()
            parallel(images(2, 3, 64, 64, seed=rank + world * step)).square().mean().backward()
            optimizer.step()
        grafted = torch.cat([p.detach().flatten() for n, p in model.named_parameters() if ".graft." in n])
        results.put((key, rank, grafted.double().sum().item(), grafted.isfinite().all().item()))
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.slow
def test_distributed_data_parallel(tmp_path):
    """Two processes with other images end with the same weights, and without find_unused_parameters."""
    context = mp.get_context("spawn")
    results = context.SimpleQueue()
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    mp.spawn(_ddp_steps, args=(2, str(tmp_path / "store"), results), nprocs=2)
    found = {
        (key, rank): (total, finite) for key, rank, total, finite in (results.get() for _ in range(2 * len(MODELS)))
    }
    for key in MODELS:
        assert found[key, 0][1] and found[key, 0] == found[key, 1], key


@pytest.mark.slow
def test_what_was_compiled_before_grafting_is_compiled_anew():
    model = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=2, class_token=False, global_pool="avg").eval()
    compiled = torch.compile(model, backend="eager")
    x = images(1, 3, 64, 64)
    with torch.no_grad():
        before = compiled(x)
        vitgraft.graft(model, window_size=2)
        torch.testing.assert_close(compiled(x), model(x))
        assert (model(x) - before).abs().max() > 1e-3
        vitgraft.strip(model)
        assert torch.equal(compiled(x), before)
