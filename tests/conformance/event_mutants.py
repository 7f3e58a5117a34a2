# SPDX-License-Identifier: GPL-2.0-only
"""Seeded bugs about interrupts, faults, activation and tables: in the hypervisor, in ROMs, in the patcher.

Each replaces something of the toolkit by what somebody could have written instead; ``cases`` are those that
must notice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.conformance.mutants import Mutant, _rom, _served
from vmi import abi, sitetable
from vmi.conformance.layout import Paging
from vmi.conformance.subject import Environment
from vmi.errors import BadInput
from vmi.hypervisor.calls import CallContext, Handler
from vmi.hypervisor.domain import Domain
from vmi.hypervisor.mmu import shadow
from vmi.hypervisor.mmu.direct import DirectMmu
from vmi.hypervisor.mmu.guest import GuestTables
from vmi.hypervisor.mmu.shadow import ShadowMmu
from vmi.hypervisor.mmu.tables import Directory
from vmi.hypervisor.personalities.vmware import Vmware
from vmi.hypervisor.vcpu import VirtualCpu
from vmi.native.interrupts import Event, Origin
from vmi.patcher import activation, activation_multiboot
from vmi.rom.flavours import vmware
from vmi.rom.template import body
from vmi.x86 import IF_BIT, Cr0, GuestFault, Vector

_OFF, _TWO, _PAE = (Environment(paging, "direct") for paging in (Paging.OFF, Paging.TWO_LEVEL, Paging.PAE))
_SHADOW, _WIDE_SHADOW = Environment(Paging.TWO_LEVEL, "shadow"), Environment(Paging.PAE, "shadow")
_LINEAR = slice(vmware.LINEAR // 4, vmware.LINEAR // 4 + 3 * abi.LINEAR_SLOTS)


@dataclass(frozen=True)
class Replaced(Mutant):
    """A bug that is neither in a ROM nor in a call's handler.

    :ivar wrong: what is replaced, by owner and name, and what makes the wrong thing of the right one.
    """

    wrong: tuple[tuple[Any, str, Callable[[Any], Any]], ...] = field(default=())


def _replaced(
    name: str, cases: str, owner: Any, attribute: str, wrong: Callable[[Any], Any], where: Environment = _OFF
) -> Replaced:
    return Replaced(name, tuple(cases.split("; ")), environment=where, wrong=((owner, attribute, wrong),))


def _activates(name: str, cases: str, old: str, new: str = "", owner: Any = activation) -> Replaced:
    """A mistake in the activation code: other text in the place of what must be there."""
    attribute = "_SOURCE" if owner is activation else "TAIL"

    def wrong(source: str) -> str:
        assert old in source, old
        return source.replace(old, new)

    asked = "; ".join(f"Activation/{case}" for case in cases.split("; "))
    return _replaced(name, asked, owner, attribute, wrong)


def _faults(change: Callable[[CallContext, GuestFault], GuestFault]) -> Callable[[Handler], Handler]:
    """A handler whose faults are other ones."""

    def wrong(right: Handler) -> Handler:
        def handler(call: CallContext) -> None:
            try:
                right(call)
            except GuestFault as fault:
                raise change(call, fault) from None

        return handler

    return wrong


def _written_all_the_same(call: CallContext, fault: GuestFault) -> GuestFault:
    call.cpu.load_dr(call.cpu.eax, call.cpu.edx)
    return fault


def _twice(right: Callable[[Domain, Event], None]) -> Callable[[Domain, Event], None]:
    def deliver(domain: Domain, event: Event) -> None:
        right(domain, event)
        if event.origin is Origin.EXTERNAL:
            right(domain, event)

    return deliver


def _dropped(right: Callable[[Domain, Event], None]) -> Callable[[Domain, Event], None]:
    def deliver(domain: Domain, event: Event) -> None:
        if event.origin is not Origin.EXTERNAL or domain.machine.cpu.cpl == 3:
            right(domain, event)

    return deliver


def _without_flag(right: Callable[[Domain, Event], None]) -> Callable[[Domain, Event], None]:
    def deliver(domain: Domain, event: Event) -> None:
        right(domain, event)
        if event.origin is Origin.EXTERNAL:
            linear, at = domain.vcpu.linear, domain.emulator.transfers.stack_address(8)
            linear.put_u32(at, linear.u32(at) & ~IF_BIT)

    return deliver


def _with_interrupt(right: Callable[..., None]) -> Callable[..., None]:
    def deliver(domain: Domain, fault: GuestFault, refused: str = "") -> None:
        right(domain, fault, refused)
        if domain.machine.interrupts.pending():
            domain.machine.take_interrupt()

    return deliver


def _other_vector(old: Vector, new: Vector) -> Callable[[Callable[..., None]], Callable[..., None]]:
    def wrong(right: Callable[..., None]) -> Callable[..., None]:
        def deliver(domain: Domain, fault: GuestFault, refused: str = "") -> None:
            if fault.vector == old:
                fault = GuestFault(new, fault.error, fault.address)
            right(domain, fault, refused)

        return deliver

    return wrong


def _shared_slots(right: Callable[[Vmware, bytes], None]) -> Callable[[Vmware, bytes], None]:
    def load_words(rom: Vmware, words: bytes) -> None:
        kept = rom._words[_LINEAR].tolist()
        right(rom, words)
        for at, value in zip(range(_LINEAR.start, _LINEAR.stop), kept, strict=True):
            rom._words[at] = value

    return load_words


def _backwards(_right: Handler) -> Handler:
    left = [1000]

    def handler(call: CallContext) -> None:
        left[0] -= 1
        call.answer(left[0])

    return handler


def _set_eax(change: Callable[[int], int]) -> Callable[[Handler], Handler]:
    def wrong(right: Handler) -> Handler:
        def handler(call: CallContext) -> None:
            call.cpu.eax = change(call.cpu.eax)
            right(call)

        return handler

    return wrong


def _or_nothing(right: Callable[..., list[bytes]], *given: object) -> list[bytes]:
    try:
        return right(*given)
    except BadInput:
        return []


def _raises(vector: Vector, error: int) -> Callable[[Handler], Handler]:
    def wrong(_right: Handler) -> Handler:
        def handler(_call: CallContext) -> None:
            raise GuestFault(vector, error)

        return handler

    return wrong


def _users(right: Callable[[Domain, Event], None]) -> Callable[[Domain, Event], None]:
    def deliver(domain: Domain, event: Event) -> None:
        if event.vector == Vector.PF:
            event = event._replace(error=event.error | 4)
        right(domain, event)

    return deliver


def _swallowed(right: Callable[[Domain, Event], bool]) -> Callable[[Domain, Event], bool]:
    return lambda domain, event: event.vector == Vector.GP or right(domain, event)


def _debug_register_4(_right: object) -> Callable[[VirtualCpu, int], int]:
    return lambda _vcpu, number: number + 2 if number in (4, 5) else number


_FIXED_PLACE = "mov [0x6100], ebx\nmov ebx, 5\nstr eax\nmovzx eax, ax\nmov ebx, [0x6100]\nret"
_ENABLE_WITH_ECX = """
        push ecx
        call @here
@here:  pop ecx
        mov byte ptr ss:[ecx + {VIF + 1 - @here}], 2
        cmp dword ptr ss:[ecx + {PENDING - @here}], 0
        jne @wait
        pop ecx
        ret
@wait:  add esp, 4
        jmp pending_gate
"""
_GDT_WITH_OTHER_REGISTERS = """
        call @here
@here:  pop ecx
        mov edx, ss:[ecx + {GDT_LIMIT - @here}]
        mov [eax], dx
        mov edx, ss:[ecx + {GDT - @here}]
        mov [eax + 2], edx
        ret
"""
_INSB_LOSES = "@a: jecxz @end\nin al, dx\ndec ecx\nmov [edi], al\ninc edi\njmp @a\n@end: ret"
_LOW_HALF_FIRST = "mov [eax + edx*8], ecx\nmov ecx, [esp + 4]\nmov [eax + edx*8 + 4], ecx\nret"

EVENT_MUTANTS: tuple[Mutant, ...] = (
    # -- interrupts in a call
    _replaced("interrupts come anywhere in the ROM", "Interrupt/SYSEXIT; Interrupt/IRET*", Domain, "_in_rom",
              lambda _: lambda _domain: False, _TWO),
    _replaced("what waits is not tried again behind the ROM", "GetCR3/interrupt*", Domain, "retry_after",
              lambda _: lambda _domain: None),
    _replaced("interrupts come with the flag off", "GetCR3/masked*", Domain, "accepts_interrupts",
              lambda _: lambda _domain: True),
    _replaced("an interrupt in the kernel is lost", "GetCR3/interrupt*", Domain, "deliver", _dropped),
    _replaced("an interrupt is delivered twice", "GetCR3/interrupt*", Domain, "deliver", _twice),
    _replaced("frames show no IF", "GetCR3/interrupt*", Domain, "deliver", _without_flag),
    Replaced("GetTR keeps a register in a fixed place, and may be interrupted",
             ("GetTR/call in the handler*",), {"GetTR": body(_FIXED_PLACE)},
             wrong=((Domain, "_in_rom", lambda _: lambda _domain: False),)),
    _rom("EnableInterrupts loses ECX when one waits", "EnableInterrupts", _ENABLE_WITH_ECX,
         "Interrupt/switched on"),
    _rom("DisableInterrupts does nothing, one in it", "DisableInterrupts", "ret", "Interrupt/switched off"),
    _served("Halt leaves interrupts off", "Halt", lambda _: lambda call: call.vcpu.halt(), "Interrupt/Halt"),
    # -- faults
    _served("SetLDT faults without the selector", "SetLDT", _faults(lambda _, f: GuestFault(f.vector)),
            "SetLDT/fault*"),
    _served("SetTR: what is not present is #GP", "SetTR",
            _faults(lambda _, f: GuestFault(Vector.GP, f.error)), "SetTR/fault*"),
    _served("SetDR writes before it faults", "SetDR", _faults(_written_all_the_same), "SetDR/fault*"),
    _served("SetGDT's page fault is one byte off", "SetGDT",
            _faults(lambda _, f: GuestFault(f.vector, f.error, f.address + 1)), "SetGDT/fault*",
            environment=_TWO),
    _served("SetLDT takes the upper half of EAX", "SetLDT",
            lambda _: lambda call: call.vcpu.load_ldt(call.cpu.eax), "SetLDT/selector*"),
    _served("SetCR0 takes PG without PE", "SetCR0", _set_eax(lambda v: v | Cr0.PE), "SetCR0/fault*"),
    _served("SetCR4 takes any bit", "SetCR4", _set_eax(lambda v: v & 0x7FF), "SetCR4/fault*"),
    _served("RDPMC goes backwards", "RDPMC", _backwards, "RDPMC/forward"),
    _replaced("debug registers 4 and 5 don't fault", "SetDR/fault*; GetDR/fault*", VirtualCpu,
              "_debug_register", _debug_register_4, _PAE),
    _replaced("a fault lets in what waits", "SetLDT/fault and*", Domain, "_deliver_fault", _with_interrupt),
    _replaced("#SS of IRET is #GP", "IRET/fault, no*", Domain, "_deliver_fault",
              _other_vector(Vector.SS, Vector.GP)),
    _replaced("faults are reported in the ROM", "SetTR/fault at*", Domain, "_report_at_site",
              lambda _: lambda domain, fault, call: domain._deliver_fault(fault, call)),
    _rom("GetGDT faults with other registers", "GetGDT", _GDT_WITH_OTHER_REGISTERS, "GetGDT/fault at*",
         environment=_TWO),
    _rom("INSB loses a unit at a page fault", "INSB", _INSB_LOSES, "INSB/fault*", environment=_TWO),
    _rom("WriteLDTEntry stores half of an entry", "WriteLDTEntry", _LOW_HALF_FIRST, "WriteLDTEntry/fault*",
         environment=_TWO),
    _rom("WriteGDTEntry takes nothing away", "WriteGDTEntry", "jecxz @end\njmp @gate\n@end: ret",
         "WriteGDTEntry/fault, segment*"),
    _served("SetGDT refuses without a selector", "SetGDT", _raises(Vector.GP, 0), "SetGDT/fault, segment*"),
    _served("SetCR3 refuses with an error code", "SetCR3", _raises(Vector.GP, 8), "SetCR3/fault*",
            environment=_PAE),
    _replaced("privileged instructions of user code do nothing", "Exception/faults*", Domain, "_handle_user",
              _swallowed),
    _replaced("page faults of the kernel look like user code's", "Exception/page faults of the*", Domain,
              "deliver", _users, _SHADOW),
    # -- several processors, tables, translation
    _replaced("linear mappings are everybody's", "SetLinearMapping/each*", Vmware, "load_words",
              _shared_slots, Environment(Paging.TWO_LEVEL, "shadow", 2)),
    _replaced("records of call 255 are not looked at", "Init/records*", Domain, "_site_table",
              lambda _: lambda _domain, _address: []),
    _replaced("tables may lie anywhere", "Table/damaged*", sitetable, "_table",
              lambda right: lambda *given: _or_nothing(right, *given)),
    _served("SetCR0 keeps WP", "SetCR0", _set_eax(lambda v: v | Cr0.WP), "Mmu/without WP", environment=_TWO),
    _served("InvalPage leaves what is dirty", "InvalPage", lambda _: lambda _call: None, "Mmu/*",
            environment=_SHADOW),
    # -- found by bench/mutation.py, when nothing noticed them
    _replaced("an alarm's period has 32 bits", "SetAlarm/a long*", CallContext, "stack_argument_long",
              lambda _: CallContext.stack_argument),
    _replaced("counters are told of as 32 bits", "GetCycleCounter/time*", Vmware, "tell",
              lambda right: lambda rom, what, value: right(rom, what, value & 0xFFFFFFFF), _TWO),
    _served("InvalPage is for even pages", "InvalPage", _set_eax(lambda v: v & ~0x1000), "InvalPage/behind*",
            environment=_TWO),
    _replaced("a page that was not cached stays so on the other processor", "InvalPage/a page*", DirectMmu,
              "leave", lambda _: lambda _mmu: None, Environment(Paging.TWO_LEVEL, "direct", 2)),
    _replaced("the hypervisor reads with user code's rights", "Mmu/pages of*", GuestTables, "translate",
              lambda right: lambda mmu, linear, *, write=False, user=True: right(
                  mmu, linear, write=write, user=user), _SHADOW),
    _replaced("both halves of a table are the first", "Mmu/each bit*", ShadowMmu, "_table_source",
              lambda right: lambda mmu, mode, linear, found: right(mmu, mode, linear & ~(1 << 21), found),
              _SHADOW),
    _replaced("directories' entries are not looked at again", "Mmu/a table taken*", Directory, "refresh",
              lambda _: lambda *_given: False, _SHADOW),
    _replaced("frames lead to the hypervisor's memory", "Mmu/behind RAM", shadow, "leaf",
              lambda _: lambda frame, rights, *, dirty: frame | rights | 0x61, _WIDE_SHADOW),
    # -- activation
    _activates("the checksum is skipped", "damaged ROM, checksum", "    test al, al\n    je found\n",
               "    jmp found\n"),
    _activates("any licence will do", "damaged ROM, another licence",
               "    cmp word ptr [esi+edi+4], {licence_v2}\n    jne next_candidate\n"),
    _activates("any API version will do", "damaged ROM, another major*",
               "    cmp byte ptr [esi+{major_at}], {major}\n    jne next_candidate\n"),
    _activates("no PCI header is needed", "damaged ROM, no PCI*",
               "    cmp word ptr [esi+{pci_at}], 0\n    je next_candidate\n"),
    _activates("one place is looked at", "found anywhere", "    jb candidate\n"),
    _activates("the search goes too far", "outside the range", "cmp esi, {scan_end}",
               "cmp esi, {scan_end + scan_step}"),
    _activates("a ROM of any size is copied", "too large", "    ja too_large\n"),
    _activates("VMI_Init's answer doesn't count", "refused", "    test eax, eax\n    jne refused\n"),
    _activates("VMI_Init is not told of the header", "copy of the ROM", "mov ebx, {header}",
               "mov ebx, {reserve}"),
    _activates("NOP for what has a result", "NOP", "    test byte ptr [esi+7], {nop_ok}\n    je next_slot\n"),
    _activates("jumps for what comes back", "JUMP_REL",
               "    test byte ptr [esi+7], {jump_ok}\n    je next_slot\n"),
    _activates("isolated slots are connected", "not to be connected",
               "    test byte ptr [{unconnected}], dl\n    jne next_slot\n"),
    _activates("no promise is needed", "not to be connected",
               "promises_at}], {faults_at_call}\n    je start_rom\n", "promises_at}], {faults_at_call}\n"),
    _activates("a slot's rest is left", "CALL_REL; NOP", "    rep stosb\n"),
    _activates("one byte too many", "nothing else", "    sub ecx, 5\n", "    sub ecx, 4\n"),
    _activates("links lead nowhere", "CALL_REL", "    mov dword ptr [edi+1], edx\nnext_link:", "next_link:"),
    _activates("ECX is lost", "registers", "    popad\n", "    popad\n    xor ecx, ecx\n"),
    _activates("status is not said", "found anywhere", "    mov dword ptr [{status}], {status_active}\n"),
    _activates("a copy in use is written over", "again", "    je started_before"),
    _activates("the segment is shown as usable", "memory map", "    push 2\n", "    push 1\n",
               activation_multiboot),
)  # fmt: skip
