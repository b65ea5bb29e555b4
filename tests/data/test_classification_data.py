"""`ImageData`: the same batches whatever the workers, whatever was done before, and from any batch on."""

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets_on_disk import write_folder, write_tar

from vitgraft.errors import DataError

pl = pytest.importorskip("pytorch_lightning")
from vitgraft.data.classification import ImageData  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")
FULL = {"auto_augment": "rand-m9-mstd0.5-inc1", "reprob": 0.5, "input_size": 24}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    write_folder(root / "train", {"cat": 9, "dog": 8, "eel": 7})
    write_folder(root / "val", {"cat": 3, "dog": 3, "eel": 1}, seed=7)
    return root


def same(one, other):
    return all(
        torch.equal(a.images, b.images)
        and torch.equal(a.labels, b.labels)
        and torch.equal(a.indices, b.indices)
        and a.bad == b.bad
        for a, b in zip(one, other, strict=True)
    )


def test_workers_change_nothing(folder):
    epochs = []
    for workers in (0, 1, 3):
        torch.manual_seed(workers), np.random.seed(workers)
        loader = ImageData(folder, batch_size=4, workers=workers, **FULL).train_dataloader()
        epochs.append([list(loader), list(loader)])
        loader.shut_down()
    for other in epochs[1:]:
        assert same(epochs[0][0], other[0]) and same(epochs[0][1], other[1])
    assert not torch.equal(epochs[0][0][0].indices, epochs[0][1][0].indices)


def test_loading_leaves_the_callers_generators_alone(folder):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    list(ImageData(folder, batch_size=8, workers=0, **FULL).train_dataloader())
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_starts_at_any_batch_and_decodes_none_before(folder, workers, monkeypatch):
    whole = ImageData(folder, batch_size=4, workers=0, **FULL).train_dataloader()
    whole.order.set_position(3)
    whole = list(whole)
    loader = ImageData(folder, batch_size=4, workers=workers, **FULL).train_dataloader()
    read = []
    if not workers:
        original = loader.dataset.source.read
        monkeypatch.setattr(loader.dataset.source, "read", lambda index: read.append(index) or original(index))
    loader.order.set_position(3, 4)
    assert same(list(loader), whole[4:]) and len(loader) == 6
    if not workers:
        assert len(read) == 8
    loader.shut_down()


def test_evaluation_is_in_order_and_not_augmented(folder):
    data = ImageData(folder, batch_size=4, workers=0, **FULL)
    batches = list(data.val_dataloader())
    assert [len(batch.labels) for batch in batches] == [4, 3]
    assert torch.cat([batch.labels for batch in batches]).tolist() == [0, 0, 0, 1, 1, 1, 2]
    assert torch.cat([batch.indices for batch in batches]).tolist() == list(range(7))
    assert same(batches, list(data.val_dataloader()))
    assert data.class_names == ("cat", "dog", "eel")


def test_cached_images_are_the_same(folder):
    plain, cached = (
        ImageData(folder, batch_size=4, workers=0, cache=cache, **FULL).train_dataloader() for cache in (False, True)
    )
    expected = list(plain)
    cached.dataset.source.read = None  # nothing is read any more
    assert same(expected, list(cached))


def test_steps_per_epoch(folder):
    data = ImageData(folder, batch_size=4)
    assert data.steps_per_epoch() == 6 and data.steps_per_epoch(2) == 3
    assert data.steps_per_epoch(accumulate=4) == 2


class Recorder(pl.LightningModule):
    """Notes which samples Lightning hands out."""

    def __init__(self, stop_at=None):
        super().__init__()
        self.layer = torch.nn.Linear(3, 3)
        self.seen, self.stop_at = [], stop_at

    def training_step(self, batch, batch_idx):
        self.seen.append((self.current_epoch, batch_idx, batch.indices.tolist(), batch.images.sum().item()))
        return self.layer(batch.images.mean((2, 3))).sum()

    def on_train_batch_end(self, outputs, batch, batch_idx):
        if self.stop_at is not None and self.global_step == self.stop_at:
            raise KeyboardInterrupt

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def test_fewer_images_than_processes_are_refused_in_all_of_them(folder):
    for rank in (0, 7):
        data = ImageData(folder, batch_size=1, **FULL)
        data.setup("validate")
        cpu = SimpleNamespace(root_device=torch.device("cpu"))
        data.trainer = SimpleNamespace(world_size=8, global_rank=rank, strategy=cpu)
        with pytest.raises(DataError, match=r"val set has 7 images.*8 processes.*at most 7"):
            data.val_dataloader()
    data.trainer.world_size = 7
    data.trainer.global_rank = 6
    assert len(data.val_dataloader()) == 1


def fit(folder, tmp_path, ckpt=None, stop_at=None, workers=0, **options):
    module, data = Recorder(stop_at), ImageData(folder, batch_size=4, workers=workers, **FULL)
    trainer = pl.Trainer(
        max_epochs=3,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        default_root_dir=tmp_path,
        **options,
    )
    try:
        trainer.fit(module, datamodule=data, ckpt_path=ckpt)
    except BaseException:
        trainer.save_checkpoint(tmp_path / "stopped.ckpt")
    return module.seen


@pytest.mark.parametrize(("stop_at", "workers"), [(1, 0), (6, 0), (8, 0), (9, 2), (11, 0), (12, 0), (17, 0)])
def test_lightning_resumes_with_the_very_next_batch(folder, tmp_path, stop_at, workers):
    whole = fit(folder, tmp_path)
    assert [seen[:2] for seen in whole] == [(epoch, number) for epoch in range(3) for number in range(6)]
    first = fit(folder, tmp_path, stop_at=stop_at, workers=workers)
    second = fit(folder, tmp_path, tmp_path / "stopped.ckpt", workers=workers)
    assert len(first) == stop_at and first + second == whole


def test_num_classes_that_disagree(folder):
    with pytest.raises(DataError, match=r"num_classes=5: .* has 3 classes \(cat, dog"):
        ImageData(folder, num_classes=5).setup("fit")


def test_splits_and_paths_of_their_own(folder, tmp_path, monkeypatch):
    packed = write_tar(tmp_path / "packed.tar", folder / "val")
    for data in (
        ImageData(folder, val=str(packed)),
        ImageData(train=str(folder / "train"), val=str(packed)),
        ImageData(folder, train="train", val="val"),
    ):
        data.setup("fit")
        assert (len(data.source("train")), len(data.source("val"))) == (24, 7)
    # a folder of that name in the working folder is not meant
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "train", {"cat": 1, "dog": 1, "eel": 1})
    assert len(ImageData(folder).source("train")) == 24
    with pytest.raises(DataError, match=r"data\.root: name the folder"):
        ImageData().setup("fit")
    with pytest.raises(DataError, match="no split 'elsewhere'"):
        ImageData(folder, val="elsewhere").setup("fit")


def test_classes_that_differ_stop_the_run_before_it_starts(folder, tmp_path):
    other = write_folder(tmp_path / "val", {"cat": 1, "dog": 1, "fox": 1})
    with pytest.raises(DataError, match="different classes"):
        ImageData(folder, val=str(other)).setup("fit")


@pytest.mark.parametrize("stage", ["fit", "validate"])
def test_validation_without_a_class_is_numbered_as_training(folder, tmp_path, capsys, stage):
    other = write_folder(tmp_path / "val", {"dog": 1, "eel": 2})
    data = ImageData(folder, val=str(other))
    data.setup(stage)
    val = data.source("val")
    assert data.class_names == val.class_names == ("cat", "dog", "eel") and val.labels.tolist() == [1, 2, 2]
    assert "1 class of the training images has none here" in capsys.readouterr().out
    # a class that training has not
    (other / "dog").rename(other / "fox")
    with pytest.raises(DataError, match=r"only in .*val: fox"):
        ImageData(folder, val=str(other)).setup(stage)


def test_smoke_needs_no_files():
    data = ImageData("/nowhere", batch_size=64, input_size=24, workers=4)
    data.smoke(num_classes=7)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert batch.images.shape == (4, 3, 24, 24) and len(data.class_names) == 7 and data.workers == 0


def test_a_process_with_workers_ends(folder):
    """Workers ignore SIGTERM; none may keep the interpreter from exiting in the middle of an epoch."""
    code = f"""
import sys
from vitgraft.data.classification import ImageData
loaders = [ImageData({str(folder)!r}, batch_size=4, workers=2, input_size=24).train_dataloader() for _ in range(2)]
iterators = [iter(loader) for loader in loaders]
batches = [next(iterator) for iterator in iterators]
sys.keep = iterators[0], loaders[0]
raise SystemExit(3)
"""
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", code], timeout=100).returncode == 3


def test_all_wrong_options_at_once():
    values = {
        "batch_size": 0,
        "workers": -1,
        "reprob": 2.0,
        "auto_augment": "nonsense-m9",
        "train_crop_mode": "crop",
        "scale": (1.0, 0.5),
        "input_size": 0,
        "format": "zip",
        "crop_pct": 1.5,
    }
    errors = ImageData.option_errors(values)
    assert {error.split("=")[0] for error in errors} == set(values) and len(errors) == len(values)
    with pytest.raises(ValueError, match=r"batch_size=0: .*workers=-1"):
        ImageData(**values)
    assert ImageData.option_errors({"batch_size": 1}) == []


def test_the_models_preprocessing_is_taken(folder, monkeypatch):
    config = {"input_size": [3, 48, 48], "mean": [0.5] * 3, "crop_pct": 0.9, "interpolation": "bicubic", "other": 1}
    monkeypatch.setattr(ImageData, "model_config", config)
    taken = ImageData(folder, crop_pct=1.0).preprocessing
    assert (taken.input_size, taken.mean, taken.crop_pct, taken.interpolation) == ((48, 48), (0.5,) * 3, 1.0, "bicubic")
