"""The numbers are COCO's: equal to pycocotools', 1 for the truth itself, 0 for nothing, each image counted once."""

import contextlib
import io

import numpy as np
import pytest
import torch
from conftest import shared

pytest.importorskip("torchmetrics")
pytest.importorskip("faster_coco_eval")
from metric_samples import IDS, NAMES, detections, detector_metric

from vitgraft.data.coco import open_coco
from vitgraft.data.detection_targets import Objects, to_rle
from vitgraft.metrics.detection import MEASURES, DetectionMetrics


def test_equal_to_pycocotools():
    coco = pytest.importorskip("pycocotools.coco")
    from pycocotools.cocoeval import COCOeval

    metric = detector_metric(*detections(40))
    report = metric.report()
    truth = metric._truth(dict(sorted(metric.images.items())))
    reference = coco.COCO()
    reference.dataset = truth
    with contextlib.redirect_stdout(io.StringIO()):
        reference.createIndex()
        for kind, name in (("bbox", "box"), ("segm", "mask")):
            evaluation = COCOeval(reference, reference.loadRes([dict(one) for one in report.detections[kind]]), kind)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            ours = [report.values[f"{name}_{measure}"] for measure in MEASURES]
            assert min(ours) < 0.9 and max(ours) > 0.3  # there is something to compare
            np.testing.assert_allclose(ours, evaluation.stats[:12], atol=1e-6)
            # by class: mean over the IoUs and recalls of COCO's own array
            precision = evaluation.eval["precision"]
            for place, row in enumerate(report.classes):
                wanted = precision[:, :, place, 0, 2]
                assert row[f"{name}_ap"] == (pytest.approx(wanted.mean(), abs=1e-6) if wanted.min() > -1 else None)
    assert report.classes[2]["box_ap"] is None and report.classes[2]["objects"] == 0
    assert report.num_crowds > 0 and report.num_objects + report.num_crowds == len(truth["annotations"])


def truth_as_detections(targets):
    found = []
    for target in targets:
        objects = target["objects"]
        annotations = [one for one in objects.annotations if not one.get("iscrowd")]
        boxes = torch.tensor([one["bbox"] for one in annotations], dtype=torch.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        labels = [objects.category_ids.index(one["category_id"]) + 1 for one in annotations]
        masks = [to_rle(one["segmentation"], objects.size) for one in annotations]
        scores = torch.ones(len(annotations))
        found.append({"boxes": boxes, "scores": scores, "labels": torch.tensor(labels).long(), "masks": masks})
    return found


@pytest.mark.parametrize("name", ["nuclei", "coco_mini"])
def test_the_truth_itself_has_ap_1(name):
    source = open_coco(shared("data", name, f"{name}.tar"), "val")
    targets = [{"image_id": source.image_id(i), "objects": source.objects(i)} for i in range(len(source))]
    report = detector_metric(truth_as_detections(targets), targets, names=source.class_names).report()
    for kind in ("box", "mask"):
        for measure in ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ar100"):
            assert report.values[f"{kind}_{measure}"] == 1.0
    assert report.num_images == len(source) and report.num_detections == report.num_objects


def test_no_detections_are_0_and_no_objects_are_none():
    found, targets = detections(6)
    nothing = [{name: value[:0] for name, value in one.items()} for one in found]
    report = detector_metric(nothing, targets).report()
    assert report.values["box_ap"] == report.values["mask_ap50"] == report.values["box_ar100"] == 0
    empty = [{**one, "objects": Objects([], one["objects"].size, IDS)} for one in targets]
    report = detector_metric(found, empty).report()
    assert report.values["box_ap"] is None and report.num_objects == 0 and report.num_detections > 0
    report = DetectionMetrics(NAMES).report()
    assert report.values["mask_ap"] is None and report.num_images == 0


def test_boxes_alone_leave_masks_out():
    found, targets = detections(6)
    with_masks = detector_metric(found, targets).report()
    for one in found:
        del one["masks"]
    report = detector_metric(found, targets, masks=False).report()
    assert report.values["mask_ap"] is None and set(report.detections) == {"bbox"}
    assert report.values["box_ap"] == with_masks.values["box_ap"]


def test_an_image_is_counted_once_and_reset_clears():
    found, targets = detections(6)
    metric = detector_metric(found + found, targets + targets)
    once = detector_metric(found, targets).report()
    assert metric.report().numbers() == once.numbers()
    metric.reset()
    assert metric.report().num_images == 0


def test_detections_that_are_not_finite_are_left_out():
    found, targets = detections(6)
    number = next(i for i, one in enumerate(found) if len(one["boxes"]) > 2)
    found[number]["boxes"][0, 1] = float("nan")
    found[number]["scores"][1] = float("inf")
    report = detector_metric(found, targets).report()
    assert report.num_nonfinite == 2 and report.num_detections == sum(len(one["boxes"]) for one in found) - 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"masks": None}, "no masks; as many of each are needed"),
        ({"labels": torch.full((99,), 1)}, "99 labels"),
        ({"masks": torch.zeros(3, 7, 7)}, r"masks \(3, 7, 7\) for an image of"),
        ({"labels": torch.tensor([0, 1, 2])}, "labels 0 to 2 for 3 classes"),
    ],
)
def test_what_does_not_belong_together(change, message):
    target = {"image_id": 1, "objects": Objects([], (20, 30), IDS)}
    good = {"boxes": torch.ones(3, 4), "scores": torch.ones(3), "labels": torch.ones(3).long()}
    good |= {"masks": torch.zeros(3, 20, 30)}
    DetectionMetrics(NAMES).update([good], [target])
    with pytest.raises(ValueError, match=message):
        DetectionMetrics(NAMES).update([good | change], [target])
