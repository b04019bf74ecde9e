"""What makes tests quick: their programs are small and many, and take longer to trace and to compile than to run."""

import gc
import importlib.metadata
import platform

OLDER_EMITTERS = (
    "--xla_cpu_use_fusion_emitters=false",  # loops are written by the older emitters, in half the time
    "--xla_cpu_max_isa=AVX",  # these fuse products and sums in one program and not in another, where they can (FMA)
)
IN_ONE_PIECE = "--xla_cpu_parallel_codegen_split_count=1"  # a small program in pieces takes a quarter more
KNOWS_THEM = importlib.metadata.version("jaxlib").startswith("0.10.")  # XLA ends a process over a flag it does not know
FLAGS = (
    "--xla_backend_optimization_level=0",  # LLVM's
    *(OLDER_EMITTERS if platform.machine() in ("x86_64", "AMD64") and KNOWS_THEM else ()),
    *((IN_ONE_PIECE,) if KNOWS_THEM else ()),
)


def collect_rarely() -> None:
    """Lets Python look for garbage a seventieth as often: tracing makes many objects, few of them garbage.

    jax does work of its own at each collection. What is there now is looked at no more.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
