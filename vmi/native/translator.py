# SPDX-License-Identifier: GPL-2.0-only
"""What the emulator library's translator makes of each counted instruction, less what nobody needs.

An engine that counts instructions calls a function at the start of each. In front of that the library has the
flags computed and stored, since such a function may want to look at them, and behind it computed again, since
it may have changed them. Ours only counts, so for our CPUs they are computed once, and kept where the library
keeps flags that are computed (see :meth:`vmi.native.registers.Registers.settle_flags`). A boot of Linux takes
a quarter less time for that.

It is also right where the library is not: behind a LOOPE or LOOPNE that ends its loop because ECX is 0, it
takes flags that are computed for ones that are yet to be computed.

And a block ends with each instruction near the end of a page. So none looks at the page behind, which marks
that as accessed, but one instruction that is about to be executed, and itself reaches there.

The translator tells of each instruction through a table of functions, one of which is exchanged, once per
process; for an engine that isn't ours it does what it did. The table, and the places of what the translator
remembers, are those of one build of the library. Another build is left alone.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

from vmi.memory import PAGE_SIZE
from vmi.native import layout, pointers

_POINTER, _INT = ctypes.c_void_p, ctypes.c_int
_AT_START = ctypes.CFUNCTYPE(None, _POINTER, _POINTER)
# the library's own, which call nothing of ours: without letting other threads in between
_OWN_AT_START = ctypes.PYFUNCTYPE(None, _POINTER, _POINTER)
_MAKE = ctypes.PYFUNCTYPE(None, _POINTER, _INT, ctypes.c_size_t, ctypes.c_size_t)
_MAKE_CALL = ctypes.PYFUNCTYPE(None, _POINTER, _POINTER, _POINTER, _INT, _POINTER)

# from a function that has a name: the table's entry for starts of instructions, and what is in there
_NAME = "gen_intermediate_code_x86_64"
_ENTRY, _FUNCTION = 0xF4ADE0, -0x22060
# in what the translator remembers of a block: how flags are to be computed, how when they were stored last,
# and whether the CPU has yet to be told (a byte)
_SIZE = 128
_FLAGS, _STORED, _DIRTY = 116 // 4, 120 // 4, 124
_UNKNOWN, _COMPUTED, _CLEARED = 0, 1, 49  # the CPU knows how; they are; as by XOR of a register with itself
_FLAGS_CLEARED = 0x44
# and at its start: linear address of the instruction, its number in the block, and how many there may be
_ADDRESS, _NUMBER, _MOST = 16 // 4, 28 // 4, 32 // 4
# Offset in a page from which on an instruction may be followed by one that reaches the next page.
_LATE = PAGE_SIZE - 2 * 15
_MOST_PLACES = 64
# in the context that code is made with: the CPU's variables that flags are computed from, and how
_CONTEXT_FLAGS = 39288

_there: list[int] = []  # what the table's entry has been since
_kept: list[Any] = []  # what C code points to must live as long as the process
_makers: dict[int, Callable[[int, int], None]] = {}  # for our CPUs: how flags are computed


def adopt(cpu: int, engine: int) -> None:
    """Serve a CPU from now on, by host addresses of the library's structures."""
    if not _kept:
        return
    _, make, make_call, compute = _kept
    context = _word(engine + layout.ENGINE_CONTEXT)
    variables = (ctypes.c_uint64 * 4)(*(context + _word(context + _CONTEXT_FLAGS + 8 * n) for n in range(4)))
    _, source, _, how = variables
    numbers = layout.operations(engine)
    set_how, set_source = numbers["movi_i32"], numbers["movi_i64"]

    def settle(flags: int, dirty: int) -> None:
        """Have them computed, if they are not, and the CPU told."""
        if flags == _CLEARED:
            make(context, set_source, source, _FLAGS_CLEARED)
        elif flags != _COMPUTED:
            if dirty:
                make(context, set_how, how, flags)
            make_call(context, compute, source, 4, variables)
        make(context, set_how, how, _COMPUTED)

    _makers[cpu] = settle


def release(cpu: int) -> None:
    """It is gone."""
    _makers.pop(cpu, None)


def install(library: Any) -> None:
    """Exchange the function; does nothing the second time, or in another build of the library."""
    if _kept or pointers.build_of(library) != pointers.BUILD:
        return
    start: Any = _OWN_AT_START(current(library))
    places: dict[int, tuple[memoryview, memoryview]] = {}
    offset = PAGE_SIZE - 1

    def on_start(block: int, cpu: int) -> None:
        settle = _makers.get(cpu)
        if settle is None:
            start(block, cpu)
            return
        place = places.get(block)
        if place is None:
            if len(places) >= _MOST_PLACES:
                places.clear()
            data = memoryview((ctypes.c_ubyte * _SIZE).from_address(block)).cast("B")
            place = places[block] = data.cast("I"), data
        words, data = place
        flags, dirty = words[_FLAGS], data[_DIRTY]
        # start() notes how flags are to be computed when the CPU goes back to this instruction. So they are
        # computed first; but a block may be left before any of its code has run, and in front of its first
        # instruction only the CPU knows how.
        if flags == _UNKNOWN:
            start(block, cpu)
            settle(flags, dirty)
        elif flags != _COMPUTED or dirty:
            settle(flags, dirty)
        words[_FLAGS] = words[_STORED] = _COMPUTED
        data[_DIRTY] = 0
        if flags != _UNKNOWN:
            start(block, cpu)
        if words[_ADDRESS] & offset >= _LATE:
            words[_MOST] = words[_NUMBER]

    made = _AT_START(on_start)
    make: Any = _MAKE(pointers.original(library, "tcg_gen_op2_x86_64"))
    make_call: Any = _MAKE_CALL(pointers.original(library, "tcg_gen_callN_x86_64"))
    compute = pointers.original(library, "helper_cc_compute_all_x86_64")
    exchange(library, ctypes.cast(made, _POINTER).value or 0)
    _kept.extend((made, make, make_call, compute))


def own(library: Any) -> int:
    """The library's own function for the start of each instruction, in the build that is known."""
    return pointers.original(library, _NAME) + _FUNCTION


def current(library: Any) -> int:
    """The one that it calls now."""
    return _there[-1] if _there else own(library)


def exchange(library: Any, target: int) -> None:
    """Have another called, which calls the one that is the :func:`current` one now.

    :raises EngineError: that is not there.
    """
    pointers.put(pointers.original(library, _NAME) + _ENTRY, current(library), target)
    _there.append(target)


def _word(address: int) -> int:
    return ctypes.c_uint64.from_address(address).value
