# SPDX-License-Identifier: GPL-2.0-only
"""Which values MOV to CR0 and CR4 takes; any other is a general protection fault.

The emulator library takes all of them, and so does QEMU's own emulator as far as CR4 goes (PAE on a Pentium,
for one). A processor refuses bits that it has no feature for, and kernels look whether it does.
"""

from __future__ import annotations

from functools import lru_cache

from vmi.x86 import Cr0, Cr4

# CR4 bit -> the bit of CPUID leaf 1, EDX, that offers it. PCE needs none: RDPMC exists, and faults.
_FEATURES = {
    Cr4.VME: 1, Cr4.PVI: 1, Cr4.DE: 2, Cr4.PSE: 3, Cr4.TSD: 4, Cr4.PAE: 6, Cr4.MCE: 7, Cr4.PGE: 13,
    Cr4.OSFXSR: 24, Cr4.OSXMMEXCPT: 25,
}  # fmt: skip


@lru_cache(maxsize=16)
def _known(features: int) -> int:
    return sum(bit for bit, feature in _FEATURES.items() if features >> feature & 1) | Cr4.PCE


def takes(number: int, value: int, features: int) -> bool:
    """A control register takes a value.

    :param features: EDX of CPUID leaf 1.
    """
    if number == 0:
        paged = value & (Cr0.PG | Cr0.PE) == Cr0.PG
        return not paged and value & (Cr0.NW | Cr0.CD) != Cr0.NW
    return number != 4 or not value & ~_known(features)
