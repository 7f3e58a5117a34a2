# SPDX-License-Identifier: GPL-2.0-only
"""Trap-and-emulate: one sensitive instruction of a kernel on ring 1, done as ring 0 would do it.

Reached in two ways: the CPU refused a privileged instruction, or a breakpoint stands where an
instruction would silently do the wrong thing.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType

from iced_x86 import Instruction

from vmi.hypervisor.operands import CONTROL, DEBUG, SEGMENTS, M, Operands, word_return, word_sized
from vmi.hypervisor.transfer import Transfers
from vmi.hypervisor.vcpu import VirtualCpu
from vmi.x86 import U32, Descriptor, Eflags, GuestFault, Seg, Vector

_LAR_SYSTEM = frozenset({1, 2, 3, 4, 5, 9, 11, 12})
_LSL_SYSTEM = frozenset({1, 2, 3, 9, 11})
_FLAGS_POPF = 0x247FD5  # what POPF at ring 0 takes from the image
# Found quickly: an enumeration's own members are looked up by a function.
_CS, _SS = Seg.CS, Seg.SS

# A handler does one instruction. True: it has set EIP itself. False: the instruction is not one of its.
Handler = Callable[[Instruction], bool | None]


class Emulator:
    """Emulates sensitive instructions on one virtual CPU.

    ``stepped`` says whether the last instruction ends in a single-step trap.
    """

    def __init__(self, vcpu: VirtualCpu) -> None:
        self._v = vcpu
        self._cpu = vcpu.cpu
        self._linear = vcpu.linear
        self._op = op = Operands(vcpu.cpu, vcpu.linear)
        self.transfers = Transfers(vcpu)
        self.stepped = False
        self._shadowed = False  # the instruction stands in the shadow of STI or MOV SS
        handlers: dict[int, Handler] = {
            M.CLI: lambda _i: vcpu.disable_interrupts(),
            M.STI: lambda _i: vcpu.enable_interrupts(shadow=not self._shadowed),
            M.HLT: self._halt,
            M.CLTS: lambda _i: vcpu.clear_task_switched(),
            M.WBINVD: lambda _i: None,
            M.INVD: lambda _i: None,
            M.INVLPG: lambda i: vcpu.mmu.invalidate(op.address(i)),
            M.LGDT: lambda i: vcpu.load_gdt(*op.read_pointer(i)),
            M.LIDT: lambda i: vcpu.load_idt(*op.read_pointer(i)),
            M.LLDT: lambda i: vcpu.load_ldt(op.read(i, 0, 2)),
            M.LTR: lambda i: vcpu.load_task(op.read(i, 0, 2)),
            M.CPUID: self._cpuid,
            M.RDTSC: self._rdtsc,
            M.LMSW: self._lmsw,
            M.RDMSR: self._rdmsr,
            M.WRMSR: lambda _i: vcpu.write_msr(self._cpu.ecx, self._cpu.edx << 32 | self._cpu.eax),
            M.MOV: self._mov,
            M.POP: self._pop,
            M.PUSH: self._push,
            M.LSS: lambda i: self._load_far_pointer(i, _SS),
            M.LDS: lambda i: self._load_far_pointer(i, Seg.DS),
            M.LES: lambda i: self._load_far_pointer(i, Seg.ES),
            M.LFS: lambda i: self._load_far_pointer(i, Seg.FS),
            M.LGS: lambda i: self._load_far_pointer(i, Seg.GS),
            M.PUSHFD: lambda _i: self._pushf(4),
            M.PUSHF: lambda _i: self._pushf(2),
            M.POPFD: lambda _i: self._popf(4),
            M.POPF: lambda _i: self._popf(2),
            M.IRETD: lambda i: self._iret(i, 4),
            M.IRET: lambda i: self._iret(i, 2),
            M.SYSEXIT: self._fast_return,
            M.RETF: self._far_return,
            M.CALL: self.far_branch,
            M.JMP: self.far_branch,
            M.LAR: self._lar,
            M.LSL: self._lsl,
            M.VERR: lambda i: self._verify(i, write=False),
            M.VERW: lambda i: self._verify(i, write=True),
            M.SGDT: lambda i: op.write_pointer(i, self._cpu.gdt.base, self._cpu.gdt.limit),
            M.SIDT: self._store_idt,
            M.SLDT: lambda i: op.write_word(i, self._cpu.ldt.selector),
            M.STR: lambda i: op.write_word(i, self._cpu.tr.selector),
            M.SMSW: lambda i: op.write_low_word(i, self._cpu.cr(0)),
        }
        self._handlers = MappingProxyType(handlers)

    def execute(self, instruction: Instruction) -> bool:
        """Do one instruction; False if it is none that ring 0 may do.

        :raises GuestFault: as the instruction; EIP is still at it.
        """
        handler = self._handlers.get(instruction.mnemonic)
        if handler is None:
            return False
        cpu = self._cpu
        self.stepped = bool(cpu.system_flags & Eflags.TF)
        self._shadowed = cpu.irq_shadow
        resumed = cpu.system_flags & Eflags.RF
        if resumed:
            cpu.system_flags &= ~Eflags.RF  # it suppressed a breakpoint on this instruction
        cpu.irq_shadow = False  # this is the instruction that the shadow was for
        try:
            result = handler(instruction)
        except GuestFault:
            cpu.system_flags |= resumed
            raise
        if result is False:
            cpu.system_flags |= resumed
            return False
        if result is None:
            cpu.eip += instruction.len
        return True

    # -- flags and the stack ----------------------------------------------------------------

    def _push_value(self, value: int, size: int) -> None:
        data = (value & (1 << 8 * size) - 1).to_bytes(size, "little")
        self._linear.write(self.transfers.stack_address(-size), data)
        self.transfers.move_esp(-size)

    def _pushf(self, size: int) -> None:
        self._push_value(self._v.privilege.frame_flags() & ~(Eflags.VM | Eflags.RF), size)

    def _popf(self, size: int) -> None:
        image = int.from_bytes(self._linear.read(self.transfers.stack_address(0), size), "little")
        taken = _FLAGS_POPF & (1 << 8 * size) - 1
        self.transfers.move_esp(size)
        self._v.privilege.restore_flags(self._v.privilege.frame_flags() & ~taken | image & taken)
        self._v.offer_interrupt()

    def _set_zf(self, on: bool) -> None:
        flags = self._cpu.eflags
        self._cpu.eflags = flags | Eflags.ZF if on else flags & ~Eflags.ZF

    def _halt(self, _i: Instruction) -> None:
        self._v.halt()
        self.stepped = False  # the CPU core halts without a trap

    # -- registers --------------------------------------------------------------------------

    def _lmsw(self, i: Instruction) -> None:
        self._v.write_cr(0, self._v.read_cr(0) & ~0xE | self._op.read(i, 0, 2) & 0xF)

    def _rdmsr(self, _i: Instruction) -> None:
        value = self._v.read_msr(self._cpu.ecx)
        self._cpu.eax, self._cpu.edx = value & U32, value >> 32

    def _cpuid(self, _i: Instruction) -> None:
        cpu = self._cpu
        cpu.eax, cpu.ebx, cpu.ecx, cpu.edx = self._v.machine.cpuid(cpu.eax, cpu.ecx)

    def _rdtsc(self, _i: Instruction) -> None:
        value = self._v.machine.tsc()
        self._cpu.eax, self._cpu.edx = value & U32, value >> 32 & U32

    def _mov(self, i: Instruction) -> bool | None:
        to, source, v = i.op0_register, i.op1_register, self._v
        if to in CONTROL or source in CONTROL:
            if to in CONTROL:
                v.write_cr(CONTROL[to], self._op.read(i, 1, 4))
            else:
                self._op.set_register(to, v.read_cr(CONTROL[source]))
        elif to in DEBUG:
            v.write_dr(DEBUG[to], self._op.read(i, 1, 4))
        elif source in DEBUG:
            self._op.set_register(to, v.read_dr(DEBUG[source]))
        elif to in SEGMENTS:
            self._load_segment(SEGMENTS[to], self._op.read(i, 1, 2))
        elif source in SEGMENTS:
            self._op.write_word(i, self._shown(SEGMENTS[source]))
        else:
            return False
        return None

    def _shown(self, seg: Seg) -> int:
        selector = self._cpu.segment(seg).selector
        return self._v.privilege.frame_selector(selector) if seg in (_CS, _SS) else selector

    def _load_segment(self, seg: Seg, selector: int) -> None:
        """MOV and POP: behind a load of SS neither an interrupt nor a single step comes in."""
        self._v.load_segment(seg, selector)
        if seg == _SS:
            self._cpu.irq_shadow = not self._shadowed
            self.stepped = False

    def _pop(self, i: Instruction) -> bool | None:
        if i.op0_register not in SEGMENTS:
            return False
        stack = self._cpu.segment(_SS)
        self._load_segment(SEGMENTS[i.op0_register], self._linear.u16(self.transfers.stack_address(0)))
        self.transfers.set_esp(stack, self._cpu.esp + i.stack_pointer_increment)
        return None

    def _push(self, i: Instruction) -> bool | None:
        if i.op0_register not in SEGMENTS:
            return False
        self._push_value(self._shown(SEGMENTS[i.op0_register]), -i.stack_pointer_increment)
        return None

    def _load_far_pointer(self, i: Instruction, seg: Seg) -> None:
        selector, offset = self._op.far_pointer(i, 2 if word_sized(i.op0_register) else 4)
        self._v.load_segment(seg, selector)
        self._op.set_register(i.op0_register, offset)

    def _store_idt(self, i: Instruction) -> None:
        table = self._v.privilege.virtual_idt
        self._op.write_pointer(i, table.base, table.limit)

    # -- control transfers ------------------------------------------------------------------

    def _iret(self, i: Instruction, size: int) -> bool:
        self.transfers.iret(size=size, resume=self._cpu.eip + i.len)
        self._v.offer_interrupt()
        return True

    def _fast_return(self, _i: Instruction) -> bool:
        self.transfers.fast_return()
        return True

    def _far_return(self, i: Instruction) -> bool:
        self.transfers.far_return(i.immediate16 if i.op_count else 0, 2 if word_return(i) else 4)
        return True

    def far_branch(self, i: Instruction) -> bool:
        """JMP or CALL to another segment, a gate or a task; False for a near one."""
        target = self._op.far_target(i)
        if target is None:
            return False
        selector, offset, size = target
        resume = self._cpu.eip + i.len
        if i.mnemonic == M.CALL:
            self.transfers.far_call(selector, offset, size, resume)
        else:
            self.transfers.far_jump(selector, offset, resume)
        return True

    # -- looking at descriptors -------------------------------------------------------------

    def _find(self, selector: int) -> Descriptor | None:
        """The descriptor of a selector as the guest wrote it, if there is one. :raises GuestFault: #PF."""
        if not selector & 0xFFFC:
            return None
        try:
            return self._v.privilege.descriptor(selector)
        except GuestFault as fault:
            if fault.vector == Vector.PF:
                raise
            return None

    def _visible(self, i: Instruction, system: frozenset[int]) -> Descriptor | None:
        """The descriptor that LAR or LSL may show; None: ZF is cleared and nothing else done."""
        selector = self._op.read(i, 1, 2)
        found = self._find(selector)
        if found is None or not (found.is_segment or found.type in system):
            return None
        return found if found.conforming or found.dpl >= selector & 3 else None

    def _lar(self, i: Instruction) -> None:
        found = self._visible(i, _LAR_SYSTEM)
        if found is not None:
            self._op.set_register(i.op0_register, found.high & 0xF0FF00)
        self._set_zf(found is not None)

    def _lsl(self, i: Instruction) -> None:
        found = self._visible(i, _LSL_SYSTEM)
        if found is not None:
            self._op.set_register(i.op0_register, found.limit)
        self._set_zf(found is not None)

    def _verify(self, i: Instruction, *, write: bool) -> None:
        selector = self._op.read(i, 0, 2)
        found = self._find(selector)
        reachable = found is not None and (found.conforming or found.dpl >= selector & 3)
        self._set_zf(bool(reachable and found and (found.writable_data if write else found.readable)))
