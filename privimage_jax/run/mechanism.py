"""What all private stages share around a mechanism: its ledger lines, its key, and the identity of its inputs.

The order of writes is fixed, so that a crash between any two of them loses nothing and spends nothing twice: identity
of the inputs, key, ledger line, use; and at the end artefact, ledger line `closed`, key deleted, done mark.

A replay is the same computation or it has other noise. What is drawn from is not the key on the disk but a key that is
derived from it and from the identity of the inputs. So a difference that slips through the comparison of identities
gives independent noise, never a difference of two outputs. The ledger counts steps under one key once; so a key that
has spent under one identity is refused under any other, see `Mechanism.key`.
"""

import hashlib
import hmac
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from privimage_jax import config as configs
from privimage_jax.cluster import processes
from privimage_jax.errors import UserError
from privimage_jax.privacy import accounting, chacha
from privimage_jax.privacy.ledger import Ledger, OverBudget, is_closed
from privimage_jax.privacy.ledger_lines import computation, name_from_seed, new_name
from privimage_jax.run import determinants as machine
from privimage_jax.run.code_version import code_version
from privimage_jax.run.inputs import Inputs
from privimage_jax.run.stage import Stage, all_stages, upstream
from privimage_jax.settings import units
from privimage_jax.storage import durable, entries, fingerprints, reading
from privimage_jax.storage.workdir import Workdir
from privimage_jax.training.writers import headline

KEY_FILE_BYTES = chacha.KEY_BYTES + hashlib.sha256().digest_size  # of entropy, and of what it is sealed with


def open_ledger(run: Workdir) -> Ledger:
    """The run's ledger, which must still hold every line that `internal/ledger_head.json` remembers.

    Raises:
      UserError: if the ledger is damaged, or lines were cut off, or that can no longer be told: budget would seem
        unspent.
    """
    ledger = Ledger.open(run.ledger)
    head = _head(run)
    if not head.exists() and (recorded := sorted(run.internal.glob("*/inputs.json"))):
        raise UserError(
            f"{head} is missing, but {recorded[0]} says that a mechanism has begun, so that lines of {run.ledger} may "
            "be lost unseen; restore the file, or start a new workdir."
        )
    if head.exists() and not ledger.extends(reading.read_record(head)):
        raise UserError(f"{run.ledger} has lost lines that spent budget; restore the file, or start a new workdir.")
    return ledger


def _head(run: Workdir) -> Path:
    return run.internal / "ledger_head.json"


def check_marks(run: Workdir, stages: Iterable[Stage]) -> None:
    """Checks that the ledger goes on from what it was when each of these stages was done.

    Raises:
      UserError: naming a stage whose done mark belongs to another ledger.
    """
    ledger = open_ledger(run)
    for stage in stages:
        known = (run.done_mark(stage.name) or {}).get("ledger", ledger.head)  # earlier versions did not note it
        if not isinstance(known, dict) or not ledger.extends(known):
            raise UserError(
                f"the stage {stage.name} in {run.root} was done under another ledger than {run.ledger}; restore both "
                "from one copy, or start a new workdir."
            )


def has_spent(run: Workdir, stage: Stage) -> bool:
    """Whether the run's ledger has a line of the stage's mechanism."""
    if stage.mechanism is None:
        return False  # without reading the ledger
    return any(line.get("mechanism") == stage.mechanism.name for line in open_ledger(run).entries)


def is_spent_on(inputs: Inputs, stage: Stage) -> bool:
    """Whether a mechanism has spent that a stage's artefacts reach: they are not made anew then."""
    return any(
        has_spent(inputs.workdir, one) and stage in upstream(inputs.config, one) for one in all_stages(inputs.config)
    )


def terms(inputs: Inputs) -> dict[str, Any]:
    """The ledger's first line, the terms of the guarantee."""
    plan, unit = inputs.plan, inputs.config.privacy.unit
    return {
        "epsilon_target": plan.epsilon,
        "delta": plan.delta,
        "n": plan.n,
        "accountant": plan.accountant,
        "adjacency": units.unit(inputs.config).adjacency,
        **({} if unit == "image" else {"unit": unit}),  # ledgers that name none were opened when there was no other
        "mechanisms": plan.mechanisms,
        "private": inputs.is_private,
        **({} if inputs.is_private else {"note": "NOT PRIVATE: fixed seed"}),
    }


def _seal(key: np.ndarray) -> bytes:
    """What tells whether a key is the same, and not what it is."""
    return hashlib.sha256(b"privimage key " + chacha.key_to_bytes(key)).digest()


class Mechanism:
    """The mechanism of a stage in one run: the only way to spend budget."""

    def __init__(self, inputs: Inputs):
        """Takes up the mechanism where the ledger left it.

        Raises:
          UserError: if the record of the stage declares no mechanism, or the ledger is damaged.
        """
        stage = inputs.stage
        if stage is None or stage.mechanism is None:
            raise UserError(f"the stage {stage and stage.name} declares no mechanism, so it can spend no budget.")
        self.inputs = inputs
        self.name = stage.mechanism.name
        self.folder = inputs.folder(stage.name)
        self.ledger = open_ledger(inputs.workdir)
        if self.ledger.entries:
            durable.sync(self.ledger.path)  # what is relied upon as spent must be on the disk
        self._keys = inputs.folder("keys")
        self.stage = stage
        self._name = ""  # of the run, where the ledger is still empty
        self._identity = ""
        self._computations: dict[int, str] = {}  # of each generation whose key was drawn from

    @property
    def lines(self) -> list[dict[str, Any]]:
        """This mechanism's own ledger lines."""
        return [line for line in self.ledger.entries if line.get("mechanism") == self.name]

    @property
    def is_closed(self) -> bool:
        """Whether its artefact is complete; a key that a crash left behind is then deleted."""
        closed = is_closed(self.ledger.entries, self.name)
        if closed:
            self._delete_keys()
        return closed

    def check_inputs(self, **determinants: str) -> None:
        """Records what determines the mechanism's result, or compares it with the record once budget is spent.

        To what is given it adds the code, the kind of devices, jax's configuration and the name of the run.

        Raises:
          UserError: if a spent mechanism would be replayed on other inputs: equal noise on different inputs subtracts.
        """
        path, run = self.folder / "inputs.json", self.inputs.workdir
        given = {
            **determinants,
            "version of privimage_jax or a library": code_version(self.inputs.config, self.stage),
            **machine.of_machine(self.inputs.mesh),
            "run that the ledger names": self._run_name(),
        }
        processes.current().barrier(f"inputs of {self.name}", {f"the {name}": value for name, value in given.items()})
        if any(line["kind"] != "closed" for line in self.lines):
            recorded = reading.read_record(path)
            if not recorded:
                raise UserError(
                    f"the {self.name} in {run.root} has spent budget, but the record of its inputs {path} is missing "
                    "or damaged; restore it, or start a new workdir."
                )
            differing = {name for name in {*given, *recorded} if recorded.get(name) != given.get(name)}
            # A record of another version lacks names, or has others, beside the version itself.
            if changed := sorted(differing & given.keys() & recorded.keys() or differing):
                raise UserError(
                    f"the {self.name} in {run.root} has spent budget on other inputs (changed: "
                    f"{', '.join(changed)}); restore them, or start a new workdir."
                )
        else:
            if not _head(run).exists():
                self._remember_head()  # before the record, so that one without the other is never a crash's doing
            durable.atomic_write_json(path, given)
        self._identity = fingerprints.fingerprint({"mechanism": self.name, **given})

    def _run_name(self) -> str:
        """The name of the run in the ledger; "" in a ledger of an earlier version, which has none.

        A name that no ledger has was never used and is replaced: a copy of this workdir may hold it too.
        """
        if self.ledger.entries:
            return self.ledger.entries[0].get("run", "")
        if not self.inputs.is_private:
            settings = fingerprints.fingerprint(configs.settings_in_use(self.inputs.config))
            return name_from_seed(f"{self.inputs.config.privacy.fixed_seed} {settings}")
        path = self.inputs.workdir.internal / "run.json"
        if not self._name:  # process 0 chooses, and all read what it has chosen
            durable.atomic_write_json(path, {"run": new_name()})
            self._name = reading.read_record(path)["run"]
        return self._name

    def _opening(self) -> dict[str, Any]:
        """The ledger's first line: the terms and, where it is still to be written, the run's name."""
        return terms(self.inputs) | ({} if self.ledger.entries else {"run": self._run_name()})

    def state_terms(self) -> None:
        """Writes the terms of the guarantee where nothing is going to be spent, so that the release states them."""
        if not self.ledger.entries:
            self.ledger.append("open", **self._opening())
            self._remember_head()

    def spend(self, kind: str, **fields: Any) -> None:
        """Writes a line that spends budget, with the epsilon of everything spent so far; returns when it is on disk.

        The line names the computation, by the key of `fields["key_generation"]`.

        Raises:
          ValueError: if that key is not at hand yet, see `key`.
          UserError: if the mechanism is not part of the plan or would exceed the budget, or other terms were promised;
            nothing is written then.
        """
        if self.name not in self.inputs.plan.mechanisms:
            raise UserError(
                f"the {self.name} is not part of the privacy plan of this config, so it can spend no budget."
            )

        if (named := self._computations.get(fields["key_generation"])) is None:
            raise ValueError("the key of a mechanism is at hand before its budget is spent")

        def epsilon(spent: list[dict[str, Any]]) -> float:
            return self.inputs.plan.spent(accounting.events_from(spent))

        try:
            self.ledger.spend(kind, epsilon, self._opening(), mechanism=self.name, computation=named, **fields)
        except OverBudget as error:
            raise UserError(f"config.privacy.epsilon: {error}") from None
        self._remember_head()

    def _remember_head(self) -> None:
        """After the ledger's line: a crash between the two leaves a head that the ledger extends."""
        durable.atomic_write_json(_head(self.inputs.workdir), self.ledger.head)

    @property
    def generation(self) -> int:
        """Which key is in use: 0 for the first; each lost key starts a new one. -1 before any."""
        return max((line.get("key_generation", 0) for line in self.lines if line["kind"] != "closed"), default=-1)

    def has_key(self, generation: int) -> bool:
        """Whether the key of a generation is at hand."""
        return not self.inputs.is_private or self._key_path(generation).exists()

    def key(self, generation: int) -> np.ndarray:
        """The 256-bit key uint32[8] of a generation: of OS entropy, and derived from the identity of the inputs.

        The entropy is on the disk before this returns, with a digest of the derived key behind it. Process 0 makes it;
        the others read the file, and all compare the digest, never the key itself. A key that no ledger line speaks of
        was never used and is replaced: a copy of this workdir may hold it too. Under a fixed seed nothing is derived:
        tests compare neighbours under equal noise, and the run is NOT PRIVATE.

        Raises:
          UserError: if the key has spent under another identity, or another key has spent in its place: its steps would
            be drawn anew and counted once.
        """
        if not self._identity:
            raise ValueError("the inputs of a mechanism are checked before its key is used")
        if not self.inputs.is_private:
            seed = self.inputs.config.privacy.fixed_seed
            return self._noted(chacha.key_from_seed(f"{seed} {self.stage.name} {generation}"), generation)
        path = self._key_path(generation)
        if not path.exists() or all(line.get("key_generation") != generation for line in self.lines):
            entropy = chacha.new_key()
            content = chacha.key_to_bytes(entropy) + _seal(chacha.derived_key(entropy, self._identity))
            durable.atomic_write_bytes(path, content, mode=0o600)
        with reading.user_errors(path, "remove it, and the run goes on as after the loss of a key"):
            content = reading.read_bytes(path, KEY_FILE_BYTES)
            entropy = chacha.key_from_bytes(content[: chacha.KEY_BYTES])
        derived = chacha.derived_key(entropy, self._identity)
        if not hmac.compare_digest(_seal(derived), content[chacha.KEY_BYTES :]):
            raise UserError(
                f"{path} has been used on other inputs than {self.folder / 'inputs.json'} now tells of; restore them, "
                "or start a new workdir."
            )
        processes.current().barrier(f"key of {self.name}", {f"the key {path}": _seal(derived).hex()})
        return self._noted(derived, generation)

    def _noted(self, key: np.ndarray, generation: int) -> np.ndarray:
        """The key, once it is known to be the one with which the ledger says that its generation has spent."""
        named = computation(chacha.key_to_bytes(key))
        known = {line.get("computation") for line in self.lines if line.get("key_generation") == generation} - {None}
        if known - {named}:
            raise UserError(
                f"the {self.name} in {self.inputs.workdir.root} has spent under another key than the one at hand: its "
                "ledger and its key are of different moments; restore both from one copy, or start a new workdir."
            )
        self._computations[generation] = named
        return key

    def owner(self, generation: int) -> dict[str, Any]:
        """Whose a checkpoint is: the identity of the inputs, and the computations behind it, this generation's last."""
        named = self._named_computations() | {self._computations[generation]}
        return {"identity": self._identity, "computations": sorted(named)}

    def owns(self, owner: Mapping[str, Any]) -> bool:
        """Whether the ledger tells of a checkpoint with this owner: of its inputs, and of all that it was made with."""
        made_with = owner.get("computations")
        return (
            owner.get("identity") == self._identity
            and isinstance(made_with, list)
            and self._named_computations().issuperset(map(str, made_with))
        )

    def _named_computations(self) -> set[str]:
        return {line["computation"] for line in self.lines if "computation" in line}

    def close(self) -> None:
        """After the artefact is durable: the line `closed` with its SHA-256, then the key is deleted."""
        if not is_closed(self.ledger.entries, self.name):
            root, artefacts = self.inputs.workdir.root, {}
            for name in self.stage.writes:
                if (root / name).exists():
                    with reading.user_errors(root / name, "restore it, or start a new workdir"):
                        artefacts[name] = entries.content_digest(root / name)
            self.ledger.append("closed", mechanism=self.name, artefacts=artefacts)
            self._remember_head()
        self._delete_keys()

    def warn(self, message: str) -> None:
        """Tells the operator something that stays internal."""
        headline(self.stage.name, "warning", message)

    def _key_path(self, generation: int) -> Path:
        return self._keys / f"{self.stage.name}-{generation}.key"

    def _delete_keys(self) -> None:
        for path in sorted(self._keys.glob(f"{self.stage.name}-*.key")):
            durable.remove(path)
