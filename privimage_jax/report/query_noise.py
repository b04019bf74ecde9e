"""The section of an internal page that shows what the noise of the semantic query has changed. Not private."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from privimage_jax.report import text

SHOWN = 10  # semantics of each class, the strongest, beside those that were picked
SHOWN_IN_ALL = 1000


@dataclasses.dataclass(frozen=True)
class NoiseOfQuery:
    """Counts and picks with and without the noise.

    Args:
      class_names: C sensitive classes.
      semantic_names: S public classes.
      exact: int `[C, S]`, the counts before the noise: sensitive.
      noisy: int `[C, S]`, those that the query gave.
      picked: int `[C, k2]`, the semantics that were picked from the noisy counts.
      picked_from_exact: int `[C, k2]`, those that the exact counts would have picked.
      noise_std: standard deviation of the noise on a count.
    """

    class_names: Sequence[str]
    semantic_names: Sequence[str]
    exact: np.ndarray
    noisy: np.ndarray
    picked: np.ndarray
    picked_from_exact: np.ndarray
    noise_std: float

    @property
    def agreeing(self) -> np.ndarray:
        """How many of each class's picks are the same with and without the noise: int `[C]`."""
        pairs = zip(self.picked, self.picked_from_exact, strict=True)
        return np.array([len({*with_noise.tolist()} & {*without.tolist()}) for with_noise, without in pairs])

    @property
    def share_agreeing(self) -> float:
        """The share of all picks that are the same, in [0, 1]."""
        return float(self.agreeing.sum() / self.picked.size)


def section(noise: NoiseOfQuery) -> str:
    """The section as HTML."""
    most = max(2, min(SHOWN, SHOWN_IN_ALL // max(1, len(noise.class_names))))
    cards = "".join(_card(noise, row, most) for row in range(len(noise.class_names)))
    return (
        '<section id="query-noise"><h2>What the noise of the query changed</h2>'
        f"<p>{int(noise.agreeing.sum()):,} of {noise.picked.size:,} picks are those that the exact counts would have "
        f"given. Every noisy count has noise of standard deviation {text.value(float(noise.noise_std))}. The noisy "
        "counts are in the release; the exact ones are not private.</p>"
        f'<div class="cards">{cards}</div></section>'
    )


def _card(noise: NoiseOfQuery, row: int, most: int) -> str:
    """The strongest semantics of one class by either count, and all that were picked either way."""
    exact, noisy = noise.exact[row], noise.noisy[row]
    picked, without = {*noise.picked[row].tolist()}, {*noise.picked_from_exact[row].tolist()}
    strongest = {index for counts in (exact, noisy) for index in np.argsort(-counts, kind="stable")[:most].tolist()}
    order = sorted(strongest | picked | without, key=lambda index: (-int(noisy[index]), index))
    left = len(noisy) - len(order)
    more = f'<p class="more">and {left:,} more</p>' if left else ""
    lines = "".join(
        f"<tr><td>{text.escape(noise.semantic_names[index])}</td>{_number(exact[index])}{_number(noisy[index])}"
        f"<td>{_when(index in picked, index in without)}</td></tr>"
        for index in order
    )
    name = text.escape(noise.class_names[row])
    return (
        f'<article><h3>{name}</h3><p class="note">{noise.agreeing[row]} of {len(noise.picked[row])} picks agree.</p>'
        f'<div class="scroll" tabindex="0" role="region" aria-label="Counts of {name}"><table><thead><tr>'
        '<th>Semantic</th><th class="number">Exact</th><th class="number">Noisy</th><th>Picked</th></tr></thead>'
        f"<tbody>{lines}</tbody></table></div>{more}</article>"
    )


def _number(count: np.integer) -> str:
    return f'<td class="number">{text.signed(int(count))}</td>'


def _when(with_noise: bool, without: bool) -> str:
    """Whether a semantic was picked, in words."""
    if with_noise and without:
        return "either way"
    return "with noise" if with_noise else "without noise" if without else ""
