# %% [markdown]
# # Export and serve
#
# A run of `vitgraft fit` becomes a folder with a model card, an ONNX file behind a small HTTP server that needs
# no PyTorch, and a folder of the grafts alone.
#
# Needs `pip install '.[train,export]'`. About a minute on a CPU.

# %%
import copy
import http.server
import io
import json
import os
import shutil
import threading
import urllib.error
import urllib.request
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import onnxruntime
import timm
import torch
from PIL import Image
from sklearn.datasets import load_digits

import vitgraft
from vitgraft.cli import main

QUICK = "VITGRAFT_NOTEBOOK_QUICK" in os.environ  # as the tests run it: does it work, not: does it learn
EPOCHS = 1 if QUICK else 10
IMAGES = 120 if QUICK else 1797
OUT = Path("runs/notebook_export")  # made anew
shutil.rmtree(OUT, ignore_errors=True)
OUT.mkdir(parents=True)


# %% [markdown]
# ## A run
#
# Any run will do, of a classifier, detector or segmenter: set `run` to its folder and leave this cell out. Here
# a small ViT with grafts learns scikit-learn's handwritten digits. `command("fit", ...)` is `vitgraft fit ...`
# in a shell, run in this process.


# %%
def command(*words):
    print("$ vitgraft", *words)
    assert main([str(word) for word in words]) == 0


DATA = OUT / "digits"
digits = load_digits()
for index, (scan, label) in enumerate(zip(digits.images[:IMAGES], digits.target, strict=False)):
    folder = DATA / ("val" if index % 5 == 4 else "train") / str(label)
    folder.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray((scan * 255 / 16).astype(np.uint8)).resize((32, 32), Image.Resampling.BILINEAR)
    image.convert("RGB").save(folder / f"{index:04}.png")

recipe = OUT / "recipe.yaml"
recipe.write_text(f"""\
seed_everything: 0
model:
  class_path: Classification
  init_args:
    model: vit_tiny_patch16_224  # the class; the sizes below replace its own
    model_kwargs:
      {{img_size: 32, patch_size: 4, embed_dim: 64, depth: 4, num_heads: 4, class_token: false, global_pool: avg}}
    graft: {{window_size: 4}}  # 8 x 8 tokens, a level of 4 x 4
    data_config: {{crop_pct: 1.0}}
    num_classes: null  # those of the data
    opt: adamw
    lr: 2e-3
    sched: cosine
    warmup_steps: 20
    warmup_lr: 1e-6
data:
  class_path: ImageData
  init_args: {{root: {DATA}, batch_size: 32, workers: 0, scale: [0.8, 1.0], hflip: 0.0, color_jitter: null}}
trainer:
  max_epochs: {EPOCHS}
  gradient_clip_val: 1.0
  log_every_n_steps: 1
  enable_progress_bar: false
""")
run = OUT / "run"
command("fit", "--config", recipe, "--out", run)
command("validate", "--ckpt_path", run, "--trainer.enable_progress_bar", "false")

# %% [markdown]
# ## A folder with a model card
#
# Weights as safetensors, a configuration, and a card that states task, classes, data, metrics, licence and
# recipe. The metrics are those of `validate`, as it ran on this checkpoint. `vitgraft.load` takes run and
# folder alike; folders of classifiers are in timm's hub format, too.
# `vitgraft.load(run).push_to_hub("USER/NAME")` uploads the same files.

# %%
exported = OUT / "digits_vit"
command("export", run, exported, "--license", "apache-2.0")
print((exported / "README.md").read_text())

# %%
path = next((DATA / "val").rglob("*.png"))
of_run, of_folder = vitgraft.load(run).predict(path), vitgraft.load(exported).predict(path)
print("the same, bit for bit:", torch.equal(of_run["probabilities"], of_folder["probabilities"]))

model = timm.create_model(f"local-dir:{exported}", pretrained=True)  # in any process that has imported vitgraft
print(type(model).__name__, model.pretrained_cfg["label_names"])

# %% [markdown]
# ## ONNX
#
# The file is written only where onnxruntime computes what PyTorch computes. Its metadata has what a program
# needs to prepare an image: size, mean and std, and the names of the classes.

# %%
file = OUT / "digits.onnx"
command("export", run, file)
session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
metadata = {name: value for name, value in session.get_modelmeta().custom_metadata_map.items()}
for name in ("task", "class_names", "input_size", "mean", "std", "preprocessing"):
    print(f"{name}: {metadata[name]}")

# %% [markdown]
# ## Bytes in, JSON out
#
# NumPy, Pillow and onnxruntime; no PyTorch, no vitgraft. This model sees the whole image resized (`crop_pct:
# 1.0`). For a model with a center crop, as most of timm's have, `preprocessing` has the numbers; detectors and
# segmenters pad instead (`docs/export.md`).

# %%
names = json.loads(metadata["class_names"])
height, width = json.loads(metadata["input_size"])[-2:]
mean, std = (np.array(json.loads(metadata[name]), np.float32) for name in ("mean", "std"))


def answer(data: bytes, top: int = 3) -> dict:
    """The most probable classes of an image file. ValueError: it is none."""
    try:
        image = Image.open(io.BytesIO(data)).convert("RGB")
    except OSError as error:
        raise ValueError("not an image") from error
    pixels = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC), np.float32) / 255
    images = ((pixels - mean) / std).transpose(2, 0, 1)[None]
    (logits,) = session.run(None, {session.get_inputs()[0].name: images})
    odds = np.exp(logits[0] - logits[0].max())
    order = odds.argsort()[::-1][:top]
    return {"classes": [{"name": names[i], "probability": round(float(odds[i] / odds.sum()), 4)} for i in order]}


found = answer(path.read_bytes())
print(found)
difference = abs(found["classes"][0]["probability"] - of_run["probability"])
print(f"difference from PyTorch: {difference:.4f}")

# %% [markdown]
# A server by the standard library, to try it; behind a real one `answer` stays the same. onnxruntime's sessions
# may be used by several threads. Damaged and oversized uploads get an error, not a stack trace.

# %%
LARGEST = 20_000_000  # bytes


class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        length = int(self.headers.get("Content-Length", 0))
        if not 0 < length <= LARGEST:
            return self.reply(413, {"error": f"send 1 to {LARGEST} bytes"})
        try:
            self.reply(200, answer(self.rfile.read(length)))
        except ValueError as error:
            self.reply(400, {"error": str(error)})

    def reply(self, status, content):
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)  # a free port
threading.Thread(target=server.serve_forever, daemon=True).start()
url = f"http://127.0.0.1:{server.server_port}"


def ask(data: bytes) -> tuple[int, dict]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data), timeout=10) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


photos = sorted((DATA / "val").rglob("*.png"))
photos = photos[:: max(1, len(photos) // 8)][:8]
answers = [ask(photo.read_bytes()) for photo in photos]
print(answers[0])
print(ask(b"no image"))
server.shutdown()
server.server_close()

figure, axes = plt.subplots(1, len(photos), figsize=(10, 1.8))
for axis, photo, (_, content) in zip(axes, photos, answers, strict=True):
    best = content["classes"][0]
    axis.imshow(Image.open(photo))
    axis.set(title=f"{best['name']} ({best['probability']:.0%})", xticks=[], yticks=[])
figure.savefig(OUT / "served.png")

# %% [markdown]
# ## Grafts alone
#
# Where a frozen backbone serves many tasks (`train_grafts_only: true` in a recipe), a task is a folder of its
# grafts: `graft_config.json` and `adapter_model.safetensors`. `load_grafts` puts them on a fresh backbone,
# which has to be the same: here the run's own, taken out by `strip`.

# %%
grafts = OUT / "grafts"
command("export", run, grafts, "--grafts-only")
print({one.name: f"{one.stat().st_size / 1024:.0f} KiB" for one in sorted(grafts.iterdir())})

whole = vitgraft.load(run).model
backbone = vitgraft.strip(copy.deepcopy(whole)).state_dict()

sizes = {"img_size": 32, "patch_size": 4, "embed_dim": 64, "depth": 4, "num_heads": 4}
fresh = timm.create_model("vit_tiny_patch16_224", **sizes, class_token=False, global_pool="avg", num_classes=len(names))
fresh.load_state_dict(backbone)
vitgraft.load_grafts(fresh, grafts)
images = torch.randn(2, 3, 32, 32)
with torch.inference_mode():
    print("backbone + grafts = the whole model:", torch.equal(fresh.eval()(images), whole(images)))
