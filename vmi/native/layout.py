# SPDX-License-Identifier: GPL-2.0-only
"""Where things are in the emulator library's own structures, looked up with care.

The library offers no function for most of what a machine needs (its instruction counter, the halted
state, a hook for interrupts), so they are reached by their offsets in its structures. Another build of
the library would have them elsewhere: each pointer is read in a way that can't crash and compared with
what must be there, before anything is written. That the words found this way mean what they should is
proven by :mod:`vmi.native.selftest`.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from dataclasses import dataclass

from vmi.errors import EngineError

# in the engine structure (a handle points to it)
ENGINE_ARCH = 0
ENGINE_MODE = 4
ENGINE_CPU = 440
ENGINE_CONTEXT = 768
ENGINE_COUNTER = 1368  # instructions begun in this run
ENGINE_BUDGET = 1376  # instructions that this run may begin

# in the CPU structure, which holds the register state and the class further on
CPU_NEXT_BLOCK = 24  # how the next block of code is translated
CPU_INTERRUPT_REQUEST = 28
CPU_ENV = 296
CPU_HALTED = 33176
CPU_ENGINE = 33192
CPU_CLASS = 33200

# in the context that code is made with: what it can be made of, a table with the names
CONTEXT_OPERATIONS = 39272
_OPERATION_SIZE, _MOST_OPERATIONS, _NAME_SIZE = 32, 256, 16

# in the register state: what it decodes, 64 bits for each of the library's CPUID registers
STATE_FEATURES = 5632

# in the class: functions that the main loop calls
CLASS_DEBUG = 120
CLASS_INTERRUPT = 144

_ARCH_X86, _MODE_32 = 4, 4
_FEATURES = 0x0781ABFD  # the first of them, leaf 1 EDX, on the library's "qemu32"
_CPU_SIZE = 1 << 20  # no build's structure is larger
_ON_DEBUG, _ON_INTERRUPT = "breakpoint_handler_x86_64", "x86_cpu_exec_interrupt_x86_64"


@dataclass(frozen=True)
class Places:
    """Host addresses: the engine's counter and budget, the CPU structure and what belongs to it."""

    counter: int
    budget: int
    cpu: int
    next_block: int
    interrupt_request: int
    halted: int
    env: int
    features: int
    on_debug: int
    on_interrupt: int


def unsuitable(what: str, expected: object, got: object) -> EngineError:
    """The error for a library that is not as it must be."""
    return EngineError(f"the CPU emulator is not as expected: {what} should be {expected}, but it is {got}")


def locate(engine: int, function: Callable[[str], int]) -> Places:
    """Find everything from the engine's address.

    :param function: address of one of the library's functions by name, 0 if it has none.
    :raises EngineError: something is not where it must be.
    """
    with _Peek() as peek:
        for what, offset, wanted in (
            ("architecture", ENGINE_ARCH, _ARCH_X86),
            ("mode", ENGINE_MODE, _MODE_32),
        ):
            word = peek.word(engine + offset, 4)
            if word != wanted:
                raise unsuitable(f"the engine's {what} word", hex(wanted), _shown(word))
        cpu = peek.word(engine + ENGINE_CPU, 8) or 0
        back = peek.word(cpu + CPU_ENGINE, 8)
        if back != engine:
            raise unsuitable("the CPU's pointer to its engine", hex(engine), _shown(back))
        env, table = peek.word(cpu + CPU_ENV, 8) or 0, peek.word(cpu + CPU_CLASS, 8) or 0
        for what, at in (("the register state", env), ("the CPU's class", table)):
            if not cpu < at < cpu + _CPU_SIZE or at % 8:
                raise unsuitable(what, f"inside the CPU structure at {cpu:#x}", f"at {at:#x}")
        features = peek.word(env + STATE_FEATURES, 8)
        if features != _FEATURES:
            raise unsuitable("the first word of features", hex(_FEATURES), _shown(features))
        for offset, name in ((CLASS_DEBUG, _ON_DEBUG), (CLASS_INTERRUPT, _ON_INTERRUPT)):
            expected, got = function(name), peek.word(table + offset, 8)
            if not expected or got != expected:
                raise unsuitable(f"the class entry for {name}", hex(expected), _shown(got))
    return Places(
        counter=engine + ENGINE_COUNTER,
        budget=engine + ENGINE_BUDGET,
        cpu=cpu,
        next_block=cpu + CPU_NEXT_BLOCK,
        interrupt_request=cpu + CPU_INTERRUPT_REQUEST,
        halted=cpu + CPU_HALTED,
        env=env,
        features=env + STATE_FEATURES,
        on_debug=table + CLASS_DEBUG,
        on_interrupt=table + CLASS_INTERRUPT,
    )


_operations: dict[int, dict[str, int]] = {}  # what was read, by the address of the table


def operations(engine: int) -> dict[str, int]:
    """What the library makes code of: its numbers by name.

    They are the same for all engines of a process, so they are read once.

    :raises EngineError: there is no such table where it must be.
    """
    found: dict[str, int] = {}
    with _Peek() as peek:
        context = peek.word(engine + ENGINE_CONTEXT, 8) or 0
        table = peek.word(context + CONTEXT_OPERATIONS, 8) or 0
        if table in _operations:
            return _operations[table]
        for number in range(_MOST_OPERATIONS):
            text = peek.bytes(peek.word(table + _OPERATION_SIZE * number, 8) or 0, _NAME_SIZE) or b""
            name = text.partition(b"\0")[0]
            if not name.isascii() or not name.replace(b"_", b"").isalnum():
                break
            found[name.decode()] = number
    first = min(found, key=found.__getitem__, default="nothing")
    if first != "discard":
        raise unsuitable("the first operation", "discard", first)
    _operations[table] = found
    return found


def _shown(value: int | None) -> str:
    return "nothing readable" if value is None else hex(value)


class _Peek:
    """Reads this process's memory; an address that is not mapped is an answer, not a crash."""

    def __enter__(self) -> _Peek:
        try:
            self._file = os.open("/proc/self/mem", os.O_RDONLY)
        except OSError:
            self._file = -1  # a system without it: then a wrong address does crash
        return self

    def __exit__(self, *_: object) -> None:
        if self._file >= 0:
            os.close(self._file)

    def word(self, address: int, size: int) -> int | None:
        """The little-endian word at an address, None if nothing is mapped there."""
        data = self.bytes(address, size)
        return None if data is None else int.from_bytes(data, "little")

    def bytes(self, address: int, size: int) -> bytes | None:
        """What is at an address, None if nothing is mapped there."""
        try:
            data = ctypes.string_at(address, size) if self._file < 0 else os.pread(self._file, size, address)
        except (OSError, OverflowError):
            return None
        return data if len(data) == size else None
