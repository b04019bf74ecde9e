# Sourced by the other scripts, or by you, before a run of small images on a CPU: one simulated device for each core, as an
# operation on small images does not keep several cores busy. At most 8; accelerators are used as ever.
XLA_FLAGS="--xla_force_host_platform_device_count=$(python -c 'import os; print(min(8, os.cpu_count()))') ${XLA_FLAGS:-}"
export XLA_FLAGS
