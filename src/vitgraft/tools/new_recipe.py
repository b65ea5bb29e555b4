"""The recipe that `vitgraft init` writes: values for a dataset and a machine, each with the reason beside it.

The small models are those of recipes/; budgets and memory are rules of thumb, measured where the comment says so.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml

from vitgraft.layers.levels import plan_levels
from vitgraft.machine import free_memory
from vitgraft.terminal import printable
from vitgraft.tools.inspect_data import Dataset

__all__ = ["Machine", "recipe_text", "this_machine"]

SWIN = "graft_swin_tiny_patch4_window7_224"
STRIDES = (4, 8, 16, 32)  # of Swin's four maps
SIZES = (64, 128, 160, 192, 224)  # sides of a classifier's images whose maps windows of 4 to 7 tokens fit
TINY = 48  # pixels; smaller images keep more tokens in a ViT of patch 4
MEMORY_USED = 0.5  # fraction of the free memory that a batch may take
WIDTH = 118  # of a line with its comment
PRETRAINED = "ImageNet's weights of the backbone, downloaded once; false without a network"


class Budget(NamedTuple):
    """What a run may cost.

    Attributes:
        pixels: To train on in all on a CPU; 15 to 60 minutes on two cores. A GPU takes `GPU_FACTOR` times as many.
        fixed: Pixels that an image costs whatever its size.
        least: Epochs.
        most: Epochs.
        large: Images from which on a GPU takes Swin-T in place of the small model.
    """

    pixels: float
    fixed: int
    least: tuple[int, int]
    most: tuple[int, int]
    large: int


# least and most: on a CPU, on a GPU
BUDGETS = {
    "classification": Budget(1.2e9, 4_000, (5, 30), (100, 300), 20_000),
    "detection": Budget(1e9, 100_000, (2, 12), (50, 100), 5_000),
    "instances": Budget(1e9, 100_000, (2, 12), (50, 100), 5_000),
    "segmentation": Budget(5e8, 10_000, (5, 30), (60, 200), 5_000),
}
GPU_FACTOR = 150
# bytes of a training step for a pixel of the input in float32, as `vitgraft.machine.peak_bytes` measures them
BYTES = {"vit": 2100, "swin": 720, "upernet": 1150, "rcnn": 1000}
BYTES_SWIN_T = {"swin": 2800, "upernet": 6500, "rcnn": 3900}


@dataclass(frozen=True)
class Machine:
    """What a run is to be trained on.

    Attributes:
        gpu: Whether it is a GPU.
        memory: Free bytes of it.
        cores: Of the CPU.
    """

    gpu: bool
    memory: float
    cores: int

    def __str__(self) -> str:
        memory = f"{self.memory / 1e9:.0f} GB free"
        return f"a GPU ({memory})" if self.gpu else f"a CPU ({self.cores} cores, {memory})"


def this_machine(device: str | None = None, memory: float | None = None) -> Machine:
    """This machine.

    Args:
        device: "cpu" or "cuda"; None takes the GPU where there is one.
        memory: Bytes instead of those that are free.
    """
    gpu = torch.cuda.is_available() if device is None else device == "cuda"
    if memory is None:
        memory = free_memory(torch.device("cuda" if gpu else "cpu"))
    return Machine(gpu, memory, os.cpu_count() or 1)


class Entry(NamedTuple):
    """A line of a recipe; a list of entries as value is a section."""

    key: str
    value: Any
    why: str = ""


def recipe_text(data: Dataset, machine: Machine, path: str | Path, command: str) -> str:
    """The recipe.

    Args:
        data: The dataset.
        machine: What is trained on.
        path: Where the recipe will be, for the commands in its header.
        command: The command that made it.
    """
    make = {"classification": _classification, "segmentation": _segmentation}.get(data.task, _detection)
    title, task, model, options, trainer = make(data, machine)
    run = f"runs/{Path(path).stem}"
    header = [
        f"{title}, from scratch." if "pretrained" not in {one.key for one in model} else f"{title}.",
        f"For {data.layout}: {data}. Written by",
        f"  {command}",
        f"for {machine}. Every value is a start, with the reason beside it.",
        f"Train:     vitgraft fit --config {path}",
        f"Evaluate:  vitgraft validate --ckpt_path {run}",
        f"Two steps: vitgraft fit --config {path} --smoke",
        f"The same model without grafts: vitgraft fit --config {path} --model.graft '{{blocks: []}}' --out {run}_plain",
    ]
    if model[0].value != SWIN:  # a plain ViT's windows are part of its grafts
        header.pop()
    module = {"classification": "ImageData", "segmentation": "SegmentationData"}.get(data.task, "DetectionData")
    own = [Entry(name, value, why) for name, (value, why) in data.options.items()]
    entries = [
        Entry("seed_everything", 0, "of initial weights, order, augmentation"),
        Entry("model", [Entry("class_path", task), Entry("init_args", model)]),
        Entry("data", [Entry("class_path", module), Entry("init_args", own + options)]),
        Entry("trainer", trainer),
    ]
    return "".join(f"# {_one_line(line)}\n" for line in header) + "\n".join(_lines(entries)) + "\n"


def _lines(entries: Sequence[Entry], indent: str = "") -> list[str]:
    found = []
    for key, value, why in entries:
        if isinstance(value, list) and value and isinstance(value[0], Entry):
            found += [f"{indent}{key}:", *_lines(value, indent + "  ")]
            continue
        line = f"{indent}{key}: {_flow(value)}"
        comment = f"  # {_one_line(why)}" if why else ""
        if len(line + comment) > WIDTH and why:
            found.append(f"{indent}# {_one_line(why)}")
            comment = ""
        found.append(line + comment)
    return found


def _flow(value: Any) -> str:
    if isinstance(value, float) and 0 < value < 1e-3:
        return f"{value:g}".replace("e-0", "e-")
    text = yaml.safe_dump(value, default_flow_style=True, width=math.inf, sort_keys=False, allow_unicode=True)
    return text.strip().removesuffix("...").strip()


def _one_line(text: str) -> str:
    return printable(" ".join(text.split()) if "\n" in text else text)


# choices


def _window(side: tuple[int, int]) -> int:
    """The window, 4 to 12 tokens, whose multiples pad Swin's four maps least; of several the nearest to 8."""
    maps = [(-(-side[0] // stride), -(-side[1] // stride)) for stride in STRIDES]

    def padded(window: int) -> float:
        return sum(math.prod(-(-one // window) * window / one for one in size) for size in maps)

    return min(range(4, 13), key=lambda window: (round(padded(window), 3), abs(window - 8), -window))


def _levels(side: tuple[int, int], window: int) -> list[int]:
    return [len(plan_levels((-(-side[0] // stride), -(-side[1] // stride)), window)) for stride in STRIDES]


def _swin(data: Dataset, side: tuple[int, int], small: bool, why: str) -> tuple[str, list[Entry]]:
    """Title and options of a grafted Swin for images of a size."""
    window = _window(side)
    levels = _levels(side, window)
    maps = ", ".join(f"{-(-side[0] // s)} x {-(-side[1] // s)}" for s in STRIDES)
    size = side[0] if side[0] == side[1] else list(side)
    kwargs = [Entry("img_size", size, why)]
    if small:
        kwargs += [
            Entry("embed_dim", 32, f"a third of Swin-T's: {data.train:,} images" if data.train < 20_000 else "of 96"),
            Entry("depths", [2, 2, 2, 2]),
            Entry("num_heads", [1, 2, 4, 8]),
            Entry("drop_path_rate", 0.0, "small enough without"),
        ]
    else:
        kwargs.append(Entry("drop_path_rate", 0.2))
    fits = all(one % (stride * window) == 0 for one in side for stride in STRIDES)
    why = f"divides the maps of {maps} tokens" if fits else f"pads the maps of {maps} tokens least"
    kwargs.append(Entry("window_size", window, why))
    graft = [
        Entry("window_size", window),
        Entry("levels", levels, "each map is halved until one window covers it: every block sees the whole image"),
    ]
    name = "a small Swin" if small else "Swin-T"
    shown = ", ".join(map(str, levels))
    return f"{name} with grafts ({shown} levels)", [
        Entry("model", SWIN, "the class; the sizes below replace its own" if small else ""),
        Entry("model_kwargs", kwargs),
        Entry("graft", graft),
    ]


def _batch(data: Dataset, machine: Machine, wanted: int, pixels: int, per_pixel: int) -> tuple[int, str]:
    """Images a step, a power of two, and why: as many as wanted, the memory holds and the dataset has."""
    image = pixels * per_pixel * (0.6 if machine.gpu else 1)  # bfloat16
    fitting = max(1, int(MEMORY_USED * machine.memory / image))
    batch = max(1, 2 ** int(math.log2(min(wanted, fitting, data.train))))
    size = f"{image / 1e9:.1f} GB" if image > 1e8 else f"{image / 1e6:.0f} MB"
    steps = data.train // batch
    limit = "; more do not fit" if fitting < min(wanted, data.train) else ""
    return batch, f"{steps:,} steps an epoch; an image takes about {size}{limit}"


def _epochs(data: Dataset, machine: Machine, pixels: int, multiple: bool = True) -> tuple[int, int]:
    """Number of epochs, and after how many to validate."""
    budget = BUDGETS[data.task]
    total = budget.pixels * (GPU_FACTOR if machine.gpu else 1)
    epochs = round(total / ((pixels + budget.fixed) * data.train))
    epochs = min(max(epochs, budget.least[machine.gpu]), budget.most[machine.gpu])
    every = max(1, epochs // 5) if multiple else 1
    return -(-epochs // every) * every, every


def _trainer(data: Dataset, machine: Machine, epochs: tuple[int, int], batch: int, clip: float) -> list[Entry]:
    number, every = epochs
    steps = max(1, data.train // batch)
    entries = [
        Entry("accelerator", "gpu" if machine.gpu else "cpu", "" if machine.gpu else "no GPU; gpu, where you have one"),
        Entry("devices", 1),
        Entry("max_epochs", number, f"{number * steps:,} steps; longer is better, where there is time"),
    ]
    if every > 1:
        entries.append(Entry("check_val_every_n_epoch", every, "the best of them is best.ckpt"))
    if machine.gpu:
        entries.append(Entry("precision", "bf16-mixed", "32-true on a GPU without bfloat16"))
    entries += [Entry("gradient_clip_val", clip), Entry("log_every_n_steps", min(20, steps))]
    return entries


def _optimizer(lr: float, decay: float, warmup: int, why: str = "", **more: Any) -> list[Entry]:
    return [
        Entry("opt", "adamw"),
        Entry("lr", lr, why),
        *(Entry(name, value) for name, value in more.items()),
        Entry("weight_decay", decay),
        Entry("sched", "cosine"),
        Entry("warmup_steps", warmup),
        Entry("warmup_lr", 1e-6),
        Entry("min_lr", 1e-6),
    ]


def _workers(machine: Machine) -> Entry:
    if machine.gpu:
        return Entry("workers", min(8, machine.cores), "processes that read images")
    few = machine.cores <= 2
    return Entry("workers", 0 if few else 2, "the cores are for the model" if few else "processes that read images")


def _sides(sizes: np.ndarray) -> tuple[int, int]:
    """Median height and width."""
    height, width = np.median(sizes, axis=0).round().astype(int).tolist()
    return height, width


def _shown_sizes(data: Dataset) -> str:
    """The sizes of the images in words, width x height."""
    height, width = _sides(data.sizes)
    least, most = int(data.sizes.min()), int(data.sizes.max())
    same = (data.sizes == data.sizes[0]).all()
    return f"images of {'' if same else 'about '}{width} x {height}" + ("" if same else f", sides {least} to {most}")


def _classes(data: Dataset, counted: str) -> Entry:
    names = ", ".join(data.class_names[:3]) + (", ..." if len(data.class_names) > 3 else "")
    text = names if len(names) < 50 else data.class_names[0][:50]
    if data.counts:
        least, most = min(data.counts), max(data.counts)
        text += f"; {least:,} to {most:,} {counted} each" if least < most else f"; {least:,} {counted} each"
    return Entry("num_classes", len(data.class_names), text)


# tasks: title, class, options of the model, of the data, of the trainer


def _classification(data: Dataset, machine: Machine):
    short = min(_sides(data.sizes))
    shown = _shown_sizes(data)
    small = short < TINY or not machine.gpu or data.train < BUDGETS["classification"].large
    if short < TINY:
        side, kind = 32, "vit"
        title = "A small ViT of 8 x 8 tokens with grafts (1 level)"
        model = [
            Entry("model", "vit_tiny_patch16_224", "the class; the sizes below replace its own"),
            Entry(
                "model_kwargs",
                [
                    Entry("img_size", side, shown),
                    Entry("patch_size", 4, "8 x 8 tokens"),
                    Entry("embed_dim", 64),
                    Entry("depth", 6),
                    Entry("num_heads", 2),
                    Entry("class_token", False),
                    Entry("global_pool", "avg"),
                ],
            ),
            Entry(
                "graft",
                [
                    Entry("backbone_attention", "window"),
                    Entry("window_size", 4, "four windows; the level below is one window of 4 x 4 tokens"),
                    Entry("levels", 1),
                ],
            ),
        ]
    else:
        near = sorted(SIZES if machine.gpu else SIZES[:2], key=lambda size: (abs(size - short), -size))
        side = near[0] if small else 224
        smaller = "; smaller, for a CPU" if side < short and not machine.gpu else ""
        backbone, model = _swin(data, (side, side), small, shown + smaller)
        kind, title = "swin", f"{backbone[0].upper()}{backbone[1:]}"
    most = 256 if machine.gpu else 128 if kind == "vit" else 64
    wanted = min(max(8, data.train // 80), most) if small else 256
    batch, why = _batch(data, machine, wanted, side**2, (BYTES if small else BYTES_SWIN_T)[kind])
    epochs = _epochs(data, machine, side**2, multiple=False)
    steps = max(1, data.train // batch) * epochs[0]
    warmup = min(max(steps // 20, 1), 1000)
    model += [
        _classes(data, "images"),
        Entry("smoothing", 0.1),
        *([] if small else [Entry("mixup", 0.8), Entry("cutmix", 1.0)]),
        *_optimizer(1e-3 if small else 5e-4, 0.05, warmup, lr_batch=None if small else 512),
    ]
    model = [one for one in model if one.value is not None]
    options = [
        Entry("batch_size", batch, why),
        _workers(machine),
        *([Entry("cache", True, "decoded images stay in memory")] if kind == "vit" and data.train <= 100_000 else []),
    ]
    if kind == "vit":
        options.append(Entry("train_crop_mode", "pad", "shifts by up to 4 pixels; images this small are not cropped"))
    else:
        options.append(Entry("scale", [0.35, 1.0] if small else [0.08, 1.0], "area of the random crop"))
    options.append(Entry("hflip", 0.5, "0 where a mirrored image means something else, such as digits"))
    if not small:
        options += [Entry("auto_augment", "rand-m9-mstd0.5-inc1"), Entry("reprob", 0.25)]
    return title, "Classification", model, options, _trainer(data, machine, epochs, batch, 1.0 if small else 5.0)


def _segmentation(data: Dataset, machine: Machine):
    height, width = _sides(data.sizes)
    small = not machine.gpu or data.train < BUDGETS["segmentation"].large
    most = 512 if machine.gpu else 256
    factor = max(1, math.ceil(min(height, width) / most))  # whole: labels and images shrink evenly
    short = round(min(height, width) / factor)
    crop = max(64, round(short / 32) * 32)
    part = {1: "", 2: ", at half their size"}.get(factor, f", at 1/{factor} of their size")
    backbone, model = _swin(data, (crop, crop), small, "the training crop")
    heads = 32 if small else 512
    per_pixel = (BYTES if small else BYTES_SWIN_T)["upernet"]
    batch, why = _batch(data, machine, min(16 if machine.gpu else 8, max(2, data.train // 8)), crop**2, per_pixel)
    batch = max(batch, min(2, data.train))  # batch norms
    epochs = _epochs(data, machine, crop**2)
    steps = max(1, data.train // batch) * epochs[0]
    if not small:
        model.append(Entry("pretrained", True, PRETRAINED))
    model += [
        Entry("head_channels", heads),
        Entry("aux_channels", 32 if small else 256),
        *_optimizer(1.5e-3 if small else 1e-4, 0.01, min(max(steps // 20, 1), 1000)),
    ]
    options = [
        Entry("batch_size", batch, why),
        _workers(machine),
        Entry("short_side", short, f"{_shown_sizes(data)}{part}; evaluated at the masks' own size"),
        Entry("crop_size", crop),
        Entry("scale", [0.75, 2.0] if small else [0.5, 2.0], "random factor on that size"),
        Entry("hflip", 0.5, "0 where left and right matter"),
    ]
    title = f"UperNet on {backbone}"
    return title, "Segmentation", model, options, _trainer(data, machine, epochs, batch, 1.0)


def _detection(data: Dataset, machine: Machine):
    height, width = _sides(data.sizes)
    small = not machine.gpu or data.train < BUDGETS[data.task].large
    short, long = (800, 1333) if machine.gpu else (480, 640)
    native = bool((data.sizes.max(axis=1) <= long).all())
    factor = 1.0 if native else min(short / min(height, width), long / max(height, width))
    scaled = (max(32, round(height * factor / 32) * 32), max(32, round(width * factor / 32) * 32))
    backbone, model = _swin(data, scaled, small, _shown_sizes(data) + ("" if native else ", resized as below"))
    masks = data.task == "instances"
    pixels = round(height * factor) * round(width * factor)
    wanted = 16 if machine.gpu else 2 if pixels > 90_000 else 4
    per_pixel = (BYTES if small else BYTES_SWIN_T)["rcnn"]
    batch, why = _batch(data, machine, min(wanted, max(1, data.train // 8)), pixels, per_pixel)
    epochs = _epochs(data, machine, pixels)
    steps = max(1, data.train // batch) * epochs[0]
    sides = data.sides * factor
    fine = len(sides) > 0 and float(np.mean(sides < 32)) > 0.25
    detections = min(300, max(20, -(-2 * data.most_objects // 10) * 10))
    detector = [
        Entry("anchor_scale", 4 if fine else 8, f"anchors from {16 if fine else 32} pixels: {_shown_sides(sides)}"),
        Entry("detections", detections, f"of an image; the most in a training image are {data.most_objects}"),
    ]
    if small:
        detector += [
            Entry("fpn_channels", 64, "the detector is as small as its backbone"),
            Entry("box_channels", 128),
            *([Entry("mask_channels", 32), Entry("mask_convs", 2)] if masks else []),
            Entry("proposals_before", [400, 300]),
            Entry("proposals", [300, 200]),
            Entry("boxes_sampled", 128),
        ]
    else:
        model.append(Entry("pretrained", True, PRETRAINED))
    model += [
        _classes(data, "objects"),
        Entry("masks", masks, "" if masks else "boxes alone: a Faster R-CNN"),
        Entry("detector", detector),
        *_optimizer(1e-3 if small else 1e-4, 0.05, min(max(steps // 20, 1), 500)),
    ]
    options = [Entry("batch_size", batch, why), Entry("eval_batch_size", batch), _workers(machine)]
    if native:
        options.append(Entry("augmentation", "native", f"{_shown_sizes(data)}: small enough as they are"))
    else:
        options += [
            Entry("augmentation", "multiscale" if machine.gpu else "single"),
            Entry("short_side", short, _shown_sizes(data)),
            Entry("max_size", long),
        ]
    options.append(Entry("hflip", 0.5, "0 where left and right matter"))
    title = f"{'Mask' if masks else 'Faster'} R-CNN on {backbone}"
    return title, "Detection", model, options, _trainer(data, machine, epochs, batch, 10.0)


def _shown_sides(sides: np.ndarray) -> str:
    if not len(sides):
        return "no boxes were found to measure"
    return f"{100 * float(np.mean(sides < 32)):.0f} % of the boxes are smaller than 32 x 32"
