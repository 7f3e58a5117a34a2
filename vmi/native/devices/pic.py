# SPDX-License-Identifier: GPL-2.0-only
"""The interrupt controller of the AT: two cascaded 8259A and the edge/level registers.

Sixteen request lines with fixed or rotating priority come out as one INTR signal and, at
acknowledge, one vector number. Behaviour follows the Intel 8259A data sheet, including what only
careful guests use (special mask mode, polling, special fully nested mode); the edge/level control
registers at 4D0h and 4D1h are those of the EISA chip sets.
"""

from __future__ import annotations

from collections.abc import Callable

from vmi.errors import UsageError
from vmi.native.bus import Device, State
from vmi.native.stamped import Stamped

CASCADE = 2  # the slave's INTR is wired to this input of the master
_NONE = 8  # a priority lower than that of any request

# Operation command word 2, by its top three bits (R, SL, EOI).
_CLEAR_ROTATE_AUTO, _EOI, _NOP, _EOI_SPECIFIC = 0, 1, 2, 3
_SET_ROTATE_AUTO, _EOI_ROTATE, _SET_PRIORITY, _EOI_SPECIFIC_ROTATE = 4, 5, 6, 7

_FIELDS = (
    "lines", "edge_seen", "irr", "imr", "isr", "lowest", "vector_base", "init_step", "needs_icw4",
    "single", "level_triggered", "elcr", "auto_eoi", "rotate_auto", "special_mask", "nested_specially",
    "read_isr", "poll",
)  # fmt: skip


class Chip(Stamped):
    """One 8259A. Bit n of every register belongs to input n."""

    def __init__(self, elcr_mask: int, master: bool) -> None:
        self.elcr_mask = elcr_mask
        self.is_master = master
        self.elcr = 0
        self.lines = 0  # the inputs as they are driven now
        self._clear(0)

    def _clear(self, step: int) -> None:
        """The state ICW1 leaves; ``step`` is the ICW expected next, 0 for none."""
        # An input that is high already is no new edge: it must fall and rise again.
        self.edge_seen = self.lines
        self.irr = 0
        self.imr = 0
        self.isr = 0
        self.lowest = 7  # the input of lowest priority; the one after it has the highest
        self.vector_base = 0
        self.init_step = step
        self.needs_icw4 = False
        self.single = False
        self.level_triggered = False
        self.auto_eoi = False
        self.rotate_auto = False
        self.special_mask = False
        self.nested_specially = False
        self.read_isr = False
        self.poll = False

    def reset(self) -> None:
        """Power-on: not initialised, all edge triggered. Inputs stay as they are driven."""
        self.elcr = 0
        self._clear(0)

    @property
    def level_mask(self) -> int:
        """The inputs that are level triggered."""
        return 0xFF if self.level_triggered else self.elcr

    def drive(self, n: int, level: bool) -> None:
        """Input ``n`` is driven high or low."""
        bit = 1 << n
        if level:
            self.lines |= bit
            if self.level_mask & bit or not self.edge_seen & bit:
                self.irr |= bit
            self.edge_seen |= bit
        else:
            # A request must stay up until it is acknowledged; one that is withdrawn is forgotten.
            self.lines &= ~bit
            self.edge_seen &= ~bit
            self.irr &= ~bit

    def _rank(self, bits: int) -> int:
        """The rank of the most urgent of ``bits``: 0 highest, _NONE if there is none."""
        for rank in range(8):
            if bits >> (self.lowest + 1 + rank & 7) & 1:
                return rank
        return _NONE

    def requested(self) -> int:
        """The input that raises INTR now, or -1."""
        wanted = self.irr & ~self.imr
        if not wanted:
            return -1
        # In special mask mode a masked level that is in service holds nothing back.
        limit = self._rank(self.isr & ~self.imr if self.special_mask else self.isr)
        rank = self._rank(wanted)
        n = self.lowest + 1 + rank & 7
        if rank < limit:
            return n
        # In special fully nested mode the slave may interrupt its own service.
        if rank == limit and n == CASCADE and self.nested_specially and self.is_master:
            return n
        return -1

    def acknowledge(self, n: int) -> None:
        """Input ``n`` is being served from now on."""
        bit = 1 << n
        if not self.level_mask & bit:
            self.irr &= ~bit
        if not self.auto_eoi:
            self.isr |= bit
        elif self.rotate_auto:
            self.lowest = n

    def read(self, odd: bool) -> int:
        """Read the mask (odd port), or IRR or ISR as OCW3 chose. Polling is the pair's matter."""
        if odd:
            return self.imr
        return self.isr if self.read_isr else self.irr

    def write(self, odd: bool, value: int) -> None:
        """Take an initialisation or operation command word."""
        if odd:
            self._write_odd(value)
        elif value & 0x10:
            self._clear(2)
            self.needs_icw4 = bool(value & 1)
            self.single = bool(value & 2)
            self.level_triggered = bool(value & 8)
            self.irr = self.lines & self.level_mask
        elif value & 0x08:
            self._ocw3(value)
        else:
            self._ocw2(value >> 5, value & 7)

    def _write_odd(self, value: int) -> None:
        if self.init_step == 0:
            self.imr = value
        elif self.init_step == 2:
            self.vector_base = value & 0xF8
            self.init_step = 3 if not self.single else 4 if self.needs_icw4 else 0
        elif self.init_step == 3:
            # ICW3 tells how the two are wired, and on this board they are wired in one way only.
            self.init_step = 4 if self.needs_icw4 else 0
        else:
            self.auto_eoi = bool(value & 0x02)
            self.nested_specially = bool(value & 0x10)
            self.init_step = 0

    def _ocw2(self, command: int, n: int) -> None:
        if command in (_CLEAR_ROTATE_AUTO, _SET_ROTATE_AUTO):
            self.rotate_auto = command == _SET_ROTATE_AUTO
        elif command in (_EOI, _EOI_ROTATE):
            # Under special mask mode a masked level is not the one that ends.
            rank = self._rank(self.isr & ~self.imr if self.special_mask else self.isr)
            if rank != _NONE:
                n = self.lowest + 1 + rank & 7
                self.isr &= ~(1 << n)
                if command == _EOI_ROTATE:
                    self.lowest = n
        elif command in (_EOI_SPECIFIC, _EOI_SPECIFIC_ROTATE):
            self.isr &= ~(1 << n)
            if command == _EOI_SPECIFIC_ROTATE:
                self.lowest = n
        elif command == _SET_PRIORITY:
            self.lowest = n

    def _ocw3(self, value: int) -> None:
        if value & 0x04:
            self.poll = True
        if value & 0x02:
            self.read_isr = bool(value & 1)
        if value & 0x40:
            self.special_mask = bool(value & 0x20)

    def write_elcr(self, value: int) -> None:
        """Choose level triggering per input; the lines of the AT's own devices stay edge."""
        self.elcr = value & self.elcr_mask
        self.irr |= self.lines & self.elcr

    def save(self) -> State:
        """Give all registers."""
        return {name: getattr(self, name) for name in _FIELDS}

    def load(self, state: State) -> None:
        """Take over all registers."""
        for name in _FIELDS:
            setattr(self, name, state[name])


class _Line:
    """Request input ``n`` (0-15) of the pair."""

    __slots__ = ("_n", "_pair")

    def __init__(self, pair: PicPair, n: int) -> None:
        self._pair = pair
        self._n = n

    def set(self, level: bool, /) -> None:
        self._pair.drive(self._n, level)


class PicPair(Device):
    """Master (20h, 21h, inputs 0-7), slave (A0h, A1h, inputs 8-15) and ELCR (4D0h, 4D1h).

    ``on_change`` is called, without arguments, each time the INTR output has changed.
    """

    name = "pic"
    ports = (range(0x20, 0x22), range(0xA0, 0xA2), range(0x4D0, 0x4D2))

    def __init__(self, on_change: Callable[[], None] | None = None) -> None:
        self.on_change = on_change
        # 0, 1, 2, 8 and 13 belong to board devices that give edges.
        self.master = Chip(0xF8, master=True)
        self.slave = Chip(0xDE, master=False)
        self._intr = False
        self._delivered = [0] * 16
        self._spurious = 0

    def line(self, n: int) -> _Line:
        """Give request input ``n``. UsageError if it is not one of 0, 1, 3-15 (2 is the cascade)."""
        if not 0 <= n < 16 or n == CASCADE:
            raise UsageError(f"a device interrupt line must be 0, 1 or 3 to 15, but {n} was asked for")
        return _Line(self, n)

    def drive(self, n: int, level: bool) -> None:
        """Drive request input ``n`` (0-15 without 2)."""
        if n < 8:
            self.master.drive(n, level)
        else:
            self.slave.drive(n - 8, level)
        self._update()

    def pending(self) -> bool:
        """Tell whether INTR is asserted."""
        return self._intr

    def acknowledge(self) -> int:
        """Run the CPU's acknowledge cycle: give the vector, with the request now in service.

        A request that went away meanwhile yields input 7 of its chip, which is then not in service.
        """
        n = self.master.requested()
        if n < 0:
            self._spurious += 1
            vector = self.master.vector_base + 7
        elif n == CASCADE:
            self.master.acknowledge(n)
            # The slave's output drops for the cycle, so a next request of its gives a new edge.
            self.master.drive(CASCADE, False)
            vector = self._acknowledge_slave()
        else:
            self.master.acknowledge(n)
            self._delivered[n] += 1
            vector = self.master.vector_base + n
        self._update()
        return vector

    def _acknowledge_slave(self) -> int:
        n = self.slave.requested()
        if n < 0:
            self._spurious += 1
            return self.slave.vector_base + 7
        self.slave.acknowledge(n)
        self._delivered[8 + n] += 1
        return self.slave.vector_base + n

    def _update(self) -> None:
        cascade = self.slave.requested() >= 0
        if cascade != bool(self.master.lines & 1 << CASCADE):
            self.master.drive(CASCADE, cascade)
        intr = self.master.requested() >= 0
        if intr != self._intr:
            self._intr = intr
            if self.on_change is not None:
                self.on_change()

    def read(self, port: int, size: int) -> int:
        """Read a register; after a poll command the next read is an acknowledge instead."""
        if port >= 0x4D0:
            return (self.slave if port & 1 else self.master).elcr
        chip = self.slave if port & 0x80 else self.master
        if not chip.poll:
            return chip.read(bool(port & 1))
        chip.poll = False
        n = chip.requested()
        if n < 0:
            return 0
        chip.acknowledge(n)
        self._update()
        return 0x80 | n

    def write(self, port: int, size: int, value: int) -> None:
        """Write a command word, a mask or an edge/level register."""
        if port >= 0x4D0:
            (self.slave if port & 1 else self.master).write_elcr(value)
        else:
            (self.slave if port & 0x80 else self.master).write(bool(port & 1), value)
        self._update()

    def reset(self) -> None:
        """Return both chips to power-on."""
        self.master.reset()
        self.slave.reset()
        self._update()

    def save(self) -> State:
        """Give both chips' registers."""
        return {"master": self.master.save(), "slave": self.slave.save()}

    def load(self, state: State) -> None:
        """Take over both chips' registers."""
        self.master.load(state["master"])
        self.slave.load(state["slave"])
        self._intr = self.master.requested() >= 0

    def stats(self) -> dict[str, int]:
        """Count the interrupts acknowledged, by request number, and the spurious ones."""
        counts = {f"irq{n}": count for n, count in enumerate(self._delivered) if count}
        return {**counts, "spurious": self._spurious}
