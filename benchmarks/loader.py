"""How many images a second one loader process gives, ours beside timm's, on the same files in the same run.

    python -m benchmarks.loader PHOTOS [--images 256] [--rounds 9] [--output results/bench_loader.json]

The photos below PHOTOS are first saved as JPEG of ImageNet's usual size (longer side 500 pixels, quality 90) in a
temporary folder, each as often as needed, and read once. Then the two loaders take turns, one epoch a round each, with
one worker process that computes on one thread, or none: DeiT's training pipeline (random resized crop to 224, flip,
RandAugment, normalization, random erasing). The ratio is the median of the ratios within a round; the worker's start is
not timed. Without a worker the rate is also given per second of CPU time, which other processes disturb less.
"""

from __future__ import annotations

import argparse
import io
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import torch
from PIL import Image
from timm.data import create_dataset, create_loader

from vitgraft.data.images import ImageDataset
from vitgraft.data.loader import Loader
from vitgraft.data.readers.open import open_files, open_source
from vitgraft.data.sampling import TrainOrder
from vitgraft.data.transforms import Augmentation, Preprocessing, repair_posterize, train_transform
from vitgraft.machine import record
from vitgraft.terminal import write_json

PREPROCESSING = Preprocessing((224, 224))
AUGMENTATION = Augmentation(auto_augment="rand-m9-mstd0.5-inc1", reprob=0.25, train_interpolation="bicubic")
BATCH_SIZE = 32


def make_folder(photos: Path, folder: Path, images: int) -> float:
    """Writes `images` JPEGs of ImageNet's size as two class folders; returns their mean size in bytes."""
    source = open_files([photos])
    encoded = []
    for index in range(len(source)):
        image = Image.open(io.BytesIO(source.read(index))).convert("RGB")
        image.thumbnail((500, 500), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=90)
        encoded.append(buffer.getvalue())
    for number in range(images):
        path = folder / f"class_{number % 2}" / f"{number:05}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded[number % len(encoded)])
    return statistics.mean(len(data) for data in encoded)


def our_loader(folder: Path, workers: int) -> Loader:
    """This library's training loader."""
    source = open_source(folder)
    dataset = ImageDataset(source, train_transform(PREPROCESSING, AUGMENTATION), train=True)
    return Loader(dataset, TrainOrder(len(source), 0, BATCH_SIZE), workers)


def timms_loader(folder: Path, workers: int) -> Iterable:
    """timm's, as its training script makes it, without the GPU prefetcher."""
    loader = create_loader(
        create_dataset("", root=str(folder)),
        input_size=(3, 224, 224),
        batch_size=BATCH_SIZE,
        is_training=True,
        use_prefetcher=False,
        auto_augment=AUGMENTATION.auto_augment,
        re_prob=AUGMENTATION.reprob,
        re_mode=AUGMENTATION.remode,
        interpolation=AUGMENTATION.train_interpolation,
        color_jitter=AUGMENTATION.color_jitter,
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    repair_posterize(loader.dataset.transform)  # with Pillow 13 it would stop with an error
    return loader


def compare(folder: Path, workers: int, rounds: int) -> dict:
    """Images per second of each loader in every round, their medians, and the median ratio."""
    loaders = {"vitgraft": our_loader(folder, workers), "timm": timms_loader(folder, workers)}
    rates: dict[str, list[float]] = {name: [] for name in loaders}
    cpu_rates: dict[str, list[float]] = {name: [] for name in loaders}
    for number in range(-1, rounds):  # the first is the warm-up
        for name, loader in loaders.items():
            start, cpu, images = time.perf_counter(), time.process_time(), 0
            for batch in loader:
                images += len(batch[0])
            if number >= 0:
                rates[name].append(images / (time.perf_counter() - start))
                cpu_rates[name].append(images / (time.process_time() - cpu))
    loaders["vitgraft"].shut_down()
    wall, cpu = _summary(rates), _summary(cpu_rates)
    return {"workers": workers, "wall": wall} | ({"cpu": cpu} if workers == 0 else {})


def _summary(rates: dict[str, list[float]]) -> dict:
    ratios = [ours / timms for ours, timms in zip(rates["vitgraft"], rates["timm"], strict=True)]
    return {
        "images_per_second": rates,
        "median": {name: statistics.median(values) for name, values in rates.items()},
        "ratio": statistics.median(ratios),
        "ratio_quartiles": statistics.quantiles(ratios, n=4)[::2],
    }


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loader", description=__doc__.split("\n")[0])
    parser.add_argument("photos", type=Path, help="folder with photos of any size")
    parser.add_argument("--images", type=int, default=256, help="images in an epoch (default: 256)")
    parser.add_argument("--rounds", type=int, default=9, help="default: 9")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="write every number there too")
    args = parser.parse_args(argv)
    if args.images < BATCH_SIZE or args.rounds < 2:
        parser.error(f"--images: at least {BATCH_SIZE}; --rounds: at least 2")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        size = make_folder(args.photos, Path(folder), args.images)
        results = [compare(Path(folder), workers, args.rounds) for workers in (1, 0)]
    for result in results:
        for clock in ("wall", "cpu"):
            if clock not in result:
                continue
            ours, timms = (result[clock]["median"][name] for name in ("vitgraft", "timm"))
            low, high = result[clock]["ratio_quartiles"]
            print(
                f"{result['workers']} workers, {clock} time: vitgraft {ours:.1f} images/s, timm {timms:.1f}, "
                f"ratio {result[clock]['ratio']:.3f} (quartiles {low:.3f} to {high:.3f})"
            )
    if args.output:
        setting = {"images": args.images, "mean_jpeg_bytes": size}
        write_json(args.output, record("bench_loader", "cpu", **setting, results=results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
