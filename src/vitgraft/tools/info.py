"""`vitgraft info`: which blocks of a model carry grafts, on which levels, and what they cost."""

import itertools
from dataclasses import dataclass

from torch import nn

from vitgraft.config import GraftConfig
from vitgraft.grafting import grafts
from vitgraft.terminal import print_whole
from vitgraft.tools.count import count_macs_by_module, count_params

Size = tuple[int, int]


@dataclass(frozen=True)
class GraftInfo:
    """One graft: its block's name, grid and channels, its levels' grids (finest first), its cost."""

    block: str
    feat_size: Size
    dim: int
    left: list[Size]
    levels: list[Size]
    params: int
    macs: int


@dataclass(frozen=True)
class ModelInfo:
    """A model and its grafts; the counts of the model include the grafts."""

    params: int
    macs: int
    config: dict
    grafts: list[GraftInfo]

    @property
    def graft_params(self) -> int:
        return sum(graft.params for graft in self.grafts)

    @property
    def graft_macs(self) -> int:
        return sum(graft.macs for graft in self.grafts)


def describe_model(model: nn.Module, input_size: tuple[int, int, int]) -> ModelInfo:
    """Counts a model and each of its grafts; grids are the ones that the grafts were built for.

    Args:
        model: Grafted or not.
        input_size: (channels, height, width) of the image that MAC are counted for.
    """
    macs = count_macs_by_module(model, input_size)
    found = []
    for block, graft in grafts(model).items():
        H, W = graft.feat_size
        found.append(
            GraftInfo(
                block,
                (H, W),
                graft.dim,
                [(H * 2**i, W * 2**i) for i in range(len(graft.left_levels), 0, -1)],
                graft.nominal_sizes,
                count_params(graft),
                macs.get(f"{block}.graft", 0),
            )
        )
    config = getattr(model, "graft_config", None)
    return ModelInfo(count_params(model), macs[""], config.to_dict() if config else {}, found)


def print_terminal(title: str, info: ModelInfo, console) -> None:
    """Prints the result of `describe_model` as a tree; neighboring blocks with equal grafts have one branch."""
    from rich.markup import escape
    from rich.tree import Tree

    tree = Tree(f"[bold]{escape(title)}[/bold]  {_cost(info.params, info.macs)}", highlight=False)
    tree.add(f"backbone  {_cost(info.params - info.graft_params, info.macs - info.graft_macs)}")
    if not info.grafts:
        tree.add("no grafts")
        print_whole(console, tree)
        return
    fraction = f"{info.graft_params / info.params:.1%} of the parameters, {info.graft_macs / info.macs:.1%} of the MAC"
    branch = tree.add(f"{len(info.grafts)} grafts  {_cost(info.graft_params, info.graft_macs)}  ({fraction})")
    for first, *others in _groups(info.grafts):
        name = f"{first.block} ... {others[-1].block} ({len(others) + 1} blocks)" if others else first.block
        cost = _cost(sum(one.params for one in (first, *others)), sum(one.macs for one in (first, *others)))
        node = branch.add(f"[bold]{escape(name)}[/bold]  {_size(first.feat_size)}, {first.dim} channels  {cost}")
        for size in first.left:
            node.add(f"level {_size(size)} above the backbone")
        for size in first.levels:
            node.add(f"level {_size(size)}")
    defaults = GraftConfig().to_dict()
    changed = [f"{name} = {value!r}" for name, value in info.config.items() if value != defaults[name]]
    options = tree.add("options other than the defaults" if changed else "options: all defaults")
    for line in changed:
        options.add(escape(line))
    print_whole(console, tree)


def _groups(infos: list[GraftInfo]) -> list[list[GraftInfo]]:
    """Grafts that are alike and on blocks next to each other (blocks.3, blocks.4)."""

    def key(numbered: tuple[int, GraftInfo]) -> tuple:
        number, graft = numbered
        parent, _, index = graft.block.rpartition(".")
        offset = int(index) - number if index.isdigit() else graft.block  # the same as long as blocks are neighbors
        return parent, offset, graft.feat_size, graft.dim, graft.left, graft.levels

    return [[graft for _, graft in group] for _, group in itertools.groupby(enumerate(infos), key)]


def _cost(params: int, macs: int) -> str:
    return f"{params / 1e6:.3f} M parameters, {macs / 1e9:.3f} G MAC"


def _size(size: Size) -> str:
    return f"{size[0]} x {size[1]}"
