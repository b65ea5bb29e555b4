"""`vitgraft check-data` for datasets of objects: the json (or XML, or text files), every annotation, every image file.

Errors: a json that lacks what is needed, ids that are there twice, unknown images and categories, impossible boxes and
masks, files that are missing, can't be read or are of another size, images that are in two splits, splits with
different categories, no object to learn from, or too many that are left out. Warnings: objects that training leaves out
or clips, values and file names that are read as what they mean, classes and images without objects.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from vitgraft.data.annotations import Annotations
from vitgraft.data.coco import CocoJson, CocoSource, to_learn
from vitgraft.data.findings import (
    FILE_ERRORS,
    MAX_LEFT_OUT,
    Check,
    Examined,
    Finding,
    Options,
    SetReport,
    noted,
    splits_needed,
)
from vitgraft.data.layout import split_of_json
from vitgraft.data.learnable import left_out_findings
from vitgraft.data.readers.base import SPLITS, ImageSource
from vitgraft.data.readers.folder_or_tar import Files
from vitgraft.errors import DataError

__all__ = ["CocoCheck", "open_path"]


def open_path(path: str, options: Options, findings: list[Finding]) -> Iterator[Check]:
    """All splits with objects of a folder or tar.

    Args:
        path: Folder, tar, or one json, in `annotations` beside the images or among them.
        options: The largest fraction that may be left out.
        findings: What can't be opened is added.
    """
    with noted(findings, "set", path):
        if path.endswith(".json"):
            here = Path(path).parent
            files = Files(here.parent if here.name == "annotations" else here)
            names = [str(Path(path).relative_to(files.root))]
        else:
            files = Files(path)
            names = None
        annotations = Annotations(files, "coco" if names else options.format)
        names = names or annotations.splits
        if not names:
            raise DataError("no annotations/*.json with images, annotations and categories")
        if more := annotations.passed_over(names):
            findings.append(Finding("warning", "passed over", path, more))
        for name in names:
            with noted(findings, "json", f"{files.root}/{name}"):
                json, images = annotations.json(name, annotations.entries(name), decode=True), None
                with noted(findings, "missing", json.where):
                    images = annotations.images(json) if json.images else None
                split = split_of_json(name) if annotations.format == "coco" else name
                is_measured = any(split.lower() in names for names in SPLITS[1:])
                yield CocoCheck(json, images, options.max_left_out, None if is_measured else options.min_side)
        if not path.endswith(".json"):
            findings += splits_needed(path, annotations.find)


class CocoCheck(Check):
    """One json.

    Args:
        json: Its content, or the source that was made of it.
        files: Its images in their order; None where they were not found.
        max_left_out: Largest fraction of the annotations that may be left out.
        min_side: Images with a smaller side are not trained on, pixels; None where nothing is trained on the split.
        keep_empty: Whether images without objects are trained on.
    """

    def __init__(
        self,
        json: CocoJson | CocoSource,
        files: ImageSource | None,
        max_left_out: float = MAX_LEFT_OUT,
        min_side: int | None = None,
        keep_empty: bool = False,
    ):
        super().__init__(json.where, files)
        self.json, self.max_left_out, self.min_side, self.keep_empty = json, max_left_out, min_side, keep_empty

    def __getitem__(self, index: int) -> Examined:
        height, width = size = tuple(int(side) for side in self.json.sizes[index])
        examined = self.examine(index, size)
        if examined.sizes and size not in examined.sizes:
            upright = f"{examined.sizes[0][1]} x {examined.sizes[0][0]}"
            text = f"{self.files.name(index)}: {upright}, the json has {width} x {height}"
            return examined._replace(errors={"size": text})
        return examined

    def file_finding(self, kind: str, message: str, items: list[str], gone: int, always: bool = False) -> Finding:
        missing = self.json.missing
        if kind != "missing" or self.has_all or not missing:
            return super().file_finding(kind, message, items, gone, always)
        total = len(self)  # names of all are looked up, not of a sample
        message = f"{len(missing)} of {total} {FILE_ERRORS[kind][0]}"
        return super().file_finding(kind, message, missing, round(len(missing) / total * len(self.examined)), always)

    def report(self) -> SetReport:
        return SetReport(self.where, len(self.json.sizes), self.json.per_class, "objects")

    def learnable(self) -> Iterator[Finding]:
        json, leaves_out = self.json, self.min_side is not None and not self.keep_empty
        yield from (finding for finding in json.findings if finding.kind != "no objects" or leaves_out)
        examples = {finding.kind: finding.items for finding in json.findings}
        yield from left_out_findings(self.where, json.per_class, json.left_out, json.total, self.max_left_out, examples)
        if self.min_side and any(json.per_class.values()) and not len(to_learn(json, self.min_side, self.keep_empty)):
            text = (
                f"no image to train on: of {len(json.sizes)} none with an object has sides of at least {self.min_side} "
                "pixels; set data.min_side lower (--min-side of check-data)"
            )
            yield Finding("error", "nothing to learn", self.where, text, stops=True)
        empty = [name for name, count in json.per_class.items() if not count]
        if 0 < len(empty) < len(json.per_class):
            message = f"{len(empty)} of {len(json.per_class)} classes have no object to learn or measure AP of"
            yield self.finding("warning", "empty class", message, empty)

    def findings(self, first: CocoCheck) -> Iterator[Finding]:
        one, two = first.json.by_id, self.json.by_id
        if one != two:
            only = [
                f"{number}: {one.get(number, 'none')} / {two.get(number, 'none')}"
                for number in sorted({*one, *two})
                if one.get(number) != two.get(number)
            ]
            message = f"other categories than {first.where} has (there / here): {', '.join(only[:8])}"
            yield self.finding("error", "classes", message)
