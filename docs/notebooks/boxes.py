# %% [markdown]
# # Boxes: Faster R-CNN on a grafted backbone
#
# From a folder of images and a COCO json with boxes alone (no masks) to a trained detector with its AP and
# pictures, in three commands: `vitgraft init`, `fit`, `validate`. At the end a plain ViT as backbone, in
# Python.
#
# Needs `pip install '.[detection]'`. About eight minutes on a CPU with the data that the notebook makes.

# %%
import csv
import json
import os
import shutil
import tarfile
from pathlib import Path

import matplotlib.pyplot as plt
import timm
import torch
from matplotlib.patches import Rectangle
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

import vitgraft
from vitgraft.cli import main
from vitgraft.data.digits import make_scene
from vitgraft.models.mask_rcnn import MaskRCNN

QUICK = "VITGRAFT_NOTEBOOK_QUICK" in os.environ  # as the tests run it: does it work, not: does it learn
SHARED = os.environ.get(
    "VITGRAFT_SHARED"
)  # a folder with DeepPCB as data/pcb/pcb.tar: 640 x 640, half an hour on a CPU
OUT = Path("runs/notebook_boxes")  # made anew
torch.manual_seed(0)
shutil.rmtree(OUT, ignore_errors=True)
OUT.mkdir(parents=True)

# %% [markdown]
# ## The data
#
# ```
# DATA/annotations/instances_train.json        DATA/train/0000.png
# DATA/annotations/instances_val.json          DATA/val/0000.png
# ```
# Set `DATA` to a folder of yours; Pascal VOC and YOLO are read as they are, too (`docs/formats.md`). Here it is
# made of scenes of handwritten digits, one large and eight small ones in each, or unpacked where DeepPCB is at
# hand.

# %%
DATA = OUT / "data"


def write_scenes(split, number, size=128):
    """Images, and a json in COCO's form with boxes alone."""
    content = {"images": [], "annotations": [], "categories": [{"id": d, "name": str(d)} for d in range(10)]}
    (DATA / split).mkdir(parents=True)
    for index in range(number):
        scene = make_scene(index, split="train" if split == "train" else "test", size=size)
        name = f"{index:04}.png"
        Image.fromarray(scene.image).save(DATA / split / name)
        content["images"].append({"id": index, "file_name": name, "width": size, "height": size})
        for (x0, y0, x1, y1), category in zip(scene.boxes.tolist(), scene.category_ids.tolist(), strict=True):
            box = {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0), "iscrowd": 0}
            number_of_box = len(content["annotations"]) + 1
            content["annotations"].append({"id": number_of_box, "image_id": index, "category_id": category} | box)
    (DATA / "annotations").mkdir(exist_ok=True)
    (DATA / f"annotations/instances_{split}.json").write_text(json.dumps(content))


if SHARED:
    with tarfile.open(Path(SHARED) / "data/pcb/pcb.tar") as tar:
        tar.extractall(DATA, filter="data")
else:
    write_scenes("train", 16 if QUICK else 1200)
    write_scenes("val", 8 if QUICK else 100)

# %%
truth = json.loads((DATA / "annotations/instances_val.json").read_text())
names = {category["id"]: category["name"] for category in truth["categories"]}


def show(axis, path, boxes, texts, color):
    """An image with boxes (N, 4) as x0, y0, x1, y1 and their names."""
    axis.imshow(Image.open(path).convert("RGB"))
    for (x0, y0, x1, y1), text in zip(boxes.tolist(), texts, strict=True):
        axis.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=color))
        axis.text(x0, y0, text, color=color, size=8, va="bottom")
    axis.axis("off")


def true_boxes(image):
    found = [one for one in truth["annotations"] if one["image_id"] == image["id"]]
    corners = [(x, y, x + w, y + h) for x, y, w, h in (one["bbox"] for one in found)]
    return torch.tensor(corners).reshape(-1, 4), [names[one["category_id"]] for one in found]


shown = truth["images"][:3]
figure, axes = plt.subplots(1, 3, figsize=(12, 4), layout="constrained")
for axis, image in zip(axes, shown, strict=True):
    show(axis, DATA / "val" / image["file_name"], *true_boxes(image), "lime")
figure.savefig(OUT / "data.png")

# %% [markdown]
# ## A recipe for it
#
# `command("init", ...)` is `vitgraft init ...` in a shell, run in this process. `init` reads the data by the
# rules of training, and chooses sizes, windows and levels of the grafts, anchors, batch and epochs; each value
# has its reason beside it. There are boxes alone, so it is a Faster R-CNN; with masks in the json it would be a
# Mask R-CNN.


# %%
def command(*words):
    print("$ vitgraft", *words)
    assert main([str(word) for word in words]) == 0


recipe = OUT / "recipe.yaml"
command("init", DATA, "--output", recipe)
print(recipe.read_text())

# %% [markdown]
# ## Train
#
# What `init` wrote can be changed in the file, or here, on the command line. The same model without grafts, to
# compare with: `--model.graft '{blocks: []}'`.

# %%
run = OUT / "run"
options = ["--trainer.enable_progress_bar", "false", "--trainer.log_every_n_steps", 1]
if not SHARED:
    options += ["--data.hflip", 0]  # a mirrored digit is no digit
if QUICK:
    options += ["--trainer.max_epochs", 1, "--trainer.check_val_every_n_epoch", 1, "--data.max_images", 4]
command("fit", "--config", recipe, "--out", run, *options)

with open(run / "metrics.csv") as file:
    rows = list(csv.DictReader(file))
figure, axes = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
for axis, name, marker in zip(axes, ("train/loss", "val/box_ap"), ("", "o"), strict=True):
    points = [(int(row["step"]), float(row[name])) for row in rows if row.get(name)]
    axis.plot(*zip(*points, strict=True), marker=marker)
    axis.set(xlabel="step", ylabel=name, ylim=(0, None))
figure.savefig(OUT / "curves.png")

# %% [markdown]
# ## AP
#
# COCO's numbers, equal to pycocotools'. AP is the mean over IoU 0.5 to 0.95, AP50 that of 0.5. `run/validate`
# has them with AP per class, precision-recall curves, and all detections in COCO's form for other tools.

# %%
command("validate", "--ckpt_path", run, "--trainer.enable_progress_bar", "false")
folder = next(run.glob("validate*"))  # of a part of the images: validate_part
metrics = json.loads((folder / "metrics.json").read_text())
print({name: value for name, value in metrics["metrics"].items() if name.startswith("box_ap")})

figure, axis = plt.subplots(figsize=(8, 5), layout="constrained")
axis.imshow(plt.imread(folder / "precision_recall.png"))
axis.axis("off")

# %% [markdown]
# ## Predict
#
# `vitgraft.load` opens a run without Lightning. Of a detector, `predict` returns torchvision's dictionaries:
# boxes in pixels of the image, scores, labels from 1 up. `vitgraft predict --ckpt RUN PHOTOS --visualize DIR`
# draws a whole folder.

# %%
detector = vitgraft.load(run)
paths = [DATA / "val" / image["file_name"] for image in shown]
figure, axes = plt.subplots(1, 3, figsize=(12, 4), layout="constrained")
for axis, path, found in zip(axes, paths, detector.predict(paths), strict=True):
    sure = found["scores"] > 0.5
    texts = [
        f"{detector.class_names[label - 1]} {score:.0%}"
        for label, score in zip(found["labels"][sure].tolist(), found["scores"][sure].tolist(), strict=True)
    ]
    show(axis, path, found["boxes"][sure], texts, "yellow")
figure.savefig(OUT / "predictions.png")

# %% [markdown]
# ## Another backbone, a loop of your own
#
# `vitgraft.pyramid` makes four maps of strides 4 to 32 of any plain ViT, grafted or not, with weights or
# without: a backbone for the detector of the recipe, and for those of torchvision (`docs/dense_backbones.md`).
# In training the detector takes images and targets as torchvision's do, labels from 1 up, and returns the
# losses.

# %%
vit = timm.create_model("vit_tiny_patch16_224", depth=4)  # pretrained=True and all 12 blocks, with a network
vit = vitgraft.graft(vit, init="identity", blocks=(1, 3))
model = MaskRCNN(vitgraft.pyramid(vit), num_classes=len(names), masks=False)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

order = {category: label for label, category in enumerate(sorted(names), start=1)}
by_name = {name: order[category] for category, name in names.items()}
batch, targets = [], []
for image in shown[:2]:
    pixels = pil_to_tensor(Image.open(DATA / "val" / image["file_name"]).convert("RGB")) / 255
    boxes, texts = true_boxes(image)
    batch.append(pixels)
    targets.append({"boxes": boxes, "labels": torch.tensor([by_name[text] for text in texts])})

model.train()
for step in range(1 if QUICK else 5):
    losses = model(batch, targets)
    optimizer.zero_grad()
    sum(losses.values()).backward()
    optimizer.step()
    print(step, {name: round(loss.item(), 3) for name, loss in losses.items()})
