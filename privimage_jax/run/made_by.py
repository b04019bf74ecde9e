"""What decides the bits of a result beside its settings and its data: code and devices. Part of the names in caches."""

from jax.sharding import Mesh

from privimage_jax.run.code_version import code_version
from privimage_jax.run.inputs import Inputs


def made_by(inputs: Inputs) -> list[object]:
    """Code of the stage and the devices, JSON-able."""
    stages = [] if inputs.stage is None else [inputs.stage]
    return [code_version(inputs.config, *stages), *devices(inputs.mesh)]


def devices(mesh: Mesh) -> list[object]:
    """Their number, platform and kind."""
    first = mesh.devices.flat[0]
    return [mesh.devices.size, first.platform, first.device_kind]
