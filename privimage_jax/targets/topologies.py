"""`--target`: from its text to a mesh of devices that are not in this machine, for which programs can be compiled."""

import glob
import importlib.metadata
import importlib.util
import os
import pkgutil
from typing import Any

from privimage_jax.errors import UserError, one_line
from privimage_jax.targets import gpus, tpus
from privimage_jax.targets.machine import Machine

_TPU_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",  # else libtpu asks the network what machine this is,
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",  # and complains that nothing says so
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_MIN_LOG_LEVEL": "3",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "true",  # several processes may compile; none has a TPU
}


def quieten_libtpu() -> None:
    """Tells libtpu, which the extra [targets] brings, that this machine has no TPU; where one is, does nothing."""
    if not (glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*")):
        for name, value in _TPU_ENVIRONMENT.items():
            os.environ.setdefault(name, value)


def parse(text: str) -> Machine:
    """The machine that `--target` means; imports nothing heavy.

    Args:
      text: "v5e:2x4" (a TPU slice), "h100:8" or "l4" (GPUs), or "FILE:8" (GPUs that a file describes).

    Raises:
      UserError: naming what there is.
    """
    name, _, rest = text.rpartition(":") if ":" in text else (text, "", "")
    if name in tpus.TPUS:
        shapes = tpus.TPUS[name].shapes
        if rest not in shapes:
            raise UserError(f"--target={text} is no slice of TPUs; give {name}: with one of {', '.join(shapes)}.")
        return tpus.named(name, rest)
    known = name in gpus.GPUS
    if known or os.path.exists(os.path.expanduser(name)):
        if rest and not (rest.isascii() and rest.isdigit() and len(rest) < 6):
            raise UserError(f"--target={text} has no number of GPUs; write {name}:8 for eight.")
        return (gpus.named if known else gpus.described)(name, int(rest or 1))
    slices = ", ".join(f"{key}:{tpu.shapes[2]}" for key, tpu in tpus.TPUS.items())
    raise UserError(
        f"--target={text} is not known; give TPUs (such as {slices}), GPUs ({', '.join(gpus.GPUS)}; h100:8 is eight of "
        "them), or a file that describes a GPU."
    )


def devices(machine: Machine) -> list[Any]:
    """The machine's devices as jax has them: for compilation alone.

    Raises:
      UserError: the compiler is not installed, or refuses the machine.
    """
    check_installed(machine)
    from jax.experimental import topologies

    try:
        if machine.platform == "tpu":
            quieten_libtpu()
            one = {"chips_per_host_bounds": (1, 1, 1)} if machine.devices == 1 else {}
            found = topologies.get_topology_desc(platform="tpu", topology_name=machine.description, **one)
        else:
            found = topologies.get_topology_desc(
                platform="cuda",
                topology_name=machine.name,
                target_config=machine.description,
                topology=gpus.layout(machine.devices),
            )
    except Exception as error:  # of the plugin's own kinds
        reason = one_line(str(error))
        raise UserError(
            f"the compiler refuses --target={machine.name} ({reason}); give another target, or mend its description."
        ) from None
    return list(found.devices)


def check_installed(machine: Machine) -> None:
    """Refuses a machine whose compiler is not installed.

    Raises:
      UserError: naming the extra that has it.
    """
    if machine.platform == "tpu":
        if not importlib.util.find_spec("libtpu"):
            raise UserError(
                f"--target={machine.name} needs libtpu, the compiler for TPUs; install the extra [targets]: "
                'pip install --constraint constraints.txt --editable ".[targets]".'
            )
        return
    if not cuda_plugins():
        raise UserError(
            f"--target={machine.name} needs jax's CUDA plugin, the compiler for GPUs; install the extra [cuda]: "
            'pip install --constraint constraints.txt --editable ".[cuda]".'
        )


def cuda_plugins() -> list[str]:
    """The names of jax's installed plugins for CUDA."""
    plugins = importlib.util.find_spec("jax_plugins")
    names = [found.name for found in pkgutil.iter_modules(plugins.submodule_search_locations)] if plugins else []
    return [name for name in names if name.startswith("xla_cuda")]


def compiler_versions(machine: Machine) -> list[str]:
    """The installed packages that compile for the machine, with their versions."""
    wanted = ("libtpu",) if machine.platform == "tpu" else ("jax-cuda", "nvidia-cudnn", "nvidia-cuda-nvcc")
    return sorted(
        f"{found.name} {found.version}"
        for found in importlib.metadata.distributions()
        if found.name and found.name.lower().startswith(wanted)
    )
