"""What this machine's processor can do, read without importing torch."""

from pathlib import Path

_BFLOAT16_FLAGS = {"amx_bf16": "AMX", "avx512_bf16": "AVX512", "bf16": "ARM"}


def cpu_bfloat16() -> list[str]:
    """The instruction sets by which this processor multiplies bfloat16 matrices fast; empty where it does not.

    Only Linux lists them; elsewhere the answer is empty.
    """
    cpuinfo = Path("/proc/cpuinfo")
    flags = set(cpuinfo.read_text().split()) if cpuinfo.exists() else set()
    return [name for flag, name in _BFLOAT16_FLAGS.items() if flag in flags]
