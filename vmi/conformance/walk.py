# SPDX-License-Identifier: GPL-2.0-only
"""Many calls in one run of the guest: it walks through records of calls and writes down what each left.

A case of the suite comes back to the host behind each call, which takes longer than the call itself. Here
the host writes all calls down, starts the guest once, and reads one log. Each call is made by a CALL rel32 of
its own, so that no code has to be written between calls. The first event ends the run: the guest's handlers
are no part of what is asked, and a handler that goes back to a faulting call would come again and again.
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct
from typing import NamedTuple

from vmi import abi
from vmi.abi import Reloc
from vmi.conformance.examples import EXAMPLES
from vmi.conformance.layout import (
    FREE_PAGES,
    IDT,
    LOG,
    LOG_ENTRY,
    NEEDS,
    RECORD,
    RECORDS,
    RETURN,
    RETURNED,
    SCRATCH,
    SITES,
    STACK,
    USER,
    WORDS,
)
from vmi.conformance.rig import CALL_LENGTH, Broken, Frame, Rig, Unfit, fill
from vmi.conformance.subject import Stop
from vmi.memory import PAGE_SIZE
from vmi.x86 import U32, Eflags

#: Memory that calls write to: address and bytes.
COMPARED = ((SCRATCH, PAGE_SIZE), (FREE_PAGES, 4 * PAGE_SIZE), (IDT, 0x800))
#: Calls that one run can make: their records and what they leave share a page.
MOST_CALLS = 20
_SITE = 16  # bytes from one site to the next
_RECORD = Struct("<24I")
_ARGUMENTS = 64  # from the beginning of a record; what is copied to the stack
_MOST_ARGUMENTS = 8
_RETURNED = Struct("<10I")
#: The registers of a record and of what is left, as PUSHA has them; ESP of a record is elsewhere.
_PUSHED = ("edi", "esi", "ebp", "esp", "ebx", "edx", "ecx", "eax")
_PLACES = {name: 8 + n for n, name in enumerate(_PUSHED)}
_LEFT = ("popped", "edi", "esi", "ebp", "esp", "ebx", "edx", "ecx", "eax", "eflags")
_NO_SITE = bytes(4)
_MOV_EAX, _UD2 = b"\xa1", b"\x0f\x0b"
_WORDS = Struct(f"<{len(WORDS)}I")
_PARAMETERS = min(WORDS.values())
_LOG_COUNT, _WALK_LOG = list(WORDS).index("LOG_COUNT"), list(WORDS).index("WALK_LOG")

assert _RECORD.size == RECORD and _RETURNED.size == RETURN
assert (MOST_CALLS + 1) * RECORD + MOST_CALLS * RETURN <= PAGE_SIZE


class Call:
    """One example of a call, ready to be made with other arguments.

    :ivar keys: registers that it takes, ``values`` what the example has in them.
    :ivar ports: it is about ports.
    :ivar mask: which bits of what it leaves the table speaks of.
    """

    def __init__(self, name: str, number: int) -> None:
        self.name, self.number = name, number
        self.example = EXAMPLES[name][number]
        self.keys = tuple(self.example.registers)
        self.values = tuple(self.example.registers.values())
        self.stack = self.example.stack
        self.site = SITES + _SITE * abi.BY_NAME[name].number
        self.mask = _mask(name)
        self.ports = abi.BY_NAME[name].group == "io"
        assert len(self.stack) <= _MOST_ARGUMENTS
        self._places = tuple(_PLACES[key] for key in self.keys)
        size = 4 * len(self.stack)
        self._row = [
            *(self.site, STACK - size, 0, STACK - size, size, 0, 0, 0),
            *(fill(0).get(each, 0) for each in _PUSHED),
            *(0,) * _MOST_ARGUMENTS,
        ]

    def __repr__(self) -> str:
        return f"<Call {self.name} {self.number}>"

    def needs(self, at: int, address: int, size: int) -> None:
        """What it needs in memory: ``size`` bytes from ``at`` are copied to an address first."""
        self._row[5:8] = at, address, size

    def record(self, index: int, values: Sequence[int], stack: Sequence[int]) -> bytes:
        """Its record as that of the call with that index in a run."""
        row = self._row.copy()
        for place, value in zip(self._places, values, strict=True):
            row[place] = value
        if stack:
            row[2] = RECORDS + RECORD * index + _ARGUMENTS
            row[16 : 16 + len(stack)] = stack
        return _RECORD.pack(*row)


def _mask(name: str) -> bytes:
    call = abi.BY_NAME[name]
    shown = {"popped", *call.preserves, *(place for result in call.results for place in result.places)}
    fields = [U32 if field in shown else int(Eflags.DF) if field == "eflags" else 0 for field in _LEFT]
    return _RETURNED.pack(*fields)


class Walked(NamedTuple):
    """What a run has left.

    :ivar returned: calls that came back.
    :ivar left: what those left, :data:`vmi.conformance.layout.RETURN` bytes each, that of the last one first.
    :ivar events: 1 if an event has ended the run.
    """

    stop: Stop
    returned: int
    left: bytes
    events: int

    def of(self, index: int) -> bytes:
        """What a call has left."""
        at = RETURN * (self.returned - 1 - index)
        return self.left[at : at + RETURN]


def left(data: bytes) -> dict[str, int]:
    """What a call has left, by name; ``popped`` is ESP, and ``esp`` says nothing."""
    return dict(zip(_LEFT, _RETURNED.unpack(data), strict=True))


def _changes_nothing(call: Call) -> bool:
    """But for memory at :data:`COMPARED`."""
    return call.name.startswith("Get") or call.name == "DisableInterrupts"


class Walker:
    """A guest that has been activated and makes calls in one run, again and again from the same state.

    :param calls: all that it may be asked to make.
    :param limit_ns: guest time for each call.
    :raises Broken: it can't begin, or an entry is none.
    """

    def __init__(self, rig: Rig, calls: Sequence[Call], limit_ns: int) -> None:
        self._rig, self._limit_ns = rig, limit_ns
        rig.begin()
        self.entries = {call.name: rig.entry(call.name)[0] for call in calls}
        self.unfit: dict[tuple[str, int], str] = {}
        self.needs: dict[tuple[str, int], tuple[int, bytes]] = {}
        for call in calls:
            if self.entries[call.name] is Reloc.CALL_REL:
                self._look(call)
        self._calls = calls
        self._get_ready()
        self._mark = rig.subject.mark()

    def __repr__(self) -> str:
        return f"<Walker {self._rig!r}>"

    def _look(self, call: Call) -> None:
        """See what a call needs in memory."""
        needs = _Needs(self._rig)
        try:
            call.example.before(needs)
        except (Unfit, Broken) as reason:
            self.unfit[call.name, call.number] = str(reason)
        if needs.written:
            (self.needs[call.name, call.number],) = needs.written

    def _get_ready(self) -> None:
        """Sites, what calls need, and the registers: all but the records."""
        rig, labels, at = self._rig, self._rig.labels, NEEDS
        for call in self._calls:
            if self.entries[call.name] is Reloc.CALL_REL:
                rig.jump_to(call.site, rig.entry(call.name)[1], call=True)
                rig.jump_to(call.site + CALL_LENGTH, labels["walked"], call=False)
            if (call.name, call.number) in self.needs:
                address, data = self.needs[call.name, call.number]
                rig.write(at, data)
                call.needs(at, address, len(data))
                at += len(data)
        assert at <= NEEDS + PAGE_SIZE
        # Through some calls once, and what many runs end in: the pages and tables that those need are known
        # when it is kept.
        tried = {call.name: call for call in self._calls if _changes_nothing(call) and self._can(call)}
        some = list(tried.values())[:MOST_CALLS]
        reading = self._reading() + _UD2
        changed = (*COMPARED, (LOG, LOG_ENTRY), (USER, len(reading)))
        before = [(address, rig.read(address, size)) for address, size in changed]
        self._start(b"".join(call.record(n, call.values, call.stack) for n, call in enumerate(some)))
        rig.subject.run(self._limit_ns * (1 + len(some)))
        self._start(b"")
        rig.write(USER, reading)
        rig.subject.set_registers({"eip": USER})
        rig.subject.run(self._limit_ns)
        for address, data in before:  # ROMs differ, and so does what was done here
            rig.write(address, data)
        self._start(b"")

    def _reading(self) -> bytes:
        """Code that reads from each page of the ROM."""
        first, size = self._rig.rom, len(self._rig.image())
        pages = range(first, first + size, PAGE_SIZE)
        return b"".join(_MOV_EAX + page.to_bytes(4, "little") for page in pages)

    def _can(self, call: Call) -> bool:
        return self.entries[call.name] is Reloc.CALL_REL and (call.name, call.number) not in self.unfit

    def _start(self, records: bytes) -> None:
        rig = self._rig
        for name, value in (("ONCE", 1), ("LOG_COUNT", 0), ("WALK_RECORD", RECORDS), ("WALK_LOG", RETURNED)):
            rig.put(WORDS[name], value)
        rig.write(RECORDS, records + _NO_SITE)
        rig.subject.set_registers({"esp": STACK, "eip": rig.labels["walk"]})

    def walk(self, records: bytes, count: int) -> Walked:
        """Make calls from the state that all runs begin with, by their records."""
        rig = self._rig
        subject = rig.subject
        if self._mark is not None:
            self._mark()
        else:
            rig.begin()
            self._get_ready()
        subject.write(RECORDS, records + _NO_SITE)
        stop = subject.run(self._limit_ns * count)
        words = _WORDS.unpack(subject.read(_PARAMETERS, _WORDS.size))
        size = RETURNED - words[_WALK_LOG]
        if not 0 <= size <= RETURN * count:  # the guest itself has written there
            size = 0
        data = subject.read(RETURNED - size, size) if size else b""
        return Walked(stop, size // RETURN, data, words[_LOG_COUNT])

    def event(self) -> Frame:
        """The event that has ended the run."""
        return self._rig.log()[0]

    def read(self, address: int, size: int) -> bytes:
        """Guest memory as the last run has left it."""
        return self._rig.read(address, size)

    def flags(self) -> int:
        """The interrupt flag as the last run has left it."""
        return self._rig.subject.registers()["eflags"] & Eflags.IF


class _Needs(Rig):
    """A rig that writes nothing, and remembers what it should have written."""

    def __init__(self, rig: Rig) -> None:
        super().__init__(rig.subject, rig.environment)
        self._rig = rig
        self.written: list[tuple[int, bytes]] = []

    def write(self, address: int, data: bytes) -> None:
        """See :class:`Rig`."""
        self.written.append((address, data))

    def has(self, feature: int) -> bool:
        """See :class:`Rig`."""
        return self._rig.has(feature)
