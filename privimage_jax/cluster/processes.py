"""The processes of one run: how they wait for each other, who writes, and how all of them end when one fails.

A run on several hosts is N processes that take the same steps in the same order. Each holds one TCP connection to
process 0, over which lines of JSON go: names of the places where all wait, public values and digests; never images and
never keys. (The arrays of the run travel by jax's own collectives.) A connection that breaks, or the sentence of a
process that failed, ends every process at once, also one that waits inside a collective.
"""

import contextlib
import functools
import json
import os
import queue
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from privimage_jax.cluster import addresses
from privimage_jax.errors import UserError

FAREWELL_SECONDS = 5.0  # how long process 0 stays, so that the others hear why it ends
GRACE_SECONDS = 3.0  # how long a process that fails waits for the news that another has gone, which says more
SILENCE_SECONDS = 30  # after which a host that answers nothing counts as gone
END = "the end"  # where all part
STATUS = 2  # of a process that ends because of another, unless that one says otherwise
MOST = 1_000_000  # processes of a run
HELLO_BYTES, MESSAGE_BYTES = 1 << 10, 1 << 24  # of a line, before it is known who sends it, and after


class Alone:
    """The only process of its run: it waits for nobody."""

    index, count = 0, 1

    def barrier(self, place: str, facts: dict[str, Any] | None = None) -> None:
        """Returns when every process has come to `place`; see `Team`."""

    def min_over_processes(self, place: str, number: int) -> int:
        """The smallest of the numbers that the processes bring to `place`."""
        return number

    def fail(self, sentence: str, status: int = STATUS) -> None:
        """Tells the others why this process ends, so that they end too, with this exit status."""

    def leave(self) -> None:
        """Ends the team, when every process is done."""


class Team(Alone):
    """One of several processes.

    Args:
      index: 0 to count - 1; process 0 is connected with all, every other one with process 0.
      connections: index of the other end -> connection. A thread listens to each.
    """

    def __init__(self, index: int, count: int, connections: "dict[int, _Connection]"):
        self.index, self.count = index, count
        self._connections = connections
        self._inbox: dict[int, queue.SimpleQueue] = {peer: queue.SimpleQueue() for peer in connections}
        self._ending = False
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._listen, args=(peer,), daemon=True) for peer in connections]
        for thread in self._threads:
            thread.start()

    def barrier(self, place: str, facts: dict[str, Any] | None = None) -> None:
        """Returns when every process has come to `place`.

        Args:
          place: a name, the same in every process.
          facts: public values and digests that must be the same in every process.

        Raises:
          UserError: in process 0, naming the first fact that differs; the others end by the failure of process 0.
        """
        self._meet(place, facts or {}, 0)

    def min_over_processes(self, place: str, number: int) -> int:
        """The smallest of the numbers that the processes bring to `place`."""
        return self._meet(place, {}, number)

    def _meet(self, place: str, facts: dict[str, Any], number: int) -> int:
        if self.index:
            self._connections[0].send({"place": place, "facts": facts, "number": number})
            return self._inbox[0].get()["number"]
        for peer, inbox in self._inbox.items():
            message = inbox.get()
            if message["place"] != place:
                raise UserError(
                    f"process {peer} came to {message['place']!r}, but process 0 to {place!r}: they differ; "
                    "start every process with the same command, code and data."
                )
            _check_facts(peer, facts, message["facts"])
            number = min(number, message["number"])
        for connection in self._connections.values():
            connection.send({"place": place, "facts": {}, "number": number})
        return number

    def fail(self, sentence: str, status: int = STATUS) -> None:
        """Tells the others why this process ends; process 0 stays until they have gone."""
        with self._lock:
            if self._ending:
                return
            self._ending = True
        self._tell(self.index, sentence, status)

    def leave(self) -> None:
        """Closes the connections, when every process has come here."""
        self.barrier(END)
        self._ending = True
        for connection in self._connections.values():
            connection.close()

    def _listen(self, peer: int) -> None:
        while (message := self._connections[peer].receive()) is not None:
            if not _is_message(message, self.count):
                self._end(peer, "it sent what no process of a run sends; run the same command again.", STATUS)
                return
            if "failed" in message:
                self._end(message["process"], message["failed"], message["status"])
            else:
                self._inbox[peer].put(message)
                if message.get("place") == END:
                    return  # what comes now is the closing of the connection
        self._end(
            peer,
            "it was killed, or its host is out of reach; see its own output, then run the same command again.",
            STATUS,
        )

    def _end(self, process: int, sentence: str, status: int) -> None:
        """Ends this process from a listening thread, whatever its main thread waits for."""
        with self._lock:
            if self._ending:
                return
            self._ending = True
        print(f"privimage: error: process {process} of {self.count} ended: {sentence}", file=sys.stderr)
        if sys.stdout.isatty():
            print("\033[?25h", end="")  # the cursor, which a progress bar may have hidden
        self._tell(process, sentence, status)
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        os._exit(status)

    def _tell(self, process: int, sentence: str, status: int) -> None:
        for connection in self._connections.values():
            connection.send({"process": process, "failed": sentence, "status": status})
        if self.index == 0:  # jax's coordinator lives in this process, and takes the others down without a sentence
            deadline = time.monotonic() + FAREWELL_SECONDS
            for thread in self._threads:
                if thread is not threading.current_thread() and thread.is_alive():  # it may not have started yet
                    thread.join(max(0.0, deadline - time.monotonic()))


def _check_facts(peer: int, own: dict[str, Any], other: dict[str, Any]) -> None:
    for name in sorted({*own, *other}):
        here, there = own.get(name), other.get(name)
        if here != there:
            values = "" if _is_digest(here) or _is_digest(there) else f" ({here!r} and {there!r})"
            raise UserError(
                f"process 0 and process {peer} differ in {name}{values}; start every process with the same command, "
                "code and data."
            )


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef")


class _Connection:
    """Lines of JSON over one socket."""

    def __init__(self, connected: socket.socket):
        self._socket = connected
        self._lines = connected.makefile("r", encoding="utf-8")
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in (("KEEPIDLE", 10), ("KEEPINTVL", 5), ("KEEPCNT", (SILENCE_SECONDS - 10) // 5)):
            if hasattr(socket, f"TCP_{option}"):
                connected.setsockopt(socket.IPPROTO_TCP, getattr(socket, f"TCP_{option}"), value)

    def send(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):  # the listening thread notices a broken connection and says so
            self._socket.sendall((json.dumps(message) + "\n").encode())

    def receive(self, seconds: float | None = None, most: int = MESSAGE_BYTES) -> dict[str, Any] | None:
        """The next message; None if the connection is closed, silent for so long, or not one of ours."""
        try:
            self._socket.settimeout(seconds)
            message = json.loads(self._lines.readline(most))  # a longer line is no JSON then
            self._socket.settimeout(None)
            return message if isinstance(message, dict) else None
        except (OSError, ValueError, RecursionError):
            return None

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)


def _is_whole(value: Any, least: int, most: int) -> bool:
    """Whether a value of a message is a whole number in [least, most], not True, 1.0 or "1"."""
    return type(value) is int and least <= value <= most


def _is_hello(message: dict[str, Any] | None) -> bool:
    """Whether a process of some run introduces itself."""
    if message is None or not _is_whole(message.get("count"), 1, MOST):
        return False
    return _is_whole(message.get("index"), 0, message["count"] - 1)


def _is_message(message: dict[str, Any], count: int) -> bool:
    """Whether it is one that the processes of a run send each other once they are together."""
    if "failed" in message:
        of_one = _is_whole(message.get("process"), 0, count - 1) and _is_whole(message.get("status"), 0, 255)
        return of_one and isinstance(message["failed"], str)
    at_a_place = isinstance(message.get("place"), str) and isinstance(message.get("facts"), dict)
    return at_a_place and _is_whole(message.get("number"), -(2**63), 2**63)


def listen(port: int, host: str = "") -> socket.socket:
    """Opens process 0's port (0: a free one): on the loopback alone if its host leads there, else on every interface.

    Raises:
      UserError: if the port is taken.
    """
    try:
        if addresses.is_loopback(host):
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            return socket.create_server((host, port), family=family, backlog=1024)
        dual = socket.has_dualstack_ipv6()
        return socket.create_server(
            ("", port), family=socket.AF_INET6 if dual else socket.AF_INET, dualstack_ipv6=dual, backlog=1024
        )
    except (OSError, OverflowError) as error:
        raise UserError(
            f"process 0 cannot listen on the coordinator's port {port} ({_reason(error)}); give another port."
        ) from None


def gather(server: socket.socket, count: int, seconds: float, welcome: Any) -> Team:
    """Process 0's side of the start: waits for the others, and tells each of them `welcome`.

    Raises:
      UserError: naming the processes that did not come in time, or one that does not fit.
    """
    connections: dict[int, _Connection] = {}
    deadline = time.monotonic() + seconds
    try:
        while len(connections) < count - 1:
            server.settimeout(max(0.001, deadline - time.monotonic()))
            try:
                connection = _Connection(server.accept()[0])
            except TimeoutError:
                missing = [str(index) for index in range(1, count) if index not in connections]
                raise UserError(
                    f"of {count} processes {len(connections) + 1} came within {seconds:g} s, not number "
                    f"{', '.join(missing)}; start all of them, or give the true --num_processes."
                ) from None
            hello = connection.receive(5, HELLO_BYTES)
            if hello is None or not _is_hello(hello):
                connection.close()  # a stranger
                continue
            index = hello["index"]
            if hello["count"] != count or index in connections or index == 0:
                connections[-1] = connection
                raise UserError(
                    f"process {index} of {hello['count']} does not fit into a run of {count} processes; give each the "
                    "same --num_processes and its own --process_id."
                )
            connections[index] = connection
    except UserError as error:
        for connection in connections.values():
            connection.send({"process": 0, "failed": str(error), "status": STATUS})
        raise
    for connection in connections.values():
        connection.send({"welcome": welcome})
    return Team(0, count, dict(sorted(connections.items())))


def connect(host: str, port: int, index: int, count: int, seconds: float) -> tuple[Team, Any]:
    """The other processes' side of the start: finds process 0 and returns the team and its welcome.

    Raises:
      UserError: if process 0 cannot be reached in time, or does not start.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            connected = socket.create_connection((host, port), timeout=max(0.1, deadline - time.monotonic()))
            break
        except OSError as error:
            if time.monotonic() + 0.2 > deadline:
                raise UserError(
                    f"process {index} cannot reach the coordinator {host}:{port} within {seconds:g} s "
                    f"({_reason(error)}); start process 0 on that host, or correct --coordinator."
                ) from None
            time.sleep(0.2)
    connection = _Connection(connected)
    connection.send({"index": index, "count": count})
    message = connection.receive(seconds + FAREWELL_SECONDS)  # process 0 has begun to wait before
    if message is None or "welcome" not in message:
        reason = "it does not answer as process 0 of a run does; correct --coordinator."
        if message is not None and "failed" in message and _is_message(message, count):
            reason = message["failed"]
        raise UserError(f"the coordinator {host}:{port} does not start the run: {reason}")
    return Team(index, count, {0: connection}), message["welcome"]


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


_team: Alone = Alone()
_apart = threading.local()  # depth: inside what one process does while the others wait or pass by


def join(team: Alone) -> None:
    """Makes `team` this process's own, for the rest of its life."""
    global _team
    _team = team


def current() -> Alone:
    """The team that this process belongs to."""
    return _team


def is_first() -> bool:
    """Whether this is process 0, the one that writes and speaks."""
    return _team.index == 0


def write_on_process_zero(write: Callable[..., None]) -> Callable[..., None]:
    """The rule of every durable write: process 0 alone does it, while the others wait.

    All have come before it begins, so that nobody still reads what it replaces; and nobody goes on before it is done,
    so that all see the same files wherever they look. What it calls is part of it and waits for nobody. A failure is
    not told from here: it ends process 0, and by that the others.
    """

    @functools.wraps(write)
    def call(*arguments: Any, **more: Any) -> None:
        if _team.count == 1 or getattr(_apart, "depth", 0) > 0:
            write(*arguments, **more)
            return
        _team.barrier(f"{write.__qualname__} begins")
        if is_first():
            with _on_its_own():
                write(*arguments, **more)
        _team.barrier(f"{write.__qualname__} is done")
        _look_again(arguments)

    return call


def on_process_zero(act: Callable[..., None]) -> Callable[..., None]:
    """For what nobody reads during the run, such as metrics and headlines: process 0 does it, the others pass by."""

    @functools.wraps(act)
    def call(*arguments: Any, **more: Any) -> None:
        if is_first():
            with _on_its_own():
                act(*arguments, **more)

    return call


@contextlib.contextmanager
def _on_its_own() -> Iterator[None]:
    _apart.depth = getattr(_apart, "depth", 0) + 1
    try:
        yield
    finally:
        _apart.depth -= 1


def _look_again(arguments: tuple) -> None:
    """Opens the folders of the paths given: a network file system then forgets which names it did not find before."""
    for path in arguments:
        if isinstance(path, Path):
            with contextlib.suppress(OSError):
                os.close(os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY))
