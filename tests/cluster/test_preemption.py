"""SIGTERM and SIGINT: the run saves what it has, ends with the right status, and goes on as if never stopped."""

import contextlib
import os
import signal
import subprocess
import sys
import time
import types

import jax.numpy as jnp
import numpy as np
import pytest
from kept import keep_programs
from pipelines import release_bytes

from privimage_jax.cluster import preemption
from privimage_jax.run import noisy_counts
from privimage_jax.stages import finetune, sample
from privimage_jax.storage.workdir import Workdir
from privimage_jax.training import loop
from privimage_jax.training.checkpoint import Checkpoints
from privimage_jax.training.writers import MetricWriter

SETTINGS = (  # no checkpoint but that of a pre-emption, and that of a stage's last step
    "--config.log.every=1",
    "--config.log.checkpoint_every=100",
    "--config.privacy.accountant=rdp",
    "--config.evaluate.enabled=False",
)
SENTENCE = "privimage: ended by SIGTERM; its work is saved, and the same command continues where it stopped.\n"


def terminate_at(patch, owner, name, call):
    """Sends this process SIGTERM at the start of a certain call of `owner.name`."""
    original, calls = getattr(owner, name), []

    def terminating(*args, **kwargs):
        calls.append(name)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*args, **kwargs)

    patch.setattr(owner, name, terminating)


def test_a_run_stopped_again_and_again_releases_what_an_undisturbed_one_does(privimage, config, tmp_path, monkeypatch):
    keep_programs(monkeypatch)

    def run(name):
        return privimage("run", "--config", config, "--workdir", tmp_path / name, *SETTINGS)

    def checkpoints(stage):
        return Checkpoints(tmp_path / "stopped" / "internal" / stage / "checkpoints").steps()

    run("undisturbed").succeeds()
    for owner, name, call, stage, step in (
        (MetricWriter, "scalars", 3, "train-query", 3),
        (noisy_counts.noise, "rounded_gaussian", 1, "query", None),
        (MetricWriter, "scalars", 2, "pretrain", 2),
        (finetune.Mechanism, "spend", 1, "finetune", 0),
        (MetricWriter, "scalars", 4, "finetune", 4),
        (MetricWriter, "scalars", 2, "finetune", 6),  # its last step
        (sample, "make_labels", 1, "sample", None),
    ):
        with pytest.MonkeyPatch.context() as patch:
            terminate_at(patch, owner, name, call)
            result = run("stopped")
        assert (result.status, result.err) == (75, SENTENCE), (stage, step)
        assert f"{stage:<15} running" in result.out
        if step is not None:
            assert checkpoints(stage)[-1:] == [step], (stage, step)
    run("stopped").succeeds()
    assert release_bytes(Workdir(tmp_path / "stopped")) == release_bytes(Workdir(tmp_path / "undisturbed"))
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_the_process_at_once(first, second):
    code = """
from privimage_jax.cluster import preemption
import time
with preemption.handled(), preemption.deferred():
    print("ready", flush=True)
    while not preemption.asked():
        time.sleep(0.01)
    print("asked", flush=True)
    time.sleep(50)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout.readline() == "ready\n"
        child.send_signal(first)
        assert child.stdout.readline() == "asked\n"
        child.send_signal(second)
        assert child.wait(timeout=20) == -second


DEAF = """
from hashlib import pbkdf2_hmac
from privimage_jax.cluster import preemption
import contextlib, threading
preemption.GRACE_SECONDS = 0.3
with preemption.handled(), {contexts}:
    threading.Timer(0.3, print, ["ready"], dict(flush=True)).start()
    pbkdf2_hmac("sha256", b"", b"", {rounds})  # in C, where Python hears no signal
    print("heard", preemption.asked(), flush=True)
    raise SystemExit(0)
"""


@contextlib.contextmanager
def deaf(contexts, rounds=10**9):
    """A process whose main thread is busy in C, as a compiler keeps it."""
    code = DEAF.format(contexts=contexts, rounds=rounds)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", code], **pipes) as child:
        assert child.stdout.readline() == "ready\n"
        try:
            yield child
        finally:
            child.kill()


@pytest.mark.parametrize("contexts", ["contextlib.nullcontext()", "preemption.deferred(), preemption.idle()"])
@pytest.mark.parametrize("number", preemption.SIGNALS)
def test_a_compiler_does_not_keep_a_process_that_loses_nothing(number, contexts):
    with deaf(contexts) as child:
        child.send_signal(number)
        status, sentence = preemption.ENDED[number]
        assert child.wait(timeout=20) == status
        assert child.stderr.read() == f"privimage: {sentence}\n"


def test_what_would_be_lost_is_waited_for_unless_a_second_signal_comes():
    with deaf("preemption.deferred()", 4 * 10**6) as child:
        child.send_signal(signal.SIGTERM)
        assert child.stdout.readline() == "heard True\n"
    with deaf("preemption.deferred()") as child:
        child.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        assert child.poll() is None
        child.send_signal(signal.SIGINT)
        assert child.wait(timeout=20) == 128 + signal.SIGINT


def test_before_the_first_steps_are_done_nothing_is_saved(tmp_path):
    def end():
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(preemption.Preempted), preemption.handled():
        train(tmp_path, seconds=end)
    assert Checkpoints(tmp_path / "checkpoints").steps() == []


def test_a_notice_that_no_step_heard_is_acted_upon_at_the_end():
    with pytest.raises(preemption.Preempted), preemption.handled(), preemption.deferred():
        os.kill(os.getpid(), signal.SIGTERM)
    with preemption.handled():
        assert not preemption.asked()  # the next run starts without it


def train(folder, start=0, stop=40, seconds=lambda: None):
    """Counts steps, each of which does what `seconds` does to the clock; returns the lengths of the dispatches."""
    log = types.SimpleNamespace(every=16, sample_every=0, checkpoint_every=1000, keep=2)
    lengths = []

    def make_runner(step):
        def run(state, inputs, begin, end):
            lengths.append(end - begin)
            for _ in range(begin, end):
                seconds()
            return {"sum": state["sum"] + sum(range(begin, end))}, {"loss": jnp.float32(begin)}

        return run

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "make_runner", make_runner)
        state = {"sum": jnp.int32(sum(range(start)))}
        state = loop.train("test", None, state, None, start, stop, folder, log)
    assert int(state["sum"]) == sum(range(stop))
    return lengths


def test_no_dispatch_is_much_longer_than_a_pause_may_be(tmp_path, monkeypatch):
    clock = types.SimpleNamespace(now=0.0)
    monkeypatch.setattr(time, "monotonic", lambda: clock.now)

    def three_seconds():
        clock.now += 3

    assert train(tmp_path / "slow", seconds=three_seconds)[:6] == [1, 3, 3, 3, 3, 3]
    assert train(tmp_path / "fast") == [1, 15, 16, 8]


def test_a_clock_that_goes_backwards_changes_nothing(tmp_path, monkeypatch):
    clock = types.SimpleNamespace(now=1e9)

    def backwards():
        clock.now -= 1000
        return clock.now

    monkeypatch.setattr(time, "monotonic", backwards)
    assert train(tmp_path) == [1, 15, 16, 8]


@pytest.mark.parametrize(
    ("number", "reason"), [(signal.SIGTERM, preemption.Preempted), (signal.SIGINT, KeyboardInterrupt)]
)
def test_the_state_of_the_very_step_is_saved(tmp_path, number, reason):
    clock = iter(range(100))

    def end_in_the_eleventh():
        if next(clock) == 10:
            os.kill(os.getpid(), number)

    with pytest.raises(reason) as raised, preemption.handled():
        train(tmp_path, seconds=end_in_the_eleventh)
    assert raised.type is reason
    state = Checkpoints(tmp_path / "checkpoints").restore_latest({"sum": jnp.int32(0)}, pytest.fail)
    np.testing.assert_array_equal(state["sum"], sum(range(16)))  # the end of the dispatch that step 11 was in
