# SPDX-License-Identifier: GPL-2.0-only
"""A domain: one guest that a hypervisor has taken over.

Until the guest calls VMI_Init the machine is left alone. From then on every event passes through
here: a call-out is served, a refused privileged instruction is emulated, and everything else goes to
the guest's own handlers, entered on ring 1 the way they would be entered on ring 0.
"""

from __future__ import annotations

from collections.abc import Iterable

from iced_x86 import Instruction

from vmi import abi
from vmi.hypervisor import calls
from vmi.hypervisor.beginning import Beginning
from vmi.hypervisor.breakpoints import Breakpoints, silent_sites
from vmi.hypervisor.callsite import CALL_LENGTH, CallSites, reaches_out
from vmi.hypervisor.emulate import Emulator
from vmi.hypervisor.gates import GATE_LENGTH, Gates
from vmi.hypervisor.mmu import DEFAULT, create
from vmi.hypervisor.operands import MNEMONICS, M, undefined
from vmi.hypervisor.passing import ROM_FAULTS, Passing
from vmi.hypervisor.personality import Gate, Personality
from vmi.hypervisor.privilege import KERNEL_RING, USER_RING, CompressedPrivilege
from vmi.hypervisor.processors import Processors
from vmi.hypervisor.share import Share
from vmi.hypervisor.tasks import finish_switch
from vmi.hypervisor.vcpu import VirtualCpu
from vmi.native.interrupts import Delivery, Event, Origin, TripleFault
from vmi.native.machine import Machine, Outcome
from vmi.native.stamped import Stamped
from vmi.x86 import IF_BIT, IOPL_MASK, Cr0, Eflags, GuestFault, Seg, Vector

_SYSEXIT_FRAME = 24  # EIP, CS, EFLAGS, ESP and SS, and EAX, which is loaded already
_PRESENT = 1 << 15
_DR6_BS = 1 << 14
_DR6_HITS = 0xF
_DR7_ENABLED = 0xFF
# Found quickly: an enumeration's own members are looked up by a function.
_CS = Seg.CS
_GP, _BP, _DB, _TS = Vector.GP, Vector.BP, Vector.DB, Vector.TS
_SOFTWARE, _EXCEPTION = Origin.SOFTWARE, Origin.EXCEPTION
_PRIVILEGED, _PLANTED = "privileged instruction", "breakpoint"


class Domain(Stamped, Beginning):
    """The hypervisor's side of one machine; it becomes the machine's monitor.

    ``taken`` says whether the guest has been taken over, ``active`` whether the processor that runs now is
    de-privileged: one that has just been started may not be yet. ``calls`` counts call-outs by VMI call, the
    machine's ``exits`` count everything by reason.
    """

    lets_pass = True  # it has told the CPU which events go straight to the guest

    def __init__(self, machine: Machine, rom: Personality, mmu: str = DEFAULT) -> None:
        self.machine = machine
        self.rom = rom
        self.mmu = create(mmu, machine, rom, rom.virtual_top)
        self.privilege = CompressedPrivilege(machine.cpu, rom, self.mmu)
        self.vcpu = VirtualCpu(machine, self.privilege, self.mmu)
        self.breakpoints = Breakpoints(machine.cpu, self.vcpu.linear)
        self.taken = self.active = False
        self.calls: dict[str, int] = {}
        self.emulator = Emulator(self.vcpu)
        self._sites = CallSites(self.vcpu, self.emulator.transfers, rom)
        self._delivery = Delivery(self.privilege)
        self._native = machine.privilege, machine.cpu.enter_kernel
        self.processors = Processors(machine, rom, self.vcpu, self._activate)
        self._share: Share | None = None
        self.vcpu.on_tsc = self.publish
        self._context = calls.CallContext(self.vcpu, self.emulator.transfers, self.processors)
        self._handlers = calls.load_all()
        machine.monitor = self
        machine.cpu.on_gate(self._called)
        self._passing = Passing(machine.cpu.straight, rom, self.mmu, self._count)
        Gates(machine, rom, self.privilege, self._call)
        if machine.turns is not None:
            machine.cpu.on_control = self.control_changed

    def share_processors(self, percent: int) -> None:
        """Leave the guest so much of each processor, 1 to 100, from now on."""
        self._share = Share(self.machine, self.processors, percent)

    def __repr__(self) -> str:
        return f"<Domain {self.rom.name} {'active' if self.active else 'waiting for VMI_Init'}>"

    # -- monitor ----------------------------------------------------------------------------

    def event(self, event: Event) -> bool:
        """See :class:`vmi.native.monitor.Monitor`."""
        if not self.active:
            return self._native_event(event)
        return not self._stay_compressed() or self._handle(event)

    def call_out(self, vector: int) -> bool:
        """See :class:`vmi.native.monitor.Monitor`: from a call's gate, and breakpoints."""
        if not self.active or self.machine.cpu.cpl != KERNEL_RING:
            return False
        if vector == _BP:
            return self._breakpoint()
        if vector != self.rom.interrupt:
            return False
        try:
            gate = self.rom.gate(self._physical_eip(-GATE_LENGTH))
        except GuestFault:
            return False
        if not isinstance(gate, abi.Call):
            return False
        self._call(gate)
        return True

    def accepts_interrupts(self) -> bool:
        """See :class:`vmi.native.monitor.Monitor`."""
        cpu = self.machine.cpu
        if cpu.irq_shadow:
            return False
        if not self.active:
            return bool(cpu.system_flags & IF_BIT)
        if not self._stay_compressed():
            return False
        if cpu.cpl == USER_RING:
            return True
        return self.rom.get() and (self.machine.halted or not self._in_rom())

    def retry_after(self) -> int | None:
        """See :class:`vmi.native.monitor.Monitor`: ROM code and a shadow last a few instructions."""
        if not self.active:
            return 0
        cpu = self.machine.cpu
        return 1 if cpu.irq_shadow or (cpu.cpl == KERNEL_RING and self._in_rom()) else None

    def deliver(self, event: Event) -> None:
        """Deliver an event to the guest's own handler, on the ring the guest runs on now."""
        if self._share is not None and event.origin is Origin.EXTERNAL:
            self._share.woken()
        delivery = self._delivery if self.active else self.machine.delivery
        try:
            delivery.deliver(event)
        except TripleFault:
            self.machine.triple_fault()

    def _deliver_waiting(self) -> None:
        interrupts = self.machine.interrupts
        if interrupts.pending() and self.privilege.interrupts_on():
            self.machine.take_interrupt()
        self.rom.set_pending(interrupts.pending())  # or the handler's calls would come out for nothing

    # -- taking over ------------------------------------------------------------------------

    def _native_event(self, event: Event) -> bool:
        """An event of a processor that is not de-privileged."""
        gate = event.origin is Origin.SOFTWARE and event.vector == self.rom.interrupt
        if not self.taken:
            return gate and self._init()
        if not self.machine.cpu.cr(0) & Cr0.PE:
            return False
        if gate:
            self.compress()
            return self._handle(event)
        return event.vector == Vector.GP and event.origin is Origin.EXCEPTION and self.enter_raised()

    def _init(self) -> bool:
        cpu = self.machine.cpu
        try:
            gate = self._physical_eip(-GATE_LENGTH)
        except GuestFault:
            return False
        if cpu.cpl or not self.rom.adopt(gate):
            return False
        self._count("VMI_Init")
        if not cpu.cr(0) & Cr0.PE:
            cpu.eax = 1  # there are no rings to compress, and the answer is no
            return True
        silent = self._site_table(cpu.ebx)
        if silent is None:
            self.privilege.iopl_from_frames = False
            self.privilege.shown_ring = KERNEL_RING
        self.start(silent or ())
        cpu.eax = 0
        return True

    def _site_table(self, address: int) -> list[int] | None:
        """What the table says that EBX may point at; None for a guest that was not patched."""
        try:
            return silent_sites(self.machine.memory, self.vcpu.linear.physical(address))
        except GuestFault:
            return None

    def start(self, silent: Iterable[int]) -> None:
        """De-privilege the guest; breakpoints go to the guest-physical addresses of silent instructions."""
        self.taken = True
        self.compress()
        self.breakpoints.plant(silent)

    def compress(self) -> None:
        """De-privilege the processor that runs."""
        self._activate(True)
        self.vcpu.deprivilege()
        self.mmu.start()
        self.privilege.restore_flags(self.machine.cpu.eflags)
        self.timer.publish()
        self.rom.set_pending(self.machine.interrupts.pending())

    def _activate(self, active: bool) -> None:
        """From now on the processor that runs is one that is de-privileged, or one that is not."""
        self.active = active
        native_privilege, native_entry = self._native
        self.machine.privilege = self.privilege if active else native_privilege
        self.machine.cpu.enter_kernel = self.privilege.enter_by_sysenter if active else native_entry
        self._passing.update(taken=self.taken, active=active)

    def _stay_compressed(self) -> bool:
        """Bring a guest back that got to the real ring 0, by a gate to a descriptor that nothing had raised.

        Nothing of the hypervisor is within its reach there; it only misses what is emulated. False if it
        has left protected mode, which ends the run, or if it was about to switch tasks, which is done now.
        """
        cpu = self.machine.cpu
        if cpu.cpl:
            return True
        if not cpu.cr(0) & Cr0.PE:
            self.vcpu.end_in_real_mode()
            return False
        if not cpu.segment(_CS).flags & _PRESENT:
            self._finish_task_switch()
            return False
        flags = cpu.eflags
        if not self.rom.get():
            flags &= ~IF_BIT
        self.vcpu.deprivilege()
        self.privilege.restore_flags(flags | self.privilege.iopl & IOPL_MASK)
        return True

    def _finish_task_switch(self) -> None:
        """The CPU has begun a task switch by itself, and may not load the code segment of the new task."""
        self._count_exit("task switch")
        try:
            finish_switch(self.privilege)
        except GuestFault as fault:
            self._deliver_fault(fault)

    # -- where the guest is -----------------------------------------------------------------

    def _physical_eip(self, offset: int = 0) -> int:
        return self.mmu.translate(self.machine.cpu.code_address(offset))

    def _in_rom(self) -> bool:
        try:
            return self.rom.holds_code(self._physical_eip())
        except GuestFault:
            return False

    def _code(self) -> bytes:
        cpu = self.machine.cpu
        return self.breakpoints.code(cpu.segment(_CS).base + cpu.eip)

    def instruction(self) -> Instruction:
        """The instruction at EIP; an invalid one if nothing is mapped there."""
        cpu = self.machine.cpu
        return self.breakpoints.instruction(cpu.code_address(), cpu.code_bits)

    # -- events -----------------------------------------------------------------------------

    def _handle(self, event: Event) -> bool:
        """Deal with an event of the hypervisor's own; False if it is the guest's."""
        if self.machine.cpu.cpl != KERNEL_RING:
            return self._handle_user(event)
        if event.origin is _SOFTWARE:
            if event.vector == self.rom.interrupt:
                return self._gate()
            return event.vector == _BP and self._breakpoint()
        if event.vector == _DB:
            return self._step_in_rom()
        if event.vector in ROM_FAULTS and self._in_rom() and self._fault_in_rom(event):
            return True
        return event.vector == _GP and self._refused()

    def _handle_user(self, event: Event) -> bool:
        if self.machine.cpu.cpl != USER_RING:
            return False
        if event.origin is _SOFTWARE:
            if event.vector == self.rom.interrupt:
                self._refuse("a call-out by user code")
            return event.vector == _BP and event.length == 1 and self._user_breakpoint()
        if event.vector == _GP:
            return self._user_flag_instruction()
        return event.vector == _TS and self._user_call_gate()

    # -- call-outs --------------------------------------------------------------------------

    def _refuse(self, what: str) -> None:
        """Name what the guest tried; it is then an event as any other."""
        if self.machine.log is not None:
            self.machine.log.refused(what)

    def _gate(self) -> bool:
        try:
            at = self._physical_eip(-GATE_LENGTH)
        except GuestFault:
            return False
        gate = self.rom.gate(at)
        if gate is None:
            self._refuse("a call-out from outside the ROM")
            return False
        return self._pass_gate(gate)

    def _called(self, number: int) -> bool:
        """As :meth:`_gate`, by the number of the gate."""
        gate = self._passing.gates[number]
        return gate is not None and self._pass_gate(gate)

    def _pass_gate(self, gate: abi.Call | Gate) -> bool:
        if gate is Gate.PENDING:
            self._count("pending interrupt")
            self._deliver_waiting()
        elif gate is Gate.INIT:
            self._count("VMI_Init")
            self.machine.cpu.eax = 1  # the machine is taken over already
        else:
            self._call(gate)
        return True

    def _call(self, call: abi.Call) -> None:
        name = call.name
        self.calls[name] = self.calls.get(name, 0) + 1
        self.machine.exits["VMI call"] += 1
        handler = self._handlers.get(call.number)
        if handler is None:
            self.machine.finish(
                Outcome.CALL_NOT_SERVED,
                f"the guest made the VMI call {call.name} (number {call.number}), "
                "which this hypervisor does not serve",
            )
            return
        stepped = bool(self.machine.cpu.system_flags & Eflags.TF)
        try:
            handler(self._context)
        except GuestFault as fault:
            self._report_at_site(fault, call.name)
            return
        if stepped and not call.returns:
            self._single_step()  # a call that returns steps by the ROM's RET

    def _report_at_site(self, fault: GuestFault, call: str) -> None:
        """A call faulted at its gate: the guest sees that at its own call instruction, or at the gate."""
        if not self._sites.leave():
            self.machine.cpu.eip -= GATE_LENGTH
        self._deliver_fault(fault, call)

    def _deliver_fault(self, fault: GuestFault, refused: str = "") -> None:
        """Let the guest see a fault; ``refused`` names what it asked for."""
        self.machine.count_fault(fault.vector)
        log = self.machine.log
        if log is not None:
            if refused:
                log.refused(refused, fault.vector, fault.error, fault.address)
            log.exception(fault.vector, fault.error, fault.address)
        self.deliver(Event(fault.vector, _EXCEPTION, fault.error, fault.address))

    def _single_step(self) -> None:
        cpu = self.machine.cpu
        cpu.set_dr(6, cpu.dr(6) & ~_DR6_HITS | _DR6_BS)
        self._deliver_fault(GuestFault(_DB))

    def _step_in_rom(self) -> bool:
        """A call is one step for a guest that single-steps, as the instruction would be."""
        cpu = self.machine.cpu
        breakpoint_hit = cpu.dr(6) & _DR6_HITS and cpu.dr(7) & _DR7_ENABLED
        return not breakpoint_hit and self._in_rom()

    def _fault_in_rom(self, event: Event) -> bool:
        """An instruction of the ROM was refused; False if that is reported as it is."""
        instruction = self.instruction()
        if instruction.mnemonic == M.IRETD:
            return self._iret_in_rom()
        if event.vector != Vector.PF or not reaches_out(instruction) or not self._sites.leave():
            return False
        self._deliver_fault(GuestFault(Vector.PF, event.error, event.address))
        return True

    def _iret_in_rom(self) -> bool:
        """The ROM's IRETD was refused: do as ring 0 would, or report the fault at the site, frame intact."""
        cpu, transfers = self.machine.cpu, self.emulator.transfers
        behind, raised = self.rom.undo_iret()
        if not behind:
            self._sysexit_in_rom()
            return True
        cpu.eip = behind - CALL_LENGTH
        try:
            shown = transfers.stack_address(4)  # the ROM has put ring 1 into the frame
            cs = self.vcpu.linear.u32(shown)
            self.vcpu.linear.put_u32(shown, cs & ~3 if raised else self.privilege.frame_selector(cs))
            transfers.iret(resume=behind, take_iopl=self.privilege.iopl_from_frames)
        except GuestFault as fault:
            self._deliver_fault(fault)
        return True

    def _sysexit_in_rom(self) -> None:
        """The IRETD that SYSEXIT ends with was refused: take its frame down, and go to the gate instead."""
        call = abi.BY_NAME["SYSEXIT"]
        here, cpu = self._physical_eip(), self.machine.cpu
        cpu.eip += self.rom.gate_address(call) + GATE_LENGTH - here
        self.emulator.transfers.move_esp(_SYSEXIT_FRAME)
        self.privilege.mirror.user_segments(0, 0)
        self._call(call)

    # -- instructions -----------------------------------------------------------------------

    def _breakpoint(self) -> bool:
        """A planted breakpoint: do the instruction it stands for."""
        cpu = self.machine.cpu
        try:
            at = self._physical_eip(-1)
        except GuestFault:
            return False
        if not self.breakpoints.stands(at):
            return False
        cpu.eip -= 1
        instruction = self.breakpoints.instruction_at(at, cpu.code_address(), cpu.code_bits)
        if not self._emulate(instruction, _PLANTED):
            self.machine.finish(
                Outcome.CRASHED,
                f"the instruction behind the breakpoint at {cpu.eip:#x} is none that needs one",
            )
        return True

    def _user_breakpoint(self) -> bool:
        """User code ran into a breakpoint, so the code is the user's, and right as it stands."""
        try:
            at = self._physical_eip(-1)
        except GuestFault:
            return False
        if not self.breakpoints.covers(at):
            return False
        self.breakpoints.remove(at)
        self.machine.cpu.eip -= 1
        self._count_exit("breakpoint in user code")
        return True

    def _refused(self) -> bool:
        """#GP of the kernel: emulate what ring 0 may do, or leave it to the guest."""
        instruction = self.instruction()
        if not instruction.is_invalid:
            return self._emulate(instruction, _PRIVILEGED)
        if undefined(self._code()):
            self._deliver_fault(GuestFault(Vector.UD))
            return True
        return False

    def _emulate(self, instruction: Instruction, why: str) -> bool:
        try:
            if not self.emulator.execute(instruction):
                return False
        except GuestFault as fault:
            self._deliver_fault(fault, MNEMONICS[instruction.mnemonic])
            if why == _PRIVILEGED:
                return True  # ring 0 would have been refused it too: the exit is the fault's
        else:
            if self.emulator.stepped:
                self._single_step()
        self._count_exit(f"{why}: {MNEMONICS[instruction.mnemonic]}")
        return True

    def _user_flag_instruction(self) -> bool:
        """User code with IOPL 3 may say CLI and STI; its interrupts stay on all the same."""
        cpu = self.machine.cpu
        if self.privilege.iopl != IOPL_MASK:
            return False
        instruction = self.instruction()
        if instruction.mnemonic not in (M.CLI, M.STI):
            return False
        cpu.eip += instruction.len
        self._count_exit(f"user instruction: {instruction}")
        return True

    def _user_call_gate(self) -> bool:
        """User code called the kernel through a gate; the CPU looked for a stack of ring 1 in the TSS."""
        instruction = self.instruction()
        if instruction.mnemonic != M.CALL:
            return False
        return self._emulate(instruction, "call gate")

    def _count(self, call: str, times: int = 1) -> None:
        self.calls[call] = self.calls.get(call, 0) + times
        self.machine.exits["VMI call"] += times

    def _count_exit(self, reason: str) -> None:
        self.machine.exits[reason] += 1
