# SPDX-License-Identifier: GPL-2.0-only
"""What CPUID answers: a model promises only features that work on this machine.

Absent on purpose: APIC and MTRR (no such device here), SEP (SYSENTER does nothing in the emulator),
MSR (unknown registers would not fault), PAE and DE (not proven).
"""

from __future__ import annotations

from dataclasses import dataclass

_FPU, _PSE, _TSC, _CX8, _PGE, _CMOV, _MMX, _FXSR, _SSE, _SSE2 = 0, 3, 4, 8, 13, 15, 23, 24, 25, 26


def _bits(*numbers: int) -> int:
    return sum(1 << number for number in numbers)


@dataclass(frozen=True)
class CpuModel:
    """One CPU model: vendor string (12 characters), signature (leaf 1 EAX) and leaf 1 EDX."""

    name: str
    vendor: str
    signature: int
    features: int

    def cpuid(self, leaf: int) -> tuple[int, int, int, int]:
        """EAX, EBX, ECX, EDX for a leaf; unknown leaves answer as leaf 1 does on real parts: zeros here."""
        if leaf == 0:
            text = self.vendor.encode("ascii")
            ebx, edx, ecx = (int.from_bytes(text[i : i + 4], "little") for i in (0, 4, 8))
            return 1, ebx, ecx, edx
        if leaf == 1:
            return self.signature, 0, 0, self.features
        if leaf == 0x80000000:
            return 0x80000000, 0, 0, 0
        return 0, 0, 0, 0


I686 = CpuModel(
    "i686",
    "GenuineIntel",
    0x663,
    _bits(_FPU, _PSE, _TSC, _CX8, _PGE, _CMOV, _MMX, _FXSR, _SSE, _SSE2),
)
