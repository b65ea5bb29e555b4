"""`vitgraft check-data` for semantic segmentation: every pair of image and label file.

Errors: images without labels, files that can't be read (a run leaves them out), labels of another size than their
image, with colors instead of indices, with values that are no class, splits with ignored pixels only, images that are
in two splits. Warnings: label files without an image or with ignored pixels only, classes without a pixel in a split.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from vitgraft.data.decode import open_image
from vitgraft.data.findings import Check, Examined, Finding, Options, SetReport, noted, splits_needed
from vitgraft.data.label_maps import (
    LabelHistogram,
    LabelRule,
    Pairs,
    decode_labels,
    find_pairs,
    read_class_names,
    unknown_classes,
)  # fmt: skip
from vitgraft.data.label_table import TableRule, paths_of_colors, read_colors, rule_of_values
from vitgraft.data.layout import ANNOTATIONS, IMAGES, passed_over, semantic_splits
from vitgraft.data.learnable import class_findings
from vitgraft.data.readers.base import of_split
from vitgraft.data.readers.folder_or_tar import Files
from vitgraft.errors import DataError, ImageError
from vitgraft.terminal import number_of

__all__ = ["PairCheck", "open_path"]


def open_path(path: str, options: Options, findings: list[Finding]) -> Iterator[Check]:
    """All splits of a folder or tar in ADE20K's layout; what can't be opened is added to the findings."""
    with noted(findings, "set", path):
        files = Files(path)
        rule = None
        if options.colors is not None:
            rule = read_colors(options.colors, files)
        elif options.label_values:
            rule = rule_of_values(options.label_values)
        names = read_class_names(files) if rule is None else list(rule.class_names)
        splits = semantic_splits(files)
        if not splits:
            raise DataError(f"no splits: wanted {IMAGES}/SPLIT and {ANNOTATIONS}/SPLIT, or folders images and masks")
        if more := passed_over(files, paths_of_colors(options.colors, files)):
            findings.append(Finding("warning", "passed over", path, more))
        for pair in splits.values():
            with noted(findings, "set", f"{path}/{pair[0]}"):
                pairs = find_pairs(files, pair, options.image_suffix, options.label_suffix)
                yield PairCheck(pairs, names, options, rule)
        suffixes = (options.image_suffix, options.label_suffix)
        lacking = [name for name in ("training", "validation") if of_split(name, splits) is None]
        findings += splits_needed(path, lambda name: find_pairs(files, name, *suffixes), lacking)


class PairCheck(Check):
    """The pairs of one split.

    Args:
        pairs: The image and label files.
        class_names: From a file beside them; None: there is none.
        options: The meaning of the values.
        rule: The meaning of the values, where it is known; None: `infer_rule` sets it.
    """

    def __init__(self, pairs: Pairs, class_names: list[str] | None, options: Options, rule: LabelRule | None = None):
        super().__init__(pairs.where, pairs.images)
        self.pairs, self.class_names, self.options, self.rule = pairs, class_names, options, rule

    def __getitem__(self, index: int) -> Examined:
        name = self.pairs.labels.name(index)
        try:
            data = self.pairs.labels.read(index)
            values = (self.rule.decode if self.rule else decode_labels)(data, name)
        except (ImageError, DataError) as error:
            examined = self.examine(index)
            if isinstance(error, DataError):
                return examined._replace(errors=examined.errors | {"colors": str(error)})
            both = [examined.errors["unreadable"]] if "unreadable" in examined.errors else []
            return examined._replace(errors=examined.errors | {"unreadable": "; ".join([*both, str(error)])})
        examined = self.examine(index, values.shape)
        errors = dict(examined.errors)
        if examined.sizes and values.shape not in examined.sizes:
            height, width = examined.sizes[0]
            errors["size"] = (
                f"{name}: labels of {values.shape[1]} x {values.shape[0]} pixels for an image of {width} x {height}; "
                "resize one of them, labels without interpolation"
            )
        found, counts = np.unique(values, return_counts=True)
        palette = open_image(data, name).mode == "P" and not isinstance(self.rule, TableRule)
        return examined._replace(errors=errors, values=found, counts=counts, palette=palette)

    def file_finding(self, kind: str, message: str, items: list[str], gone: int, always: bool = False) -> Finding:
        return super().file_finding(kind, message, items, gone, always or kind == "size")

    def look_further(self) -> None:
        """Counts the values of more label files until there are two classes, so that a rare one is found."""
        first, last = self.rule.class_values
        seen: set[int] = set()
        for index in [*self.examined, *(index for index in range(len(self)) if index not in self.examined)]:
            if len(seen) > 1:
                return
            if index not in self.examined:
                self.examined[index] = self[index]
            values = self.examined[index].values
            seen |= set() if values is None else {int(value) for value in values if first <= value <= last}

    def infer_rule(self, checks: Sequence[PairCheck]) -> Iterator[Finding]:
        """Finds one rule for all splits, and warns of what of it was not set but inferred."""
        options = self.options
        if isinstance(self.rule, TableRule):
            return
        found = [examined.values for one in checks for examined in one.examined.values() if examined.values is not None]
        values = np.unique(np.concatenate([*found, np.zeros(0, np.int32)]))
        inside = values if options.ignore_index is None else values[values != options.ignore_index]
        most = min(int(inside.max(initial=-1)), 254)
        classes = options.num_classes or next((len(one.class_names) for one in checks if one.class_names), None)
        reduce = options.reduce_zero_label
        if reduce is None:
            reduce = classes is not None and most >= classes
        count = classes or max(1, most + 1 - int(reduce))
        for one in checks:
            one.rule = LabelRule(count, reduce, options.ignore_index)
        if classes is None:
            text = f"{unknown_classes(self.pairs.where)}; inferred here as {count}, by the largest value ({most})"
            yield self.finding("error", "classes", text.removeprefix(f"{self.pairs.where}: "))
        if options.reduce_zero_label is None and found:
            text = f"inferred as {str(reduce).lower()}, so that {self.rule.expected()}"
            yield self.finding("warning", "numbering", f"reduce_zero_label is not set: {text}")

    @property
    def histogram(self) -> LabelHistogram:
        """The values of the label files that were examined."""
        histogram = LabelHistogram(self.rule)
        for index, examined in self.examined.items():
            if examined.values is not None:
                histogram.add(examined.values, examined.counts, self.pairs.labels.name(index))
        return histogram

    def report(self) -> SetReport:
        counts, rule = self.histogram.classes().tolist(), self.rule
        named = self.class_names and len(self.class_names) == rule.num_classes
        names = self.class_names if named else map(str, range(rule.num_classes))
        return SetReport(self.where, len(self), dict(zip(names, counts, strict=True)), "pixels")

    def learnable(self) -> Iterator[Finding]:
        pairs, histogram = self.pairs, self.histogram
        if items := [f"{image}: no {expected}.png" for image, expected in pairs.unpaired]:
            yield self.finding("error", "missing", number_of(len(items), "images without a label file"), items)
        if pairs.without_image:
            message = number_of(len(pairs.without_image), "label files without an image")
            yield self.finding("warning", "missing", message, pairs.without_image)
        if palettes := [pairs.labels.name(index) for index, one in self.examined.items() if one.palette]:
            message = f"{len(palettes)} of {len(self.examined)} label files are palette images: their indices count"
            yield self.finding("warning", "palette", message, palettes)
        found = list(histogram.findings(self.where))
        yield from found
        per_class = self.report().per_class
        if histogram.files and not any(finding.stops for finding in found):
            yield from class_findings(self.where, per_class, "pixels", histogram.hint())
        empty = [name for name, count in per_class.items() if not count]
        if empty and any(per_class.values()) and self.has_all and not any(finding.stops for finding in found):
            message = number_of(len(empty), "classes have no pixel in the split: no IoU can be measured of them there")
            hint = "" if self.class_names else histogram.hint()
            yield self.finding("warning", "empty class", f"{message}{hint and '; '}{hint}", empty)

    def findings(self, first: PairCheck) -> Iterator[Finding]:
        yield from ()
