"""Verifying a ledger: right ones pass, and every change of any line is found, also by who knows the chain."""

import hashlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privimage_jax.errors import UserError
from privimage_jax.privacy import accounting, ledger_lines, sampling
from privimage_jax.privacy.ledger import Ledger
from privimage_jax.privacy.verification import verify

N, BATCH, DELTA = 1000, 100, 1e-5
OPEN = {
    "epsilon_target": 5.0,
    "delta": DELTA,
    "n": N,
    "adjacency": "zero-out of one record",
    "mechanisms": ["query", "training"],
    "private": True,
}


def finished(path, accountant="rdp"):
    """A finished run that lost its key once: steps [0, 9), [6, 12) again under the same key, [8, 10) under another."""
    book = Ledger.open(path)
    terms = {**OPEN, "accountant": accountant}

    def epsilon(events):
        return accounting.epsilon(accounting.events_from(events), DELTA, accountant)

    query = {"mechanism": "query", "key_generation": 0, "noise_multiplier": 8.0, "l2_sensitivity": 1.0}
    book.spend("gaussian", epsilon, terms, **query)
    book.append("closed", mechanism="query")
    for generation, steps in ((0, [0, 9]), (0, [6, 12]), (1, [8, 10])):
        book.spend(
            "dp-sgd",
            epsilon,
            mechanism="training",
            key_generation=generation,
            noise_multiplier=2.0,
            sampling_rate=sampling.sampling_rate(sampling.threshold(BATCH, N)),
            clip_norm=1.0,
            expected_batch_size=BATCH,
            steps=steps,
        )
    book.append("closed", mechanism="training")
    return book


@pytest.fixture(scope="module")
def right(tmp_path_factory):
    return finished(tmp_path_factory.mktemp("right") / "ledger.jsonl").path.read_bytes()


def refused(path, content: bytes) -> str:
    """Asserts that reading or verifying such a ledger fails, and returns the sentence."""
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"^line \d+ of ") as error:
        verify(Ledger.open(path), finished=True)
    return str(error.value)


def chained(lines: list[dict]) -> bytes:
    """The lines with their numbers and hashes made right again, as a forger would."""
    content, previous = b"", "0" * 64
    for index, line in enumerate(lines):
        fields = {name: value for name, value in line.items() if name not in ("index", "kind", "previous")}
        text = ledger_lines.line_of(index, line["kind"], fields, previous).encode()
        previous = hashlib.sha256(text).hexdigest()
        content += text + b"\n"
    return content


@pytest.mark.parametrize("accountant", accounting.ACCOUNTANTS)
def test_a_right_ledger_passes(tmp_path, accountant):
    book = finished(tmp_path / "ledger.jsonl", accountant)
    verify(Ledger.open(book.path), finished=True)
    assert chained(book.entries) == book.path.read_bytes()


def test_every_line_is_needed_and_in_its_place(right, tmp_path):
    lines = right.splitlines(keepends=True)
    for place in range(len(lines)):
        message = refused(tmp_path / "ledger.jsonl", b"".join(lines[:place] + lines[place + 1 :]))
        assert message.startswith(f"line {place + 1} of ")
        refused(tmp_path / "ledger.jsonl", b"".join(lines[:place]))
        refused(tmp_path / "ledger.jsonl", b"".join([*lines[: place + 1], *lines[place:]]))
        for other in range(place):
            moved = list(lines)
            moved[place], moved[other] = moved[other], moved[place]
            assert refused(tmp_path / "ledger.jsonl", b"".join(moved)).startswith(f"line {other + 1} of ")


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_changed_byte_is_found(right, tmp_path_factory, data):
    """The last line's bytes too; its line break makes it a torn line, so that the ledger ends too early."""
    content = bytearray(right)
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    refused(tmp_path_factory.mktemp("changed") / "ledger.jsonl", bytes(content))


@pytest.mark.parametrize("factor", [0.5, 1 + 1e-4, 2.0])
@pytest.mark.parametrize("field", ["noise_multiplier", "sampling_rate", "epsilon", "delta", "n"])
def test_a_forged_number_is_found_although_the_chain_holds(right, tmp_path, field, factor):
    lines = [json.loads(line) for line in right.splitlines()]
    for number, line in enumerate(lines):
        if field not in line:
            continue
        value = type(line[field])(line[field] * factor)
        forged = [dict(other) for other in lines]
        for other in forged if field != "epsilon" else [forged[number]]:  # all of one key, as its order demands
            if other.get("mechanism") == line.get("mechanism") and field in other:
                other[field] = value
        if forged != lines:
            refused(tmp_path / "ledger.jsonl", chained(forged))


@pytest.mark.parametrize("accountant", accounting.ACCOUNTANTS)
def test_samples_of_a_gaussian_are_recomputed(tmp_path, accountant):
    """A forged rate, number of samples or noise is found."""
    book = Ledger.open(tmp_path / "ledger.jsonl")
    terms = {**OPEN, "accountant": accountant, "mechanisms": ["means"]}
    line = {
        "mechanism": "means",
        "key_generation": 0,
        "noise_multiplier": 5.0,
        "l2_sensitivity": 3.0,
        "sampling_rate": sampling.poisson_rate(BATCH, N),
        "expected_batch_size": BATCH,
        "steps": [0, 40],
    }
    cost = accounting.epsilon([accounting.SampledGaussian(5.0, line["sampling_rate"], 40)], DELTA, accountant)
    assert book.spend("sampled-gaussian", lambda _: cost, terms, **line)["epsilon"] == cost
    book.append("closed", mechanism="means")
    verify(Ledger.open(book.path), finished=True)
    for forged in ({"steps": [0, 80]}, {"sampling_rate": 0.2}, {"noise_multiplier": 4.0}, {"epsilon": cost / 2}):
        lines = [dict(line) for line in book.entries]
        lines[1].update(forged)
        assert refused(tmp_path / "forged.jsonl", chained(lines)).startswith("line 2 of ")


def test_forged_steps_mechanisms_and_generations_are_found(right, tmp_path):
    lines = [json.loads(line) for line in right.splitlines()]

    def forge(number, **changes):
        forged = [dict(line) for line in lines]
        forged[number].update(changes)
        return refused(tmp_path / "ledger.jsonl", chained(forged))

    for number in (3, 4, 5):
        begin, end = lines[number]["steps"]
        assert forge(number, steps=[begin, end + 1]).startswith(f"line {number + 1} of ")
    assert forge(5, key_generation=0).startswith("line 6 of ")
    assert "names the accountant 'moments'" in forge(0, accountant="moments")
    assert forge(0, accountant="pld").startswith("line 2 of ")
    assert "above the target 0.1" in forge(0, epsilon_target=0.1)
    assert "no line closes audit" in forge(0, mechanisms=["query", "training", "audit"])
    assert "training is not among the mechanisms" in forge(0, mechanisms=["query"])
    gone = [line for line in lines if line.get("mechanism") != "training"]
    assert "no line closes training" in refused(tmp_path / "ledger.jsonl", chained(gone))
    with pytest.raises(UserError, match="line 1 of .* is missing"):
        verify(Ledger.open(tmp_path / "nothing"), finished=True)


def test_an_unfinished_ledger_passes_where_its_end_is_known(right, tmp_path):
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(b"".join(right.splitlines(keepends=True)[:4]))
    verify(Ledger.open(path), finished=False)


def test_no_line_makes_the_check_run_for_hours(right, tmp_path):
    lines = [json.loads(line) for line in right.splitlines()]
    for line in lines[3:6]:
        line["noise_multiplier"] = 1e-3
        line["steps"] = [0, 2**32 - 1]
    lines[0]["accountant"] = "pld"
    lines[1]["epsilon"] = accounting.epsilon([accounting.Gaussian(8.0)], DELTA)
    assert "cost " in refused(tmp_path / "ledger.jsonl", chained(lines))
    lines[0]["epsilon_target"] = lines[3]["epsilon"] = 1e12
    assert "promises nothing" in refused(tmp_path / "ledger.jsonl", chained(lines))
