# SPDX-License-Identifier: GPL-2.0-only
"""Several processors on the one CPU that the emulator has: they take turns, each with a clock of its own.

Each processor's clock is its instructions and what it has waited. The one that is behind all others goes on,
until it is a quantum ahead of the next one, waits for an interrupt, sends a message to another processor, or
spins: so in the guest's time they run side by side, and the same input gives the same run, turn by turn.

A processor that halts is left out until an interrupt comes for it, and its clock then is that of who sent
it. One that says PAUSE over and over waits for another one; nothing that it waits for can happen before the
others have run, so its clock goes up to theirs at once. If the others are halted, it waits for time to pass,
and each PAUSE takes as long as on processors that are made for spinning. Time as a guest sees it (time stamp
counters, timers, devices) never runs backwards from one processor to the next: it is the latest that anybody
has seen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmi.native import cpu_state, start
from vmi.native.bus import State
from vmi.native.devices.lapic import LAPIC_SPAN, Lapic
from vmi.native.msr import MsrFile
from vmi.x86 import U32

if TYPE_CHECKING:
    from vmi.native.machine import Machine

MOST_CPUS = 8  # as many as logical APIC identities of the flat kind have bits
QUANTUM_NS = 200_000  # how far a processor gets ahead of the others
PATIENCE = 16  # PAUSEs in a row that may just be a short delay
PAUSE_NS = 1_000  # what each one takes from then on where no other processor is ready: 100 cycles
_ARMED = 0xFF  # bits of DR7 that enable breakpoints
_FOR_EVER = 1 << 62  # ns


class Processor:
    """What belongs to one processor while another one has its turn.

    :ivar halted: it waits for an interrupt; :ivar accepts: and would take one.
    :ivar waits: it waits for a start-up message, and does nothing before.
    :ivar vector: the page that a start-up message told it to begin at, None once it has begun.
    :ivar at: its clock, ns.
    """

    def __init__(self, number: int, lapic: Lapic, msr: MsrFile, registers: bytes) -> None:
        self.number = number
        self.lapic = lapic
        self.msr = msr
        self.registers = registers
        self.dr7 = 0  # with its breakpoints, which the registers here are without
        self.halted = number > 0
        self.accepts = False
        self.waits = number > 0
        self.vector: int | None = None
        self.at = 0
        self.last_turn = 0

    def __repr__(self) -> str:
        state = "waits for its start" if self.waits else "halted" if self.halted else "active"
        return f"<Processor {self.number} {state} at {self.at} ns>"

    @property
    def ready(self) -> bool:
        """There is something for it to do."""
        return not self.waits and (not self.halted or (self.accepts and self.lapic.pending()))


class Turns:
    """Who runs on a machine of several processors. The machine's own state is that of :attr:`current`."""

    def __init__(self, machine: Machine, msrs: list[MsrFile]) -> None:
        self._machine = machine
        self._cpu = machine.cpu
        self._power_on = machine.cpu.freeze()
        lapics = machine.board.lapics
        self.processors = tuple(
            Processor(number, lapic, msr, self._power_on)
            for number, (lapic, msr) in enumerate(zip(lapics, msrs, strict=True))
        )
        self.current = self.processors[0]
        self._turns = 0
        self._ends = _FOR_EVER  # when the turn is over, by the clock of who has it
        self._over = True  # it is, for another reason
        self._spins = False
        self._pauses = 0
        self._seen = 0  # the latest time that anybody has seen
        self._cpu.on_pause = self._paused
        self._cpu.tell_of_pauses()
        machine.board.apic_bus.on_sent = self.end_turn
        for processor in self.processors:
            self._connect(processor)

    def __repr__(self) -> str:
        return f"<Turns of {len(self.processors)}, {self.current!r} has its turn>"

    def _connect(self, processor: Processor) -> None:
        lapic = processor.lapic
        lapic.on_change = lambda: self._interrupted(processor)
        lapic.on_init = lambda: self._init(processor)
        lapic.on_startup = lambda vector: self._start(processor, vector)

    # -- time -------------------------------------------------------------------------------

    def observe(self) -> int:
        """The time, ns, as devices and the guest may see it."""
        now = max(self._seen, self._machine.own_time(), self._machine.clock.fired)
        self._seen = now
        return now

    # -- what ends a turn -------------------------------------------------------------------

    def end_turn(self) -> None:
        """Look who is next behind the current instruction."""
        self._over = True
        self._cpu.stop_soon()

    def _interrupted(self, processor: Processor) -> None:
        if processor is self.current:
            self._cpu.stop_soon()
        elif processor.halted:
            self._wake(processor)

    def _wake(self, processor: Processor) -> None:
        processor.at = max(processor.at, self._machine.own_time())
        self.end_turn()

    def _init(self, processor: Processor) -> None:
        if not processor.number:
            self._machine.request_reset("an INIT message to the boot processor")
            return
        processor.lapic.init()
        processor.waits = True
        processor.vector = None
        processor.registers, processor.dr7 = self._power_on, 0  # its own ones, if it runs, go when it leaves
        self.end_turn()

    def _start(self, processor: Processor, vector: int) -> None:
        if processor.waits:
            processor.waits = processor.halted = False
            processor.vector = vector
            self._wake(processor)

    def _paused(self) -> None:
        self._pauses += 1
        if self._pauses < PATIENCE:
            return
        if self._ends < _FOR_EVER:
            self._spins = True
            self.end_turn()
        else:
            self._machine.spend(PAUSE_NS)

    # -- whose turn it is -------------------------------------------------------------------

    def settle(self) -> None:
        """Go to the state that firmware leaves: the others were started, and have halted for good."""
        for processor in self.processors[1:]:
            processor.waits = False
            processor.lapic.virtual_wire()
            processor.msr.settle()

    def advance(self) -> None:
        """Let the processor run on the CPU whose turn it is; none if all wait."""
        machine, current = self._machine, self.current
        now = machine.own_time()
        self._pauses = 0
        if not (self._over or machine.halted) and now < self._ends:
            return
        current.at, current.halted, current.accepts = now, machine.halted, machine.accepts_interrupts()
        ready = [processor for processor in self.processors if processor.ready]
        if self._spins:
            self._spin(ready)
        self._over = self._spins = False
        self._ends = _FOR_EVER
        if not ready:
            machine.halted = True
            return
        chosen = min(ready, key=lambda processor: (processor.at, processor.last_turn))
        if len(ready) > 1:
            self._ends = min(other.at for other in ready if other is not chosen) + QUANTUM_NS
        self._turns += 1
        chosen.last_turn = self._turns
        if chosen is not current:
            self._switch(chosen)
        machine.set_own_time(chosen.at)

    def _spin(self, ready: list[Processor]) -> None:
        """Bring the clock of who spins up to the others', but not past what happens next."""
        current = self.current
        others = [processor.at for processor in ready if processor is not current]
        if others:
            deadline = self._machine.clock.next_deadline()
            goal = min(others) if deadline is None else min(*others, deadline)
            current.at = max(current.at, goal)

    def _switch(self, to: Processor) -> None:
        machine, cpu, current = self._machine, self._cpu, self.current
        if machine.monitor is not None:
            machine.monitor.leave_processor()
        dr7, registers = self._leave()
        if not current.waits:
            current.dr7, current.registers = dr7, registers
        machine.exits["processor switch"] += 1
        self.select(to)
        cpu.thaw(to.registers)
        if to.dr7 & _ARMED:
            cpu.load_dr(7, to.dr7)
        cpu.set_a20(cpu.a20_mask == U32)  # the gate is the board's, not the processor's
        cpu.flush_tlb()
        cpu.control_changed()
        machine.halted = to.halted
        if machine.monitor is not None:
            machine.monitor.enter_processor(to.number)
        if to.vector is not None:
            self._begin(to, to.vector)

    def _begin(self, processor: Processor, vector: int) -> None:
        """Begin as the start-up message says, or as a monitor says instead."""
        processor.vector = None
        monitor, log = self._machine.monitor, self._machine.log
        if log is not None:
            log.cpu(f"processor {processor.number} begins at a start-up message for page {vector:02x}")
        if monitor is None or not monitor.begin_processor():
            start.at_startup(self._cpu, vector, self._machine.model.signature)

    def select(self, to: Processor) -> None:
        """Connect the machine with what is next to a processor: its APIC and its special registers."""
        machine = self._machine
        self.current = to
        machine.msr = to.msr
        machine.board.memory.map(LAPIC_SPAN, to.lapic)
        machine.interrupts.select(to.lapic)

    def budget(self, most: int, ns_each: int) -> int:
        """How many instructions are left of the turn, or of what a monitor allows: 1 to ``most``."""
        monitor = self._machine.monitor
        if monitor is not None:
            allowed = monitor.most_instructions()
            most = most if allowed is None else allowed
        return max(1, min(most, -(-(self._ends - self._machine.own_time()) // ns_each)))

    def someone_ready(self) -> bool:
        """There is a processor with something to do."""
        return any(processor.ready for processor in self.processors)

    def someone_accepts(self) -> bool:
        """There is a processor that an interrupt would wake."""
        return any(processor.accepts and not processor.waits for processor in self.processors)

    # -- state ------------------------------------------------------------------------------

    def save(self) -> State:
        """Everything but the registers of who has the turn, and what the APICs save themselves."""
        current = self.current
        return {
            "current": current.number,
            "turns": self._turns,
            "ends": self._ends,
            "over": self._over,
            "spins": self._spins,
            "seen": self.observe(),
            "processors": [
                {
                    "halted": processor.halted,
                    "accepts": processor.accepts,
                    "waits": processor.waits,
                    "vector": processor.vector,
                    "at": processor.at,
                    "last_turn": processor.last_turn,
                    "msr": processor.msr.save(),
                    "cpu": None if processor is current else self._registers(processor),
                }
                for processor in self.processors
            ],
        }

    def load(self, state: State) -> None:
        """Take over what :meth:`save` gave, on a machine of as many processors."""
        self._turns, self._ends = state["turns"], state["ends"]
        self._over, self._spins = state["over"], state["spins"]
        self._seen = state["seen"]
        for processor, saved in zip(self.processors, state["processors"], strict=True):
            processor.halted, processor.accepts = saved["halted"], saved["accepts"]
            processor.waits, processor.vector = saved["waits"], saved["vector"]
            processor.at, processor.last_turn = saved["at"], saved["last_turn"]
            processor.msr.load(saved["msr"])
            if saved["cpu"] is not None:
                cpu_state.load(self._cpu, saved["cpu"])
                processor.dr7, processor.registers = self._leave()
        self.select(self.processors[state["current"]])

    def _leave(self) -> tuple[int, bytes]:
        """DR7 and the other registers of who is on the CPU; its breakpoints are gone from there."""
        dr7 = self._cpu.dr(7)
        if dr7 & _ARMED:
            self._cpu.load_dr(7, 0)
        return dr7, self._cpu.freeze()

    def _registers(self, processor: Processor) -> State:
        """The registers of one who has not the turn."""
        cpu = self._cpu
        dr7, registers = self._leave()
        cpu.thaw(processor.registers)
        state = {**cpu_state.save(cpu), "dr7": processor.dr7}
        cpu.thaw(registers)
        if dr7 & _ARMED:
            cpu.load_dr(7, dr7)
        return state
