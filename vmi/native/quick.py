# SPDX-License-Identifier: GPL-2.0-only
"""Events that go straight to the handlers of a guest on the bare machine, where there is no accelerator.

What :class:`~vmi.native.machine.Machine` and :class:`~vmi.native.interrupts.Delivery` do with an event that
is nobody's but the guest's, in one go: it is counted, takes its time, and its handler is entered. How is
remembered with all that it was found by, registers and memory, and these are compared as bytes. What is not
remembered, and all that can fault, is theirs. So is a monitor's guest, which is on another ring.
"""

from __future__ import annotations

from collections import Counter
from struct import Struct
from typing import Protocol

from vmi.memory import PAGE_SIZE
from vmi.native.cpu import Cpu
from vmi.native.known import OFFSET, Gather, gather
from vmi.native.registers import (
    AT_CC_OP,
    AT_CR,
    AT_EFLAGS,
    AT_EIP,
    AT_ERROR_CODE,
    AT_IS_INT,
    AT_OLD_EXCEPTION,
    AT_RETURN_ADDRESS,
    CC_OP_EFLAGS,
    ENTRY_IN_RUN,
    HF_ADDSEG,
    HF_CPL,
    HF_CS32,
    HF_SS32,
    MODE_AND_STACK,
    NO_MODE,
)
from vmi.native.straight import fault_name
from vmi.native.ways import Ways
from vmi.x86 import ARITHMETIC_FLAGS, HAS_ERROR_CODE, U32, Eflags, Vector

_AT_ESP, _AT_CR2 = 8, AT_CR + 4
_PF, _VM = Vector.PF.value, Eflags.VM
_SYSTEM = U32 & ~(ARITHMETIC_FLAGS | Eflags.DF)
_KEPT = _SYSTEM & ~(Eflags.TF | Eflags.NT | Eflags.RF | Eflags.VM)
_NOT_INTS = Vector.BP, Vector.OF  # of one byte
_MOST_STATES, _MOST_WAYS, _MOST_PAGES = 256, 1024, 64

# What registers remember of the mode: DF, mode flags, others; ES, CS, SS and DS, each of which is selector,
# 0, base twice, limit and flags.
_MODE = Struct("<27I")
_FORWARD, _ES_BASE, _CS, _SS, _SS_FLAGS, _DS_BASE = 1, 5, 9, 15, 20, 23
_SIZE = MODE_AND_STACK.stop - MODE_AND_STACK.start

_STORE_3, _STORE_4, _STORE_5, _STORE_6 = (Struct(f"<{count}I").pack_into for count in (3, 4, 5, 6))

# What a page of the stack was found by, together with the way; its start, and its number.
_Page = tuple[Gather, object, int, int]
# Mode that it was found in; pages of the stack, by number; number of the dword that an inner stack's ESP is
# in, -1 for the stack in use; bytes of the frame; CS and SS in it; what is left of EFLAGS; the handler's
# offset; the mode that it is in, if it is another; what the event counts as. Dwords of memory that the way
# was found by, and how to look at them.
_Way = tuple[
    bytes, dict[int, _Page], int, int, int, int, int, int, bytes, str, dict[int, int], Gather, object
]
_State = tuple[bytes, bytes, bytes]


class Counts(Protocol):
    """Who counts events."""

    exits: Counter[str]


class Quick:
    """The events of one CPU.

    :param ways: of the bare machine.
    """

    def __init__(self, cpu: Cpu, ways: Ways, owner: Counts) -> None:
        self._cpu, self._known, self._owner = cpu, ways, owner
        self._path = path = cpu.straight
        self._raw, self._ram, self._dwords = cpu.raw, cpu.memory.ram, cpu.memory.dwords
        self._words = cpu.raw.cast("I")
        self._counter, self._budget, self._told_cr2 = cpu.quick_words()
        self._back_to = cpu.raw[4 * AT_RETURN_ADDRESS :][:8].cast("Q")
        self._time, self._before = path.time, path.before
        self._ns, self._event_ns = path.parameters.ns_each, path.parameters.ns_event
        # by the tables and control registers; the ways by vector and kind, the latest used of each, and by
        # these and the mode
        self._by_state: dict[_State, tuple[dict[int, _Way], dict[tuple[int, bytes], _Way]]] = {}
        self._tables, self._paging, self._efer = b"", b"", b""
        self._latest: dict[int, _Way] = {}
        self._ways: dict[tuple[int, bytes], _Way] = {}
        path.set_quick(self.enter, self.forget)

    def __repr__(self) -> str:
        return f"<Quick {sum(len(ways) for _, ways in self._by_state.values())} ways>"

    def forget(self) -> None:
        """Remember nothing."""
        self._by_state.clear()
        self._tables, self._latest, self._ways = b"", {}, {}

    def enter(self, vector: int) -> bool:
        """The CPU reports an event; False if it is to be dealt with in another way: nothing has changed."""
        count, limit = self._counter[0], self._budget[0]
        if count >= limit:  # the run ends, or an instruction was refused
            return False
        words = self._words
        esp, eip, flags, arithmetic, mode, tables, paging, efer = ENTRY_IN_RUN.unpack_from(self._raw)
        if tables != self._tables or paging != self._paging or efer != self._efer:
            self._change_state(tables, paging, efer)
        is_int = words[AT_IS_INT]
        key = vector << 1 | is_int
        way = self._latest.get(key)
        if way is None or way[0] != mode:
            way = self._other_way(key, mode)
            if way is None:
                return False
        _, pages, place, size, cs, ss, kept, offset, after, name, *_ = way
        top = (esp if place < 0 else self._dwords[place]) - size
        page = pages.get(top >> 12)
        if page is None or page[0](self._ram) != page[1]:
            page = self._find_page(key, mode, top)
            if page is None:
                return False
        at = top & OFFSET
        if at > PAGE_SIZE - size or page[3] in self._cpu.code_pages or flags & _VM:
            return False
        if vector == _PF and not is_int:
            if not self._back_to[0]:  # where in translated code it happened: nowhere, code was fetched
                return False
            self._told_cr2[0] = words[_AT_CR2]
        # the guest's state changes from here on
        at |= page[2]
        shown = flags & _SYSTEM | arithmetic & ARITHMETIC_FLAGS
        if size == 12:
            _STORE_3(self._ram, at, eip, cs, shown)
        elif size == 20:
            _STORE_5(self._ram, at, eip, cs, shown, esp, ss)
        elif size == 16:
            _STORE_4(self._ram, at, words[AT_ERROR_CODE], eip, cs, shown)
        else:
            _STORE_6(self._ram, at, words[AT_ERROR_CODE], eip, cs, shown, esp, ss)
        words[_AT_ESP], words[AT_EIP], words[AT_EFLAGS] = top, offset, flags & kept | 2
        # the arithmetic flags stay where they are, but see Registers.settle_flags()
        words[AT_CC_OP], words[AT_OLD_EXCEPTION] = CC_OP_EFLAGS, U32
        if after:
            self._raw[MODE_AND_STACK] = after
        # as Machine.exception() and Machine.spend()
        self._owner.exits[name] += 1
        time = self._time
        idle = time[0] + self._event_ns
        time[0] = idle
        end = -((idle - time[1]) // self._ns) - self._before[0]
        if end < limit:
            self._budget[0] = end if end > count else count
            if end <= count:
                self._cpu.leave()
        return True

    def _change_state(self, tables: bytes, paging: bytes, efer: bytes) -> None:
        state = self._tables, self._paging, self._efer = tables, paging, efer
        found = self._by_state.get(state)
        if found is None:
            if len(self._by_state) >= _MOST_STATES:
                self._by_state.clear()
            found = self._by_state[state] = {}, {}
        self._latest, self._ways = found

    def _other_way(self, key: int, mode: bytes) -> _Way | None:
        way = self._ways.get((key, mode)) or self._find(key >> 1, bool(key & 1), mode)
        if way is not None:
            self._latest[key] = way
        return way

    def _find(self, vector: int, is_int: bool, mode: bytes) -> _Way | None:
        if not self._path.passes(vector, is_int) or (is_int and vector in _NOT_INTS):
            return None
        words = list(_MODE.unpack(mode))
        if words[0] != _FORWARD or words[1] & (HF_CS32 | HF_SS32 | HF_ADDSEG) != HF_CS32 | HF_SS32:
            return None  # other than flat segments of 32 bits
        found = self._known.find(vector, is_int, None)
        if found is None or found.base > 0:
            return None
        pushes = not is_int and vector in HAS_ERROR_CODE
        cs, ss, new = words[_CS], words[_SS], found.mode
        if found.base < 0:
            new |= HF_SS32 | words[_SS_FLAGS] >> 13 & HF_CPL
        words[_CS : _CS + len(found.words)] = found.words
        if not new & HF_CS32 or words[_ES_BASE] | words[_DS_BASE]:
            return None
        words[1] = words[1] & NO_MODE | new
        after = _MODE.pack(*words)[:_SIZE]
        if len(self._ways) >= _MOST_WAYS:
            self._ways.clear()
        way = self._ways[vector << 1 | is_int, mode] = (
            mode,
            {},
            -1 if found.base < 0 else found.place,
            4 * (3 + pushes) + (0 if found.base < 0 else 8),
            cs,
            ss,
            _KEPT & ~Eflags.IF if found.masks else _KEPT,
            found.offset,
            b"" if after == mode[:_SIZE] else after,
            "software interrupt" if is_int else fault_name(vector),
            found.places,
            *gather(found.places),
        )
        return way

    def _find_page(self, key: int, mode: bytes, top: int) -> _Page | None:
        """The page of a frame that is stored at ``top``; None, too, if the way isn't what it was any more."""
        way = self._latest[key]
        if way[-2](self._ram) != way[-1]:
            # the caller has the old one in its hands, so this event goes the long way
            del self._latest[key]
            self._find(key >> 1, bool(key & 1), mode)
            return None
        if top < 0:
            return None
        places = dict(way[-3])
        start = self._known.find_page(top, places)
        if start is None:
            return None
        pages = way[1]
        if len(pages) >= _MOST_PAGES:
            pages.clear()
        pages[top >> 12] = page = *gather(places), start, start >> 12
        self._latest[key] = way
        return page
