"""What `import vitgraft` promises: the public names, and no heavy import."""

import subprocess
import sys

import vitgraft

PUBLIC = {
    "CheckpointError",
    "DenseFeatures",
    "FrozenModelError",
    "GrafT",
    "GraftConfig",
    "GraftError",
    "LoadReport",
    "MissingExtraError",
    "NoGraftPointError",
    "VitgraftError",
    "__version__",
    "freeze",
    "from_pretrained",
    "graft",
    "grafts",
    "is_grafted",
    "load",
    "load_grafts",
    "load_official",
    "pyramid",
    "register_block",
    "register_smp_encoder",
    "save_grafts",
    "strip",
    "train_grafts_only",
}


def test_public_names():
    assert set(vitgraft.__all__) == PUBLIC
    assert all(hasattr(vitgraft, name) for name in PUBLIC)


def test_import_brings_no_extra():
    heavy = ("pytorch_lightning", "lightning", "matplotlib", "pycocotools", "sklearn", "rich", "onnx", "torchmetrics")
    heavy += ("faster_coco_eval",)
    code = f"import sys, vitgraft; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
