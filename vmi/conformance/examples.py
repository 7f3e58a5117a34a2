# SPDX-License-Identifier: GPL-2.0-only
"""Arguments that a call can be made with, one or more examples for each: what the generated cases use.

An example is right on any subject and leaves the guest able to end its run. What a call needs in memory
first is written by ``before``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from vmi import abi
from vmi.conformance import layout
from vmi.conformance.case import ALL_PAGING, PAGED
from vmi.conformance.layout import FREE_PAGES, GDT, IDT, SCRATCH, Paging, control, entry_address
from vmi.conformance.rig import Rig, Unfit


def _nothing(_rig: Rig) -> None:
    pass


@dataclass(frozen=True)
class Example:
    """One way to make a call.

    :ivar stack: stack arguments in order; registers are given by name.
    :ivar same: the result does not depend on time or on who runs the guest, so the oracle's is right.
    """

    registers: dict[str, int] = field(default_factory=dict)
    stack: tuple[int, ...] = ()
    before: Callable[[Rig], None] = _nothing
    paging: frozenset[Paging] = ALL_PAGING
    same: bool = True


def _pointer(rig: Rig, base: int, limit: int = 0x7FF) -> None:
    rig.write(SCRATCH, limit.to_bytes(2, "little") + base.to_bytes(4, "little"))


def _gdt(rig: Rig) -> None:
    _pointer(rig, GDT)


def _idt(rig: Rig) -> None:
    _pointer(rig, IDT)


def _msrs(rig: Rig) -> None:
    if not rig.has(_MSR):
        raise Unfit("the processor has no model-specific registers")


def _sysenter(rig: Rig) -> None:
    if not rig.has(_SEP):
        raise Unfit("the processor has no SYSENTER, whose registers would do")


def _buffer(rig: Rig) -> None:
    rig.write(SCRATCH, bytes(range(64)))


_PAGE = FREE_PAGES
_MSR, _SEP = 5, 11
_OUTSIDE = 0xE4  # a port that nothing answers


def _control(register: str) -> tuple[Example, ...]:
    return tuple(Example({"eax": control(paging)[register]}, paging=frozenset({paging})) for paging in Paging)


def _entry(call: str) -> tuple[Example, ...]:
    """Writing or reporting the entry of a free page that it has already."""
    made = []
    for paging in sorted(PAGED):
        entry = entry_address(paging, _PAGE)
        arguments = {
            "SetPxE": ({"eax": _PAGE | 7, "edx": entry, "ecx": 1}, ()),
            "SetPxELong": ({"eax": _PAGE | 7, "edx": 0, "ecx": entry}, (1,)),
            "UpdatePxE": ({"eax": entry, "edx": 1}, ()),
            "UpdatePxELong": ({"eax": entry, "edx": 1}, ()),
        }
        registers, stack = arguments[call]
        if call.endswith("Long") is (paging is Paging.PAE):
            made.append(Example(registers, stack, paging=frozenset({paging})))
    return tuple(made)


def _port(size: int, *, string: bool, out: bool) -> tuple[Example, ...]:
    if string:
        pointer = "esi" if out else "edi"
        return tuple(
            Example({pointer: SCRATCH, "edx": _OUTSIDE, "ecx": count}, before=_buffer) for count in (0, 1, 5)
        )
    value = {"eax": 0x11223344} if out else {}
    return (Example({**value, "edx": _OUTSIDE}), Example({**value, "edx": 0xFFFF0000 | _OUTSIDE}))


_PORTS = {
    f"{direction}{string}{width}": _port(size, string=bool(string), out=direction == "OUT")
    for direction in ("IN", "OUT")
    for string in ("", "S")
    for width, size in (("L", 4), ("B", 1), ("W", 2))
}

#: By call. What is not here can't be called as the others can; see :data:`NO_RETURN` and the cases by hand.
EXAMPLES: dict[str, tuple[Example, ...]] = {
    "CPUID": tuple(Example({"eax": leaf, "ecx": 0}, same=False) for leaf in (0, 1, 0x80000000)),
    "WRMSR": (Example({"ecx": 0x174, "eax": 0, "edx": 0}, before=_sysenter),),
    "RDMSR": (Example({"ecx": 0x10}, before=_msrs, same=False),),
    "SetGDT": (Example({"eax": SCRATCH}, before=_gdt),),
    "SetLDT": (Example({"eax": layout.LDT}), Example({"eax": 0}), Example({"eax": 0xABCD0000 | layout.LDT})),
    "SetIDT": (Example({"eax": SCRATCH}, before=_idt),),
    "SetTR": (
        Example(
            {"eax": layout.FREE_SELECTOR},
            before=lambda rig: rig.write(
                GDT + layout.FREE_SELECTOR, layout.descriptor(layout.TSS, 0x2067, 0x89, 0)
            ),
        ),
    ),
    "GetGDT": (Example({"eax": SCRATCH}, before=_buffer),),
    "GetLDT": (Example(),),
    "GetIDT": (Example({"eax": SCRATCH}, before=_buffer),),
    "GetTR": (Example(),),
    "WriteGDTEntry": (Example({"eax": GDT, "edx": 20, "ecx": 0x1234FFFF}, (0x00CFF300,)),),
    "WriteLDTEntry": (Example({"eax": SCRATCH, "edx": 3, "ecx": 0x1234FFFF}, (0x00CFF300,)),),
    "WriteIDTEntry": (Example({"eax": IDT, "edx": 60, "ecx": 0x00080123}, (0x00008E00,)),),
    "UpdateKernelStack": (Example({"eax": layout.DATA0, "edx": layout.KERNEL_STACK}),),
    "SetCR0": _control("CR0"),
    "SetCR2": tuple(Example({"eax": value}) for value in (0, 0xFFFFFFFF, 0x12345678)),
    "SetCR3": _control("CR3"),
    "SetCR4": _control("CR4"),
    "GetCR0": (Example(),),
    "GetCR2": (Example(),),
    "GetCR3": (Example(),),
    "GetCR4": (Example(),),
    "WBINVD": (Example(),),
    "SetDR": tuple(Example({"eax": n, "edx": 0x1000 * n if n < 4 else 0x400}) for n in (0, 1, 2, 3, 6, 7)),
    "GetDR": tuple(Example({"eax": n}) for n in (0, 1, 2, 3, 6, 7)),
    "RDTSC": (Example(same=False),),
    "CLTS": (Example(),),
    "EnableInterrupts": (Example(),),
    "DisableInterrupts": (Example(),),
    "GetInterruptMask": (Example(),),
    "SetInterruptMask": tuple(Example({"eax": mask}) for mask in (0, 0x200, 0xFFFFFFFF, 0xFFFFFDFF)),
    "SetPxE": _entry("SetPxE"),
    "SetPxELong": _entry("SetPxELong"),
    "UpdatePxE": _entry("UpdatePxE"),
    "UpdatePxELong": _entry("UpdatePxELong"),
    "MachineToPhysical": (Example({"eax": 0x60}),),
    "PhysicalToMachine": (Example({"eax": 0x60}, same=False),),
    "AllocatePage": (Example({"eax": _PAGE >> 12, "edx": 1, "ecx": 0}, (0, 0)),),
    "ReleasePage": (Example({"eax": _PAGE >> 12, "edx": 1}),),
    "InvalPage": (Example({"eax": _PAGE}), Example({"eax": 0x70000123})),
    "FlushTLB": tuple(Example({"eax": flags}) for flags in (0, 1, 3)),
    "SetLinearMapping": (Example({"eax": 0, "edx": 0xC0000000, "ecx": 0x1000}, (0,)),),
    **_PORTS,
    "SetIOPLMask": (Example({"eax": 0x3000}), Example({"eax": 0})),
    "APICWrite": (Example({"eax": 0x80, "edx": 0}, same=False),),
    "APICRead": (Example({"eax": 0x30}, same=False),),
    "IODelay": (Example(),),
    "GetCycleFrequency": (Example(same=False),),
    "GetCycleCounter": tuple(Example({"eax": counter}, same=False) for counter in (0, 1, 2, 3)),
    "SetAlarm": (Example({"eax": 1, "edx": 0xFFFFFFFF, "ecx": 0x7FFFFFFF}, (0, 0), same=False),),
    "CancelAlarm": (Example({"eax": 1}),),
    "GetWallclockTime": (Example(same=False),),
    "WallclockUpdated": (Example(same=False),),
    "SetLazyMode": (Example({"eax": 0}),),
}

#: Calls that no example is for, each with the reason.
WITHOUT = {
    "RDPMC": "the processors here have no counters, so that it faults",
    "IRET": "it takes a frame, and returns to that",
    "SYSEXIT": "it returns to user code",
    "Halt": "it returns behind an interrupt",
    "Reboot": "it does not return",
    "Shutdown": "it does not return",
    "SetInitialAPState": "it needs a second processor",
    "SetCallbacks": "nobody knows what it takes",
}

assert {*EXAMPLES, *WITHOUT} == set(abi.BY_NAME)
