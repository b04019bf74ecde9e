"""What is said of one or several ledgers: never less than was spent, and whether it is void."""

import pytest
from finished_runs import QUERY, TERMS

from privimage_jax.commands import ledger
from privimage_jax.errors import UserError
from privimage_jax.privacy import accounting
from privimage_jax.privacy.ledger import Ledger

BARELY_MORE = 1.0000001  # the nearest of six digits is below it


def write(path, **terms) -> Ledger:
    ledger = Ledger.open(path)
    ledger.spend("gaussian", lambda events: BARELY_MORE, TERMS | terms, **QUERY)
    return ledger


def test_epsilons_are_printed_rounded_up(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(accounting, "joint_epsilon", lambda runs, accountant: (2 * BARELY_MORE, 2e-5))
    paths = [write(tmp_path / name).path for name in ("a", "b")]
    ledger.show(list(map(str, paths)), verified=False)
    out = capsys.readouterr().out
    assert out.count("spent in all: epsilon = 1.00001 of 5 at delta = 1e-05\n") == 2
    assert "together: epsilon = 2.00001 at delta = 2e-05, the sum of the 2 deltas; all" in out


@pytest.mark.parametrize(
    ("note", "told"), [({"note": "NOT PRIVATE: a test"}, "NOT PRIVATE: a test"), ({}, "NOT PRIVATE")]
)
def test_one_void_ledger_voids_the_sum(tmp_path, note, told):
    kept, void = write(tmp_path / "a").entries, write(tmp_path / "b", private=False, **note).entries
    assert f"the sum of the 2 deltas ({told}); all" in ledger.describe_joint([kept, void])
    assert "NOT PRIVATE" not in ledger.describe_joint([kept, kept])
    assert (ledger.void_note([kept]), ledger.void_note([kept, void])) == ("", told)


def test_ledgers_of_different_units_do_not_add_up(tmp_path, capsys):
    image, person = write(tmp_path / "a"), write(tmp_path / "b", unit="person")
    with pytest.raises(UserError, match="different units, image and person, so that their epsilons have no sum; give"):
        ledger.show([str(image.path), str(person.path)], verified=False)
    assert "have no sum" in ledger.describe_joint([image.entries, person.entries])
    assert capsys.readouterr().out == ""
    assert "what one person risks by all of them" in ledger.describe_joint([person.entries] * 2)
    ledger.show([str(person.path)], verified=False)
    assert f"for any one person of {TERMS['n']:,}\n" in capsys.readouterr().out


def test_a_ledger_does_not_go_on_with_another_unit(tmp_path):
    with pytest.raises(UserError, match="was opened with unit = None, not 'person'"):
        write(tmp_path / "a").check_terms(TERMS | {"unit": "person"})
    with pytest.raises(ValueError, match="cannot hold unit = 'family'"):
        write(tmp_path / "b", unit="family")
