"""Figure 1 (b) of the paper: accuracy against cost, and beside it what the cost means in speed on this machine."""

from dataclasses import dataclass
from typing import Any

from reproduction.paper import TABLES, PaperRow

__all__ = ["FAMILIES", "GRAFTED", "draw_tradeoff", "rows_of"]

# The families of tables 1 and 2 by the beginning of their rows' labels, each with the color of its line.
FAMILIES = {
    "PVT": "#7f7f7f",
    "PoolFormer": "#bcbd22",
    "T2T": "#8c564b",
    "TNT": "#e377c2",
    "ViL": "#17becf",
    "RegionViT": "#9467bd",
    "CrossViT": "#ff9896",
    "Swin": "#1f77b4",
    "CSWin": "#ff7f0e",
    "DeiT": "#2ca02c",
}
GRAFTED = " + GrafT"
# Names are right of their points; where they would cover another thing: offset in points and alignment
NAME_PLACES = {
    "CSWin-T": (-9, -3, "right"),
    "PoolFormer-M36": (9, -8, "left"),
    "RegionViT-M": (9, -3, "left"),
    "RegionViT-S": (9, -8, "left"),
    "T2T_t-14": (-5, 7, "center"),
    "T2T_t-19": (9, 1, "left"),
    "TNT-S": (10, -4, "left"),
    "ViL-M": (-9, 0, "right"),
}
SPEED_NAME_PLACES = {"CSWin-T + GrafT": (0, -16, "center")}


@dataclass(frozen=True)
class Point:
    """One system: the paper's numbers (MAC in units of 10^9, top-1 in percent), and the spec of its model here."""

    label: str
    family: str
    macs: float
    top1: float
    model: str

    @property
    def grafted(self) -> bool:
        return self.label.endswith(GRAFTED)


def _point(row: PaperRow) -> Point:
    family = next(name for name in FAMILIES if row.label.startswith(name))
    return Point(row.label, family, float(row.macs), float(row.scores[0]), str(row.spec))


def rows_of(*numbers: str) -> list[Point]:
    """The systems of the paper's tables with these numbers, in printed order."""
    return [_point(row) for number in numbers for row in TABLES[number].rows]


def draw_tradeoff(speeds: dict[str, float] | None = None, where: str = "") -> Any:
    """Draws accuracy against MAC (the paper's numbers) and, with `speeds`, images/s measured here against MAC.

    Args:
        speeds: images/s of inference by the model's spec.
        where: The machine and setting of `speeds`, for the panels' titles.

    Returns:
        A matplotlib figure: a column each for tables 1 and 2, accuracy above and speed below.
    """
    from matplotlib.figure import Figure

    rows = 2 if speeds else 1
    figure = Figure(figsize=(11.5, 4.8 * rows), layout="constrained")
    axes = figure.subplots(rows, 2, width_ratios=(1.6, 1), squeeze=False)
    panels = []  # axes, points, their height, whether all have names
    for column, (number, title) in enumerate((("1", "pyramid backbones"), ("2", "homogeneous backbones"))):
        ax, points = axes[0, column], rows_of(number)
        panels.append((ax, points, lambda point: point.top1, True))
        ax.set_title(f"{title} (the paper's table {number})", fontsize=10)
        ax.set_ylabel("ImageNet-1K top-1, %, as printed")
        if speeds:
            ax = axes[1, column]
            panels.append((ax, [p for p in points if p.model in speeds], lambda point: speeds[point.model], False))
            ax.set_title("speed, measured likewise" if column else f"speed, measured: {where}", fontsize=10)
            ax.set_ylabel("images/s, inference")
            ax.sharex(axes[0, column])
    for ax, *panel in panels:
        _draw(ax, *panel)
        ax.set_xlabel("MAC per image, 10⁹, as printed")
        ax.grid(color="#e6e6e6", lw=0.6)
        ax.set_axisbelow(True)
        ax.spines[["top", "right"]].set_visible(False)
        ax.margins(0.14, 0.1)
    return figure


def _draw(ax: Any, points: list[Point], height: Any, names: bool) -> None:
    """Each family a line from its smallest to its largest, a star and an arrow where grafts were added.

    All systems are named, or only the grafted ones.
    """
    for family, color in FAMILIES.items():
        plain = [point for point in points if point.family == family and not point.grafted]
        plain.sort(key=lambda point: point.macs)
        ax.plot([p.macs for p in plain], [height(p) for p in plain], "-o", color=color, ms=4.5, lw=1.2)
    for point in points:
        x, y, color = point.macs, height(point), FAMILIES[point.family]
        if point.grafted:
            ax.plot([x], [y], "*", color=color, ms=13, markeredgecolor="#222222", markeredgewidth=0.6, zorder=3)
            base = next((p for p in points if p.label + GRAFTED == point.label), None)
            if base is not None:
                start = (base.macs, height(base))
                style = {"arrowstyle": "-|>", "color": "#555555", "lw": 1.1, "shrinkA": 4, "shrinkB": 6}
                ax.annotate("", (x, y), start, arrowprops=style)
        if names or point.grafted:
            dx, dy, align = (NAME_PLACES if names else SPEED_NAME_PLACES).get(point.label, (9, -3, "left"))
            weight = "bold" if point.grafted else "normal"
            style = {"ha": align, "fontsize": 7.5, "color": color, "fontweight": weight}
            ax.annotate(point.label, (x, y), (dx, dy), textcoords="offset points", **style)
