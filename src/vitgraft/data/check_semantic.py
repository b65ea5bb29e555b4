"""`vitgraft check-data` for semantic segmentation: every pair of image and label file.

Errors: images without labels, files that can't be read (a run leaves them out), labels of another size than their
image, with colours instead of indices, with values that are no class, splits with ignored pixels only, images that are
in two splits. Warnings: label files without an image or with ignored pixels only, classes without a pixel in a split.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from vitgraft.data.findings import Check, Examined, Finding, Options, SetReport, noted
from vitgraft.data.label_maps import (
    LabelHistogram,
    LabelRule,
    Pairs,
    decode_labels,
    find_pairs,
    read_class_names,
)  # fmt: skip
from vitgraft.data.layout import ANNOTATIONS, IMAGES, layout_start
from vitgraft.data.readers.folder_or_tar import Files
from vitgraft.errors import DataError, ImageError

__all__ = ["PairCheck", "open_path"]


def open_path(path: str, options: Options, findings: list[Finding]) -> Iterator[Check]:
    """All splits of a folder or tar in ADE20K's layout; what can't be opened is added to the findings."""
    with noted(findings, "set", path):
        files = Files(path)
        names, start = read_class_names(files), layout_start(files) or ""
        splits = sorted({split for kind in (IMAGES, ANNOTATIONS) for split in files.folders(f"{start}{kind}")})
        if not splits:
            raise DataError(f"no splits: wanted {IMAGES}/SPLIT and {ANNOTATIONS}/SPLIT")
        for split in splits:
            with noted(findings, "set", f"{path}/{start}{IMAGES}/{split}"):
                yield PairCheck(find_pairs(files, split, options.image_suffix, options.label_suffix), names, options)


class PairCheck(Check):
    """The pairs of one split.

    Args:
        pairs: The image and label files.
        class_names: From a file beside them; None: there is none.
        options: The meaning of the values.
    """

    def __init__(self, pairs: Pairs, class_names: list[str] | None, options: Options):
        super().__init__(pairs.where, pairs.images)
        self.pairs, self.class_names, self.options = pairs, class_names, options
        self.histogram: LabelHistogram | None = None

    def __getitem__(self, index: int) -> Examined:
        examined, name = super().__getitem__(index), self.pairs.labels.name(index)
        errors = dict(examined.errors)
        try:
            values = decode_labels(self.pairs.labels.read(index), name)
        except ImageError as error:
            both = [errors["unreadable"]] if "unreadable" in errors else []
            return examined._replace(errors=errors | {"unreadable": "; ".join([*both, str(error)])})
        except DataError as error:
            return examined._replace(errors=errors | {"colours": str(error)})
        if examined.sizes and values.shape not in examined.sizes:
            height, width = examined.sizes[0]
            errors["size"] = f"{name}: {values.shape[1]} x {values.shape[0]}, the image {width} x {height}"
        found, counts = np.unique(values, return_counts=True)
        return examined._replace(errors=errors, values=found, counts=counts)

    def infer_rule(self, checks: Sequence[PairCheck]) -> Iterator[Finding]:
        """Counts the values of all splits by one rule, and warns of what of it was not set but inferred."""
        options = self.options
        found = [examined.values for one in checks for examined in one.examined if examined.values is not None]
        values = np.unique(np.concatenate([*found, np.zeros(0, np.int32)]))
        inside = values if options.ignore_index is None else values[values != options.ignore_index]
        most = min(int(inside.max(initial=-1)), 254)
        classes = options.num_classes or next((len(one.class_names) for one in checks if one.class_names), None)
        reduce = options.reduce_zero_label
        if reduce is None:
            reduce = classes is not None and most >= classes
        count = classes or max(1, most + 1 - int(reduce))
        rule = LabelRule(count, reduce, options.ignore_index)
        for one in checks:
            one.histogram = LabelHistogram(rule)
            for index, examined in enumerate(one.examined):
                if examined.values is not None:
                    one.histogram.add(examined.values, examined.counts, one.pairs.labels.name(index))
        inferred = []
        if classes is None:
            inferred.append(f"num_classes is not set: inferred as {count}, by the largest value ({most})")
        if options.reduce_zero_label is None:
            text = f"inferred as {str(reduce).lower()}, so that {rule.expected()}"
            inferred.append(f"reduce_zero_label is not set: {text}")
        if inferred and found:
            yield self.finding("warning", "numbering", "; ".join(inferred))

    def report(self) -> SetReport:
        counts, rule = self.histogram.classes().tolist(), self.histogram.rule
        named = self.class_names and len(self.class_names) == rule.num_classes
        names = self.class_names if named else map(str, range(rule.num_classes))
        return SetReport(self.where, len(self), dict(zip(names, counts, strict=True)), "pixels")

    def findings(self, first: PairCheck) -> Iterator[Finding]:
        pairs, histogram = self.pairs, self.histogram
        if items := [f"{image}: no {expected}.png" for image, expected in pairs.unpaired]:
            yield self.finding("error", "missing", f"{len(items)} images without a label file", items)
        if pairs.without_image:
            message = f"{len(pairs.without_image)} label files without an image"
            yield self.finding("warning", "missing", message, pairs.without_image)
        yield from histogram.findings(self.where)
        per_class = self.report().per_class
        empty = [name for name, count in per_class.items() if not count]
        if empty and any(per_class.values()):
            message = f"{len(empty)} classes have no pixel in the split: no IoU can be measured of them there"
            yield self.finding("warning", "empty class", message, empty)
