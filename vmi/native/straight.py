# SPDX-License-Identifier: GPL-2.0-only
"""Events that go straight to the guest's handlers: which those are, and what the accelerator is told.

Most exceptions and INTs mean nothing to anybody but the guest: they are counted, take their time, and its
handler is entered. C does all of that by itself (``straight.c``) where the machine says that nobody wants to
see events, and a hypervisor which of them it does not want to see, and what its ring compression makes of a
frame. Without the accelerator each event comes to Python, where a function that knows the usual ways is asked
first (:mod:`vmi.native.quick`, or a hypervisor's): it goes by who wants to see what, and by time, as C does.
"""

from __future__ import annotations

import ctypes
import functools
from collections import Counter
from collections.abc import Callable, Mapping
from enum import IntEnum
from typing import Any, NamedTuple

from vmi.native.registers import TableRegister
from vmi.x86 import U32, Vector

_POINTER, _U64, _I64, _U32 = ctypes.c_void_p, ctypes.c_uint64, ctypes.c_int64, ctypes.c_uint32
NO_GATE = 256
ALL = U32  # of the events on a ring: exceptions and INTs
_TOP = 1 << 32
_EXCEPTIONS = 32
_NAMES = {int(vector): f"#{vector.name}" for vector in Vector}


class Service(IntEnum):
    """What C does for calls from a ROM's gates, by number."""

    LOAD_CR3 = 0  # with EAX
    FLUSH_PAGE = 1  # of the address EAX in DS
    FLUSH_ALL = 2  # what EAX says: 2 is global pages too, 0 nothing, and all else those that aren't global


_NOBODY = U32  # number of no gate


def fault_name(vector: int) -> str:
    """What an exception is counted as."""
    return _NAMES.get(vector) or f"exception {vector}"


class Cells(NamedTuple):
    """Host addresses of the 32-bit words that a de-privileged kernel shares with its hypervisor; 0 for none.

    :ivar kernel_ss_given: bit of the word ``kernel_ss`` that says whether there is a stack.
    :ivar uncached_known: bit of the word ``uncached`` that says whether there is such a page.
    :ivar rom: the code of the kernel's ROM, guest-physical; ``gates`` the places in it that INTs come from
        by which it calls the hypervisor.
    """

    interrupts: int
    iopl: int
    kernel_ss: int = 0
    kernel_esp: int = 0
    kernel_ss_given: int = 0
    cr2: int = 0
    cr3: int = 0
    uncached: int = 0
    uncached_known: int = 0
    rom: range = range(0)
    gates: range = range(0)


class Straight(ctypes.Structure):
    """``struct straight`` of the C source, which says what the fields are."""

    _fields_ = (
        ("size", _U64),
        ("cpu", _POINTER),
        ("env", _POINTER),
        ("ram", _POINTER),
        ("ram_size", _U64),
        ("pages", _POINTER),
        ("flush_page", _POINTER),
        ("before", _U64),
        ("idle", _I64),
        ("run_ends", _I64),
        ("ns_each", _I64),
        ("ns_event", _I64),
        ("entered", _U64),
        ("exceptions", _U64 * _EXCEPTIONS),
        ("software", _U64),
        ("served", _U64 * len(Service)),
        ("told_cr2", _POINTER),
        ("uncached", _POINTER),
        ("reports", _U32),
        ("pages_too", _U32),
        ("enters", _U32),
        ("gate", _U32),
        ("asked", _U32 * 4),
        ("asked_in_rom", _U32),
        ("open_a20", _U32),
        ("rom_start", _U64),
        ("rom_end", _U64),
        ("top", _U64),
        ("compressed", _U32),
        ("shown_ring", _U32),
        ("idt_base", _U32),
        ("idt_limit", _U32),
        ("interrupts", _POINTER),
        ("iopl", _POINTER),
        ("kernel_ss", _POINTER),
        ("kernel_esp", _POINTER),
        ("kernel_ss_given", _U32),
        ("uncached_known", _U32),
        ("called", _POINTER),
        ("gates_start", _U64),
        ("gate_size", _U32),
        ("gate_count", _U32),
        ("cr2", _POINTER),
        ("uncached_word", _POINTER),
        ("cr3", _POINTER),
        ("served_gates", _U32 * len(Service)),
    )


class Path:
    """The way of one CPU's events to its guest's handlers, as far as Python need not go along.

    :ivar parameters: what C looks at.
    :ivar before: instructions executed before the run in progress.
    :ivar time: ns besides instructions, and when the run in progress ends at the latest.
    :ivar on_served: told how many calls C has served, by :class:`Service`, behind a run in which it has.
    :ivar enter: enters the handler of an event (vector, whether it is an INT, error code or -1, whether the
        CPU runs), or gives 0 where Python has to do it; None without the accelerator.
    :ivar quick: is asked first of all for an event that the CPU reports, by vector; False if that is to be
        dealt with in another way. None if it isn't to be asked now.
    """

    def __init__(self) -> None:
        self.parameters = Straight(
            size=ctypes.sizeof(Straight), pages_too=1, enters=1, gate=NO_GATE, open_a20=1, top=_TOP
        )
        cells = memoryview(self.parameters).cast("B")
        self.time = cells[Straight.idle.offset : Straight.ns_each.offset].cast("q")
        self.before = cells[Straight.before.offset : Straight.idle.offset].cast("Q")
        self._reports = cells[Straight.reports.offset : Straight.pages_too.offset].cast("I")
        self._entered = cells[Straight.entered.offset : Straight.exceptions.offset].cast("Q")
        self.enter: Callable[[int, bool, int, bool], int] | None = None
        self.on_served: Callable[[Mapping[Service, int]], None] = lambda _: None
        self.parameters.served_gates[:] = (_NOBODY,) * len(Service)
        self.quick: Callable[[int], bool] | None = None
        # on the bare machine, and with ring compression
        self._quick: list[Callable[[int], bool] | None] = [None, None]
        self._forget: list[Callable[[], None]] = []

    def __repr__(self) -> str:
        kind = "compressed" if self.parameters.compressed else "bare"
        return f"<Path {kind}, {'in C' if self.enter else 'in Python'}>"

    def serve(self, enter: Any, **places: int) -> None:
        """Let C enter handlers from now on. :param places: fields that say where things are."""
        for name, value in places.items():
            setattr(self.parameters, name, value)
        reference = ctypes.byref(self.parameters)
        self.enter = functools.partial(enter, reference)

    @property
    def image(self) -> bytes:
        """All that C is told, for going back to it in the same process; only between runs."""
        return bytes(self.parameters)

    @image.setter
    def image(self, image: bytes) -> None:
        ctypes.memmove(ctypes.byref(self.parameters), image, len(image))
        self.changed()

    def set_quick(
        self, enter: Callable[[int], bool], forget: Callable[[], None], *, compressed: bool = False
    ) -> None:
        """Have a function deal with events where C doesn't, see :attr:`quick`.

        :param forget: it is to remember nothing of what :meth:`passes` has said.
        :param compressed: events of a kernel on ring 1, not of the bare machine.
        """
        if self.enter is None:
            self._quick[compressed] = enter
            self._forget.append(forget)

    def changed(self) -> None:
        """What events mean is not what it was."""
        self.quick = None  # until the next run
        for forget in self._forget:
            forget()

    def passes(self, vector: int, is_int: bool) -> bool:
        """An event on the bare machine is nobody's but the guest's."""
        parameters = self.parameters
        if is_int:
            return bool(vector != parameters.gate)
        if vector == Vector.PF and not parameters.pages_too:
            return False
        return vector < _EXCEPTIONS and vector != Vector.DB and not parameters.asked[0] >> vector & 1

    def set_prices(self, *, instruction: int, event: int) -> None:
        """What an instruction and the entry to a handler take, ns."""
        self.parameters.ns_each, self.parameters.ns_event = instruction, event

    def allow(self, allowed: bool) -> None:
        """Let events go straight in the next run, or have Python see all of them."""
        self._reports[0] = allowed
        self.quick = self._quick[self.parameters.compressed] if allowed else None

    def collect(self, exits: Counter[str]) -> None:
        """Add what went straight since the last time to what the machine counts."""
        if not self._entered[0]:
            return
        parameters = self.parameters
        if parameters.software:
            exits["software interrupt"] += parameters.software
        for vector, count in enumerate(parameters.exceptions):
            if count:
                exits[fault_name(vector)] += count
        if any(parameters.served):
            self.on_served({service: parameters.served[service] for service in Service})
        start = Straight.entered.offset
        ctypes.memset(ctypes.addressof(parameters) + start, 0, Straight.told_cr2.offset - start)

    # -- a hypervisor's side ----------------------------------------------------------------

    def stay_bare(self, gate: int | None, asked: int) -> None:
        """Events are the bare machine's.

        :param gate: a vector of INT that a monitor wants to see, None for none.
        :param asked: exceptions that it wants to see, by bit.
        """
        parameters = self.parameters
        parameters.compressed, parameters.enters, parameters.top = 0, 1, _TOP
        parameters.gate = NO_GATE if gate is None else gate
        parameters.asked[:] = (asked,) * 4
        self.changed()

    def show(self, idt: TableRegister, ring: int) -> None:
        """The IDT of a kernel on ring 1, and the ring that it sees in selectors."""
        parameters = self.parameters
        parameters.idt_base, parameters.idt_limit, parameters.shown_ring = idt.base, idt.limit, ring

    def compress(
        self,
        cells: Cells,
        *,
        gate: int | None,
        asked: tuple[int, ...],
        in_rom: int,
        top: int,
        enters: bool,
        served: Mapping[Service, int],
    ) -> None:
        """Events are those of a kernel on ring 1; see :class:`Straight`.

        :param asked: exceptions that the hypervisor wants to see, by ring; :data:`ALL` for INTs too.
        :param in_rom: exceptions that it wants to see when they happen in the ROM.
        :param top: linear addresses from here on are hidden, 0 if none are.
        :param enters: translation goes by the CPU's own registers.
        :param served: the gates, by number, of calls that need not come to the hypervisor.
        """
        parameters = self.parameters
        parameters.interrupts, parameters.iopl = cells.interrupts, cells.iopl
        parameters.kernel_ss, parameters.kernel_esp = cells.kernel_ss, cells.kernel_esp
        parameters.kernel_ss_given, parameters.uncached_known = cells.kernel_ss_given, cells.uncached_known
        parameters.cr2, parameters.uncached_word, parameters.cr3 = cells.cr2, cells.uncached, cells.cr3
        parameters.rom_start, parameters.rom_end = cells.rom.start, cells.rom.stop
        parameters.gates_start, parameters.gate_size = cells.gates.start, cells.gates.step
        parameters.gate_count = len(cells.gates)
        parameters.served_gates[:] = [served.get(service, _NOBODY) for service in Service]
        parameters.asked[:], parameters.asked_in_rom = asked, in_rom
        parameters.gate = NO_GATE if gate is None else gate
        parameters.top, parameters.enters = top or _TOP, enters
        parameters.compressed = 1
        self.changed()
