import dataclasses
import json

import numpy as np
import pytest

from vitgraft import GraftConfig, GraftError

CONFIGS = [
    GraftConfig(),
    GraftConfig(levels=(3, 2, 1, 0), blocks=(1, 4), num_heads=4, window_size=8),
    GraftConfig(img_size=(224, 192), blocks=5, downsample="linear", upsample="nearest", ffn="separate", ffn_ratio=0.5),
    GraftConfig(levels=2, left_levels=1, backbone_attention="window", backbone_window_size=14, init="identity"),
    GraftConfig(blocks=(), backbone_attention="window", downsample="cross_attention", upsample="cross_attention"),
    GraftConfig(level_sizes=4, width=96, attention="cross_shaped", downsample="cross_attention_x0"),
    GraftConfig(level_sizes=(7, 2), gate=False, shifted_windows=True, relative_position_bias=False),
    GraftConfig(level_sizes=((28, 14), 7), gate=True, upsample="nearest", ffn="separate_full"),
]


@pytest.mark.parametrize("config", CONFIGS)
def test_json_round_trip(config):
    assert GraftConfig.from_json(config.to_json()) == config
    assert GraftConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert GraftConfig.make(config) == config
    assert hash(GraftConfig.from_json(config.to_json())) == hash(config)


def test_to_dict_names_every_option():
    assert list(GraftConfig().to_dict()) == [f.name for f in dataclasses.fields(GraftConfig)]


def test_defaults_are_the_papers_final_model():
    assert GraftConfig().to_dict() == {
        "levels": "auto",
        "img_size": None,
        "level_sizes": "halve",
        "width": None,
        "window_size": 7,
        "attention": "window",
        "shifted_windows": False,
        "relative_position_bias": True,
        "blocks": "all_but_first",
        "num_heads": None,
        "downsample": "avg_pool",
        "upsample": "w_bilinear",
        "gate": None,
        "ffn": "shared",
        "ffn_ratio": 0.375,
        "left_levels": 0,
        "backbone_attention": "keep",
        "backbone_window_size": None,
        "init": "paper",
        "swin_padding": "timm",
    }


def test_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        GraftConfig().window_size = 8


def test_lists_become_tuples():
    config = GraftConfig(levels=[1, 0], blocks=[2, 1])
    assert (config.levels, config.blocks) == ((1, 0), (2, 1))
    config = GraftConfig(level_sizes=[[14, 7], [7, 4], 2])
    assert config.level_sizes == ((14, 7), (7, 4), 2)
    assert config.to_dict()["level_sizes"] == [[14, 7], [7, 4], 2]
    assert GraftConfig(level_sizes=np.array([7, 2])) == GraftConfig(level_sizes=(7, 2))


def test_numbers_of_other_libraries_become_plain():
    config = GraftConfig(levels=np.int64(2), blocks=range(1, 3), window_size=np.int32(8))
    assert config == GraftConfig(levels=2, blocks=(1, 2), window_size=8)
    config = GraftConfig(levels=np.array([1, 0]), blocks=np.arange(1, 3), ffn_ratio=np.float32(0.5))
    assert config == GraftConfig(levels=(1, 0), blocks=(1, 2), ffn_ratio=0.5)
    assert GraftConfig.from_json(config.to_json()) == config
    with pytest.raises(GraftError, match=r"levels=1\.5"):
        GraftConfig(levels=np.float64(1.5))
    assert GraftConfig.from_json(config.to_json()) == config
    assert GraftConfig(blocks=list(np.array([2, 5]))).blocks == (2, 5)
    with pytest.raises(GraftError, match="different block indices"):
        GraftConfig(blocks=list(np.array([2, 2])))


def test_make_puts_options_on_top():
    base = GraftConfig(window_size=8, init="identity")
    assert GraftConfig.make(base, window_size=4) == GraftConfig(window_size=4, init="identity")
    assert GraftConfig.make({"window_size": 8}, levels=2) == GraftConfig(window_size=8, levels=2)
    assert GraftConfig.make() == GraftConfig()


BAD = [
    ("levels", "most"),
    ("levels", -1),
    ("levels", 1.5),
    ("levels", True),
    ("levels", None),
    ("levels", ()),
    ("levels", (1, -1)),
    ("levels", ("a",)),
    ("levels", "global"),
    ("level_sizes", "half"),
    ("level_sizes", 0),
    ("level_sizes", 2.0),
    ("level_sizes", True),
    ("level_sizes", None),
    ("level_sizes", ()),
    ("level_sizes", (7, 0)),
    ("level_sizes", ((7, 7, 7),)),
    ("level_sizes", ((7, "a"),)),
    ("level_sizes", (2, 7)),
    ("level_sizes", (7, 7)),
    ("level_sizes", ((7, 7), (7, 8))),
    ("width", 0),
    ("width", 96.5),
    ("gate", "on"),
    ("gate", 1),
    ("relative_position_bias", None),
    ("shifted_windows", "yes"),
    ("attention", "keep"),
    ("window_size", 0),
    ("window_size", -7),
    ("window_size", 7.0),
    ("window_size", None),
    ("window_size", (7, 7)),
    ("blocks", "all"),
    ("blocks", 0),
    ("blocks", -1),
    ("blocks", (1, 1)),
    ("blocks", (-1,)),
    ("blocks", (0.5,)),
    ("num_heads", 0),
    ("num_heads", "3"),
    ("downsample", "max_pool"),
    ("downsample", None),
    ("downsample", ["linear"]),
    ("upsample", "bicubic"),
    ("ffn", "own"),
    ("ffn_ratio", 0),
    ("ffn_ratio", -1.0),
    ("ffn_ratio", "wide"),
    ("ffn_ratio", float("nan")),
    ("ffn_ratio", float("inf")),
    ("ffn_ratio", True),
    ("left_levels", -1),
    ("left_levels", None),
    ("backbone_attention", "full"),
    ("backbone_window_size", 0),
    ("init", "zero"),
    ("swin_padding", "left"),
]


@pytest.mark.parametrize("name,value", BAD, ids=lambda v: repr(v))
def test_a_bad_value_is_named(name, value):
    with pytest.raises(GraftError) as error:
        GraftConfig(**{name: value})
    assert f"{name}={value!r}" in str(error.value)


def test_global_levels_are_called_auto():
    with pytest.raises(GraftError, match="use 'auto'"):
        GraftConfig(levels="global")


def test_stripes_are_not_shifted():
    with pytest.raises(GraftError, match="shifted_windows=True"):
        GraftConfig(attention="cross_shaped", shifted_windows=True)


def test_choices_are_listed():
    with pytest.raises(GraftError, match="'w_bilinear', 'bilinear', 'nearest' or 'cross_attention'"):
        GraftConfig(upsample="bicubic")


def test_all_bad_values_at_once():
    with pytest.raises(GraftError) as error:
        GraftConfig(window_size=0, init="zero", ffn_ratio=-2)
    assert all(part in str(error.value) for part in ("window_size=0", "init='zero'", "ffn_ratio=-2"))


@pytest.mark.parametrize(
    "option,hint",
    [("window", "window_size"), ("downsampling", "downsample"), ("level", "levels"), ("zzz", None)],
)
def test_an_unknown_option_gets_a_hint(option, hint):
    with pytest.raises(GraftError) as error:
        GraftConfig.make(**{option: 1})
    assert repr(option) in str(error.value)
    assert "window_size" in str(error.value)  # the list of those that exist
    assert ("did you mean" in str(error.value)) == (hint is not None)
    if hint is not None:
        assert f"did you mean {hint!r}" in str(error.value)


@pytest.mark.parametrize("text", ["", "[1, 2]", "3", '{"levels": 1', '"auto"', "null"])
def test_text_that_is_no_json_object(text):
    with pytest.raises(GraftError, match="JSON object"):
        GraftConfig.from_json(text)


@pytest.mark.parametrize("config", [5, "auto", [("levels", 1, 2)]])
def test_make_of_something_else(config):
    with pytest.raises(GraftError, match="mapping"):
        GraftConfig.make(config)
