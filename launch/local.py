#!/usr/bin/env python3
"""Starts several processes of one run on this host: python launch/local.py --processes 2 -- run --config C --workdir W

Everything after `--` is the `privimage` command. Each process gets an equal share of the GPUs; on a host without GPUs
at most one process for each CPU core is started. What the processes but the first say goes to standard error, with
their number in front. Standard library only.
"""

import argparse
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

STATUS = 2  # of a mistake
FAREWELL_SECONDS = 60.0  # how long the other processes may take to end after the first failure


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, required=True, help="how many to start")
    parser.add_argument("--port", type=int, default=0, help="of the coordinator; 0: a free one")
    parser.add_argument("--dry_run", action="store_true", help="print the commands instead of running them")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="-- run --config C --workdir W …")
    arguments = parser.parse_args()
    command = arguments.command[1:] if arguments.command[:1] == ["--"] else arguments.command
    gpus = find_gpus()
    most, what = (len(gpus), "GPU(s)") if gpus else (os.cpu_count() or 1, "CPU core(s)")
    if not command:
        return refuse("the privimage command is missing; give it after --, as in -- run --config C --workdir W.")
    if not 1 <= arguments.processes <= most:
        return refuse(f"--processes={arguments.processes}, but this host has {most} {what}; give 1 to {most}.")
    port = arguments.port or free_port()
    places = [place(index, arguments.processes, port, gpus) for index in range(arguments.processes)]
    if arguments.dry_run:
        for environment in places:
            print(" ".join([*(f"{name}={value}" for name, value in environment.items()), "privimage", *command]))
        return 0
    return run([program(), *command], places)


def find_gpus() -> list[str]:
    """The names of the GPUs that may be used: of CUDA_VISIBLE_DEVICES, or all."""
    if os.environ.get("JAX_PLATFORMS", "").strip() == "cpu":
        return []
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name for name in visible.split(",") if name.strip() not in ("", "-1")]
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True)
    return [str(number) for number, line in enumerate(listed.stdout.splitlines()) if line.startswith("GPU ")]


def place(index: int, count: int, port: int, gpus: list[str]) -> dict[str, str]:
    """The variables that tell one process where it stands."""
    environment = {
        "PRIVIMAGE_COORDINATOR": f"127.0.0.1:{port}",
        "PRIVIMAGE_NUM_PROCESSES": str(count),
        "PRIVIMAGE_PROCESS_ID": str(index),
    }
    if gpus:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(
            gpus[index * len(gpus) // count : (index + 1) * len(gpus) // count]
        )
    return environment


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def program() -> str:
    """The `privimage` beside this Python, or else of PATH."""
    beside = pathlib.Path(sys.executable).with_name("privimage")
    return str(beside) if beside.exists() else "privimage"


def run(command: list[str], places: list[dict[str, str]]) -> int:
    """Runs one process for each place, and returns the status of the first that fails, or 0.

    A process that fails tells the others, which then end by themselves; one that does not is killed.
    """
    children, threads = [], []
    for index, environment in enumerate(places):
        try:
            child = subprocess.Popen(
                command,
                env={**os.environ, **environment},
                stdout=subprocess.PIPE if index else None,  # the first may draw a progress bar
                stderr=subprocess.STDOUT if index else None,
                text=True,
            )
        except OSError as error:
            for child in children:
                child.kill()
            return refuse(f"{command[0]} cannot be started ({error.strerror}); source launch/environment.sh first.")
        children.append(child)
        if index:
            threads.append(threading.Thread(target=show, args=(index, child), daemon=True))
            threads[-1].start()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: [child.send_signal(number) for child in children])
    status, deadline = 0, None
    while (codes := [child.poll() for child in children]) and None in codes:
        status = status or next((code for code in codes if code), 0)
        deadline = deadline or (time.monotonic() + FAREWELL_SECONDS if status else None)
        if deadline and time.monotonic() > deadline:
            for child in children:
                child.kill()
        time.sleep(0.05)
    for thread in threads:
        thread.join()
    status = status or next((code for code in codes if code), 0)
    return status if status >= 0 else 128 - status


def show(index: int, child: subprocess.Popen) -> None:
    """Passes on what a process says, with its number in front."""
    for line in child.stdout:
        print(f"[{index}] {line}", end="", file=sys.stderr, flush=True)


def refuse(sentence: str) -> int:
    print(f"launch/local.py: error: {sentence}", file=sys.stderr)
    return STATUS


if __name__ == "__main__":
    sys.exit(main())
