"""WebDataset shards, local and over HTTP: exact order, bounded cache, clear errors."""

import functools
import http.server
import json
import subprocess
import sys
import tarfile
import threading

import numpy as np
import pytest
from datasets_on_disk import add_bytes, image_bytes

from vitgraft.data.images import ImageDataset
from vitgraft.data.loader import Loader
from vitgraft.data.readers.download import FileCache
from vitgraft.data.readers.open import open_source
from vitgraft.data.readers.shards import expand_braces
from vitgraft.data.sampling import TrainOrder
from vitgraft.data.transforms import Augmentation, Preprocessing, train_transform
from vitgraft.errors import DataError

SIZES = (3, 5, 2, 4)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VITGRAFT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write_shards(folder, label=lambda number: (".cls", str(number % 3).encode())):
    folder.mkdir(exist_ok=True)
    number = 0
    for shard, size in enumerate(SIZES):
        with tarfile.open(folder / f"train-{shard:03}.tar", "w") as tar:
            for _ in range(size):
                add_bytes(tar, f"n{number:04}.jpg", image_bytes(number))
                ending, data = label(number)
                add_bytes(tar, f"n{number:04}{ending}", data)
                number += 1
    return folder


@pytest.fixture
def server(tmp_path):
    """Serves a folder of shards; notes what is asked for."""
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            asked.append(self.path)

    root = write_shards(tmp_path / "served")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=root)) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_address[1]}", asked
        httpd.shutdown()


def test_braces():
    assert expand_braces("a-{08..11}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]
    assert expand_braces("{8..10}") == ["8", "9", "10"]
    assert expand_braces("{a,b}-{0..1}") == ["a-0", "a-1", "b-0", "b-1"]
    assert expand_braces("plain.tar") == ["plain.tar"]


@pytest.mark.parametrize("form", ["pattern", "split", "folder", "json", "names"])
def test_local_shards(tmp_path, form):
    labels = {
        "json": lambda number: (".json", json.dumps({"label": number % 3}).encode()),
        "names": lambda number: (".cls", ["cat", "dog", "eel"][number % 3].encode()),
    }
    folder = write_shards(tmp_path / "train", **({"label": labels[form]} if form in labels else {}))
    root, split = {
        "split": (folder, "train"),
        "folder": (tmp_path, "train"),
    }.get(form, (folder / "train-{000..003}.tar", None))
    source = open_source(root, split)
    assert source.labels.tolist() == [number % 3 for number in range(14)] and source.blocks == list(SIZES)
    assert [source.read(i) for i in range(14)] == [image_bytes(i) for i in range(14)]
    assert source.class_names == (("cat", "dog", "eel") if form == "names" else ("0", "1", "2"))
    assert source.name(3).endswith("train-001.tar/n0003.jpg")


def test_class_names_of_numbers(tmp_path):
    folder = write_shards(tmp_path / "train")
    assert open_source(folder, "train", class_names=["a", "b", "c"]).class_names == ("a", "b", "c")
    (folder / "classes.txt").write_text("x\ny\nz\n")
    assert open_source(folder, "train").class_names == ("x", "y", "z")
    (folder / "classes.txt").write_text("x\ny\n")
    with pytest.raises(DataError, match="label 2, but 2 class names"):
        open_source(folder, "train")


def test_workers_change_nothing_and_few_shards_are_open(tmp_path):
    source = open_source(write_shards(tmp_path / "train"), "train")
    transform = train_transform(Preprocessing((16, 16)), Augmentation())
    epochs = []
    for workers in (0, 1, 3):
        loader = Loader(ImageDataset(source, transform, 3, True), TrainOrder(14, 3, 4, blocks=source.blocks), workers)
        epochs.append([batch for _ in range(2) for batch in loader])
        loader.shut_down()
    for other in epochs[1:]:
        for one, two in zip(epochs[0], other, strict=True):
            assert (one.images == two.images).all() and (one.indices == two.indices).all()


def test_urls_are_fetched_once_and_indexed_once(server, cache, monkeypatch):
    url, asked = server
    for _ in range(2):
        source = open_source(url + "/train-{000..003}.tar")
        assert [source.read(i) for i in range(14)] == [image_bytes(i) for i in range(14)]
    assert sum("/train-" in line for line in asked) == 4
    assert source.labels.tolist() == [number % 3 for number in range(14)]


def test_the_cache_is_bounded(server, cache):
    url, _ = server
    shards = expand_braces(url + "/train-{000..003}.tar")
    files = FileCache(cache, 25_000)  # each shard takes 10,240 or 20,480 bytes
    for shard in [*shards, shards[0]]:
        assert files.local(shard).stat().st_size > 10_000
        assert sum(path.stat().st_size for path in cache.glob("*.tar")) <= 25_000
    with pytest.raises(DataError, match=r"cache_gb=2\.5e-05: 8 shards .* are in use at a time; give at least"):
        open_source(url + "/train-{000..003}.tar", cache_gb=25e-6)


def test_a_published_index_spares_the_walk(server, tmp_path, cache, monkeypatch):
    url, asked = server
    target = tmp_path / "served" / "vitgraft-index.npz"
    words = [
        sys.executable,
        "-m",
        "vitgraft.data.readers.shards",
        str(tmp_path / "served" / "train-{000..003}.tar"),
        str(target),
    ]
    subprocess.run(words, check=True)
    asked.clear()
    source = open_source(url + "/train-{000..003}.tar")
    assert len(source) == 14 and not any("/train-" in line for line in asked)
    assert source.read(4) == image_bytes(4) and sum("/train-" in line for line in asked) == 1


def test_urls_that_fail(server, cache, monkeypatch):
    url, _ = server
    with pytest.raises(DataError, match=r"train-004\.tar: HTTP Error 404"):
        open_source(url + "/train-{003..004}.tar")
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with pytest.raises(DataError, match=r"refused|can't be fetched"):
        open_source("http://127.0.0.1:9/a-{0..1}.tar")
    assert not list((cache / "shards").glob("*.tar.part*")) if cache.exists() else True


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a.jpg": b"x"}, r"1 of 1 images have no label, such as a; wanted a\.cls"),
        ({"a.cls": b"0"}, "no images in it"),
        ({"a.jpg": b"x", "a.json": b"{"}, "not a readable shard"),
        ({"a.jpg": b"x", "a.json": b"[1]"}, "have no label"),
    ],
)
def test_broken_shards(tmp_path, files, message):
    with tarfile.open(tmp_path / "train-0.tar", "w") as tar:
        for name, data in files.items():
            add_bytes(tar, name, data)
    with pytest.raises(DataError, match=message):
        open_source(tmp_path, "train")


def test_a_shard_cut_short(tmp_path):
    folder = write_shards(tmp_path / "train")
    path = folder / "train-001.tar"
    path.write_bytes(path.read_bytes()[: 3 * 512 + 512 * int(np.ceil(len(image_bytes(3)) / 512)) - 1024])
    with pytest.raises(DataError, match=r"train-001\.tar: (cut short|not a readable tar)"):
        open_source(folder, "train")
