"""Batches with images that can't be read: replaced in training, left out in evaluation, always named."""

import pytest
import torch
from datasets_on_disk import write_folder

from vitgraft.data.images import ImageDataset, PixelCache
from vitgraft.data.loader import MOST_IN_A_ROW, Loader
from vitgraft.data.readers.generated import GeneratedSource
from vitgraft.data.readers.open import open_source
from vitgraft.data.sampling import Draw, EvalOrder
from vitgraft.data.transforms import Augmentation, Preprocessing, eval_transform, train_transform
from vitgraft.errors import ImageError

SMALL = Preprocessing((16, 16))


@pytest.fixture
def folder(tmp_path):
    write_folder(tmp_path, {"cat": 4, "dog": 4})
    (tmp_path / "cat" / "002.jpg").write_bytes(b"")
    (tmp_path / "cat" / "003.jpg").write_bytes(b"broken")
    (tmp_path / "dog" / "003.jpg").write_bytes((tmp_path / "dog" / "003.jpg").read_bytes()[:-100])
    return tmp_path


@pytest.mark.parametrize("cache", [False, True])
def test_training_takes_the_next_readable_image(folder, cache):
    dataset = ImageDataset(open_source(folder), train_transform(SMALL, Augmentation()), train=True, cache=cache)
    batch = dataset.__getitems__([Draw(0, 1), Draw(0, 2), Draw(0, 7)])
    assert batch.indices.tolist() == [1, 4, 0] and batch.labels.tolist() == [0, 1, 0]
    assert [text.split("/")[-1].split(":")[0] for text in batch.bad] == ["002.jpg", "003.jpg", "003.jpg"]
    assert "empty file" in batch.bad[0] and "not an image" in batch.bad[1] and "truncated" in batch.bad[2]
    # the one that stands in is augmented as itself
    assert torch.equal(batch.images[1], dataset.__getitems__([Draw(0, 4)]).images[0])


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_leaves_them_out(folder, workers):
    dataset = ImageDataset(open_source(folder), eval_transform(SMALL))
    loader = Loader(dataset, EvalOrder(8, 2), workers)
    batches = list(loader)
    loader.shut_down()
    assert [batch.indices.tolist() for batch in batches] == [[0, 1], [], [4, 5], [6]]
    assert [len(batch.bad) for batch in batches] == [0, 2, 0, 1]
    assert batches[1].images.shape[0] == 0 and batches[1].labels.dtype == torch.int64


@pytest.mark.parametrize("workers", [0, 2])
def test_a_set_that_cant_be_read_at_all(tmp_path, workers):
    write_folder(tmp_path, {"cat": 3})
    source = open_source(tmp_path)
    for path in tmp_path.glob("cat/*.jpg"):
        path.write_bytes(b"")
    dataset = ImageDataset(source, train_transform(SMALL, Augmentation()), train=True)
    loader = Loader(dataset, EvalOrder(3, 2), workers)
    with pytest.raises(ImageError, match=r"000\.jpg: empty file .*nor can the 2 images after it"):
        list(loader)
    loader.shut_down()
    assert MOST_IN_A_ROW > 2


def test_the_augmentation_is_a_function_of_the_draw():
    dataset = ImageDataset(GeneratedSource(4, 2), train_transform(SMALL, Augmentation(reprob=1.0)), 5, True)
    whole = dataset.__getitems__([Draw(1, 0), Draw(1, 1), Draw(1, 1, 1), Draw(2, 1)])
    assert torch.equal(dataset[Draw(1, 1)][0], whole.images[1])
    assert torch.equal(dataset.__getitems__([Draw(2, 1)]).images[0], whole.images[3])
    assert not torch.equal(whole.images[1], whole.images[2]) and not torch.equal(whole.images[1], whole.images[3])
    other = ImageDataset(GeneratedSource(4, 2), dataset.transform, 6, True)
    assert not torch.equal(other[Draw(1, 1)][0], whole.images[1])


def test_a_cache_has_a_limit():
    with pytest.raises(ValueError, match=r"cache=True: the first 2 of 4 images of generated images already take"):
        PixelCache(GeneratedSource(4, 2, (64, 64)), limit=20_000)
