# SPDX-License-Identifier: GPL-2.0-only
"""A processor on which an instruction and what stands for it are run from the same state, and compared.

One processor serves all experiments, since making one takes longer than an experiment. Everything that
an experiment can read is set before it.
"""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass, replace
from functools import cache

from unicorn import UC_ARCH_X86, UC_HOOK_INSN, UC_MODE_32, Uc
from unicorn.x86_const import (
    UC_X86_INS_IN,
    UC_X86_INS_OUT,
    UC_X86_REG_CR0,
    UC_X86_REG_CR2,
    UC_X86_REG_CR3,
    UC_X86_REG_CR4,
    UC_X86_REG_CS,
    UC_X86_REG_DR0,
    UC_X86_REG_EAX,
    UC_X86_REG_EBP,
    UC_X86_REG_EBX,
    UC_X86_REG_ECX,
    UC_X86_REG_EDI,
    UC_X86_REG_EDX,
    UC_X86_REG_EFLAGS,
    UC_X86_REG_EIP,
    UC_X86_REG_ESI,
    UC_X86_REG_ESP,
    UC_X86_REG_FS,
    UC_X86_REG_GDTR,
    UC_X86_REG_GS,
    UC_X86_REG_IDTR,
    UC_X86_REG_LDTR,
    UC_X86_REG_MSR,
    UC_X86_REG_TR,
)

SIZE = 0xA000
CODE, ADAPTOR, ROM, ENTER = 0x1000, 0x1800, 0x2000, 0x2800
LOG = 0x3000  # where a call of the reference ROM notes what it was given
SEEN = 0x4000  # memory from here on must be the same after both
DATA = 0x5000
STACK_LOW, STACK, STACK_END = 0x7000, 0x8000, 0x9000
DESCRIPTORS, DESCRIPTORS_SIZE = 0x6000, 0x80
LDT_SELECTOR, TSS_SELECTOR = 0x10, 0x18
FS_SELECTOR, GS_SELECTOR = 0x20, 0x28
CODE_SELECTOR, STACK_SELECTOR = 0x40, 0x60  # those of ring n are 9 * n further
ARITHMETIC = 0x8D5  # OF SF ZF AF PF CF
INTERRUPT, DIRECTION = 0x200, 0x400
SYSENTER_CS = 0x174
FS_BASE, GS_BASE = 0x100, 0x230

GPR = {
    "eax": UC_X86_REG_EAX, "ecx": UC_X86_REG_ECX, "edx": UC_X86_REG_EDX, "ebx": UC_X86_REG_EBX,
    "esp": UC_X86_REG_ESP, "ebp": UC_X86_REG_EBP, "esi": UC_X86_REG_ESI, "edi": UC_X86_REG_EDI,
}  # fmt: skip
SYSTEM = {
    "cr0": UC_X86_REG_CR0, "cr2": UC_X86_REG_CR2, "cr3": UC_X86_REG_CR3, "cr4": UC_X86_REG_CR4,
    "gdtr": UC_X86_REG_GDTR, "idtr": UC_X86_REG_IDTR, "ldtr": UC_X86_REG_LDTR, "tr": UC_X86_REG_TR,
    **{f"dr{n}": UC_X86_REG_DR0 + n for n in (0, 1, 2, 3, 6, 7)},
}  # fmt: skip


@dataclass(frozen=True)
class State:
    """Where an experiment starts."""

    registers: dict[str, int]
    flags: int
    system: dict[str, object]
    data: bytes
    stack: bytes

    def with_registers(self, **values: int) -> State:
        return replace(self, registers={**self.registers, **values})


@dataclass(frozen=True)
class Outcome:
    """What an experiment did; ``log`` is not part of the comparison."""

    registers: dict[str, int]
    flags: int
    system: dict[str, object]
    memory: bytes
    ports: tuple[tuple[str, int, int, int], ...]
    log: tuple[int, ...]

    def less(self, dead: tuple[str, ...], flags: bool) -> tuple[object, ...]:
        """All that must be the same: without dead registers, and without dead flags."""
        registers = {name: value for name, value in self.registers.items() if name not in dead}
        kept = self.flags if flags else self.flags & ~ARITHMETIC
        return registers, kept, self.system, self.ports, self.memory


def random_state(rng: random.Random) -> State:
    """Random registers, flags, control registers and memory; flat segments, a GDT, no paging."""
    registers = {name: rng.getrandbits(32) for name in GPR}
    registers["esp"] = STACK - 4 * rng.randrange(8)
    system: dict[str, object] = {
        "cr0": 0x11 | rng.getrandbits(32) & 0xE,
        "cr2": rng.getrandbits(32),
        "cr3": rng.getrandbits(32) & 0xFFFFF000,
        "cr4": rng.getrandbits(32) & 0x98,
        "gdtr": (0, DESCRIPTORS, DESCRIPTORS_SIZE - 1, 0),
        "idtr": (0, rng.getrandbits(32), rng.getrandbits(16), 0),
        "ldtr": (0, 0, 0, 0x8200),
        "tr": (0, 0, 0xFFFF, 0x8B00),
        **{f"dr{n}": rng.getrandbits(32) for n in range(4)},
        "dr6": 0xFFFF0FF0 | rng.getrandbits(4),
        "dr7": 0x400 | rng.getrandbits(16) << 16,
    }
    flags = 2 | rng.getrandbits(32) & (ARITHMETIC | INTERRUPT)
    return State(registers, flags, system, rng.randbytes(0x1000), rng.randbytes(STACK_END - STACK_LOW))


def _descriptors() -> bytes:
    ldt = 0x0000820000000007 | DATA << 16
    tss = 0x0000890000000067 | DATA << 16
    data, code = 0x00CF92000000FFFF, 0x00CF9A000000FFFF
    rings = [kind | ring << 45 for kind in (code, data) for ring in range(4)]
    based = (data | FS_BASE << 16 | 3 << 45, data | GS_BASE << 16 | 3 << 45)
    return struct.pack("<16Q", 0, data, ldt, tss, *based, 0, 0, *rings)


class Bench:
    """The processor, in one privilege ring."""

    def __init__(self, ring: int) -> None:
        self.cpu = Uc(UC_ARCH_X86, UC_MODE_32)
        self.cpu.mem_map(0, SIZE)
        self.cpu.hook_add(UC_HOOK_INSN, self._in, None, 1, 0, UC_X86_INS_IN)
        self.cpu.hook_add(UC_HOOK_INSN, self._out, None, 1, 0, UC_X86_INS_OUT)
        self.ports: list[tuple[str, int, int, int]] = []
        self.cpu.mem_write(DESCRIPTORS, _descriptors())
        self.cpu.reg_write(UC_X86_REG_GDTR, (0, DESCRIPTORS, DESCRIPTORS_SIZE - 1, 0))
        self.cpu.reg_write(UC_X86_REG_FS, FS_SELECTOR)
        self.cpu.reg_write(UC_X86_REG_GS, GS_SELECTOR)
        frame = (CODE, CODE_SELECTOR + 9 * ring, 2, STACK, STACK_SELECTOR + 9 * ring)
        self.cpu.mem_write(LOG, struct.pack("<5I", *frame))
        self.cpu.mem_write(ENTER, b"\xcf")  # iretd
        self.cpu.reg_write(UC_X86_REG_ESP, LOG)
        self.cpu.reg_write(UC_X86_REG_EFLAGS, 2)
        self.cpu.emu_start(ENTER, CODE)
        assert self.cpu.reg_read(UC_X86_REG_CS) & 3 == ring

    def run(self, code: dict[int, bytes], state: State, start: int, stop: int) -> Outcome:
        """Run from ``start`` to ``stop``."""
        cpu = self.cpu
        self.ports = []
        memory = bytearray(SIZE)
        memory[DATA : DATA + len(state.data)] = state.data
        memory[STACK_LOW:STACK_END] = state.stack
        memory[DESCRIPTORS : DESCRIPTORS + DESCRIPTORS_SIZE] = _descriptors()
        for address, raw in code.items():
            memory[address : address + len(raw)] = raw
        cpu.mem_write(0, bytes(memory))
        for name, value in state.system.items():
            cpu.reg_write(SYSTEM[name], value)
        cpu.reg_write(UC_X86_REG_MSR, (SYSENTER_CS, 0x5A5A0008))
        for name, value in state.registers.items():
            cpu.reg_write(GPR[name], value)
        cpu.reg_write(UC_X86_REG_EFLAGS, state.flags)
        cpu.ctl_flush_tb()
        cpu.emu_start(start, stop, count=2000)
        assert cpu.reg_read(UC_X86_REG_EIP) == stop
        registers = {name: cpu.reg_read(number) for name, number in GPR.items()}
        after = bytes(cpu.mem_read(0, SIZE))
        assert after[:LOG] == bytes(memory[:LOG]), "an instruction or a call wrote to code"
        seen = bytearray(after[SEEN:])
        below = min(registers["esp"], state.registers["esp"])
        seen[STACK_LOW - SEEN : below - SEEN] = bytes(below - STACK_LOW)
        system: dict[str, object] = {name: cpu.reg_read(number) for name, number in SYSTEM.items()}
        system["msr"] = cpu.msr_read(SYSENTER_CS)
        log = struct.unpack_from("<4I", after, LOG)
        return Outcome(
            registers, cpu.reg_read(UC_X86_REG_EFLAGS), system, bytes(seen), tuple(self.ports), log
        )

    def _in(self, _cpu: Uc, port: int, size: int, _user: object) -> int:
        value = (port * 0x01010101 + 0xA7 * (len(self.ports) + 1)) & ((1 << 8 * size) - 1)
        self.ports.append(("in", port, size, value))
        return value

    def _out(self, _cpu: Uc, port: int, size: int, value: int, _user: object) -> None:
        self.ports.append(("out", port, size, value & ((1 << 8 * size) - 1)))


@cache
def bench(ring: int = 0) -> Bench:
    return Bench(ring)


def jump(opcode: int, at: int, target: int) -> bytes:
    """`call` (E8) or `jmp` (E9) at address ``at``."""
    return bytes([opcode]) + struct.pack("<i", target - (at + 5))
