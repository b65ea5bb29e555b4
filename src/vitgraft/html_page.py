"""Parts of HTML pages that are one file, with everything inside: they open from disk without server or network."""

import base64
import html
from collections.abc import Collection, Iterable, Sequence

from vitgraft.terminal import printable

__all__ = ["escaped", "inline_image", "page", "table"]


def escaped(text: str) -> str:
    """A text that a page shows as it is; names of files and classes come from elsewhere."""
    return html.escape(printable(text))


def inline_image(data: bytes, alt: str, kind: str = "png", attributes: str = "") -> str:
    """An image inside the page.

    Args:
        data: Content of an image file.
        alt: What is shown in place of the image.
        kind: Of the file, "png" or "jpeg".
        attributes: Further ones of the tag, such as 'loading="lazy" '.
    """
    encoded = base64.b64encode(data).decode()
    return f'<img {attributes}alt="{escaped(alt)}" src="data:image/{kind};base64,{encoded}">'


def table(headings: Sequence[str], rows: Iterable[Sequence[str]], left: Collection[int] = (0,)) -> str:
    """A table of texts.

    Args:
        headings: One for each column.
        rows: As many texts each.
        left: Numbers of the columns that are flush left; the others have the class "number".
    """

    def row(tag: str, texts: Sequence[str]) -> str:
        begins = [f"<{tag}>" if number in left else f'<{tag} class="number">' for number in range(len(texts))]
        return f"<tr>{''.join(f'{one}{escaped(text)}</{tag}>' for one, text in zip(begins, texts, strict=True))}</tr>\n"

    return f"<table>\n{row('th', headings)}{''.join(row('td', texts) for texts in rows)}</table>\n"


def page(title: str, style: str, body: str) -> str:
    """A whole page.

    Args:
        title: Of the window, plain text.
        style: CSS.
        body: HTML.
    """
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{escaped(title)}</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>{style}</style></head>
<body>
{body}</body></html>
"""
