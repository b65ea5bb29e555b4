"""The Lightning module of classification: loss, accuracy, optimiser groups and the schedule of each step."""

import importlib
import itertools
import math
import sys

import pytest
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from vitgraft.errors import MissingExtraError

pl = pytest.importorskip("pytorch_lightning")
from vitgraft.tasks.classification import Classification  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


def _trainer(**options) -> "pl.Trainer":
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return pl.Trainer(accelerator="cpu", devices=1, **quiet, **options)


def _linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, 5))


def _batch(count: int = 11) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, 4, 4, generator=generator), torch.randint(5, (count,), generator=generator)


def test_validation_counts_every_sample_once_with_a_short_last_batch():
    images, labels = _batch()
    model = _linear()
    module = Classification(model, 5)
    metrics = _trainer().validate(module, DataLoader(TensorDataset(images, labels), 4), verbose=False)[0]
    logits = model(images)
    assert metrics["val/acc"] == pytest.approx((logits.argmax(1) == labels).float().mean().item())
    assert metrics["val/loss"] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_training_loss_is_cross_entropy_with_smoothing(smoothing, monkeypatch):
    images, labels = _batch()
    module = Classification(_linear(), 5, smoothing=smoothing)
    logged = {}
    monkeypatch.setattr(module, "log", lambda name, value, **_: logged.update({name: value}))
    monkeypatch.setattr(module, "before_step", lambda batch_idx: None)
    loss = module.training_step((images, labels), 0)
    logs = module(images).log_softmax(1)
    wanted = -((1 - smoothing) * logs[torch.arange(len(labels)), labels] + smoothing * logs.mean(1)).mean()
    torch.testing.assert_close(loss, wanted)
    assert logged["train/loss"] is loss


def test_learning_rate_warms_up_and_ends_at_zero():
    rates = []

    class Note(pl.Callback):
        def on_before_optimizer_step(self, trainer, module, optimizer):
            rates.append(optimizer.param_groups[0]["lr"])

    module = Classification(_linear(), 5, lr=0.1, warmup_steps=5)
    _trainer(max_steps=20, callbacks=[Note()]).fit(module, DataLoader(TensorDataset(*_batch(8)), 4))
    assert len(rates) == 20
    assert rates[:5] == pytest.approx([0.0, 0.02, 0.04, 0.06, 0.08])
    assert all(after < before for before, after in itertools.pairwise(rates[5:]))
    assert max(rates) > 0.08 and rates[-1] == pytest.approx(0.05 * (1 + math.cos(math.pi * 19 / 20)))


def test_vectors_and_position_embeddings_do_not_decay():
    model = VisionTransformer(img_size=16, patch_size=8, embed_dim=8, depth=1, num_heads=2, num_classes=5)
    optimizer = Classification(model, 5, weight_decay=0.3, betas=(0.8, 0.9)).configure_optimizers()
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert len(decay) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        matrix = name.endswith("weight") and parameter.ndim > 1
        assert decay[id(parameter)] == (0.3 if matrix else 0.0), name
    assert all(group["betas"] == (0.8, 0.9) for group in optimizer.param_groups)


def test_a_few_steps_fit_a_batch():
    images, labels = _batch(8)
    module = Classification(_linear(), 5, lr=0.05, weight_decay=0.0)
    _trainer(max_steps=60).fit(module, DataLoader(TensorDataset(images, labels), 8))
    assert (module(images).argmax(1) == labels).all()


def test_missing_lightning_names_the_extra(monkeypatch):
    for name in ("base", "classification"):
        monkeypatch.delitem(sys.modules, f"vitgraft.tasks.{name}")
    monkeypatch.setitem(sys.modules, "pytorch_lightning", None)
    with pytest.raises(MissingExtraError, match=r"pytorch-lightning .*vitgraft\[train\]"):
        importlib.import_module("vitgraft.tasks.classification")
