"""Randomness is a function, not a state: what a draw depends on is named, and nothing has a history.

The augmentation of a sample is a function of (seed, epoch, index, repeat), the order of an epoch of (seed, epoch), what
a training step draws of (seed, step, rank). So neither the number of workers nor a resumed run changes anything, and a
checkpoint needs no generator states.
"""

import contextlib
import hashlib
import random
from collections.abc import Iterator

import numpy as np
import torch


def derive(seed: int, *what: int | str) -> int:
    """A seed for one purpose: the same on every machine, in every process and in every version of Python.

    Args:
        seed: The run's seed.
        what: What the draw depends on, such as `"augment", epoch, index`. 1 and "1" are different things, and so are
            `"ab", "c"` and `"a", "bc"`.

    Returns:
        0 to 2**63 - 1.

    Raises:
        TypeError: Something else than whole numbers and texts was named.
    """
    digest = hashlib.blake2b(digest_size=8)
    for part in (seed, *what):
        if isinstance(part, str):
            kind, text = b"s", part.encode()
        else:
            kind, text = b"i", str(_whole(part)).encode()
        digest.update(kind + str(len(text)).encode() + b":" + text)
    return int.from_bytes(digest.digest(), "big") >> 1


def _whole(part) -> int:
    try:
        return part.__index__()
    except AttributeError:
        raise TypeError(f"derive: {part!r} is {type(part).__name__}; seeds come from whole numbers and texts") from None


def seed_all(seed: int) -> None:
    """Seeds Python's, numpy's and PyTorch's global generators; about 20 microseconds, so it can be done every sample.

    CUDA's generators are seeded where CUDA is in use: `torch.manual_seed` would queue the call, with a stack trace, in
    a process that never touches the GPU.

    Args:
        seed: 0 to 2**63 - 1, as from `derive`.
    """
    random.seed(seed)
    np.random.seed((seed ^ seed >> 32) & 0xFFFFFFFF)  # numpy takes 32 bits
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized() and not torch.cuda._is_in_bad_fork():
        torch.cuda.manual_seed_all(seed)
    elif torch.backends.mps.is_available():
        torch.mps.manual_seed(seed)


@contextlib.contextmanager
def preserve_rng(cuda: bool = True) -> Iterator[None]:
    """Restores the global generators of Python, numpy and PyTorch at the end of the block.

    Args:
        cuda: Also those of the GPUs, which waits for them; where the block draws on the CPU only, leave it out.
    """
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    on_gpu = torch.cuda.get_rng_state_all() if cuda and torch.cuda.is_initialized() else None
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if on_gpu is not None:
            torch.cuda.set_rng_state_all(on_gpu)
