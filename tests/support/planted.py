"""Mistakes that are planted into the real code, one at a time: a named check must catch each, and pass without it."""

import dataclasses
from collections.abc import Callable, Sequence

import pytest

from privimage_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Bug:
    """A mistake, the check that catches it, and what that check says."""

    plant: Callable
    check: Callable
    says: str


def tests_of(bugs: Sequence[Bug]) -> tuple[Callable, Callable, Callable]:
    """The fixture and the two tests of a file: to be named score, test_the_check_passes_…, test_the_bug_is_caught."""
    checks = tuple(dict.fromkeys(bug.check for bug in bugs))

    @pytest.fixture(scope="module")
    def score():
        """Counts the bugs that were caught and prints the sum."""
        caught = []
        yield caught
        print(f"\nplanted bugs caught: {len(caught)} of {len(bugs)}")

    @pytest.mark.parametrize("check", checks, ids=lambda check: check.__name__)
    def test_the_check_passes_without_the_bug(check, tmp_path):
        check(tmp_path)

    @pytest.mark.parametrize("bug", bugs, ids=lambda bug: bug.plant.__name__)
    def test_the_bug_is_caught(bug, tmp_path, monkeypatch, score):
        bug.plant(monkeypatch)
        with pytest.raises((AssertionError, UserError, ValueError), match=bug.says):
            bug.check(tmp_path)
        score.append(bug)

    return score, test_the_check_passes_without_the_bug, test_the_bug_is_caught
