"""The launch scripts, without installing anything: a folder of pretended programs stands for the environment."""

import os
import pathlib
import shlex
import shutil
import socket
import subprocess
import sys

import pytest
import yaml

from privimage_jax.cli import devices
from privimage_jax.cli.table import COMMANDS
from privimage_jax.cluster import distributed, preemption
from privimage_jax.commands.study import plan, running

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture
def environment(tmp_path):
    """A virtual environment that was installed already, whose `privimage` prints its arguments."""
    programs = tmp_path / "venv" / "bin"
    programs.mkdir(parents=True)
    (programs / "privimage").write_text('#!/bin/sh\necho "privimage $*"\necho "$XLA_FLAGS"\n')
    (programs / "privimage").chmod(0o755)
    stamp = tmp_path / "venv" / ".installed-plain"
    stamp.touch()
    os.utime(stamp, (2**32, 2**32))  # newer than setup.py, whenever that was checked out
    return {**os.environ, "PRIVIMAGE_VENV": str(tmp_path / "venv")}


def bash(command, environment):
    return subprocess.run(["bash", "-c", command], cwd=ROOT, env=environment, capture_output=True, text=True)


def test_arguments_of_the_quickstart_reach_the_program(environment):
    done = bash("launch/quickstart.sh --config.privacy.epsilon=5", environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("privimage run --config configs/quickstart.py --workdir runs/quickstart")
    assert "--config.privacy.epsilon=5" in done.stdout
    assert f"--xla_force_host_platform_device_count={min(8, os.cpu_count())}" in done.stdout  # a device for each core


def test_first_light_takes_what_is_there(environment, tmp_path):
    """Without an accelerator a small network; with one the published, in the environment with its packages."""
    programs = tmp_path / "venv" / "bin"
    (programs / "nvidia-smi").write_text("#!/bin/sh\nexit 9\n")
    (programs / "nvidia-smi").chmod(0o755)
    environment = {**environment, "PATH": f"{programs}:{environment['PATH']}"}
    done = bash("launch/first_light.sh --minutes 2", environment)
    assert done.returncode == 0 and "no GPU or TPU was found" in done.stderr, done.stderr
    assert done.stdout.startswith("privimage first-light --config configs/quickstart.py --batch_sizes 64 ")
    assert " --out runs/first_light --minutes 2\n" in done.stdout
    (programs / "nvidia-smi").write_text("#!/bin/sh\n")
    os.rename(tmp_path / "venv" / ".installed-plain", tmp_path / "venv" / ".installed-cuda")
    done = bash(f"launch/first_light.sh {tmp_path}/out", environment)
    assert done.stdout.startswith(f"privimage first-light --config configs/cifar10.py --out {tmp_path}/out\n")
    done = bash("launch/first_light.sh here --config mine.py", environment)
    assert done.stdout.startswith(f"privimage first-light --out {ROOT}/here --config mine.py\n")


def test_first_light_needs_no_installation_where_packages_are_there(environment, tmp_path):
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$* $PYTHONPATH"\n')
    python.chmod(0o755)
    variables = {**environment, "PRIVIMAGE_INSTALLED": "1", "PYTHON": str(python), "PYTHONPATH": "/packages"}
    done = bash("launch/first_light.sh o", variables)
    assert done.returncode == 0 and done.stdout.startswith("-m privimage_jax.main first-light --config "), done.stderr
    assert done.stdout.splitlines()[0].endswith(f" --out {ROOT}/o {ROOT}:/packages")


@pytest.mark.parametrize(
    ("user", "apt_status", "done", "said"),
    [
        (0, 0, "update\ninstall --yes --no-install-recommends chromium chromium-driver\n", ""),
        (0, 1, "update\n", "the pages are not tested in a browser"),
        (1000, 0, "", "the pages are not tested in a browser"),
    ],
)
def test_the_tests_bring_their_browser_where_they_may(environment, tmp_path, user, apt_status, done, said):
    programs = tmp_path / "venv" / "bin"
    log = tmp_path / "apt.log"
    for name, script in {
        "id": f"echo {user}",
        "apt-get": f'echo "$*" >>{log}; exit {apt_status}',
        "ruff": "",
        "mypy": "",
        "pytest": 'echo "pytest $*"',
    }.items():
        (programs / name).write_text(f"#!/bin/sh\n{script}\n")
        (programs / name).chmod(0o755)
    (programs / "dirname").symlink_to(shutil.which("dirname"))
    os.rename(tmp_path / "venv" / ".installed-plain", tmp_path / "venv" / ".installed-test")
    log.touch()
    # Nothing else is on the path: no browser either.
    variables = {**environment, "PATH": str(programs), "PYTHON": sys.executable}
    ran = subprocess.run(
        [shutil.which("bash"), "launch/test.sh", "-x"], cwd=ROOT, env=variables, capture_output=True, text=True
    )
    assert (ran.returncode, ran.stdout) == (0, "pytest --numprocesses 2 --dist worksteal -x\n")
    assert log.read_text() == done and ran.stderr.startswith(said) and bool(ran.stderr) == bool(said)


def test_the_environment_is_made_beside_its_own_file_whatever_the_path(environment, tmp_path):
    """Sourced from elsewhere, in a checkout whose path has a space; nothing is left where it was sourced."""
    checkout, elsewhere = tmp_path / "a b", tmp_path / "elsewhere"
    shutil.copytree(ROOT / "launch", checkout / "launch")
    (checkout / "setup.py").touch()
    elsewhere.mkdir()
    python = tmp_path / "python"
    python.write_text(
        '#!/bin/bash\nif [ "$2" = venv ]; then mkdir -p "${@: -1}/bin"; cp "$0" "${@: -1}/bin/python"; fi\n'
        f'printf "%s\\n" "$@" "" >>"{tmp_path}/log"\n'
    )
    python.chmod(0o755)
    variables = {name: value for name, value in environment.items() if name != "PRIVIMAGE_VENV"} | {"CDPATH": "/"}
    done = subprocess.run(
        ["bash", "-uc", 'source "../a b/launch/environment.sh" test && echo "${PATH%%:*}"'],
        cwd=elsewhere,
        env={**variables, "PYTHON": str(python)},
        capture_output=True,
        text=True,
    )
    assert (done.stdout, done.stderr) == (f"{checkout}/.venv/bin\n", "")
    install = (tmp_path / "log").read_text().split("\n\n")[-2].split("\n")
    assert install[-1] == f"{checkout}[test]" and f"{checkout}/constraints.txt" in install
    assert "--use-pep517" in install  # or an older setuptools writes a script that cannot start there
    assert not list(elsewhere.iterdir())


def test_an_old_python_is_named_and_leaves_the_shell_open(environment, tmp_path):
    old = tmp_path / "python3.6"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    done = bash("source launch/environment.sh; echo status $?", {**environment, "PYTHON": str(old)})
    assert "needs Python 3.11 or newer" in done.stderr
    assert done.stdout == "status 2\n"


def test_a_failed_installation_is_tried_again(environment, tmp_path):
    (tmp_path / "venv" / ".installed-plain").unlink()
    python = tmp_path / "venv" / "bin" / "python"
    python.write_text('#!/bin/sh\ncase "$*" in *install*) exit 1;; esac\n')
    python.chmod(0o755)
    assert bash("launch/quickstart.sh", environment).returncode == 2
    assert not (tmp_path / "venv" / ".installed-plain").exists()


@pytest.mark.parametrize("script", sorted(path.name for path in (ROOT / "launch").glob("*.sh")))
def test_scripts_are_sound_bash(script):
    """By shellcheck where it is installed, else by bash itself."""
    check = "shellcheck --shell=bash --external-sources" if shutil.which("shellcheck") else "bash -n"
    done = bash(f"{check} launch/{script}", dict(os.environ))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", ["slurm.sh", "slurm_study.sh", "tpu_pod.sh", "jobset.yaml", "study_job.yaml"])
def test_a_cluster_file_is_edited_in_two_places(name):
    text = (ROOT / "launch" / name).read_text()
    assert [text.count(f"### EDIT {number}:") for number in (1, 2, 3)] == [1, 1, 0]
    assert len(text.splitlines()) < 70
    (config,) = {word for word in text.split() if word.startswith("configs/")}
    assert (ROOT / config).exists() or (ROOT / "privimage_jax" / config).exists()


@pytest.mark.parametrize(("script", "command"), [("slurm.sh", "run"), ("slurm_study.sh", "study")])
def test_slurm_starts_the_same_command_in_every_task(script, command):
    done = bash(f"launch/{script} --dry_run", dict(os.environ))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("srun ") and f" privimage {command} --config " in done.stdout
    lines = (ROOT / "launch" / script).read_text().splitlines()
    # sbatch reads its options up to the first command
    first = next(number for number, line in enumerate(lines) if line and not line.startswith("#"))
    assert all(number < first for number, line in enumerate(lines) if line.startswith("#SBATCH"))


@pytest.fixture
def cluster(environment, tmp_path):
    """A checkout beside pretended programs of SLURM, whose tasks say a secret: (its folder, the variables)."""
    checkout, programs = tmp_path / "checkout", tmp_path / "venv" / "bin"
    shutil.copytree(ROOT / "launch", checkout / "launch")
    (checkout / "setup.py").touch()
    for program, script in {
        "srun": 'kill -TERM $PPID; sleep 0.1; echo a secret; exit "$STATUS"',
        "scontrol": f'echo "$*" >>{tmp_path}/queue',
        "privimage": "echo a secret",
    }.items():
        (programs / program).write_text(f"#!/bin/sh\n{script}\n")
        (programs / program).chmod(0o755)
    for extra in ("cuda", "tpu"):
        shutil.copy2(tmp_path / "venv" / ".installed-plain", tmp_path / "venv" / f".installed-{extra}")
    (tmp_path / "queue").touch()
    places = {"SLURM_JOB_ID": "12", "SLURM_SUBMIT_DIR": str(checkout), "SLURM_ARRAY_TASK_ID": "3"}
    pods = {"PRIVIMAGE_PROCESS_ID": "3", "JOB_COMPLETION_INDEX": "3"}
    path = f"{programs}:{os.environ['PATH']}"
    return checkout, {**environment, **places, **pods, "PATH": path, "STATUS": "0"}


@pytest.mark.parametrize("name", ["slurm.sh", "slurm_study.sh"])
@pytest.mark.parametrize(("status", "requeued"), [(0, ""), (2, ""), (75, "requeue 12\n")])
def test_slurm_queues_a_run_again_that_asks_for_it(cluster, tmp_path, name, status, requeued):
    """Also where the notice reaches the batch shell itself, which then waits for its tasks."""
    checkout, variables = cluster
    done = bash(f"{checkout}/launch/{name}", {**variables, "STATUS": str(status)})
    assert (done.returncode, (tmp_path / "queue").read_text()) == (status, requeued), done.stderr


def pod(name):
    """What the pods of a file for Kubernetes run."""
    (document,) = yaml.safe_load_all((ROOT / "launch" / name).read_text())
    job = document["spec"]
    job = job["replicatedJobs"][0]["template"]["spec"] if "replicatedJobs" in job else job
    (container,) = job["template"]["spec"]["containers"]
    return container["args"][0]


def tpu_host():
    """What every host of a TPU pod runs."""
    words = shlex.split(bash("launch/tpu_pod.sh --dry_run", dict(os.environ)).stdout.splitlines()[1])
    return words[words.index("--command") + 1]


@pytest.mark.parametrize(
    ("start", "log"),
    [
        (lambda: "launch/slurm.sh", "runs/cifar10/internal/console.log"),
        (lambda: "launch/slurm_study.sh", "runs/study/internal/console-3.log"),
        (lambda: pod("jobset.yaml"), "runs/cifar10/internal/console-3.log"),
        (lambda: pod("study_job.yaml"), "runs/study/internal/console-3.log"),
        (tpu_host, f"runs/cifar10/internal/console-{socket.gethostname()}.log"),
    ],
    ids=["slurm.sh", "slurm_study.sh", "jobset.yaml", "study_job.yaml", "tpu_pod.sh"],
)
def test_what_is_said_on_a_cluster_stays_inside(cluster, start, log):
    """Twice, as after a pre-emption; a log that others could read is closed to them."""
    checkout, variables = cluster
    command = start().replace("/mnt/shared/privimage_jax", str(checkout)).replace("/mnt/shared", str(checkout))
    command = command.replace("/shared/", f"{checkout}/")
    for turn in (1, 2):
        done = bash(f"cd {checkout} && umask 000 && {command}", variables)
        assert done.returncode == 0, done.stderr
        assert "secret" not in done.stdout + done.stderr and log in done.stdout
        path = checkout / log
        assert path.read_text().count("a secret") == turn
        assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
        path.chmod(0o666)
        path.parent.chmod(0o777)


def test_a_console_that_cannot_be_kept_inside_is_not_shown_instead(cluster):
    checkout, variables = cluster
    (checkout / "runs").touch()
    for command in ("launch/slurm.sh", pod("jobset.yaml").replace("/shared/", f"{checkout}/")):
        done = bash(f"cd {checkout} && {command}", variables)
        assert done.returncode and "secret" not in done.stdout + done.stderr


def test_a_tpu_pod_makes_the_environment_once_and_starts_everywhere():
    done = bash("launch/tpu_pod.sh --dry_run", dict(os.environ))
    assert done.returncode == 0, done.stderr
    once, everywhere = done.stdout.splitlines()
    assert "--worker 0" in once and "environment.sh" in once and "privimage\\ run" not in once
    assert "--worker all" in everywhere and "PRIVIMAGE_COORDINATOR=auto" in everywhere
    assert "privimage\\ run\\ --config" in everywhere


def test_the_job_set_is_one_indexed_job_whose_pods_find_each_other(monkeypatch):
    (document,) = yaml.safe_load_all((ROOT / "launch" / "jobset.yaml").read_text())
    assert (document["apiVersion"], document["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert document["spec"]["network"]["enableDNSHostnames"] is True
    (replicated,) = document["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    assert job["completionMode"] == "Indexed" and job["parallelism"] == job["completions"]
    (rule,) = job["podFailurePolicy"]["rules"]
    assert (rule["action"], rule["onExitCodes"]["values"]) == ("FailJob", [preemption.STATUS])
    (rule,) = document["spec"]["failurePolicy"]["rules"]
    assert rule["action"] == "RestartJobSetAndIgnoreMaxRestarts" and rule["onJobFailureReasons"] == ["PodFailurePolicy"]
    pod = job["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] > 30
    assert pod["restartPolicy"] == "Never"
    (container,) = pod["containers"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    variables = {entry["name"]: entry for entry in container["env"]}
    for name in ("PRIVIMAGE_COORDINATOR", "PRIVIMAGE_NUM_PROCESSES", "PRIVIMAGE_START_TIMEOUT"):
        monkeypatch.setenv(name, variables[name]["value"])  # Kubernetes takes text alone
    index = variables["PRIVIMAGE_PROCESS_ID"]["valueFrom"]["fieldRef"]["fieldPath"]
    assert index == "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    place = distributed.place_from({"process_id": str(job["completions"] - 1)})
    assert place.count == job["completions"] * replicated["replicas"]
    # <set>-<job>-<replica>-<pod>.<set>: the name that JobSet gives the first pod
    name = document["metadata"]["name"]
    assert place.host == f"{name}-{replicated['name']}-0-0.{name}"
    assert container["command"] == ["bash", "-c"] and "exec privimage run --config " in container["args"][0]


def local(*arguments, **environment):
    return subprocess.run(
        [sys.executable, ROOT / "launch" / "local.py", *map(str, arguments)],
        env={**os.environ, "JAX_PLATFORMS": "cpu", **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_more_processes_than_this_host_has_room_for():
    done = local("--processes", 100000, "--", "run")
    assert done.returncode == 2
    most = os.cpu_count()
    assert done.stderr == (
        f"launch/local.py: error: --processes=100000, but this host has {most} CPU core(s); give 1 to {most}.\n"
    )
    done = local("--processes", 3, "--", "run", JAX_PLATFORMS="", CUDA_VISIBLE_DEVICES="0,5")
    assert done.returncode == 2 and "this host has 2 GPU(s); give 1 to 2" in done.stderr


def test_a_launch_without_a_command_is_refused():
    done = local("--processes", 1, "--")
    assert done.returncode == 2 and "the privimage command is missing" in done.stderr


def test_the_launcher_gives_each_process_its_place_and_its_gpus():
    command = ("run", "--config", "c.py", "--workdir", "w")
    environment = {"JAX_PLATFORMS": "", "CUDA_VISIBLE_DEVICES": "4,5,6,7"}
    done = local("--processes", 2, "--port", 1234, "--dry_run", "--", *command, **environment)
    assert done.stdout.splitlines() == [
        f"PRIVIMAGE_COORDINATOR=127.0.0.1:1234 PRIVIMAGE_NUM_PROCESSES=2 PRIVIMAGE_PROCESS_ID={index} "
        f"CUDA_VISIBLE_DEVICES={gpus} privimage run --config c.py --workdir w"
        for index, gpus in ((0, "4,5"), (1, "6,7"))
    ]


def test_the_launcher_returns_the_status_of_what_failed():
    done = local("--processes", 1, "--", "run", "--config", "nowhere.py", "--workdir", "w")
    assert done.returncode == 2 and "'nowhere.py' does not exist" in done.stderr


def test_a_study_is_joined_without_the_array(environment, tmp_path):
    os.rename(tmp_path / "venv" / ".installed-plain", tmp_path / "venv" / ".installed-cuda")
    done = bash("launch/slurm_study.sh --join", environment)
    assert done.returncode == 0 and done.stdout.startswith("privimage study --config "), done.stderr


def test_the_commands_of_studies_are_right_and_know_their_shares(monkeypatch, tmp_path):
    """The command of both files is checked as the program does it, up to the first run."""
    (document,) = yaml.safe_load_all((ROOT / "launch" / "study_job.yaml").read_text())
    job = document["spec"]
    assert (document["apiVersion"], document["kind"], job["completionMode"]) == ("batch/v1", "Job", "Indexed")
    assert job["parallelism"] <= job["completions"] and job["maxFailedIndexes"] == job["completions"]
    again, mended = job["podFailurePolicy"]["rules"]
    assert (again["action"], again["onExitCodes"]["values"]) == ("Ignore", [preemption.STATUS])
    assert (mended["action"], mended["onExitCodes"]["values"]) == ("FailIndex", [2])
    pod = job["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] > 30 and pod["restartPolicy"] == "Never"
    (container,) = pod["containers"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    variables = {entry["name"]: entry["value"] for entry in container["env"]}
    last = {"JOB_COMPLETION_INDEX": str(job["completions"] - 1), plan.SHARES: variables[plan.SHARES]}
    assert plan.share(None, last) == plan.Share(job["completions"] - 1, job["completions"])
    of_pod = container["args"][0].partition("exec ")[2].replace("\\\n", " ")
    of_task = bash("launch/slurm_study.sh --dry_run", dict(os.environ)).stdout.partition("srun --kill-on-bad-exit=0 ")[
        2
    ]
    for command in (of_pod, of_task):
        program, name, *flags = shlex.split(command)
        assert (program, name) == ("privimage", "study")
        begun = []
        monkeypatch.setattr(devices, "start", lambda cache: begun.append(cache))
        monkeypatch.setattr(running, "run", lambda runs, base, folder, share: begun.append((len(runs), share)))
        monkeypatch.chdir(ROOT)
        COMMANDS[name].run(flags)
        assert begun[1:] == [(18, plan.Share())]
