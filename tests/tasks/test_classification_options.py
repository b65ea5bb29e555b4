"""Classification from a name: grafts, start values, mixup, losses, rates, and that a run has no history."""

import pytest
import torch
import torch.nn.functional as F
from timm.loss import BinaryCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch.utils.data import DataLoader, TensorDataset

import vitgraft
from vitgraft.errors import RecipeError

pl = pytest.importorskip("pytorch_lightning")
from vitgraft.tasks.classification import Classification  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2}


def _task(**options) -> Classification:
    return Classification(
        "vit_tiny_patch16_224", 5, model_kwargs={**TINY, **options.pop("model_kwargs", {})}, **options
    )


def _built(**options) -> Classification:
    task = _task(**options)
    task.configure_model()
    return task


def _loader(count: int = 24, batch: int = 4) -> DataLoader:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(count, 3, 32, 32, generator=generator)
    return DataLoader(TensorDataset(images, torch.randint(5, (count,), generator=generator)), batch)


def _fit(task: Classification, loader: DataLoader | None = None, **options) -> Classification:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(accelerator="cpu", devices=1, enable_model_summary=False, **quiet, **options)
    trainer.fit(task, loader or _loader())
    return task


def _same(one: torch.nn.Module, two: torch.nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


def test_start_weights_depend_on_the_seed_alone():
    first = _built(seed=3).model
    torch.rand(17)
    assert _same(first, _built(seed=3).model)
    assert not _same(first, _built(seed=4).model)


def test_identity_grafts_on_a_named_backbone():
    plain, grafted = _built().model, _built(graft={"window_size": 2, "init": "identity"}).model
    assert len(vitgraft.grafts(grafted)) == 1 and not vitgraft.is_grafted(plain)
    grafted.load_state_dict(plain.state_dict(), strict=False)
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(plain.eval()(images), grafted.eval()(images))


def test_graft_options_of_a_grafted_name():
    size = {"img_size": 32, "depth": 3, "embed_dim": 48, "num_heads": 3}
    task = Classification("graft_deit_tiny_patch16_224", 5, model_kwargs=size, graft={"blocks": 1, "window_size": 1})
    task.configure_model()
    assert list(vitgraft.grafts(task.model)) == ["blocks.2"]


def test_grafts_only():
    task = _built(graft={"window_size": 2}, train_grafts_only=True)
    before = {name: value.clone() for name, value in task.model.state_dict().items()}
    _fit(task, max_epochs=1)
    moved = {name for name, value in task.model.state_dict().items() if not torch.equal(value, before[name])}
    assert any(".graft." in name for name in moved) and {"head.weight", "head.bias"} <= moved
    assert all(".graft." in name or name.startswith("head.") for name in moved)


@pytest.mark.parametrize(
    ("options", "loss"),
    [
        ({}, torch.nn.CrossEntropyLoss),
        ({"smoothing": 0.1}, LabelSmoothingCrossEntropy),
        ({"smoothing": 0.1, "mixup": 0.8}, SoftTargetCrossEntropy),
        ({"loss": "bce", "cutmix": 1.0}, BinaryCrossEntropy),
    ],
)
def test_losses(options, loss):
    task = _built(**options)
    assert type(task.loss) is loss
    assert torch.isfinite(torch.tensor(_fit(task, max_steps=2).trainer.callback_metrics["train/loss"]))


def test_mixed_labels_are_smoothed_once():
    task = _built(mixup=0.8, smoothing=0.2)
    _, target = task.mix(torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 3]))
    torch.testing.assert_close(target.sum(1), torch.ones(4))
    assert target.min() == pytest.approx(0.2 / 5) and target.shape == (4, 5)
    bce = _built(mixup=0.8, smoothing=0.2, loss="bce")
    logits = torch.randn(4, 5)
    torch.testing.assert_close(bce.loss(logits, target), F.binary_cross_entropy_with_logits(logits, target))


def test_mixing_ends_at_its_epoch():
    seen = []

    class Note(pl.Callback):
        def on_train_batch_end(self, trainer, module, *_):
            seen.append(module.mix.mixup_enabled)

    _fit(_built(mixup=0.8, mixup_off_epoch=1), max_epochs=2, callbacks=[Note()])
    assert seen == [True] * 6 + [False] * 6


def test_a_run_has_no_history():
    """Draws in between, from all global generators, change nothing: dropout, stochastic depth and mixup included."""
    import random

    import numpy as np

    class Disturb(pl.Callback):
        def on_train_batch_start(self, *_):
            random.random(), np.random.rand(7), torch.rand(5)

    options = {"mixup": 0.8, "cutmix": 1.0, "model_kwargs": {"drop_path_rate": 0.3, "proj_drop_rate": 0.1}}
    one = _fit(_built(**options), max_epochs=1)
    two = _fit(_built(**options), max_epochs=1, callbacks=[Disturb()])
    assert _same(one.model, two.model)
    assert not _same(one.model, _fit(_built(**options, seed=1), max_epochs=1).model)


def test_micro_batches_of_one_update_draw_differently():
    """With accumulation the global step stands still, the draws do not."""
    draws = []

    class Note(pl.Callback):
        def on_train_batch_end(self, *_):
            draws.append(torch.rand(1).item())

    _fit(_built(), max_epochs=1, accumulate_grad_batches=3, callbacks=[Note()])
    assert len(set(draws)) == 6


@pytest.mark.parametrize("accumulate", [1, 4])
def test_schedule_ends_where_the_run_ends(accumulate):
    """24 images in batches of 4: 6 steps an epoch, with 4 accumulated 2 updates."""
    rates = []

    class Note(pl.Callback):
        def on_before_optimizer_step(self, trainer, module, optimizer):
            rates.append(optimizer.param_groups[0]["lr"])

    _fit(_built(lr=1.0, sched="poly", sched_kwargs={"decay_rate": 1.0}), max_epochs=2,
         accumulate_grad_batches=accumulate, callbacks=[Note()])  # fmt: skip
    updates = 12 if accumulate == 1 else 4
    assert rates == pytest.approx([1 - update / updates for update in range(updates)])


def test_all_ranges_at_once():
    with pytest.raises(RecipeError) as caught:
        _task(lr=-1.0, mixup=-0.1, smoothing=1.0, opt="adamv", betas=(0.9, 1.0), sched="cosin", warmup_epochs=-1)
    assert len(caught.value.errors) == 7
    assert "model.lr=-1.0: should be greater than 0" in str(caught.value)


def test_no_classes():
    with pytest.raises(RecipeError, match="num_classes: not given"):
        Classification("vit_tiny_patch16_224").configure_model()


def test_batch_rule_needs_to_know_the_batch():
    with pytest.raises(RecipeError, match="lr_batch: needs a data module"):
        _fit(_built(lr_batch=256), max_steps=1)


def test_data_configuration_by_name_and_by_model():
    by_name, by_model = _task().data_config, _built().data_config
    assert by_name == by_model and by_name["input_size"] == [3, 32, 32] and by_name["mean"] == [0.5, 0.5, 0.5]
    assert _task(data_config={"crop_pct": 1.0}).data_config["crop_pct"] == 1.0
    grafted = Classification("graft_swin_tiny_patch4_window7_224").data_config
    assert grafted["input_size"] == [3, 224, 224] and grafted["mean"][0] == pytest.approx(0.485)


def test_rebuilt_from_hyper_parameters():
    task = _built(graft={"window_size": 2}, mixup=0.2)
    again = Classification(**dict(task.hparams))
    again.configure_model()
    again.load_state_dict(task.state_dict())
    assert _same(task.model, again.model)
