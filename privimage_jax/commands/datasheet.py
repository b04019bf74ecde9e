"""The datasheet of an export: guarantee, content, origin, how to load it, and licence."""

import json
from typing import Any

import numpy as np

import privimage_jax
from privimage_jax.commands.release import Release
from privimage_jax.privacy.ledger import total_epsilon
from privimage_jax.privacy.rounding import plain_up
from privimage_jax.settings import units


def render(release: Release, stored: str, load: str) -> str:
    """The page, in Markdown.

    Args:
      release: what is exported.
      stored: a sentence on how it is stored.
      load: Python that loads it.
    """
    terms = release.ledger[0]
    counts = np.bincount(release.labels, minlength=len(release.class_names))
    classes = [
        [label, _cell(class_name), folder, count]
        for label, (class_name, folder, count) in enumerate(
            zip(release.class_names, release.folders(), counts.tolist(), strict=True)
        )
    ]
    settings = "\n".join(
        f"{key} = {json.dumps(release.settings[key], ensure_ascii=False)}" for key in sorted(release.settings)
    )
    spending = [
        [
            _cell(line["mechanism"]),
            line["noise_multiplier"],
            line.get("sampling_rate", ""),
            "{} to {}".format(*line["steps"]) if "steps" in line else "",
            plain_up(line["epsilon"]),
        ]
        for line in release.ledger
        if "epsilon" in line
    ]
    promise, unit = _PROMISE if terms["private"] else _VOID, units.of_terms(terms)
    return _PAGE.format(
        title=_cell(str(release.settings.get("name", ""))) or "Images",
        what=describe(release),
        promise=promise.format(
            note=terms.get("note", "NOT PRIVATE"),
            n=f"{terms['n']:,}",
            record=unit.record,
            limits=unit.limits,
            one=unit.one,
            several=unit.several,
            shared=unit.shared,
            epsilon=plain_up(terms["epsilon_target"]),
            delta=plain_up(terms["delta"]),
            handed_out=plain_up(terms["n"] * terms["delta"], 2),
            spent=plain_up(total_epsilon(release.ledger)),
        ),
        ledger=_table(["mechanism", "noise multiplier", "sampling rate", "steps", "ε spent so far"], spending)
        if spending
        else "Nothing was spent: no mechanism looked at the sensitive images.",
        accountant=terms["accountant"],
        digest=release.ledger_digest,
        classes=_table(["label", "class", "folder", "images"], classes),
        stored=stored,
        load=load,
        version=privimage_jax.__version__,
        settings=settings,
    )


def describe(release: Release) -> str:
    """One sentence."""
    n, height, width, channels = release.images.shape
    colour = "grey" if channels == 1 else "RGB"
    void = "" if release.ledger[0]["private"] else "NOT PRIVATE: "
    return f"{void}{n:,} synthetic images, {height}×{width} {colour}, in {len(release.class_names)} classes."


def _table(head: list[str], rows: list[list[Any]]) -> str:
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in (head, ["---"] * len(head), *rows))


def _cell(text: str) -> str:
    """Text from a config, on one line and without what Markdown would take for layout."""
    plain = "".join(c if c.isprintable() else " " for c in text)
    return "".join(f"\\{c}" if c in "\\`*_{}[]<>#|!" else c for c in plain).strip()


_PAGE = """\
# {title}

{what}

## Privacy

{promise}

{ledger}

Every ε above was recomputed from the other numbers with dp-accounting ({accountant}) when this was written. SHA-256 of
the release's `ledger.jsonl`: `{digest}`.

## Content

The counts are of synthetic images; how many sensitive ones a class has is protected.

{classes}

## Loading

{stored}

```python
{load}
```

## Origin

Drawn by privimage_jax {version}. The settings say how its generator was trained on public and on sensitive images.

```
{settings}
```

## Licence

*To be filled in by the owner of the sensitive images.*
"""

_PROMISE = """\
For each one of the {n} sensitive {several}: with a null record in its place, which counts nowhere, the
release that these images are part of would have come out almost as likely as it is. A record is {record}. "Almost" is
(ε, δ)-differential privacy with ε = {epsilon} and δ = {delta}: no outcome's probability changes by more than the
factor e^ε, apart from a chance of δ. The mechanisms below have spent ε = {spent} of it.

- A mechanism that hands out one random record with the chance N·δ = {handed_out} meets this δ too.
- {limits}
- Exchanging one {one} for another costs two such steps.
- A second release made from {shared} adds its own ε and δ.
- The number of records, the list of classes, the image shape and all settings are public and not protected.
- The guarantee of DP-SGD is for real arithmetic; attacks on the last bits of floating-point noise are outside it."""

_VOID = """\
**{note}. This set promises nothing.** The noise can be drawn again and taken off, so that the {n} sensitive
{several} are not protected, whatever the numbers below say. It is the result of a test: do not hand it over."""
