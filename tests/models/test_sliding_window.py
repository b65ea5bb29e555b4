import pytest
import torch
from torch import nn

from vitgraft.models.sliding_window import infer, infer_rows, window_starts


class Pixelwise(nn.Module):
    """Logits that depend on each pixel alone, so that windows and the whole image agree."""

    def __init__(self, classes=4):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, classes, 1)
        self.sizes = []

    def forward(self, x):
        self.sizes.append(tuple(x.shape[2:]))
        return self.conv(x)


class Brightness(nn.Module):
    """Logits that depend on the whole window."""

    def forward(self, x):
        mean = x.mean((1, 2, 3), keepdim=True).expand(-1, 1, *x.shape[2:])
        return torch.cat([mean, torch.zeros_like(mean)], 1)


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


@pytest.mark.parametrize("size", [(40, 40), (41, 67), (23, 100), (64, 17)])
@pytest.mark.parametrize(("window", "stride"), [(32, None), (24, 24), (20, 7)])
def test_windows_of_a_pixelwise_model_change_nothing(size, window, stride):
    model, image = Pixelwise(), torch.randn(2, 3, *size)
    whole = infer(model, image)
    torch.testing.assert_close(whole, model.conv(image).softmax(1))
    torch.testing.assert_close(infer(model, image, window=window, stride=stride), whole)
    strips = list(infer_rows(model, image, window, stride))
    assert [top for top, _ in strips] == [sum(s.shape[2] for _, s in strips[:i]) for i in range(len(strips))]
    torch.testing.assert_close(torch.cat([strip for _, strip in strips], 2), whole)
    assert max(strip.shape[2] for _, strip in strips) <= window


def test_overlapping_windows_are_averaged():
    image = torch.randn(1, 3, 7, 9)
    model, sums, counts = Brightness(), torch.zeros(1, 2, 7, 9), torch.zeros(7, 9)
    for top in (0, 3):
        for left in (0, 3, 5):
            part = image[:, :, top : top + 4, left : left + 4]
            sums[:, :, top : top + 4, left : left + 4] += model(part)
            counts[top : top + 4, left : left + 4] += 1
    torch.testing.assert_close(infer(model, image, window=4, stride=3), (sums / counts).softmax(1))


def test_window_starts_cover_the_side_once():
    for side in range(1, 60):
        for window, stride in ((8, 8), (8, 3), (20, None)):
            starts = window_starts(side, window, stride)
            covered = {p for s in starts for p in range(s, min(s + window, side))}
            assert covered == set(range(side)) and len(set(starts)) == len(starts)
            assert all(s + window <= side for s in starts) or starts == [0]


def test_scales_and_flips_are_averaged_and_resized_to_the_label():
    model, image = Pixelwise(), torch.randn(1, 3, 24, 36)
    result = infer(model, image, scales=(0.5, 1.0), flip=True, size=(30, 50))
    assert model.sizes == [(12, 18)] * 2 + [(24, 36)] * 2
    resize = nn.functional.interpolate
    parts = []
    for scale in (0.5, 1.0):
        small = resize(image, scale_factor=scale, mode="bilinear")
        parts.append(resize(model.conv(small), (30, 50), mode="bilinear").softmax(1))  # a flip changes nothing here
    torch.testing.assert_close(result, sum(parts) / 2, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(result.sum(1), torch.ones(1, 30, 50))


def test_a_flip_is_undone():
    class Left(nn.Module):  # the left half is one class, whatever the image
        def forward(self, x):
            columns = torch.arange(x.shape[3]) < x.shape[3] // 2
            ones = torch.where(columns, 5.0, -5.0).expand(x.shape[0], 1, *x.shape[2:])
            return torch.cat([ones, -ones], 1)

    result = infer(Left(), torch.zeros(1, 3, 4, 8), flip=True)
    torch.testing.assert_close(result, torch.full_like(result, 0.5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 0}, "window=0"),
        ({"stride": 4}, "stride=4: only with a window"),
        ({"window": 8, "stride": 9}, "stride=9: give 1 to 8"),
        ({"scales": ()}, "one or more factors"),
        ({"scales": (1.0, 0.0)}, "above 0"),
    ],
)
def test_what_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        infer(Pixelwise(), torch.zeros(1, 3, 8, 8), **options)
