"""Orders of training and evaluation, for one process and several."""

import itertools

import numpy as np
import pytest

from vitgraft.data.sampling import Draw, EvalOrder, TrainOrder


def epoch_of(order, epoch=0, start=0):
    order.set_position(epoch, start)
    return list(order)


def test_an_epoch_is_a_function_of_seed_and_epoch():
    first = epoch_of(TrainOrder(103, 7, 10), 2)
    assert first == epoch_of(TrainOrder(103, 7, 10), 2)
    assert first != epoch_of(TrainOrder(103, 7, 10), 3) and first != epoch_of(TrainOrder(103, 8, 10), 2)
    flat = list(itertools.chain(*first))
    assert len(first) == 10 and {len(batch) for batch in first} == {10}
    assert len({draw.index for draw in flat}) == 100 and {(draw.epoch, draw.repeat) for draw in flat} == {(2, 0)}


def test_the_order_of_an_epoch_never_changes():
    """Of any machine and version of numpy, or old runs can't be resumed."""
    assert TrainOrder(12, 0, 4).order(1).tolist() == [6, 8, 9, 7, 3, 10, 11, 0, 1, 5, 4, 2]


def test_an_epoch_can_start_at_any_batch():
    whole = epoch_of(TrainOrder(50, 0, 4), 5)
    for start in (0, 1, 7, 12):
        order = TrainOrder(50, 0, 4)
        assert epoch_of(order, 5, start) == whole[start:]
        assert len(order) == 12  # of the whole epoch


@pytest.mark.parametrize("repeats", [1, 3])
def test_processes_share_the_batches_of_one(repeats):
    alone = epoch_of(TrainOrder(600, 3, 12, repeats=repeats), 1)
    parts = [epoch_of(TrainOrder(600, 3, 3, 4, rank, repeats), 1) for rank in range(4)]
    assert len(alone) == len(parts[0])
    for number, batch in enumerate(alone):
        assert sorted(batch) == sorted(itertools.chain(*(part[number] for part in parts)))


def test_repeated_augmentation_is_deits():
    from timm.data.distributed_sampler import RepeatAugSampler

    for length, world_size in ((1000, 4), (300, 2), (256, 1), (100, 4)):
        order = [TrainOrder(length, 0, 1, world_size, rank, repeats=3) for rank in range(world_size)]
        shuffled = order[0].order(0)
        for rank in range(world_size):
            timms = RepeatAugSampler(range(length), world_size, rank, shuffle=False)
            ours = [draw.index for batch in order[rank] for draw in batch]
            assert ours == [shuffled[index] for index in timms]
        drawn = [tuple(draw) for one in order for batch in one for draw in batch]
        assert len(set(drawn)) == len(drawn)  # a repeat has a number of its own


def test_shards_are_shuffled_and_few_are_in_use_at_a_time():
    blocks = [7, 5, 9, 4, 6, 8]
    order = TrainOrder(39, 0, 3, blocks=blocks, blocks_at_once=2)
    shard_of = np.repeat(range(6), blocks)
    drawn = shard_of[order.order(0)]
    in_use = [set(group) for group in np.split(drawn, np.cumsum([len(g) for g in groups_of(drawn)])[:-1])]
    assert len(in_use) == 3 and all(len(group) == 2 for group in in_use)
    assert sorted(order.order(0)) == list(range(39)) and order.order(0).tolist() != order.order(1).tolist()


LABELS = np.array([0] * 40 + [1] * 3 + [2] * 20 + [-1] * 5 + [4] * 2)


def balanced(**options):
    return TrainOrder(**{"length": len(LABELS), "seed": 3, "batch_size": 4, "labels": LABELS, **options})


def test_a_balanced_order_draws_every_class_equally_often():
    drawn = [draw for batch in epoch_of(balanced(batch_size=70), 1) for draw in batch]
    counts = {label: sum(LABELS[draw.index] == label for draw in drawn) for label in (0, 1, 2, 4)}
    assert sorted(counts.values()) == [17, 17, 18, 18] and sum(counts.values()) == 70
    assert all(len({LABELS[d.index] for d in drawn[at : at + 4]}) == 4 for at in range(0, 68, 4)), "one of each"
    of_one = {label: [d.index for d in drawn if LABELS[d.index] == label] for label in counts}
    assert len(set(of_one[0])) == counts[0], "of a frequent class, none twice"
    assert {of_one[1].count(index) for index in (40, 41, 42)} <= {5, 6}, "of a rare class, all of them as often"
    assert len(set(drawn)) == len(drawn), "what comes again is augmented differently"
    assert sorted(d.repeat for d in drawn if d.index == 68) == list(range(sum(d.index == 68 for d in drawn)))


def test_a_balanced_order_never_changes():
    """A resumed run goes on with it."""
    assert balanced().order(0)[:8].tolist() == balanced().order(0)[:8].tolist()
    assert balanced().order(0).tolist() != balanced().order(1).tolist()
    assert balanced().order(0).tolist() != balanced(seed=4).order(0).tolist()
    small = TrainOrder(8, 0, 4, labels=np.array([0, 0, 0, 0, 0, 1, 1, 2]))
    assert small.order(1).tolist() == [1, 6, 7, 3, 5, 7, 6, 7]
    whole = epoch_of(balanced(), 5)
    assert epoch_of(balanced(), 5, 7) == whole[7:]


@pytest.mark.parametrize("repeats", [1, 3])
def test_processes_share_the_batches_of_a_balanced_order(repeats):
    labels = np.repeat(np.arange(3), (500, 60, 40))
    options = {"length": 600, "labels": labels, "repeats": repeats}
    alone = epoch_of(balanced(**options, batch_size=12), 1)
    parts = [epoch_of(balanced(**options, batch_size=3, world_size=4, rank=rank), 1) for rank in range(4)]
    for number, batch in enumerate(alone):
        assert sorted(batch) == sorted(itertools.chain(*(part[number] for part in parts)))
    drawn = list(itertools.chain(*alone))
    assert len(set(drawn)) == len(drawn)


def groups_of(drawn):
    """Runs of samples out of two shards each."""
    groups, seen = [[]], set()
    for shard in drawn:
        if shard not in seen and len(seen) == 2:
            groups.append([])
            seen = set()
        seen.add(shard)
        groups[-1].append(shard)
    return groups


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"length": 5, "batch_size": 8}, "batch_size=8: 5 training images fill no batch; at most 5 would work"),
        ({"length": 5, "batch_size": 3, "world_size": 2}, "in each of 2 processes; at most 2"),
        ({"length": 5, "batch_size": 0}, "batch_size=0"),
        ({"length": 5, "batch_size": 1, "rank": 1}, "rank=1"),
        ({"length": 5, "batch_size": 1, "blocks": [3]}, "blocks: they hold 3"),
        ({"length": 2, "batch_size": 1, "blocks": [2], "labels": np.zeros(2)}, "labels: "),
    ],
)
def test_wrong_numbers(arguments, message):
    with pytest.raises(ValueError, match=message):
        TrainOrder(seed=0, **arguments)


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
@pytest.mark.parametrize("batch_size", [1, 2, 4, 7])
@pytest.mark.parametrize("length", [1, 4, 7, 8, 9, 16, 17, 29])
def test_evaluation_has_every_sample_once(length, batch_size, world_size):
    orders = [list(EvalOrder(length, batch_size, world_size, rank)) for rank in range(world_size)]
    drawn = [draw for order in orders for batch in order for draw in batch]
    assert sorted(drawn) == [Draw(0, index) for index in range(length)]
    assert all(0 < len(batch) <= batch_size for order in orders for batch in order)
    if length >= world_size and batch_size > 1:
        assert len({len(order) for order in orders}) == 1
