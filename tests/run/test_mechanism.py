"""What a mechanism leaves on the disk, in which order, and what it refuses."""

import dataclasses
import hashlib
import json
import shutil

import jax
import numpy as np
import pytest

from privimage_jax.configs import base
from privimage_jax.errors import UserError
from privimage_jax.privacy import chacha, ledger, ledger_lines
from privimage_jax.privacy.events import Gaussian
from privimage_jax.run import determinants
from privimage_jax.run import mechanism as mechanisms
from privimage_jax.run.mechanism import Mechanism, check_marks, terms
from privimage_jax.run.plan import Plan
from privimage_jax.run.stage import named
from privimage_jax.storage import durable
from privimage_jax.storage.workdir import Workdir
from privimage_jax.training.mesh import make_mesh

PLAN = Plan(
    epsilon=1.0,
    delta=1e-5,
    n=1000,
    accountant="rdp",
    reserved={"semantic query": Gaussian(10.0)},
    finetune_noise=None,
    sampling_rate=0.0,
    steps=0,
)


class FakeInputs:
    """Of `Inputs`, what a mechanism reads."""

    def __init__(self, root, fixed_seed=-1, stage="query"):
        self.stage = named(stage)
        self.workdir = Workdir(root)
        self.workdir.create()
        self.plan = PLAN
        self.mesh = make_mesh(jax.devices()[:1])
        self.is_private = fixed_seed < 0
        self.config = base.get_config()
        self.config.privacy.fixed_seed = fixed_seed

    def folder(self, stage):
        path = self.workdir.internal / stage
        durable.make_dir(path, mode=0o700)
        return path


@pytest.fixture
def start(tmp_path):
    """Starts the mechanism as a new process would."""
    return lambda **kwargs: Mechanism(FakeInputs(tmp_path, **kwargs))


def key_of(mechanism, generation=0, **determinants):
    """The key, once the inputs are checked, as every stage does."""
    mechanism.check_inputs(**determinants)
    return mechanism.key(generation)


def spend(mechanism, noise_multiplier=10.0, generation=0):
    """Spends under the key that was drawn, or under one that is drawn now, once its inputs are checked."""
    line = {"noise_multiplier": noise_multiplier, "key_generation": generation}
    for prepare in (lambda: None, lambda: mechanism.key(generation), lambda: key_of(mechanism, generation)):
        try:
            prepare()
            return mechanism.spend("gaussian", **line)
        except UserError:
            raise
        except ValueError as error:
            missing = error
    raise missing


def kinds(mechanism):
    return [line["kind"] for line in mechanism.ledger.entries]


def files(mechanism):
    root = mechanism.inputs.workdir.root
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_the_order_of_writes(start, monkeypatch):
    writes = []

    def noting(owner, name):
        original = getattr(owner, name)

        def note(path, *args, **kwargs):
            result = original(path, *args, **kwargs)
            writes.append((path.name, name))
            return result

        monkeypatch.setattr(owner, name, note)

    noting(durable, "atomic_write_bytes")
    noting(durable, "remove")
    noting(ledger, "append_line_durably")
    mechanism = start()
    mechanism.check_inputs(data="digest")
    mechanism.key(0)
    spend(mechanism)
    mechanism.close()
    assert writes == [
        ("run.json", "atomic_write_bytes"),
        ("ledger_head.json", "atomic_write_bytes"),
        ("inputs.json", "atomic_write_bytes"),
        ("query-0.key", "atomic_write_bytes"),
        ("ledger.jsonl", "append_line_durably"),
        ("ledger.jsonl", "append_line_durably"),
        ("ledger_head.json", "atomic_write_bytes"),
        ("ledger.jsonl", "append_line_durably"),
        ("ledger_head.json", "atomic_write_bytes"),
        ("query-0.key", "remove"),
    ]
    assert kinds(mechanism) == ["open", "gaussian", "closed"]


def test_a_spent_key_stays_the_same_and_is_for_its_owner_only(start):
    mechanism = start()
    key = key_of(mechanism)
    spend(mechanism)
    np.testing.assert_array_equal(key_of(start()), key)
    path = mechanism.inputs.workdir.internal / "keys" / "query-0.key"
    assert path.stat().st_mode & 0o777 == 0o600
    assert chacha.key_to_bytes(key) not in path.read_bytes(), "what is drawn from is derived, and on no disk"


def test_a_key_without_a_ledger_line_is_made_anew(start):
    """It was never used, but a copy of the workdir could spend under it on other inputs."""
    first, second = key_of(start()), key_of(start())
    assert (first != second).any()


def test_a_closed_mechanism_deletes_the_key_that_a_crash_left(start):
    mechanism = start()
    key_of(mechanism)
    spend(mechanism)
    mechanism.ledger.append("closed", mechanism=mechanism.name, artefacts={})  # and here the machine stops
    assert start().has_key(0)
    assert start().is_closed
    assert not start().has_key(0)


def test_an_open_mechanism_keeps_its_key(start):
    mechanism = start()
    key_of(mechanism)
    spend(mechanism)
    assert not start().is_closed
    assert start().has_key(0)


def test_closing_twice_writes_one_line(start):
    mechanism = start()
    spend(mechanism)
    mechanism.close()
    start().close()
    assert kinds(start()) == ["open", "gaussian", "closed"]


def test_another_mechanism_does_not_share_the_key(start, tmp_path):
    mechanism = start()
    other = Mechanism(FakeInputs(tmp_path, stage="finetune"))
    key_of(other)
    key_of(mechanism)
    spend(mechanism)
    mechanism.close()
    assert other.has_key(0) and not other.is_closed


def test_inputs_may_change_until_budget_is_spent(start):
    start().check_inputs(data="one", network="a")
    mechanism = start()
    mechanism.check_inputs(data="two", network="a")
    spend(mechanism)
    start().check_inputs(data="two", network="a")


@pytest.mark.parametrize(
    ("now", "changed"),
    [({"data": "two", "network": "a"}, "data"), ({"data": "two", "network": "b"}, "data, network")],
)
def test_changed_inputs_of_a_spent_mechanism_are_named_and_refused(start, now, changed):
    mechanism = start()
    mechanism.check_inputs(data="one", network="a")
    spend(mechanism)
    before = files(mechanism)
    with pytest.raises(UserError, match=rf"spent budget on other inputs \(changed: {changed}\)"):
        start().check_inputs(**now)
    assert files(mechanism) == before


def test_other_code_is_another_input(start, monkeypatch):
    mechanism = start()
    mechanism.check_inputs(data="one")
    spend(mechanism)
    monkeypatch.setattr("privimage_jax.run.mechanism.code_version", lambda config, stage: "other")
    with pytest.raises(UserError, match=r"changed: version of privimage_jax or a library"):
        start().check_inputs(data="one")


def test_another_machine_is_another_input(start, monkeypatch):
    """Audit: copies of a begun run went on under other settings of jax, with equal noise on other gradients."""
    mechanism = start()
    mechanism.check_inputs(data="one")
    spend(mechanism)
    of_machine = determinants.of_machine
    monkeypatch.setattr(determinants, "of_machine", lambda mesh: of_machine(mesh) | {"jax_random_seed_offset": "1"})
    before = files(mechanism)
    with pytest.raises(UserError, match=r"\(changed: jax_random_seed_offset\); restore them, or start a new workdir"):
        start().check_inputs(data="one")
    assert files(mechanism) == before


def test_a_key_is_drawn_from_under_one_identity_only(start):
    """Whoever edits the record of the inputs gets no equal noise, and none that the ledger does not count."""
    mechanism = start()
    key_of(mechanism, data="one")
    spend(mechanism)
    record = mechanism.folder / "inputs.json"
    record.write_text(record.read_text().replace('"one"', '"two"'))
    edited = start()
    with pytest.raises(UserError, match=r"query-0.key has been used on other inputs than .*inputs.json now tells of"):
        key_of(edited, data="two")
    record.write_text(record.read_text().replace('"two"', '"one"'))
    key_of(start(), data="one")


@pytest.mark.parametrize("spoil", [lambda content: content[:-1], lambda content: content[:32], lambda content: b""])
def test_a_key_that_is_cut_short_is_refused(start, spoil):
    """That of an earlier version, which had no digest behind it, is of a run that is refused before."""
    mechanism = start()
    key_of(mechanism)
    spend(mechanism)
    path = mechanism.inputs.workdir.internal / "keys" / "query-0.key"
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(UserError, match=r"query-0\.key (has been used on other inputs|is damaged)"):
        key_of(start())


def test_keys_of_other_determinants_are_independent(start, tmp_path, monkeypatch):
    """Of one entropy: what is derived for other data, another mechanism or another run has nothing in common."""
    monkeypatch.setattr(chacha, "new_key", lambda: np.arange(8, dtype=np.uint32))
    keys = [key_of(start(), data="one"), key_of(start(), data="two")]  # two runs, as nothing is spent
    keys.append(key_of(Mechanism(FakeInputs(tmp_path, stage="finetune")), data="one"))
    monkeypatch.setattr(mechanisms, "new_name", lambda: "a" * 32)
    keys += [key_of(start(), data="one"), key_of(start(), data="one")]
    assert len({key.tobytes() for key in keys}) == 4
    assert keys[-1].tobytes() == keys[-2].tobytes()


def test_every_spending_line_names_the_computation_by_its_key(start, tmp_path):
    """Equal for a replay; another for another key, although all inputs are the same."""
    mechanism = start()
    with pytest.raises(ValueError, match="is at hand before its budget is spent"):
        mechanism.spend("gaussian", noise_multiplier=10.0, key_generation=0)
    key = key_of(mechanism, data="one")
    spend(mechanism)
    again = start()
    key_of(again, data="one")
    spend(again, noise_multiplier=20.0)
    named = {line["computation"] for line in again.ledger.entries[1:]}
    assert named == {ledger_lines.computation(chacha.key_to_bytes(key))}
    assert key.tobytes().hex()[:8] not in named.pop()
    other = Mechanism(FakeInputs(tmp_path / "other"))
    spend(other)
    assert other.ledger.entries[-1]["computation"] not in named


def test_a_ledger_and_a_key_of_different_moments_are_refused(start, tmp_path):
    """A ledger that was taken back alone, or together with its head, while the key was drawn anew."""
    start().state_terms()  # the run has its name, so that all inputs are the same
    mechanism = start()
    key_of(mechanism, data="one")
    before = tmp_path / "before"
    shutil.copytree(mechanism.folder.parent / "keys", before)
    again = start()
    key_of(again, data="one")  # a key that no line speaks of is drawn anew
    spend(again)
    shutil.copytree(before, mechanism.folder.parent / "keys", dirs_exist_ok=True)
    with pytest.raises(UserError, match="semantic query in .* has spent under another key than the one at hand: "):
        key_of(start(), data="one")


def test_a_key_needs_checked_inputs(start):
    with pytest.raises(ValueError, match="inputs of a mechanism are checked before its key is used"):
        start().key(0)


def test_the_ledger_names_the_run_and_closes_with_what_it_made(start):
    mechanism = start()
    key_of(mechanism)
    spend(mechanism)
    output = mechanism.stage.artefact(mechanism.inputs.workdir)
    output.write_bytes(b"counts")
    mechanism.close()
    first, *_, last = mechanism.ledger.entries
    assert first["run"] == json.loads((mechanism.inputs.workdir.internal / "run.json").read_text())["run"]
    assert last["artefacts"] == {"internal/query/histogram.json": hashlib.sha256(b"counts").hexdigest()}


def test_every_process_reads_the_name_that_process_0_has_drawn(start, monkeypatch):
    """What another process draws is not written; ledgers of its own would have another chain."""
    write = durable.atomic_write_json
    monkeypatch.setattr(
        durable, "atomic_write_json", lambda path, value: write(path, {"run": "b" * 32} if "run" in value else value)
    )
    mechanism = start()
    mechanism.check_inputs(data="one")
    spend(mechanism)
    assert mechanism.ledger.entries[0]["run"] == "b" * 32


def test_a_name_that_no_ledger_has_is_drawn_anew(start):
    """A copy that was made before the first line is a run of its own."""
    mechanism, again = start(), start()
    for one in (mechanism, again):
        one.check_inputs(data="one")
    spend(again)
    named = json.loads((mechanism.folder / "inputs.json").read_text())["run that the ledger names"]
    assert again.ledger.entries[0]["run"] == named and len(named) == 32
    other = start()
    other.check_inputs(data="one")
    with pytest.raises(UserError, match="changed by another process"):
        spend(mechanism)


def test_the_ledger_of_another_run_is_another_input(start, tmp_path):
    """Audit: a ledger of another run of the same config went unnoticed."""
    other = Mechanism(FakeInputs(tmp_path / "other"))
    mechanism = start()
    for one in (mechanism, other):
        one.check_inputs(data="one")
        spend(one)
    for name in ("release/ledger.jsonl", "internal/ledger_head.json"):
        shutil.copy(other.inputs.workdir.root / name, mechanism.inputs.workdir.root / name)
    with pytest.raises(UserError, match=r"\(changed: run that the ledger names\)"):
        start().check_inputs(data="one")


def test_a_missing_head_is_refused_once_a_mechanism_has_begun(start):
    """Audit: with the head deleted, a ledger that was cut short was taken for whole."""
    mechanism = start()
    head = mechanism.inputs.workdir.internal / "ledger_head.json"
    head.unlink(missing_ok=True)
    start()
    mechanism.check_inputs(data="one")
    assert json.loads(head.read_text())["lines"] == 0, "it is there before the record"
    spend(mechanism)
    content = head.read_bytes()
    head.unlink()
    with pytest.raises(UserError, match=r"ledger_head.json is missing, but .*query/inputs.json says that a mechanism"):
        start()
    head.write_bytes(content)
    start()


def test_a_done_mark_of_another_ledger_is_refused(start):
    """Audit: a finished run skipped everything under a ledger that had lost its lines."""
    mechanism = start()
    run = mechanism.inputs.workdir
    for mark in ({"fingerprint": "a"}, {"fingerprint": "a", "ledger": mechanism.ledger.head}):  # an earlier version's
        run.mark_done("query", mark)
        check_marks(run, [mechanism.stage])
    mechanism.check_inputs(data="one")
    spend(mechanism)
    run.mark_done("query", {"fingerprint": "a", "ledger": mechanism.ledger.head})
    mechanism.close()
    check_marks(run, [mechanism.stage])
    lines = run.ledger.read_text().splitlines(keepends=True)
    run.ledger.write_text("".join(lines[:1]))
    durable.atomic_write_json(run.internal / "ledger_head.json", open_ledger_of(lines[:1], run).head)
    for known in (run.done_mark("query")["ledger"], "nonsense", {"lines": [], "last": {}}):
        run.mark_done("query", {"fingerprint": "a", "ledger": known})
        with pytest.raises(UserError, match="the stage query in .* was done under another ledger than"):
            check_marks(run, [mechanism.stage])


def open_ledger_of(lines, run):
    """The ledger of these lines."""
    path = run.root / "other.jsonl"
    path.write_text("".join(lines))
    return ledger.Ledger.open(path)


def test_a_ledger_of_an_earlier_version_goes_on(start, tmp_path):
    """With a mechanism that has not begun: it has no name, and the mechanism closes with its artefacts."""
    mechanism = start()
    mechanism.ledger.append("open", **terms(mechanism.inputs))
    mechanism = start()
    key = key_of(mechanism, data="one")
    spend(mechanism)
    np.testing.assert_array_equal(key_of(start(), data="one"), key)
    mechanism.close()
    assert "run" not in mechanism.ledger.entries[0] and mechanism.ledger.entries[-1]["artefacts"] == {}


def test_a_record_of_an_earlier_version_is_told_as_that(start):
    mechanism = start()
    mechanism.check_inputs(data="one")
    spend(mechanism)
    record = mechanism.folder / "inputs.json"
    record.write_text(json.dumps({"data": "one", "version of privimage_jax or a library": "earlier"}))
    with pytest.raises(UserError, match=r"\(changed: version of privimage_jax or a library\)"):
        start().check_inputs(data="one")


def test_a_lost_record_of_the_inputs_is_refused(start):
    mechanism = start()
    mechanism.check_inputs(data="one")
    spend(mechanism)
    (mechanism.folder / "inputs.json").unlink()
    with pytest.raises(UserError, match="record of its inputs .*inputs.json is missing or damaged; restore it"):
        start().check_inputs(data="one")


def test_a_refused_budget_writes_nothing(start):
    mechanism = start()
    key_of(mechanism, data="one")
    before = files(mechanism)
    with pytest.raises(UserError, match="config.privacy.epsilon: .* would raise the epsilon"):
        spend(mechanism, noise_multiplier=0.1)
    assert files(mechanism) == before
    spend(mechanism)
    spent = files(mechanism)
    again = start()
    key_of(again, data="one")
    with pytest.raises(UserError, match="config.privacy.epsilon: .* would raise the epsilon"):
        spend(again, noise_multiplier=0.1)
    assert files(mechanism) == spent


def test_the_terms_of_the_guarantee_come_first(start):
    mechanism = start()
    spend(mechanism)
    first, second = (json.loads(line) for line in mechanism.ledger.path.read_text().splitlines())
    assert (first["kind"], first["epsilon_target"], first["n"], first["private"]) == ("open", 1.0, 1000, True)
    assert "note" not in first
    assert 0 < second["epsilon"] <= 1


@pytest.mark.parametrize(
    ("change", "named"), [({"epsilon": 2.0}, "epsilon_target"), ({"delta": 1e-6}, "delta"), ({"n": 999}, "n")]
)
def test_other_terms_than_the_ledger_was_opened_with_are_refused(start, change, named):
    """Also where a crash came between the first line and the second, so that nothing is spent yet."""
    mechanism = start()
    mechanism.ledger.append("open", **terms(mechanism.inputs))
    mechanism = start()
    key_of(mechanism)
    before = files(mechanism)
    mechanism.inputs.plan = dataclasses.replace(PLAN, **change)
    with pytest.raises(UserError, match=f"opened with {named} ="):
        spend(mechanism)
    assert files(mechanism) == before


def test_a_ledger_opened_as_private_takes_no_fixed_seed(start):
    mechanism = start()
    mechanism.ledger.append("open", **terms(mechanism.inputs))
    with pytest.raises(UserError, match="opened with note = None"):
        spend(start(fixed_seed=3))


def test_a_fixed_seed_writes_no_key_and_is_stamped(start):
    mechanism = start(fixed_seed=3)
    np.testing.assert_array_equal(key_of(mechanism, 1), chacha.key_from_seed("3 query 1"))
    spend(mechanism)
    assert mechanism.ledger.entries[0]["note"] == "NOT PRIVATE: fixed seed"
    assert mechanism.ledger.entries[0]["private"] is False
    assert not list((mechanism.inputs.workdir.internal / "keys").iterdir())


def test_a_lost_key_is_noticed_and_the_next_generation_is_another(start):
    mechanism = start()
    assert mechanism.generation == -1
    first = key_of(mechanism)
    spend(mechanism)
    assert mechanism.generation == 0
    (mechanism.inputs.workdir.internal / "keys" / "query-0.key").unlink()
    mechanism = start()
    assert not mechanism.has_key(0)
    assert (key_of(mechanism, 1) != first).any()
