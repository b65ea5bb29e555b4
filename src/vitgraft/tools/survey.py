"""Which of timm's transformer families can be grafted, tried on the installed timm and not only claimed.

`vitgraft families` runs `survey()`; its Markdown is docs/families.md.
"""

import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from vitgraft.grafting import blocks, graft, grafts
from vitgraft.grafting.trace import find_targets
from vitgraft.terminal import print_whole

__all__ = [
    "FAMILIES",
    "NOT_GRAFTABLE",
    "FamilyResult",
    "family_of",
    "print_terminal",
    "survey",
    "to_markdown",
    "try_family",
]

# timm file -> a small model of it and what makes it quick to try: options of the model, of the graft (graft), the size
# of the image that is run (run_size)
FAMILIES: dict[str, tuple[str, dict]] = {
    "beit": ("beit_base_patch16_224", {"depth": 3}),
    "cait": ("cait_xxs24_224", {"depth": 3}),
    "coat": ("coat_tiny", {}),
    "convit": ("convit_tiny", {}),
    "cpubone": ("cpubone_nano", {"graft": {"window_size": 3}}),
    "crossvit": ("crossvit_tiny_240", {}),
    "csatv2": ("csatv2", {}),
    "davit": ("davit_tiny", {}),
    "deepseek_vit": ("deepseek_vit_412m", {"depth": 2, "img_size": 224}),
    "deit": ("deit_tiny_distilled_patch16_224", {"depth": 3}),
    "edgenext": ("edgenext_xx_small", {}),
    "efficientformer": ("efficientformer_l3", {"graft": {"window_size": 3}}),
    "efficientformer_v2": ("efficientformerv2_s0", {}),
    "efficientvit_mit": ("efficientvit_b0", {}),
    "efficientvit_msra": ("efficientvit_m0", {"graft": {"window_size": 4}}),
    "eva": ("eva02_tiny_patch14_224", {"depth": 3}),
    "fastvit": ("fastvit_sa12", {}),
    "gcvit": ("gcvit_xxtiny", {}),
    "hieradet_sam2": ("sam2_hiera_tiny", {"run_size": 256}),
    "iformer": ("iformer_t", {"graft": {"window_size": 3}}),
    "levit": ("levit_128s", {}),
    "lowformer": ("lowformer_b0", {"graft": {"window_size": 3}}),
    "maxxvit": ("maxvit_pico_rw_256", {}),
    "metaformer": ("caformer_s18", {}),
    "mobilenetv3": ("mobilenetv4_hybrid_medium", {}),
    "mobilevit": ("mobilevit_xxs", {}),
    "mvitv2": ("mvitv2_tiny", {}),
    "nest": ("nest_tiny", {}),
    "nextvit": ("nextvit_small", {}),
    "pit": ("pit_ti_224", {}),
    "pvt_v2": ("pvt_v2_b0", {}),
    "qwen3_vit": ("qwen3_vit_88m", {"depth": 2, "img_size": 224}),
    "shvit": ("shvit_s1", {"graft": {"window_size": 3}}),
    "swiftformer": ("swiftformer_xs", {}),
    "swin_transformer": ("swin_tiny_patch4_window7_224", {"depths": (2, 2, 2, 2)}),
    "swin_transformer_v2": ("swinv2_tiny_window8_256", {"depths": (2, 2, 2, 2)}),
    "swin_transformer_v2_cr": ("swinv2_cr_tiny_224", {"depths": (2, 2, 2, 2)}),
    "tiny_vit": ("tiny_vit_5m_224", {}),
    "tnt": ("tnt_s_legacy_patch16_224", {"depth": 3}),
    "twins": ("twins_svt_small", {}),
    "visformer": ("visformer_tiny", {}),
    "vision_transformer": ("vit_tiny_patch16_224", {"depth": 3}),
    "vision_transformer_hybrid": ("vit_tiny_r_s16_p8_224", {"img_size": 384, "depth": 3}),
    "vision_transformer_relpos": ("vit_srelpos_small_patch16_224", {"depth": 3}),
    "vision_transformer_sam": ("samvit_base_patch16_224", {"depth": 3}),
    "volo": ("volo_d1_224", {}),
    "xcit": ("xcit_nano_12_p8_224", {}),
}

# timm file -> why a graft has no place in it
NOT_GRAFTABLE: dict[str, str] = {
    path.removeprefix("timm.models."): reason
    for path, reason in blocks.NOT_GRAFTABLE.items()
    if path.startswith("timm.models.")
}


@dataclass(frozen=True)
class FamilyResult:
    """What became of one family: `grafts` grafted blocks and identity kept, or the reason why not."""

    family: str
    model: str
    grafts: int
    blocks: int
    reason: str = ""
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether the family can be grafted."""
        return not self.reason


def family_of(model: nn.Module) -> str:
    """timm's file of the model's class or of its nearest base class there; "" for a model from elsewhere."""
    for cls in type(model).__mro__:
        if cls.__module__.startswith("timm.models."):
            return cls.__module__.rsplit(".", 1)[-1]
    return ""


def try_family(family: str) -> FamilyResult:
    """Grafts a small model of `family` with init="identity" and compares it, bit for bit, with the backbone.

    After that the first graft's projection gets other weights and the output must change: a graft that is never
    run would pass the first comparison.
    """
    import timm

    start = time.perf_counter()
    if family in NOT_GRAFTABLE:
        return FamilyResult(family, "-", 0, 0, NOT_GRAFTABLE[family])
    name, options = FAMILIES[family]
    options = dict(options)
    graft_options = options.pop("graft", {})
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            run_size = options.pop("run_size", None)
            model = timm.create_model(name, **options).eval()
            size = run_size or options.get("img_size", model.pretrained_cfg["input_size"][-1])
            image = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
            before, names = model(image), set(model.state_dict())
            sites = find_targets(model, size)
            graft(model, init="identity", img_size=size, **graft_options)
            after = model(image)
            made = grafts(model)
            for one in made.values():
                nn.init.normal_(one.levels[0].up.proj.weight)
            changed = model(image)
    except Exception as error:
        return FamilyResult(family, name, 0, 0, f"{type(error).__name__}: {error}")
    reason = ""
    if not torch.equal(before, after):
        reason = "identity grafts change its output"
    elif torch.equal(before, changed):
        reason = "its grafts do not reach the output"
    elif not names <= set(model.state_dict()):
        reason = "its parameters changed their names"
    return FamilyResult(family, name, len(made), len(sites), reason, time.perf_counter() - start)


def survey(families: list[str] | None = None) -> Iterator[FamilyResult]:
    """Tries all families (or those named), one after the other."""
    for family in families or sorted({*FAMILIES, *NOT_GRAFTABLE}):
        yield try_family(family)


def to_markdown(results: list[FamilyResult]) -> str:
    """The table of docs/families.md."""
    import timm

    done = sum(r.ok for r in results)
    lines = [
        "# Which timm families can be grafted",
        "",
        "Made by `vitgraft families --output docs/families.md`, which grafts one small model of each family, checks "
        "that identity grafts leave its output equal bit for bit, and that other weights change it.",
        "",
        f"timm {timm.__version__}: {done} of {len(results)} families with attention blocks. Not counted: files of "
        "convolutional networks in which attention is an optional layer inside a bottleneck (byobnet, cspnet, cspnext, "
        "nfnet, vovnet).",
        "",
        "| timm file | tried with | blocks with an attention residual | grafted by default | result |",
        "|---|---|---|---|---|",
    ]
    for r in results:
        counts = f"{r.blocks} | {r.grafts}" if r.ok else "- | -"
        lines.append(f"| `{r.family}` | `{r.model}` | {counts} | {'grafted' if r.ok else 'no: ' + r.reason} |")
    return "\n".join(lines) + "\n"


def print_terminal(results: Sequence[FamilyResult], console) -> None:
    """One line per family: how many blocks carry a graft, or why none does."""
    import timm
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column("timm file")
    table.add_column("tried with")
    table.add_column("grafts", justify="right")
    table.add_column("result", max_width=60)
    for result in results:
        outcome = "grafted" if result.ok else f"no: {result.reason}"
        count = f"{result.grafts} of {result.blocks}" if result.ok else "-"
        row = (result.family, result.model, count, escape(outcome))
        table.add_row(*row, style="" if result.ok else "dim")
    print_whole(console, table)
    grafted = sum(result.ok for result in results)
    console.print(f"{grafted} of {len(results)} families grafted, timm {timm.__version__}", highlight=False)
