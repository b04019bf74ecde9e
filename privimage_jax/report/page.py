"""`release/report.html`: the guarantee in words, where the budget went, and what came out.

The page goes out with the release. It shows outputs of the mechanisms, post-processing of them and public values, and
nothing else: no clock time, no path, no measure on real images. The same inputs give the same bytes.
"""

import dataclasses
import html
import json
import math
import string
from collections.abc import Iterable, Sequence
from decimal import ROUND_CEILING, Context, Decimal
from importlib import resources
from typing import Any

import numpy as np

from privimage_jax.report import plots

SEMANTICS_SHOWN = 15
PICKS_SHOWN = 30
LEDGER_COLUMNS = ("index", "kind", "mechanism", "noise_multiplier", "sampling_rate", "steps", "epsilon", "previous")


@dataclasses.dataclass(frozen=True)
class ReportInputs:
    """All that the page shows; every value is public or comes from a mechanism.

    Args:
        title: of the page.
        epsilon: the whole budget that the release is held to.
        delta: its delta.
        n: number N of sensitive records.
        entries: the ledger's lines in order: dicts with `index`, `kind` ("open", "gaussian", "dp-sgd", "closed"),
            `mechanism`, `noise_multiplier`, `sampling_rate`, `steps` [a, b), `epsilon` (spent after this line),
            `previous` (hash), each where it applies, and any further public fields. A field `private`
            that is False, or the words "NOT PRIVATE" in any field, void the guarantee.
        ledger_ok: whether the chain of hashes holds.
        semantics: None (no section), or `{"class_names", "semantic_names", "histogram": [[int]], "picked": [[int]]}`:
            the noisy count of every semantic in each class and the semantics each class picked, as indices.
            `"noise_std"`, the standard deviation of the noise on a count, may be there too. Without a query `histogram`
            is None, and `picked` too where all public images were used.
        images: synthetic, uint8 `[M, H, W, C]`, C = 1 or 3.
        labels: int `[M]`, indices into `class_names`.
        class_names: the declared classes.
        settings: public settings, as names and values ready to read.
    """

    title: str
    epsilon: float
    delta: float
    n: int
    entries: Sequence[dict[str, Any]]
    ledger_ok: bool
    semantics: dict[str, Any] | None
    images: np.ndarray
    labels: np.ndarray
    class_names: Sequence[str]
    settings: dict[str, str]


def render(inputs: ReportInputs) -> str:
    """The whole page: one HTML document that needs no other file, no script and no network."""
    warnings = _warnings(inputs)
    return _template("page.html").substitute(
        css=_read("page.css"),
        title=_text(inputs.title),
        void=" void" if warnings else "",
        epsilon=_rounded_up(inputs.epsilon),
        delta=_rounded_up(inputs.delta),
        n=f"{inputs.n:,}",
        n_classes=f"{len(inputs.class_names):,}",
        warnings="".join(
            f'<div class="warning" role="alert"><h2>{head}</h2><p>{body}</p></div>' for head, body in warnings
        ),
        promise=_promise(inputs, void=bool(warnings)),
        samples=_samples(inputs),
        budget=_budget(inputs),
        semantics=_semantics(inputs.semantics),
        settings=_settings(inputs.settings),
        ledger=_ledger(inputs),
    )


def _warnings(inputs: ReportInputs) -> list[tuple[str, str]]:
    """What voids the guarantee, as (headline, explanation)."""
    found = []
    if any(_has_fixed_seed(entry) for entry in inputs.entries):
        found.append(
            (
                "NOT PRIVATE: fixed seed",
                "The noise was drawn from a fixed seed, so anyone can draw it again and take it off. "
                "This run is a test. Do not hand it over.",
            )
        )
    if _spent(inputs.entries) > inputs.epsilon:
        found.append(
            ("NOT PRIVATE: budget exceeded", "The ledger adds up to more than the ε that this release is held to.")
        )
    if not inputs.ledger_ok:
        found.append(
            (
                "The ledger does not verify",
                "A line of the ledger was changed, removed or added by hand. "
                "What follows cannot be relied on; do not hand this folder over.",
            )
        )
    return found


def _has_fixed_seed(entry: dict[str, Any]) -> bool:
    return entry.get("private") is False or any("NOT PRIVATE" in str(value) for value in entry.values())


def _spent(entries: Iterable[dict[str, Any]]) -> float:
    return max((float(entry["epsilon"]) for entry in entries if entry.get("epsilon") is not None), default=0.0)


def _promise(inputs: ReportInputs, void: bool) -> str:
    if void:
        return '<p class="lead">This page makes no promise, for the reason given above.</p>'
    epsilon, delta = inputs.epsilon, inputs.delta
    # Beyond e^700 the factor leaves the range of floats; it stops meaning anything long before.
    factor = math.exp(min(epsilon, 700))
    two_steps = f"ε&nbsp;=&nbsp;{_rounded_up(2 * epsilon)}"
    two_delta = delta * (1 + factor)
    return _template("guarantee.html").substitute(
        epsilon=_rounded_up(epsilon),
        delta=_rounded_up(delta),
        n=f"{inputs.n:,}",
        factor=_rounded_up(factor),
        # The best test between two (epsilon, delta)-close outcomes at even odds (Kairouz, Oh & Viswanath 2015).
        best_guess=_percent_up((factor + delta) / (factor + 1)),
        swapped=f"{two_steps} and δ&nbsp;=&nbsp;{_rounded_up(two_delta)}."
        if two_delta < 1
        else f"{two_steps}, with a δ so large that nothing follows about swapped images.",
    )


def _template(name: str) -> string.Template:
    return string.Template(_read(name))


def _read(name: str) -> str:
    return resources.files("privimage_jax.report").joinpath(name).read_text(encoding="utf-8")


def _samples(inputs: ReportInputs) -> str:
    per_class = 12 if len(inputs.class_names) <= 20 else 6
    labels = np.asarray(inputs.labels)
    figures = []
    for index, name in enumerate(inputs.class_names):
        rows = np.flatnonzero(labels == index)[:per_class]
        if not len(rows):
            continue
        pictures = "".join(f'<img alt="" src="{plots.png_data_uri(np.asarray(inputs.images[row]))}">' for row in rows)
        figures.append(
            f'<figure role="img" aria-label="Synthetic images of class {_text(name)}">'
            f'<figcaption>{_text(name)}</figcaption><div class="strip">{pictures}</div></figure>'
        )
    if not figures:
        return '<p class="note">No images have been made yet.</p>'
    narrow = " narrow" if per_class < 12 else ""
    return (
        f'<p class="note">The first images of each class, of {len(labels):,} in <code>synthetic.npz</code>. '
        f'Nobody chose them.</p><div class="samples{narrow}">{"".join(figures)}</div>'
    )


def _budget(inputs: ReportInputs) -> str:
    parts = _mechanism_costs(inputs.entries)
    spent = sum(cost for _, cost in parts)
    whole = max(inputs.epsilon, spent)
    if not parts:
        return '<p class="note">Nothing has been spent yet.</p>'
    rows = [
        f'<li><i class="key part-{index}"></i><span>{_text(name)}</span><b>{_rounded_up(cost)}</b></li>'
        for index, (name, cost) in enumerate(parts)
    ]
    if whole - spent > 1e-9 * whole:
        rows.append(f'<li><i class="key rest"></i><span>left</span><b>{_rounded_down(whole - spent)}</b></li>')
    return (
        f"{plots.stacked_bar([cost / whole for _, cost in parts])}"
        f'<ul class="legend">{"".join(rows)}</ul>'
        f'<p class="note">What each mechanism added to the ε spent, in the order of the ledger and at the δ above. '
        f"In another order the parts would differ; the total would not.</p>"
    )


def _mechanism_costs(entries: Iterable[dict[str, Any]]) -> list[tuple[str, float]]:
    """`(mechanism, increase of the spent epsilon)`, in order of first appearance."""
    costs: dict[str, float] = {}
    before = 0.0
    for entry in entries:
        if entry.get("epsilon") is None:
            continue
        increase = max(0.0, float(entry["epsilon"]) - before)
        before += increase
        if increase:
            name = str(entry.get("mechanism") or entry["kind"])
            costs[name] = costs.get(name, 0.0) + increase
    return list(costs.items())


def _semantics(semantics: dict[str, Any] | None) -> str:
    if semantics is None:
        return ""
    if semantics.get("histogram") is None:
        return _blind_selection(semantics)
    histogram = np.asarray(semantics["histogram"])
    names, longest = semantics["semantic_names"], max(1, int(histogram.max(initial=0)))
    cards = []
    for class_name, counts, picked in zip(semantics["class_names"], histogram, semantics["picked"], strict=True):
        # Ties are broken by index, so that the order never depends on the sorting routine.
        order = sorted(range(len(counts)), key=lambda index: (-int(counts[index]), index))
        shown = order[:SEMANTICS_SHOWN]
        shown_picks = [index for index in order if index in set(picked)][:PICKS_SHOWN]
        shown += [index for index in shown_picks if index not in shown]
        rows = "".join(
            _semantic_row(str(names[index]), int(counts[index]), index in picked, longest) for index in shown
        )
        left = len(counts) - len(shown)
        more = f'<p class="more">and {left:,} more</p>' if left else ""
        cards.append(f'<article><h3>{_text(class_name)}</h3><ol class="histogram">{rows}</ol>{more}</article>')
    noise = semantics.get("noise_std")
    scatter = (
        f" Each count carries noise of standard deviation {float(noise):,.4g}: counts within a few times that of zero, "
        "negative ones included, may be nothing but noise."
        if noise
        else " Negative counts are noise."
    )
    return (
        '<section id="semantics"><h2>What the images are like</h2>'
        "<p>A network trained on public images named the closest public classes, the <em>semantics</em>, of every "
        f"sensitive image. These are the noisy counts in each class.{scatter} "
        '<span class="picked-key">Marked semantics</span> were picked: public images of them taught the generator '
        "first.</p>"
        f'<div class="cards">{"".join(cards)}</div></section>'
    )


def _blind_selection(semantics: dict[str, Any]) -> str:
    """What pre-training used where no semantic query was made."""
    heading = '<section id="semantics"><h2>What taught the generator</h2>'
    picked = semantics.get("picked")
    if picked is None:
        return f"{heading}<p>All public images, with no regard to the sensitive ones.</p></section>"
    names = semantics["semantic_names"]
    rows = "".join(
        f"<div><dt>{_text(class_name)}</dt><dd>{_text(', '.join(str(names[index]) for index in picks))}</dd></div>"
        for class_name, picks in zip(semantics["class_names"], picked, strict=True)
    )
    return (
        f"{heading}<p>Public images of these semantics, drawn with no regard to the sensitive images.</p>"
        f'<div class="settings"><dl>{rows}</dl></div></section>'
    )


def _semantic_row(name: str, count: int, picked: bool, longest: int) -> str:
    mark = ' class="picked"' if picked else ""
    spoken = '<span class="spoken"> (picked)</span>' if picked else ""
    return (
        f'<li{mark}><span class="name" title="{_text(name)}">{_text(name)}{spoken}</span>'
        f"{plots.bar(max(0, count) / longest)}<b>{_signed(count)}</b></li>"
    )


def _settings(settings: dict[str, str]) -> str:
    """Names such as "finetune.batch_size" are gathered under their first part; plain names come first."""
    groups: dict[str, list[tuple[str, str]]] = {"": []}
    for name, value in settings.items():
        group, dot, rest = name.partition(".")
        groups.setdefault(group if dot else "", []).append((rest if dot else name, str(value)))
    blocks = []
    for group, items in groups.items():
        heading = f"<h3>{_text(_words(group))}</h3>" if group else ""
        rows = "".join(
            f"<div><dt>{_text(_words(name))}</dt><dd>{_text(value) or '–'}</dd></div>" for name, value in items
        )
        if rows:
            blocks.append(f'<div class="group">{heading}<dl>{rows}</dl></div>')
    return f'<div class="settings">{"".join(blocks)}</div>'


def _words(name: str) -> str:
    return name.replace("_", " ").replace(".", " ")


def _ledger(inputs: ReportInputs) -> str:
    verdict = (
        '<p class="verdict good">The chain of hashes holds: every line names the one before it.</p>'
        if inputs.ledger_ok
        else '<p class="verdict bad">The chain of hashes is broken.</p>'
    )
    rows = "".join(_ledger_row(entry) for entry in inputs.entries)
    return (
        f'{verdict}<div class="scroll" tabindex="0"><table><thead><tr><th class="number">#</th><th>Entry</th>'
        f'<th class="number">Noise multiplier</th><th class="number">Sampling rate</th><th class="number">Steps</th>'
        f'<th class="number">ε spent</th><th>Line before</th><th>Further public values</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _ledger_row(entry: dict[str, Any]) -> str:
    steps = entry.get("steps")
    steps = f"{steps[0]:,} – {steps[1]:,}" if isinstance(steps, list | tuple) and len(steps) == 2 else _value(steps)
    kind, mechanism = _value(entry.get("kind")), _value(entry.get("mechanism"))
    previous = str(entry.get("previous") or "")
    epsilon = entry.get("epsilon")
    others = ", ".join(
        f"{_text(name.replace('_', ' '))}&nbsp;{_value(value)}"
        for name, value in sorted(entry.items())
        if name not in LEDGER_COLUMNS and value is not None
    )
    return (
        f'<tr><td class="number">{_value(entry.get("index"))}</td>'
        f"<td><strong>{mechanism or kind}</strong>{f' <small>{kind}</small>' if mechanism else ''}</td>"
        f'<td class="number">{_value(entry.get("noise_multiplier"))}</td>'
        f'<td class="number">{_value(entry.get("sampling_rate"))}</td><td class="number">{steps}</td>'
        f'<td class="number">{"" if epsilon is None else _rounded_up(float(epsilon))}</td>'
        f'<td><code title="{_text(previous)}">{_text(previous[:10])}</code></td><td class="others">{others}</td></tr>'
    )


def _text(value: Any) -> str:
    return html.escape(str(value))


def _value(value: Any) -> str:
    """Any public value of the ledger, escaped."""
    if value is None:
        return ""
    if isinstance(value, bool | str):
        return _text(value)
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return _scientific(Decimal(f"{value:.4g}")) if math.isfinite(value) else _text(value)
    return _text(json.dumps(value, sort_keys=True))


def _signed(count: int) -> str:
    return f"{count:,}".replace("-", "−")


def _rounded_up(value: float) -> str:
    """Four significant digits, never less than the value: what is spent must not look smaller."""
    if not math.isfinite(value):
        return "∞"
    return _scientific(Context(prec=4, rounding=ROUND_CEILING).create_decimal(repr(float(value))))


def _rounded_down(value: float) -> str:
    return _scientific(-Context(prec=4, rounding=ROUND_CEILING).create_decimal(repr(-float(value))))


def _percent_up(share: float) -> str:
    percent = Context(prec=6, rounding=ROUND_CEILING).create_decimal(repr(100 * share))
    return f"{_scientific(min(percent, Decimal(100)))}%"


def _scientific(value: Decimal) -> str:
    """Plain between 0.001 and a million, else with a power of ten; no trailing zeros."""
    if value == 0:
        return "0"
    exponent = value.adjusted()
    if -4 < exponent < 7:
        plain = f"{value:,f}"
        return (plain.rstrip("0").rstrip(".") if "." in plain else plain).replace("-", "−")
    mantissa = f"{value.scaleb(-exponent).normalize():f}".replace("-", "−")
    return f"{mantissa}&nbsp;×&nbsp;10<sup>{_signed(exponent)}</sup>"
