"""What all private stages share around a mechanism: its ledger lines, its key, and the identity of its inputs.

The order of writes is fixed, so that a crash between any two of them loses nothing and spends nothing twice: identity
of the inputs, key, ledger line, use; and at the end artefact, ledger line `closed`, key deleted, done mark.
"""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from privimage_jax.cluster import processes
from privimage_jax.errors import UserError
from privimage_jax.privacy import accounting, chacha
from privimage_jax.privacy.ledger import Ledger, OverBudget, is_closed
from privimage_jax.run.code_version import code_version
from privimage_jax.run.inputs import Inputs
from privimage_jax.run.stage import Stage, all_stages, upstream
from privimage_jax.settings import units
from privimage_jax.storage import reading, workdir
from privimage_jax.training.writers import headline


def open_ledger(run: workdir.Workdir) -> Ledger:
    """The run's ledger, which must still hold every line that `internal/ledger_head.json` remembers.

    Raises:
      UserError: if the ledger is damaged, or lines were cut off: budget would seem unspent.
    """
    ledger = Ledger.open(run.ledger)
    head = run.internal / "ledger_head.json"
    if head.exists() and not ledger.extends(workdir.read_record(head)):
        raise UserError(f"{run.ledger} has lost lines that spent budget; restore the file, or start a new workdir.")
    return ledger


def has_spent(run: workdir.Workdir, stage: Stage) -> bool:
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
            workdir.sync(self.ledger.path)  # what is relied upon as spent must be on the disk
        self._keys = inputs.folder("keys")
        self.stage = stage

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
        """Records what determines the mechanism's input, or compares it with the record once budget is spent.

        Raises:
          UserError: if a spent mechanism would be replayed on other inputs: equal noise on different inputs subtracts.
        """
        path = self.folder / "inputs.json"
        version = code_version(self.inputs.config, self.stage)
        given = {**determinants, "version of privimage_jax or a library": version}
        processes.current().barrier(f"inputs of {self.name}", {f"the {name}": value for name, value in given.items()})
        if any(line["kind"] != "closed" for line in self.lines):
            recorded = workdir.read_record(path)
            changed = sorted(name for name in given if recorded.get(name) != given[name])
            if changed:
                raise UserError(
                    f"the {self.name} in {self.inputs.workdir.root} has spent budget on other inputs (changed: "
                    f"{', '.join(changed)}); restore them, or start a new workdir."
                )
        else:
            workdir.atomic_write_json(path, given)

    def state_terms(self) -> None:
        """Writes the terms of the guarantee where nothing is going to be spent, so that the release states them."""
        if not self.ledger.entries:
            self.ledger.append("open", **terms(self.inputs))
            self._remember_head()

    def spend(self, kind: str, **fields: Any) -> None:
        """Writes a line that spends budget, with the epsilon of everything spent so far; returns when it is on disk.

        Raises:
          UserError: if the mechanism is not part of the plan or would exceed the budget, or other terms were promised;
            nothing is written then.
        """
        if self.name not in self.inputs.plan.mechanisms:
            raise UserError(
                f"the {self.name} is not part of the privacy plan of this config, so it can spend no budget."
            )

        def epsilon(spent: list[dict[str, Any]]) -> float:
            return self.inputs.plan.spent(accounting.events_from(spent))

        try:
            self.ledger.spend(kind, epsilon, terms(self.inputs), mechanism=self.name, **fields)
        except OverBudget as error:
            raise UserError(f"config.privacy.epsilon: {error}") from None
        self._remember_head()

    def _remember_head(self) -> None:
        """After the ledger's line: a crash between the two leaves a head that the ledger extends."""
        workdir.atomic_write_json(self.inputs.workdir.internal / "ledger_head.json", self.ledger.head)

    @property
    def generation(self) -> int:
        """Which key is in use: 0 for the first; each lost key starts a new one. -1 before any."""
        return max((line.get("key_generation", 0) for line in self.lines if line["kind"] != "closed"), default=-1)

    def has_key(self, generation: int) -> bool:
        """Whether the key of a generation is at hand."""
        return not self.inputs.is_private or self._key_path(generation).exists()

    def key(self, generation: int) -> np.ndarray:
        """The 256-bit key uint32[8] of a generation, made from OS entropy and on the disk before this returns.

        Process 0 makes it; the others read the file, and all compare its digest, never the key itself.
        A key that no ledger line speaks of was never used and is replaced: a copy of this workdir may hold it too.
        """
        if not self.inputs.is_private:
            seed = self.inputs.config.privacy.fixed_seed
            return chacha.key_from_seed(f"{seed} {self.stage.name} {generation}")
        path = self._key_path(generation)
        if not path.exists() or all(line.get("key_generation") != generation for line in self.lines):
            workdir.atomic_write_bytes(path, chacha.key_to_bytes(chacha.new_key()), mode=0o600)
        with reading.user_errors(path, "remove it, and the run goes on as after the loss of a key"):
            content = reading.read_bytes(path, chacha.KEY_BYTES)
            key = chacha.key_from_bytes(content)
        digest = hashlib.sha256(b"privimage key " + content).hexdigest()
        processes.current().barrier(f"key of {self.name}", {f"the key {path}": digest})
        return key

    def close(self) -> None:
        """After the artefact is durable: the line `closed`, then the key is deleted."""
        if not is_closed(self.ledger.entries, self.name):
            self.ledger.append("closed", mechanism=self.name)
            self._remember_head()
        self._delete_keys()

    def warn(self, message: str) -> None:
        """Tells the operator something that stays internal."""
        headline(self.stage.name, "warning", message)

    def _key_path(self, generation: int) -> Path:
        return self._keys / f"{self.stage.name}-{generation}.key"

    def _delete_keys(self) -> None:
        for path in sorted(self._keys.glob(f"{self.stage.name}-*.key")):
            workdir.remove(path)
