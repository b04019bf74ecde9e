"""What of this machine and of jax's configuration decides what a mechanism computes: part of a replay's identity.

The rest of that identity is settings, data, parameters and code, see `mechanism.Mechanism.check_inputs`. Whatever of
jax's configuration is not known to change nothing counts: a value that jax adds is never forgotten.
"""

import re

import jax
from jax.sharding import Mesh

from privimage_jax.errors import UserError

GENERATOR = "threefry2x32"  # whose draws for one example do not depend on the others of a batch

# Where jax runs, what it keeps, and what it tells. Numbers of devices and processes change results by rounding only.
_CHANGES_NOTHING = re.compile(
    r"jax_(compilation_cache|persistent_cache|pgle|share_binary_between_hosts|cross_host|force_dcn|distributed|cpu_get"
    r"|log|dump_ir|debug_log_modules|debug_leaked|traceback|tracer_error|transfer_guard|captured_constants)\w*"
    r"|jax_(enable_compilation_cache|raise_persistent_cache_errors|explain_cache_misses|check_proxy_envs|logging_level"
    r"|platforms|platform_name|num_cpu_devices|cuda_visible_devices|rocm_visible_devices|oneapi_visible_devices"
    r"|cpu_collectives_implementation|cpu_enable_async_dispatch|enable_preemption_service|enable_recoverability"
    r"|compiler_detailed_logging_min_ops|array_garbage_collection_guard|send_traceback_to_runtime|pprint_use_color"
    r"|include_full_tracebacks_in_locations|include_debug_info_in_dumps|source_url_schema|thread_guard"
    r"|hlo_source_file_canonicalization_regex|check_tracer_leaks|xla_profile_version)"
)


def of_machine(mesh: Mesh) -> dict[str, str]:
    """Name -> value: the kind of the devices, and jax's configuration without what changes no result.

    Args:
      mesh: the devices, which are all of one kind. Their number is left out.
    """
    device = mesh.devices.flat[0]
    decisive = {name: str(value) for name, value in jax.config.values.items() if not _CHANGES_NOTHING.fullmatch(name)}
    return {"platform": device.platform, "kind of device": device.device_kind, **decisive}


def check_generator() -> None:
    """Refuses the generators of jax whose numbers for one example depend on the rest of a batch.

    Raises:
      UserError: where jax's default is one of them.
    """
    name = jax.config.values["jax_default_prng_impl"]
    if name != GENERATOR:
        raise UserError(
            f"JAX_DEFAULT_PRNG_IMPL={name} draws the numbers of one example together with those of others, so that "
            f"examples would mix; unset it, or give {GENERATOR}."
        )
