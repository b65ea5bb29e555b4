"""`python -m reproduction.draw_method`: docs/pictures/method.png, the tensors of one graft in stage 1 of Swin-T."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.patches import FancyArrowPatch, Rectangle

BACKBONE, GRAFT, INK = "#dbe4f0", "#d9efdc", "#222222"


def grid(ax, x, y, side, cells, windows, color):
    """A square map with its token grid (thin) and attention windows (thick)."""
    ax.add_patch(Rectangle((x, y), side, side, facecolor=color, edgecolor=INK, lw=1.2))
    for i in range(1, cells):
        t = i * side / cells
        ax.plot([x + t, x + t], [y, y + side], color="#9aa5b1", lw=0.3)
        ax.plot([x, x + side], [y + t, y + t], color="#9aa5b1", lw=0.3)
    for i in range(1, windows):
        t = i * side / windows
        ax.plot([x + t, x + t], [y, y + side], color=INK, lw=1.1)
        ax.plot([x, x + side], [y + t, y + t], color=INK, lw=1.1)


def arrow(ax, start, end):
    ax.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=13, color=INK, lw=1.5))


def main() -> None:
    fig, ax = plt.subplots(figsize=(14, 6.2), dpi=130)
    columns = [(0.0, 2.4, 28, 8), (5.2, 1.7, 14, 4), (8.6, 1.2, 14, 2), (11.5, 0.8, 7, 1)]
    names = ["56 x 56", "28 x 28", "14 x 14", "7 x 7"]
    low, high = 0.2, 3.9
    attentions = ["backbone's\nattention", "L-MSA (eq. 3)", "L-MSA", "L-MSA\nglobal: one\nwindow"]
    for b, ((x, side, cells, windows), name, attention) in enumerate(zip(columns, names, attentions, strict=True)):
        color = BACKBONE if b == 0 else GRAFT
        grid(ax, x, low, side, cells, windows, color)
        grid(ax, x, high, side, cells, windows, color)
        middle = x + side / 2
        low_name, high_name = ("$X^0$", "$Y^0$") if b == 0 else (f"$X^{b}$", f"$Z^{b}$")
        ax.text(middle, low - 0.1, f"{low_name}   {name} x C", ha="center", va="top", fontsize=10)
        ax.text(middle, high + side + 0.08, f"{high_name}   {name} x C", ha="center", va="bottom", fontsize=10)
        arrow(ax, (middle, low + side + 0.05), (middle, high - 0.08))
        ax.text(middle + 0.1, (low + side + high) / 2, attention, fontsize=9, va="center")
    for b in range(3):
        (x, side, *_), (nx, nside, *_) = columns[b], columns[b + 1]
        middle = (x + side + (4.75 if b == 0 else nx)) / 2  # the first gap ends at the graft's frame
        text = "LN, GELU,\naverage 2 x 2" if b == 0 else "down"
        ax.text(middle, low + nside / 2 + 0.12, text, ha="center", fontsize=9)
        arrow(ax, (x + side + 0.08, low + nside / 2), (nx - 0.08, low + nside / 2))
        text = "LN, GELU, Linear,\nx $E_{aa}$, W-Bilinear" if b == 0 else "up"
        ax.text(middle, high + nside / 2 + 0.12, text, ha="center", fontsize=9)
        arrow(ax, (nx - 0.08, high + nside / 2), (x + side + 0.08, high + nside / 2))
    ax.text(8.4, -0.62, "left-right pathway (eq. 1)", ha="center", va="top", fontsize=9, style="italic")
    ax.text(8.4, 6.25, "right-left pathway (eq. 2, merged by eq. 3 and 4)", ha="center", fontsize=9, style="italic")
    ax.add_patch(Rectangle((4.75, -1.0), 9.3, 7.75, fill=False, ls="--", ec="#3a7d44", lw=1.3))
    ax.text(13.9, 6.6, "the graft", ha="right", va="top", color="#3a7d44", fontsize=11)
    ax.text(1.2, 7.1, "to the block's FFN", ha="center", fontsize=9)
    arrow(ax, (1.2, 6.68), (1.2, 7.05))
    ax.set_xlim(-0.4, 14.2)
    ax.set_ylim(-1.2, 7.4)
    ax.set_aspect("equal")
    ax.axis("off")
    out = Path(__file__).parents[1] / "docs" / "pictures" / "method.png"
    fig.savefig(out, bbox_inches="tight", facecolor="white")
    print(out)


if __name__ == "__main__":
    main()
