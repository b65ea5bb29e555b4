# %% [markdown]
# # Slim grafts beside LoRA
#
# Two ways to adapt a frozen backbone to a new task with few trained parameters: LoRA changes its linear layers
# by low ranks, grafts add attention at coarser scales. Here both get the same number of parameters, steps and
# learning rates.
#
# One small task and one seed: a look at how it is done, not a verdict. `docs/study.md` has the protocol of a
# comparison.
#
# Needs `pip install '.[train]' peft`. About six minutes on a CPU.

# %%
import copy
import os
import shutil
from pathlib import Path

import matplotlib.pyplot as plt
import timm
import torch
from peft import LoraConfig, get_peft_model

import vitgraft
from vitgraft.data.digits import DigitScenes

QUICK = "VITGRAFT_NOTEBOOK_QUICK" in os.environ  # as the tests run it: does it work, not: does it learn
SCENES, EPOCHS = (64, 1) if QUICK else (4000, 6)
RATES = (2e-3, 5e-3)  # both methods try each of them
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
OUT = Path("runs/notebook_slim_grafts")  # made anew
torch.manual_seed(0)
shutil.rmtree(OUT, ignore_errors=True)
OUT.mkdir(parents=True)

# %% [markdown]
# ## Two tasks on the same images
#
# Scenes of handwritten digits, 64 x 64 pixels: four small ones of one class on the left, four of another on the
# right, and a large 0 or 1 in the middle. The backbone is trained to name the class on the left. The new task
# is the class on the side that the large digit selects, 0: left, 1: right. So the backbone knows small digits,
# and has to learn to look at the large one.

# %%
scenes = {
    split: DigitScenes(SCENES if split == "train" else min(SCENES, 1000), split=split) for split in ("train", "test")
}
images, left, side = {}, {}, {}
for split, source in scenes.items():
    images[split], side[split] = zip(*(source[index] for index in range(len(source))), strict=True)
    images[split], side[split] = torch.stack(images[split]), torch.tensor(side[split])
    left[split] = torch.tensor([source.scene(index).category_ids[1] for index in range(len(source))])
half = len(images["test"]) // 2  # the first half selects the learning rate, the second is the test

figure, axes = plt.subplots(1, 5, figsize=(11, 2.5), layout="constrained")
for index, axis in enumerate(axes):
    axis.imshow(scenes["test"].scene(index).image)
    axis.set_title(f"left {left['test'][index]}, selected {side['test'][index]}")
    axis.axis("off")
figure.savefig(OUT / "tasks.png")

# %% [markdown]
# ## The backbone
#
# A small ViT with full attention, trained here, so that nothing is downloaded. For a published one:
# `timm.create_model(NAME, pretrained=True, num_classes=10)`, and images as it wants them.


# %%
def fit(model, labels, rate):
    """Trains what is not frozen; returns the losses."""
    model.to(DEVICE).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.05, betas=(0.9, 0.98))
    order = torch.Generator().manual_seed(0)
    steps = EPOCHS * (SCENES // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    losses = []
    while len(losses) < steps:
        for batch in torch.randperm(SCENES, generator=order).split(64)[: SCENES // 64]:
            x, y = images["train"][batch].to(DEVICE), labels["train"][batch].to(DEVICE)
            loss = torch.nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
    return losses


@torch.inference_mode()
def accuracy(model, labels, part):
    model.eval()
    found = torch.cat([model(x.to(DEVICE)).argmax(1).cpu() for x in images["test"][part].split(100)])
    return (found == labels["test"][part]).float().mean().item()


backbone = timm.create_model(
    "vit_tiny_patch16_224",
    **{"img_size": 64, "patch_size": 8, "embed_dim": 64, "depth": 4, "num_heads": 4},
    class_token=False,
    global_pool="avg",
    num_classes=10,
)
torch.nn.init.normal_(backbone.pos_embed, std=0.2)  # a short run has no time to grow them from timm's 0.02
fit(backbone, left, 1.5e-3)
print(f"class on the left: accuracy {accuracy(backbone, left, slice(None)):.1%}")

# %% [markdown]
# ## Two adaptations of equal size
#
# Grafts of `width=16` work in 16 of the 64 channels, between a linear layer in and one out. `init="identity"`
# starts from what the backbone computes, as LoRA does. `train_grafts_only` freezes the rest, but the
# classifier. LoRA gets all linear layers of the blocks, and the rank whose number of parameters comes closest.


# %%
def head_only():
    model = copy.deepcopy(backbone).requires_grad_(False)
    model.head.requires_grad_(True)
    return model


def grafted():
    model = vitgraft.graft(copy.deepcopy(backbone), init="identity", window_size=2, width=16)
    vitgraft.train_grafts_only(model)
    return model


def count(model):
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


layers = ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"]
linears = [block.get_submodule(name) for block in backbone.blocks for name in layers]
per_rank = sum(linear.in_features + linear.out_features for linear in linears)
rank = max(1, round((count(grafted()) - count(head_only())) / per_rank))


def lora():
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=layers, modules_to_save=["head"])
    return get_peft_model(copy.deepcopy(backbone), config)


methods = {"classifier alone": head_only, "slim grafts": grafted, f"LoRA, rank {rank}": lora}
before = accuracy(backbone, side, slice(None))
for name, make in methods.items():
    print(f"{name}: {count(make()):,} parameters train, starts at {accuracy(make(), side, slice(None)):.1%}")

# %% [markdown]
# ## Train
#
# Each with each learning rate, equal steps in the same order. The rate is selected on one half of the test
# scenes, the accuracy is that of the other.

# %%
results, curves, models = {}, {}, {}
for name, make in methods.items():
    for rate in RATES:
        torch.manual_seed(0)
        model = make()
        losses = fit(model, side, rate)
        selected, test = accuracy(model, side, slice(half)), accuracy(model, side, slice(half, None))
        print(f"{name}, lr {rate:g}: {selected:.1%} on the first half")
        if name not in results or selected > results[name][0]:
            results[name], curves[name], models[name] = (selected, test, rate), losses, model

print(f"\n{'':20} {'parameters':>10} {'lr':>8} {'accuracy':>9}")
print(f"{'not adapted':20} {0:10,} {'':8} {before:9.1%}")
for name, (_, test, rate) in results.items():
    print(f"{name:20} {count(models[name]):10,} {rate:8g} {test:9.1%}")

figure, axis = plt.subplots(figsize=(7, 3.5), layout="constrained")
for name, losses in curves.items():
    width = max(1, len(losses) // 50)
    smooth = torch.tensor(losses).unfold(0, width, 1).mean(1)
    axis.plot(range(width, len(losses) + 1), smooth, label=f"{name}: {results[name][1]:.1%}")
axis.set(xlabel="step", ylabel="training loss", ylim=(0, None))
axis.legend(title="accuracy")
figure.savefig(OUT / "losses.png")

# %% [markdown]
# ## What is kept
#
# Both are a small folder beside the backbone. LoRA can be merged into the weights (`merge_and_unload`) and then
# costs nothing at inference; grafts stay, at the cost that `vitgraft bench` measures. Both together work too,
# in either order (`docs/grafting.md`).

# %%
vitgraft.save_grafts(models["slim grafts"], OUT / "grafts", head=True)
models[f"LoRA, rank {rank}"].save_pretrained(OUT / "lora")
for folder in ("grafts", "lora"):
    size = sum(path.stat().st_size for path in (OUT / folder).iterdir())
    print(f"{folder}: {size / 1024:.0f} KiB, {sorted(path.name for path in (OUT / folder).iterdir())}")

again = vitgraft.load_grafts(copy.deepcopy(backbone).cpu(), OUT / "grafts").eval()
with torch.inference_mode():
    x = images["test"][:4]
    print("loaded again, the same:", torch.equal(again(x), models["slim grafts"].cpu().eval()(x)))
