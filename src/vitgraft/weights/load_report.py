"""What loading a checkpoint did."""

from dataclasses import dataclass, field

__all__ = ["LoadReport", "some"]


@dataclass
class LoadReport:
    """What `load_official` did, by the model's names (`unexpected` and `skipped`: the checkpoint's).

    Attributes:
        loaded: Filled from the checkpoint, reshaped ones included.
        missing: Left as they were: grafts, the norms of DenseFeatures, and with strict=False anything else.
        unexpected: In the checkpoint and not in the model (strict=False only).
        reshaped: "name: old shape -> new shape"; tables of another window or image size, resized.
        skipped: "name: reason"; known, and rightly not loaded.
        wrapper: The key under which the weights were stored, None if they lay at the top.
        passed_over: Other keys of the file that hold weights as well.
    """

    loaded: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    reshaped: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    wrapper: str | None = None
    passed_over: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        source = f" from '{self.wrapper}'" if self.wrapper else ""
        if self.passed_over:
            source += f" (not taken: {some(self.passed_over)})"
        lines = [f"{len(self.loaded)} tensors loaded{source}"]
        grafts = [name for name in self.missing if ".graft." in name]
        others = [name for name in self.missing if ".graft." not in name]
        for label, names in (
            ("new, of grafts", grafts),
            ("not in the checkpoint", others),
            ("not in the model", self.unexpected),
            ("reshaped", self.reshaped),
            ("skipped", self.skipped),
        ):
            if names:
                lines.append(f"  {len(names)} {label}: {some(names)}")
        return "\n".join(lines)


def some(names: list[str], count: int = 3) -> str:
    """The first names, and how many there are in all."""
    more = f", ... ({len(names)} in all)" if len(names) > count else ""
    return ", ".join(map(str, names[:count])) + more
