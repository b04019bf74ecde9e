"""How the processes of a run find each other: from flags, from the environment, or from the cluster they run in."""

import dataclasses
import os
from typing import Any

from privimage_jax.cluster import addresses, processes
from privimage_jax.errors import UserError

FLAGS = {  # name of the flag -> variable that stands in for it
    "coordinator": "PRIVIMAGE_COORDINATOR",
    "num_processes": "PRIVIMAGE_NUM_PROCESSES",
    "process_id": "PRIVIMAGE_PROCESS_ID",
    "start_timeout": "PRIVIMAGE_START_TIMEOUT",
}
START_SECONDS = 30.0
AUTO = "auto"
_ADDRESS_BYTES = 64


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a process stands among the others.

    Attributes:
      host, port: of process 0; an empty host means that jax asks the cluster (SLURM, GKE, TPU, Open MPI).
      index, count: of this process and of all; unknown (-1) until a cluster tells.
      seconds: to wait for the others at the start.
    """

    host: str
    port: int
    index: int
    count: int
    seconds: float


def place_from(given: dict[str, str | None]) -> Place | None:
    """This process's place, by flags (name -> value) or else by the environment; None if it is the only one.

    Raises:
      UserError: naming a flag that is missing or wrong.
    """
    values = {flag: given.get(flag) or os.environ.get(variable, "") for flag, variable in FLAGS.items()}
    seconds = _number("start_timeout", values["start_timeout"] or START_SECONDS, 1, 86400, float)
    coordinator = values["coordinator"]
    if not coordinator:
        if values["num_processes"] not in ("", "1") or values["process_id"] not in ("", "0"):
            raise UserError(
                "--coordinator is missing; give host:port of process 0, or --coordinator=auto inside a cluster "
                f"({FLAGS['coordinator']} stands in for the flag)."
            )
        return None
    if coordinator == AUTO:
        return Place("", 0, -1, -1, seconds)
    host, _, port = coordinator.rpartition(":")
    if not host.strip("[]"):
        raise UserError(f"--coordinator={coordinator} is not an address; give host:port of process 0, or auto.")
    count = _number("num_processes", values["num_processes"], 1, processes.MOST)
    index = _number("process_id", values["process_id"], 0, count - 1)
    return Place(host.strip("[]"), _number("coordinator", port, 1, 65535), index, count, seconds)


def _number(flag: str, value: Any, least: int, most: int, kind: type = int) -> Any:
    try:
        number = kind(value)
    except ValueError:
        number = least - 1
    if not least <= number <= most:
        raise UserError(
            f"--{flag} needs a number from {least} to {most}, not {value!r} ({FLAGS[flag]} stands in for the flag)."
        )
    return number


def start(place: Place) -> None:
    """Joins the processes: first over a connection of our own, whose errors are sentences, then by jax.

    Must come before jax looks for devices.

    Raises:
      UserError: if the others are not there in time.
    """
    if not place.host:
        processes.join(_start_in_cluster(place.seconds))
    elif place.count > 1:
        processes.join(_start_at(place))


def stop() -> None:
    """Parts from the others, when all of them are done."""
    team = processes.current()
    if team.count > 1:
        import jax

        team.barrier("the end of the run")
        jax.distributed.shutdown()
        team.leave()


def _import_jax() -> Any:
    import jax

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM from `preemption`
    return jax


def _start_at(place: Place) -> processes.Alone:
    if place.index == 0:
        with processes.listen(place.port, place.host) as server, processes.listen(0, place.host) as free:
            port = free.getsockname()[1]
            free.close()
            team = processes.gather(server, place.count, place.seconds, port)
    else:
        team, port = processes.connect(place.host, place.port, place.index, place.count, place.seconds)
    address = f"[{place.host}]:{port}" if ":" in place.host else f"{place.host}:{port}"
    _import_jax().distributed.initialize(  # only now, as importing it takes seconds
        address,
        place.count,
        place.index,
        coordinator_bind_address=address if addresses.is_loopback(place.host) else None,
        cluster_detection_method="deactivate",
        initialization_timeout=int(place.seconds) + 1,
        shutdown_timeout_seconds=processes.SILENCE_SECONDS,
    )
    return team


def _start_in_cluster(seconds: float) -> processes.Alone:
    jax = _import_jax()
    try:
        jax.distributed.initialize(
            initialization_timeout=int(seconds) + 1, shutdown_timeout_seconds=processes.SILENCE_SECONDS
        )
    except (ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise UserError(
            f"--coordinator=auto finds no cluster ({reason}); give --coordinator=host:port, --num_processes and "
            "--process_id."
        ) from None
    index, count = jax.process_index(), jax.process_count()
    if count == 1:
        return processes.Alone()
    with processes.listen(0) as server:
        host, port = _broadcast(f"{addresses.own_address()} {server.getsockname()[1]}").split()
        if index == 0:
            return processes.gather(server, count, seconds, None)
    return processes.connect(host, int(port), index, count, seconds)[0]


def _broadcast(text: str) -> str:
    """Process 0's text, in every process."""
    import numpy as np
    from jax.experimental import multihost_utils

    padded = np.frombuffer(text.encode().ljust(_ADDRESS_BYTES), np.uint8)
    return bytes(np.asarray(multihost_utils.broadcast_one_to_all(padded))).decode().strip()
