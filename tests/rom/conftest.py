# SPDX-License-Identifier: GPL-2.0-only
"""A bare processor for ROM code: the emulator itself, with nothing of this project between.

Segments are flat or share any base; privilege levels 0, 1 and 3 are entered by an IRET, as a processor
is. Every interrupt, exception or `int` ends the run and is recorded.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import unicorn
from unicorn import x86_const as ux

GPRS = ("eax", "ecx", "edx", "ebx", "ebp", "esi", "edi")
LANDING_VECTOR = 0x90

GDT, _TRAMPOLINE, _LANDING, _STACK0, _STACK = 0x1000, 0x5000, 0x6000, 0x7000, 0x9000
_CODE = {0: 0x08, 1: 0x19, 3: 0x2B}
_DATA = {0: 0x10, 1: 0x21, 3: 0x33}
USER_CODE, USER_DATA = _CODE[3], _DATA[3]
KERNEL_CODE_RPL0 = 0x18  # the level 1 code segment under the name a native kernel uses
_TRAMPOLINE_CODE = 0x38
FREE_DESCRIPTOR = 8  # index of the first of two free entries in the GDT at GDT
_UNTIL_NEVER = 0xFFFFFFF0
MASK = 0xFFFFFFFF


@dataclass
class Outcome:
    """How a run ended: vector, and registers at that moment."""

    vector: int
    eip: int
    esp: int
    cs: int
    ss: int
    eflags: int
    gprs: dict[str, int]
    ports: list[tuple[str, int, int, int]] = field(default_factory=list)

    @property
    def landed(self) -> bool:
        """Whether the code came back to its caller (or to the frame's target)."""
        return self.vector == LANDING_VECTOR


class Cpu:
    """One processor with one ROM at a linear address."""

    def __init__(self, image: bytes, base: int, level: int = 0, segment_base: int = 0) -> None:
        self.base, self.level, self.segment_base = base, level, segment_base
        self.uc = uc = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_32)
        uc.mem_map(0, 0x10000)
        self.rom_page = base & ~0xFFF
        uc.mem_map(self.rom_page, (base - self.rom_page + len(image) + 0xFFF) & ~0xFFF)
        uc.mem_write(base, image)
        self._descriptors()
        uc.mem_write(_TRAMPOLINE, b"\xcf")
        uc.mem_write(_LANDING, bytes([0xCD, LANDING_VECTOR]))
        uc.hook_add(unicorn.UC_HOOK_INTR, self._interrupt)
        uc.hook_add(unicorn.UC_HOOK_INSN, self._in, None, 1, 0, ux.UC_X86_INS_IN)
        uc.hook_add(unicorn.UC_HOOK_INSN, self._out, None, 1, 0, ux.UC_X86_INS_OUT)
        self.ports: list[tuple[str, int, int, int]] = []
        self.port_value = 0
        self.reset = uc.context_save()
        self.outcome: Outcome | None = None

    def _descriptors(self) -> None:
        table = bytearray(10 * 8)
        for level in (0, 1, 3):
            base = 0 if level == 3 else self.segment_base  # user mode is flat
            for selector, kind in ((_CODE[level], 0x1A), (_DATA[level], 0x12)):
                self._descriptor(table, selector, base, 0x80 | level << 5 | kind)
        self._descriptor(table, _TRAMPOLINE_CODE, 0, 0x9A)
        self.uc.mem_write(GDT, bytes(table))
        self.uc.reg_write(ux.UC_X86_REG_GDTR, (0, GDT, len(table) - 1, 0))

    @staticmethod
    def _descriptor(table: bytearray, selector: int, base: int, access: int) -> None:
        low = 0xFFFF | (base & 0xFFFF) << 16
        high = (base >> 16 & 0xFF) | access << 8 | 0xCF << 16 | (base >> 24) << 24
        struct.pack_into("<II", table, selector & ~7, low, high)

    def offset(self, linear: int) -> int:
        """The offset in CS, SS and DS of a linear address."""
        return linear - self.segment_base & MASK

    def rom(self, offset: int) -> int:
        """EIP of an offset in the ROM."""
        return self.offset(self.base + offset)

    @property
    def landing(self) -> int:
        return self.offset(_LANDING)

    @property
    def user_landing(self) -> int:
        return _LANDING

    @property
    def stack(self) -> int:
        return self.offset(_STACK)

    def write_words(self, linear: int, *words: int) -> None:
        self.uc.mem_write(linear, struct.pack(f"<{len(words)}I", *words))

    def read_words(self, linear: int, count: int) -> tuple[int, ...]:
        return struct.unpack(f"<{count}I", bytes(self.uc.mem_read(linear, 4 * count)))

    def stacked(self, outcome: Outcome, count: int) -> tuple[int, ...]:
        """The top `count` dwords of the kernel stack after a run."""
        return self.read_words(outcome.esp + self.segment_base & MASK, count)

    def run(
        self,
        eip: int,
        stack: tuple[int, ...] = (),
        registers: dict[str, int] | None = None,
        eflags: int = 2,
        data: int | None = None,
        room: int = 0x100,
    ) -> Outcome:
        """Run from EIP with `stack` on top of the stack; `data` is the selector in DS and ES."""
        uc = self.uc
        if self.level:
            uc.context_restore(self.reset)  # back to level 0, from where the trampoline starts
        for name in GPRS:
            uc.reg_write(getattr(ux, f"UC_X86_REG_{name.upper()}"), (registers or {}).get(name, 0))
        # Below and above is a pattern, so that what code leaves behind can be seen.
        uc.mem_write(_STACK - room, b"\xa5" * (room + 0x100))
        self.write_words(_STACK, *stack)
        uc.reg_write(ux.UC_X86_REG_CS, _TRAMPOLINE_CODE)
        uc.reg_write(ux.UC_X86_REG_SS, _DATA[0])
        frame = [eip, _CODE[self.level], eflags]
        if self.level == 0:
            # The frame lies right below the stack that the code will see.
            top = _STACK - 12
            self.write_words(top, *frame)
        else:
            top = _STACK0
            self.write_words(top, *frame, self.stack, _DATA[self.level])
        uc.reg_write(ux.UC_X86_REG_ESP, self.offset(top))
        selector = USER_DATA if data is None and not self.segment_base else data
        for register in (ux.UC_X86_REG_DS, ux.UC_X86_REG_ES):
            uc.reg_write(register, _DATA[self.level] & ~3 if selector is None else selector)
        self.ports, self.outcome = [], None
        uc.emu_start(_TRAMPOLINE, _UNTIL_NEVER, count=200)
        assert self.outcome is not None, "the code neither came back nor called out"
        return self.outcome

    def _interrupt(self, uc: unicorn.Uc, vector: int, _data: object) -> None:
        read = uc.reg_read
        self.outcome = Outcome(
            vector,
            read(ux.UC_X86_REG_EIP),
            read(ux.UC_X86_REG_ESP),
            read(ux.UC_X86_REG_CS),
            read(ux.UC_X86_REG_SS),
            read(ux.UC_X86_REG_EFLAGS),
            {name: read(getattr(ux, f"UC_X86_REG_{name.upper()}")) for name in GPRS},
            self.ports,
        )
        uc.emu_stop()

    def _in(self, _uc: unicorn.Uc, port: int, size: int, _data: object) -> int:
        self.ports.append(("in", port, size, self.port_value))
        return self.port_value

    def _out(self, _uc: unicorn.Uc, port: int, size: int, value: int, _data: object) -> None:
        self.ports.append(("out", port, size, value))


@pytest.fixture
def cpu() -> Callable[..., Cpu]:
    """Makes a Cpu: image, linear base, privilege level, base of all kernel segments."""
    return Cpu
