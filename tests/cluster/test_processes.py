"""The rule of writes and of failures between processes, without jax: each process is a script of a few lines."""

import contextlib
import json
import os
import pathlib
import socket
import subprocess
import sys
import textwrap
import threading

import pytest

from privimage_jax.cluster import addresses, processes
from privimage_jax.storage import durable

BEGINNING = """
import pathlib, sys
from privimage_jax.cluster import processes
from privimage_jax.storage import durable, reading
index, count, port, folder = *map(int, sys.argv[1:4]), pathlib.Path(sys.argv[4])
if index == 0:
    processes.join(processes.gather(processes.listen(port), count, 20, None))
else:
    processes.join(processes.connect("127.0.0.1", port, index, count, 20)[0])
team = processes.current()
"""


def together(folder: pathlib.Path, body: str, count: int = 3) -> list[tuple[int, str, str]]:
    """Runs a script as `count` processes; (status, standard output, standard error) of each."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    script = BEGINNING + textwrap.dedent(body)
    children = [
        subprocess.Popen(
            [sys.executable, "-c", script, *map(str, (index, count, port, folder))],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(count)
    ]
    outputs = [child.communicate(timeout=60) for child in children]
    return [(child.returncode, *output) for child, output in zip(children, outputs, strict=True)]


def test_process_0_writes_and_all_see_it(tmp_path):
    """Each writes a content of its own; a write that another process did, or did not wait for, would show."""
    results = together(
        tmp_path,
        """
        for turn in range(30):
            durable.atomic_write_json(folder / "value.json", [turn, index])
            assert reading.read_json(folder / "value.json") == [turn, 0]
            durable.append_line_durably(folder / "lines", f"{turn} of {index}")
            assert len((folder / "lines").read_text().splitlines()) == turn + 1
        assert team.min_over_processes("a number", 7 + (index - 1) ** 2) == 7
        with durable.atomic_dir(folder / "made") as partial:
            durable.atomic_write_bytes(partial / "file", str(index).encode())
        assert (folder / "made" / "file").read_text() == "0"
        durable.remove(folder / "made")
        assert not (folder / "made").exists()
        team.leave()
        print("left")
        """,
    )
    assert results == [(0, "left\n", "")] * 3
    assert (tmp_path / "lines").read_text().splitlines() == [f"{turn} of 0" for turn in range(30)]


@pytest.mark.parametrize(("failing", "status"), [(0, 2), (1, 75)])
def test_the_sentence_and_the_status_of_one_end_all(tmp_path, failing, status):
    """Also a process that waits where it hears nothing."""
    results = together(
        tmp_path,
        f"""
        import os, time
        if index == {failing}:
            team.fail("the disk is full.", {status})
            os._exit({status})
        time.sleep(50)
        """,
    )
    sentence = f"privimage: error: process {failing} of 3 ended: the disk is full.\n"
    assert results == [(status, "", "" if index == failing else sentence) for index in range(3)]


def test_a_process_that_vanishes_ends_all(tmp_path):
    results = together(
        tmp_path,
        """
        import os, signal
        if index == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        durable.make_dir(folder / "never")
        """,
    )
    assert [status for status, _, _ in results] == [2, 2, -9]
    assert all("process 2 of 3 ended: it was killed" in error for _, _, error in results[:2])
    assert not (tmp_path / "never").exists()


def test_a_failed_write_of_process_0_ends_all(tmp_path):
    results = together(
        tmp_path,
        """
        import os
        from privimage_jax.errors import UserError
        try:
            durable.make_dir(pathlib.Path("/proc/nowhere"))
        except UserError as error:
            team.fail(str(error))
            os._exit(2)
        print("not reached")
        """,
    )
    assert [(status, out) for status, out, _ in results] == [(2, "")] * 3
    assert all("process 0 of 3 ended: cannot write /proc/nowhere" in error for _, _, error in results[1:])


def test_facts_that_differ_are_named_and_digests_are_not_shown(tmp_path):
    results = together(
        tmp_path,
        """
        import hashlib, os
        from privimage_jax.errors import UserError
        try:
            team.barrier("start", {"config.seed": 1, "the key": hashlib.sha256(bytes([index])).hexdigest()})
        except UserError as error:
            print(error)
            team.fail(str(error))
            os._exit(2)
        """,
        count=2,
    )
    assert results[0][1] == (
        "process 0 and process 1 differ in the key; start every process with the same command, code and data.\n"
    )


def test_processes_that_took_different_ways_do_not_wait_for_ever(tmp_path):
    results = together(tmp_path, "team.barrier(f'place {min(index, 1)}')", count=2)
    assert "process 1 came to 'place 1', but process 0 to 'place 0'" in results[0][2]
    assert results[1][0] == 2


STRANGERS = [
    b"GET / HTTP/1.1",
    b"\xff\xfe",
    b"[" * 900,
    b'{"index": 1' + b" " * 2000 + b', "count": 2}',
    *(
        json.dumps({"index": index, "count": count}).encode()
        for index, count in (("1", 2), (0.5, 2), (1.0, 2), (True, 2), (-1, 2), (2**70, 2), ([1], 2), (None, 2))
    ),
    *(json.dumps({"index": 1, "count": count}).encode() for count in ("2", 2.0, True, -2, 10**7, {}, float("nan"))),
    b'{"index": ' + b"9" * 900 + b', "count": 2}',
]


def test_strangers_at_the_port_are_no_processes():
    """Whatever comes, the run starts with the process that belongs to it."""
    teams = []
    with processes.listen(0, "127.0.0.1") as server, contextlib.ExitStack() as held:
        port = server.getsockname()[1]
        for line in STRANGERS:
            stranger = held.enter_context(socket.create_connection(("127.0.0.1", port)))
            stranger.sendall(line + b"\r\n")
        start = threading.Thread(target=lambda: teams.append(processes.connect("127.0.0.1", port, 1, 2, 20)[0]))
        start.start()
        first = processes.gather(server, 2, 20, None)
        start.join()
        leave = threading.Thread(target=teams[0].leave)
        leave.start()
        first.leave()
        leave.join()


@pytest.mark.parametrize(
    "message",
    [
        {},
        {"place": 1, "facts": {}, "number": 0},
        {"place": "a", "number": 0},
        {"place": "a", "facts": {}, "number": True},
        {"place": "a", "facts": {}, "number": 0.5},
        {"place": "a", "facts": {}, "number": 2**70},
        {"place": "a", "facts": [], "number": 0},
        {"failed": "x", "process": "1", "status": 2},
        {"failed": "x", "process": 7, "status": 2},
        {"failed": "x", "process": 1, "status": -1},
        {"failed": "x", "process": 1, "status": 2**40},
        {"failed": None, "process": 1, "status": 2},
    ],
    ids=str,
)
def test_a_malformed_message_ends_the_run_with_a_sentence(message, monkeypatch, capsys):
    statuses, done = [], threading.Event()

    def end(status):
        statuses.append(status)
        done.set()

    monkeypatch.setattr(os, "_exit", end)
    with processes.listen(0, "127.0.0.1") as server, socket.create_connection(server.getsockname()) as other:
        other.sendall(b'{"index": 1, "count": 2}\n' + json.dumps(message).encode() + b"\n")
        processes.gather(server, 2, 20, None)
        assert done.wait(20)
    assert statuses == [2]
    assert "process 1 of 2 ended: it sent what no process of a run sends" in capsys.readouterr().err


def test_a_run_on_one_host_is_heard_on_that_host_alone():
    for host in ("127.0.0.1", "localhost"):
        with processes.listen(0, host) as server:
            assert server.getsockname()[0] == "127.0.0.1"
    for host in ("192.0.2.1", "::1234", "no-such-host.invalid", ""):
        with processes.listen(0, host) as server:
            assert server.getsockname()[0] in ("::", "0.0.0.0")


def test_a_name_of_this_host_is_loopback_where_all_its_addresses_are(monkeypatch):
    known = {"this-host": ["127.0.1.1"], "both": ["127.0.0.1", "192.0.2.7"], "v6": ["::1"]}
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, port: [(0, 0, 0, "", (at, 0)) for at in known[host]])
    assert [addresses.is_loopback(host) for host in known] == [True, False, True]


def test_a_process_that_does_not_fit_is_refused(tmp_path):
    with processes.listen(0) as server:
        port = server.getsockname()[1]
        code = f"from privimage_jax.cluster import processes; processes.connect('127.0.0.1', {port}, 1, 4, 20)"
        with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True) as child:
            with pytest.raises(processes.UserError, match="process 1 of 4 does not fit into a run of 2 processes"):
                processes.gather(server, 2, 20, None)
            assert "process 1 of 4 does not fit" in child.stderr.read()


def test_a_taken_port_is_named():
    with processes.listen(0) as server, pytest.raises(processes.UserError, match="cannot listen .* give another port"):
        processes.listen(server.getsockname()[1])


def test_one_process_waits_for_nobody(tmp_path):
    assert processes.current().count == 1 and processes.is_first()
    durable.atomic_write_bytes(tmp_path / "file", b"x")
    assert os.listdir(tmp_path) == ["file"]
