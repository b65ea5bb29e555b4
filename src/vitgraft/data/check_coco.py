"""`vitgraft check-data` for COCO datasets: the json, every annotation and every image file.

Errors: a json that lacks what is needed, ids that are there twice, unknown images and categories, impossible boxes and
masks, files that are missing, can't be read or are of another size, images that are in two splits, splits with
different categories. Warnings: objects that training leaves out or clips, classes and images without objects.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from vitgraft.data.coco import CocoJson, find_images
from vitgraft.data.findings import Check, Examined, Finding, Options, SetReport, noted
from vitgraft.data.layout import find_jsons
from vitgraft.data.readers.base import ImageSource
from vitgraft.data.readers.folder_or_tar import Files
from vitgraft.errors import DataError

__all__ = ["CocoCheck", "open_path"]


def open_path(path: str, options: Options, findings: list[Finding]) -> Iterator[Check]:
    """All jsons with objects of a folder or tar.

    Args:
        path: Folder, tar, or one json, in `annotations` beside the images or among them.
        options: Not used.
        findings: What can't be opened is added.
    """
    with noted(findings, "set", path):
        if path.endswith(".json"):
            here = Path(path).parent
            files = Files(here.parent if here.name == "annotations" else here)
            names = [str(Path(path).relative_to(files.root))]
        else:
            files = Files(path)
            names = find_jsons(files)
        if not names:
            raise DataError("no annotations/*.json with images, annotations and categories")
        for name in names:
            with noted(findings, "json", f"{files.root}/{name}"):
                json, images = CocoJson(files, name, decode=True), None
                with noted(findings, "missing", json.where):
                    images = find_images(files, json) if json.images else None
                yield CocoCheck(json, images)


class CocoCheck(Check):
    """One json.

    Args:
        json: Its content.
        files: Its images in their order; None where they were not found.
    """

    def __init__(self, json: CocoJson, files: ImageSource | None):
        super().__init__(json.where, files)
        self.json = json
        self.names = {category["id"]: category["name"] for category in json.categories}

    def __getitem__(self, index: int) -> Examined:
        examined, (height, width) = super().__getitem__(index), self.json.sizes[index]
        if examined.sizes and (height, width) not in examined.sizes:
            upright = f"{examined.sizes[0][1]} x {examined.sizes[0][0]}"
            text = f"{self.files.name(index)}: {upright}, the json has {width} x {height}"
            return examined._replace(errors={"size": text})
        return examined

    def report(self) -> SetReport:
        counts = Counter(one["category_id"] for one in self.json.annotations if not one.get("iscrowd"))
        per_class = {name: counts[category] for category, name in sorted(self.names.items())}
        return SetReport(self.where, len(self.json.images), per_class, "objects")

    def findings(self, first: CocoCheck) -> Iterator[Finding]:
        yield from self.json.findings
        per_class = self.report().per_class
        if empty := [name for name, count in per_class.items() if not count]:
            message = f"{len(empty)} of {len(per_class)} classes have no object: no AP can be measured of them there"
            yield self.finding("warning", "empty class", message, empty)
        one, two = first.names, self.names
        if one != two:
            only = [
                f"{number}: {one.get(number, 'none')} / {two.get(number, 'none')}"
                for number in sorted({*one, *two})
                if one.get(number) != two.get(number)
            ]
            message = f"other categories than {first.where} has (there / here): {', '.join(only[:8])}"
            yield self.finding("error", "classes", message)
