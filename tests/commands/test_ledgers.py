"""What is said of one or several ledgers: never less than was spent, whether it is void, and how they are related."""

import hashlib
import shutil

import pytest
from finished_runs import QUERY, TERMS

from privimage_jax.commands import kinship, ledger
from privimage_jax.errors import UserError
from privimage_jax.privacy import accounting
from privimage_jax.privacy.ledger import Ledger, spent
from privimage_jax.privacy.rounding import plain_up

BARELY_MORE = 1.0000001  # the nearest of six digits is below it
DELTA = TERMS["delta"]
ONE, OTHER = ({"release/query.json": digit * 64} for digit in "12")  # artefacts of a mechanism


def cost(events):
    return accounting.epsilon(accounting.events_from(events), DELTA, "rdp")


def write(path, **terms) -> Ledger:
    ledger = Ledger.open(path)
    ledger.spend("gaussian", lambda events: BARELY_MORE, TERMS | terms, **QUERY)
    return ledger


def run(path, name="a" * 32, query=ONE, training=None, keys=("1" * 32, "2" * 32)) -> Ledger:
    """The ledger of a run with this name; a mechanism with artefacts is closed, one with {} is open.

    `keys` name the computations of query and training.
    """
    book = Ledger.open(path)
    terms = TERMS | {"mechanisms": ["query", "training"]} | ({"run": name} if name else {})
    for mechanism, artefacts, key in (("query", query, keys[0]), ("training", training, keys[1])):
        if artefacts is not None:
            book.spend("gaussian", cost, terms, **{**QUERY, "mechanism": mechanism, "computation": key})
        if artefacts:
            book.append("closed", mechanism=mechanism, artefacts=artefacts)
    return book


def epsilon_of(mechanisms: int) -> str:
    """What so many mechanisms cost, as it is printed."""
    return plain_up(cost([{"noise_multiplier": QUERY["noise_multiplier"]}] * mechanisms), ledger.DIGITS)


def mechanisms_run(*ledgers) -> int:
    """How many mechanisms ledgers cost together, all of one noise."""
    return sum(len(lines) for lines in kinship.between([book.entries for book in ledgers]).costs)


def test_epsilons_are_printed_rounded_up(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(accounting, "epsilon", lambda events, delta, accountant: 2 * BARELY_MORE)
    paths = [write(tmp_path / name).path for name in ("a", "b")]
    ledger.show(list(map(str, paths)), verified=False)
    out = capsys.readouterr().out
    assert (
        out.count(f"spent in all: epsilon = 1.00001 of 5 at delta = 1e-05, for any one image of {TERMS['n']:,}\n") == 2
    )
    assert "together: epsilon = 2.00001 at delta = 1e-05, that of each run; all" in out


@pytest.mark.parametrize(
    ("note", "told"), [({"note": "NOT PRIVATE: a test"}, "NOT PRIVATE: a test"), ({}, "NOT PRIVATE")]
)
def test_one_void_ledger_voids_the_sum(tmp_path, note, told):
    kept, void = write(tmp_path / "a").entries, write(tmp_path / "b", private=False, **note).entries
    assert f"that of each run ({told}); all" in ledger.describe_joint([kept, void])
    assert "NOT PRIVATE" not in ledger.describe_joint([kept, kept])
    assert (ledger.void_note([kept]), ledger.void_note([kept, void])) == ("", told)


def test_ledgers_of_different_units_do_not_add_up(tmp_path, capsys):
    image, person = write(tmp_path / "a"), write(tmp_path / "b", unit="person")
    with pytest.raises(UserError, match="different units, image and person, so that their epsilons have no sum; give"):
        ledger.show([str(image.path), str(person.path)], verified=False)
    assert "have no sum" in ledger.describe_joint([image.entries, person.entries])
    assert capsys.readouterr().out == ""
    said = ledger.describe_joint([person.entries] * 2)
    assert "read images of the same people: then it is what one person risks by all of them" in said
    ledger.show([str(person.path)], verified=False)
    assert f"for any one person of {TERMS['n']:,}\n" in capsys.readouterr().out


def test_a_ledger_does_not_go_on_with_another_unit(tmp_path):
    with pytest.raises(UserError, match="was opened with unit = None, not 'person'"):
        write(tmp_path / "a").check_terms(TERMS | {"unit": "person"})
    with pytest.raises(ValueError, match="cannot hold unit = 'family'"):
        write(tmp_path / "b", unit="family")


def test_other_runs_add_up_at_a_delta_of_one(tmp_path):
    """At the sum of the deltas epsilon would look smaller beside those of the runs."""
    lines = [run(tmp_path / name, name * 32, ONE, OTHER).entries for name in "ab"]
    lines[1] = [lines[1][0] | {"delta": 2 * DELTA}, *lines[1][1:]]
    assert f"epsilon = {epsilon_of(4)} at delta = 1e-05, the smallest of theirs" in ledger.describe_joint(lines)
    found = kinship.between(lines)
    assert (sum(map(len, found.costs)), found.notes, found.conflicts) == (4, [], [])


@pytest.mark.parametrize(
    ("earlier", "mechanisms"),
    [({"training": ONE}, 2), ({"training": {}}, 2), ({}, 2), ({"query": {}}, 2)],
    ids=["a copy", "during training", "before training", "during the query"],
)
def test_copies_and_earlier_states_of_a_run_cost_once(tmp_path, privimage, earlier, mechanisms):
    books = [run(tmp_path / "whole", training=ONE), run(tmp_path / "earlier", **earlier)]
    for pair in (books, books[::-1]):
        assert mechanisms_run(*pair) == mechanisms
        out = privimage("ledger", *(book.path for book in pair)).succeeds().out
        assert f"spent in all: epsilon = {epsilon_of(mechanisms)}" in out
        assert f"together: epsilon = {epsilon_of(mechanisms)} at delta" in out
        assert f"{pair[0].path} and {pair[1].path} are of one run, copies or earlier states of each other" in out


@pytest.mark.parametrize(
    ("keys", "training", "mechanisms", "again"),
    [
        ("13", OTHER, 3, "ran the training 2 times"),
        ("13", ONE, 3, "ran the training 2 times"),
        ("13", {}, 3, "ran the training 2 times"),
        ("34", OTHER, 4, "ran the query 2 times and the training 2 times"),
        ("32", OTHER, 3, "ran the query 2 times"),
    ],
    ids=["another output", "an equal output", "none yet", "from the start", "one mechanism"],
)
def test_a_run_that_was_taken_back_and_run_again_is_an_error(tmp_path, privimage, keys, training, mechanisms, again):
    """Audit: the ledgers were equal to the byte, and averaging the two releases went unnoticed.

    Later: outputs of independent noise may be equal, and one may have left before its mechanism closes.
    """
    names = tuple(key * 32 for key in keys)
    books = [run(tmp_path / "first", training=ONE), run(tmp_path / "second", training=training, keys=names)]
    assert mechanisms_run(*books) == mechanisms
    result = privimage("ledger", *(book.path for book in books))
    result.refuses(f"first and {tmp_path / 'second'} are of one run, but went on apart: together they {again}")
    assert f"together: epsilon = {epsilon_of(mechanisms)} at delta" in result.out and "of one run" not in result.out
    lines = [book.entries for book in books]
    assert "Beware: first and second are of one run" in ledger.describe_joint(lines, ["first", "second"])


@pytest.mark.parametrize(
    ("query", "training", "named"),
    [(ONE, OTHER, "the training"), (OTHER, ONE, "the query"), (OTHER, OTHER, "the query and the training")],
)
def test_other_outputs_under_equal_noise_are_an_error(tmp_path, privimage, query, training, named):
    """A copy that was gone on with on other devices, or with other code that went unseen: the noise subtracts out."""
    books = [run(tmp_path / "first", training=ONE), run(tmp_path / "second", query=query, training=training)]
    for pair in (books, books[::-1]):
        result = privimage("ledger", *(book.path for book in pair))
        result.refuses(f"are of one run and have other outputs of {named} under equal noise")
        assert "it counts once" not in result.out
    early = run(tmp_path / "early", training={})
    assert not kinship.between([books[0].entries, early.entries]).conflicts


def steps(book, begin, end, computation, generation=0):
    """Reserves steps of the training."""
    line = {"mechanism": "training", "steps": [begin, end], "noise_multiplier": 8.0, "sampling_rate": 0.5}
    line |= {"clip_norm": 1.0, "expected_batch_size": 50, "key_generation": generation}
    book.spend("dp-sgd", lambda events: 1.0, **line, computation=computation)
    return book


def test_steps_of_one_computation_count_once_and_a_beginning_under_another_key_counts(tmp_path):
    """Audit: 10 steps under a fresh key, from a copy made before training, were taken for the first 10 of the whole."""
    whole = steps(steps(run(tmp_path / "whole"), 0, 10, "2" * 32), 10, 30, "2" * 32)
    for place, (computation, drawn) in enumerate([("2" * 32, 30), ("3" * 32, 40)]):
        lines = [whole.entries, steps(run(tmp_path / str(place)), 0, 10, computation).entries]
        found = kinship.between(lines)
        events = [event for own in found.costs for event in spent(own)]
        assert sum(event.get("steps", 0) for event in events) == drawn
        assert len(events) == 2 + (drawn == 40)  # the query once
        assert bool(found.conflicts) == (drawn == 40)


def test_a_key_that_was_lost_is_no_conflict_unless_it_went_on_elsewhere(tmp_path):
    """One ledger tells of both keys; then a copy still has the first and goes on."""
    lost = steps(steps(run(tmp_path / "lost"), 0, 10, "2" * 32), 10, 20, "3" * 32, generation=1)
    early = steps(run(tmp_path / "early"), 0, 10, "2" * 32)
    assert not kinship.between([lost.entries, early.entries]).conflicts
    found = kinship.between([lost.entries, steps(early, 10, 30, "2" * 32).entries])
    assert sum(event.get("steps", 0) for own in found.costs for event in spent(own)) == 40
    assert found.conflicts


def test_lines_that_name_no_computation_count_for_each_ledger(tmp_path):
    books = [run(tmp_path / "one"), run(tmp_path / "other", query=None)]
    books[1].append("open", **{k: v for k, v in books[0].entries[0].items() if k not in ("index", "kind", "previous")})
    books[1].spend("gaussian", cost, **QUERY)
    assert mechanisms_run(*books) == 2


def test_ledgers_of_earlier_versions_each_count(tmp_path, privimage):
    """They have no name, so that copies cannot be told; they stay readable."""
    one, other = tmp_path / "one", tmp_path / "other"
    for path in (one, other):
        book = write(path)
        book.append("closed", mechanism="query")
    assert "These name no run, as ledgers of earlier versions do" in privimage("ledger", one, other).succeeds().out
    named = run(tmp_path / "named")
    assert f"{one} names no run" in privimage("ledger", one, named.path).succeeds().out
    assert mechanisms_run(Ledger.open(one), Ledger.open(other), named) == 3


def test_artefacts_are_checked_where_they_are_at_hand(tmp_path, privimage):
    """Audit: a release could not be matched with its ledger. By hand, sha256sum does it."""
    release = tmp_path / "release"
    generator = release / "generator"
    generator.mkdir(parents=True)
    lines = b""
    for name in ("model.json", "params.npz"):
        (generator / name).write_text(name)
        lines += f"{hashlib.sha256(name.encode()).hexdigest()}  {name}\n".encode()
    (release / "query.json").write_text("counts")
    query = {"release/query.json": hashlib.sha256(b"counts").hexdigest()}
    run(release / "ledger.jsonl", query=query, training={"release/generator": hashlib.sha256(lines).hexdigest()})
    (tmp_path / "alone.jsonl").write_bytes((release / "ledger.jsonl").read_bytes())
    out = privimage("ledger", tmp_path / "alone.jsonl", "--verify").succeeds().out
    assert "release/query.json, release/generator are in no folder at hand, and not compared" in out
    for given in (release, tmp_path):
        out = privimage("ledger", given, "--verify").succeeds().out
        assert "and release/query.json, release/generator are what it closes with" in out
    (generator / "model.json").write_text("another")
    refusal = f"{generator} is not what line 5 of {release / 'ledger.jsonl'} closes the training with"
    privimage("ledger", release, "--verify").refuses(refusal, "ask for the release that belongs to this ledger")
    shutil.rmtree(generator)
    refusal = f"{generator} is missing, with which line 5 of {release / 'ledger.jsonl'} closes the training"
    privimage("ledger", release, "--verify").refuses(refusal, "ask for the release that belongs to this ledger")
    generator.symlink_to("/etc")
    privimage("ledger", release, "--verify").refuses(f"{generator} holds a link")


def test_a_torn_line_is_told(tmp_path, privimage):
    """Its append did not return, so that nothing relies on it; an edited file may end so as well."""
    path = run(tmp_path / "torn", training=ONE).path
    path.write_bytes(path.read_bytes()[:-9])
    assert "the file ends with a part of a line" in privimage("ledger", path).succeeds().out
