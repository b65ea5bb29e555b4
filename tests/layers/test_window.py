import pytest
import torch
from helpers import grid

from vitgraft.layers import window_partition, window_reverse


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
