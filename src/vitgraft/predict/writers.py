"""Files of predictions: CSV and JSON of every task, and an HTML page of thumbnails of classified images."""

import contextlib
import csv
import io
import json
from collections import Counter
from pathlib import Path
from typing import Any, Self

from vitgraft.atomic import atomic_write
from vitgraft.html_page import escaped, inline_image, page
from vitgraft.predict.base import Prediction, Predictor
from vitgraft.terminal import csv_cell

__all__ = ["WRITERS", "CsvWriter", "HtmlWriter", "JsonWriter", "Writer"]


class Writer:
    """Writes predictions as they come; the file is there when all are written, and only then.

    `with CsvWriter(path, predictor) as writer: writer.add(prediction)`.
    """

    def __init__(self, path: Path, predictor: Predictor):
        self.path, self.predictor = path, predictor

    def __enter__(self) -> Self:
        self._stack = contextlib.ExitStack()
        self.file = self._stack.enter_context(atomic_write(self.path, newline=""))
        self._stack.push(lambda kind, *_: self.end() if kind is None else None)
        self.begin()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._stack.__exit__(*exception)

    def begin(self) -> None:
        """Writes what precedes the predictions."""

    def add(self, one: Prediction) -> None:
        """Writes one prediction."""
        raise NotImplementedError

    def end(self) -> None:
        """Writes what follows the predictions."""


class CsvWriter(Writer):
    """Rows of image, the predictor's columns, and error."""

    def begin(self) -> None:
        self.lines = csv.writer(self.file, lineterminator="\n")
        self.columns = self.predictor.columns()
        self.lines.writerow(["image", *self.columns, "error"])

    def add(self, one: Prediction) -> None:
        if one.error is not None:
            self.lines.writerow(map(csv_cell, [one.image, *[""] * len(self.columns), one.error]))
            return
        self.lines.writerows(map(csv_cell, [one.image, *row, ""]) for row in self.predictor.rows(one))


class JsonWriter(Writer):
    """`{"kind": ..., model and preprocessing, "images": [{"image": ..., the predictor's entry}, ...]}`."""

    def begin(self) -> None:
        head = {"kind": self.predictor.kind, **self.predictor.metadata()}
        self.file.write(json.dumps(head, ensure_ascii=False, indent=1)[:-2] + ',\n "images": [')
        self.separator = "\n  "

    def add(self, one: Prediction) -> None:
        error = {} if one.error is None else {"error": one.error}
        entry = {"image": one.image, **error, **self.predictor.entry(one)}
        self.file.write(self.separator + json.dumps(entry, ensure_ascii=False))
        self.separator = ",\n  "

    def end(self) -> None:
        self.file.write("\n ]\n}\n")


WRITERS = {".csv": CsvWriter, ".json": JsonWriter}
"""By the suffix of `--output`."""

STYLE = """
:root { color-scheme: light dark }
body { font: 14px/1.45 system-ui, sans-serif; margin: 0 1.4rem }
h1 { font-size: 1.25rem } p, small, output { opacity: .7 }
form { position: sticky; top: 0; display: flex; flex-wrap: wrap; gap: .5rem 1.2rem; padding: .6rem 0;
  background: Canvas }
select { max-width: 17rem } input[type=number] { width: 4.2rem } output { margin-left: auto }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(11.5rem, 1fr)); gap: .8rem; padding: 1rem 0 }
figure { margin: 0; border: 1px solid #8885; border-radius: 6px; overflow: hidden } figure[hidden] { display: none }
figure div { height: 160px; display: flex; align-items: center; justify-content: center; background: #8882 }
figcaption { padding: .45rem .6rem } ol { list-style: none; margin: .35rem 0 0; padding: 0; font-size: .86em }
b, small, li span:first-child { display: block; overflow: hidden; text-overflow: ellipsis; white-space: nowrap }
li { display: flex; gap: .5rem; background: linear-gradient(to right, #4c8dd655 var(--p), transparent var(--p)) }
li span:first-child { flex: 1 } td { padding-right: 1rem; overflow-wrap: anywhere }
"""

SCRIPT = """
const form = document.querySelector('form'), main = document.querySelector('main');
const cards = [...main.children].map((card, place) => ({
  card, place, class: card.dataset.class, p: +card.dataset.p, name: card.title.toLowerCase() }));
const orders = {
  given: (a, b) => a.place - b.place,
  low: (a, b) => a.p - b.p,
  high: (a, b) => b.p - a.p,
  class: (a, b) => a.class - b.class || b.p - a.p,
  name: (a, b) => a.name < b.name ? -1 : a.name > b.name ? 1 : 0 };
function update(sorted) {
  const from = form.from.value / 100, to = form.to.value / 100, text = form.text.value.toLowerCase();
  let shown = 0;
  for (const one of cards) {
    // a hundredth of a per cent of slack: what is printed as 50 % is found from 50 % on
    const fits = (!form.class.value || one.class === form.class.value) && one.name.includes(text)
      && one.p >= from - 1e-4 && one.p <= to + 1e-4;
    one.card.hidden = !fits;
    shown += fits;
  }
  if (sorted) main.append(...cards.sort((a, b) => orders[form.sort.value](a, b) || a.place - b.place).map(c => c.card));
  form.shown.value = shown + ' of ' + cards.length + ' shown';
}
form.addEventListener('input', event => update(event.target.name === 'sort'));
form.addEventListener('submit', event => event.preventDefault());
update(true);  // browsers keep what was chosen when a page is opened again
"""

BODY = """<h1>Predictions</h1><p>{origin}</p><p>{notes}</p>
<form>
<label>class <select name="class"><option value="">all</option>{options}</select></label>
<label>confidence <input type="number" name="from" value="0" min="0" max="100" aria-label="lowest confidence in %">
to <input type="number" name="to" value="100" min="0" max="100" aria-label="highest confidence in %"> %</label>
<label>order <select name="sort"><option value="given">as given</option>
<option value="low">by ascending confidence</option><option value="high">by descending confidence</option>
<option value="class">by class</option><option value="name">by file name</option></select></label>
<label>file <input type="search" name="text" placeholder="part of the name"></label><output name="shown"></output>
</form>
<main>
{cards}</main>
{errors}<script>{script}</script>"""


class HtmlWriter(Writer):
    """A page to look through, with everything inside: a card for each image, to be sorted and filtered.

    Args:
        path: The HTML file.
        predictor: A classifier.
        most: Images that are shown at most; all errors are listed.
    """

    def __init__(self, path: Path, predictor: Predictor, most: int = 2000):
        super().__init__(path, predictor)
        self.most = most
        self.cards: list[str] = []
        self.errors: list[str] = []
        self.counts: Counter[tuple[int, str]] = Counter()
        self.total = 0

    def add(self, one: Prediction) -> None:
        if one.error is not None:
            self.errors.append(f"<tr><td>{escaped(one.image)}</td><td>{escaped(one.error)}</td></tr>\n")
            return
        self.total += 1
        if len(self.cards) >= self.most:
            return
        best = self.predictor.best(one)
        index, name, confidence = best[0]
        self.counts[index, name] += 1
        rows = "".join(
            f'<li style="--p:{100 * p:.1f}%"><span title="{escaped(name)}">{escaped(name)}</span>'
            f"<span>{100 * p:.1f} %</span></li>"
            for _, name, p in best
        )
        self.cards.append(
            f'<figure data-class="{index}" data-p="{confidence:.6f}" title="{escaped(one.image)}">'
            f"<div>{_inline(one, name)}</div><figcaption><b>{escaped(name)}</b>"
            f"<small>{escaped(Path(one.image).name)}</small><ol>{rows}</ol></figcaption></figure>\n"
        )

    def end(self) -> None:
        metadata = self.predictor.metadata()
        weights = {"ema": ", averaged weights", "raw": ", weights as trained"}.get(metadata["weights"], "")
        notes = [f"{self.total:,} images in {len(self.counts)} classes"]
        if self.total > len(self.cards):
            notes.append(f"only the first {len(self.cards):,} are shown")
        errors = ""
        if self.errors:
            notes.append(f'<a href="#errors">{len(self.errors)} could not be predicted</a>')
            rows = "".join(self.errors)
            errors = (
                f'<h2 id="errors">Not predicted</h2>\n<table><tr><th>file</th><th>error</th></tr>\n{rows}</table>\n'
            )
        options = "".join(
            f'<option value="{index}">{escaped(name)} ({count})</option>'
            for (index, name), count in sorted(self.counts.items(), key=lambda item: (-item[1], item[0][1]))
        )
        body = BODY.format(
            script=SCRIPT,
            origin=escaped(metadata["model"]) + weights,
            notes="; ".join(notes),
            options=options,
            cards="".join(self.cards),
            errors=errors,
        )
        self.file.write(page("Predictions", STYLE, body))


def _inline(one: Prediction, name: str) -> str:
    """The thumbnail as an image inside the page."""
    if one.kept is None:
        return ""
    file = io.BytesIO()
    one.kept.save(file, "JPEG", quality=78)
    return inline_image(file.getvalue(), name, "jpeg", 'loading="lazy" ')
