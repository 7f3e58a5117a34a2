# SPDX-License-Identifier: GPL-2.0-only
"""The serial port: a 16550A UART with its FIFOs, interrupts and loopback.

Transmission takes no time: a byte written is out at once and the holding register empty again, which
drivers see as a very fast line. Reception is paced: one byte per character time of the programmed
rate, so that input fed in one piece does not overrun the guest's own buffers. Input waits outside
while the FIFO is at its trigger level, as with a flow-controlled peer, so nothing is ever lost.

Two choices follow QEMU rather than the letter of the data sheet, because systems rely on them:
enabling the THRE interrupt with an empty holding register requests it again, and the interrupt line
is not gated by MCR OUT2.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from vmi.native.bus import Device, IrqLine, State
from vmi.native.clock import NS_PER_S, Clock, Event

BASE_CLOCK_HZ = 115200  # bits per second at divisor 1

IER_RDI, IER_THRI, IER_RLSI, IER_MSI = 1, 2, 4, 8
IIR_MSI, IIR_NONE, IIR_THRI, IIR_RDI, IIR_RLSI, IIR_CTI = 0x00, 0x01, 0x02, 0x04, 0x06, 0x0C
FCR_ENABLE, FCR_CLEAR_RX, FCR_CLEAR_TX = 1, 2, 4
LCR_DLAB = 0x80
MCR_DTR, MCR_RTS, MCR_OUT1, MCR_OUT2, MCR_LOOP = 1, 2, 4, 8, 16
LSR_DR, LSR_OE, LSR_PE, LSR_FE, LSR_BI, LSR_THRE, LSR_TEMT = 1, 2, 4, 8, 0x10, 0x20, 0x40
LSR_ERRORS = LSR_OE | LSR_PE | LSR_FE | LSR_BI
MSR_DELTAS, MSR_TERI = 0x0F, 0x04
MSR_CTS, MSR_DSR, MSR_RI, MSR_DCD = 0x10, 0x20, 0x40, 0x80

FIFO_SIZE = 16
_TRIGGER = (1, 4, 8, 14)
_TIMEOUT_CHARS = 4

_FIELDS = ("divisor", "ier", "fcr", "lcr", "mcr", "lsr", "msr", "scr", "rbr", "thre_pending", "timed_out")


class Uart(Device):
    """A 16550A at ``base`` (8 ports).

    ``on_transmit`` gets each byte the guest sends; ``receive`` takes bytes that are sent to it. The
    peer is always there: CTS, DSR and DCD are up.
    """

    def __init__(
        self,
        name: str,
        base: int,
        irq: IrqLine,
        clock: Clock,
        on_transmit: Callable[[int], None],
    ) -> None:
        self.name = name
        self.ports = (range(base, base + 8),)
        self._irq = irq
        self._clock = clock
        self._on_transmit = on_transmit
        self._fifo: deque[int] = deque()
        self._waiting: deque[int] = deque()  # bytes from the peer that have not arrived yet
        self._arrival: Event | None = None
        self._timeout: Event | None = None
        self._sent = self._received = self._interrupts = 0
        self._line = False
        self._power_on()

    def _power_on(self) -> None:
        self.divisor = 12  # 9600 bit/s
        self.ier = 0
        self.fcr = 0
        self.lcr = 0
        self.mcr = MCR_OUT2
        self.lsr = LSR_TEMT | LSR_THRE
        self.msr = MSR_DCD | MSR_DSR | MSR_CTS
        self.scr = 0
        self.rbr = 0
        self.thre_pending = False
        self.timed_out = False

    # --- interrupts ---

    def _cause(self) -> int:
        """The IIR identification of the most urgent enabled cause."""
        ier, lsr = self.ier, self.lsr
        if ier & IER_RLSI and lsr & LSR_ERRORS:
            return IIR_RLSI
        if ier & IER_RDI:
            if self.timed_out:
                return IIR_CTI
            if lsr & LSR_DR and (not self.fcr & FCR_ENABLE or len(self._fifo) >= self._trigger):
                return IIR_RDI
        if ier & IER_THRI and self.thre_pending:
            return IIR_THRI
        if ier & IER_MSI and self.msr & MSR_DELTAS:
            return IIR_MSI
        return IIR_NONE

    def _update(self) -> None:
        level = self._cause() != IIR_NONE
        if level != self._line:
            self._line = level
            self._interrupts += level
            self._irq.set(level)

    @property
    def _trigger(self) -> int:
        return _TRIGGER[self.fcr >> 6]

    # --- receiving ---

    @property
    def char_time(self) -> int:
        """Nanoseconds that one character takes at the programmed rate and frame."""
        data_bits = 5 + (self.lcr & 3)
        bits = 1 + data_bits + (self.lcr >> 3 & 1) + 1 + (self.lcr >> 2 & 1)
        return bits * (self.divisor or 0x10000) * NS_PER_S // BASE_CLOCK_HZ

    def receive(self, data: bytes) -> None:
        """Take bytes from the peer; each arrives when the line and the receiver are free."""
        self._waiting.extend(data)
        self._expect()

    @property
    def waiting(self) -> int:
        """Bytes from the peer that the receiver has not taken yet."""
        return len(self._waiting)

    def _has_room(self) -> bool:
        if self.mcr & MCR_LOOP:
            return False
        if not self.fcr & FCR_ENABLE:
            return not self.lsr & LSR_DR
        return len(self._fifo) < self._trigger

    def _expect(self) -> None:
        """Make sure the next waiting byte is on its way if it can be taken."""
        if self._waiting and self._arrival is None and self._has_room():
            self._arrival = self._clock.schedule(self._clock.now() + self.char_time, self._arrive)

    def _arrive(self, due: int) -> None:
        self._arrival = None
        if self._waiting and self._has_room():
            self._take(self._waiting.popleft(), due)
        if self._waiting and self._has_room():
            self._arrival = self._clock.schedule(due + self.char_time, self._arrive)

    def _take(self, byte: int, now: int) -> None:
        self._received += 1
        if self.fcr & FCR_ENABLE:
            if len(self._fifo) < FIFO_SIZE:
                self._fifo.append(byte)
            else:
                self.lsr |= LSR_OE
            self._restart_timeout(now)
        else:
            if self.lsr & LSR_DR:
                self.lsr |= LSR_OE
            self.rbr = byte
        self.lsr |= LSR_DR
        self._update()

    def _restart_timeout(self, now: int) -> None:
        self._stop_timeout()
        self._timeout = self._clock.schedule(now + _TIMEOUT_CHARS * self.char_time, self._time_out)

    def _stop_timeout(self) -> None:
        self.timed_out = False
        if self._timeout is not None:
            self._timeout.cancel()
            self._timeout = None

    def _time_out(self, due: int) -> None:
        self._timeout = None
        if self._fifo:
            self.timed_out = True
            self._update()

    def _clear_rx(self) -> None:
        self._fifo.clear()
        self._stop_timeout()
        self.lsr &= ~(LSR_DR | LSR_BI)

    # --- registers ---

    def read(self, port: int, size: int) -> int:
        """Read a register."""
        register = port & 7
        if register <= 1 and self.lcr & LCR_DLAB:
            return self.divisor >> 8 * register & 0xFF
        return _READERS[register](self)

    def write(self, port: int, size: int, value: int) -> None:
        """Write a register."""
        register = port & 7
        if register <= 1 and self.lcr & LCR_DLAB:
            shift = 8 * register
            self.divisor = self.divisor & ~(0xFF << shift) | value << shift
        else:
            _WRITERS[register](self, value)

    def _read_rbr(self) -> int:
        if self.fcr & FCR_ENABLE:
            byte = self._fifo.popleft() if self._fifo else 0
            if self._fifo:
                self._restart_timeout(self._clock.now())
            else:
                self._stop_timeout()
                self.lsr &= ~(LSR_DR | LSR_BI)
        else:
            byte = self.rbr
            self.lsr &= ~(LSR_DR | LSR_BI)
        self._update()
        self._expect()
        return byte

    def _write_thr(self, value: int) -> None:
        # The line drops while the byte is in the register and rises when it has left: an edge.
        self.thre_pending = False
        self._update()
        if self.mcr & MCR_LOOP:
            self._take(value, self._clock.now())
        else:
            self._sent += 1
            self._on_transmit(value)
        self.thre_pending = True
        self._update()

    def _read_ier(self) -> int:
        return self.ier

    def _write_ier(self, value: int) -> None:
        changed = (self.ier ^ value) & 0x0F
        self.ier = value & 0x0F
        if changed & IER_THRI:
            self.thre_pending = bool(self.ier & IER_THRI)
        self._update()

    def _read_iir(self) -> int:
        cause = self._cause()
        if cause == IIR_THRI:
            self.thre_pending = False
            self._update()
        return cause | (0xC0 if self.fcr & FCR_ENABLE else 0)

    def _write_fcr(self, value: int) -> None:
        if (self.fcr ^ value) & FCR_ENABLE:
            value |= FCR_CLEAR_RX | FCR_CLEAR_TX
        if value & FCR_CLEAR_RX:
            self._clear_rx()
        if value & FCR_CLEAR_TX:
            self.thre_pending = True
        self.fcr = value & 0xC9
        self._update()
        self._expect()

    def _read_lcr(self) -> int:
        return self.lcr

    def _write_lcr(self, value: int) -> None:
        self.lcr = value

    def _read_mcr(self) -> int:
        return self.mcr

    def _write_mcr(self, value: int) -> None:
        self.mcr = value & 0x1F
        self._expect()

    def _read_lsr(self) -> int:
        value = self.lsr
        if value & LSR_ERRORS:
            self.lsr &= ~LSR_ERRORS
            self._update()
        return value

    def _read_msr(self) -> int:
        if self.mcr & MCR_LOOP:
            mcr = self.mcr  # RTS to CTS, DTR to DSR, OUT1 to RI, OUT2 to DCD
            return (mcr & MCR_RTS) << 3 | (mcr & MCR_DTR) << 5 | (mcr & (MCR_OUT1 | MCR_OUT2)) << 4
        value = self.msr
        if value & MSR_DELTAS:
            self.msr &= ~MSR_DELTAS
            self._update()
        return value

    def _read_scr(self) -> int:
        return self.scr

    def _write_scr(self, value: int) -> None:
        self.scr = value

    def _ignore(self, value: int) -> None:
        """LSR and MSR are read-only."""

    # --- state ---

    def reset(self) -> None:
        """Go back to power-on; bytes the peer has sent but that have not arrived still will."""
        self._clear_rx()
        self._power_on()
        self._update()
        self._expect()

    def save(self) -> State:
        """Give registers, FIFO, waiting input and coming events."""
        state: State = {name: getattr(self, name) for name in _FIELDS}
        state["fifo"] = list(self._fifo)
        state["waiting"] = list(self._waiting)
        state["arrival"] = self._arrival.save() if self._arrival is not None else None
        state["timeout"] = self._timeout.save() if self._timeout is not None else None
        return state

    def load(self, state: State) -> None:
        """Take over registers, FIFO, waiting input and coming events."""
        for event in (self._arrival, self._timeout):
            if event is not None:
                event.cancel()
        for name in _FIELDS:
            setattr(self, name, state[name])
        self._fifo = deque(state["fifo"])
        self._waiting = deque(state["waiting"])
        arrival, timeout = state["arrival"], state["timeout"]
        self._arrival = None if arrival is None else self._clock.restore(arrival, self._arrive)
        self._timeout = None if timeout is None else self._clock.restore(timeout, self._time_out)
        self._line = self._cause() != IIR_NONE

    def stats(self) -> dict[str, int]:
        """Count bytes sent and received and interrupt requests."""
        return {"tx_bytes": self._sent, "rx_bytes": self._received, "interrupts": self._interrupts}


_READERS: tuple[Callable[[Uart], int], ...] = (
    Uart._read_rbr, Uart._read_ier, Uart._read_iir, Uart._read_lcr,
    Uart._read_mcr, Uart._read_lsr, Uart._read_msr, Uart._read_scr,
)  # fmt: skip
_WRITERS: tuple[Callable[[Uart, int], None], ...] = (
    Uart._write_thr, Uart._write_ier, Uart._write_fcr, Uart._write_lcr,
    Uart._write_mcr, Uart._ignore, Uart._ignore, Uart._write_scr,
)  # fmt: skip


def com1(irq: IrqLine, clock: Clock, on_transmit: Callable[[int], None]) -> Uart:
    """The first serial port: 3F8h; wire ``irq`` to line 4."""
    return Uart("com1", 0x3F8, irq, clock, on_transmit)


def com2(irq: IrqLine, clock: Clock, on_transmit: Callable[[int], None]) -> Uart:
    """The second serial port: 2F8h; wire ``irq`` to line 3."""
    return Uart("com2", 0x2F8, irq, clock, on_transmit)
