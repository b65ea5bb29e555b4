# %% [markdown]
# # Semantic segmentation: UperNet on a grafted Swin
#
# From images and masks to mean IoU and pictures, then prediction by sliding windows on an image that is larger
# than the training crops.
#
# Needs `pip install '.[train]'`. About five minutes on a CPU with the settings below.

# %%
import csv
import json
import os
import shutil
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.patches import Patch
from PIL import Image

import vitgraft
from vitgraft.cli import main
from vitgraft.data.digits import make_scene

QUICK = "VITGRAFT_NOTEBOOK_QUICK" in os.environ  # as the tests run it: does it work, not: does it learn
EPOCHS = 1 if QUICK else 12
IMAGES = 16 if QUICK else 1200
SIZE = 128  # of an image, pixels
OUT = Path("runs/notebook_segmentation")  # made anew
shutil.rmtree(OUT, ignore_errors=True)
OUT.mkdir(parents=True)

# %% [markdown]
# ## The data
#
# ```
# DATA/images/training/0000.png         DATA/images/validation/0000.png
# DATA/annotations/training/0000.png    DATA/annotations/validation/0000.png      DATA/classes.txt
# ```
# Set `DATA` to a folder of yours. A mask is a grey PNG of one number for each pixel, the class; palette images,
# masks in colors and masks of 0 and 255 are read as well (`docs/formats.md`). Here class 0 is the canvas,
# classes 1 to 10 are the ink of handwritten digits.

# %%
DATA = OUT / "data"
CLASSES = ["canvas", *map(str, range(10))]
COLORS = np.array([(40, 40, 40), *(tuple(255 * c for c in plt.get_cmap("tab10")(i)[:3]) for i in range(10))], np.uint8)

for split, number in (("training", IMAGES), ("validation", 8 if QUICK else 100)):
    (DATA / "images" / split).mkdir(parents=True)
    (DATA / "annotations" / split).mkdir(parents=True)
    for index in range(number):
        scene = make_scene(index, split="train" if split == "training" else "test", size=SIZE)
        Image.fromarray(scene.image).save(DATA / "images" / split / f"{index:04}.png")
        Image.fromarray(scene.semantic_mask).save(DATA / "annotations" / split / f"{index:04}.png")
(DATA / "classes.txt").write_text("\n".join(CLASSES) + "\n")


def show(axis, classes, title):
    """A class map (H, W) in colors; 255, which is no class, is white."""
    colors = ListedColormap(COLORS / 255).with_extremes(over="white")
    axis.imshow(classes, cmap=colors, vmin=-0.5, vmax=len(CLASSES) - 0.5, interpolation="nearest")
    axis.set_title(title)


figure, axes = plt.subplots(1, 4, figsize=(12, 3.4), layout="constrained")
for number in (0, 1):
    axes[2 * number].imshow(plt.imread(DATA / f"images/training/000{number}.png"))
    show(axes[2 * number + 1], np.asarray(Image.open(DATA / f"annotations/training/000{number}.png")), "mask")
figure.legend(
    handles=[Patch(color=c / 255, label=n) for c, n in zip(COLORS, CLASSES, strict=True)],
    ncols=11,
    loc="outside lower center",
)
for axis in axes:
    axis.axis("off")
figure.savefig(OUT / "data.png")

# %% [markdown]
# What a mask's numbers mean is set, never guessed: `reduce_zero_label: false` for classes 0 to C - 1, `true`
# where 0 is ignored and 1 to C are the classes (ADE20K). `check-data` finds all errors of the files at once.
# `command("check-data", ...)` is `vitgraft check-data ...` in a shell, run in this process.


# %%
def command(*words):
    print("$ vitgraft", *words)
    assert main([str(word) for word in words]) == 0


command("check-data", DATA, "--reduce-zero-label", "false")

# %% [markdown]
# ## The recipe
#
# UperNet on the Swin authors' class, small and from scratch. Windows of 8 tokens are 32 pixels of the finest
# map; the grafts' levels let the same blocks see the whole image. `vitgraft init DATA` would write a recipe as
# well; `recipes/ade20k` has those of the paper.

# %%
recipe = OUT / "recipe.yaml"
recipe.write_text(f"""\
seed_everything: 0
model:
  class_path: Segmentation
  init_args:
    model: graft_swin_tiny_patch4_window7_224  # the class; the sizes below replace its own
    model_kwargs:
      img_size: {SIZE}  # maps of 32, 16, 8 and 4 tokens a side
      embed_dim: 32
      depths: [2, 2, 2, 1]
      num_heads: [1, 2, 4, 8]
      window_size: 8
      drop_path_rate: 0.0
    graft: {{window_size: 8, levels: auto}}
    head_channels: 32
    aux_channels: 32
    opt: adamw
    lr: 1.5e-3
    weight_decay: 0.01
    sched: cosine
    warmup_steps: {IMAGES // 8 // 3}
    warmup_lr: 1e-6
data:
  class_path: SegmentationData
  init_args:
    root: {DATA}
    reduce_zero_label: false
    batch_size: 8
    eval_batch_size: 8
    workers: 0
    crop_size: {SIZE}
    scale: [1.0, 1.0]  # of random resizing: none, the scenes to predict have this size
    cat_max_ratio: 1.0  # most of every image is canvas
    hflip: 0.0  # a mirrored digit is no digit
    photometric: false
trainer:
  max_epochs: {EPOCHS}
  gradient_clip_val: 1.0
  log_every_n_steps: 1
  enable_progress_bar: false
""")
run = OUT / "run"
command("fit", "--config", recipe, "--out", run)

with open(run / "metrics.csv") as file:
    rows = list(csv.DictReader(file))
figure, axes = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
for axis, name, marker in zip(axes, ("train/loss", "val/mIoU"), ("", "o"), strict=True):
    points = [(int(row["step"]), float(row[name])) for row in rows if row.get(name)]
    axis.plot(*zip(*points, strict=True), marker=marker)
    axis.set(xlabel="step", ylabel=name, ylim=(0, None))
figure.savefig(OUT / "curves.png")

# %% [markdown]
# ## Mean IoU
#
# Intersections and unions are summed over the whole validation set, then averaged over the classes.
# `run/validate` has them per class with accuracy and precision, and the confusion matrix. The canvas is always
# easy: look at the digits.

# %%
command("validate", "--ckpt_path", run, "--trainer.enable_progress_bar", "false")
metrics = json.loads((run / "validate/metrics.json").read_text())["metrics"]
print(f"mean IoU {metrics['miou']:.1%}, pixel accuracy {metrics['pixel_accuracy']:.1%}")

# %% [markdown]
# ## Predict
#
# Of a segmenter, `predict` returns class maps, uint8 (H, W). `vitgraft predict --ckpt RUN PHOTOS --visualize
# DIR --output areas.csv` writes overlays with a legend, index PNGs, and the area of each class.

# %%
segmenter = vitgraft.load(run)
paths = sorted((DATA / "images/validation").iterdir())[:3]
figure, axes = plt.subplots(3, 3, figsize=(8, 8), layout="constrained")
for row, path, found in zip(axes, paths, segmenter.predict(paths), strict=True):
    row[0].imshow(plt.imread(path))
    show(row[1], np.asarray(Image.open(DATA / "annotations/validation" / path.name)), "mask")
    show(row[2], found, "predicted")
for axis in axes.flat:
    axis.axis("off")
figure.savefig(OUT / "predictions.png")

# %% [markdown]
# ## Sliding windows
#
# An image of any size can be predicted whole. Windows of the training crops' size, their logits averaged where
# they overlap, keep the model at the sizes that it was trained for, and need the memory of one window only.
# Here 2 x 3 scenes in one image.

# %%
scenes = [[make_scene(1000 + 3 * y + x, split="test", size=SIZE) for x in range(3)] for y in range(2)]
large = np.vstack([np.hstack([scene.image for scene in row]) for row in scenes])
mask = np.vstack([np.hstack([scene.semantic_mask for scene in row]) for row in scenes])


def mean_iou(found):
    ious = [((found == c) & (mask == c)).sum() / ((found == c) | (mask == c)).sum() for c in np.unique(mask)]
    return float(np.mean(ious))


whole = segmenter.predict(large)
sliding = vitgraft.load(run, window=SIZE, stride=SIZE // 2).predict(large)
figure, axes = plt.subplots(2, 2, figsize=(10, 7), layout="constrained")
axes[0, 0].imshow(large)
show(axes[0, 1], mask, "mask")
show(axes[1, 0], whole, f"whole image: mean IoU {mean_iou(whole):.1%}")
show(axes[1, 1], sliding, f"sliding windows: mean IoU {mean_iou(sliding):.1%}")
for axis in axes.flat:
    axis.axis("off")
figure.savefig(OUT / "sliding.png")
print(f"mean IoU {mean_iou(whole):.1%} of the whole image, {mean_iou(sliding):.1%} by windows")

# %% [markdown]
# The evaluation does it with `--model.window 128 --model.stride 64`, and several scales with `--model.scales`;
# the command line for a folder of photos, where an image may be larger than the memory takes:

# %%
Image.fromarray(large).save(OUT / "large.png")
options = ["--window", SIZE, "--stride", SIZE // 2, "--visualize", OUT / "drawn", "--output", OUT / "areas.csv"]
command("predict", "--ckpt", run, OUT / "large.png", *options)

figure, axis = plt.subplots(figsize=(9, 5), layout="constrained")
axis.imshow(plt.imread(OUT / "drawn/overlays/large.jpg"))
axis.axis("off")
