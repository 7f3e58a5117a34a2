# SPDX-License-Identifier: GPL-2.0-only
"""What the emulator library's translator makes of each counted instruction, less what nobody needs.

An engine that counts instructions calls a function at the start of each. In front of that the library has the
flags computed and stored, since such a function may want to look at them, unless the last instruction it did
so for left them in the same way. Ours only counts, and flags are asked for by other ways
(:attr:`vmi.native.cpu.Cpu.eflags`), so for our CPUs each instruction is said to be such a one. A boot of
Linux takes a fifth less time for that.

The translator tells of each instruction through a table of functions, one of which is exchanged, once per
process; for an engine that isn't ours it does what it did. The table, and the place of what the translator
remembers, are those of one build of the library: another is left alone, and is only slower.
"""

from __future__ import annotations

import ctypes
from collections.abc import Container
from typing import Any

from vmi.native import pointers

_POINTER = ctypes.c_void_p
_AT_START = ctypes.CFUNCTYPE(None, _POINTER, _POINTER)
# the library's own, which calls nothing of ours: without letting other threads in between
_OWN_AT_START = ctypes.PYFUNCTYPE(None, _POINTER, _POINTER)

# from a function that has a name: the table's entry for starts of instructions, and what is in there
_NAME = "gen_intermediate_code_x86_64"
_ENTRY, _FUNCTION = 0xF4ADE0, -0x22060
# in what the translator remembers of a block: how flags were left, and how when they were stored last
_FLAGS_LEFT = 116
_MOST_PLACES = 64

_kept: list[Any] = []  # what C code points to must live as long as the process


def install(library: Any, ours: Container[int]) -> None:
    """Exchange the function; does nothing the second time, or in another build of the library.

    :param ours: host addresses of the library's CPU structures that are ours, at any time.
    """
    if _kept or pointers.build_of(library) != pointers.BUILD:
        return
    base = pointers.original(library, _NAME)
    start = _OWN_AT_START(base + _FUNCTION)
    places: dict[int, memoryview] = {}

    def on_start(block: int, cpu: int) -> None:
        if cpu in ours:
            words = places.get(block)
            if words is None:
                if len(places) >= _MOST_PLACES:
                    places.clear()
                pair = (ctypes.c_uint32 * 2).from_address(block + _FLAGS_LEFT)
                words = places[block] = memoryview(pair).cast("B").cast("I")
            words[1] = words[0]
        start(block, cpu)

    made = _AT_START(on_start)
    pointers.put(base + _ENTRY, base + _FUNCTION, ctypes.cast(made, _POINTER).value or 0)
    _kept.append(made)
