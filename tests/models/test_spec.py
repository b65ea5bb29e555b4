"""Model specs read from one word, and the errors of those that nothing matches."""

import pytest

from vitgraft.errors import ModelSpecError
from vitgraft.models.spec import ModelSpec, input_size_of
from vitgraft.weights.create import create, create_at


def test_parse_and_print():
    text = "graft_deit_tiny_patch16_224:graft.levels=1:graft.blocks=[4,8]:graft.downsample=linear:drop_path_rate=0.1"
    spec = ModelSpec.parse(text)
    assert spec.name == "graft_deit_tiny_patch16_224"
    assert spec.options == {"graft": {"levels": 1, "blocks": [4, 8], "downsample": "linear"}, "drop_path_rate": 0.1}
    assert str(spec) == text
    assert ModelSpec.parse("hf-hub:org/name:num_classes=3") == ModelSpec("hf-hub:org/name", {"num_classes": 3})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the name first"),
        ("a=1:name", "the name first"),
        ("name:a=1:a=2", "given twice"),
        ("name:a=1:a.b=2", "as a value and as a group"),
        ("name:a.=1", "empty"),
    ],
)
def test_parse_errors(text, message):
    with pytest.raises(ModelSpecError, match=message):
        ModelSpec.parse(text)


def test_unknown_names_and_options():
    with pytest.raises(
        ModelSpecError, match=r"unknown model 'deit_tny_patch16_224'; close names: .*deit_tiny_patch16_224"
    ):
        create("deit_tny_patch16_224")
    with pytest.raises(ModelSpecError, match=r"timm\.list_models"):
        create("qqqqqqqqqqqqqqqq")
    with pytest.raises(ModelSpecError, match="drop_pth_rate"):
        create("deit_tiny_patch16_224:drop_pth_rate=0.1", "meta")


def test_create_takes_options():
    model = create("vit_tiny_patch16_224:depth=2:img_size=64", num_classes=3, device="meta")
    assert len(model.blocks) == 2 and model.num_classes == 3 and model.patch_embed.img_size == (64, 64)
    assert input_size_of(model) == (3, 64, 64) and input_size_of(model, 96) == (3, 96, 96)
    assert input_size_of(create("crossvit_9_240", "meta")) == (3, 240, 240)


def test_img_size_where_the_model_has_no_such_option():
    assert create_at(ModelSpec("vit_tiny_patch16_224", {"depth": 1}), 32).patch_embed.img_size == (32, 32)
    assert create_at(ModelSpec("poolformer_s12"), 64, "meta").num_classes == 1000
    with pytest.raises(ModelSpecError, match="dept"):
        create_at(ModelSpec("poolformer_s12", {"dept": 3}), 64, "meta")


@pytest.mark.parametrize("name", ["pvt_tiny", "t2t_vit_t_14", "regionvit_tiny", "vil_tiny_rpb", "cswin_tiny_224"])
def test_a_size_given_to_the_constructor_is_the_input_size(name):
    assert input_size_of(create(f"{name}:img_size=256", device="meta")) == (3, 256, 256)
    assert input_size_of(create(name, device="meta")) == (3, 224, 224)
