"""What this machine's processor and memory can do, without importing torch."""

import ctypes
from pathlib import Path

# Of malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_BFLOAT16_FLAGS = {"amx_bf16": "AMX", "avx512_bf16": "AVX512", "bf16": "ARM"}


def cpu_bfloat16() -> list[str]:
    """The instruction sets by which this processor multiplies bfloat16 matrices fast; empty where it does not.

    Only Linux lists them; elsewhere the answer is empty.
    """
    cpuinfo = Path("/proc/cpuinfo")
    flags = set(cpuinfo.read_text().split()) if cpuinfo.exists() else set()
    return [name for flag, name in _BFLOAT16_FLAGS.items() if flag in flags]


def keep_freed_memory() -> bool:
    """Lets this process reuse the memory of its tensors: from now on malloc gives none of it back to the system.

    On a CPU each large temporary is otherwise mapped anew, and its first writing goes into page faults, which are slow
    on virtual machines. The process stays as large as it once was.

    Returns:
        Whether the C library has such settings (glibc does).
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # musl, macOS, Windows
        return False
    return all([mallopt(_M_MMAP_MAX, 0), mallopt(_M_TRIM_THRESHOLD, -1)])
