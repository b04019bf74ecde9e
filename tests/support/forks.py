"""Starts `privimage` as forks of one process that has imported all of it and has not started jax's backend.

A fresh interpreter takes seconds of imports each time; a fork takes none and is as much a process of its own: with its
own environment, signals and exit status. The variables that jax reads while it is imported are those of the tests.
"""

import contextlib
import importlib
import json
import os
import pathlib
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import quick

IMPORTED = (
    "privimage_jax.main",
    "privimage_jax.pipeline",
    "pipelines",
    "tensorboardX",
    "matplotlib.pyplot",
    "jax.experimental.multihost_utils",
)


class Fork:
    """A process that runs a command; has what the tests use of `subprocess.Popen`."""

    def __init__(self, connection: socket.socket, out, err):
        self._connection, self._out, self._err = connection, out, err
        self.pid, self.returncode = self._told(), None

    def poll(self) -> int | None:
        """The exit status, or minus the signal that ended it; None while it runs."""
        if self.returncode is None and select.select([self._connection], [], [], 0)[0]:
            self.wait()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Waits for the end; kills the process when it takes more seconds than `timeout`."""
        if self.returncode is None:
            if not select.select([self._connection], [], [], timeout)[0]:
                self.send_signal(signal.SIGKILL)
                raise subprocess.TimeoutExpired(f"fork {self.pid}", timeout or 0)
            self.returncode = self._told()
            self._connection.close()
        return self.returncode

    def _told(self) -> int:
        """The next number from the server, which ends a line."""
        digits = b""
        while not digits.endswith(b"\n"):
            if not (digit := self._connection.recv(1)):
                raise RuntimeError("the process that is forked has gone")
            digits += digit
        return int(digits)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Waits for the end; standard output and standard error."""
        self.wait(timeout)
        texts = []
        for file in (self._out, self._err):
            file.seek(0)
            texts.append(file.read())
            file.close()
        return texts[0], texts[1]

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


class Forks:
    """Where such processes come from."""

    def __init__(self, server: subprocess.Popen, path: str):
        self._server, self._path = server, path

    def start(self, arguments: Sequence, environment: dict[str, str]) -> Fork:
        """Runs `privimage` with these arguments in an environment; standard input is empty."""
        out, err = (tempfile.TemporaryFile("w+") for _ in range(2))  # noqa: SIM115, as `communicate` closes them
        with open(os.devnull) as nothing:
            return _asked(self._path, arguments, environment, nothing, out, err)

    def program(self, folder: pathlib.Path) -> pathlib.Path:
        """Writes a `privimage` that runs as such a process, and beside it a Python; returns the Python.

        The program has its starter's arguments, environment and standard streams.
        """
        folder.mkdir()
        program, python = folder / "privimage", folder / "python"
        support = str(pathlib.Path(__file__).parent)
        program.write_text(
            f"#!{sys.executable}\nimport sys; sys.path.append({support!r})\n"
            f"import forks; sys.exit(forks.relay({self._path!r}))\n"
        )
        program.chmod(0o755)
        python.symlink_to(sys.executable)
        return python


def _asked(path: str, arguments: Sequence, environment: dict[str, str], *streams) -> Fork:
    """Asks the process that is forked, at its socket, for a fork with these standard streams."""
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(path)
    request = json.dumps({"arguments": [*map(str, arguments)], "environment": environment}).encode()
    descriptors = [stream.fileno() for stream in streams]
    socket.send_fds(connection, [len(request).to_bytes(4, "big")], descriptors)
    connection.sendall(request)
    return Fork(connection, *streams[1:])


def free_port() -> int:
    """A port of this host that nobody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def relay(path: str) -> int:
    """Has this process's command run as a fork, and waits for its end; returns the status."""
    return _asked(path, sys.argv[1:], dict(os.environ), sys.stdin, sys.stdout, sys.stderr).wait()


@contextlib.contextmanager
def forks(environment: dict[str, str]) -> Iterator[Forks]:
    """Starts the process that is forked, in this environment, and ends it."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "socket")
        own = {**environment, "OPENBLAS_NUM_THREADS": "1"}  # it would start threads, which do not survive a fork
        with subprocess.Popen([sys.executable, __file__, path], env=own, stdout=subprocess.PIPE) as server:
            assert server.stdout is not None and server.stdout.readline() == b"ready\n"
            try:
                yield Forks(server, path)
            finally:
                server.kill()


def serve(path: str) -> dict[str, Any]:
    """Forks for each connection, and tells it the process's id and, later, its exit status.

    Returns:
      In the forks alone: what they are to run.
    """
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()
        print("ready", flush=True)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the forks that wait
        while True:
            connection, _ = server.accept()
            if not os.fork():
                break
            connection.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    size, streams, _, _ = socket.recv_fds(connection, 4, 3)
    request = json.loads(connection.makefile("rb").read(int.from_bytes(size, "big")))
    if child := os.fork():
        connection.sendall(f"{child}\n".encode())
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        connection.sendall(f"{status}\n".encode())
        os._exit(0)
    connection.close()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w", buffering=1)  # noqa: SIM115
    return request


def solve_budget() -> None:
    """Solves the budget of the smallest experiment by all accountants, which is kept for this process and its forks."""
    configs, pipelines, plan = map(
        importlib.import_module, ("privimage_jax.config", "pipelines", "privimage_jax.run.plan")
    )
    with tempfile.TemporaryDirectory() as folder:
        config = pipelines.tiny_config(pathlib.Path(folder))
        config.privacy.accountant = "rdp"
        config = configs.check(config)
    plan.noise_by_accountant(config, pipelines.IMAGES, plan.make_plan(config, pipelines.IMAGES).delta)


def main() -> None:
    for name in IMPORTED:
        importlib.import_module(name)
    solve_budget()
    quick.collect_rarely()
    request = serve(sys.argv[1])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv = ["privimage", *request["arguments"]]
    sys.modules["privimage_jax.main"].entry_point()


if __name__ == "__main__":
    main()
