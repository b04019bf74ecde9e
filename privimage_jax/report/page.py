"""`release/report.html`: the guarantee in words, where the budget went, and what came out.

The page goes out with the release. It shows outputs of the mechanisms, post-processing of them and public values, and
nothing else: no clock time, no path, no measure on real images. The same inputs give the same bytes.
"""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from privimage_jax.metrics.top_k import Accuracy
from privimage_jax.privacy import rounding
from privimage_jax.report import curves, neighbours, plots, text
from privimage_jax.report.document import document, template
from privimage_jax.report.gallery import ImageSet, gallery
from privimage_jax.settings.units import UNITS, Unit

SEMANTICS_SHOWN = 15  # of each class, the strongest; fewer where there are many classes
SEMANTICS_SHOWN_IN_ALL = 2000
LEDGER_COLUMNS = ("index", "kind", "mechanism", "noise_multiplier", "sampling_rate", "steps", "epsilon", "previous")
FOOTER = (
    "Made by privimage_jax after PrivImage (Li et al., USENIX Security 2024). This page holds outputs of the private "
    "mechanisms, what follows from them, and public values. It loads nothing from elsewhere."
)


@dataclasses.dataclass(frozen=True)
class ReportInputs:
    """All that the page shows; every value is public or comes from a mechanism.

    Args:
      title: of the page.
      epsilon: the whole budget that the release is held to.
      delta: its delta.
      n: number N of sensitive records.
      entries: the ledger's lines in order: dicts with `index`, `kind` ("open", "gaussian", "sampled-gaussian",
        "dp-sgd", "closed"), `mechanism`, `noise_multiplier`, `sampling_rate`, `steps` [a, b), `epsilon` (spent after
        this line), `previous` (hash), each where it applies, and any further public fields. A field `private` that is
        False, or the words "NOT PRIVATE" in any field, void the guarantee.
      ledger_ok: whether the chain of hashes holds.
      semantics: None (no section), or `{"class_names", "semantic_names", "histogram": [[int]], "picked": [[int]]}`:
        the noisy count of every semantic in each class and the semantics each class picked, as indices.
        `"noise_std"`, the standard deviation of the noise on a count, may be there too. Without a query `histogram`
        is None, and `picked` too where all public images were used: with their labels if `"method"` is "all".
      images: synthetic, uint8 `[M, H, W, C]`, C = 1 or 3.
      labels: int `[M]`, indices into `class_names`.
      class_names: the declared classes.
      settings: public settings, as names and values ready to read.
      neighbourhoods: some synthetic images beside public ones; none (no section) where these may not be shown.
      training: titles and values of training on public images alone; fine-tuning's are not public.
      means: the noisy means of sensitive images that the generator learnt from; None (no section) without any.
      query_accuracy: how often the query network is right on held-out public images; None where that is not known.
      unit: what one record is.
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
    neighbourhoods: Sequence[neighbours.Neighbourhood] = ()
    training: Sequence[tuple[str, curves.Metric]] = ()
    means: ImageSet | None = None
    query_accuracy: Accuracy | None = None
    unit: Unit = UNITS["image"]


def render(inputs: ReportInputs) -> str:
    """The whole page: one HTML document that needs no other file and no network."""
    warnings = _warnings(inputs)
    body = template("release.html").substitute(
        title=text.escape(inputs.title),
        void=" void" if warnings else "",
        epsilon=text.rounded_up(inputs.epsilon),
        delta=text.rounded_up(inputs.delta),
        n=f"{inputs.n:,}",
        several=inputs.unit.several,
        n_classes=f"{len(inputs.class_names):,}",
        warnings="".join(
            f'<div class="warning" role="alert"><h2>{head}</h2><p>{body}</p></div>' for head, body in warnings
        ),
        promise=_promise(inputs, void=bool(warnings)),
        samples=_samples(inputs),
        budget=_budget(inputs),
        semantics=_semantics(inputs.semantics, inputs.unit),
        means=_means(inputs),
        neighbours=_neighbours(inputs.neighbourhoods),
        training=_training(inputs.training, inputs.query_accuracy),
        settings=_settings(inputs.settings),
        ledger=_ledger(inputs),
    )
    return document("release", f"{inputs.title} · private synthetic images", body, FOOTER)


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
    two_steps = f"ε&nbsp;=&nbsp;{text.rounded_up(2 * epsilon)}"
    two_delta = delta * (1 + factor)
    return template("guarantee.html").substitute(
        epsilon=text.rounded_up(epsilon),
        delta=text.rounded_up(delta),
        n=f"{inputs.n:,}",
        record=inputs.unit.record,
        one=inputs.unit.one,
        shared=inputs.unit.shared,
        limits=inputs.unit.limits,
        handed_out=text.percent_up(float(rounding.rounded_up(inputs.n * delta, 2))),
        factor=text.rounded_up(factor),
        # The best test between two (epsilon, delta)-close outcomes at even odds (Kairouz, Oh & Viswanath 2015).
        best_guess=text.percent_up((factor + delta) / (factor + 1)),
        swapped=f"{two_steps} and δ&nbsp;=&nbsp;{text.rounded_up(two_delta)}."
        if two_delta < 1
        else f"{two_steps}, with a δ so large that nothing follows about swapped {inputs.unit.several}.",
    )


def _samples(inputs: ReportInputs) -> str:
    shown = gallery([ImageSet("synthetic", inputs.images, inputs.labels)], inputs.class_names)
    if not shown:
        return '<p class="note">No images have been made yet.</p>'
    return (
        f'<p class="note">The first images of each class, of {len(inputs.labels):,} in <code>synthetic.npz</code>. '
        f"Nobody chose them.</p>{shown}"
    )


def _means(inputs: ReportInputs) -> str:
    if inputs.means is None:
        return ""
    return (
        '<section id="means"><h2>What all images have in common</h2>'
        "<p>Means of random subsets of the sensitive images of each class, with noise: they taught the generator "
        "first. They are part of the release, in <code>warmup.npz</code>, and the ledger has their cost.</p>"
        f"{gallery([inputs.means], inputs.class_names)}</section>"
    )


def _neighbours(neighbourhoods: Sequence[neighbours.Neighbourhood]) -> str:
    if not neighbourhoods:
        return ""
    return (
        '<section id="neighbours"><h2>Made or copied?</h2>'
        "<p>The generator first learnt from public images. Here is the first synthetic image of each class beside "
        "those of its public teachers that the network trained on public images finds most like it, the nearest "
        "first. No sensitive image was looked at for this.</p>"
        f"{neighbours.rows(neighbourhoods)}</section>"
    )


def _training(training: Sequence[tuple[str, curves.Metric]], accuracy: Accuracy | None) -> str:
    if not training and accuracy is None:
        return ""
    network = "" if accuracy is None else f"<p>The network trained on public images is {text.escape(accuracy)}.</p>"
    return (
        '<section id="training"><h2>Training on public images</h2>'
        f"{network}<p>What fine-tuning on the sensitive images looked like is not public.</p>"
        f"{curves.figures((title, metric, None) for title, metric in training)}</section>"
    )


def _budget(inputs: ReportInputs) -> str:
    parts = mechanism_costs(inputs.entries)
    spent = sum(cost for _, cost in parts)
    whole = max(inputs.epsilon, spent)
    if not parts:
        return '<p class="note">Nothing has been spent yet.</p>'
    rows = [
        f'<li><i class="key part-{index}"></i><span>{text.escape(name)}</span><b>{text.rounded_up(cost)}</b></li>'
        for index, (name, cost) in enumerate(parts)
    ]
    if whole - spent > 1e-9 * whole:
        rows.append(f'<li><i class="key rest"></i><span>left</span><b>{text.rounded_down(whole - spent)}</b></li>')
    return (
        f"{plots.stacked_bar([cost / whole for _, cost in parts])}"
        f'<ul class="legend">{"".join(rows)}</ul>'
        f'<p class="note">What each mechanism added to the ε spent, in the order of the ledger and at the δ above. '
        f"In another order the parts would differ; the total would not.</p>"
    )


def mechanism_costs(entries: Iterable[dict[str, Any]]) -> list[tuple[str, float]]:
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


def _semantics(semantics: dict[str, Any] | None, unit: Unit) -> str:
    if semantics is None:
        return ""
    if semantics.get("histogram") is None:
        return _blind_selection(semantics)
    histogram = np.asarray(semantics["histogram"])
    names, longest = semantics["semantic_names"], max(1, int(histogram.max(initial=0)))
    most = max(2, min(SEMANTICS_SHOWN, SEMANTICS_SHOWN_IN_ALL // max(1, len(histogram))))
    cards = []
    for class_name, counts, picked in zip(semantics["class_names"], histogram, semantics["picked"], strict=True):
        # Ties are broken by index, so that the order never depends on the sorting routine.
        order = sorted(range(len(counts)), key=lambda index: (-int(counts[index]), index))
        shown, picks = order[:most], set(picked)
        shown_picks = [index for index in order if index in picks][: 2 * most]
        shown += [index for index in shown_picks if index not in shown]
        rows = "".join(_semantic_row(str(names[index]), int(counts[index]), index in picks, longest) for index in shown)
        left = len(counts) - len(shown)
        more = f'<p class="more">and {left:,} more</p>' if left else ""
        cards.append(f'<article><h3>{text.escape(class_name)}</h3><ol class="histogram">{rows}</ol>{more}</article>')
    noise = semantics.get("noise_std")
    scatter = (
        f" Each count carries noise of standard deviation {float(noise):,.4g}: counts within a few times that of zero, "
        "negative ones included, may be nothing but noise."
        if noise
        else " Negative counts are noise."
    )
    shares = f" Each {unit.one} counts as one, in shares of their own images." if unit.groups_images else ""
    return (
        '<section id="semantics"><h2>What the images are like</h2>'
        "<p>A network trained on public images named the closest public classes, the <em>semantics</em>, of every "
        f"sensitive image. These are the noisy counts in each class.{shares}{scatter} "
        '<span class="picked-key">Marked semantics</span> were picked: public images of them taught the generator '
        "first.</p>"
        f'<div class="cards">{"".join(cards)}</div></section>'
    )


def _blind_selection(semantics: dict[str, Any]) -> str:
    """What pre-training used where no semantic query was made."""
    heading = '<section id="semantics"><h2>What taught the generator</h2>'
    picked = semantics.get("picked")
    if picked is None:
        n, folded = len(semantics["class_names"]), semantics.get("method") == "all"
        labels = f"Public class s taught class s mod {n}, both counted from 0." if folded else "They taught no class."
        return f"{heading}<p>All public images, with no regard to the sensitive ones. {labels}</p></section>"
    names = semantics["semantic_names"]
    rows = "".join(
        _definition(class_name, ", ".join(str(names[index]) for index in picks))
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
        f'<li{mark}><span class="name" title="{text.escape(name)}">{text.escape(name)}{spoken}</span>'
        f"{plots.bar(max(0, count) / longest)}<b>{text.signed(count)}</b></li>"
    )


def _settings(settings: dict[str, str]) -> str:
    """Names such as "finetune.batch_size" are gathered under their first part; plain names come first."""
    groups: dict[str, list[tuple[str, str]]] = {"": []}
    for name, value in settings.items():
        group, dot, rest = name.partition(".")
        groups.setdefault(group if dot else "", []).append((rest if dot else name, str(value)))
    blocks = []
    for group, items in groups.items():
        heading = f"<h3>{text.escape(text.words(group))}</h3>" if group else ""
        rows = "".join(_definition(text.words(name), value or "–") for name, value in items)
        if rows:
            blocks.append(f'<div class="group">{heading}<dl>{rows}</dl></div>')
    return f'<div class="settings">{"".join(blocks)}</div>'


def _definition(term: str, meaning: str) -> str:
    return f"<div><dt>{text.escape(term)}</dt><dd>{text.escape(meaning)}</dd></div>"


def _ledger(inputs: ReportInputs) -> str:
    verdict = (
        '<p class="verdict good">The chain of hashes holds: every line names the one before it.</p>'
        if inputs.ledger_ok
        else '<p class="verdict bad">The chain of hashes is broken.</p>'
    )
    rows = "".join(_ledger_row(entry) for entry in inputs.entries)
    return (
        f'{verdict}<div class="scroll" tabindex="0" role="region" aria-label="Ledger"><table><thead><tr>'
        f'<th class="number">#</th><th>Entry</th><th class="number">Noise multiplier</th>'
        f'<th class="number">Sampling rate</th><th class="number">Steps</th><th class="number">ε spent</th>'
        f"<th>Line before</th><th>Further public values</th></tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _ledger_row(entry: dict[str, Any]) -> str:
    steps = entry.get("steps")
    span = "{:,} – {:,}".format(*steps) if isinstance(steps, list | tuple) and len(steps) == 2 else text.value(steps)
    kind, mechanism = text.value(entry.get("kind")), text.value(entry.get("mechanism"))
    previous = str(entry.get("previous") or "")
    epsilon = entry.get("epsilon")
    others = ", ".join(
        f"{text.escape(name.replace('_', ' '))}&nbsp;{text.value(value)}"
        for name, value in sorted(entry.items())
        if name not in LEDGER_COLUMNS and value is not None
    )
    return (
        f'<tr><td class="number">{text.value(entry.get("index"))}</td>'
        f"<td><strong>{mechanism or kind}</strong>{f' <small>{kind}</small>' if mechanism else ''}</td>"
        f'<td class="number">{text.value(entry.get("noise_multiplier"))}</td>'
        f'<td class="number">{text.value(entry.get("sampling_rate"))}</td>'
        f'<td class="number">{span}</td>'
        f'<td class="number">{"" if epsilon is None else text.rounded_up(float(epsilon))}</td>'
        f'<td><code title="{text.escape(previous)}">{text.escape(previous[:10])}</code></td>'
        f'<td class="others">{others}</td></tr>'
    )
