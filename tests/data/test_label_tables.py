"""Label maps by color and by an explicit mapping of values, and each fault named before a run."""

import numpy as np
import pytest
from datasets_on_disk import SIZE, blocks, check_data, image_bytes, label_bytes, write_pairs, write_tar
from PIL import Image

from vitgraft.data.label_table import read_colors
from vitgraft.data.segmentation import SegmentationData
from vitgraft.errors import DataError

COLORS = {"sky": (70, 130, 180), "road": (128, 64, 128), "car": (0, 0, 142)}
TABLES = {
    "colors.csv": "r,g,b,class\n70,130,180,sky\n128,64,128,road\n0,0,142,car\n0,0,0,ignore\n",
    "class_dict.csv": "name, r, g, b\nsky, 70, 130, 180\nroad, 128, 64, 128\ncar, 0, 0, 142\nIgnore, 0, 0, 0\n",
    "hex.csv": "#4682b4;sky\n#804080;road\n#00008E;car\n#000000;ignore\n",
    "labelmap.txt": "# label:color_rgb:parts:actions\nsky:70,130,180::\nroad:128,64,128::\n"
    "car:0,0,142::\nignore:0,0,0::\n",
}
PALETTE = np.array([(0, 0, 0), *COLORS.values()], dtype=np.uint8)


def write_colors(root, mode="RGB", counts=None):
    """ADE20K's layout with a color for each class; value 0 of `blocks` is ignored, 1 to 3 are the classes."""
    counts = counts or {"training": 4, "validation": 2}
    write_pairs(root, counts, names=None)
    for path in root.glob("annotations/*/*.png"):
        image = Image.fromarray(PALETTE[np.asarray(Image.open(path))])
        image.convert(mode).save(path) if mode != "P" else image.quantize(256).save(path)
    return root


def opened(root, split="train", **options):
    return SegmentationData(root=str(root), **options).source(split)


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_colors(tmp_path, table, mode, capsys):
    root = write_colors(tmp_path / "set", mode)
    (root / table).write_text(TABLES[table])
    source = opened(root, colors=table)
    assert source.class_names == ("sky", "road", "car")
    expected = np.array([255, 0, 1, 2], np.uint8)[blocks(0, (0, 1, 2, 3))]
    assert np.array_equal(source.load(0)[1], expected)
    assert np.array_equal(opened(root, colors=str(root / table)).load(0)[1], expected)
    code, report, findings = check_data(capsys, root, "--colors", root / table)
    assert code == 0 and [*report["sets"][0]["per_class"]] == ["sky", "road", "car"]
    assert not {kind for _, kind in findings} - {"passed over"}
    assert np.array_equal(opened(write_tar(tmp_path / "set.tar", root), colors=table).load(0)[1], expected)


def test_several_colors_of_a_class(tmp_path):
    root = write_colors(tmp_path)
    (root / "colors.csv").write_text("70,130,180,bg\n128,64,128,bg\n0,0,142,car\n0,0,0,bg\n")
    source = opened(root, colors="colors.csv")
    assert source.class_names == ("bg", "car") and set(np.unique(source.load(0)[1])) == {0, 1}


@pytest.mark.parametrize("values", [{0: "background", 255: "object"}, {"0": "background", "255": "object"}])
def test_binary_masks_by_an_explicit_mapping(tmp_path, values, capsys):
    root = write_pairs(tmp_path, values=(0, 255), names=None)
    source = opened(root, label_values=values)
    assert source.class_names == ("background", "object")
    assert np.array_equal(source.load(0)[1], blocks(0, (0, 1)))
    code, report, findings = check_data(capsys, root, "--label-values", "0=background,255=object")
    assert code == 0 and [*report["sets"][0]["per_class"]] == ["background", "object"] and not findings


def test_values_that_are_ignored(tmp_path):
    root = write_pairs(tmp_path, values=(0, 7, 200), names=None)
    source = opened(root, label_values={7: "cat", 200: "ignore", 0: "background"})
    assert source.class_names == ("cat", "background")
    assert np.array_equal(source.load(0)[1], np.select([blocks(0, (0, 7, 200)) == n for n in (0, 7)], [1, 0], 255))


def run(root, **options):
    data = SegmentationData(root=str(root), workers=0, crop_size=32, **options)
    data.setup("fit")
    return data


def test_colors_without_an_entry(tmp_path, capsys):
    root = write_colors(tmp_path / "set")
    (root / "colors.csv").write_text(TABLES["colors.csv"].replace("0,0,142,car\n", ""))
    with pytest.raises(
        DataError,
        match=r"4 label files have colors without an entry that are no class; colors.csv has \(70, 130, 180\).*\(0, "
        r"0, 142\): 25 %.*Add them to colors.csv, as a class or as ignore.*0.png: \(0, 0, 142\) \(320",
    ):
        run(root, colors="colors.csv")
    with pytest.raises(DataError, match=r"0.png: label value \(0, 0, 142\) \(320 pixels\); colors.csv has"):
        opened(root, colors="colors.csv").load(0)
    assert "not read" not in capsys.readouterr().out
    code, _, findings = check_data(capsys, root, "--colors", "colors.csv")
    assert code == 1 and "(0, 0, 142) (320 pixels)" in findings["error", "values"]["items"][0]


def test_values_without_an_entry(tmp_path):
    root = write_pairs(tmp_path, values=(0, 255, 7), names=None)
    with pytest.raises(DataError, match=r"values without an entry.*data.label_values has 0, 255.*: 7 \("):
        run(root, label_values={0: "background", 255: "object"})


def test_masks_of_another_size_and_colors_without_a_table(tmp_path):
    root = write_colors(tmp_path)
    (root / "colors.csv").write_text(TABLES["colors.csv"])
    with pytest.raises(DataError, match=r"RGB, not one class index for each pixel; set data.colors to a table"):
        run(root, reduce_zero_label=False, num_classes=3)
    (root / "annotations" / "training" / "1.png").write_bytes(image_bytes(1, (20, 32), "PNG"))
    with pytest.raises(DataError, match=r"1.png: labels of 20 x 32 pixels for an image of 40 x 32"):
        run(root, colors="colors.csv")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1,2,3,a\n1,2,3,b\n", r"\(1, 2, 3\) is there twice, with different classes"),
        ("1,2,3,a\n1,2,300,b\n", r"line 2 '1, 2, 300, b' is no color and class; wanted red,green,blue,name"),
        ("1,2,3,ignore\n", "no class in it"),
        ("", "no class in it"),
        ("".join(f"{n},0,{m},c{n}_{m}\n" for n in range(16) for m in range(16)), "num_classes=256: 1 to 255"),
    ],
)
def test_faults_of_a_table(tmp_path, text, words):
    (tmp_path / "colors.csv").write_text(text)
    with pytest.raises(DataError, match=words):
        read_colors(str(tmp_path / "colors.csv"))
    with pytest.raises(DataError, match=r"data\.colors='nowhere.csv': no such file"):
        read_colors("nowhere.csv")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"colors": "a.csv", "label_values": {0: "a"}}, "colors: either this or label_values"),
        (
            {"colors": "a.csv", "reduce_zero_label": True},
            "reduce_zero_label=True: colors names the classes, leave it out",
        ),
        ({"label_values": {0: "a"}, "class_names": ["a"]}, "class_names=.*label_values names the classes"),
        ({}, "or colors, or label_values"),
    ],
)
def test_options_that_contradict_each_other(options, words):
    with pytest.raises(ValueError, match=words):
        SegmentationData(root="nowhere", **options)


def test_pascal_voc_segmentation_by_its_lists(tmp_path, capsys):
    """VOC2012 has masks of some images only, named in ImageSets/Segmentation."""
    root = tmp_path / "VOC2012"
    for number in range(6):
        (root / "JPEGImages").mkdir(parents=True, exist_ok=True)
        (root / "JPEGImages" / f"{number}.jpg").write_bytes(image_bytes(number, SIZE))
        if number < 4:
            (root / "SegmentationClass").mkdir(exist_ok=True)
            (root / "SegmentationClass" / f"{number}.png").write_bytes(label_bytes(blocks(number, (0, 1, 2))))
    (root / "ImageSets" / "Segmentation").mkdir(parents=True)
    (root / "ImageSets" / "Segmentation" / "train.txt").write_text("0\n2\n")
    (root / "ImageSets" / "Segmentation" / "val.txt").write_text("1\n3\n")
    data = SegmentationData(root=str(tmp_path), reduce_zero_label=False, num_classes=3)
    assert [data.source(split).name(1)[-5:] for split in ("train", "val")] == ["2.jpg", "3.jpg"]
    assert len(data.source("train")) == 2
    code, report, _ = check_data(capsys, root, "--reduce-zero-label", "false", "--num-classes", 3)
    assert code == 0 and [one["images"] for one in report["sets"]] == [2, 2]


def test_a_part_for_validation(tmp_path):
    root = write_pairs(tmp_path / "a", {"training": 10})
    data = SegmentationData(root=str(root), reduce_zero_label=True, val_fraction=0.3)
    assert [len(data.source(split)) for split in ("train", "val", "test")] == [7, 3, 3]
    names = [{source.name(n) for n in range(len(source))} for source in map(data.source, ("train", "val"))]
    assert not names[0] & names[1] and len(names[0] | names[1]) == 10
    with pytest.raises(DataError, match=r"there is a validation split already, 'validation'"):
        opened(write_pairs(tmp_path / "b"), reduce_zero_label=True, val_fraction=0.3)


def test_names_that_differ_by_a_suffix(tmp_path, capsys):
    root = write_pairs(tmp_path, {"training": 4}, values=(0, 255), names=None)
    (root / "images" / "training").rename(root / "photos"), (root / "annotations" / "training").rename(root / "masks")
    (root / "annotations").rmdir(), (root / "images").rmdir(), (root / "photos").rename(root / "images")
    for path in sorted((root / "masks").iterdir()):
        path.rename(path.with_name(f"{path.stem}_mask.png"))
    options = {"label_values": {0: "background", 255: "object"}, "val_fraction": 0.25}
    with pytest.raises(
        DataError, match=r"4 of 4 images have no label file.*set data.image_suffix and data.label_suffix"
    ):
        opened(root, **options)
    assert len(opened(root, label_suffix="_mask", **options)) == 3
    words = ["--label-values", "0=background,255=object", "--label-suffix", "_mask"]
    assert check_data(capsys, root, *words)[0] == 0
