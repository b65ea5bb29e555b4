"""The images with the most mistakes: which are kept, and what an evaluation writes of them."""

import re
from types import SimpleNamespace

import pytest
from PIL import Image

pytest.importorskip("pytorch_lightning")

from vitgraft.errors import ImageError
from vitgraft.training.callbacks.worst_images import WorstImages

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


class Source:
    """Image k has the gray value k; image 3 can't be read any more."""

    def name(self, index):
        return f"{index}.png"

    def load(self, index):
        if index == 3:
            raise ImageError("3.png", "gone")
        return Image.new("RGB", (8, 8), (index,) * 3)


@pytest.fixture
def drawn():
    """Draws what is kept; gives (index, what was predicted) of each picture, and the files."""
    trainer = SimpleNamespace(datamodule=SimpleNamespace(source=lambda split: Source()), world_size=1)

    def draw(worst, weights="raw"):
        seen = []

        def draw_mistake(loaded, predicted, title):
            seen.append((loaded.getpixel((0, 0))[0], predicted))
            return loaded

        files = worst.drawn(trainer, SimpleNamespace(draw_mistake=draw_mistake), weights)
        return seen, files

    return draw


def test_the_largest_mistakes_in_descending_order(drawn):
    worst = WorstImages(3)
    worst.add({"raw": [(0.5, "a"), (0.0, "b"), (2.0, "c")]}, [0, 1, 2])
    worst.add({"raw": [(1.0, "e"), (0.7, "f")], "ema": [(9.0, "h"), (0.0, "i")]}, [4, 5])
    seen, files = drawn(worst)
    assert seen == [(2, "c"), (4, "e"), (5, "f")] and list(files) == ["worst_1.png", "worst_2.png", "worst_3.png"]
    assert all(content.startswith(b"\x89PNG") for content in files.values())


def test_equal_mistakes_do_not_depend_on_the_batches(drawn):
    one, other = WorstImages(2), WorstImages(2)
    one.add({"raw": [(1.0, "a"), (1.0, "b"), (1.0, "c")]}, [0, 1, 2])
    for index, name in ((2, "c"), (1, "b"), (0, "a")):
        other.add({"raw": [(1.0, name)]}, [index])
    assert drawn(one) == drawn(other) and drawn(one)[0] == [(0, "a"), (1, "b")]


def test_images_that_are_gone_and_none_at_all(drawn):
    worst = WorstImages(3)
    worst.add({"raw": [(1.0, "a"), (2.0, "b")]}, [0, 3])
    assert drawn(worst)[0] == [(0, "a")]
    assert drawn(worst, "ema") == ([], {})
    nothing = WorstImages(0)
    nothing.add({"raw": [(1.0, "a")]}, [0])
    assert drawn(nothing) == ([], {})


def test_an_evaluation_shows_them(run_command, trained, class_folders, tmp_path):
    """Labels are turned around: what the model gets right is then wrong."""
    turned = tmp_path / "data" / "val"
    turned.mkdir(parents=True)
    for name, other in (("cat", "dog"), ("dog", "eel"), ("eel", "cat")):
        (turned / name).symlink_to(class_folders / "val" / other)
    (tmp_path / "data" / "train").symlink_to(class_folders / "train")
    words = ["validate", "--ckpt_path", trained / "last.ckpt", "--data.root", tmp_path / "data"]
    for count, expected in ((2, 2), (0, 0)):
        folder = tmp_path / str(count) / "validate"
        code, _, err = run_command(*words, "--out", tmp_path / str(count), "--worst_images", count)
        assert code == 0, err
        page = (folder / "report.html").read_text()
        assert len(list(folder.glob("worst_*.png"))) == len(re.findall('alt="worst_', page)) == expected
