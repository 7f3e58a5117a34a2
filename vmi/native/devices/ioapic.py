# SPDX-License-Identifier: GPL-2.0-only
"""The board's interrupt router: an I/O APIC with 24 inputs, each with an entry that says what becomes of it.

An entry turns its input's edge or level into a message with vector, destination and delivery mode. A
level-triggered input that has been told sends no second message until the local APIC reports the end of
the interrupt. Registers follow Intel's 82093AA data sheet, with the EOI register of version 20h as QEMU's
has it. Polarity is kept but means nothing: a line that is driven active counts as active.
"""

from __future__ import annotations

from collections.abc import Callable

from vmi.errors import UsageError
from vmi.native.bus import State
from vmi.native.devices.lapic import Message
from vmi.native.stamped import Stamped

IO_APIC_SPAN = range(0xFEC00000, 0xFEC01000)
INPUTS = 24
VERSION = 0x20 | INPUTS - 1 << 16

_SELECT, _WINDOW, _EOI = 0x00, 0x10, 0x40  # offsets, repeated every 100h
_ID, _VERSION, _ARBITRATION, _TABLE = 0x00, 0x01, 0x02, 0x10  # registers behind the window

# An entry of the redirection table, 64 bits.
_LOGICAL, _BUSY, _REMOTE_IRR, _LEVEL, _MASKED = 1 << 11, 1 << 12, 1 << 14, 1 << 15, 1 << 16
_READ_ONLY = _BUSY | _REMOTE_IRR
_LOW = 0xFFFFFFFF


class _Input:
    """Input ``n`` of an I/O APIC."""

    __slots__ = ("_io_apic", "_n")

    def __init__(self, io_apic: IoApic, n: int) -> None:
        self._io_apic = io_apic
        self._n = n

    def set(self, level: bool, /) -> None:
        self._io_apic.drive(self._n, level)


class IoApic(Stamped):
    """An I/O APIC at ``IO_APIC_SPAN``; ``deliver`` takes its messages."""

    name = "ioapic"

    def __init__(self, deliver: Callable[[Message], None]) -> None:
        self._deliver = deliver
        self._sent = [0] * INPUTS
        self.lines = 0  # inputs as they are driven now; the wires survive a reset
        self._power_on()

    def _power_on(self) -> None:
        self.identity = 0
        self.select = 0
        self.irr = 0  # inputs with a request that no message has been sent for, or that are high
        self.table = [_MASKED] * INPUTS

    # --- inputs ---

    def line(self, n: int) -> _Input:
        """Give input ``n``. UsageError if it is not one of 0 to 23."""
        if not 0 <= n < INPUTS:
            raise UsageError(f"an I/O APIC input must be 0 to {INPUTS - 1}, but {n} was asked for")
        return _Input(self, n)

    def drive(self, n: int, level: bool) -> None:
        """Drive input ``n`` (0-23) high or low."""
        bit = 1 << n
        entry = self.table[n]
        risen = level and not self.lines & bit
        if not level:
            self.lines &= ~bit
            self.irr &= ~bit
            return
        self.lines |= bit
        # An edge while the input is masked is lost; a level is still there when it is unmasked.
        if entry & _LEVEL or (risen and not entry & _MASKED):
            self.irr |= bit
            self._serve(n)

    def _serve(self, n: int) -> None:
        """Send the message of input ``n`` if there is one to send."""
        bit = 1 << n
        entry = self.table[n]
        if not self.irr & bit or entry & _MASKED:
            return
        if entry & _LEVEL:
            if entry & _REMOTE_IRR:
                return
            self.table[n] |= _REMOTE_IRR
        else:
            self.irr &= ~bit
        self._sent[n] += 1
        self._deliver(
            Message(entry >> 56, bool(entry & _LOGICAL), entry >> 8 & 7, entry & 0xFF, bool(entry & _LEVEL))
        )

    def end_of_interrupt(self, vector: int) -> None:
        """A level-triggered interrupt has ended: inputs of this vector that are still high ask again."""
        for n, entry in enumerate(self.table):
            if entry & 0xFF == vector and entry & _LEVEL and entry & _REMOTE_IRR:
                self.table[n] &= ~_REMOTE_IRR
                self._serve(n)

    # --- registers ---

    def memory_read(self, address: int, size: int) -> int:
        """Read the selected register through the window (4 bytes), or the selection (any size)."""
        offset = address & 0xFF
        if offset == _SELECT:
            return self.select
        if offset != _WINDOW or size != 4:
            return 0
        if self.select in (_ID, _ARBITRATION):
            return self.identity << 24
        if self.select == _VERSION:
            return VERSION
        n = self.select - _TABLE >> 1
        if not 0 <= n < INPUTS:
            return 0
        return self.table[n] >> 32 if self.select & 1 else self.table[n] & _LOW

    def memory_write(self, address: int, size: int, value: int) -> None:
        """Select a register (any size), write the selected one, or end an interrupt (4 bytes each)."""
        offset = address & 0xFF
        if offset == _SELECT:
            self.select = value & 0xFF
        elif size != 4:
            return
        elif offset == _EOI:
            self.end_of_interrupt(value & 0xFF)
        elif offset == _WINDOW:
            n = self.select - _TABLE >> 1
            if self.select == _ID:
                self.identity = value >> 24 & 0xF
            elif 0 <= n < INPUTS:
                self._write_entry(n, value & _LOW)

    def _write_entry(self, n: int, half: int) -> None:
        old = self.table[n]
        if self.select & 1:
            entry = old & _LOW | half << 32
        else:
            entry = old & ~_LOW | half & ~_READ_ONLY | old & _READ_ONLY
        bit = 1 << n
        if not entry & _LEVEL:
            entry &= ~_REMOTE_IRR  # software's way to forget a level interrupt without its end
        elif self.lines & bit:
            self.irr |= bit
        self.table[n] = entry
        self._serve(n)

    # --- state ---

    def reset(self) -> None:
        """Mask all inputs; they stay as they are driven."""
        self._power_on()

    def save(self) -> State:
        """Give all registers and inputs."""
        return {
            "identity": self.identity,
            "select": self.select,
            "lines": self.lines,
            "irr": self.irr,
            "table": list(self.table),
        }

    def load(self, state: State) -> None:
        """Take over all registers and inputs."""
        self.identity = state["identity"]
        self.select = state["select"]
        self.lines = state["lines"]
        self.irr = state["irr"]
        self.table = list(state["table"])

    def stats(self) -> dict[str, int]:
        """Count the messages sent, by input."""
        return {f"input{n}": count for n, count in enumerate(self._sent) if count}

    def __repr__(self) -> str:
        open_inputs = sum(not entry & _MASKED for entry in self.table)
        return f"<IoApic {self.identity:#x} with {open_inputs} of {INPUTS} inputs open>"
