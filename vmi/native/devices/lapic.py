# SPDX-License-Identifier: GPL-2.0-only
"""The processor's own interrupt controller: a local APIC as the P6 family and its successors have it.

It holds 256 interrupt vectors by priority, and gives them out one by one: from the I/O APIC, from its own
timer, from its own processor and from others. The 8259A pair hangs on its input LINT0. Registers follow
Intel's Software Developer's Manual, volume 3, chapter "APIC"; its choices for a model (what reserved bits
read, how the timer reloads) are QEMU's, because systems are tried out there.

What it sends goes to the bus between all of them, :mod:`vmi.native.devices.apic_bus`, which is there for a
single processor's too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vmi.native.bus import State
from vmi.native.clock import Clock
from vmi.native.devices.lapic_timer import LapicTimer
from vmi.native.stamped import Stamped

LAPIC_SPAN = range(0xFEE00000, 0xFEE01000)
VERSION = 0x00050014  # integrated, six entries in the local vector table

BASE_BSP, BASE_ENABLE = 1 << 8, 1 << 11  # bits of the APIC base register (MSR 1Bh)
_BASE_ADDRESS = 0xFFFFF000

# Registers by number: offset / 16.
ID, VERSION_REGISTER, TPR, APR, PPR, EOI, LDR, DFR, SVR = 0x02, 0x03, 0x08, 0x09, 0x0A, 0x0B, 0x0D, 0x0E, 0x0F
ISR, TMR, IRR, ESR, ICR_LOW, ICR_HIGH = 0x10, 0x18, 0x20, 0x28, 0x30, 0x31
LVT_TIMER, LVT_THERMAL, LVT_PERF, LVT_LINT0, LVT_LINT1, LVT_ERROR = range(0x32, 0x38)
INITIAL_COUNT, CURRENT_COUNT, DIVIDE = 0x38, 0x39, 0x3E

FIXED, LOWEST_PRIORITY, SMI, NMI, INIT, STARTUP, EXTINT = 0, 1, 2, 4, 5, 6, 7  # delivery modes
MASKED, PERIODIC, LEVEL = 1 << 16, 1 << 17, 1 << 15  # in a local vector table entry; LEVEL in the ICR too
_READ_ONLY = 0x5000  # delivery status and remote IRR: deliveries take no time, so they are never set
SVR_ENABLE = 0x100
_FLAT = 0xF  # the destination format that is not clusters
_BROADCAST = 0xFF
SEND_ILLEGAL, RECEIVE_ILLEGAL, ILLEGAL_REGISTER = 0x20, 0x40, 0x80  # error status bits
_FIRST_LEGAL = 16  # vectors below belong to exceptions

_FIELDS = (
    "apic_base", "identity", "tpr", "ldr", "dfr", "svr", "isr", "tmr", "irr", "esr", "errors", "icr_low",
    "icr_high", "lint0", "external_edge",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Message:
    """An interrupt message: to an APIC ID, or if ``logical`` to those whose LDR matches."""

    destination: int
    logical: bool
    mode: int
    vector: int
    level: bool

    def __repr__(self) -> str:
        to = f"{'set' if self.logical else 'id'} {self.destination:#x}"
        return f"Message({self.vector:#x} to {to}, mode {self.mode}{', level' if self.level else ''})"


class Lapic(Stamped):
    """The local APIC of one processor, at ``LAPIC_SPAN``.

    ``on_change`` is called when ``pending`` may have become true, ``on_nmi`` for each NMI, ``on_eoi``
    with the vector when a level-triggered interrupt ends (for the I/O APIC), and ``external`` to run an
    acknowledge cycle of the 8259A pair. ``on_init`` is called for an INIT message, ``on_startup`` with the
    vector for a start-up message. ``on_send`` takes the messages of the processor: this APIC, the message,
    and the interrupt command register's lower half.

    :param identity: the APIC ID after reset; the processor with 0 is the boot processor.
    """

    def __init__(self, clock: Clock, identity: int = 0) -> None:
        self.name = f"lapic{identity}" if identity else "lapic"
        self.on_send: Callable[[Lapic, Message, int], None] | None = None
        self.on_init: Callable[[], None] | None = None
        self.on_startup: Callable[[int], None] | None = None
        self.on_change: Callable[[], None] | None = None
        self.on_nmi: Callable[[], None] | None = None
        self.on_eoi: Callable[[int], None] | None = None
        self.external: Callable[[], int] | None = None
        self.timer = LapicTimer(clock, lambda: self._take_local(LVT_TIMER))
        self._reset_identity = identity
        self._pending = False
        self._delivered = self._external = self._spurious = self._nmis = 0
        self.lint0 = False  # the level of the input LINT0; the wire survives a reset
        self._power_on()

    def _power_on(self) -> None:
        self.apic_base = LAPIC_SPAN.start | (BASE_BSP if self.boots else 0) | BASE_ENABLE
        self._registers_at_reset()
        self.identity = self._reset_identity

    def _registers_at_reset(self) -> None:
        """The registers that an INIT resets too: all but the APIC's base and its ID."""
        self.tpr = 0
        self.ldr = 0
        self.dfr = _FLAT
        self.svr = 0xFF
        self.isr = self.tmr = self.irr = 0  # bit n belongs to vector n
        self.esr = 0
        self.errors = 0  # seen since ESR was last written
        self.icr_low = self.icr_high = 0
        self.lvt = [MASKED] * 6
        if self.boots:  # open, so that the 8259A pair works for software that knows no APIC
            self.lvt[LVT_LINT0 - LVT_TIMER] = EXTINT << 8
        self.external_edge = False  # an ExtINT message came that has not been acknowledged

    @property
    def boots(self) -> bool:
        """Its processor is the boot processor."""
        return not self._reset_identity

    def virtual_wire(self) -> None:
        """Go to the state firmware leaves: enabled, the 8259A pair on LINT0, NMI on LINT1."""
        self._write_svr(0x1FF)
        self.lvt[LVT_LINT0 - LVT_TIMER] = LEVEL | EXTINT << 8
        self.lvt[LVT_LINT1 - LVT_TIMER] = LEVEL | NMI << 8
        self.icr_low = 0xC4610  # its last act was a start-up message to all other processors
        self._update()

    # --- the APIC base register ---

    @property
    def enabled(self) -> bool:
        """Whether there is an APIC at all, as CPUID has to tell it too."""
        return bool(self.apic_base & BASE_ENABLE)

    def set_apic_base(self, value: int) -> None:
        """Write MSR 1Bh. An APIC that was switched off stays so until reset; it can't be moved."""
        self.apic_base = value & _BASE_ADDRESS | self.apic_base & (BASE_BSP | value & BASE_ENABLE)
        if not self.enabled:
            self._write_svr(self.svr & ~SVR_ENABLE)

    # --- requests ---

    def is_addressed(self, message: Message) -> bool:
        """The message's destination names this APIC, alone or among others."""
        destination = message.destination
        if not message.logical:
            return destination in (self.identity, _BROADCAST)
        if self.dfr == _FLAT:
            return bool(destination & self.ldr)
        return destination >> 4 == self.ldr >> 4 and bool(destination & self.ldr & 0xF)

    def take(self, message: Message) -> None:
        """Take a message that is for this APIC."""
        if message.mode == INIT:
            if self.on_init is not None:
                self.on_init()
        elif message.mode == STARTUP:
            if self.on_startup is not None:
                self.on_startup(message.vector)
        else:
            self._take(message.mode, message.vector, message.level)

    def _take(self, mode: int, vector: int, level: bool) -> None:
        if mode in (FIXED, LOWEST_PRIORITY):
            self._request(vector, level)
        elif mode == NMI:
            self._non_maskable()
        elif mode == EXTINT:
            self.external_edge = True
            self._update()

    def _request(self, vector: int, level: bool) -> None:
        if vector < _FIRST_LEGAL:
            self._error(RECEIVE_ILLEGAL)
            return
        bit = 1 << vector
        self.irr |= bit
        self.tmr = self.tmr | bit if level else self.tmr & ~bit
        self._update()

    def _non_maskable(self) -> None:
        self._nmis += 1
        if self.on_nmi is not None:
            self.on_nmi()

    def set_lint0(self, level: bool) -> None:
        """Drive LINT0, where the 8259A pair is."""
        if level == self.lint0:
            return
        self.lint0 = level
        entry = self.lvt[LVT_LINT0 - LVT_TIMER]
        if self.enabled and not entry & MASKED:
            mode = entry >> 8 & 7
            if mode == FIXED and not level and entry & LEVEL:
                self.irr &= ~(1 << (entry & 0xFF))
            elif mode != EXTINT and level:
                self._take_local(LVT_LINT0)
        self._update()

    def pulse_nmi(self) -> None:
        """Give a pulse on LINT1, where the board's NMI is; without an APIC it is the NMI pin."""
        if self.enabled:
            self._take_local(LVT_LINT1)
        else:
            self._non_maskable()

    def timer_alarm(self) -> None:
        """A timer that isn't this one's, but has its entry: vector and mask are those that hold now."""
        if self.enabled:
            self._take_local(LVT_TIMER)

    def _take_local(self, register: int) -> None:
        entry = self.lvt[register - LVT_TIMER]
        mode = entry >> 8 & 7
        if not entry & MASKED and mode in (FIXED, NMI):
            self._take(mode, entry & 0xFF, register == LVT_LINT0 and bool(entry & LEVEL))

    def _error(self, bit: int) -> None:
        if not self.errors & bit:
            self.errors |= bit
            self._take_local(LVT_ERROR)

    # --- the processor's side ---

    def pending(self) -> bool:
        """Tell whether the processor is asked to take an interrupt."""
        return self._pending

    def _external_wanted(self) -> bool:
        """The pair's INTR reaches the processor; no priority of the APIC holds it back."""
        if not self.enabled:
            return self.lint0
        entry = self.lvt[LVT_LINT0 - LVT_TIMER]
        return self.external_edge or (self.lint0 and not entry & MASKED and entry >> 8 & 7 == EXTINT)

    def _priority(self) -> int:
        """PPR: the task's priority, or the class of the interrupt in service if that is higher."""
        service = max(self.isr.bit_length() - 1, 0) & 0xF0
        return self.tpr if self.tpr & 0xF0 >= service else service

    def _deliverable(self) -> bool:
        """A vector's class (its upper half) is above the processor's."""
        if not (self.irr and self.svr & SVR_ENABLE and self.enabled):
            return False
        return self.irr.bit_length() - 1 & 0xF0 > self._priority() & 0xF0

    def _update(self) -> None:
        before = self._pending
        self._pending = self._external_wanted() or self._deliverable()
        if self._pending and not before and self.on_change is not None:
            self.on_change()

    def acknowledge(self) -> int:
        """Give the vector the processor takes, now in service; the spurious one if there is none.

        Interrupts of the 8259A pair go first, and are not in service here.
        """
        if self._external_wanted():
            self._external += 1
            self.external_edge = False
            vector = self.svr & 0xFF if self.external is None else self.external()
        elif self._deliverable():
            self._delivered += 1
            vector = self.irr.bit_length() - 1
            self.irr &= ~(1 << vector)
            self.isr |= 1 << vector
        else:
            self._spurious += 1
            vector = self.svr & 0xFF
        self._update()
        return vector

    def _end_of_interrupt(self) -> None:
        if not self.isr:
            return
        vector = self.isr.bit_length() - 1
        bit = 1 << vector
        self.isr &= ~bit
        if self.tmr & bit and self.on_eoi is not None:
            self.on_eoi(vector)
        self._update()

    # --- messages of the processor ---

    def _send(self) -> None:
        """Send what the ICR says."""
        low = self.icr_low
        mode, vector = low >> 8 & 7, low & 0xFF
        if mode in (FIXED, LOWEST_PRIORITY) and vector < _FIRST_LEGAL:
            self._error(SEND_ILLEGAL)
        elif mode != EXTINT and self.on_send is not None:  # only an I/O APIC can say EXTINT
            message = Message(self.icr_high >> 24, bool(low & 0x800), mode, vector, bool(low & LEVEL))
            self.on_send(self, message, low)

    # --- registers ---

    def memory_read(self, address: int, size: int) -> int:
        """Read a register: 4 bytes within its 16; smaller reads give 0, 8 bytes are two reads."""
        if size == 4:
            return self._read(address >> 4 & 0xFF)
        if size < 4:
            return 0
        return self._read(address >> 4 & 0xFF) | self._read(address + 4 >> 4 & 0xFF) << 32

    def _read(self, register: int) -> int:
        reader = _READERS.get(register)
        if reader is not None:
            return reader(self)
        if LVT_TIMER <= register <= LVT_ERROR:
            return self.lvt[register - LVT_TIMER]
        if ISR <= register < ESR:
            bits = (self.isr, self.tmr, self.irr)[register - ISR >> 3]
            return bits >> 32 * (register & 7) & 0xFFFFFFFF
        self._error(ILLEGAL_REGISTER)
        return 0

    def memory_write(self, address: int, size: int, value: int) -> None:
        """Write a register: 4 bytes within its 16; smaller writes are lost, 8 bytes are two writes."""
        if size < 4:
            return
        self._write(address >> 4 & 0xFF, value & 0xFFFFFFFF)
        if size > 4:
            self._write(address + 4 >> 4 & 0xFF, value >> 32 & 0xFFFFFFFF)

    def _write(self, register: int, value: int) -> None:
        writer = _WRITERS.get(register)
        if writer is not None:
            writer(self, value)
        elif LVT_TIMER <= register <= LVT_ERROR:
            self._write_lvt(register, value)
        elif not (register in _READ_ONLY_REGISTERS or ISR <= register < ESR):
            self._error(ILLEGAL_REGISTER)

    def _write_id(self, value: int) -> None:
        self.identity = value >> 24

    def _write_tpr(self, value: int) -> None:
        self.tpr = value & 0xFF
        self._update()

    def _write_eoi(self, value: int) -> None:
        self._end_of_interrupt()

    def _write_ldr(self, value: int) -> None:
        self.ldr = value >> 24

    def _write_dfr(self, value: int) -> None:
        self.dfr = value >> 28

    def _write_svr(self, value: int) -> None:
        self.svr = value & 0x1FF
        if not value & SVR_ENABLE:
            for register in range(LVT_TIMER, LVT_ERROR + 1):
                self._write_lvt(register, self.lvt[register - LVT_TIMER])
        self._update()

    def _write_esr(self, value: int) -> None:
        self.esr, self.errors = self.errors, 0

    def _write_icr_low(self, value: int) -> None:
        self.icr_low = value & ~0x1000  # the delivery status
        self._send()

    def _write_icr_high(self, value: int) -> None:
        self.icr_high = value

    def _write_lvt(self, register: int, value: int) -> None:
        if not self.svr & SVR_ENABLE:
            value |= MASKED  # switched off by software: nothing local comes through
        self.lvt[register - LVT_TIMER] = value & ~_READ_ONLY
        if register == LVT_TIMER:
            self.timer.set_mode(masked=bool(value & MASKED), periodic=bool(value & PERIODIC))
        elif register == LVT_LINT0:
            self._update()

    # --- state ---

    def reset(self) -> None:
        """Return to the state after the RESET line; LINT0 stays as it is driven."""
        self._power_on()
        self.timer.reset()
        self._update()

    def init(self) -> None:
        """What an INIT message does to the APIC; its base register and its ID stay."""
        self._registers_at_reset()
        self.timer.reset()
        self._update()

    def save(self) -> State:
        """Give all registers and the timer."""
        registers = {name: getattr(self, name) for name in _FIELDS}
        return {**registers, "lvt": list(self.lvt), "timer": self.timer.save()}

    def load(self, state: State) -> None:
        """Take over all registers and the timer."""
        for name in _FIELDS:
            setattr(self, name, state[name])
        self.lvt = list(state["lvt"])
        self.timer.load(state["timer"])
        self._pending = self._external_wanted() or self._deliverable()

    def stats(self) -> dict[str, int]:
        """Count interrupts given to the processor by source, NMIs and timer expiries."""
        return {
            "delivered": self._delivered,
            "external": self._external,
            "spurious": self._spurious,
            "nmis": self._nmis,
            "timer_ticks": self.timer.ticks,
        }

    def __repr__(self) -> str:
        state = "on" if self.svr & SVR_ENABLE else "off"
        return f"<Lapic {self.identity:#x} {state}, priority {self._priority():#x}>"


_READERS: dict[int, Callable[[Lapic], int]] = {
    ID: lambda lapic: lapic.identity << 24,
    VERSION_REGISTER: lambda lapic: VERSION,
    TPR: lambda lapic: lapic.tpr,
    APR: lambda lapic: 0,
    PPR: Lapic._priority,
    EOI: lambda lapic: 0,
    LDR: lambda lapic: lapic.ldr << 24,
    DFR: lambda lapic: lapic.dfr << 28 | 0x0FFFFFFF,
    SVR: lambda lapic: lapic.svr,
    ESR: lambda lapic: lapic.esr,
    ICR_LOW: lambda lapic: lapic.icr_low,
    ICR_HIGH: lambda lapic: lapic.icr_high,
    INITIAL_COUNT: lambda lapic: lapic.timer.initial_count,
    CURRENT_COUNT: lambda lapic: lapic.timer.current_count(),
    DIVIDE: lambda lapic: lapic.timer.divide,
}
_WRITERS: dict[int, Callable[[Lapic, int], None]] = {
    ID: Lapic._write_id,
    TPR: Lapic._write_tpr,
    EOI: Lapic._write_eoi,
    LDR: Lapic._write_ldr,
    DFR: Lapic._write_dfr,
    SVR: Lapic._write_svr,
    ESR: Lapic._write_esr,
    ICR_LOW: Lapic._write_icr_low,
    ICR_HIGH: Lapic._write_icr_high,
    INITIAL_COUNT: lambda lapic, value: lapic.timer.load_count(value),
    DIVIDE: lambda lapic, value: lapic.timer.set_divide(value),
}
_READ_ONLY_REGISTERS = frozenset((VERSION_REGISTER, APR, PPR, CURRENT_COUNT))
