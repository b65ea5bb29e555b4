"""`vitgraft info`: which blocks of a model carry grafts, on which levels, and what they cost."""

from dataclasses import dataclass

from torch import nn

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
        model: grafted or not.
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
    """Prints what `describe_model` found as a tree; neighbouring blocks with equal grafts share a branch."""
    from rich.markup import escape
    from rich.tree import Tree

    tree = Tree(f"[bold]{escape(title)}[/bold]  {_cost(info.params, info.macs)}", highlight=False)
    tree.add(f"backbone  {_cost(info.params - info.graft_params, info.macs - info.graft_macs)}")
    if not info.grafts:
        tree.add("no grafts")
        print_whole(console, tree)
        return
    share = f"{info.graft_params / info.params:.1%} of the parameters, {info.graft_macs / info.macs:.1%} of the MAC"
    branch = tree.add(f"{len(info.grafts)} grafts  {_cost(info.graft_params, info.graft_macs)}  ({share})")
    groups: list[list[GraftInfo]] = []
    for graft in info.grafts:
        if groups and _follows(graft, groups[-1][-1]):
            groups[-1].append(graft)
        else:
            groups.append([graft])
    for group in groups:
        first, last = group[0], group[-1]
        names = first.block if len(group) == 1 else f"{first.block} ... {last.block} ({len(group)} blocks)"
        cost = _cost(sum(graft.params for graft in group), sum(graft.macs for graft in group))
        node = branch.add(f"[bold]{escape(names)}[/bold]  {_size(first.feat_size)}, {first.dim} channels  {cost}")
        for size in first.left:
            node.add(f"level {_size(size)} above the backbone")
        for size in first.levels:
            node.add(f"level {_size(size)}")
    options = tree.add("options")
    for name, value in info.config.items():
        options.add(escape(f"{name} = {value!r}"))
    print_whole(console, tree)


def _follows(graft: GraftInfo, before: GraftInfo) -> bool:
    """Whether a graft is like the one before it and on the very next block: blocks.4 after blocks.3."""
    parent, _, index = graft.block.rpartition(".")
    next_block = parent == before.block.rpartition(".")[0] and index.isdigit()
    next_block = next_block and int(index) == int(before.block.rpartition(".")[2]) + 1
    alike = (graft.feat_size, graft.dim, graft.left, graft.levels)
    return next_block and alike == (before.feat_size, before.dim, before.left, before.levels)


def _cost(params: int, macs: int) -> str:
    return f"{params / 1e6:.3f} M parameters, {macs / 1e9:.3f} G MAC"


def _size(size: Size) -> str:
    return f"{size[0]} x {size[1]}"
