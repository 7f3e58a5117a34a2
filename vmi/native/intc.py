# SPDX-License-Identifier: GPL-2.0-only
"""All interrupt controllers of the board as the devices and the processor see them: lines in, vectors out.

A board without APICs has the 8259A pair alone. With them, each ISA line goes to the pair and to the I/O
APIC, the pair's INTR goes to the local APIC, and the guest chooses by what it masks. This is also the
order of things after power-on, so software that knows no APIC never notices them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from vmi.errors import UsageError
from vmi.native.bus import IrqLine, State
from vmi.native.devices.ioapic import IoApic
from vmi.native.devices.lapic import Lapic
from vmi.native.devices.pic import PicPair
from vmi.native.stamped import Stamped

TIMER_IRQ, TIMER_INPUT = 0, 2


def io_apic_input(isa_irq: int) -> int:
    """The I/O APIC input of an ISA line: the same number, but the timer has that of the cascade."""
    return TIMER_INPUT if isa_irq == TIMER_IRQ else isa_irq


class _Both:
    """A line that goes to the 8259A pair and to the I/O APIC."""

    __slots__ = ("_first", "_second")

    def __init__(self, first: IrqLine, second: IrqLine) -> None:
        self._first = first
        self._second = second

    def set(self, level: bool, /) -> None:
        self._first.set(level)
        self._second.set(level)


class SharedLine:
    """A line that several devices drive: high while one of them does, and an edge of each is an edge.

    So a device that holds it high hides no edge of another, and one that lets go takes no request of
    another's back. A device that is alone on it drives it as if it were its own.
    """

    def __init__(self, line: IrqLine) -> None:
        self._line = line
        self._levels: list[bool] = []

    def driver(self) -> IrqLine:
        """One device's end."""
        self._levels.append(False)
        return _Driver(self, len(self._levels) - 1)

    def drive(self, number: int, level: bool) -> None:
        """The device with that number drives it high or low."""
        before, self._levels[number] = self._levels[number], level
        if not any(other for n, other in enumerate(self._levels) if n != number):
            self._line.set(level)
        elif level and not before:
            self._line.set(False)
            self._line.set(True)


class _Driver:
    """One device's end of a shared line."""

    __slots__ = ("_number", "_shared")

    def __init__(self, shared: SharedLine, number: int) -> None:
        self._shared = shared
        self._number = number

    def set(self, level: bool, /) -> None:
        self._shared.drive(self._number, level)


class InterruptLogic(Stamped):
    """The interrupt controllers, wired.

    ``pending()`` tells whether the processor is asked to take an interrupt, ``acknowledge()`` gives its
    vector; ``on_change`` is called when ``pending()`` may have become true. The two are those of the
    controller next to the processor, since they are asked often; where there are several processors, next
    to the one that runs, see :meth:`select`.

    :param lapic: the boot processor's.
    :param others: those of the other processors; ``on_change`` of these is not touched.
    :raises UsageError: one APIC without the other.
    """

    def __init__(
        self,
        pic: PicPair,
        lapic: Lapic | None = None,
        io_apic: IoApic | None = None,
        others: Sequence[Lapic] = (),
    ) -> None:
        if (lapic is None) != (io_apic is None):
            raise UsageError("a board must have both a local and an I/O APIC or none, but one was given")
        self.on_change: Callable[[], None] | None = None
        self.pic = pic
        self.lapic = lapic
        self.lapics = () if lapic is None else (lapic, *others)
        self.io_apic = io_apic
        self.pending: Callable[[], bool]
        self.acknowledge: Callable[[], int]
        if lapic is None or io_apic is None:
            self.pending, self.acknowledge = pic.pending, pic.acknowledge
            pic.on_change = self._changed
        else:
            self.pending, self.acknowledge = lapic.pending, lapic.acknowledge
            pic.on_change = self._pic_changed
            lapic.on_change = self._changed
            for each in self.lapics:
                each.external = pic.acknowledge
                each.on_eoi = io_apic.end_of_interrupt
        self._timer_line = SharedLine(self._line(TIMER_IRQ))
        self._timer = self._timer_line.driver()

    def select(self, lapic: Lapic) -> None:
        """Have ``pending`` and ``acknowledge`` be those of the processor that runs from now on."""
        self.pending, self.acknowledge = lapic.pending, lapic.acknowledge

    def _pic_changed(self) -> None:
        level = self.pic.pending()
        for lapic in self.lapics:
            lapic.set_lint0(level)

    def _changed(self) -> None:
        if self.on_change is not None:
            self.on_change()

    def line(self, isa_irq: int) -> IrqLine:
        """Give an ISA request line. UsageError if it is not one of 0, 1, 3-15."""
        return self._timer if isa_irq == TIMER_IRQ else self._line(isa_irq)

    def beside_timer(self) -> IrqLine:
        """Give an end of line 0 to a device that shares it with the timer."""
        return self._timer_line.driver()

    def _line(self, isa_irq: int) -> IrqLine:
        line = self.pic.line(isa_irq)
        if self.io_apic is None:
            return line
        return _Both(line, self.io_apic.line(io_apic_input(isa_irq)))

    # The pair is on the port bus, which resets and saves it; the rest is done here.

    def reset(self) -> None:
        """Return the APICs to the state after the RESET line."""
        for part in self._parts():
            part.reset()

    def save(self) -> State:
        """Give the state of the APICs by name."""
        return {part.name: part.save() for part in self._parts()}

    def load(self, state: State) -> None:
        """Take over what ``save`` gave. UsageError if it is of a board with another set of APICs."""
        parts = self._parts()
        if set(state) != {part.name for part in parts}:
            wanted, got = ", ".join(part.name for part in parts) or "none", ", ".join(state) or "none"
            raise UsageError(f"the saved state must be of the APICs {wanted}, but it is of {got}")
        for part in parts:
            part.load(state[part.name])

    def stats(self) -> dict[str, dict[str, int]]:
        """Give the counts of the APICs by name."""
        return {part.name: part.stats() for part in self._parts()}

    def _parts(self) -> list[Lapic | IoApic]:
        return [] if self.io_apic is None else [*self.lapics, self.io_apic]

    def __repr__(self) -> str:
        apics = "".join(f", {part!r}" for part in self._parts())
        return f"<InterruptLogic {self.pic!r}{apics}>"
