"""Predicting images: files in, predictions out, one after the other, whatever is wrong with some of the files."""

import io
from collections.abc import Iterator
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vitgraft.data.decode import decode_image
from vitgraft.data.readers.base import ImageSource
from vitgraft.data.transforms import Transform
from vitgraft.errors import ImageError
from vitgraft.predict.load import Classifier
from vitgraft.predict.writers import Prediction

__all__ = ["predict"]

THUMBNAIL = 160  # longer side in pixels

Prepared = tuple[int, Tensor | None, bytes | None, str | None]


class PreparedImages(Dataset):
    """Image i as (i, float32 (3, H, W), thumbnail, None), or as (i, None, None, what is wrong with it)."""

    def __init__(self, source: ImageSource, transform: Transform, thumbnails: int):
        self.source, self.transform, self.thumbnails = source, transform, thumbnails

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Prepared:
        try:
            image = decode_image(self.source.read(index), self.source.name(index))
            thumbnail = make_thumbnail(image) if index < self.thumbnails else None
            return index, self.transform(image), thumbnail, None
        except ImageError as error:
            return index, None, None, error.reason or str(error)
        except Exception as error:  # of the transform; it must not end the other images' predictions
            return index, None, None, f"{type(error).__name__}: {error}"


def predict(
    classifier: Classifier,
    source: ImageSource,
    top: int = 5,
    batch_size: int = 32,
    device: str | torch.device = "cpu",
    workers: int = 0,
    thumbnails: int = 0,
) -> Iterator[Prediction]:
    """The predictions of all images, in their order; an unreadable image gives one that says why.

    Args:
        classifier: what predicts.
        source: the images (`vitgraft.data.readers.open.open_files`).
        top: how many classes; all of them where there are fewer.
        batch_size: images at a time.
        device: where the model runs.
        workers: processes that read images.
        thumbnails: of so many images, from the first on, a small picture is made.

    Raises:
        ValueError: `top` or `batch_size` below 1.
    """
    if top < 1 or batch_size < 1:
        raise ValueError(f"top={top}, batch_size={batch_size}: at least 1")
    model = classifier.model.to(device)
    images = PreparedImages(source, classifier.transform, thumbnails)
    loader: Any = DataLoader(images, batch_size, num_workers=workers, collate_fn=list)
    for batch in loader:
        readable = [prepared[1] for prepared in batch if prepared[1] is not None]
        results = iter(most_probable(model, torch.stack(readable).to(device), top) if readable else [])
        for index, image, thumbnail, error in batch:
            name = source.name(index)
            if image is None:
                yield Prediction(name, error=error)
                continue
            probabilities, classes = next(results)
            if probabilities[0] != probabilities[0]:  # nan
                yield Prediction(name, error="the model's output is not finite", thumbnail=thumbnail)
                continue
            yield Prediction(name, tuple(classes), tuple(probabilities), None, thumbnail)


@torch.inference_mode()
def most_probable(model: torch.nn.Module, images: Tensor, top: int) -> list[tuple[list[float], list[int]]]:
    """For each image of (B, 3, H, W) the largest probabilities and their classes."""
    probabilities = model(images).float().softmax(1)
    values, classes = probabilities.topk(min(top, probabilities.shape[1]), dim=1)
    return list(zip(values.tolist(), classes.tolist(), strict=True))


def make_thumbnail(image: Image.Image) -> bytes:
    """A JPEG file of the image, its longer side at most 160 pixels."""
    small = image.copy()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    file = io.BytesIO()
    small.save(file, "JPEG", quality=78)
    return file.getvalue()
