# SPDX-License-Identifier: GPL-2.0-only
"""Seeded bugs of ROMs and of the hypervisor behind them, as data: what a conformance suite must find.

Each is one mistake that somebody could make. ``cases`` names where the suite is to look, so that a test need
not run all of it; any case of those that is not good has found the bug.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache

from vmi import abi
from vmi.conformance.layout import Paging
from vmi.conformance.subject import Environment
from vmi.hypervisor.calls import CallContext, Handler
from vmi.rom.build import build_flavour
from vmi.rom.flavours import get
from vmi.rom.layout import RomHeader
from vmi.rom.template import Template, body

_OFF, _TWO, _PAE = (
    Environment(Paging.OFF, "direct"),
    Environment(Paging.TWO_LEVEL, "direct"),
    Environment(Paging.PAE, "direct"),
)
_SHADOW = Environment(Paging.TWO_LEVEL, "shadow")


@dataclass(frozen=True)
class Mutant:
    """One seeded bug.

    :ivar templates: calls whose ROM code is other than it should be.
    :ivar image: what is done to the finished image; its checksum is made right again unless ``raw``.
    :ivar handlers: what serves a call instead, given what should.
    """

    name: str
    cases: tuple[str, ...]
    templates: Mapping[str, Template] = field(default_factory=dict)
    image: Callable[[bytearray], None] | None = None
    raw: bool = False
    handlers: Mapping[str, Callable[[Handler], Handler]] = field(default_factory=dict)
    environment: Environment = _OFF

    def __str__(self) -> str:
        return self.name

    def rom(self) -> bytes:
        """The image with the bug in it."""
        image = bytearray(_built(tuple(sorted(self.templates.items(), key=lambda item: item[0]))))
        if self.image is not None:
            self.image(image)
            if not self.raw:
                image[-1] = (image[-1] - sum(image)) & 0xFF
        return bytes(image)


@cache
def _built(templates: tuple[tuple[str, Template], ...]) -> bytes:
    flavour = get("vmware")
    return build_flavour(replace(flavour, templates={**flavour.templates, **dict(templates)})).image


def _rom(name: str, call: str, source: str, *cases: str, environment: Environment = _OFF) -> Mutant:
    """A mistake in the ROM's code of one call."""
    return Mutant(name, cases or (call,), {call: body(source)}, environment=environment)


def _ignored(_right: Handler) -> Handler:
    return lambda _call: None


def _served(
    name: str,
    call: str,
    wrong: Callable[[Handler], Handler] = _ignored,
    *cases: str,
    environment: Environment = _OFF,
) -> Mutant:
    """A mistake in what the hypervisor does for one call."""
    return Mutant(name, cases or (call,), handlers={call: wrong}, environment=environment)


def _then(change: Callable[[CallContext], None]) -> Callable[[Handler], Handler]:
    """The right thing, and something more."""

    def wrong(right: Handler) -> Handler:
        def handler(call: CallContext) -> None:
            right(call)
            change(call)

        return handler

    return wrong


def _first(change: Callable[[CallContext], None]) -> Callable[[Handler], Handler]:
    """The right thing with something changed before."""

    def wrong(right: Handler) -> Handler:
        def handler(call: CallContext) -> None:
            change(call)
            right(call)

        return handler

    return wrong


def _set(register: str, value: Callable[[int], int]) -> Callable[[CallContext], None]:
    return lambda call: setattr(call.cpu, register, value(getattr(call.cpu, register)) & 0xFFFFFFFF)


def _at(offset: int, *values: int) -> Callable[[bytearray], None]:
    def change(image: bytearray) -> None:
        image[offset : offset + len(values)] = bytes(values)

    return change


def _licence(image: bytearray) -> None:
    image[RomHeader.parse(bytes(image)).license_offs] = ord("g")


def _device(image: bytearray) -> None:
    image[RomHeader.parse(bytes(image)).pci_header_offs + 6] ^= 1


def _not_virtual_8086(image: bytearray) -> None:
    """IRET's code looks whether the frame has VM or another IOPL: TEST EAX, 23000h."""
    image[image.index(b"\xa9\x00\x30\x02\x00") + 3] = 0


def _relocation_type(call: str, kind: int) -> Callable[[bytearray], None]:
    """Another relocation type in the ROM's table."""

    def change(image: bytearray) -> None:
        from vmi.rom.inspect import inspect

        right = bytes(image)
        number = abi.BY_NAME[call].number
        for at in range(abi.ROM_HEADER_SIZE, len(image)):
            image[at] ^= 1 ^ kind
            calls = inspect(bytes(image)).calls
            if calls is not None and calls[number].relocation != "CALL_REL":
                return
            image[at] = right[at]

    return change


_ROM_CASES = ("ROM/*",)

MUTANTS: tuple[Mutant, ...] = (
    # -- the image
    Mutant("checksum off by one", _ROM_CASES, image=_at(0x200, 0xEE), raw=True),
    Mutant("licence in lower case", _ROM_CASES, image=_licence),
    Mutant("PCI device number", _ROM_CASES, image=_device),
    Mutant("no PCI header", _ROM_CASES, image=_at(0x18, 0, 0)),
    Mutant("major version 4", _ROM_CASES, image=_at(0x0D, 4)),
    Mutant("reserved field in use", _ROM_CASES, image=_at(0x30, 1)),
    Mutant("hypervisor's range over the guest's RAM", _ROM_CASES, image=_at(0x10, 0, 0, 0x20, 0)),
    Mutant("VMI_Init says no", ("Init/*",), image=_at(abi.INIT_OFFSET, 0xB8, 1, 0, 0, 0, 0xC3)),
    Mutant("VMI_Init loops", ("Init/takes over",), image=_at(abi.INIT_OFFSET, 0xEB, 0xFE)),
    Mutant("VMI_Init corrupts EBX", ("Init/takes over",), image=_at(abi.INIT_OFFSET, 0x43, 0x31, 0xC0, 0xC3)),
    Mutant("GetRelocationInfo garbles the rest of EDX", ("GetCR0/relocation",),
           image=_at(abi.GET_RELOC_OFFSET, 0x83, 0xCA, 0xFF, 0xC3)),
    # -- calling convention, in the ROM
    _rom("DisableInterrupts clobbers EAX", "DisableInterrupts", "xor eax, eax\njmp @gate"),
    _rom("GetInterruptMask clobbers ECX", "GetInterruptMask", "mov ecx, 5\njmp @gate"),
    _rom("GetCR3 clobbers EBX", "GetCR3", "mov ebx, eax\njmp @gate"),
    _rom("GetCR3 takes an argument off the stack", "GetCR3", "mov eax, cr3\nret 4"),
    _rom("GetTR leaves DF set", "GetTR", "xor eax, eax\nmov ax, 0x28\nstd\nret"),
    _rom("GetTR leaves garbage above", "GetTR", "mov eax, 0x10028\nret", "SetTR"),
    _rom("a call writes far below its stack", "GetLDT", "mov dword ptr [esp - 100], 0\nxor eax, eax\nret"),
    _rom("DisableInterrupts relies on DS", "DisableInterrupts", "cmp dword ptr [0x6000], 0\njmp @gate"),
    _rom("a call relies on FS", "IODelay", "cmp dword ptr fs:[0x6000], 0\nret", environment=_TWO),
    # -- meaning, in the ROM
    _rom("GetInterruptMask always says on", "GetInterruptMask", "mov eax, 0x200\nret", "EnableInterrupts"),
    _rom("DisableInterrupts does nothing", "DisableInterrupts", "ret", "EnableInterrupts"),
    _rom("EnableInterrupts does nothing", "EnableInterrupts", "ret"),
    _rom("GetCR0 without ET", "GetCR0", "mov eax, 1\nret", "SetCR0"),
    _rom("GetCR2 is 0", "GetCR2", "xor eax, eax\nret", "SetCR2"),
    _rom("SetCR2 does nothing", "SetCR2", "ret"),
    _rom("SetCR3 keeps another root without paging", "SetCR3", "mov eax, 0x12345000\nmov cr3, eax\nret"),
    _rom("SetPxE stores nothing", "SetPxE", "ret", environment=_TWO),
    _rom("SetPxE swaps value and pointer", "SetPxE", "mov [eax], edx\nret", environment=_TWO),
    _rom("SetPxELong forgets the upper half", "SetPxELong", "mov [ecx], eax\nmov dword ptr [ecx + 4], 1\nret",
         environment=_PAE),
    _rom("PhysicalToMachine is constant", "PhysicalToMachine", "mov eax, 7\nret", "MachineToPhysical"),
    _rom("MachineToPhysical off by one", "MachineToPhysical", "inc eax\nret"),
    _rom("INB changes all of EAX", "INB", "xor eax, eax\nin al, dx\nret"),
    _rom("INSB runs downwards", "INSB", "std\nrep insb\ncld\nret"),
    _rom("OUTB writes a word", "OUTB", "out dx, ax\nret"),
    _rom("GetGDT stores too much", "GetGDT", "sgdt [eax]\nmov dword ptr [eax + 6], 0\nret", "SetGDT"),
    Mutant("IRET takes a frame of virtual-8086 mode for any other", ("IRET/to *",), image=_not_virtual_8086),
    _rom("CPUID keeps EBX", "CPUID", "push ebx\nmov eax, 1\npop ebx\nret"),
    # -- the hypervisor
    _served("SetCR3 keeps translations", "SetCR3", environment=_TWO),
    _served("InvalPage does nothing", "InvalPage", environment=_TWO),
    _served("InvalPage does nothing, shadow", "InvalPage", environment=_SHADOW),
    _served("FlushTLB does nothing", "FlushTLB", environment=_TWO),
    _served("FlushTLB does nothing, shadow", "FlushTLB", environment=_SHADOW),
    _served("CLTS does nothing", "CLTS", _ignored, "SetCR0"),
    _served("SetCR0 forgets TS", "SetCR0", _first(_set("eax", lambda v: v & ~8))),
    _served("SetDR forgets the value", "SetDR", _first(_set("edx", lambda v: 0))),
    _served("SetIDT does nothing", "SetIDT"),
    _served("SetGDT does nothing", "SetGDT"),
    _served("SetLDT does nothing", "SetLDT"),
    _served("SetTR does nothing", "SetTR"),
    _rom("WriteIDTEntry one too far", "WriteIDTEntry", "inc edx\njmp @gate"),
    _rom("WriteLDTEntry forgets the upper half", "WriteLDTEntry", "mov [eax + edx*8], ecx\nret"),
    _rom("UpdateKernelStack does nothing", "UpdateKernelStack", "ret"),
    _served("Halt returns at once", "Halt", _ignored),
    _served("RDMSR swaps halves", "RDMSR", _then(lambda call: setattr(call.cpu, "edx", 0xBAD)), "WRMSR",
            environment=_PAE),
    _served("SetAlarm fires early", "SetAlarm", _first(_set("edx", lambda v: v - 19_000))),
    _served("SetAlarm does nothing", "SetAlarm"),
    _served("CancelAlarm says never armed", "CancelAlarm", _then(_set("eax", lambda v: 0))),
    _served("CancelAlarm does nothing", "CancelAlarm"),
    _rom("every counter is the real one", "GetCycleCounter", "rdtsc\nret"),
    _served("the wall clock stands still", "GetWallclockTime", _then(_set("eax", lambda v: 0)),
            "GetCycleFrequency"),
    _served("WallclockUpdated always says yes", "WallclockUpdated", _then(_set("eax", lambda v: 1))),
    _served("APICWrite to the wrong register", "APICWrite", _first(_set("eax", lambda v: v ^ 0x10)),
            environment=_PAE),
    _served("Reboot returns", "Reboot"),
    _served("Shutdown returns", "Shutdown"),
)  # fmt: skip
