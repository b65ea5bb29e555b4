"""Predictions as a page to look through: one HTML file with everything inside, opened from disk, without network."""

import base64
import html
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vitgraft.atomic import atomic_write
from vitgraft.predict.writers import Prediction

__all__ = ["write_contact_sheet"]

STYLE = """
:root { color-scheme: light dark; --card: #fff; --line: #d9dde1; --page: #f4f5f7; --text: #1d2329; --dim: #66707a; }
@media (prefers-color-scheme: dark) {
  :root { --card: #1f2429; --line: #39414a; --page: #14181c; --text: #e4e8ec; --dim: #98a2ac; }
}
body { font: 14px/1.45 system-ui, sans-serif; margin: 0; background: var(--page); color: var(--text); }
header { padding: 1rem 1.4rem .3rem } h1 { font-size: 1.25rem; margin: 0 } p { margin: .2rem 0; color: var(--dim) }
form { position: sticky; top: 0; display: flex; flex-wrap: wrap; gap: .5rem 1.2rem; align-items: center; z-index: 1;
  padding: .6rem 1.4rem; background: var(--page); border-bottom: 1px solid var(--line) }
select, input { font: inherit; max-width: 17rem } input[type=number] { width: 4.2rem }
output { color: var(--dim); margin-left: auto }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(11.5rem, 1fr)); gap: .8rem; padding: 1rem 1.4rem }
figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 6px; overflow: hidden }
figure[hidden] { display: none }
figure div { height: 160px; display: flex; align-items: center; justify-content: center; background: #8882 }
figure img { max-width: 100%; max-height: 160px; display: block }
figcaption { padding: .45rem .6rem .55rem }
figcaption b, figcaption small { display: block; overflow: hidden; text-overflow: ellipsis; white-space: nowrap }
figcaption small { color: var(--dim) }
ol { list-style: none; margin: .35rem 0 0; padding: 0 }
li { display: flex; gap: .5rem; padding: 0 .3rem; font-size: .86em;
  background: linear-gradient(to right, #4c8dd655 var(--p), transparent var(--p)) }
li span:first-child { flex: 1; overflow: hidden; text-overflow: ellipsis; white-space: nowrap }
section { padding: .2rem 1.4rem 2rem } table { border-collapse: collapse }
td, th { text-align: left; padding: .2rem 1rem .2rem 0; border-bottom: 1px solid var(--line); overflow-wrap: anywhere }
"""

SCRIPT = """
const form = document.querySelector('form'), main = document.querySelector('main');
const cards = [...main.children].map((card, place) => ({
  card, place, class: card.dataset.class, p: +card.dataset.p, name: card.title.toLowerCase() }));
const orders = {
  given: (a, b) => a.place - b.place,
  unsure: (a, b) => a.p - b.p,
  sure: (a, b) => b.p - a.p,
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


def write_contact_sheet(
    path: Path,
    predictions: Sequence[Prediction],
    class_names: Sequence[str],
    facts: dict[str, Any],
    left_out: int = 0,
) -> None:
    """Writes the page: a card for each image, to be sorted and filtered by class, confidence and name.

    Args:
        path: the HTML file.
        predictions: with thumbnails, or with an error, which are listed at the end.
        class_names: of each class.
        facts: `model` and `weights` of the classifier.
        left_out: images that were predicted and are not shown; the page says so.

    Raises:
        OSError: the file can't be written.
    """
    readable = [one for one in predictions if one.error is None]
    unreadable = [one for one in predictions if one.error is not None]
    counts = Counter(one.classes[0] for one in readable)
    options = "".join(
        f'<option value="{number}">{html.escape(class_names[number])} ({count})</option>'
        for number, count in sorted(counts.items(), key=lambda item: (-item[1], class_names[item[0]]))
    )
    notes = [f"{len(readable) + left_out:,} images in {len(counts)} classes"]
    if left_out:
        notes.append(f"only the first {len(readable):,} are shown")
    if unreadable:
        notes.append(f'<a href="#unreadable">{len(unreadable)} could not be read</a>')
    weights = {"ema": "averaged weights", "raw": "weights as trained"}.get(facts.get("weights", ""), "")
    origin = ", ".join(filter(None, [html.escape(str(facts.get("model", ""))), weights]))
    page = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Predictions</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head><body>
<header><h1>Predictions</h1><p>{origin}</p><p>{"; ".join(notes)}</p></header>
<form>
<label>class <select name="class"><option value="">all</option>{options}</select></label>
<label>confidence <input type="number" name="from" value="0" min="0" max="100" aria-label="lowest confidence in %">
to <input type="number" name="to" value="100" min="0" max="100" aria-label="highest confidence in %"> %</label>
<label>order <select name="sort"><option value="given">as given</option><option value="unsure">least sure first</option>
<option value="sure">surest first</option><option value="class">by class</option>
<option value="name">by file name</option></select></label>
<label>file <input type="search" name="text" placeholder="part of the name"></label><output name="shown"></output>
</form>
<main>
{"".join(_card(one, class_names) for one in readable)}</main>
{_errors(unreadable)}<script>{SCRIPT}</script></body></html>
"""
    with atomic_write(path, errors="surrogateescape") as file:
        file.write(page)


def _card(one: Prediction, class_names: Sequence[str]) -> str:
    name, best = html.escape(one.image), html.escape(class_names[one.classes[0]])
    picture = ""
    if one.thumbnail is not None:
        data = base64.b64encode(one.thumbnail).decode()
        picture = f'<img loading="lazy" alt="{best}" src="data:image/jpeg;base64,{data}">'
    rows = "".join(
        f'<li style="--p:{100 * p:.1f}%"><span title="{html.escape(class_names[number])}">'
        f"{html.escape(class_names[number])}</span><span>{100 * p:.1f} %</span></li>"
        for number, p in zip(one.classes, one.probabilities, strict=True)
    )
    return (
        f'<figure data-class="{one.classes[0]}" data-p="{one.probabilities[0]:.6f}" title="{name}">'
        f"<div>{picture}</div><figcaption><b>{best}</b><small>{html.escape(os.path.basename(one.image))}</small>"
        f"<ol>{rows}</ol></figcaption></figure>\n"
    )


def _errors(unreadable: Sequence[Prediction]) -> str:
    if not unreadable:
        return ""
    rows = "".join(
        f"<tr><td>{html.escape(one.image)}</td><td>{html.escape(one.error or '')}</td></tr>\n" for one in unreadable
    )
    return (
        f'<section id="unreadable"><h2>Not predicted ({len(unreadable)})</h2>\n'
        f"<table><tr><th>file</th><th>what is wrong</th></tr>\n{rows}</table></section>\n"
    )
