"""Seeds that are functions of what they are for."""

import random
import subprocess
import sys

import numpy as np
import pytest
import torch

from vitgraft.randomness import derive, preserve_rng, seed_all


def draws():
    return random.random(), np.random.rand(), torch.rand(1).item()


def test_derive_is_stable_and_distinguishes():
    assert derive(0, "augment", 1, 2) == 6166176167742355484  # of any machine and version, or old runs can't be resumed
    different = [(0,), (1,), (0, "a"), (0, 1), (0, "1"), (0, 1, 2), (0, 12), (0, "ab", "c"), (0, "a", "bc"), (-1,)]
    assert len({derive(*what) for what in different}) == len(different)
    assert all(0 <= derive(seed) < 2**63 for seed in range(100))
    assert derive(np.int64(3), np.int32(4)) == derive(3, 4)
    with pytest.raises(TypeError, match=r"1\.5 is float"):
        derive(0, 1.5)


def test_derive_does_not_depend_on_the_hash_seed():
    code = "from vitgraft.randomness import derive; print(derive(5, 'order', 3))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(out) == derive(5, "order", 3)


def test_seed_all_and_preserve_rng():
    seed_all(derive(0, "here"))
    first = draws()
    seed_all(derive(0, "here"))
    with preserve_rng():
        seed_all(1)
        assert draws() != first
    assert draws() == first
