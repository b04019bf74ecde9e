"""`internal/inspection.html`: the image sets of a run before anything is spent, with what looks wrong.

It shows sensitive images, and says so on top.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from privimage_jax.data.dataset import Dataset, Subset
from privimage_jax.data.inspection.findings import Finding
from privimage_jax.data.inspection.found import Found
from privimage_jax.report import plots, text
from privimage_jax.report.document import NOT_PRIVATE, document, template
from privimage_jax.report.gallery import ImageSet, gallery
from privimage_jax.settings.units import UNITS

KIND = "inspection"
SECTIONS = {"data": "Sensitive", "public": "Public"}
CLASSES_SHOWN = 24  # with images: a row each, and room for several images in it
COPIES_SHOWN = 100
SIZES_SHOWN = 30  # classes whose sizes are listed; of more the smallest and the largest


@dataclasses.dataclass(frozen=True)
class ShownSet:
    """Images that the page shows.

    Attributes:
      section: of the config, "data" or "public".
      name: of the part, such as "held out".
      dataset: the images as the networks see them.
      histogram: how often each value occurs in them, int64 [256].
    """

    section: str
    name: str
    dataset: Dataset
    histogram: np.ndarray


def render(title: str, found: Mapping[str, Found], shown: Sequence[ShownSet]) -> str:
    """The whole page: one HTML document that needs no other file and no network.

    Args:
      title: of the run.
      found: what was found in each section of the config that names a set.
      shown: the images of these sets, as far as they could be read.
    """
    body = template("inspection.html").substitute(
        title=text.escape(title),
        verdict=_verdict(found),
        findings=_findings(found) + _copies(found),
        found=_found(found),
        images="".join(_images(section, shown) for section in SECTIONS) or '<p class="note">There is no image.</p>',
        brightness=f'<div class="curves">{"".join(map(_brightness, shown))}</div>',
        classes=f'<div class="cards">{"".join(_sizes(name, each) for name, each in found.items())}</div>',
    )
    return document(KIND, f"{title} · inspection, not private", body, NOT_PRIVATE)


def _verdict(found: Mapping[str, Found]) -> str:
    if any(each.refusals for each in found.values()):
        return '<p class="verdict bad">A run would be refused before it spends anything.</p>'
    return '<p class="verdict good">A run would start.</p>'


def _findings(found: Mapping[str, Found]) -> str:
    every = [(name, finding) for name, each in found.items() for finding in each.findings]
    every.sort(key=lambda pair: not pair[1].refuses)  # what stops a run comes first
    cards = "".join(_finding(SECTIONS[name], finding) for name, finding in every)
    return f'<div class="cards">{cards}</div>' if cards else "<p>Nothing looks wrong.</p>"


def _finding(section: str, finding: Finding) -> str:
    weight = "stops a run" if finding.refuses else "warning"
    is_setting = finding.message.startswith("config.")  # else the beginning of a sentence
    message = finding.message if is_setting else finding.message[:1].upper() + finding.message[1:]
    return (
        f'<article><h3>{text.escape(text.words(finding.code))}</h3><p class="note">{section} images, {weight}</p>'
        f"<p>{text.escape(message)}</p></article>"
    )


def _copies(found: Mapping[str, Found]) -> str:
    """Images that are there twice, by what they are called; "" where there is none."""
    every = [copy for each in found.values() for copy in each.copies]
    if not every:
        return ""
    rows = "".join(
        f"<tr><td>{text.escape(text.words(copy['code']))}</td><td>{text.escape(copy['image'])}</td>"
        f"<td>{text.escape(copy['copy_of'])}</td></tr>"
        for copy in every[:COPIES_SHOWN]
    )
    left = len(every) - COPIES_SHOWN
    more = f'<p class="more">and {left:,} more</p>' if left > 0 else ""
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Copies"><table class="runs"><thead>'
        f"<tr><th>finding</th><th>image</th><th>copy of</th></tr></thead><tbody>{rows}</tbody></table></div>{more}"
    )


def _found(found: Mapping[str, Found]) -> str:
    heads = "".join(f"<th>{SECTIONS[name]}</th>" for name in found)
    rows = zip(*(list(facts(each)) for each in found.values()), strict=True)
    lines = "".join(
        f'<tr><th scope="row">{row[0][0]}</th>{"".join(f"<td>{text.escape(value)}</td>" for _, value in row)}</tr>'
        for row in rows
    )
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="What was found"><table class="runs"><thead>'
        f"<tr><td></td>{heads}</tr></thead><tbody>{lines}</tbody></table></div>"
    )


def facts(found: Found) -> Iterator[tuple[str, str]]:
    """(what, value) in words."""
    yield "Source", found.source
    yield "Labels from", found.labels_from or "–"
    yield "Training images", f"{found.n:,}"
    yield "N, public", f"{found.n_records:,} {UNITS[found.unit].several}" if found.unit else "–"
    yield "Classes", f"{len(found.classes):,}"
    yield "Parts", counted(found.parts)
    yield "Stored sizes", counted(found.sizes)
    yield "Stored pixels", counted(found.depths)
    yield "People", people(found)


def counted(counts: Mapping[str, int], most: int = 6) -> str:
    """Names with their counts, the most frequent first."""
    ordered = sorted(counts.items(), key=lambda pair: -pair[1])
    said = [f"{name}: {count:,}" for name, count in ordered[:most]]
    return ", ".join(said + [f"{len(ordered) - most:,} more"] * (len(ordered) > most)) or "–"


def people(found: Found) -> str:
    """Whose images they are, in words."""
    if found.people is None:
        return "not given"
    return f"{found.people['count']:,}, with at most {found.people['most_images_of_one']:,} images of one"


def _images(section: str, shown: Sequence[ShownSet]) -> str:
    """The parts of one set side by side; only the first classes, so that each has several images."""
    sets = [each for each in shown if each.section == section]
    if not sets:
        return ""
    class_names = sets[0].dataset.class_names
    strips = gallery([_first_classes(each) for each in sets], class_names)
    left = len(class_names) - CLASSES_SHOWN
    more = f'<p class="more">and {left:,} more classes</p>' if left > 0 else ""
    return f"<h3>{SECTIONS[section]}</h3>{strips}{more}"


def _first_classes(shown: ShownSet) -> ImageSet:
    rows = np.flatnonzero(shown.dataset.labels < CLASSES_SHOWN)
    return ImageSet(shown.name, Subset(shown.dataset.images, rows), shown.dataset.labels[rows])


def _brightness(shown: ShownSet) -> str:
    ends = [share / max(1, shown.histogram.sum()) for share in shown.histogram[[0, -1]].tolist()]
    name = f"{SECTIONS[shown.section]}, {shown.name}" if shown.section == "data" else SECTIONS[shown.section]
    told = f"{ends[0]:.1%} of all values are 0, {ends[1]:.1%} are 255"
    drawn = plots.columns(shown.histogram[1:-1], f"{name}: how often each value occurs")
    return f'<figure class="curve"><figcaption>{name}</figcaption>{drawn}<p class="note">{told}</p></figure>'


def _sizes(name: str, found: Found) -> str:
    sizes, longest = list(found.classes.items()), max([1, *found.classes.values()])
    note = ""
    if (left := len(sizes) - SIZES_SHOWN) > 0:
        sizes.sort(key=lambda pair: pair[1])
        sizes = sizes[: SIZES_SHOWN // 2] + sizes[-SIZES_SHOWN // 2 :]
        note = f'<p class="more">the smallest and the largest; {left:,} more lie between</p>'
    rows = "".join(
        f'<li><span class="name" title="{text.escape(each)}">{text.escape(each)}</span>'
        f"{plots.bar(count / longest)}<b>{count:,}</b></li>"
        for each, count in sizes
    )
    return f'<article><h3>{SECTIONS[name]}, training</h3><ol class="histogram">{rows}</ol>{note}</article>'
