"""Evaluation sees images as timm's validate.py does: the same resize and crop rules of each model, the same top-1."""

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_dataset, create_loader, resolve_data_config

pytest.importorskip("torchmetrics")

import vitgraft  # noqa: F401  registers the models
from vitgraft.data.images import ImageDataset
from vitgraft.data.readers.open import open_source
from vitgraft.data.sampling import EvalOrder
from vitgraft.data.transforms import eval_transform, model_preprocessing
from vitgraft.metrics.classification import ClassificationMetrics

# bicubic at 0.9, 0.875 and 1.0; bilinear; mean 0.5; a size that is not 224
MODELS = (
    "deit_tiny_patch16_224",
    "vit_tiny_patch16_224",
    "swin_tiny_patch4_window7_224",
    "graft_cswin_tiny_224",
    "graft_swin_tiny_patch4_window7_224",
    "resnet18.tv_in1k",
    "vit_small_patch14_reg4_dinov2",
    "swinv2_tiny_window8_256",
    "convnext_tiny.fb_in1k",
)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """13 smooth images of several shapes in three class folders."""
    root = tmp_path_factory.mktemp("like_timm")
    generator = np.random.default_rng(0)
    for i, (width, height) in enumerate([(300, 200), (200, 300), (256, 256), (500, 333), (90, 120)] * 3):
        if i > 12:
            break
        folder = root / f"class{i % 3}"
        folder.mkdir(exist_ok=True)
        noise = Image.fromarray(generator.integers(0, 255, (12, 12, 3)).astype(np.uint8))
        noise.resize((width, height), Image.Resampling.BICUBIC).save(folder / f"{i:02}.png")
    return root


def theirs(root, config, batch_size: int = 4):
    """timm's own path, as validate.py calls it (without its GPU prefetcher)."""
    loader = create_loader(
        create_dataset("", root=str(root)),
        input_size=config["input_size"],
        batch_size=batch_size,
        use_prefetcher=False,
        interpolation=config["interpolation"],
        mean=config["mean"],
        std=config["std"],
        num_workers=0,
        crop_pct=config["crop_pct"],
        crop_mode=config["crop_mode"],
    )
    batches = list(loader)
    return torch.cat([images for images, _ in batches]), torch.cat([labels for _, labels in batches])


def ours(root, model):
    dataset = ImageDataset(open_source(root), eval_transform(model_preprocessing(model)))
    batches = [dataset.__getitems__(draws) for draws in EvalOrder(len(dataset), 4)]
    return torch.cat([batch.images for batch in batches]), torch.cat([batch.labels for batch in batches])


@pytest.mark.parametrize("name", MODELS)
def test_images_are_those_of_timm(images, name):
    with torch.device("meta"):
        model = timm.create_model(name)
    expected, labels = theirs(images, resolve_data_config({}, model=model))
    pixels, own_labels = ours(images, model)
    assert torch.equal(own_labels, labels)
    assert torch.equal(pixels, expected)


def test_top1_is_that_of_timm(images):
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", depth=1, num_classes=3).eval()
    torch.nn.init.normal_(model.head.weight)
    pixels, labels = theirs(images, resolve_data_config({}, model=model))
    own_pixels, own_labels = ours(images, model)
    metrics = ClassificationMetrics(3)
    with torch.no_grad():
        (top1,) = timm.utils.accuracy(model(pixels), labels, topk=(1,))
        for start in range(0, len(own_labels), 5):
            metrics.update(model(own_pixels[start : start + 5]), own_labels[start : start + 5])
    report = metrics.report()
    assert report.num_samples == 13
    assert 100 * report.top1 == pytest.approx(float(top1), abs=1e-4)
    assert 0 < report.top1 < 1
