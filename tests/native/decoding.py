# SPDX-License-Identifier: GPL-2.0-only
"""Makes the emulator decode what a processor model has."""

from __future__ import annotations

import ctypes

from vmi.native.cpu import Cpu
from vmi.native.cpuid import CpuModel, Word

# Where the emulator keeps what it decodes by, in its register state.
PLACES = {
    Word.LEAF_1_EDX: 5632,
    Word.LEAF_1_ECX: 5640,
    Word.LEAF_7_EBX: 5648,
    Word.EXTENDED_EDX: 5680,
    Word.EXTENDED_ECX: 5688,
}


def decode(cpu: Cpu, model: CpuModel) -> None:
    """Have a CPU decode what a model promises, and nothing else where the emulator knows the difference."""
    for word, at in PLACES.items():
        ctypes.c_uint64.from_address(cpu._registers.value + at).value = model.words[word]
