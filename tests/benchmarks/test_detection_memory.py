import pytest

from benchmarks.detection_memory import compare

SMALL = "graft_swin_tiny_patch4_window7_224:embed_dim=24:depths=[1,1,1,1]:num_heads=[1,2,4,8]:window_size=4"
HEADS = {"fpn_channels": 32, "box_channels": 1024, "mask_channels": 8, "mask_convs": 1, "proposals": (20, 20)}


def test_memory_of_a_training_step():
    names = [f"{SMALL}:graft.blocks=[]", f"{SMALL}:graft.levels=[1,1,0,0]:graft.blocks=[0,1]"]
    small, large = (compare(names, size, 1, **HEADS) for size in ((64, 96), (128, 192)))
    plain, grafted = small["peak_memory_bytes"].values()
    # weights, gradients and AdamW's two averages of the box head alone
    assert 4 * 4 * (32 * 49 * 1024 + 1024**2) < plain < grafted
    assert list(small["ratio"].values()) == [1.0, pytest.approx(grafted / plain, abs=1e-4)]
    assert all(large["peak_memory_bytes"][name] > small["peak_memory_bytes"][name] for name in names)
