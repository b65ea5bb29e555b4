"""Classification: loss, mixup, learning rates, and that a run has no history."""

import itertools
import math
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.loss import BinaryCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import vitgraft
from vitgraft.errors import RecipeError

pytest.importorskip("pytorch_lightning")
pytest.importorskip("faster_coco_eval")
import pytorch_lightning as pl
from small_tasks import make, same, trainer

from vitgraft.tasks.classification import Classification

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2}


def _linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, 5))


def _data(count: int, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, side, side, generator=generator), torch.randint(5, (count,), generator=generator)


def _built(**options) -> Classification:
    model_kwargs = {**TINY, **options.pop("model_kwargs", {})}
    return make(Classification, "a name and options", 5, **{"graft": None, "model_kwargs": model_kwargs, **options})


def _fit(task: Classification, **options) -> Classification:
    """24 images in batches of 4: 6 steps an epoch."""
    trainer(**options).fit(task, DataLoader(TensorDataset(*_data(24, 32)), 4))
    return task


class Note(pl.Callback):
    """Notes what `read(module)` gives at a hook."""

    def __init__(self, hook, read):
        self.values = []
        setattr(self, hook, lambda trainer, module, *_: self.values.append(read(module)))


def _rates() -> Note:
    return Note("on_before_optimizer_step", lambda module: module.trainer.optimizers[0].param_groups[0]["lr"])


def test_validation_counts_every_sample_once_with_a_short_last_batch():
    images, labels = _data(11, 4)
    model = _linear()
    loader = DataLoader(TensorDataset(images, labels), 4)
    metrics = trainer().validate(Classification(model, 5), loader, verbose=False)[0]
    logits = model(images)
    assert metrics["val/acc"] == pytest.approx((logits.argmax(1) == labels).float().mean().item())
    assert metrics["val/loss"] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_training_loss_is_cross_entropy_with_smoothing(smoothing, monkeypatch):
    images, labels = _data(11, 4)
    module = Classification(_linear(), 5, smoothing=smoothing)
    logged = {}
    monkeypatch.setattr(module, "log", lambda name, value, **_: logged.update({name: value}))
    monkeypatch.setattr(module, "before_step", lambda batch_idx: None)
    loss = module.training_step((images, labels), 0)
    logs = module(images).log_softmax(1)
    expected = -((1 - smoothing) * logs[torch.arange(len(labels)), labels] + smoothing * logs.mean(1)).mean()
    torch.testing.assert_close(loss, expected)
    assert logged["train/loss"] is loss


@pytest.mark.parametrize(
    ("options", "timms"),
    [
        ({}, torch.nn.CrossEntropyLoss()),
        ({"smoothing": 0.1}, LabelSmoothingCrossEntropy(0.1)),
        ({"smoothing": 0.1, "mixup": 0.8}, SoftTargetCrossEntropy()),
        ({"loss": "bce", "cutmix": 1.0}, BinaryCrossEntropy(0.0)),
    ],
)
def test_losses(options, timms):
    task, logits, targets = _built(**options), torch.randn(6, 5), torch.randint(5, (6,))
    targets = torch.rand(6, 5) if task.mix else targets
    torch.testing.assert_close(task.loss(logits, targets), timms(logits, targets))
    assert torch.isfinite(torch.tensor(_fit(task, max_steps=2).trainer.callback_metrics["train/loss"]))


def test_a_few_steps_fit_a_batch():
    images, labels = _data(8, 4)
    module = Classification(_linear(), 5, lr=0.05, weight_decay=0.0)
    trainer(max_steps=60).fit(module, DataLoader(TensorDataset(images, labels), 8))
    assert (module(images).argmax(1) == labels).all()


def test_learning_rate_warms_up_and_ends_at_zero():
    rates = _rates()
    module = Classification(_linear(), 5, lr=0.1, warmup_steps=5)
    trainer(max_steps=20, callbacks=[rates]).fit(module, DataLoader(TensorDataset(*_data(8, 4)), 4))
    assert len(rates.values) == 20
    assert rates.values[:5] == pytest.approx([0.0, 0.02, 0.04, 0.06, 0.08])
    assert all(after < before for before, after in itertools.pairwise(rates.values[5:]))
    assert max(rates.values) > 0.08
    assert rates.values[-1] == pytest.approx(0.05 * (1 + math.cos(math.pi * 19 / 20)))


@pytest.mark.parametrize(("accumulate", "updates"), [(1, 12), (4, 4)])
def test_schedule_ends_where_the_run_ends(accumulate, updates):
    """Two epochs of 6 steps, or of 2 updates of 4 steps."""
    rates = _rates()
    task = _built(lr=1.0, sched="poly", sched_kwargs={"decay_rate": 1.0})
    _fit(task, max_epochs=2, accumulate_grad_batches=accumulate, callbacks=[rates])
    assert rates.values == pytest.approx([1 - update / updates for update in range(updates)])


def test_batch_rule_needs_the_batch_size():
    with pytest.raises(RecipeError, match="lr_batch: needs a data module"):
        _fit(_built(lr_batch=256), max_steps=1)


def test_vectors_and_position_embeddings_do_not_decay():
    model = VisionTransformer(img_size=16, patch_size=8, embed_dim=8, depth=1, num_heads=2, num_classes=5)
    optimizer = Classification(model, 5, weight_decay=0.3, betas=(0.8, 0.9)).configure_optimizers()
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert len(decay) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        matrix = name.endswith("weight") and parameter.ndim > 1
        assert decay[id(parameter)] == (0.3 if matrix else 0.0), name
    assert all(group["betas"] == (0.8, 0.9) for group in optimizer.param_groups)


def test_graft_options_of_a_grafted_name():
    size = {"img_size": 32, "depth": 3, "embed_dim": 48, "num_heads": 3}
    task = Classification("graft_deit_tiny_patch16_224", 5, model_kwargs=size, graft={"blocks": 1, "window_size": 1})
    task.configure_model()
    assert list(vitgraft.grafts(task.model)) == ["blocks.2"]


def test_mixed_labels_are_smoothed_once():
    task = _built(mixup=0.8, smoothing=0.2)
    _, target = task.mix(torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 3]))
    torch.testing.assert_close(target.sum(1), torch.ones(4))
    assert target.min() == pytest.approx(0.2 / 5) and target.shape == (4, 5)
    bce = _built(mixup=0.8, smoothing=0.2, loss="bce")
    logits = torch.randn(4, 5)
    torch.testing.assert_close(bce.loss(logits, target), F.binary_cross_entropy_with_logits(logits, target))


def test_mixing_ends_at_its_epoch():
    mixed = Note("on_train_batch_end", lambda module: module.mix.mixup_enabled)
    _fit(_built(mixup=0.8, mixup_off_epoch=1), max_epochs=2, callbacks=[mixed])
    assert mixed.values == [True] * 6 + [False] * 6


def test_a_run_has_no_history():
    """Draws in between, from all global generators, change nothing: dropout, stochastic depth and mixup included."""
    disturb = Note("on_train_batch_start", lambda _: (random.random(), np.random.rand(7), torch.rand(5)))
    options = {"mixup": 0.8, "cutmix": 1.0, "model_kwargs": {"drop_path_rate": 0.3, "proj_drop_rate": 0.1}}
    one = _fit(_built(**options), max_epochs=1).model.state_dict()
    assert same(one, _fit(_built(**options), max_epochs=1, callbacks=[disturb]).model.state_dict())
    assert not same(one, _fit(_built(**options, seed=1), max_epochs=1).model.state_dict())


def test_micro_batches_of_one_update_draw_differently():
    """With accumulation the global step stands still, the draws do not."""
    draws = Note("on_train_batch_end", lambda _: torch.rand(1).item())
    _fit(_built(), max_epochs=1, accumulate_grad_batches=3, callbacks=[draws])
    assert len(set(draws.values)) == 6


def test_data_configuration_by_name_and_by_model():
    named = Classification("vit_tiny_patch16_224", 5, model_kwargs=TINY)
    by_name, by_model = named.data_config, _built().data_config
    assert by_name == by_model and by_name["input_size"] == [3, 32, 32] and by_name["mean"] == [0.5, 0.5, 0.5]
    assert _built(data_config={"crop_pct": 1.0}).data_config["crop_pct"] == 1.0
    grafted = Classification("graft_swin_tiny_patch4_window7_224").data_config
    assert grafted["input_size"] == [3, 224, 224] and grafted["mean"][0] == pytest.approx(0.485)
