"""Which vision transformers can be grafted, tried on the installed libraries and not only claimed.

`vitgraft families` runs `survey()`; its Markdown is docs/families.md.
"""

import importlib.metadata
import importlib.util
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from vitgraft.errors import CommandError
from vitgraft.grafting import graft, grafts
from vitgraft.grafting.trace import find_targets, output_tensors
from vitgraft.terminal import markdown_table, print_table
from vitgraft.tools.survey_models import LIBRARIES, SmallModel, known_families

__all__ = ["FamilyResult", "check_names", "print_terminal", "survey", "to_markdown", "try_model"]

NOT_INSTALLED = "the library is not installed"


@dataclass(frozen=True)
class FamilyResult:
    """The outcome of one family: `grafts` of `blocks` grafted and identity kept, or the reason why not."""

    library: str
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

    @property
    def outcome(self) -> str:
        """As text."""
        return "grafted" if self.ok else f"no: {self.reason}"


def _output(model: nn.Module, image: torch.Tensor) -> list[torch.Tensor]:
    output = model(image)
    return [t for t in output_tensors(dict(output) if hasattr(output, "items") else output) if t.is_floating_point()]


def _equal(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return len(a) == len(b) and all(map(torch.equal, a, b))


def try_model(small: SmallModel) -> FamilyResult:
    """Grafts a small model with init="identity" and compares it, bit for bit, with the backbone.

    After that the projection of each graft gets other weights and the output must change: a graft that is never run
    would pass the first comparison.
    """
    start = time.perf_counter()
    here = small.library, small.family, small.name
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            torch.manual_seed(0)
            model = small.make().eval()
            size = small.img_size or model.pretrained_cfg["input_size"][-1]
            image = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
            before, names = _output(model, image), set(model.state_dict())
            targets = find_targets(model, size)
            graft(model, init="identity", img_size=size, **small.graft)
            after = _output(model, image)
            made = grafts(model)
            for one in made.values():
                nn.init.normal_(one.levels[0].up.proj.weight)
            changed = _output(model, image)
    except Exception as error:
        return FamilyResult(*here, 0, 0, f"{type(error).__name__}: {error}")
    reason = ""
    if not _equal(before, after):
        reason = "identity grafts change its output"
    elif _equal(before, changed):
        reason = "its grafts do not change the output"
    elif not names <= set(model.state_dict()):
        reason = "its parameters changed their names"
    return FamilyResult(*here, len(made), len(targets), reason, time.perf_counter() - start)


def check_names(names: Sequence[str] = ()) -> int:
    """The number of results of `survey(names)`.

    Raises:
        CommandError: A name is neither that of a library nor of a family.
    """
    known = {library: [key.split()[0] for key in known_families(library)] for library in LIBRARIES}
    families = [family for library in LIBRARIES for family in known[library]]
    unknown = [name for name in names if name not in (*LIBRARIES, *families)]
    if unknown:
        raise CommandError(f"unknown family {', '.join(unknown)}; there are {', '.join((*LIBRARIES, *families))}")
    return sum(len(known[name]) if name in known else families.count(name) for name in names or LIBRARIES)


def survey(names: Sequence[str] = ()) -> Iterator[FamilyResult]:
    """Tries families, one after the other; a library that is not installed is one result.

    Args:
        names: Libraries, families, or both; none for all.
    """
    for library in LIBRARIES:
        known = known_families(library)
        if names and library not in names:
            known = {key: value for key, value in known.items() if key.split()[0] in names}
        if known and importlib.util.find_spec(library) is None:
            yield FamilyResult(library, "-", "-", 0, 0, NOT_INSTALLED)
            continue
        for key, value in known.items():
            yield FamilyResult(library, key, "-", 0, 0, value) if isinstance(value, str) else try_model(value)


_PREFACE = (
    "# Which models can be grafted\n\n"
    "Made by `vitgraft families --output docs/families.md`, which grafts one small model of each family, checks "
    "that identity grafts leave its output equal bit for bit, and that other weights change it. Blocks of your "
    "own: `vitgraft.register_block` (docs/method.md).\n"
)
_NOTES = {
    "timm": " Not counted: files of convolutional networks in which attention is an optional layer inside a bottleneck "
    "(byobnet, cspnet, cspnext, nfnet, vovnet).",
    "transformers": " Files of other models that use the blocks of one of these work as well.",
}


def to_markdown(results: list[FamilyResult]) -> str:
    """docs/families.md."""
    parts = [_PREFACE]
    for library in dict.fromkeys(one.library for one in results):
        of_it = [one for one in results if one.library == library]
        parts.append(f"\n## {library}\n\n")
        if of_it[0].reason == NOT_INSTALLED:
            parts.append("Not installed, and so not tried.\n")
            continue
        count = f"{sum(one.ok for one in of_it)} of {len(of_it)} families with attention blocks."
        version = importlib.metadata.version("open_clip_torch" if library == "open_clip" else library)
        parts.append(f"{library} {version}: {count}{_NOTES.get(library, '')}\n\n")
        counts = [(str(one.blocks), str(one.grafts)) if one.ok else ("-", "-") for one in of_it]
        rows = [
            (f"`{one.family}`", f"`{one.model}`", *count, one.outcome) for one, count in zip(of_it, counts, strict=True)
        ]
        headings = ("file", "tried with", "blocks with an attention residual", "grafted by default", "result")
        parts.append(markdown_table(headings, rows))
    return "".join(parts)


def print_terminal(results: Sequence[FamilyResult], console) -> None:
    """One line per family: how many blocks carry a graft, or why none does."""
    counts = (f"{one.grafts} of {one.blocks}" if one.ok else "-" for one in results)
    rows = [
        (one.library, one.family, one.model, count, one.outcome) for one, count in zip(results, counts, strict=True)
    ]
    dim = {number: "dim" for number, one in enumerate(results) if not one.ok}
    print_table(console, ("library", "file", "tried with", "grafts", "result"), rows, range(5), dim, {4: 60})
    console.print(f"{sum(one.ok for one in results)} of {len(results)} families grafted", highlight=False)
