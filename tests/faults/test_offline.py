"""Without a network: what needs the hub ends with a sentence."""

import pytest

pytest.importorskip("pytorch_lightning")
NAME = "hf-hub:timm/vit_tiny_patch16_224.no_such_tag"


@pytest.mark.parametrize(
    "words",
    [
        "info {name}",
        "bench {name}",
        "export {name} {out}/exported",
        "predict --ckpt {name} {data}/val",
        "fit --config {recipe} --data.root {data} --out {out}/run --model.pretrained true",
        "fit --config {recipe} --data.root {data} --out {out}/run --model.model {name}",
    ],
)
def test_every_command_that_needs_the_hub(words, run_command, recipe, class_folders, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    before = sorted(tmp_path.iterdir())
    words = words.format(name=NAME, out=tmp_path, data=class_folders, recipe=recipe)
    code, out, err = run_command(*words.split())
    assert code == 2 and NAME in err.replace("vit_tiny_patch16_224:", NAME) and "Traceback" not in err, (out, err)
    assert "can't be loaded" in err or "can't be had from the hub" in err
    assert sorted(tmp_path.iterdir()) == before
