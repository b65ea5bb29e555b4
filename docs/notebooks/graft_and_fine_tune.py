# %% [markdown]
# # Graft a pretrained ViT and fine-tune it
#
# A plain ViT of timm gets grafts that change nothing at first (`init="identity"`), and is fine-tuned on class
# folders: first in a plain PyTorch loop, then by `vitgraft fit`.
#
# Needs `pip install '.[train]'`. A few minutes on a CPU with the settings below.

# %%
import copy
import csv
import os
import shutil
from pathlib import Path

import matplotlib.pyplot as plt
import timm
import torch
from sklearn.datasets import load_digits
from timm.data import create_transform, resolve_model_data_config
from torchvision.datasets import ImageFolder
from torchvision.transforms.functional import resize, to_pil_image

import vitgraft
from vitgraft.cli import main

QUICK = "VITGRAFT_NOTEBOOK_QUICK" in os.environ  # as the tests run it: does it work, not: does it learn
PRETRAINED = not QUICK  # timm's ImageNet weights; without a network set False: random ones
EPOCHS = 1 if QUICK else 4
IMAGES = 120 if QUICK else 1797
MODEL = "deit_tiny_patch16_224"
SIZE = 96  # pixels; 6 x 6 tokens
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
OUT = Path("runs/notebook_fine_tune")  # made anew

torch.manual_seed(0)
shutil.rmtree(OUT, ignore_errors=True)
OUT.mkdir(parents=True)

# %% [markdown]
# ## The data
#
# Class folders: `DATA/train/CLASS/*.png`, `DATA/val/CLASS/*.png`. Set `DATA` to a folder of yours; here they
# are made of scikit-learn's 1,797 scans of handwritten digits, every fifth of them for validation.

# %%
DATA = OUT / "digits"

digits = load_digits()
for index, (scan, label) in enumerate(zip(digits.images[:IMAGES], digits.target, strict=False)):
    folder = DATA / ("val" if index % 5 == 4 else "train") / str(label)
    folder.mkdir(parents=True, exist_ok=True)
    pixels = torch.tensor(scan, dtype=torch.float32)[None] / 16  # (1, 8, 8), 0 to 1
    to_pil_image(resize(pixels, [64, 64], antialias=True)).convert("RGB").save(folder / f"{index:04}.png")

examples = ImageFolder(DATA / "val")
figure, axes = plt.subplots(1, 8, figsize=(10, 1.6))
for axis, index in zip(axes, range(0, len(examples), len(examples) // 8), strict=False):
    image, label = examples[index]
    axis.imshow(image)
    axis.set(title=examples.classes[label], xticks=[], yticks=[])
figure.savefig(OUT / "data.png")

# %% [markdown]
# ## Graft
#
# `graft` adds one child to each block but the first. Its last projection starts at zero, so the grafted model
# computes exactly what the pretrained one did. Three grafts of twelve possible ones keep it small; `width=48`
# would make each of them slim (`slim_grafts_beside_lora.py`). The window must fit the grid: 6 x 6 tokens give
# one level of 3 x 3, in windows of 3.

# %%
classes = examples.classes
model = timm.create_model(MODEL, pretrained=PRETRAINED, img_size=SIZE, num_classes=len(classes)).eval()
images = torch.randn(2, 3, SIZE, SIZE)
before = model(images)
parameters = sum(p.numel() for p in model.parameters())

model = vitgraft.graft(model, init="identity", blocks=(3, 6, 9), window_size=3)
print("the same outputs, bit for bit:", torch.equal(model(images), before))
added = sum(p.numel() for g in vitgraft.grafts(model).values() for p in g.parameters())
print(f"{len(vitgraft.grafts(model))} grafts, {added / 1e6:.2f} M parameters beside {parameters / 1e6:.2f} M")
start = copy.deepcopy(model)

# %% [markdown]
# ## A loop of your own
#
# Nothing in it knows of grafts. Size, mean and std are those that the weights were trained with, as timm states
# them.

# %%
config = resolve_model_data_config(model) | {"input_size": (3, SIZE, SIZE)}
augment = create_transform(**config, is_training=True, scale=(0.8, 1.0), hflip=0.0, color_jitter=None)
prepare = create_transform(**config | {"crop_pct": 1.0}, is_training=False)
train = torch.utils.data.DataLoader(ImageFolder(DATA / "train", augment), 32, shuffle=True, drop_last=True)
val = torch.utils.data.DataLoader(ImageFolder(DATA / "val", prepare), 64)


@torch.inference_mode()
def accuracy(model):
    model.eval()
    right = [(model(x.to(DEVICE)).argmax(1).cpu() == y).float() for x, y in val]
    return torch.cat(right).mean().item()


def fine_tune(model, lr=5e-4):
    """Losses of all updates with AdamW: the rate rises for a tenth of them and falls to zero."""
    model.to(DEVICE)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=EPOCHS * len(train), pct_start=0.1)
    losses = []
    for _ in range(EPOCHS):
        model.train()
        for x, y in train:
            loss = torch.nn.functional.cross_entropy(model(x.to(DEVICE)), y.to(DEVICE))
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
    return losses


losses = fine_tune(model)
grafted = accuracy(model)
print(f"{len(losses)} steps: loss {losses[0]:.2f} to {losses[-1]:.2f}, validation accuracy {grafted:.1%}")

# %% [markdown]
# Do the grafts take part? Taken off after the training (`strip`), the backbone lacks what they learned to add.

# %%
stripped = accuracy(vitgraft.strip(copy.deepcopy(model)))
print(f"the same backbone after strip: {stripped:.1%}")

# %% [markdown]
# ## The same by `vitgraft fit`
#
# A recipe is one YAML file: model, data, trainer. Beside the loop above it brings augmentation, mixup, devices,
# precision, exact resume and evaluation. `model_kwargs` go to `timm.create_model`, `graft` to `vitgraft.graft`;
# `layer_decay` gives each layer 0.75 of the rate of the one above it. `recipes/finetune` has recipes for
# published weights.
#
# `command("fit", ...)` is `vitgraft fit ...` in a shell, run in this process.

# %%
recipe = OUT / "recipe.yaml"
recipe.write_text(f"""\
seed_everything: 0
model:
  class_path: Classification
  init_args:
    model: {MODEL}
    model_kwargs: {{img_size: {SIZE}}}
    pretrained: {str(PRETRAINED).lower()}
    graft: {{init: identity, blocks: [3, 6, 9], window_size: 3}}
    data_config: {{crop_pct: 1.0}}
    num_classes: null  # those of the data
    opt: adamw
    lr: 1e-3
    layer_decay: 0.75
    weight_decay: 0.05
    sched: cosine
    warmup_steps: {len(losses) // 10}
    warmup_lr: 1e-6
data:
  class_path: ImageData
  init_args:
    root: {DATA}
    batch_size: 32
    workers: 0
    scale: [0.8, 1.0]
    hflip: 0.0  # a mirrored digit is no digit
    color_jitter: null
trainer:
  max_epochs: {EPOCHS}
  gradient_clip_val: 1.0
  log_every_n_steps: 1
  enable_progress_bar: false
""")


def command(*words):
    print("$ vitgraft", *words)
    assert main([str(word) for word in words]) == 0


run = OUT / "run"
command("fit", "--config", recipe, "--out", run)

# %% [markdown]
# The run's folder has the configuration, every logged value and two checkpoints. Both losses:

# %%
with open(run / "metrics.csv") as file:
    fitted = [float(row["train/loss"]) for row in csv.DictReader(file) if row.get("train/loss")]

figure, axis = plt.subplots(figsize=(6, 3.5), layout="constrained")
axis.plot(losses, label="the loop")
axis.plot(fitted, label="vitgraft fit")
axis.set(xlabel="step", ylabel="training loss", ylim=(0, None))
axis.legend()
figure.savefig(OUT / "losses.png")

# %% [markdown]
# ## Evaluate, predict
#
# `validate` writes accuracy per class, the confusion matrix and the calibration to `run/validate`.
# `vitgraft.load` opens a run, or an export of it, without Lightning.

# %%
command("validate", "--ckpt_path", run, "--trainer.enable_progress_bar", "false")

paths = [path for path, _ in examples.samples[:: len(examples) // 8]][:8]
found = vitgraft.load(run).predict(paths)
figure, axes = plt.subplots(1, 8, figsize=(10, 1.8))
for axis, path, one in zip(axes, paths, found, strict=True):
    axis.imshow(plt.imread(path))
    axis.set(title=f"{one['label']} ({one['probability']:.0%})", xticks=[], yticks=[])
figure.savefig(OUT / "predictions.png")
print("predicted", [one["label"] for one in found], "of", [Path(path).parent.name for path in paths])

# %% [markdown]
# ## Only the grafts
#
# For little data, or one backbone under many tasks: freeze what was pretrained, and train grafts and
# classifier.

# %%
small = start
print(vitgraft.train_grafts_only(small))
fine_tune(small, lr=2e-3)
print(f"grafts and classifier alone: validation accuracy {accuracy(small):.1%}")
vitgraft.save_grafts(small, OUT / "grafts", head=True)  # for vitgraft.load_grafts(model, folder)
print(sorted(path.name for path in (OUT / "grafts").iterdir()))
