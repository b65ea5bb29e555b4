"""What `import vitgraft` promises: the public names, the registered models, and no heavy import."""

import subprocess
import sys

import timm

import vitgraft

PUBLIC = {
    "CheckpointError",
    "DenseFeatures",
    "GrafT",
    "GraftConfig",
    "GraftError",
    "LoadReport",
    "MissingExtraError",
    "NoGraftPointError",
    "VitgraftError",
    "__version__",
    "graft",
    "grafts",
    "is_grafted",
    "load_official",
    "register_block",
    "strip",
    "train_grafts_only",
}
REGISTERED = {
    "cswin_base_224",
    "cswin_small_224",
    "cswin_tiny_224",
    "graft_cswin_base_224",
    "graft_cswin_small_224",
    "graft_cswin_tiny_224",
    "graft_deit_small_patch16_224",
    "graft_deit_tiny_patch16_224",
    "graft_mobilevit_xxs",
    "graft_swin_base_patch4_window7_224",
    "graft_swin_small_patch4_window7_224",
    "graft_swin_tiny_patch4_window7_224",
}
# the zoo: tests/models/zoo/test_zoo_interface.py


def test_public_names():
    assert set(vitgraft.__all__) == PUBLIC
    assert all(hasattr(vitgraft, name) for name in PUBLIC)


def test_registered_names():
    assert set(timm.list_models("graft_*")) | set(timm.list_models("cswin_*")) == REGISTERED


def test_import_brings_no_extra():
    heavy = ("pytorch_lightning", "lightning", "matplotlib", "pycocotools", "sklearn", "rich", "onnx", "torchmetrics")
    heavy += ("faster_coco_eval",)
    code = f"import sys, vitgraft; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
