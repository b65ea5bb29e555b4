import pytest
import torch
from helpers import grid
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from vitgraft.layers import window_partition, window_reverse
from vitgraft.layers.window import shift_mask


@pytest.mark.parametrize("size,window", [((6, 9), (3, 3)), ((4, 10), (2, 5)), ((7, 7), (7, 7)), ((1, 3), (1, 1))])
def test_partition_is_row_major_and_reverse_undoes_it(size, window):
    x = grid(2, *size, 3)
    windows = window_partition(x, window)
    h, w = window
    expected = [
        x[b, top : top + h, left : left + w].reshape(h * w, 3)
        for b in range(2)
        for top in range(0, size[0], h)
        for left in range(0, size[1], w)
    ]
    assert torch.equal(windows, torch.stack(expected))
    assert torch.equal(window_reverse(windows, window, size), x)


def test_masks_are_kept_by_size_and_serve_training():
    x = torch.zeros(1)
    with torch.inference_mode():
        mask = shift_mask(x, (3, 3), (1, 1), (2, 5))
    assert shift_mask(torch.ones(2), (3, 3), (1, 1), (2, 5)) is mask and not mask.is_inference()
    assert shift_mask(x.double(), (3, 3), (1, 1), (2, 5)).dtype == torch.float64


def test_no_fake_tensor_is_kept():
    with FakeTensorMode() as mode:
        fake = shift_mask(mode.from_tensor(torch.zeros(1)), (3, 2), (1, 1), (2, 6))
        assert isinstance(fake, FakeTensor)
    assert type(shift_mask(torch.zeros(1), (3, 2), (1, 1), (2, 6))) is torch.Tensor
