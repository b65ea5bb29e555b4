"""The detector against written-out formulas, and on the data that real sets hold."""

import math

import pytest
import timm
import torch
from torch.nn import functional as F
from torchvision.models.detection.image_list import ImageList

import vitgraft
from vitgraft.models._rcnn import Anchors, Matcher, RoIAlignLevels, mask_targets, paste_masks
from vitgraft.models.mask_rcnn import MaskRCNN, pad_images

NARROW = {"fpn_channels": 16, "box_channels": 32, "mask_channels": 16, "mask_convs": 1, "proposals": (50, 50)}


def detector(graft=True, **options):
    torch.manual_seed(0)
    size = {"img_size": 64, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "dynamic_img_size": True}
    backbone = timm.create_model("vit_tiny_patch16_224", **size)
    if graft:
        vitgraft.graft(backbone, window_size=4)
    return MaskRCNN(backbone, 3, **{**NARROW, **options})


def target(boxes, size, labels=None):
    """Boxes with masks that fill them."""
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    masks = torch.zeros(len(boxes), *size, dtype=torch.uint8)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes.int().tolist(), strict=True):
        mask[y0:y1, x0:x1] = 1
    labels = torch.arange(len(boxes)) % 3 + 1 if labels is None else torch.tensor(labels)
    return {"boxes": boxes, "labels": labels, "masks": masks}


# the overrides, one by one


def test_anchors():
    anchors = Anchors((4, 64), 8, (0.5, 1.0, 2.0))
    level = anchors.of_level(4, (2, 3), "cpu")
    assert level.shape == (2 * 3 * 3, 4)
    side = 4 * 8
    for ratio, (x0, y0, x1, y1) in zip((0.5, 1, 2), level[(1 * 3 + 2) * 3 :].tolist(), strict=True):
        assert (x0 + x1) / 2 == pytest.approx(2 * 4) and (y0 + y1) / 2 == pytest.approx(1 * 4)
        assert (y1 - y0) / (x1 - x0) == pytest.approx(ratio)
        assert (y1 - y0) * (x1 - x0) == pytest.approx(side**2, rel=1e-5)  # not rounded
    # 800 pixels: 25 cells of 32, 13 of 64, where image size // map size is 61
    images = ImageList(torch.zeros(1, 3, 800, 800), [(800, 800)])
    maps = [torch.zeros(1, 1, 200, 200), torch.zeros(1, 1, 13, 13, dtype=torch.bfloat16)]
    (boxes,) = anchors(images, maps)
    assert boxes.dtype == torch.float32
    assert boxes[-1].reshape(2, 2).mean(0).tolist() == pytest.approx([12 * 64, 12 * 64])


def test_matching():
    quality = torch.tensor([[0.8, 0.5, 0.2, 0.1], [0.0, 0.31, 0.29, 0.0], [0.0, 0.0, 0.0, 0.29]])
    # 0: above 0.7. 1: between, but the second object's best, at least 0.3. 2: below 0.3. 3: an object's best, below 0.3
    assert Matcher(0.7, 0.3, 0.3)(quality).tolist() == [0, 1, -1, -1]
    assert Matcher(0.7, 0.3, 0.0)(quality).tolist() == [0, 1, -1, 2]
    # the best anchor of two objects is the last one's, also above the threshold
    shared = torch.tensor([[0.75, 0.2, 0.1], [0.5, 0.1, 0.05]])
    assert Matcher(0.7, 0.3, 0.3)(shared).tolist() == [1, -1, -1]


def test_rpn_losses():
    rpn = detector().rpn
    labels = [torch.tensor([1.0, 0, -1, 1]), torch.tensor([0.0, 0, 0, -1])]
    logits, deltas, targets = torch.randn(8, 1), torch.randn(8, 4), torch.randn(8, 4)
    scores, boxes = rpn.compute_loss(logits, deltas, labels, [targets[:4], targets[4:]])
    flat = [(0, 1), (1, 0), (3, 1), (4, 0), (5, 0), (6, 0)]  # index, label of those that count; 2 and 7 do not
    want = sum(math.log1p(math.exp(-x if y else x)) for x, y in ((logits[i].item(), y) for i, y in flat)) / len(flat)
    assert scores.item() == pytest.approx(want, rel=1e-5)
    want = sum((deltas[i] - targets[i]).abs().sum().item() for i, y in flat if y) / len(flat)
    assert boxes.item() == pytest.approx(want, rel=1e-5)


def test_box_losses():
    heads = detector().roi_heads
    labels = torch.tensor([0, 2, 3, 0, 1])
    logits, deltas, targets = torch.randn(5, 4), torch.randn(5, 16), torch.randn(5, 4)
    losses = heads.box_losses(logits, deltas, labels, targets)
    probs = logits.exp() / logits.exp().sum(1, keepdim=True)
    want = -sum(probs[i, c].log() for i, c in enumerate(labels)) / 5
    assert losses["loss_classifier"].item() == pytest.approx(want.item(), rel=1e-5)
    want = sum((deltas[i, 4 * c : 4 * c + 4] - targets[i]).abs().sum() for i, c in enumerate(labels) if c) / 5
    assert losses["loss_box_reg"].item() == pytest.approx(want.item(), rel=1e-5)
    # deltas are scaled by 0.1, 0.1, 0.2, 0.2
    box, moved = torch.tensor([[10.0, 10, 30, 50]]), torch.tensor([[12.0, 10, 32, 50]])
    assert heads.box_coder.encode([moved], [box])[0].tolist() == [pytest.approx([2 / 20 / 0.1, 0, 0, 0])]


def roi_align_plainly(level, box, stride, size):
    """One box on (C, H, W): aligned, and in each bin a grid of as many points as it has cells, bilinear, averaged."""
    x0, y0, x1, y1 = (side / stride - 0.5 for side in box)
    bin_w, bin_h = (x1 - x0) / size, (y1 - y0) / size
    nx, ny = math.ceil(bin_w), math.ceil(bin_h)
    C, H, W = level.shape

    def at(y, x):
        if y < -1 or y > H or x < -1 or x > W:
            return torch.zeros(C)
        y, x = min(max(y, 0), H - 1), min(max(x, 0), W - 1)
        top, left = int(y), int(x)
        bottom, right = min(top + 1, H - 1), min(left + 1, W - 1)
        fy, fx = y - top, x - left
        above = level[:, top, left] * (1 - fx) + level[:, top, right] * fx
        below = level[:, bottom, left] * (1 - fx) + level[:, bottom, right] * fx
        return above * (1 - fy) + below * fy

    result = torch.zeros(C, size, size)
    for i in range(size):
        for j in range(size):
            points = [
                at(y0 + (i + (a + 0.5) / ny) * bin_h, x0 + (j + (b + 0.5) / nx) * bin_w)
                for a in range(ny)
                for b in range(nx)
            ]
            result[:, i, j] = sum(points) / len(points)
    return result


def test_roi_align():
    pool = RoIAlignLevels((4, 8, 16, 32), 7)
    maps = {name: torch.randn(2, 2, 512 // s, 512 // s) for name, s in zip("0123", (4, 8, 16, 32), strict=True)}
    boxes = [torch.tensor([[3.0, 5, 40, 29], [10, 20, 300, 310.5]]), torch.tensor([[0.0, 0, 500, 511], [7, 7, 8, 8]])]
    # level = floor(log2(side / 56)): sides 30, 290, 505, 1
    assert pool.levels(torch.cat(boxes)).tolist() == [0, 2, 3, 0]
    assert pool.levels(torch.tensor([[0.0, 0, 112, 112], [0, 0, 111, 112]])).tolist() == [1, 0]
    found = pool(maps, boxes)
    wanted = [(0, 0, "0", 4), (0, 1, "2", 16), (1, 0, "3", 32), (1, 1, "0", 4)]
    for result, (image, i, name, stride) in zip(found, wanted, strict=True):
        want = roi_align_plainly(maps[name][image], boxes[image][i].tolist(), stride, 7)
        torch.testing.assert_close(result, want, rtol=1e-4, atol=1e-4)


def test_mask_targets():
    masks = torch.zeros(3, 40, 40, dtype=torch.bool)
    masks[1, 10:20, 10:20] = True
    found = mask_targets(masks, torch.tensor([[10.0, 10, 20, 20], [5, 10, 25, 20]]), torch.tensor([1, 1]), 4)
    assert found[0].tolist() == torch.ones(4, 4).tolist()
    # bins of 5 x 2.5 pixels: the middle two are the object
    assert found[1].tolist() == [[0, 1, 1, 0]] * 4
    masks[2, 0:20, 0:13] = True  # a bin that is half the object's counts
    assert mask_targets(masks, torch.tensor([[0.0, 0, 20, 20]]), torch.tensor([2]), 10)[0].sum(1).tolist() == [7] * 10
    assert mask_targets(masks, torch.zeros(0, 4), torch.zeros(0).long(), 4).shape == (0, 4, 4)


def test_mask_loss():
    heads = detector().roi_heads
    logits = torch.randn(2, 4, 28, 28)
    heads.mask_predictor.forward = lambda x: logits[: len(x)]
    maps = {str(i): torch.zeros(1, 16, 64 >> i, 64 >> i) for i in range(4)}
    one = target([[0, 0, 28, 28], [0, 0, 14, 28]], (40, 40))
    proposals = [torch.tensor([[0.0, 0, 28, 28], [30, 30, 40, 40], [0, 0, 28, 28]])]
    labels, matched = [torch.tensor([1, 0, 2])], [torch.tensor([0, 0, 1])]
    loss = heads.mask_loss(maps, proposals, labels, matched, [one], [(40, 40)])
    want = torch.stack([F.softplus(-logits[0, 1]), torch.cat([-logits[1, 2, :, :14], logits[1, 2, :, 14:]], 1)])
    want[1] = F.softplus(want[1])
    assert loss.item() == pytest.approx(want.mean().item(), rel=1e-5)


def test_pasted_masks():
    probs = torch.rand(2, 5, 5)
    boxes = torch.tensor([[3.3, 4.1, 15.7, 11.9], [-4.0, 18, 12, 30]])
    found = paste_masks(probs, boxes, (24, 20))
    want = torch.zeros(2, 24, 20, dtype=torch.bool)
    for n, (x0, y0, x1, y1) in enumerate(boxes.tolist()):
        padded = F.pad(probs[n], (1, 1, 1, 1))
        for row in range(24):
            for column in range(20):
                v, u = (row + 0.5 - y0) / (y1 - y0) * 5 - 0.5, (column + 0.5 - x0) / (x1 - x0) * 5 - 0.5
                if not (-1 < v < 5 and -1 < u < 5):
                    continue
                i, j = math.floor(v), math.floor(u)
                fv, fu = v - i, u - j
                a, b, c, d = (padded[i + 1 + di, j + 1 + dj].item() for di in (0, 1) for dj in (0, 1))
                value = (a * (1 - fu) + b * fu) * (1 - fv) + (c * (1 - fu) + d * fu) * fv
                want[n, row, column] = value >= 0.5
    assert torch.equal(found, want)
    assert paste_masks(torch.zeros(0, 5, 5), torch.zeros(0, 4), (4, 4)).shape == (0, 4, 4)
    outside = torch.tensor([[30.0, 30, 40, 40], [-9, -9, -8, -8]])
    assert not paste_masks(torch.ones(2, 5, 5), outside, (20, 20)).any()


def test_padding_and_numbers_of_the_authors():
    batch = pad_images([torch.ones(3, 33, 20), torch.ones(3, 10, 65)])
    assert batch.tensors.shape == (2, 3, 64, 96) and batch.image_sizes == [(33, 20), (10, 65)]
    assert batch.tensors.sum() == 3 * (33 * 20 + 10 * 65)  # zeros else, neither resized nor normalized
    model = MaskRCNN(timm.create_model("resnet10t"), 3)
    rpn, heads = model.rpn, model.roi_heads
    assert (rpn._pre_nms_top_n, rpn._post_nms_top_n) == (
        {"training": 2000, "testing": 1000},
        {"training": 1000, "testing": 1000},
    )
    anchors, boxes = rpn.fg_bg_sampler, heads.fg_bg_sampler
    assert (rpn.nms_thresh, anchors.batch_size_per_image, anchors.positive_fraction) == (0.7, 256, 0.5)
    assert (boxes.batch_size_per_image, boxes.positive_fraction) == (512, 0.25)
    assert (heads.score_thresh, heads.nms_thresh, heads.detections_per_img) == (0.05, 0.5, 100)
    assert heads.box_predictor.bbox_pred.out_features == 4 * 4  # class-specific


# what real sets hold


@pytest.mark.parametrize("graft", [False, True])
@pytest.mark.parametrize(
    "boxes",
    [
        [[], []],
        [[[5, 5, 30, 40]], []],
        [[[5, 5, 6, 6]], [[0, 0, 60, 50]]],
        [[[x, y, x + 2, y + 2] for x in range(0, 80, 2) for y in range(0, 50, 2)], []],
    ],
    ids=["all empty", "one empty", "one pixel", "1000 objects"],
)
def test_edge_cases_train_and_evaluate(graft, boxes):
    model = detector(graft)
    sizes = [(50, 90), (64, 61)]
    images = [torch.randn(3, *size) for size in sizes]
    losses = model(images, [target(box, size) for box, size in zip(boxes, sizes, strict=True)])
    assert set(losses) == {"loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg", "loss_mask"}
    loss = sum(losses.values())
    assert torch.isfinite(loss)
    loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
    with torch.no_grad():
        found = model.eval()(images, sizes=[(100, 180), (64, 61)])
    for one, size in zip(found, [(100, 180), (64, 61)], strict=True):
        assert one["masks"].shape[1:] == size and one["masks"].dtype == torch.bool
        assert len(one["boxes"]) == len(one["scores"]) == len(one["labels"]) == len(one["masks"])
        assert (one["boxes"][:, [0, 2]] <= size[1] + 1e-3).all() and (one["boxes"] >= 0).all()


def test_nothing_found():
    model = detector(score_threshold=1.0).eval()
    (one,) = model([torch.randn(3, 40, 40)])
    assert one["boxes"].shape == (0, 4) and one["masks"].shape == (0, 40, 40)


def test_boxes_alone():
    model = detector(masks=False)
    one = target([[5, 5, 30, 40]], (64, 64))
    del one["masks"]
    assert set(model([torch.randn(3, 64, 64)], [one])) == {
        "loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg",
    }  # fmt: skip
    (found,) = model.eval()([torch.randn(3, 64, 64)])
    assert set(found) == {"boxes", "scores", "labels"}


def test_bad_targets():
    model, image = detector(), torch.randn(3, 64, 64)
    with pytest.raises(ValueError, match="as many targets"):
        model([image])
    one = target([[5, 5, 30, 40]], (64, 64))
    with pytest.raises(ValueError, match="no masks; masks=False"):
        model([image], [{"boxes": one["boxes"], "labels": one["labels"]}])
    for bad in ([5, 5, 5, 9], [5, float("nan"), 9, 9]):
        with pytest.raises(ValueError, match="without area"):
            model([image], [{**one, "boxes": torch.tensor([bad]).float()}])


def test_low_precision_makes_no_low_precision_boxes():
    model = detector()
    with torch.autocast("cpu", torch.bfloat16):
        losses = model([torch.randn(3, 64, 64)], [target([[5, 5, 30, 40]], (64, 64))])
        assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())
        (found,) = model.eval()([torch.randn(3, 64, 64)])
    assert found["boxes"].dtype == found["scores"].dtype == torch.float32


def test_it_overfits_one_image():
    model = detector(box_channels=64, fpn_channels=32, anchor_scale=4)
    image = torch.zeros(3, 64, 64)
    image[:, 8:40, 4:30], image[0, 44:60, 30:62] = 1.0, -1.0
    one = target([[4, 8, 30, 40], [30, 44, 62, 60]], (64, 64), [1, 3])
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(80):
        optimizer.zero_grad()
        sum(model([image], [one]).values()).backward()
        optimizer.step()
    (found,) = model.eval()([image])
    assert found["labels"][:2].sort().values.tolist() == [1, 3]
    order = found["labels"][:2].argsort()
    torch.testing.assert_close(found["boxes"][order], one["boxes"], atol=4, rtol=0)
    masks = found["masks"][order]
    assert ((masks & one["masks"].bool()).sum((1, 2)) / (masks | one["masks"].bool()).sum((1, 2)) > 0.7).all()
