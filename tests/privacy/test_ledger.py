"""The ledger: its chain, its durability after a crash, and what it counts as spent."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privimage_jax.errors import UserError
from privimage_jax.privacy import ledger
from privimage_jax.privacy.ledger import Ledger, OverBudget

OPEN = dict(
    epsilon_target=10.0,
    delta=1e-5,
    n=100,
    adjacency="zero-out of one record",
    accountant="pld",
    mechanisms=["query", "finetune"],
    private=True,
)
QUERY = dict(mechanism="query", noise_multiplier=50.0, key_generation=0)


def block(begin, end, generation=0, **changes):
    return {
        "mechanism": "finetune",
        "key_generation": generation,
        "noise_multiplier": 2.0,
        "sampling_rate": 0.1,
        "clip_norm": 1e-3,
        "steps": [begin, end],
        **changes,
    }


def filled(path):
    book = Ledger.open(path)
    book.append("open", **OPEN)
    book.append("gaussian", **QUERY, epsilon=0.1)
    book.append("dp-sgd", **block(0, 10), epsilon=0.5)
    return book


def test_round_trip(tmp_path):
    book = filled(tmp_path / "ledger.jsonl")
    again = Ledger.open(tmp_path / "ledger.jsonl")
    assert again.entries == book.entries
    assert [entry["index"] for entry in again.entries] == [0, 1, 2]
    assert again.entries[0]["previous"] == "0" * 64
    again.append("closed", mechanism="query")
    assert Ledger.open(tmp_path / "ledger.jsonl").entries[-1]["mechanism"] == "query"


def test_opening_writes_nothing(tmp_path):
    assert Ledger.open(tmp_path / "ledger.jsonl").entries == []
    assert not list(tmp_path.iterdir())


def test_every_cut_leaves_a_ledger_that_goes_on(tmp_path):
    """A crash may leave any prefix of the last line: it is dropped, and the chain continues before it."""
    path = tmp_path / "ledger.jsonl"
    filled(path)
    content = path.read_bytes()
    start_of_last = content[:-1].rindex(b"\n") + 1
    for size in (start_of_last, start_of_last + 1, len(content) - 40, len(content) - 1):
        path.write_bytes(content[:size])
        book = Ledger.open(path)
        assert len(book.entries) == 2
        assert path.read_bytes() == content[:size], "reading must not write"
        book.append("dp-sgd", **block(0, 10), epsilon=0.5)
        assert path.read_bytes() == content


def test_zeros_after_a_crash_are_a_torn_line(tmp_path):
    path = tmp_path / "ledger.jsonl"
    filled(path)
    content = path.read_bytes()
    path.write_bytes(content + bytes(100))
    Ledger.open(path).append("closed", mechanism="query")
    assert path.read_bytes().startswith(content) and len(Ledger.open(path).entries) == 4


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_changed_byte_but_the_last_line_s_is_noticed(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("ledger") / "ledger.jsonl"
    filled(path)
    content = bytearray(path.read_bytes())
    lines = bytes(content).split(b"\n")
    place = data.draw(st.integers(0, len(lines[0]) + len(lines[1])))
    content[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(bytes(content))
    # A line that another ledger might hold breaks the chain of the next one.
    with pytest.raises(UserError, match=r"line [123] of "):
        Ledger.open(path)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"null",
        b"\xff",
        b"[" * 100_000,
        b'{"index":3}',
        '{"index":3,"kind":["open"],"previous":"PREVIOUS"}',
        '{"index":3,"kind":"closed","mechanism":"other","previous":"PREVIOUS"}',
        '{"index":3,"kind":"closed","mechanism":"query","mechanism":"finetune","previous":"PREVIOUS"}',
        '{"index":3,"kind":"closed","mechanism":"query","time":1,"previous":"PREVIOUS"}',
        '{"index":true,"kind":"closed","mechanism":"query","previous":"PREVIOUS"}',
        '{"index": 3,"kind":"closed","mechanism":"query","previous":"PREVIOUS"}',
    ],
    ids=range(11),
)
def test_a_line_that_no_ledger_would_write_is_refused(tmp_path, line):
    """Also the last one, of which no later line speaks, and with the right hash of the line before."""
    book = filled(tmp_path / "ledger.jsonl")
    if isinstance(line, str):
        line = line.replace("PREVIOUS", book.head["last"]).encode()
    with open(book.path, "ab") as file:
        file.write(line + b"\n")
    with pytest.raises(UserError, match=r"line 4 of .*ledger\.jsonl"):
        Ledger.open(book.path)


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 10)).map(lambda pair: [pair[0], sum(pair)])))
def test_distinct_steps_are_those_of_the_union(blocks):
    assert ledger.distinct_steps(blocks) == len({step for block in blocks for step in range(*block)})


@pytest.mark.parametrize("damage", ["drop", "swap", "edit", "insert"])
def test_a_broken_chain_names_its_line(tmp_path, damage):
    path = tmp_path / "ledger.jsonl"
    filled(path)
    lines = path.read_text().splitlines()
    if damage == "drop":
        del lines[1]
    elif damage == "swap":
        lines[1], lines[2] = lines[2], lines[1]
    elif damage == "edit":
        lines[0] = lines[0].replace("10.0", "9.0")
    else:
        lines.insert(1, "nonsense")
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match=r"line 2 of .*ledger\.jsonl"):
        Ledger.open(path)


def test_another_writer_is_noticed(tmp_path):
    path = tmp_path / "ledger.jsonl"
    book = filled(path)
    Ledger.open(path).append("closed", mechanism="query")
    with pytest.raises(UserError, match="another process"):
        book.append("closed", mechanism="query")
    path.write_bytes(b"")
    with pytest.raises(UserError, match="another process"):
        book.append("closed", mechanism="query")


def test_only_declared_fields(tmp_path):
    book = Ledger.open(tmp_path / "ledger.jsonl")
    for wrong in (dict(time=1), dict(path="/data")):
        with pytest.raises(ValueError, match="no field"):
            book.append("open", **OPEN, **wrong)
    with pytest.raises(ValueError, match="needs delta"):
        book.append("open", **{name: value for name, value in OPEN.items() if name != "delta"})
    with pytest.raises(ValueError, match="no kind"):
        book.append("note", text="hello")
    with pytest.raises(ValueError, match="first line"):
        book.append("closed", mechanism="query")
    for wrong in (
        dict(delta=1.0),
        dict(mechanisms=["query", "query"]),
        dict(n=True),
        dict(epsilon_target=float("nan")),
    ):
        with pytest.raises(ValueError, match=f"cannot hold {next(iter(wrong))} = "):
            book.append("open", **{**OPEN, **wrong})
    book.append("open", **OPEN, note="NOT PRIVATE: fixed seed")
    with pytest.raises(ValueError, match="first line"):
        book.append("open", **OPEN)
    with pytest.raises(UserError, match="guess is not among the mechanisms"):
        book.append("gaussian", **{**QUERY, "mechanism": "guess"}, epsilon=0.1)
    with pytest.raises(UserError, match="query has spent nothing"):
        book.append("closed", mechanism="query")
    with pytest.raises(ValueError, match="cannot hold steps"):
        book.append("dp-sgd", **block(5, 5), epsilon=0.1)


def test_spending_stops_at_the_target(tmp_path):
    book = Ledger.open(tmp_path / "ledger.jsonl")
    seen = []

    def epsilon(events):
        seen.append(events)
        return sum(event.get("steps", 1) for event in events)

    with pytest.raises(ValueError, match="first line"):
        book.spend("gaussian", epsilon, **QUERY)
    book.append("open", **OPEN)
    book.spend("gaussian", epsilon, **QUERY)
    assert book.spend("dp-sgd", epsilon, **block(0, 9))["epsilon"] == 10
    assert seen[-1] == [{"noise_multiplier": 50.0}, {"noise_multiplier": 2.0, "sampling_rate": 0.1, "steps": 9}]
    before = book.path.read_bytes()
    with pytest.raises(OverBudget, match="above its target of 10; its budget is spent"):
        book.spend("dp-sgd", epsilon, **block(9, 10))
    with pytest.raises(OverBudget, match="above its target of 10"):
        book.spend("dp-sgd", lambda events: float("nan"), **block(9, 10))
    assert book.path.read_bytes() == before
    assert ledger.total_epsilon(book.entries) == 10


def test_what_counts_as_spent(tmp_path):
    book = filled(tmp_path / "ledger.jsonl")
    book.append("dp-sgd", **block(5, 20), epsilon=0.6)  # replays 5..9 under the same key: free
    assert ledger.spent(book.entries)[-1]["steps"] == 20
    book.append("dp-sgd", **block(15, 30, generation=1), epsilon=0.7)  # the key was lost: 15..19 cost twice
    assert ledger.spent(book.entries) == [
        {"noise_multiplier": 50.0},
        {"noise_multiplier": 2.0, "sampling_rate": 0.1, "steps": 35},
    ]
    assert ledger.total_epsilon(book.entries) == 0.7
    assert ledger.spent([]) == [] and ledger.total_epsilon([]) == 0.0


def test_samples_of_a_gaussian_count_as_often_as_they_are(tmp_path):
    """Steps and a rate, as those of DP-SGD have; their noise and rate never change under one key."""
    book = Ledger.open(tmp_path / "ledger.jsonl")
    book.append("open", **{**OPEN, "mechanisms": ["means"]})
    line = dict(mechanism="means", key_generation=0, noise_multiplier=5.0, sampling_rate=0.25, l2_sensitivity=9.0)
    book.append("sampled-gaussian", **line, expected_batch_size=250, steps=[0, 40], epsilon=0.1)
    assert ledger.spent(book.entries) == [{"noise_multiplier": 5.0, "sampling_rate": 0.25, "steps": 40}]
    with pytest.raises(UserError, match="sampling_rate = 0.25"):
        book.append("sampled-gaussian", **{**line, "sampling_rate": 0.1}, steps=[40, 50], epsilon=0.1)
    with pytest.raises(ValueError, match="needs steps"):
        book.append("sampled-gaussian", **line, epsilon=0.1)
    assert Ledger.open(book.path).entries == book.entries


def test_a_key_has_one_computation(tmp_path):
    book = Ledger.open(tmp_path / "ledger.jsonl")
    book.append("open", **OPEN)
    for generation, name in enumerate(("1" * 32, "2" * 32)):
        book.append("dp-sgd", **block(0, 10, generation), computation=name, epsilon=0.1)
    book.append("dp-sgd", **block(10, 20, 1), computation="2" * 32, epsilon=0.2)
    for wrong in ({"computation": "1" * 32}, {}):
        with pytest.raises(UserError, match=f"under the key of the computation {'2' * 32} and cannot go on under that"):
            book.append("dp-sgd", **block(20, 30, 1), **wrong, epsilon=0.3)
    assert len(Ledger.open(book.path).entries) == 4


def test_a_closed_mechanism_spends_no_more(tmp_path):
    book = filled(tmp_path / "ledger.jsonl")
    assert not ledger.is_closed(book.entries, "finetune")
    book.append("closed", mechanism="finetune")
    assert ledger.is_closed(book.entries, "finetune") and not ledger.is_closed(book.entries, "query")
    assert ledger.total_epsilon(book.entries) == 0.5
    with pytest.raises(UserError, match="finetune is closed"):
        book.append("dp-sgd", **block(10, 11), epsilon=0.6)


@pytest.mark.parametrize("field", ["noise_multiplier", "sampling_rate", "clip_norm"])
def test_the_factors_of_one_key_never_change(tmp_path, field):
    book = filled(tmp_path / "ledger.jsonl")
    with pytest.raises(UserError, match=field):
        book.append("dp-sgd", **block(10, 20, **{field: 0.7}), epsilon=0.6)
    book.append("dp-sgd", **block(10, 20, generation=1, **{field: 0.7}), epsilon=0.6)


def test_a_failed_write_leaves_the_ledger_as_it_was(tmp_path, monkeypatch):
    book = filled(tmp_path / "ledger.jsonl")

    def refuse(path, line):
        raise UserError("the disk is full")

    monkeypatch.setattr(ledger, "append_line_durably", refuse)
    with pytest.raises(UserError, match="full"):
        book.append("closed", mechanism="query")
    assert len(book.entries) == 3
    monkeypatch.undo()
    book.append("closed", mechanism="query")
    assert Ledger.open(book.path).entries == book.entries


def test_numbers_survive_exactly(tmp_path):
    book = filled(tmp_path / "ledger.jsonl")
    rate = 1525 / 2**32
    book.append("dp-sgd", **block(0, 1, generation=1, sampling_rate=rate), epsilon=0.1 + 0.2)
    entry = Ledger.open(book.path).entries[-1]
    assert entry["sampling_rate"] == rate and entry["epsilon"] == 0.1 + 0.2
    assert all(json.loads(line) for line in book.path.read_text().splitlines())
    with pytest.raises(ValueError):
        book.append("dp-sgd", **block(1, 2, generation=2), epsilon=float("inf"))
