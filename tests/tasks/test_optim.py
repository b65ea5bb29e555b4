"""Learning rates: the batch rule, schedules at chosen moments, layer decay and what does not decay."""

import math

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import vitgraft
from vitgraft.tasks.optim import Schedule, make_optimizer, scale_learning_rates


def _rates(schedule: Schedule, updates_per_epoch: int, epochs: int) -> list[float]:
    """Learning rate of every update."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = schedule.build(optimizer, updates_per_epoch, updates_per_epoch * epochs)
    rates = []
    for update in range(updates_per_epoch * epochs):
        scheduler.step(update if schedule.on_updates else update // updates_per_epoch)
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


def test_rule_of_the_batch():
    rates = scale_learning_rates(5e-4, 5e-7, 5e-6, 512, "all", 128, 8, 1)
    assert (rates.lr, rates.warmup_lr, rates.min_lr) == pytest.approx((1e-3, 1e-6, 1e-5))
    assert rates.text == (
        "learning rate 0.001 = 0.0005 x 1024 / 512 (total batch 1024 = 128 images x 8 processes x 1 accumulated)"
    )
    rates = scale_learning_rates(5e-4, 1e-6, 1e-5, 512, "lr", 64, 2, 2)
    assert (rates.lr, rates.warmup_lr, rates.min_lr) == pytest.approx((2.5e-4, 1e-6, 1e-5))
    rates = scale_learning_rates(2e-3, 1e-6, 1e-5, None, "lr", 256, 1, 1)
    assert rates.lr == 2e-3 and "as given" in rates.text


def test_swin_moves_with_every_update_beneath_the_warmup():
    rates = _rates(Schedule("cosine", True, warmup_epochs=2, warmup_lr=0.1, min_lr=0.01), 10, 30)
    assert rates[:3] == pytest.approx([0.1, 0.1 + 0.9 / 20, 0.1 + 2 * 0.9 / 20])
    wanted = [0.01 + 0.495 * (1 + math.cos(math.pi * t / 300)) for t in (20, 150, 299)]
    assert [rates[20], rates[150], rates[299]] == pytest.approx(wanted)


def test_prefix_starts_the_cosine_after_the_warmup():
    rates = _rates(Schedule("cosine", True, warmup_epochs=2, warmup_prefix=True), 10, 30)
    assert rates[20] == pytest.approx(1.0)
    assert rates[160] == pytest.approx(0.5)


def test_deit_stands_still_for_an_epoch():
    rates = _rates(Schedule("cosine", False, warmup_epochs=5, warmup_lr=1e-3, min_lr=1e-2), 7, 30)
    epochs = [rates[7 * epoch : 7 * epoch + 7] for epoch in range(30)]
    assert all(len(set(epoch)) == 1 for epoch in epochs)
    assert epochs[1][0] == pytest.approx(1e-3 + (1 - 1e-3) / 5)
    assert epochs[15][0] == pytest.approx(1e-2 + 0.99 / 2)


def test_cswin_rests_at_the_minimum():
    rates = _rates(Schedule("cosine", False, min_lr=1e-2, cooldown_epochs=10), 2, 31)
    assert rates[42:] == pytest.approx([1e-2] * 20)
    assert rates[40] > 1e-2 and rates[20] == pytest.approx(1e-2 + 0.495 * (1 + math.cos(math.pi * 10 / 21)))


def test_constant_and_linear():
    rates = _rates(Schedule("constant", True, warmup_updates=4), 10, 3)
    assert rates[:5] == pytest.approx([0, 0.25, 0.5, 0.75, 1.0]) and set(rates[4:]) == {1.0}
    rates = _rates(Schedule("poly", True, options={"decay_rate": 1.0}), 10, 2)
    assert rates == pytest.approx([1 - t / 20 for t in range(20)])


def _grafted() -> nn.Module:
    model = VisionTransformer(img_size=32, patch_size=8, embed_dim=32, depth=3, num_heads=2, num_classes=5)
    return vitgraft.graft(model, window_size=2, blocks=(1, 2))


def test_layer_decay_takes_a_graft_with_its_block():
    model = _grafted()
    optimizer = make_optimizer(model, "adamw", 0.1, 0.05, layer_decay=0.5)
    scale = {id(p): group["lr_scale"] for group in optimizer.param_groups for p in group["params"]}
    by_name = {name: scale[id(p)] for name, p in model.named_parameters()}
    assert by_name["head.weight"] == 1.0
    for block in (1, 2):
        inside = {value for name, value in by_name.items() if name.startswith(f"blocks.{block}.")}
        assert len(inside) == 1 and any(f"blocks.{block}.graft." in name for name in by_name)
    assert by_name["blocks.2.norm1.weight"] / by_name["blocks.1.norm1.weight"] == 2.0
    Schedule("constant").build(optimizer, 1, 10).step(0)
    rates = {group["lr_scale"]: group["lr"] for group in optimizer.param_groups}
    assert all(lr == pytest.approx(0.1 * scale) for scale, lr in rates.items())


def test_patterns_do_not_decay():
    model = _grafted()

    def decaying(patterns):
        optimizer = make_optimizer(model, "adamw", 0.1, 0.05, patterns)
        decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
        return {name for name, p in model.named_parameters() if decay[id(p)]}

    some, fewer = decaying(()), decaying(("head.*", "*.qkv.weight"))
    assert not any("bias_table" in name or "anti_alias" in name or name == "pos_embed" for name in some)
    assert some - fewer == {"head.weight"} | {name for name in some if name.endswith(".qkv.weight")}


def test_frozen_weights_are_left_out():
    model = _grafted()
    vitgraft.train_grafts_only(model)
    optimizer = make_optimizer(model, "sgd", 0.1, 0.0, momentum=0.9)
    given = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert given == {id(p) for p in model.parameters() if p.requires_grad}
    assert optimizer.param_groups[0]["momentum"] == 0.9
