"""Class folders through torchvision, the least that a run needs."""

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from timm.data import create_transform
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import ImageFolder

__all__ = ["ImageData"]


class _Generated(Dataset):
    def __init__(self, size: tuple[int, int, int], classes: int, length: int = 64):
        self.size, self.classes, self.length = size, classes, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.randn(self.size, generator=torch.Generator().manual_seed(index)), index % self.classes


class ImageData(pl.LightningDataModule):
    """root/train/CLASS/*.png and root/val/CLASS/*.png.

    Args:
        root: Folder of train and val.
        batch_size: Images per process.
        workers: Processes that load.
        seed: Of the order.
        smoke: Generated images instead.
    """

    def __init__(
        self,
        root: str | None = None,
        batch_size: int = 32,
        workers: int = 0,
        seed: int = 0,
        smoke: bool = False,
        auto_augment: str | None = None,
        color_jitter: float | None = None,
        reprob: float = 0.0,
    ):
        super().__init__()
        self.save_hyperparameters()
        self.batch_size = batch_size
        self.class_names: tuple[str, ...] = ()

    def setup(self, stage: str) -> None:
        h = self.hparams
        config = self.trainer.lightning_module.data_config
        if h.smoke:
            classes = self.trainer.lightning_module.hparams.num_classes or 10
            self.class_names = tuple(f"class {i}" for i in range(classes))
            self.train = self.val = _Generated(tuple(config["input_size"]), classes)
            return
        common: dict[str, Any] = {k: config[k] for k in ("input_size", "mean", "std", "interpolation")}
        train = create_transform(
            **common, is_training=True, auto_augment=h.auto_augment, color_jitter=h.color_jitter, re_prob=h.reprob
        )
        val = create_transform(**common, crop_pct=config["crop_pct"])
        self.train = ImageFolder(str(Path(h.root) / "train"), train)
        self.val = ImageFolder(str(Path(h.root) / "val"), val)
        self.class_names = tuple(self.train.classes)

    def train_dataloader(self) -> DataLoader:
        generator = torch.Generator().manual_seed(self.hparams.seed)
        return DataLoader(
            self.train,
            self.batch_size,
            shuffle=True,
            drop_last=True,
            num_workers=self.hparams.workers,
            generator=generator,
        )

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.val, self.batch_size, num_workers=self.hparams.workers)

    test_dataloader = predict_dataloader = val_dataloader
