"""What `predict` takes: one image or several, as path, PIL image, array or tensor; and what is no image."""

import numpy as np
import pytest
import torch
from dense_runs import dense_run
from PIL import Image
from tiny_runs import NAMES, checkpoint, tiny

import vitgraft
from vitgraft.errors import ImageError
from vitgraft.predict.inputs import read_image

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)


def test_one_image_in_every_form(tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    run = vitgraft.load(checkpoint(tmp_path / "best.ckpt", tiny()))
    channels_first = torch.from_numpy(PIXELS).permute(2, 0, 1)
    expected = run.predict(tmp_path / "a.png")
    assert expected["label"] == NAMES[expected["probabilities"].argmax()]
    assert expected["probability"] == expected["probabilities"].max() and expected["probabilities"].shape == (6,)
    for image in (
        str(tmp_path / "a.png"),
        Image.fromarray(PIXELS),
        PIXELS,
        PIXELS / 255,
        channels_first,
        channels_first.double() / 255,
        (channels_first / 255).requires_grad_(),
    ):
        found = run.predict(image)
        assert torch.equal(found["probabilities"], expected["probabilities"]), type(image)
    for several in ([PIXELS, tmp_path / "a.png"], np.stack([PIXELS] * 2), (one for one in [channels_first] * 2)):
        assert [one["label"] for one in run.predict(several, batch_size=1)] == [expected["label"]] * 2


def test_results_of_the_dense_tasks(tmp_path):
    found = vitgraft.load(dense_run(tmp_path / "detector", "detection")).predict(PIXELS)
    assert found["boxes"].shape == (12, 4)
    assert found["masks"].shape == (12, 40, 50) and found["masks"].dtype == torch.bool
    assert (found["scores"].diff() <= 0).all() and set(found["labels"].tolist()) <= {1, 2}
    segmenter = vitgraft.load(dense_run(tmp_path / "segmenter", "segmentation"))
    assert segmenter.class_names == ("sky", "road", "car") and segmenter.flip
    found = segmenter.predict([PIXELS])[0]
    assert found.shape == (40, 50) and found.dtype == np.uint8 and found.max() < 3


def test_modes():
    gray = PIXELS[..., 0]
    for image in (gray, gray[..., None], torch.from_numpy(gray), torch.from_numpy(gray)[None], Image.fromarray(gray)):
        assert np.array_equal(np.asarray(read_image(image)), np.stack([gray] * 3, -1))
    clear = np.concatenate([PIXELS, np.zeros_like(PIXELS[..., :1])], -1)
    assert (np.asarray(read_image(clear)) == 255).all()  # laid on white
    assert np.asarray(read_image(gray > 100)).max() == 255


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (PIXELS.transpose(2, 0, 1), r"ndarray of shape \(3, 40, 50\): give \(H, W, 3\)"),
        (torch.from_numpy(PIXELS), r"Tensor of shape \(40, 50, 3\): give \(3, H, W\)"),
        (PIXELS.astype(np.int64), "ndarray of int64: give uint8"),
        (torch.randn(3, 8, 8), "floats beyond 0 to 1.*not normalized"),
        (np.full((4, 4), np.nan), "floats beyond 0 to 1"),
        (np.zeros((0, 4), np.uint8), r"shape \(0, 4\)"),
        ([PIXELS, 3], "image 1: int is no path"),
        (3, "not an image"),
        (b"bytes", "not an image"),
        ("none.jpg", "none.jpg: No such file"),
        (".", "a folder; give a list"),
    ],
)
def test_what_is_no_image(tmp_path, image, message):
    run = vitgraft.load(checkpoint(tmp_path / "best.ckpt", tiny()))
    with pytest.raises(ImageError, match=message):
        run.predict(image)
