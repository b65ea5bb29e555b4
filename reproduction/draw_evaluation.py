"""Draws docs/pictures/evaluation.png: a small ViT learns scikit-learn's digits, and is evaluated.

python -m reproduction.draw_evaluation        (a minute on one CPU core)
"""

import tempfile
from pathlib import Path

from PIL import Image
from sklearn.datasets import load_digits

from vitgraft.cli import main

FIGURE = Path(__file__).parents[1] / "docs" / "pictures" / "evaluation.png"
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
RECIPE = """\
model:
  class_path: Classification
  init_args:
    model: vit_tiny_patch16_224
    model_kwargs: {img_size: 32, patch_size: 4, embed_dim: 64, depth: 3, num_heads: 2}
    lr: 2e-3
    warmup_epochs: 1
data:
  init_args: {batch_size: 64, workers: 0, cache: true, train_crop_mode: pad, hflip: 0, color_jitter: null}
trainer: {max_epochs: 15, accelerator: cpu, devices: 1, enable_progress_bar: false}
"""


def write_digits(root: Path) -> None:
    """1200 digits to train on, 597 of other writers to validate."""
    digits = load_digits()
    for number, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        folder = root / ("train" if number < 1200 else "val") / NAMES[label]
        folder.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray((255 - pixels * 255 / 16).astype("uint8"))
        image.resize((32, 32), Image.Resampling.BICUBIC).save(folder / f"{number:04}.png")


def draw() -> None:
    """Trains, evaluates, and puts the two figures of the evaluation side by side."""
    with tempfile.TemporaryDirectory() as scratch:
        root, out = Path(scratch, "digits"), Path(scratch, "run")
        write_digits(root)
        Path(scratch, "digits.yaml").write_text(RECIPE)
        common = ["--config", f"{scratch}/digits.yaml", "--data.root", str(root)]
        assert main(["fit", *common, "--out", str(out)]) == 0
        assert main(["validate", *common, "--ckpt_path", str(out / "best.ckpt"), "--out", str(out)]) == 0
        halves = [Image.open(out / "validate" / name).convert("RGB") for name in ("confusion.png", "calibration.png")]
    height = max(half.height for half in halves)
    both = Image.new("RGB", (sum(half.width for half in halves) + 20, height), "white")
    both.paste(halves[0], (0, (height - halves[0].height) // 2))
    both.paste(halves[1], (halves[0].width + 20, (height - halves[1].height) // 2))
    both.quantize(64, dither=Image.Dither.NONE).save(FIGURE, optimize=True)


if __name__ == "__main__":
    draw()
