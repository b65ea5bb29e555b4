"""What timm's models promise, checked on any model: shared by the suites of the registered models and of the zoo.

All take models in eval mode with 5 classes, and images (B, 3, H, W).
"""

from collections.abc import Sequence

import torch
from torch import nn


def check_forward_and_backward(model: nn.Module, x: torch.Tensor) -> None:
    """Logits, and a finite gradient for the image and for all that is trained; leaves the model in train mode."""
    model.train()
    x.requires_grad_()
    out = model(x)
    assert out.shape == (len(x), 5)
    out.square().sum().backward()
    assert x.grad.abs().sum() > 0
    for name, p in model.named_parameters():
        if p.requires_grad:  # T2T-ViT has fixed random features and a fixed position embedding
            assert p.grad is not None and p.grad.isfinite().all(), name


def check_empty_batch(model: nn.Module, x: torch.Tensor) -> None:
    """No images pass with and without gradients; leaves the model in train mode."""
    with torch.no_grad():
        assert model(x[:0]).shape == (0, 5)
    out = model.train()(x[:0])
    assert out.shape == (0, 5)
    out.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters() if p.requires_grad)


def check_sizes_change_from_batch_to_batch(model: nn.Module, batches: Sequence[torch.Tensor]) -> None:
    """One size after the other, and back: nothing of a size stays behind."""
    with torch.no_grad():
        first = [model(x) for x in batches]
        again = [model(x) for x in reversed(batches)]
    assert all(y.shape == (len(x), 5) and y.isfinite().all() for x, y in zip(batches, first, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(first, reversed(again), strict=True))


def check_images_do_not_mix(model: nn.Module, x: torch.Tensor) -> None:
    """A batch gives what its images give alone."""
    with torch.no_grad():
        torch.testing.assert_close(model(x), torch.cat([model(one[None]) for one in x]), rtol=1e-4, atol=1e-5)


def check_features_only(features: nn.Module, model: nn.Module, x: torch.Tensor, reductions: list[int]) -> None:
    """Maps of `features_only=True` are the intermediates, of the shapes that were said."""
    assert features.feature_info.reduction() == reductions
    with torch.no_grad():
        maps = features(x)
        final, intermediates = model.forward_intermediates(x)
    for level, channels, reduction in zip(maps, features.feature_info.channels(), reductions, strict=True):
        assert level.shape[:2] == (len(x), channels)
        for side, pixels in zip(level.shape[2:], x.shape[2:], strict=True):
            # rounded up, or down where the first convolution has no padding to whole patches
            assert side in (-(-pixels // reduction), pixels // reduction)
    for a, b in zip(maps, intermediates[-len(maps) :], strict=True):
        assert torch.equal(a, b)
    torch.testing.assert_close(final, model.forward_features(x))


def check_intermediates_take_indices(model: nn.Module, x: torch.Tensor) -> None:
    """Some intermediates are some of all, also where the rest is not run."""
    with torch.no_grad():
        _, every = model.forward_intermediates(x)
        some = model.forward_intermediates(x, indices=[0, 1], intermediates_only=True, stop_early=True)
    assert [torch.equal(a, b) for a, b in zip(some, every, strict=False)] == [True, True]


def check_pruned_features_have_gradients(features: nn.Module, x: torch.Tensor) -> None:
    """As DistributedDataParallel wants: what is not needed for the maps is gone; the norms that timm leaves are not."""
    sum(level.square().sum() for level in features(x)).backward()
    for name, p in features.named_parameters():
        assert p.grad is not None or not p.requires_grad or "norm" in name, name


def check_reset_classifier(model: nn.Module, x: torch.Tensor) -> None:
    """Another number of classes, and none."""
    features = model.forward_head(model.forward_features(x), pre_logits=True)
    assert features.shape == (len(x), model.head_hidden_size)
    model.reset_classifier(7)
    assert model(x).shape == (len(x), 7) and model.get_classifier().out_features == 7
    assert not model.get_classifier().training
    model.reset_classifier(0)
    torch.testing.assert_close(model(x), features)


def check_gradient_checkpointing(model: nn.Module, x: torch.Tensor) -> None:
    """The same outputs and gradients with and without; leaves the model in train mode."""
    model.train()
    runs = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        torch.manual_seed(0)  # stochastic depth draws the same
        out = model(x)
        out.square().sum().backward()
        runs.append((out.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}))
    torch.testing.assert_close(*runs)
