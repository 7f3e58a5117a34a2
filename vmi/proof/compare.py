# SPDX-License-Identifier: GPL-2.0-only
"""Compare what two runs left behind: registers, flags, segments, system registers, FPU, memory, devices.

Registers are compared first as the bytes of the emulator's state structure, since nearly all runs agree;
only where those differ is it asked what does. Memory is compared page by page, pages that neither run
wrote left out. A page of the kernel's text has other bytes in the patched image: there the changes count.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from vmi.memory import PAGE_SIZE
from vmi.proof.stage import Stage
from vmi.x86 import ARITHMETIC_FLAGS, GPR32, U32, Seg

_SYSTEM = slice(184, 592 + 8)  # segments, tables, control registers, EFER
_FPU_STACK, _SSE = slice(608, 616), slice(880, 1400)
_FPU_DATA = (slice(616, 760), slice(764, 800))
"""Between them is the address of the last FPU instruction, which is where that instruction runs."""
MOST = 12  # differences listed of one comparison


@dataclass(frozen=True, slots=True)
class Byte:
    """One byte of memory that differs."""

    address: int
    expected: int
    found: int

    def __str__(self) -> str:
        return f"[{self.address:08x}] is {self.found:02x} instead of {self.expected:02x}"


def registers(first: Stage, second: Stage) -> dict[str, tuple[int, int]]:
    """The general registers and EFLAGS that differ, with both values."""
    one, two = first.cpu, second.cpu
    found = {}
    for number, name in enumerate(GPR32):
        values = one.gpr(number), two.gpr(number)
        if values[0] != values[1]:
            found[name] = values
    flags = one.eflags, two.eflags
    if flags[0] != flags[1]:
        if (flags[0] ^ flags[1]) & ~ARITHMETIC_FLAGS:
            found["eflags"] = flags
        else:
            found["flags"] = flags
    return found


def system(first: Stage, second: Stage) -> list[str]:
    """Sentences about segment, table, control and debug registers and the FPU that differ."""
    one, two = first.cpu, second.cpu
    raw, other = one.freeze(), two.freeze()
    fpu = all(raw[part] == other[part] for part in (_SSE, *_FPU_DATA))
    if fpu and raw[_SYSTEM] == other[_SYSTEM]:
        return []
    found = []
    for seg in Seg:
        if one.segment(seg) != two.segment(seg):
            found.append(f"{seg.name} is {two.segment(seg)} instead of {one.segment(seg)}")
    for name in ("ldt", "tr", "gdt", "idt", "efer"):
        values = getattr(one, name), getattr(two, name)
        if values[0] != values[1]:
            found.append(f"{name} is {values[1]} instead of {values[0]}")
    for number in (0, 2, 3, 4):
        if one.cr(number) != two.cr(number):
            found.append(f"CR{number} is {two.cr(number):#x} instead of {one.cr(number):#x}")
    if not fpu:
        found.append("the FPU's registers differ")
    return found


def memory(first: Stage, second: Stage) -> Iterator[Byte]:
    """The bytes that differ after two runs, in address order."""
    for page in sorted(first.dirty_pages() | second.dirty_pages()):
        one, two = first.page(page), second.page(page)
        if one == two:
            continue
        clean, other = first.clean(page), second.clean(page)
        changed = int.from_bytes(one, "little") ^ int.from_bytes(two, "little")
        while changed:
            at = ((changed & -changed).bit_length() - 1) // 8
            changed &= ~(0xFF << 8 * at)
            # a byte that the patch changed can't be compared after both have computed with it
            if clean[at] == other[at]:
                yield Byte(page * PAGE_SIZE + at & U32, one[at], two[at])
