"""The numbers are COCO's: equal to pycocotools', 1 for the truth itself, 0 for nothing, each image counted once."""

import contextlib
import csv
import io
import json

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from conftest import shared

from vitgraft.data.coco import open_coco
from vitgraft.data.detection_targets import Objects, encode_mask, to_rle
from vitgraft.metrics.detection import MEASURES, DetectionMetrics
from vitgraft.metrics.detection_report import print_report, write_report
from vitgraft.terminal import console

NAMES = ["nut", "bolt", "nail"]
IDS = (3, 7, 12)


def rectangle(size, box):
    mask = np.zeros(size, dtype=np.uint8)
    x, y, w, h = box
    mask[y : y + h, x : x + w] = 1
    return mask


def made_up(images: int = 12, seed: int = 0):
    """Images with objects of all sizes, crowds among them, and detections: near, far, doubled, of the wrong class."""
    rng = np.random.default_rng(seed)
    found, targets = [], []
    for number in range(images):
        size = (int(rng.integers(100, 300)), int(rng.integers(100, 300)))
        annotations, boxes, labels, masks = [], [], [], []
        for _ in range(int(rng.integers(0, 9))):
            w, h = (int(rng.integers(2, side // 2)) for side in size[::-1])
            x, y = int(rng.integers(0, size[1] - w)), int(rng.integers(0, size[0] - h))
            label = int(rng.integers(1, 3))  # no nail is anywhere
            mask = rectangle(size, (x, y, w, h))
            mask[y : y + h // 3, x : x + w // 3] = 0
            annotations.append(
                {
                    "bbox": [x, y, w, h],
                    "category_id": IDS[label - 1],
                    "iscrowd": int(rng.random() < 0.2),
                    "area": int(mask.sum()),
                    "segmentation": encode_mask(mask),
                }
            )
            for _ in range(int(rng.integers(0, 3))):
                shift = rng.normal(0, 0.1, 4) * (w, h, w, h)
                near = (np.array([x, y, w, h]) + shift).clip(1)
                boxes.append([near[0], near[1], near[0] + near[2], near[1] + near[3]])
                labels.append(label if rng.random() < 0.8 else int(rng.integers(1, 4)))
                masks.append(rectangle(size, near.astype(int)))
        scores = rng.random(len(boxes))
        if len(scores) > 1:
            scores[1] = scores[0]  # ties
        found.append(
            {
                "boxes": torch.tensor(np.array(boxes).reshape(-1, 4)),
                "scores": torch.tensor(scores),
                "labels": torch.tensor(labels, dtype=torch.int64),
                "masks": torch.tensor(np.array(masks, dtype=np.uint8).reshape(-1, *size)),
            }
        )
        targets.append({"image_id": 100 - number, "orig_size": size, "objects": Objects(annotations, size, IDS)})
    return found, targets


def counted(found, targets, masks=True, names=NAMES):
    metric = DetectionMetrics(names, masks)
    for start in range(0, len(found), 5):
        metric.update(found[start : start + 5], targets[start : start + 5])
    return metric


def test_equal_to_pycocotools():
    coco = pytest.importorskip("pycocotools.coco")
    from pycocotools.cocoeval import COCOeval

    metric = counted(*made_up(40))
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


def truth_as_found(targets):
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
    report = counted(truth_as_found(targets), targets, names=source.class_names).report()
    for kind in ("box", "mask"):
        for measure in ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ar100"):
            assert report.values[f"{kind}_{measure}"] == 1.0
    assert report.num_images == len(source) and report.num_detections == report.num_objects


def test_nothing_found_is_0_and_nothing_to_find_is_none():
    found, targets = made_up(6)
    nothing = [{name: value[:0] for name, value in one.items()} for one in found]
    report = counted(nothing, targets).report()
    assert report.values["box_ap"] == report.values["mask_ap50"] == report.values["box_ar100"] == 0
    empty = [{**one, "objects": Objects([], one["objects"].size, IDS)} for one in targets]
    report = counted(found, empty).report()
    assert report.values["box_ap"] is None and report.num_objects == 0 and report.num_detections > 0
    report = DetectionMetrics(NAMES).report()
    assert report.values["mask_ap"] is None and report.num_images == 0


def test_boxes_alone_leave_masks_out():
    found, targets = made_up(6)
    with_masks = counted(found, targets).report()
    for one in found:
        del one["masks"]
    report = counted(found, targets, masks=False).report()
    assert report.values["mask_ap"] is None and set(report.detections) == {"bbox"}
    assert report.values["box_ap"] == with_masks.values["box_ap"]


def test_an_image_is_counted_once_and_reset_forgets():
    found, targets = made_up(6)
    metric = counted(found + found, targets + targets)
    once = counted(found, targets).report()
    assert metric.report().numbers() == once.numbers()
    metric.reset()
    assert metric.report().num_images == 0


def test_detections_that_are_not_finite_are_left_out_and_counted():
    found, targets = made_up(6)
    number = next(i for i, one in enumerate(found) if len(one["boxes"]) > 2)
    found[number]["boxes"][0, 1] = float("nan")
    found[number]["scores"][1] = float("inf")
    report = counted(found, targets).report()
    assert report.num_nonfinite == 2 and report.num_detections == sum(len(one["boxes"]) for one in found) - 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"masks": None}, "no masks; as many of each are needed"),
        ({"labels": torch.full((99,), 1)}, "99 labels"),
        ({"masks": torch.zeros(3, 7, 7)}, r"masks \(3, 7, 7\) for an image of"),
        ({"labels": torch.tensor([0, 1, 2])}, "labels 0 to 2 for 3 classes"),
    ],
)
def test_what_does_not_belong_together(change, words):
    target = {"image_id": 1, "objects": Objects([], (20, 30), IDS)}
    good = {"boxes": torch.ones(3, 4), "scores": torch.ones(3), "labels": torch.ones(3).long()}
    good |= {"masks": torch.zeros(3, 20, 30)}
    DetectionMetrics(NAMES).update([good], [target])
    with pytest.raises(ValueError, match=words):
        DetectionMetrics(NAMES).update([good | change], [target])


def _process(rank: int, port: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    found, targets = made_up(9)
    shares = [[0, 1, 2, 3, 4, 5, 6], [4, 7, 8]]  # unequal, and one image in both
    metric = counted([found[i] for i in shares[rank]], [targets[i] for i in shares[rank]])
    numbers = metric.report().numbers()
    with open(f"{folder}/{rank}.json", "w") as file:
        json.dump(numbers, file)
    torch.distributed.destroy_process_group()


def test_processes_count_each_image_once(tmp_path):
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_process, (port, str(tmp_path)), nprocs=2)
    alone = counted(*made_up(9)).report().numbers()
    for rank in range(2):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == alone


def test_files(tmp_path):
    found, targets = made_up(10)
    report = counted(found, targets).report()
    written = write_report(tmp_path, report, NAMES, "validate: made up", {"model": "none"}, ["x.jpg: broken"])
    assert {path.name for path in written} == {path.name for path in tmp_path.iterdir()}
    values = json.loads((tmp_path / "metrics.json").read_text())
    assert values["metrics"]["box_ap"] == report.values["box_ap"] and values["metrics"]["num_unreadable"] == 1
    assert values["model"] == "none" and values["unreadable"] == ["x.jpg: broken"]
    rows = list(csv.DictReader(io.StringIO((tmp_path / "classes.csv").read_text())))
    assert [row["name"] for row in rows] == NAMES and float(rows[0]["mask_ap"]) == report.classes[0]["mask_ap"]
    assert rows[2]["box_ap"] == "" and "| nail | 0 |" in (tmp_path / "classes.md").read_text()
    # other tools can read them: pycocotools' loadRes wants exactly these names
    segm = json.loads((tmp_path / "detections.segm.json").read_text())
    assert set(segm[0]) == {"image_id", "category_id", "score", "segmentation"}
    assert set(json.loads((tmp_path / "detections.bbox.json").read_text())[0]) == {
        "image_id",
        "category_id",
        "score",
        "bbox",
    }
    assert {one["category_id"] for one in segm} <= set(IDS) and isinstance(segm[0]["segmentation"]["counts"], str)
    out = console(file=io.StringIO(), width=200)
    print_report(out, report, NAMES, "validate: made up", 1)
    text = out.file.getvalue()
    assert "AP small" in text and f"{100 * report.values['box_ap50']:.2f} %" in text and "bolt" in text
    assert "1 unreadable images" in text
    with pytest.raises(ValueError, match="2 class names for 3 classes"):
        write_report(tmp_path, report, NAMES[:2])
