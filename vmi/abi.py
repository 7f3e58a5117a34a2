# SPDX-License-Identifier: GPL-2.0-only
"""The VMI ABI, API 3.0, as tables: calls, relocations, flags, ROM header, AP start state.

Every fact about the interface is written here once. ROM slots, hypervisor dispatch, the patcher's
choice of call, conformance cases, trace names and the reference pages are derived from these rows,
so a number or a register can't differ between two of them. The module imports the standard library
only: a tool that just wants the table needs nothing else.

Reading order: words (enums, dataclasses), binary layouts, the calls group by group, look-ups.
The interface is the one that mainline Linux 2.6.21 to 2.6.36 (``CONFIG_VMI``) consumes. Where that
client leaves a point open, the row says who decided it (``Call.source``).

Calling convention unless a row says otherwise: gcc ``regparm(3)``. Arguments in EAX, EDX, ECX, then
on the stack left to right; the first stack argument is at [esp+4] on entry; the caller pops. A
64-bit value is a low, high pair of words; it goes on the stack whole unless two registers are free.
Results come in EAX or EDX:EAX. EBX, ESI, EDI, EBP survive, DF is clear on return. CS, SS, DS and ES
are flat; FS and GS may hold anything. Calls are made at the kernel's privilege level.
"""

from __future__ import annotations

import difflib
import json
import textwrap
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import IntEnum, IntFlag, StrEnum

# --- Words: what a row is made of ---------------------------------------------------------------


class Group(StrEnum):
    """What a call is about; one hypervisor source file serves one group."""

    PROCESSOR = "processor"
    DESCRIPTORS = "descriptors"
    CONTROL = "control"
    INTERRUPTS = "interrupts"
    SYSTEM = "system"
    MMU = "mmu"
    IO = "io"
    APIC = "apic"
    TIME = "time"


class Kind(StrEnum):
    """Where the work of a call can be done at best; a ROM flavour may do worse."""

    IN_ROM = "in_rom"  # ROM code and ROM data suffice: no exit to the hypervisor
    CALL_OUT = "call_out"  # the hypervisor must act before the call returns
    BATCHABLE = "batchable"  # the hypervisor must act, but may do it later (see Call.lazy)


class Convention(StrEnum):
    """How arguments reach a call."""

    REGPARM = "regparm3"  # EAX, EDX, ECX, stack
    NATIVE = "native"  # the registers of the native instruction
    FRAME = "frame"  # a frame on the stack, as the native instruction reads it


class FlagsEffect(StrEnum):
    """What a call does to EFLAGS, apart from the virtual interrupt flag."""

    CLOBBERED = "clobbered"  # arithmetic flags are garbage afterwards, DF is clear
    FROM_FRAME = "from_frame"  # loaded from the frame that the call consumes


class Bind(StrEnum):
    """How Linux connects one of its own operations to a call."""

    FILL = "fill"  # pointer := entry; NOP installs an empty function; NONE keeps native
    FILL_PATCH = "fill+patch"  # as FILL, and the call sites are rewritten too
    WRAP = "wrap"  # a C wrapper calls the entry; NOP and NONE keep native; JUMP_REL is fatal
    GET = "get"  # pointer := entry, NULL for NOP and NONE; JUMP_REL is fatal
    PATCH = "patch"  # the site itself becomes call or jump; there is no native fallback
    TIMER = "timer"  # any answer but NONE means "use the VMI timer", entry taken as it is
    UNUSED = "unused"


class Reloc(IntEnum):
    """Relocation type in DL after GetRelocationInfo."""

    NONE = 0
    CALL_REL = 1
    JUMP_REL = 2
    NOP = 3


class PageFlag(IntFlag):
    """Flag word of AllocatePage and ReleasePage."""

    NORMAL = 0x00
    PT = 0x01
    PD = 0x02
    PDP = 0x04
    PML4 = 0x08
    PAE = 0x10
    CLONE = 0x20
    ZEROED = 0x40


class UpdateFlag(IntFlag):
    """Flag word of SetPxE and UpdatePxE; 0x10 and 0x20 differ from PageFlag."""

    PT = 0x01
    PD = 0x02
    PDP = 0x04
    PML4 = 0x08
    CURRENT_AS = 0x10
    DEFER = 0x20


UPDATE_VA_MASK = 0xFFFFF000  # the mapped address in an UpdateFlag word
LEVEL_MASK = 0x0F  # the level bits of PageFlag and UpdateFlag words


class FlushFlag(IntFlag):
    """Argument of FlushTLB."""

    TLB = 0x01
    GLOBAL = 0x02


class LazyMode(IntEnum):
    """Argument of SetLazyMode."""

    NONE = 0
    MMU = 1
    CPU = 2


class Counter(IntEnum):
    """Cycle counters; real = available + stolen at any moment."""

    REAL = 0
    AVAILABLE = 1
    STOLEN = 2


class AlarmFlag(IntFlag):
    """Flag word of SetAlarm and CancelAlarm above the counter number."""

    ONESHOT = 0x000
    PERIODIC = 0x100
    WIRED_LVTT = 0x10000


ALARM_COUNTER_MASK = 0xFF
INTERRUPT_FLAG = 0x200  # EFLAGS.IF, the only defined bit of an interrupt mask
LINEAR_SLOTS = 4  # SetLinearMapping slots per CPU


@dataclass(frozen=True, slots=True)
class Constants:
    """An enumeration of the interface with the meaning of each member that is worth a line."""

    kind: type[IntEnum] | type[IntFlag]
    title: str
    meanings: tuple[tuple[int, str], ...]


CONSTANTS: tuple[Constants, ...] = (
    Constants(
        Reloc,
        "Relocation types (DL after GetRelocationInfo)",
        (
            (Reloc.NONE, "not offered: the native code stays"),
            (Reloc.CALL_REL, "the site calls the entry: E8 rel32"),
            (Reloc.JUMP_REL, "the site jumps to the entry: E9 rel32; only for calls that never return to it"),
            (Reloc.NOP, "nothing needs to be done: the site becomes NOPs"),
        ),
    ),
    Constants(
        PageFlag,
        "Flags of AllocatePage and ReleasePage",
        (
            (PageFlag.PT, "page table"),
            (PageFlag.PD, "page directory"),
            (PageFlag.PDP, "page-directory-pointer table"),
            (PageFlag.PML4, "fourth level, not used on i386"),
            (PageFlag.PAE, "entries of 8 bytes"),
            (PageFlag.CLONE, "the guest has copied the entries from another announced page"),
            (PageFlag.ZEROED, "the guest says that the page is zero; not to be believed"),
        ),
    ),
    Constants(
        UpdateFlag,
        "Flags of SetPxE, SetPxELong, UpdatePxE and UpdatePxELong",
        (
            (UpdateFlag.PT, "the entry is in a page table; levels are hints"),
            (UpdateFlag.PD, "the entry is in a page directory"),
            (UpdateFlag.PDP, "the entry is in a page-directory-pointer table"),
            (UpdateFlag.PML4, "fourth level, not used on i386"),
            (UpdateFlag.CURRENT_AS, "it is in the active address space; bits 31..12 hold the mapped address"),
            (UpdateFlag.DEFER, "the effect may wait for the next TLB operation that covers the page"),
        ),
    ),
    Constants(
        FlushFlag,
        "Flags of FlushTLB",
        (
            (FlushFlag.TLB, "drop the non-global translations"),
            (FlushFlag.GLOBAL, "drop the global ones as well"),
        ),
    ),
    Constants(
        LazyMode,
        "Lazy modes",
        (
            (LazyMode.NONE, "every call has its effect before it returns"),
            (LazyMode.MMU, "effects of page-table updates may be queued"),
            (LazyMode.CPU, "effects of what a context switch changes may be queued"),
        ),
    ),
    Constants(
        Counter,
        "Cycle counters; real = available + stolen",
        (
            (Counter.REAL, "per machine: time that passes"),
            (Counter.AVAILABLE, "per CPU: time in which the guest ran or chose to halt"),
            (Counter.STOLEN, "per CPU: time in which the guest was ready and did not run"),
        ),
    ),
    Constants(
        AlarmFlag,
        "Flags of SetAlarm and CancelAlarm, above the counter number in bits 7..0",
        (
            (AlarmFlag.PERIODIC, "fire again every period; without it, once"),
            (AlarmFlag.WIRED_LVTT, "deliver through the local APIC's timer entry; without it, as IRQ 0"),
        ),
    ),
)


@dataclass(frozen=True, slots=True)
class Requirement:
    """One testable sentence with a permanent id; ids are never reused or renumbered.

    `subject` is the name of the call or Topic that it belongs to, `level` an index into LEVELS.
    """

    id: str
    text: str
    level: int
    subject: str


@dataclass(frozen=True, slots=True)
class Arg:
    """One argument: `places` are 32-bit registers or "stackN" ([esp+4+4*N] on entry), low word first."""

    name: str
    type: str
    places: tuple[str, ...]
    meaning: str


@dataclass(frozen=True, slots=True)
class Result:
    """One result: `places` are 32-bit registers, low word first; `type` may be narrower."""

    name: str
    type: str
    places: tuple[str, ...]
    meaning: str


@dataclass(frozen=True, slots=True)
class Fault:
    """An exception that a call may raise in the guest, and when."""

    name: str
    when: str


@dataclass(frozen=True, slots=True)
class LinuxUse:
    """Linux's operation behind a call, how it binds, and what happens if the answer is NONE."""

    operation: str
    bind: Bind
    if_none: str


@dataclass(frozen=True, slots=True, repr=False)
class Call:
    """One call of the interface.

    `clobbers` are the registers left undefined besides results and flags. `relocations` are the
    GetRelocationInfo answers a ROM may give. `instructions` are the normal forms of the native
    instructions that the call stands for. `lazy` is the lazy mode in which the effect may be
    queued. `delivers` says that a guest interrupt handler may run inside the call though it was entered with
    interrupts off. `returns` is
    false where control never comes back to the instruction after the call.
    """

    number: int
    name: str
    group: Group
    level: int
    kind: Kind
    summary: str
    args: tuple[Arg, ...]
    results: tuple[Result, ...]
    convention: Convention
    clobbers: tuple[str, ...]
    flags: FlagsEffect
    faults: tuple[Fault, ...]
    instructions: tuple[str, ...]
    relocations: tuple[Reloc, ...]
    lazy: LazyMode
    delivers: bool
    returns: bool
    linux: LinuxUse
    requirements: tuple[Requirement, ...]
    notes: tuple[str, ...]
    source: str

    @property
    def preserves(self) -> tuple[str, ...]:
        """General registers that hold the same value after the call as before it."""
        changed = {place for result in self.results for place in result.places} | set(self.clobbers)
        return tuple(register for register in REGISTERS if register not in changed)

    @property
    def stack_words(self) -> int:
        """Number of 32-bit words that the caller pushes for this call."""
        return sum(place.startswith("stack") for arg in self.args for place in arg.places)

    def __repr__(self) -> str:
        return f"<{self.number} {self.name}>"


REGISTERS = ("eax", "ecx", "edx", "ebx", "ebp", "esi", "edi")
STANDARD_CLOBBERS = ("eax", "ecx", "edx")
LEVELS = (
    "boot and ROM",
    "uniprocessor CPU",
    "memory management",
    "time, APIC and SMP",
)


def stack_offset(place: str) -> int:
    """Offset from ESP on entry of a place "stackN": the return address is at 0, so 4 + 4*N."""
    if not (place.startswith("stack") and place[5:].isdigit()):
        raise ValueError(f"a stack place looks like stack0, got {place!r}")
    return 4 + 4 * int(place[5:])


# --- Binary layouts -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Field:
    """A field of a packed little-endian structure; offset and size in bytes."""

    offset: int
    size: int
    name: str
    meaning: str


ROM_SIGNATURE = 0xAA55
VROM_SIGNATURE = 0x696D5663  # the bytes "cVmi"
API_MAJOR = 3
API_MINOR = 0
SCAN_START = 0xC0000
SCAN_END = 0xE0000  # exclusive
SCAN_STEP = 2048
ROM_UNIT = 512  # bytes per unit of rom_length
INIT_OFFSET = 0x80
GET_RELOC_OFFSET = 0x88
ENTRY_SLOT_SIZE = 8
ROM_HEADER_SIZE = 0x90
PCI_SIGNATURE = b"PCIR"
PCI_VENDOR = 0x15AD
PCI_DEVICE = 0x0801
PNP_SIGNATURE = b"$PnP"
LICENCES = ("GPL", "GPL v2")

ROM_HEADER: tuple[Field, ...] = (
    Field(0x00, 2, "rom_signature", "0xAA55: the bytes 55 AA of any option ROM"),
    Field(0x02, 1, "rom_length", "length of the image in units of 512 bytes"),
    Field(0x03, 4, "rom_entry", "16-bit code that the BIOS calls far after its checks; ends in retf"),
    Field(0x07, 1, "rom_pad0", "padding, 0"),
    Field(0x08, 4, "vrom_signature", "0x696D5663: the bytes cVmi"),
    Field(0x0C, 1, "api_version_min", "minor version of the interface, 0; clients accept any value"),
    Field(0x0D, 1, "api_version_maj", "major version of the interface, exactly 3"),
    Field(0x0E, 1, "jump_slots", "number of jump slots; no known client reads it"),
    Field(0x0F, 1, "reserved1", "0"),
    Field(0x10, 4, "virtual_top", "lowest linear address the hypervisor keeps for itself; 0 = none"),
    Field(0x14, 2, "reserved2", "0"),
    Field(0x16, 2, "license_offs", "offset of the licence string (NUL-terminated) from the ROM's start"),
    Field(0x18, 2, "pci_header_offs", "offset of the PCI data structure; 0 makes clients refuse the ROM"),
    Field(0x1A, 2, "pnp_header_offs", "offset of the $PnP expansion header; 0 = none"),
    Field(0x1C, 4, "rom_pad3", "kept free for PnP, 0"),
    Field(0x20, 96, "reserved", "0"),
    Field(0x80, 8, "vmi_init", "code: entry of VMI_Init, executed in place"),
    Field(0x88, 8, "get_reloc", "code: entry of GetRelocationInfo, executed in place"),
)

PCI_HEADER: tuple[Field, ...] = (
    Field(0, 4, "signature", "the bytes PCIR"),
    Field(4, 2, "vendor_id", "0x15AD; another value only makes Linux warn"),
    Field(6, 2, "device_id", "0x0801; another value only makes Linux warn"),
    Field(8, 2, "vpd_data", "0"),
    Field(10, 2, "size", "length of this structure, 24"),
    Field(12, 1, "revision", "0"),
    Field(13, 1, "class", "PCI base class"),
    Field(14, 1, "subclass", "PCI subclass"),
    Field(15, 1, "interface", "PCI programming interface"),
    Field(16, 2, "chunks", "image length in units of 512 bytes"),
    Field(18, 1, "rom_version_min", "minor version of the ROM (low byte of PCI's code revision)"),
    Field(19, 1, "rom_version_maj", "major version of the ROM (high byte of PCI's code revision)"),
    Field(20, 1, "code_type", "0 = PC-AT"),
    Field(21, 1, "last_rom", "bit 7 set: the last image in this ROM"),
    Field(22, 2, "reserved", "0"),
)

PNP_HEADER: tuple[Field, ...] = (
    Field(0, 4, "signature", "the bytes $PnP"),
    Field(4, 1, "revision", "1"),
    Field(5, 1, "size", "length of the structure in units of 16 bytes"),
    Field(6, 2, "next", "offset of the next header, 0 = none"),
    Field(8, 2, "reserved", "0"),
    Field(10, 4, "device_id", "PnP device identifier"),
    Field(14, 2, "manufacturer_offset", "offset of the maker's name from the ROM's start"),
    Field(16, 2, "product_offset", "offset of the product's name from the ROM's start"),
)

RELOC_INFO: tuple[Field, ...] = (
    Field(0, 4, "eip", "linear address of the entry (EAX)"),
    Field(4, 1, "type", "relocation type (DL)"),
    Field(5, 3, "reserved", "0 (upper three bytes of EDX)"),
)

DESCRIPTOR_POINTER: tuple[Field, ...] = (
    Field(0, 2, "limit", "last valid byte offset of the table"),
    Field(2, 4, "base", "linear address of the table"),
)

AP_STATE_SIZE = 92
AP_STATE: tuple[Field, ...] = (
    Field(0, 4, "cr0", "control register 0, paging already on"),
    Field(4, 4, "cr2", "control register 2"),
    Field(8, 4, "cr3", "control register 3, guest-physical"),
    Field(12, 4, "cr4", "control register 4"),
    Field(16, 8, "efer", "extended feature MSR (C0000080h)"),
    Field(24, 4, "eip", "first instruction, linear"),
    Field(28, 4, "eflags", "flags; bit 1 may be clear"),
    Field(32, 4, "eax", "general register"),
    Field(36, 4, "ebx", "general register"),
    Field(40, 4, "ecx", "general register"),
    Field(44, 4, "edx", "general register"),
    Field(48, 4, "esp", "stack pointer"),
    Field(52, 4, "ebp", "general register"),
    Field(56, 4, "esi", "general register"),
    Field(60, 4, "edi", "general register"),
    Field(64, 2, "cs", "selector, RPL 0 allowed"),
    Field(66, 2, "ss", "selector, RPL 0 allowed"),
    Field(68, 2, "ds", "selector"),
    Field(70, 2, "es", "selector"),
    Field(72, 2, "fs", "selector"),
    Field(74, 2, "gs", "selector"),
    Field(76, 2, "ldtr", "selector, 0 = no LDT"),
    Field(78, 2, "gdtr_limit", "limit of the GDT"),
    Field(80, 4, "gdtr_base", "linear address of the GDT"),
    Field(84, 4, "idtr_base", "linear address of the IDT"),
    Field(88, 2, "idtr_limit", "limit of the IDT"),
    Field(90, 2, "pad", "0"),
)

LAYOUTS: tuple[tuple[str, tuple[Field, ...]], ...] = (
    ("ROM header", ROM_HEADER),
    ("PCI data structure", PCI_HEADER),
    ("PnP expansion header", PNP_HEADER),
    ("Result of GetRelocationInfo", RELOC_INFO),
    ("Descriptor table pointer", DESCRIPTOR_POINTER),
    ("AP state", AP_STATE),
)
FRAME_MEANING = "EIP, CS, EFLAGS; then ESP, SS for user mode; then ES, DS, FS, GS for virtual-8086 mode"


# --- Shorthand for the rows ----------------------------------------------------------------------

_G = Group
_USUAL = (Reloc.NONE, Reloc.CALL_REL)
_SKIPPABLE = (Reloc.NONE, Reloc.CALL_REL, Reloc.NOP)
_LEAVING = (Reloc.CALL_REL, Reloc.JUMP_REL)

_CLIENT = "Registers and use: Linux client code."
_SPEC = "Registers: Linux client code. Behaviour: VMware's specification 2.0 and Linux client code."
_HEADERS = "Number: unmerged API 3.0 headers; mainline Linux lacks it."
_UNUSED = "Registers: API 3.0 headers; no mainline Linux caller."
_PORTS = (
    "Number and register names: unmerged API 3.0 headers; mainline Linux lacks it. "
    "Which part of EAX changes, and the rep behaviour, are decided here."
)


def _split(sentence: str) -> tuple[str, str]:
    """Split "label: text" at the first colon."""
    label, text = sentence.split(": ", 1)
    return label, text


def _requirements(subject: str, level: int, sentences: tuple[str, ...]) -> tuple[Requirement, ...]:
    return tuple(Requirement(*_split(sentence), level, subject) for sentence in sentences)


def _eax(name: str, type_: str, meaning: str) -> Arg:
    return Arg(name, type_, ("eax",), meaning)


def _edx(name: str, type_: str, meaning: str) -> Arg:
    return Arg(name, type_, ("edx",), meaning)


def _ecx(name: str, type_: str, meaning: str) -> Arg:
    return Arg(name, type_, ("ecx",), meaning)


def _stack(index: int, name: str, type_: str, meaning: str) -> Arg:
    return Arg(name, type_, (f"stack{index}",), meaning)


def _returns(name: str, type_: str, meaning: str) -> tuple[Result, ...]:
    """The one result of a C function: EAX, or EDX:EAX for 64 bits."""
    return (Result(name, type_, ("eax", "edx") if type_ == "u64" else ("eax",), meaning),)


def _call(
    number: int,
    name: str,
    group: Group,
    level: int,
    kind: Kind,
    summary: str,
    *,
    linux: LinuxUse,
    requirements: tuple[str, ...],
    source: str,
    args: tuple[Arg, ...] = (),
    results: tuple[Result, ...] = (),
    convention: Convention = Convention.REGPARM,
    flags_only: bool = False,
    flags: FlagsEffect = FlagsEffect.CLOBBERED,
    faults: tuple[str, ...] = (),
    instructions: tuple[str, ...] = (),
    relocations: tuple[Reloc, ...] = _USUAL,
    lazy: LazyMode = LazyMode.NONE,
    delivers: bool = False,
    returns: bool = True,
    notes: tuple[str, ...] = (),
) -> Call:
    """Build a row; unless `flags_only`, EAX, ECX and EDX die where they hold no result."""
    held = {place for result in results for place in result.places}
    return Call(
        number=number,
        name=name,
        group=group,
        level=level,
        kind=kind,
        summary=summary,
        args=args,
        results=results,
        convention=convention,
        clobbers=() if flags_only else tuple(r for r in STANDARD_CLOBBERS if r not in held),
        flags=flags,
        faults=tuple(Fault(*_split(fault)) for fault in faults),
        instructions=instructions,
        relocations=relocations,
        lazy=lazy,
        delivers=delivers,
        returns=returns,
        linux=linux,
        requirements=_requirements(name, level, requirements),
        notes=notes,
        source=source,
    )


_TABLE_POINTER = (_eax("pointer", "ptr", "address of {u16 limit, u32 base}, read during the call"),)
_TABLE_STORE = (_eax("pointer", "ptr", "address of the 6 bytes {u16 limit, u32 base} to write"),)
_ENTRY = (
    _eax("table", "ptr", "linear address of the table"),
    _edx("index", "u32", "entry number, 8 bytes each"),
    _ecx("low", "u32", "bytes 0 to 3 of the new entry"),
    _stack(0, "high", "u32", "bytes 4 to 7 of the new entry"),
)


# --- Rows of the port calls, one pattern for three widths -----------------------------------------


@dataclass(frozen=True, slots=True)
class _Width:
    size: int
    word: str
    suffix: str
    register: str
    type: str


_DWORD = _Width(4, "dword", "d", "eax", "u32")
_BYTE = _Width(1, "byte", "b", "al", "u8")
_WORD = _Width(2, "word", "w", "ax", "u16")


def _port_call(
    number: int,
    name: str,
    summary: str,
    instruction: str,
    requirements: tuple[str, ...],
    args: tuple[Arg, ...],
    results: tuple[Result, ...] = (),
    faults: tuple[str, ...] = (),
) -> Call:
    return _call(
        number,
        name,
        _G.IO,
        1,
        Kind.IN_ROM,
        summary,
        args=args,
        results=results,
        convention=Convention.NATIVE,
        flags_only=True,
        faults=faults,
        instructions=(instruction,),
        linux=LinuxUse("none", Bind.UNUSED, f"no caller: {instruction} stays (traps)"),
        requirements=requirements,
        source=_PORTS,
    )


def _in_call(number: int, name: str, width: _Width) -> Call:
    narrow = width.size < 4
    kept = f"EAX above the {width.word} keeps its contents." if narrow else "All of EAX is the value."
    return _port_call(
        number,
        name,
        f"Read a {width.word} from a port.",
        f"in {width.register}",
        (
            f"VMI-{name}-01: It returns what one {width.word} read of the port in DX returns natively.",
            f"VMI-{name}-02: {kept}",
            f"VMI-{name}-03: The device sees exactly one read of size {width.size}; a port that nobody "
            "serves reads as all ones.",
            f"VMI-{name}-04: All general registers but EAX survive, ECX and EDX included.",
            f"VMI-{name}-05: Bits 31 to 16 of EDX are ignored.",
        ),
        (_edx("port", "u16", "port number"),),
        _returns("value", width.type, "the value; higher bits of EAX survive" if narrow else "the value"),
    )


def _out_call(number: int, name: str, width: _Width) -> Call:
    narrow = width.size < 4
    looked_at = f"Bits of EAX above the {width.word} are ignored." if narrow else "All of EAX is written."
    return _port_call(
        number,
        name,
        f"Write a {width.word} to a port.",
        f"out {width.register}",
        (
            f"VMI-{name}-01: The device at the port in DX sees exactly one write of size {width.size} with "
            "the value.",
            f"VMI-{name}-02: {looked_at}",
            f"VMI-{name}-03: All general registers survive, EAX, ECX and EDX included.",
            f"VMI-{name}-04: A write to a port that nobody serves has no effect.",
            f"VMI-{name}-05: Bits 31 to 16 of EDX are ignored.",
        ),
        (_eax("value", width.type, "the value"), _edx("port", "u16", "port number")),
    )


def _ins_call(number: int, name: str, width: _Width) -> Call:
    return _port_call(
        number,
        name,
        f"Read {width.word}s from a port into memory.",
        f"ins{width.suffix}",
        (
            f"VMI-{name}-01: It reads the port ECX times and stores the {width.word}s from EDI upwards, "
            "in the order read.",
            f"VMI-{name}-02: On return EDI has grown by {width.size} * count and ECX is 0.",
            f"VMI-{name}-03: With count 0 no port is read and no memory is written.",
            f"VMI-{name}-04: After a page fault on the buffer, reported to the guest, the transfer goes on "
            "without losing or repeating a read.",
            f"VMI-{name}-05: A page fault on the buffer has the error code of a write and CR2 at the first "
            "byte that can't be written.",
            f"VMI-{name}-06: A buffer whose second page is not there is filled as far as the first one goes "
            "before the page fault.",
            f"VMI-{name}-07: Bits 31 to 16 of EDX are ignored.",
        ),
        (
            Arg("buffer", "ptr", ("edi",), "first byte to store"),
            _edx("port", "u16", "port number"),
            _ecx("count", "u32", "number of transfers"),
        ),
        (
            Result("buffer", "ptr", ("edi",), "first byte after what was stored"),
            Result("count", "u32", ("ecx",), "0"),
        ),
        ("#PF: the buffer is not mapped, or not writable",),
    )


def _outs_call(number: int, name: str, width: _Width) -> Call:
    return _port_call(
        number,
        name,
        f"Write {width.word}s from memory to a port.",
        f"outs{width.suffix}",
        (
            f"VMI-{name}-01: It writes ECX {width.word}s from ESI upwards to the port, in order.",
            f"VMI-{name}-02: On return ESI has grown by {width.size} * count and ECX is 0.",
            f"VMI-{name}-03: With count 0 no port is written and no memory is read.",
            f"VMI-{name}-04: After a page fault on the buffer, reported to the guest, the transfer goes on "
            "without losing or repeating a write.",
            f"VMI-{name}-05: A page fault on the buffer has the error code of a read and CR2 at the first "
            "byte that can't be read.",
            f"VMI-{name}-06: Of a buffer whose second page is not there, what lies on the first one is "
            "written to the port before the page fault.",
            f"VMI-{name}-07: Bits 31 to 16 of EDX are ignored.",
        ),
        (
            Arg("buffer", "ptr", ("esi",), "first byte to read"),
            _edx("port", "u16", "port number"),
            _ecx("count", "u32", "number of transfers"),
        ),
        (
            Result("buffer", "ptr", ("esi",), "first byte after what was read"),
            Result("count", "u32", ("ecx",), "0"),
        ),
        ("#PF: the buffer is not mapped",),
    )


# --- What holds for every ROM and every call ------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Topic:
    """Requirements on something that is not a numbered call."""

    name: str
    title: str
    level: int
    requirements: tuple[Requirement, ...]


def _topic(name: str, title: str, level: int, *sentences: str) -> Topic:
    return Topic(name, title, level, _requirements(name, level, sentences))


TOPICS: tuple[Topic, ...] = (
    _topic(
        "ROM",
        "The ROM image and how a guest finds it",
        0,
        "VMI-ROM-01: The image starts with 55 AA, has cVmi at offset 8, and 3 as its API major version.",
        "VMI-ROM-02: All bytes of the image, rom_length units of 512, add up to 0 modulo 256.",
        "VMI-ROM-03: The image lies on a 2 KiB boundary at or above C0000h, starts below E0000h, and its "
        "memory is not reported as usable RAM.",
        "VMI-ROM-04: The field license_offs leads to a NUL-terminated string inside the image that is "
        "exactly GPL or GPL v2.",
        "VMI-ROM-05: The field pci_header_offs is not 0 and leads to a PCIR structure of vendor 15ADh, "
        "device 0801h.",
        "VMI-ROM-06: Every reserved field of the header is 0.",
        "VMI-ROM-07: The field virtual_top is 0, or a guest that maps nothing at or above it runs "
        "undisturbed.",
        "VMI-ROM-08: The 16-bit entry at offset 3 returns to the BIOS with a far return.",
    ),
    _topic(
        "Init",
        "VMI_Init, at offset 80h: the hypervisor takes over",
        0,
        "VMI-Init-01: The entry works in place at any linear address, without writing to the ROM's memory.",
        "VMI-Init-02: On success EAX is 0, and CS and SS already carry the privilege level at which the "
        "kernel runs from then on.",
        "VMI-Init-03: On success ESP, EBX, ESI, EDI and EBP are what they were, and virtual interrupts "
        "are still off.",
        "VMI-Init-04: On failure EAX is not 0 and nothing that the guest can observe has changed.",
        "VMI-Init-05: The descriptor tables, task register and page tables that were loaded natively "
        "before the call stay in force as the guest sees them.",
        "VMI-Init-06: EBX may hold anything: without a table of version 2 in RAM, and with one whose sites "
        "are outside RAM, the guest is taken over all the same.",
        "VMI-Init-07: With a table, an instruction that a record with call 255 names does what it does at "
        "level 0.",
    ),
    _topic(
        "GetReloc",
        "GetRelocationInfo, at offset 88h: where each call is",
        0,
        "VMI-GetReloc-01: For a call number in EAX it returns the entry's linear address in EAX, the "
        "relocation type in DL and 0 in the rest of EDX.",
        "VMI-GetReloc-02: A number that the ROM does not know is answered with type NONE.",
        "VMI-GetReloc-03: The same number gets the same answer at any time, with interrupts on or off, "
        "before and after the guest rewrote its sites.",
        "VMI-GetReloc-04: JUMP_REL is answered for IRET and SYSEXIT only.",
        "VMI-GetReloc-05: If GetCycleFrequency is offered, then GetCycleCounter, SetAlarm, CancelAlarm and "
        "GetWallclockTime are CALL_REL.",
        "VMI-GetReloc-06: If SetPxELong is offered, then UpdatePxELong is offered as CALL_REL.",
        "VMI-GetReloc-07: It works in place at any linear address, and preserves EBX, ESI, EDI and EBP.",
    ),
    _topic(
        "Call",
        "Every call",
        1,
        "VMI-Call-01: On return ESP is 4 above its value on entry; stack arguments are left to the caller.",
        "VMI-Call-02: EBX, ESI, EDI, EBP and all segment registers survive, unless the row says otherwise.",
        "VMI-Call-03: The direction flag is clear on return.",
        "VMI-Call-04: Calls work whatever FS and GS hold, the null selector included.",
        "VMI-Call-05: The virtual interrupt flag changes only by EnableInterrupts, DisableInterrupts, "
        "SetInterruptMask, IRET, SYSEXIT and Halt.",
        "VMI-Call-06: Apart from frames of events, a call writes at most 32 bytes below the stack pointer "
        "it was entered with.",
        "VMI-Call-07: Entered with virtual interrupts off, no call but EnableInterrupts, SetInterruptMask, "
        "Halt, IRET and SYSEXIT lets an interrupt handler run.",
        "VMI-Call-08: A call leaves the guest for its hypervisor once at most, faults of the guest's own and "
        "the filling of translations excepted.",
    ),
    _topic(
        "Sequence",
        "Calls and events together",
        1,
        "VMI-Sequence-01: Critical sections nest: behind the inner SetInterruptMask interrupts are still "
        "off, behind the outer one they are as they were.",
        "VMI-Sequence-02: An interrupt that is requested once while interrupts are off runs its handler "
        "once.",
        "VMI-Sequence-03: A handler entered from user code finds all registers and arithmetic flags, and "
        "by IRET user code goes on with them.",
        "VMI-Sequence-04: An event inside a handler returns to the handler, and that to where the first "
        "event came from.",
        "VMI-Sequence-05: A page fault of user code has the error code and the CR2 of its access, which "
        "succeeds once the kernel has mapped the page.",
        "VMI-Sequence-06: However often the guest switches between address spaces, no access goes by the "
        "other one's tables.",
        "VMI-Sequence-07: A store to a page that was read-only and then exchanged by the guest goes to "
        "the new page alone.",
        "VMI-Sequence-08: Interrupts are delivered while user code runs, and it goes on as if none had been.",
    ),
    _topic(
        "Interrupt",
        "Interrupts that arrive in a call, at any instruction of it",
        1,
        "VMI-Interrupt-01: With virtual interrupts on, its handler runs once, and before the instruction "
        "behind the call.",
        "VMI-Interrupt-02: EIP in its frame is the call's site, the instruction behind it, or code of the "
        "ROM or of its hypervisor.",
        "VMI-Interrupt-03: CS in its frame has the kernel's privilege level, and IF in the pushed flags is "
        "the virtual one, so 1.",
        "VMI-Interrupt-04: Its frame lies on the caller's stack, below the arguments and at most 36 bytes "
        "below where the stack pointer was.",
        "VMI-Interrupt-05: What survives the call survives the call with an interrupt in it.",
        "VMI-Interrupt-06: Results of the call are those that it has without an interrupt.",
        "VMI-Interrupt-07: Behind the call ESP, stack arguments, DF and the virtual interrupt flag are as "
        "without an interrupt.",
        "VMI-Interrupt-08: A handler that is entered at the site or behind the call finds the registers as "
        "they were there.",
        "VMI-Interrupt-09: With virtual interrupts off it waits, whatever call it arrives in that leaves "
        "them off.",
        "VMI-Interrupt-10: One that has waited is handled once when interrupts are switched on.",
        "VMI-Interrupt-11: Its handler may make the call that it has interrupted, and neither disturbs the "
        "other.",
        "VMI-Interrupt-12: In a call that switches interrupts on it is handled once, by the end of the call, "
        "and all registers survive.",
        "VMI-Interrupt-13: In a call that switches interrupts off it comes while they are on, or waits until "
        "they are on again, and comes once.",
        "VMI-Interrupt-14: In IRET with IF set in the image it is handled once, and the target gets its "
        "registers, flags and stack.",
        "VMI-Interrupt-15: In IRET without IF in the image it comes before the flag is cleared, or waits.",
        "VMI-Interrupt-16: In IRET to user mode its frame is the kernel's, or it has CS, SS, ESP and flags "
        "of the user code.",
        "VMI-Interrupt-17: In SYSEXIT it comes to user code, with the ESP that was asked for.",
        "VMI-Interrupt-18: In Halt it is handled once and Halt returns, even if it arrives just before the "
        "wait begins.",
        "VMI-Interrupt-19: Of two that arrive in one call each is handled once, the one with the higher "
        "priority first.",
        "VMI-Interrupt-20: Its handler may leave lazy MMU mode and enter it again: nothing of the batch that "
        "it has interrupted is lost.",
        "VMI-Interrupt-21: At any instruction of user code and of its way into the kernel it changes nothing "
        "of what user code and handlers see.",
    ),
    _topic(
        "Fault",
        "Faults of a call",
        1,
        "VMI-Fault-01: A call that is refused raises one exception, with the vector and error code of the "
        "native instruction.",
        "VMI-Fault-02: EIP in its frame is the call's site, or code of the ROM or of its hypervisor; CS has "
        "the kernel's privilege level.",
        "VMI-Fault-03: IF in its frame is the virtual interrupt flag, which is the same afterwards.",
        "VMI-Fault-04: Its frame lies on the caller's stack, below the arguments, which stay.",
        "VMI-Fault-05: Nothing that the call would have changed has changed, and with #PF CR2 is the address "
        "of the access.",
        "VMI-Fault-06: A ROM that promises FAULTS_AT_CALL reports it at the call instruction, with ESP and "
        "registers as before that.",
        "VMI-Fault-07: A handler that takes away the cause and returns lets the call do all that it should.",
        "VMI-Fault-08: An interrupt that waits meanwhile is neither let in nor lost.",
    ),
    _topic(
        "Activation",
        "What a patched kernel does before it starts",
        1,
        "VMI-Activation-01: A ROM is found on any 2 KiB boundary from C0000h to below E0000h; status is "
        "ACTIVE then, and rom_base its physical address.",
        "VMI-Activation-02: A ROM whose bytes do not add up to 0 modulo 256 is passed over.",
        "VMI-Activation-03: A ROM without 55 AA, or without cVmi, is passed over.",
        "VMI-Activation-04: A ROM with another API major version is passed over.",
        "VMI-Activation-05: A ROM of length 0 is passed over.",
        "VMI-Activation-06: A ROM without a PCI data structure is passed over.",
        "VMI-Activation-07: A ROM without a licence, with one outside its image, or with another one than "
        "GPL or GPL v2 is passed over.",
        "VMI-Activation-08: The search goes on behind a ROM that is passed over.",
        "VMI-Activation-09: A ROM that begins below C0000h or from E0000h on is not looked at.",
        "VMI-Activation-10: Where there is no ROM to be taken, status is NATIVE and rom_base 0, and slots, "
        "links and the kernel's code stay as they are.",
        "VMI-Activation-11: A ROM larger than the space kept for it is not started; status is TOO_LARGE and "
        "the kernel runs natively.",
        "VMI-Activation-12: If VMI_Init answers anything but 0, status is REFUSED and the kernel runs "
        "natively.",
        "VMI-Activation-13: VMI_Init is called in a copy at rom_reserve that has the image's bytes, with "
        "the header's physical address in EBX.",
        "VMI-Activation-14: A slot whose call is answered CALL_REL becomes a call of its adaptor, or of the "
        "entry if it has none, and NOPs.",
        "VMI-Activation-15: A slot whose call is answered NONE stays as it is.",
        "VMI-Activation-16: A slot whose call is answered NOP becomes NOPs if it has the flag NOP_OK, and "
        "stays as it is otherwise.",
        "VMI-Activation-17: A slot whose call is answered JUMP_REL becomes a jump to the entry and NOPs if "
        "it has the flag JUMP_OK, and stays as it is otherwise.",
        "VMI-Activation-18: A link leads to the entry of its call if that is answered CALL_REL, and stays "
        "as it is otherwise.",
        "VMI-Activation-19: A slot with call 254 becomes a call of its adaptor whatever the ROM answers.",
        "VMI-Activation-20: A slot with the flag ISOLATED stays as it is.",
        "VMI-Activation-21: A slot with the flag RECOVERED stays as it is unless it has no adaptor and the "
        "ROM promises FAULTS_AT_CALL; the word unconnected says so.",
        "VMI-Activation-22: The kernel is entered with the boot loader's registers and flags, but for ESP, "
        "which is stack_top.",
        "VMI-Activation-23: Nothing is written outside slots, links, the copy of the ROM and the segment's "
        "own scratch space, and no other word of the header.",
        "VMI-Activation-24: The memory map of a multiboot loader shows the segment as reserved and is "
        "otherwise the same; map_status is CARVED.",
        "VMI-Activation-25: Without a memory map map_status is NO_MAP; with another boot loader it is "
        "UNTOUCHED, and nothing of the loader's is changed.",
        "VMI-Activation-26: Activation that runs a second time leaves connected slots as they are, and the "
        "kernel works as the first time.",
    ),
    _topic(
        "Patched",
        "Patched kernels",
        1,
        "VMI-Patched-01: Without a ROM a patched kernel computes what the original computes.",
        "VMI-Patched-02: With a ROM it reads of control registers, tables and ports what the original reads "
        "without.",
        "VMI-Patched-03: A connected slot leaves general registers and arithmetic flags as its instruction "
        "does.",
        "VMI-Patched-04: CLI, STI, POPF, PUSHF and IRET in slots mean the virtual interrupt flag.",
        "VMI-Patched-05: An annotated kernel has its slots where its source has made them, and computes the "
        "same.",
        "VMI-Patched-06: A patched file is not patched again.",
        "VMI-Patched-07: Annotations that are not true of the code, or that contradict each other, are "
        "refused.",
    ),
    _topic(
        "Table",
        "Header, site table and link table of a patched kernel",
        1,
        "VMI-Table-01: A segment with another magic is refused.",
        "VMI-Table-02: A header of another version is refused.",
        "VMI-Table-03: A header that says that it is shorter than version 2 has it is refused.",
        "VMI-Table-04: A segment that ends in its header or its tables is refused.",
        "VMI-Table-05: A table outside the segment, or in its header, is refused.",
        "VMI-Table-06: A table with more records than the segment has room for is refused.",
        "VMI-Table-07: A record with an unknown tactic is refused.",
        "VMI-Table-08: A record with a call that there is not is refused.",
        "VMI-Table-09: A header that says that it is longer is read as far as it is known.",
        "VMI-Table-10: Records are in the order of their first word, and each slot has 5 bytes at least.",
        "VMI-Table-11: No two slots overlap, and no two links have one address.",
    ),
    _topic(
        "Exception",
        "Exceptions of user code and of the kernel",
        1,
        "VMI-Exception-01: A fault of user code has the processor's vector and error code, and EIP at its "
        "instruction.",
        "VMI-Exception-02: Its frame has CS, SS and ESP of user code, and the handler finds user code's "
        "registers.",
        "VMI-Exception-03: INT3, INTO and INT n of user code are delivered with EIP behind them.",
        "VMI-Exception-04: INT n of user code through a gate of level 0 raises #GP, and through one that is "
        "not present #NP, with the vector in the error code.",
        "VMI-Exception-05: With TF user code raises #DB behind each instruction, and handlers run without "
        "it.",
        "VMI-Exception-06: A page fault of user code says by its error code what the access was, and "
        "whether the page is there; CR2 is its address.",
        "VMI-Exception-07: A page fault of the kernel has the user bit clear in its error code, and EIP at "
        "its instruction.",
        "VMI-Exception-08: With TS an FPU instruction of user code raises #NM; without TS it runs.",
        "VMI-Exception-09: A load of a segment that is not present raises #NP, or #SS for SS, with its "
        "selector; the null selector in SS raises #GP.",
        "VMI-Exception-10: An exception in the kernel stays on its stack, has its CS and the virtual "
        "interrupt flag, and its handler may go on anywhere.",
        "VMI-Exception-11: Each entry from user mode begins at the top of the kernel's stack.",
    ),
    _topic(
        "Mmu",
        "Translation as the guest's tables say it",
        2,
        "VMI-Mmu-01: A right holds where directory and table both give it, for loads and stores of user "
        "code and stores of the kernel.",
        "VMI-Mmu-02: With WP clear the kernel stores to read-only pages, and user code does not.",
        "VMI-Mmu-03: The other bits of a directory entry that is not present mean nothing.",
        "VMI-Mmu-04: An entry that a plain store has made present counts without a call.",
        "VMI-Mmu-05: A right that a plain store has added counts without a call, at most after one more "
        "fault.",
        "VMI-Mmu-06: What is stored by one of two addresses of a page is loaded by the other.",
        "VMI-Mmu-07: A load sets the accessed bit in both levels and a store the dirty bit in the table, "
        "and no other bit of an entry changes.",
        "VMI-Mmu-08: Accessed and dirty bits that the guest has cleared are set again by the next access "
        "behind a flush.",
        "VMI-Mmu-09: A change in a table that two directory entries lead to counts by way of both.",
        "VMI-Mmu-10: A directory entry that leads to another table counts behind a flush.",
        "VMI-Mmu-11: A directory that is one of its own tables shows all tables, and stores there change "
        "mappings.",
        "VMI-Mmu-12: A frame that nothing answers at is no fault: loads give what they give without a "
        "hypervisor, and stores change nothing.",
        "VMI-Mmu-13: A large page has the rights of its one entry and gets its bits, and may be exchanged "
        "for a table.",
        "VMI-Mmu-14: Calls, events and ways to user code and back are the same in a kernel whose pages are "
        "not user code's.",
        "VMI-Mmu-15: A page is where its own entry says, whatever its place in its table and directory.",
        "VMI-Mmu-16: With PAE on, an access by way of an entry with a reserved bit raises #PF, and its error "
        "code says so.",
    ),
)


# --- The calls, in order of number ----------------------------------------------------------------

CALLS: tuple[Call, ...] = (
    _call(
        0,
        "CPUID",
        _G.PROCESSOR,
        1,
        Kind.IN_ROM,
        "Identify the processor as the guest may use it.",
        args=(_eax("leaf", "u32", "leaf"), _ecx("subleaf", "u32", "sub-leaf, where the leaf has any")),
        results=(
            Result("a", "u32", ("eax",), "EAX of the leaf"),
            Result("b", "u32", ("ebx",), "EBX of the leaf"),
            Result("c", "u32", ("ecx",), "ECX of the leaf"),
            Result("d", "u32", ("edx",), "EDX of the leaf"),
        ),
        convention=Convention.NATIVE,
        flags_only=True,
        instructions=("cpuid",),
        linux=LinuxUse("cpuid", Bind.WRAP, "native CPUID, which does not trap: host features leak"),
        requirements=(
            "VMI-CPUID-01: Leaf 0 returns the highest basic leaf in EAX, the vendor name in EBX, EDX, ECX.",
            "VMI-CPUID-02: Leaf 1 sets SEP (EDX bit 11) only if SYSENTER, SYSEXIT and the MSRs 174h to 176h "
            "work for the guest.",
            "VMI-CPUID-03: Leaf 1 sets PSE (EDX bit 3), PAE (6) and PGE (13) only if SetCR4 accepts the bit.",
            "VMI-CPUID-04: Leaf 1 sets APIC (EDX bit 9) only if a local APIC answers.",
            "VMI-CPUID-05: EAX, EBX, ECX and EDX are all written; every other register survives.",
        ),
        notes=("Early boot code and serialising code use the raw instruction: mask there too if possible.",),
        source=_CLIENT,
    ),
    _call(
        1,
        "WRMSR",
        _G.PROCESSOR,
        1,
        Kind.CALL_OUT,
        "Write a model-specific register.",
        args=(
            _ecx("msr", "u32", "register number"),
            Arg("value", "u64", ("eax", "edx"), "new contents"),
        ),
        convention=Convention.NATIVE,
        faults=("#GP: the register does not exist, is read-only, or the value sets a reserved bit",),
        instructions=("wrmsr",),
        linux=LinuxUse("none", Bind.UNUSED, "wrmsr is always native (traps); exception tables need the #GP"),
        requirements=(
            "VMI-WRMSR-01: After the call RDMSR of the same register returns the value.",
            "VMI-WRMSR-02: A register that the guest does not have raises #GP with error code 0.",
            "VMI-WRMSR-03: No register outside the guest's own processor state changes.",
            "VMI-WRMSR-04: A value that sets a bit which the register reserves raises #GP with error code "
            "0, and the register is as before.",
            "VMI-WRMSR-05: A write to a register that can only be read raises #GP with error code 0.",
        ),
        source=_UNUSED,
    ),
    _call(
        2,
        "RDMSR",
        _G.PROCESSOR,
        1,
        Kind.CALL_OUT,
        "Read a model-specific register.",
        args=(_ecx("msr", "u32", "register number"),),
        results=_returns("value", "u64", "contents"),
        convention=Convention.NATIVE,
        faults=("#GP: the register does not exist",),
        instructions=("rdmsr",),
        linux=LinuxUse("none", Bind.UNUSED, "rdmsr is always native (traps); exception tables need the #GP"),
        requirements=(
            "VMI-RDMSR-01: It returns the contents in EDX:EAX, high half in EDX.",
            "VMI-RDMSR-02: A register that the guest does not have raises #GP with error code 0.",
        ),
        source=_UNUSED,
    ),
    _call(
        3,
        "SetGDT",
        _G.DESCRIPTORS,
        1,
        Kind.CALL_OUT,
        "Load the global descriptor table register.",
        args=_TABLE_POINTER,
        faults=("#GP: segments in use are reloaded, and one has no valid descriptor in the new table",),
        instructions=("lgdt m",),
        linux=LinuxUse("load_gdt", Bind.FILL, "lgdt (traps)"),
        requirements=(
            "VMI-SetGDT-01: After the call GetGDT stores the limit and base that were given.",
            "VMI-SetGDT-02: Selectors loaded after the call take their descriptors from the new table.",
            "VMI-SetGDT-03: Segments in use go on working if the new table holds the same descriptors for "
            "them.",
            "VMI-SetGDT-04: Kernel data selectors with RPL 0 can still be loaded into DS, ES, FS and GS at "
            "the kernel's new privilege level.",
            "VMI-SetGDT-05: The 6 bytes behind the pointer are not needed after the call.",
            "VMI-SetGDT-06: A page fault on the 6 bytes has CR2 at the first of them that is not there, and "
            "leaves the table in use as it was.",
            "VMI-SetGDT-07: If segments in use are reloaded and one has no valid descriptor in the new "
            "table, the call raises #GP with its selector and the table stays; otherwise the new table is "
            "in use.",
        ),
        notes=(
            "A hypervisor may raise DPL 0, cut limits below virtual_top and set accessed bits; LAR, LSL and "
            "SGDT may show it.",
        ),
        source=_SPEC,
    ),
    _call(
        4,
        "SetLDT",
        _G.DESCRIPTORS,
        1,
        Kind.BATCHABLE,
        "Load the local descriptor table register with a selector.",
        args=(_eax("selector", "u16", "GDT selector of an LDT descriptor, or 0 for no LDT"),),
        faults=(
            "#GP: the selector does not name an LDT descriptor in the GDT",
            "#NP: the LDT descriptor is not present",
        ),
        instructions=("lldt rm",),
        lazy=LazyMode.CPU,
        linux=LinuxUse("set_ldt", Bind.WRAP, "lldt (traps)"),
        requirements=(
            "VMI-SetLDT-01: After the call GetLDT returns the selector.",
            "VMI-SetLDT-02: Base and limit come from the GDT entry as WriteGDTEntry left it before the call.",
            "VMI-SetLDT-03: With selector 0 there is no LDT, and loading an LDT selector raises #GP.",
            "VMI-SetLDT-04: An LDT selector loaded after the call gets the new table's descriptor.",
            "VMI-SetLDT-05: The selector of anything but an LDT raises #GP with the selector, but for its "
            "RPL, as error code, and the LDT stays as it was.",
            "VMI-SetLDT-06: The selector of an LDT that is not present raises #NP with it as error code.",
            "VMI-SetLDT-07: A selector beyond the GDT's limit, or one of the LDT, raises #GP with it as "
            "error code.",
            "VMI-SetLDT-08: Bits 31 to 16 of EAX are ignored.",
        ),
        notes=("Linux writes GDT entry 17 first, then passes 88h, or 0 for an empty LDT.",),
        source=_SPEC,
    ),
    _call(
        5,
        "SetIDT",
        _G.DESCRIPTORS,
        1,
        Kind.CALL_OUT,
        "Load the interrupt descriptor table register.",
        args=_TABLE_POINTER,
        instructions=("lidt m",),
        linux=LinuxUse("load_idt", Bind.FILL, "lidt (traps)"),
        requirements=(
            "VMI-SetIDT-01: After the call GetIDT stores the limit and base that were given.",
            "VMI-SetIDT-02: Exceptions, interrupts and INT n after the call go through the new table.",
            "VMI-SetIDT-03: A vector beyond the limit raises #GP with the error code of the vector.",
            "VMI-SetIDT-04: A page fault on the 6 bytes has CR2 at the first of them that is not there, and "
            "leaves the table in use as it was.",
        ),
        source=_CLIENT,
    ),
    _call(
        6,
        "SetTR",
        _G.DESCRIPTORS,
        1,
        Kind.CALL_OUT,
        "Load the task register with a selector.",
        args=(_eax("selector", "u16", "GDT selector of a TSS descriptor"),),
        faults=(
            "#GP: the selector does not name a free TSS in the GDT",
            "#NP: the TSS descriptor is not present",
        ),
        instructions=("ltr rm",),
        linux=LinuxUse("load_tr_desc", Bind.WRAP, "ltr (traps)"),
        requirements=(
            "VMI-SetTR-01: After the call GetTR returns the selector.",
            "VMI-SetTR-02: Port accesses from user mode are checked against this TSS's I/O bitmap as it "
            "stands in memory at that moment.",
            "VMI-SetTR-03: Without UpdateKernelStack, an entry from user mode uses ss0 and esp0 of this TSS "
            "as they stand in memory.",
            "VMI-SetTR-04: The selector of a TSS that is busy, or of anything but a TSS, raises #GP with the "
            "selector as error code, and the task register stays as it was.",
            "VMI-SetTR-05: The null selector raises #GP with error code 0.",
            "VMI-SetTR-06: The selector of a TSS that is not present raises #NP with it as error code.",
            "VMI-SetTR-07: A selector beyond the GDT's limit, or one of the LDT, raises #GP with it as "
            "error code.",
            "VMI-SetTR-08: Bits 31 to 16 of EAX are ignored.",
        ),
        notes=("Linux changes the I/O bitmap by plain stores, without any call.",),
        source=_SPEC,
    ),
    _call(
        7,
        "GetGDT",
        _G.DESCRIPTORS,
        1,
        Kind.IN_ROM,
        "Store the guest's global descriptor table register.",
        args=_TABLE_STORE,
        instructions=("sgdt m",),
        linux=LinuxUse("store_gdt", Bind.FILL, "sgdt, which does not trap: real values leak"),
        requirements=(
            "VMI-GetGDT-01: It stores the limit and base last given to SetGDT, or loaded before VMI_Init.",
            "VMI-GetGDT-02: It writes exactly 6 bytes at the pointer.",
            "VMI-GetGDT-03: A page fault on the 6 bytes has the error code of a write and CR2 at the first "
            "that can't be written; the call can be made again behind it.",
        ),
        source=_CLIENT,
    ),
    _call(
        8,
        "GetLDT",
        _G.DESCRIPTORS,
        1,
        Kind.IN_ROM,
        "Read the guest's local descriptor table selector.",
        results=_returns("selector", "u16", "selector, zero-extended to 32 bits"),
        instructions=("sldt rm",),
        linux=LinuxUse("none", Bind.UNUSED, "no caller: sldt stays, which does not trap"),
        requirements=(
            "VMI-GetLDT-01: It returns the selector last given to SetLDT, or loaded before VMI_Init.",
            "VMI-GetLDT-02: Bits 31 to 16 of EAX are 0.",
            "VMI-GetLDT-03: In lazy CPU mode it returns what SetLDT has been given.",
        ),
        source=_UNUSED,
    ),
    _call(
        9,
        "GetIDT",
        _G.DESCRIPTORS,
        1,
        Kind.IN_ROM,
        "Store the guest's interrupt descriptor table register.",
        args=_TABLE_STORE,
        instructions=("sidt m",),
        linux=LinuxUse("store_idt", Bind.FILL, "sidt, which does not trap: real values leak"),
        requirements=(
            "VMI-GetIDT-01: It stores the limit and base last given to SetIDT, or loaded before VMI_Init.",
            "VMI-GetIDT-02: It writes exactly 6 bytes at the pointer.",
            "VMI-GetIDT-03: A page fault on the 6 bytes has the error code of a write and CR2 at the first "
            "that can't be written; the call can be made again behind it.",
        ),
        source=_CLIENT,
    ),
    _call(
        10,
        "GetTR",
        _G.DESCRIPTORS,
        1,
        Kind.IN_ROM,
        "Read the guest's task register selector.",
        results=_returns("selector", "u16", "selector, zero-extended to 32 bits"),
        instructions=("str rm",),
        linux=LinuxUse("store_tr", Bind.FILL, "str, which does not trap: the real value leaks"),
        requirements=(
            "VMI-GetTR-01: It returns the selector last given to SetTR, or loaded before VMI_Init.",
            "VMI-GetTR-02: Bits 31 to 16 of EAX are 0.",
        ),
        source=_CLIENT,
    ),
    _call(
        11,
        "WriteGDTEntry",
        _G.DESCRIPTORS,
        1,
        Kind.BATCHABLE,
        "Write one entry of a global descriptor table.",
        args=_ENTRY,
        faults=("#GP: segments in use are reloaded, and the new entry is not valid for one",),
        lazy=LazyMode.CPU,
        linux=LinuxUse("write_gdt_entry", Bind.FILL, "two plain stores to the table"),
        requirements=(
            "VMI-WriteGDTEntry-01: Memory at table + 8 * index holds the 8 bytes on return, except for a "
            "raised DPL and the accessed bit.",
            "VMI-WriteGDTEntry-02: A selector loaded after the call gets the new descriptor.",
            "VMI-WriteGDTEntry-03: A segment in use has the new descriptor once its selector is loaded "
            "again, if not earlier.",
            "VMI-WriteGDTEntry-04: The high word is read from [esp+4] and the call leaves it on the stack.",
            "VMI-WriteGDTEntry-05: Entries with DPL 3 are stored bit for bit, so that the guest can compare "
            "them later.",
            "VMI-WriteGDTEntry-06: A page fault on the table or on the argument comes before anything is "
            "stored, and leaves the arguments, so that the call can be made again.",
            "VMI-WriteGDTEntry-07: If segments in use are reloaded and the new entry is not valid for one, "
            "the call raises #GP with its selector; otherwise the entry is stored.",
        ),
        notes=(
            "A context switch of Linux writes the three TLS entries through it: the hottest of the group.",
            "Linux binds it by wrapper from 2.6.25 on; the registers are the same.",
        ),
        source=_SPEC,
    ),
    _call(
        12,
        "WriteLDTEntry",
        _G.DESCRIPTORS,
        1,
        Kind.CALL_OUT,
        "Write one entry of a local descriptor table.",
        args=_ENTRY,
        faults=("#GP: segments in use are reloaded, and the new entry is not valid for one",),
        linux=LinuxUse("write_ldt_entry", Bind.FILL, "two plain stores to the table"),
        requirements=(
            "VMI-WriteLDTEntry-01: Memory at table + 8 * index holds the 8 bytes on return, except for a "
            "raised DPL and the accessed bit.",
            "VMI-WriteLDTEntry-02: If the table is the current LDT, a selector loaded after the call gets "
            "the new descriptor.",
            "VMI-WriteLDTEntry-03: A table that is not the current LDT may be written too, and takes effect "
            "with the SetLDT that selects it.",
            "VMI-WriteLDTEntry-04: A segment in use has the new descriptor once its selector is loaded "
            "again, if not earlier.",
            "VMI-WriteLDTEntry-05: A page fault on the table or on the argument comes before anything is "
            "stored, and leaves the arguments, so that the call can be made again.",
            "VMI-WriteLDTEntry-06: If segments in use are reloaded and the new entry is not valid for one, "
            "the call raises #GP with its selector; otherwise the entry is stored.",
        ),
        notes=("Linux binds it by wrapper from 2.6.25 on; the registers are the same.",),
        source=_SPEC,
    ),
    _call(
        13,
        "WriteIDTEntry",
        _G.DESCRIPTORS,
        1,
        Kind.CALL_OUT,
        "Write one gate of an interrupt descriptor table.",
        args=_ENTRY,
        linux=LinuxUse("write_idt_entry", Bind.FILL, "two plain stores to the table"),
        requirements=(
            "VMI-WriteIDTEntry-01: Memory at table + 8 * index holds the 8 bytes on return.",
            "VMI-WriteIDTEntry-02: If the table is the current IDT, the next event of that vector goes "
            "through the new gate.",
            "VMI-WriteIDTEntry-03: A gate whose selector has RPL 0 enters the kernel at its privilege level.",
            "VMI-WriteIDTEntry-04: An interrupt gate clears the virtual interrupt flag on entry; a trap gate "
            "leaves it.",
            "VMI-WriteIDTEntry-05: A page fault on the table or on the argument comes before anything is "
            "stored, and leaves the arguments, so that the call can be made again.",
        ),
        notes=("Linux binds it by wrapper from 2.6.25 on; the registers are the same.",),
        source=_SPEC,
    ),
    _call(
        14,
        "UpdateKernelStack",
        _G.DESCRIPTORS,
        1,
        Kind.BATCHABLE,
        "Set the stack on which the kernel is entered from user mode.",
        args=(
            _eax("stack_selector", "u16", "kernel stack selector; RPL 0 is allowed"),
            _edx("esp0", "u32", "stack pointer at the entry"),
        ),
        lazy=LazyMode.CPU,
        linux=LinuxUse("load_esp0", Bind.WRAP, "only esp0 in the TSS is stored"),
        requirements=(
            "VMI-UpdateKernelStack-01: The next entry from user mode pushes its frame below esp0.",
            "VMI-UpdateKernelStack-02: SS in the handler is a kernel stack segment whose RPL is the kernel's "
            "privilege level, also if the argument had RPL 0.",
            "VMI-UpdateKernelStack-03: The last call before an entry counts; one made in lazy CPU mode "
            "counts once the mode is left.",
            "VMI-UpdateKernelStack-04: An event that arrives while the kernel runs stays on its stack.",
            "VMI-UpdateKernelStack-05: Bits 31 to 16 of EAX are ignored.",
        ),
        notes=(
            "Specification 2.0 calls the first argument a TSS pointer; every client passes the selector.",
        ),
        source=_CLIENT,
    ),
    _call(
        15,
        "SetCR0",
        _G.CONTROL,
        1,
        Kind.BATCHABLE,
        "Write control register 0.",
        args=(_eax("value", "u32", "new contents"),),
        faults=("#GP: PG without PE, or NW without CD",),
        instructions=("mov cr0,r",),
        lazy=LazyMode.CPU,
        linux=LinuxUse("write_cr0", Bind.FILL, "mov to CR0 (traps)"),
        requirements=(
            "VMI-SetCR0-01: After the call GetCR0 returns the value, with ET always 1.",
            "VMI-SetCR0-02: With TS set, the next FPU instruction raises #NM.",
            "VMI-SetCR0-03: With WP set, a kernel store to a read-only user page raises #PF; with WP clear "
            "it does not.",
            "VMI-SetCR0-04: TS may be toggled any number of times.",
            "VMI-SetCR0-05: PG without PE raises #GP with error code 0, and CR0 stays as it was.",
            "VMI-SetCR0-06: NW without CD raises #GP with error code 0, and CR0 stays as it was.",
        ),
        notes=("Only TS changes may be queued in lazy CPU mode.",),
        source=_SPEC,
    ),
    _call(
        16,
        "SetCR2",
        _G.CONTROL,
        1,
        Kind.CALL_OUT,
        "Write control register 2, the page-fault address.",
        args=(_eax("value", "u32", "new contents"),),
        instructions=("mov cr2,r",),
        linux=LinuxUse("write_cr2", Bind.FILL, "mov to CR2 (traps)"),
        requirements=(
            "VMI-SetCR2-01: After the call GetCR2 returns the value, until the next page fault.",
            "VMI-SetCR2-02: Every 32-bit value is accepted.",
        ),
        source=_CLIENT,
    ),
    _call(
        17,
        "SetCR3",
        _G.CONTROL,
        1,
        Kind.BATCHABLE,
        "Switch to another set of page tables.",
        args=(_eax("value", "u32", "guest-physical address of the root, low bits as for the register"),),
        faults=("#GP: with PAE on, the root holds a present entry with a reserved bit set",),
        instructions=("mov cr3,r",),
        lazy=LazyMode.CPU,
        linux=LinuxUse("write_cr3", Bind.FILL, "mov to CR3 (traps)"),
        requirements=(
            "VMI-SetCR3-01: After the call addresses are translated by the page tables at the given root.",
            "VMI-SetCR3-02: No stale translation survives, global ones excepted; loading the root already in "
            "use flushes as well.",
            "VMI-SetCR3-03: After the call GetCR3 returns the root address, PCD and PWT as given; with PAE "
            "on, address bits 5 to 11 too.",
            "VMI-SetCR3-04: Updates queued in lazy MMU mode take effect before the switch.",
            "VMI-SetCR3-05: The root need not have been announced by AllocatePage.",
            "VMI-SetCR3-06: With PAE on, an entry of the active root filled in before the call is in force "
            "after it.",
            "VMI-SetCR3-07: With PAE on, a root with a reserved bit in a present entry is refused with #GP, "
            "error code 0, or is in force afterwards.",
        ),
        notes=(
            "Linux PAE up to 2.6.24 rewrites its live two-level root as a PAE root, reloads CR3, and only "
            "then sets CR4.PAE: do not validate the root before CR4 changes.",
        ),
        source=_SPEC,
    ),
    _call(
        18,
        "SetCR4",
        _G.CONTROL,
        1,
        Kind.CALL_OUT,
        "Write control register 4.",
        args=(_eax("value", "u32", "new contents"),),
        faults=("#GP: the value sets a bit that CPUID does not offer",),
        instructions=("mov cr4,r",),
        linux=LinuxUse("write_cr4", Bind.FILL, "mov to CR4 (traps)"),
        requirements=(
            "VMI-SetCR4-01: After the call GetCR4 returns the value.",
            "VMI-SetCR4-02: With PSE set, a page-directory entry with bit 7 set maps 4 MiB.",
            "VMI-SetCR4-03: Changing PGE, PSE or PAE leaves no stale translation, global ones included.",
            "VMI-SetCR4-04: PGE and TSD may be cleared and set again at any time.",
            "VMI-SetCR4-05: If CPUID offers PAE, it may be set while paging is on; CR3 is read as a PAE root "
            "from then on.",
            "VMI-SetCR4-06: A bit that the processor does not have raises #GP with error code 0, and CR4 "
            "stays as it was.",
        ),
        source=_SPEC,
    ),
    _call(
        19,
        "GetCR0",
        _G.CONTROL,
        1,
        Kind.IN_ROM,
        "Read control register 0.",
        results=_returns("value", "u32", "contents"),
        instructions=("mov r,cr0",),
        linux=LinuxUse("read_cr0", Bind.FILL, "mov from CR0 (traps)"),
        requirements=(
            "VMI-GetCR0-01: It returns what the guest last wrote, with ET always 1.",
            "VMI-GetCR0-02: TS shows the guest's own setting, whatever the hypervisor does with the FPU.",
            "VMI-GetCR0-03: In lazy CPU mode it shows what SetCR0 and CLTS have been given.",
        ),
        source=_CLIENT,
    ),
    _call(
        20,
        "GetCR2",
        _G.CONTROL,
        1,
        Kind.IN_ROM,
        "Read control register 2, the page-fault address.",
        results=_returns("value", "u32", "contents"),
        instructions=("mov r,cr2",),
        linux=LinuxUse("read_cr2", Bind.FILL, "mov from CR2 (traps)"),
        requirements=(
            "VMI-GetCR2-01: In a page-fault handler it returns the linear address of the faulting access.",
            "VMI-GetCR2-02: A page fault that the hypervisor resolves by itself does not change it.",
        ),
        source=_CLIENT,
    ),
    _call(
        21,
        "GetCR3",
        _G.CONTROL,
        1,
        Kind.IN_ROM,
        "Read control register 3, the root of the page tables.",
        results=_returns("value", "u32", "guest-physical address of the root, low bits as written"),
        instructions=("mov r,cr3",),
        linux=LinuxUse("read_cr3", Bind.FILL, "mov from CR3 (traps)"),
        requirements=(
            "VMI-GetCR3-01: It returns what the guest last wrote, or loaded before VMI_Init.",
            "VMI-GetCR3-02: The address is guest-physical, never that of a shadow table.",
            "VMI-GetCR3-03: In lazy CPU mode it shows what SetCR3 has been given.",
        ),
        source=_CLIENT,
    ),
    _call(
        22,
        "GetCR4",
        _G.CONTROL,
        1,
        Kind.IN_ROM,
        "Read control register 4.",
        results=_returns("value", "u32", "contents"),
        instructions=("mov r,cr4",),
        linux=LinuxUse("read_cr4", Bind.FILL, "mov from CR4 (traps)"),
        requirements=(
            "VMI-GetCR4-01: It returns what the guest last wrote, or loaded before VMI_Init.",
            "VMI-GetCR4-02: Bits that the hypervisor sets for its own use do not show.",
        ),
        source=_CLIENT,
    ),
    _call(
        23,
        "WBINVD",
        _G.PROCESSOR,
        1,
        Kind.CALL_OUT,
        "Write back and invalidate the caches.",
        instructions=("wbinvd",),
        relocations=_SKIPPABLE,
        linux=LinuxUse("wbinvd", Bind.FILL, "wbinvd (traps)"),
        requirements=(
            "VMI-WBINVD-01: Memory contents are the same before and after the call.",
            "VMI-WBINVD-02: NOP is answered only where caches are coherent with everything that can read the "
            "guest's memory.",
        ),
        source=_CLIENT,
    ),
    _call(
        24,
        "SetDR",
        _G.CONTROL,
        1,
        Kind.CALL_OUT,
        "Write a debug register.",
        args=(_eax("number", "u32", "register number, 0 to 7"), _edx("value", "u32", "new contents")),
        faults=("#UD: number 4 or 5 while CR4.DE is set", "#DB: DR7.GD is set"),
        instructions=("mov dr,r",),
        linux=LinuxUse("set_debugreg", Bind.FILL, "mov to a debug register (traps)"),
        requirements=(
            "VMI-SetDR-01: After the call GetDR of the same number returns the value, apart from bits that "
            "are fixed in DR6 and DR7.",
            "VMI-SetDR-02: A breakpoint enabled in DR7 raises #DB in the guest when its address is hit.",
            "VMI-SetDR-03: Registers 0 to 3 keep their contents while user code runs.",
            "VMI-SetDR-04: Registers 4 and 5 raise #UD while CR4.DE is set.",
            "VMI-SetDR-05: While DR7.GD is set an access raises #DB and nothing is written; the flag is "
            "clear then, so that the call can be made again.",
            "VMI-SetDR-06: While CR4.DE is clear, 4 and 5 mean 6 and 7.",
        ),
        source=_CLIENT,
    ),
    _call(
        25,
        "GetDR",
        _G.CONTROL,
        1,
        Kind.IN_ROM,
        "Read a debug register.",
        args=(_eax("number", "u32", "register number, 0 to 7"),),
        results=_returns("value", "u32", "contents"),
        faults=("#UD: number 4 or 5 while CR4.DE is set", "#DB: DR7.GD is set"),
        instructions=("mov r,dr",),
        linux=LinuxUse("get_debugreg", Bind.FILL, "mov from a debug register (traps)"),
        requirements=(
            "VMI-GetDR-01: Registers 0 to 3 return what the guest last wrote.",
            "VMI-GetDR-02: In a #DB handler register 6 names the breakpoint that was hit.",
            "VMI-GetDR-03: Registers 4 and 5 raise #UD while CR4.DE is set.",
            "VMI-GetDR-04: While DR7.GD is set an access raises #DB; the flag is clear then, so that the "
            "call can be made again.",
            "VMI-GetDR-05: While CR4.DE is clear, 4 and 5 mean 6 and 7.",
        ),
        source=_CLIENT,
    ),
    _call(
        26,
        "RDPMC",
        _G.PROCESSOR,
        1,
        Kind.CALL_OUT,
        "Read a performance counter.",
        args=(_ecx("counter", "u32", "counter number"),),
        results=_returns("value", "u64", "count, 40 bits"),
        convention=Convention.NATIVE,
        faults=("#GP: the processor shown to the guest has no such counter",),
        instructions=("rdpmc",),
        linux=LinuxUse("none", Bind.UNUSED, "no caller: rdpmc stays (traps unless CR4.PCE is set)"),
        requirements=(
            "VMI-RDPMC-01: A counter that the guest does not have raises #GP in the guest.",
            "VMI-RDPMC-02: Two reads with no guest instruction counted between them do not go backwards.",
        ),
        source=_UNUSED,
    ),
    _call(
        27,
        "RDTSC",
        _G.PROCESSOR,
        1,
        Kind.IN_ROM,
        "Read the time-stamp counter.",
        results=_returns("value", "u64", "cycles"),
        instructions=("rdtsc",),
        linux=LinuxUse("read_tsc", Bind.FILL, "rdtsc (traps only if CR4.TSD is set)"),
        requirements=(
            "VMI-RDTSC-01: A later read on the same CPU is never smaller than an earlier one.",
            "VMI-RDTSC-02: It works in the kernel also while CR4.TSD is set.",
            "VMI-RDTSC-03: It does not stand still while the guest runs.",
        ),
        source=_CLIENT,
    ),
    _call(
        28,
        "CLTS",
        _G.CONTROL,
        1,
        Kind.BATCHABLE,
        "Clear the task-switched flag in CR0.",
        instructions=("clts",),
        lazy=LazyMode.CPU,
        linux=LinuxUse("clts", Bind.FILL, "clts (traps)"),
        requirements=(
            "VMI-CLTS-01: After the call bit 3 of GetCR0 is 0 and no other bit has changed.",
            "VMI-CLTS-02: An FPU instruction after the call does not raise #NM, EM being clear.",
        ),
        source=_CLIENT,
    ),
    _call(
        29,
        "EnableInterrupts",
        _G.INTERRUPTS,
        1,
        Kind.IN_ROM,
        "Set the virtual interrupt flag and deliver what is pending.",
        flags_only=True,
        instructions=("sti",),
        delivers=True,
        linux=LinuxUse("irq_enable", Bind.FILL_PATCH, "sti (#GP when CPL is above IOPL)"),
        requirements=(
            "VMI-EnableInterrupts-01: After the call GetInterruptMask returns 200h.",
            "VMI-EnableInterrupts-02: An interrupt that was pending is delivered no later than the return.",
            "VMI-EnableInterrupts-03: All general registers survive, EAX, ECX and EDX included.",
            "VMI-EnableInterrupts-04: It works with any DS and ES; only CS and SS need to be flat.",
            "VMI-EnableInterrupts-05: With interrupts already on, it changes nothing.",
        ),
        notes=("Linux rewrites its sites in place and keeps values in ECX and EDX across them.",),
        source=_SPEC,
    ),
    _call(
        30,
        "DisableInterrupts",
        _G.INTERRUPTS,
        1,
        Kind.IN_ROM,
        "Clear the virtual interrupt flag.",
        flags_only=True,
        instructions=("cli",),
        linux=LinuxUse("irq_disable", Bind.FILL_PATCH, "cli (#GP when CPL is above IOPL)"),
        requirements=(
            "VMI-DisableInterrupts-01: After the call GetInterruptMask returns 0 in bit 9.",
            "VMI-DisableInterrupts-02: No interrupt is delivered between the return and the next call that "
            "sets the flag.",
            "VMI-DisableInterrupts-03: All general registers survive, EAX, ECX and EDX included.",
            "VMI-DisableInterrupts-04: It works with any DS and ES; only CS and SS need to be flat.",
            "VMI-DisableInterrupts-05: Exceptions are still delivered, with IF 0 in the pushed flags.",
        ),
        source=_SPEC,
    ),
    _call(
        31,
        "GetInterruptMask",
        _G.INTERRUPTS,
        1,
        Kind.IN_ROM,
        "Read the virtual interrupt flag.",
        results=_returns("mask", "u32", "bit 9 (200h) is the virtual flag; other bits are undefined"),
        flags_only=True,
        instructions=("pushf",),
        linux=LinuxUse("save_fl", Bind.FILL_PATCH, "pushf, which does not trap: shows the real flag"),
        requirements=(
            "VMI-GetInterruptMask-01: Bit 9 of EAX is the flag as the guest last set it, also while the real "
            "flag stays set.",
            "VMI-GetInterruptMask-02: ECX and EDX survive as well as the registers that survive any call.",
            "VMI-GetInterruptMask-03: SetInterruptMask with the result restores the state it was read in.",
            "VMI-GetInterruptMask-04: It works with any DS and ES; only CS and SS need to be flat.",
        ),
        notes=("The call stands for the interrupt flag in pushf only: other flags are the processor's own.",),
        source=_SPEC,
    ),
    _call(
        32,
        "SetInterruptMask",
        _G.INTERRUPTS,
        1,
        Kind.IN_ROM,
        "Set the virtual interrupt flag from a flags image.",
        args=(_eax("mask", "u32", "bit 9 (200h) is the new flag; other bits are ignored"),),
        flags_only=True,
        instructions=("popf",),
        delivers=True,
        linux=LinuxUse("restore_fl", Bind.FILL_PATCH, "popf, which ignores IF when CPL is above IOPL"),
        requirements=(
            "VMI-SetInterruptMask-01: After the call bit 9 of GetInterruptMask equals bit 9 of the argument.",
            "VMI-SetInterruptMask-02: If bit 9 is set, a pending interrupt is delivered no later than the "
            "return.",
            "VMI-SetInterruptMask-03: No bit but bit 9 has any effect.",
            "VMI-SetInterruptMask-04: All general registers survive, EAX, ECX and EDX included.",
            "VMI-SetInterruptMask-05: It works with any DS and ES; only CS and SS need to be flat.",
        ),
        source=_SPEC,
    ),
    _call(
        33,
        "IRET",
        _G.INTERRUPTS,
        1,
        Kind.IN_ROM,
        "Return from an exception or interrupt through the frame on the stack.",
        convention=Convention.FRAME,
        flags_only=True,
        flags=FlagsEffect.FROM_FRAME,
        faults=(
            "#GP: the frame's CS, or SS on a return to user mode, can't be loaded",
            "#NP: the frame's code segment is not present",
            "#SS: the frame's stack segment is not present",
        ),
        instructions=("iret",),
        relocations=_LEAVING,
        delivers=True,
        returns=False,
        linux=LinuxUse("iret", Bind.PATCH, "the site keeps a jump through a poison pointer and crashes"),
        requirements=(
            "VMI-IRET-01: EIP, CS and EFLAGS, then ESP and SS on a return to user mode, then ES, DS, FS and "
            "GS if the image has VM set, come from the stack.",
            "VMI-IRET-02: Reached as CALL_REL it drops the return address above the frame; reached as "
            "JUMP_REL the frame itself is on top.",
            "VMI-IRET-03: The virtual interrupt flag becomes IF of the image; if that is set, a pending "
            "interrupt is delivered before the target's first instruction or right after it.",
            "VMI-IRET-04: Unless the kernel runs at level 0, IOPL is not taken from the image.",
            "VMI-IRET-05: A fault is reported with EIP at the site (return address - 5 for CALL_REL) and the "
            "frame intact on the interrupted stack.",
            "VMI-IRET-06: Every general register reaches the target unchanged.",
            "VMI-IRET-07: A frame whose CS is null, no code segment, or of a level that it can't return to "
            "raises #GP with the selector as error code.",
            "VMI-IRET-08: A frame whose code segment is not present raises #NP with its selector.",
            "VMI-IRET-09: A return to user mode with an SS that is null or no writable data segment of "
            "level 3 raises #GP with the selector as error code.",
            "VMI-IRET-10: A return to user mode with a stack segment that is not present raises #SS with "
            "its selector.",
            "VMI-IRET-11: Once the frame or the descriptor that it was refused for is right, it can be made "
            "again.",
        ),
        notes=(
            "A same-ring frame has 3 words, and its CS carries the kernel's privilege level.",
            "One entry can't serve CALL_REL and JUMP_REL: the stack differs by a word.",
            "A handler's stack has at least 32 free bytes below the frame.",
        ),
        source=_SPEC,
    ),
    _call(
        34,
        "SYSEXIT",
        _G.INTERRUPTS,
        1,
        Kind.IN_ROM,
        "Enable interrupts and leave for user mode without a frame.",
        args=(
            _edx("eip", "u32", "user instruction pointer"),
            _ecx("esp", "u32", "user stack pointer"),
        ),
        convention=Convention.NATIVE,
        flags_only=True,
        instructions=("sysexit",),
        relocations=(Reloc.NONE, *_LEAVING),
        delivers=True,
        returns=False,
        linux=LinuxUse(
            "irq_enable_sysexit",
            Bind.PATCH,
            "the site keeps a jump through a poison pointer: harmless only if CPUID hides SEP",
        ),
        requirements=(
            "VMI-SYSEXIT-01: User code runs at EIP = EDX with ESP = ECX, in flat user segments at level 3.",
            "VMI-SYSEXIT-02: The virtual interrupt flag is set, and no interrupt is taken in the kernel "
            "between setting it and reaching user mode.",
            "VMI-SYSEXIT-03: EAX, EBX, ESI, EDI and EBP reach user mode unchanged.",
            "VMI-SYSEXIT-04: If CPUID shows SEP, the relocation is CALL_REL or JUMP_REL; a return address "
            "left by CALL_REL is dropped with the kernel stack.",
        ),
        notes=("SYSENTER is not part of the interface: its MSRs are written with the raw instruction.",),
        source=_SPEC,
    ),
    _call(
        35,
        "Halt",
        _G.INTERRUPTS,
        1,
        Kind.CALL_OUT,
        "Enable interrupts and wait for one, as one indivisible step.",
        instructions=("sti;hlt",),
        delivers=True,
        linux=LinuxUse("safe_halt", Bind.FILL, "sti; hlt (traps)"),
        requirements=(
            "VMI-Halt-01: An interrupt that is already pending is delivered and the call then returns; "
            "no wake-up is lost.",
            "VMI-Halt-02: Otherwise the CPU waits until an interrupt was delivered, then the call returns.",
            "VMI-Halt-03: After the call GetInterruptMask returns 200h, if the handler left its frame alone.",
            "VMI-Halt-04: Virtual time goes on while the CPU waits, and counts as available, not stolen.",
        ),
        notes=(
            "A bare hlt with interrupts off is a stop for good and is not this call.",
            "NOP would turn the idle loop into a busy loop with interrupts off.",
        ),
        source=_SPEC,
    ),
    _call(
        36,
        "Reboot",
        _G.SYSTEM,
        1,
        Kind.CALL_OUT,
        "Restart the machine.",
        args=(_eax("how", "u32", "0 = soft, 1 = hard"),),
        flags_only=True,
        returns=False,
        linux=LinuxUse("none", Bind.UNUSED, "no caller: the machine is reset through its ports"),
        requirements=(
            "VMI-Reboot-01: No guest instruction after the call runs.",
            "VMI-Reboot-02: The run ends, or starts over, with a reset as its stated reason.",
        ),
        source=_UNUSED,
    ),
    _call(
        37,
        "Shutdown",
        _G.SYSTEM,
        1,
        Kind.CALL_OUT,
        "Switch the machine off.",
        flags_only=True,
        returns=False,
        linux=LinuxUse("none", Bind.UNUSED, "no caller: firmware switches the machine off"),
        requirements=(
            "VMI-Shutdown-01: No guest instruction after the call runs.",
            "VMI-Shutdown-02: The run ends with power-off as its stated reason.",
        ),
        source=_UNUSED,
    ),
    _call(
        38,
        "SetPxE",
        _G.MMU,
        2,
        Kind.BATCHABLE,
        "Write a 4-byte page-table entry of any level.",
        args=(
            _eax("value", "u32", "new entry, guest-physical frame"),
            _edx("entry", "ptr", "linear address of the entry"),
            _ecx("flags", "u32", "UpdateFlag, with the mapped address in bits 31..12 if CURRENT_AS"),
        ),
        relocations=_SKIPPABLE,
        lazy=LazyMode.MMU,
        linux=LinuxUse("set_pte, set_pte_at, set_pmd (two-level)", Bind.GET, "a plain store"),
        requirements=(
            "VMI-SetPxE-01: Memory at the entry holds the value on return, in lazy MMU mode too.",
            "VMI-SetPxE-02: Outside lazy mode, a page made present by the call can be accessed after it "
            "without a fault.",
            "VMI-SetPxE-03: The value is right for a page-table and a page-directory entry, whichever level "
            "the flags name.",
            "VMI-SetPxE-04: The address in the flags is used only if CURRENT_AS is set.",
            "VMI-SetPxE-05: An entry of a table that is not in use may be written; it counts later.",
            "VMI-SetPxE-06: The guest reads back the accessed and dirty bits in the entry itself.",
            "VMI-SetPxE-07: A page fault on the entry has the error code of a write and CR2 at the entry, "
            "and comes before anything is stored.",
        ),
        notes=(
            "Guests read entries with plain loads: they must always hold guest-physical frame numbers.",
            "The 13.x interface had the pointer in EAX, the value in EDX and a level in ECX.",
            "NOP counts as NONE in Linux: the plain store stays.",
        ),
        source=_SPEC,
    ),
    _call(
        39,
        "SetPxELong",
        _G.MMU,
        2,
        Kind.BATCHABLE,
        "Write an 8-byte (PAE) page-table entry of any level.",
        args=(
            Arg("value", "u64", ("eax", "edx"), "new entry, guest-physical frame"),
            _ecx("entry", "ptr", "linear address of the entry"),
            _stack(0, "flags", "u32", "UpdateFlag, with the mapped address in bits 31..12 if CURRENT_AS"),
        ),
        lazy=LazyMode.MMU,
        linux=LinuxUse("set_pte, set_pmd, set_pud, clears (PAE)", Bind.GET, "plain stores"),
        requirements=(
            "VMI-SetPxELong-01: All 8 bytes at the entry hold the value on return, in lazy MMU mode too.",
            "VMI-SetPxELong-02: No half-written present entry is ever used for a translation.",
            "VMI-SetPxELong-03: The value comes in EDX:EAX, the pointer in ECX and the flags at [esp+4].",
            "VMI-SetPxELong-04: Outside lazy mode, a page made present by the call can be accessed after it "
            "without a fault.",
            "VMI-SetPxELong-05: It may write the entries of a page-directory-pointer table of 32 bytes that "
            "shares its page with others.",
            "VMI-SetPxELong-06: A page fault on the entry has the error code of a write and CR2 at the "
            "entry, and comes before anything is stored.",
        ),
        notes=("Offer UpdatePxELong with it: Linux calls that one without asking first.",),
        source=_SPEC,
    ),
    _call(
        40,
        "UpdatePxE",
        _G.MMU,
        2,
        Kind.BATCHABLE,
        "Report that the guest has changed a 4-byte page-table entry in memory.",
        args=(
            _eax("entry", "ptr", "linear address of the entry"),
            _edx("flags", "u32", "UpdateFlag, with the mapped address in bits 31..12 if CURRENT_AS"),
        ),
        relocations=_SKIPPABLE,
        lazy=LazyMode.MMU,
        linux=LinuxUse("pte_update, pte_update_defer (two-level)", Bind.GET, "nothing"),
        requirements=(
            "VMI-UpdatePxE-01: Without DEFER, outside lazy mode, the entry in memory is in force on return.",
            "VMI-UpdatePxE-02: With DEFER the change is in force no later than the next InvalPage or "
            "FlushTLB that covers the page.",
            "VMI-UpdatePxE-03: The entry in memory is not changed by the call.",
            "VMI-UpdatePxE-04: A permission taken away is gone after the call and the flush that follows it.",
        ),
        notes=("A whole address space may be torn down in memory without one such report.",),
        source=_SPEC,
    ),
    _call(
        41,
        "UpdatePxELong",
        _G.MMU,
        2,
        Kind.BATCHABLE,
        "Report that the guest has changed an 8-byte (PAE) page-table entry in memory.",
        args=(
            _eax("entry", "ptr", "linear address of the entry"),
            _edx("flags", "u32", "UpdateFlag, with the mapped address in bits 31..12 if CURRENT_AS"),
        ),
        lazy=LazyMode.MMU,
        linux=LinuxUse("pte_update, pte_update_defer (PAE)", Bind.GET, "null call if SetPxELong is offered"),
        requirements=(
            "VMI-UpdatePxELong-01: Without DEFER and outside lazy mode, the entry in memory is in force on "
            "return.",
            "VMI-UpdatePxELong-02: The flags may say PT for a page-directory entry; it still counts as what "
            "it is.",
            "VMI-UpdatePxELong-03: The entry in memory is not changed by the call.",
        ),
        notes=("Linux writes the entry with cmpxchg8b first, large pages included, and always says PT.",),
        source=_SPEC,
    ),
    _call(
        42,
        "MachineToPhysical",
        _G.MMU,
        2,
        Kind.IN_ROM,
        "Translate a machine frame number to a guest-physical one.",
        args=(_eax("machine", "u32", "machine frame number"),),
        results=_returns("physical", "u32", "guest-physical frame number"),
        linux=LinuxUse("none", Bind.UNUSED, "no caller"),
        requirements=(
            "VMI-MachineToPhysical-01: For a frame that PhysicalToMachine returned it gives back the frame "
            "that was asked for.",
            "VMI-MachineToPhysical-02: Nothing but EAX, ECX, EDX and the flags changes.",
        ),
        source=_UNUSED,
    ),
    _call(
        43,
        "PhysicalToMachine",
        _G.MMU,
        2,
        Kind.IN_ROM,
        "Translate a guest-physical frame number to a machine one.",
        args=(_eax("physical", "u32", "guest-physical frame number"),),
        results=_returns("machine", "u32", "machine frame number"),
        linux=LinuxUse("none", Bind.UNUSED, "no caller"),
        requirements=(
            "VMI-PhysicalToMachine-01: Different frames of guest RAM get different answers.",
            "VMI-PhysicalToMachine-02: Page-table entries hold guest-physical frames, whether or not the "
            "guest asks.",
        ),
        source=_UNUSED,
    ),
    _call(
        44,
        "AllocatePage",
        _G.MMU,
        2,
        Kind.CALL_OUT,
        "Announce that a page will hold page-table entries.",
        args=(
            _eax("pfn", "u32", "guest-physical frame number of the page"),
            _edx("flags", "u32", "PageFlag: level of the table, PAE, CLONE, ZEROED"),
            _ecx("source_pfn", "u32", "with CLONE, the frame that was copied; else 0"),
            _stack(0, "start", "u32", "with CLONE, first copied entry; else 0"),
            _stack(1, "count", "u32", "with CLONE, number of copied entries; else 0"),
        ),
        relocations=_SKIPPABLE,
        linux=LinuxUse("alloc_pt, alloc_pd, alloc_pd_clone", Bind.GET, "nothing"),
        requirements=(
            "VMI-AllocatePage-01: The page's contents are the same before and after, with CLONE too.",
            "VMI-AllocatePage-02: Entries that the page already holds are in force once the page is in use, "
            "ZEROED or not.",
            "VMI-AllocatePage-03: The page in CR3 may be announced while it is in use.",
            "VMI-AllocatePage-04: The guest may go on storing to the page directly.",
            "VMI-AllocatePage-05: One page may be announced for several levels at once, or as PD when it "
            "holds a page-directory-pointer table.",
            "VMI-AllocatePage-06: The arguments start and count are read from [esp+4] and [esp+8], "
            "and stay there.",
        ),
        notes=(
            "Flags are hints: Linux calls its live root ZEROED, and names wrong levels under PAE.",
            "Linux two-level roots are CLONE from the kernel's root, entries 768 to 1023.",
        ),
        source=_CLIENT,
    ),
    _call(
        45,
        "ReleasePage",
        _G.MMU,
        2,
        Kind.CALL_OUT,
        "Announce that a page no longer holds page-table entries.",
        args=(
            _eax("pfn", "u32", "guest-physical frame number of the page"),
            _edx("flags", "u32", "PageFlag: the level it was announced with"),
        ),
        relocations=_SKIPPABLE,
        linux=LinuxUse("release_pt, release_pd", Bind.GET, "nothing"),
        requirements=(
            "VMI-ReleasePage-01: After the call the page is ordinary RAM: stores have no effect on mappings.",
            "VMI-ReleasePage-02: The page's contents are the same before and after the call.",
            "VMI-ReleasePage-03: It may be called in lazy MMU mode, with updates to the page still queued.",
            "VMI-ReleasePage-04: A page that was torn down by plain stores may be released without reports.",
        ),
        source=_CLIENT,
    ),
    _call(
        46,
        "InvalPage",
        _G.MMU,
        2,
        Kind.CALL_OUT,
        "Drop the translation of one page.",
        args=(_eax("address", "u32", "any linear address in the page"),),
        instructions=("invlpg m",),
        linux=LinuxUse("flush_tlb_single", Bind.FILL, "invlpg (traps)"),
        requirements=(
            "VMI-InvalPage-01: The next access to the page uses the entries in memory, global or not.",
            "VMI-InvalPage-02: Queued and deferred updates of the page are in force on return.",
            "VMI-InvalPage-03: An address that nothing maps is accepted without a fault.",
        ),
        source=_SPEC,
    ),
    _call(
        47,
        "FlushTLB",
        _G.MMU,
        2,
        Kind.CALL_OUT,
        "Drop all translations, with or without the global ones.",
        args=(_eax("flags", "u32", "FlushFlag: TLB, GLOBAL"),),
        linux=LinuxUse("flush_tlb_user, flush_tlb_kernel", Bind.WRAP, "mov cr3, CR4.PGE toggled (traps)"),
        requirements=(
            "VMI-FlushTLB-01: With TLB, every later access to a non-global page uses the entries in memory.",
            "VMI-FlushTLB-02: With TLB and GLOBAL, that holds for global pages as well.",
            "VMI-FlushTLB-03: Queued and deferred updates are in force on return.",
        ),
        source=_SPEC,
    ),
    _call(
        48,
        "SetLinearMapping",
        _G.MMU,
        2,
        Kind.IN_ROM,
        "Tell how linear addresses of page-table entries map to frames.",
        args=(
            _eax("slot", "u32", "0 to 3; 0 is the direct map of RAM"),
            _edx("address", "u32", "first linear address"),
            _ecx("pages", "u32", "number of pages"),
            _stack(0, "pfn", "u32", "first guest-physical frame number"),
        ),
        relocations=_SKIPPABLE,
        linux=LinuxUse("start-up of each CPU, kmap_atomic_pte", Bind.GET, "not called"),
        requirements=(
            "VMI-SetLinearMapping-01: Entries passed to SetPxE inside the range are found at frame pfn + "
            "(address of the entry - address) / 4096.",
            "VMI-SetLinearMapping-02: A second call for a slot replaces the range of the first.",
            "VMI-SetLinearMapping-03: Slots belong to the calling CPU; a new CPU starts with none.",
            "VMI-SetLinearMapping-04: The number of pages may exceed the installed RAM.",
            "VMI-SetLinearMapping-05: The guest's own translations do not change.",
        ),
        notes=("Slots 1 and 2 are one-page windows onto page tables in high memory, slot 3 an LDT window.",),
        source=_CLIENT,
    ),
    _in_call(49, "INL", _DWORD),
    _in_call(50, "INB", _BYTE),
    _in_call(51, "INW", _WORD),
    _ins_call(52, "INSL", _DWORD),
    _ins_call(53, "INSB", _BYTE),
    _ins_call(54, "INSW", _WORD),
    _out_call(55, "OUTL", _DWORD),
    _out_call(56, "OUTB", _BYTE),
    _out_call(57, "OUTW", _WORD),
    _outs_call(58, "OUTSL", _DWORD),
    _outs_call(59, "OUTSB", _BYTE),
    _outs_call(60, "OUTSW", _WORD),
    _call(
        61,
        "SetIOPLMask",
        _G.INTERRUPTS,
        1,
        Kind.BATCHABLE,
        "Set the I/O privilege level that user mode runs with.",
        args=(_eax("mask", "u32", "level in the place it has in EFLAGS: n << 12, n = 0 to 3"),),
        lazy=LazyMode.CPU,
        linux=LinuxUse("set_iopl_mask", Bind.FILL, "pushf; popf, which ignores IOPL off ring 0"),
        requirements=(
            "VMI-SetIOPLMask-01: With 3000h user code may access every port, whatever the I/O bitmap says.",
            "VMI-SetIOPLMask-02: With 0 a user port access is checked against the I/O bitmap.",
            "VMI-SetIOPLMask-03: The level shows in bits 12 and 13 of flags images pushed on entry from "
            "user mode.",
            "VMI-SetIOPLMask-04: At no level does CLI, STI or POPF in user mode change the virtual interrupt "
            "flag.",
            "VMI-SetIOPLMask-05: Bits other than 12 and 13 are ignored.",
        ),
        notes=("IRET does not restore the level: the guest calls this at every switch that changes it.",),
        source=_SPEC,
    ),
    _call(
        62,
        "SetInitialAPState",
        _G.APIC,
        3,
        Kind.CALL_OUT,
        "Give the state in which another CPU starts.",
        args=(
            _eax("state", "ptr", "linear address of the 92-byte AP state, any alignment"),
            _edx("apic_id", "u32", "local APIC number of the CPU to start"),
        ),
        linux=LinuxUse("startup_ipi_hook", Bind.WRAP, "the CPU starts through the real-mode trampoline"),
        requirements=(
            "VMI-SetInitialAPState-01: At the first STARTUP message the CPU begins at the given EIP with the "
            "given registers, paging on; the message's vector is ignored.",
            "VMI-SetInitialAPState-02: The 92 bytes are not needed after the call.",
            "VMI-SetInitialAPState-03: A second STARTUP message to a running CPU has no effect.",
            "VMI-SetInitialAPState-04: Selectors with RPL 0 are accepted and adjusted to the kernel's "
            "privilege level, as VMI_Init does for the first CPU.",
            "VMI-SetInitialAPState-05: EFLAGS 0 is accepted; the CPU starts with virtual interrupts off.",
            "VMI-SetInitialAPState-06: The CPU runs kernel code with no task register and no LDT loaded "
            "until it loads them.",
        ),
        source=_CLIENT,
    ),
    _call(
        63,
        "APICWrite",
        _G.APIC,
        3,
        Kind.CALL_OUT,
        "Write a local APIC register.",
        args=(
            _eax("register", "u32", "register offset, or its address: only bits 11..0 count"),
            _edx("value", "u32", "new contents"),
        ),
        linux=LinuxUse("apic_write", Bind.FILL, "a store to the APIC's memory"),
        requirements=(
            "VMI-APICWrite-01: The effect is that of a 32-bit store to FEE00000h + (register & FFFh).",
            "VMI-APICWrite-02: A register written here and read through memory, or the other way round, "
            "agrees.",
            "VMI-APICWrite-03: Register 0B0h ends the interrupt in service, whatever the value.",
        ),
        notes=("Writes through the mapped page at FEE00000h must work as well: early code uses it.",),
        source=_SPEC,
    ),
    _call(
        64,
        "APICRead",
        _G.APIC,
        3,
        Kind.CALL_OUT,
        "Read a local APIC register.",
        args=(_eax("register", "u32", "register offset, or its address: only bits 11..0 count"),),
        results=_returns("value", "u32", "contents"),
        linux=LinuxUse("apic_read", Bind.FILL, "a load from the APIC's memory"),
        requirements=(
            "VMI-APICRead-01: The result is that of a 32-bit load from FEE00000h + (register & FFFh).",
            "VMI-APICRead-02: Register 320h returns the vector and mask last written to it.",
            "VMI-APICRead-03: On a processor without a local APIC the result is what a load finds there.",
        ),
        source=_SPEC,
    ),
    _call(
        65,
        "IODelay",
        _G.IO,
        1,
        Kind.IN_ROM,
        "Wait as long as a slow device needs between two port accesses.",
        relocations=_SKIPPABLE,
        linux=LinuxUse("io_delay", Bind.FILL, "out to port 80h"),
        requirements=(
            "VMI-IODelay-01: No device sees an access.",
            "VMI-IODelay-02: It may take no time at all, and may be answered NOP.",
        ),
        source=_CLIENT,
    ),
    _call(
        66,
        "GetCycleFrequency",
        _G.TIME,
        3,
        Kind.IN_ROM,
        "Tell the frequency of the cycle counters.",
        results=_returns("hertz", "u64", "counts per second of virtual time"),
        linux=LinuxUse("presence test, cpu_khz, tsc_khz", Bind.TIMER, "the whole VMI timer is left alone"),
        requirements=(
            "VMI-GetCycleFrequency-01: The result is not 0 and never changes.",
            "VMI-GetCycleFrequency-02: It is the unit of GetCycleCounter and SetAlarm: over one second of "
            "wall-clock time the real counter grows by it.",
        ),
        notes=("Never NOP: Linux takes any type but NONE as an offer and calls the entry, even at 0.",),
        source=_SPEC,
    ),
    _call(
        67,
        "GetCycleCounter",
        _G.TIME,
        3,
        Kind.CALL_OUT,
        "Read one of the cycle counters.",
        args=(_eax("counter", "u32", "Counter: 0 real, 1 available, 2 stolen"),),
        results=_returns("cycles", "u64", "count; 0 for an unknown counter"),
        linux=LinuxUse("clocksource, sched_clock", Bind.GET, "a null call if GetCycleFrequency is offered"),
        requirements=(
            "VMI-GetCycleCounter-01: No counter ever goes backwards on one CPU.",
            "VMI-GetCycleCounter-02: Real equals available plus stolen, up to the time between two reads.",
            "VMI-GetCycleCounter-03: The stolen counter starts at 0.",
            "VMI-GetCycleCounter-04: A counter number above 2 returns 0.",
            "VMI-GetCycleCounter-05: Time halted counts as available; time ready but not run as stolen.",
        ),
        source=_SPEC,
    ),
    _call(
        68,
        "SetAlarm",
        _G.TIME,
        3,
        Kind.CALL_OUT,
        "Ask for a timer interrupt at a counter value, once or periodically.",
        args=(
            _eax("flags", "u32", "Counter in bits 7..0, AlarmFlag above"),
            Arg("expiry", "u64", ("edx", "ecx"), "counter value at which it fires; high half in ECX"),
            Arg("period", "u64", ("stack0", "stack1"), "counts between later firings; 0 = once only"),
        ),
        linux=LinuxUse("clockevent, periodic tick", Bind.GET, "a null call if GetCycleFrequency is offered"),
        requirements=(
            "VMI-SetAlarm-01: The interrupt arrives no earlier than the expiry, and as soon as the CPU can "
            "take it when the expiry is now or past.",
            "VMI-SetAlarm-02: A periodic alarm next fires at the smallest expiry + n * period after the "
            "present: missed ticks fall together, the phase stays.",
            "VMI-SetAlarm-03: Setting an alarm on a counter replaces the one armed on it; the real and the "
            "available counter have one each per CPU.",
            "VMI-SetAlarm-04: Period 0 makes it fire once, with PERIODIC or without.",
            "VMI-SetAlarm-05: With WIRED_LVTT the vector and the mask bit that APIC register 320h holds at "
            "that moment apply; without it, interrupt line 0 is pulsed.",
            "VMI-SetAlarm-06: An alarm on the real counter wakes a halted CPU; one on the stolen or an "
            "unknown counter does nothing.",
        ),
        notes=("The period is at [esp+4] and [esp+8]; the caller removes it.",),
        source=_SPEC,
    ),
    _call(
        69,
        "CancelAlarm",
        _G.TIME,
        3,
        Kind.CALL_OUT,
        "Disarm the alarm of a counter.",
        args=(_eax("flags", "u32", "Counter in bits 7..0; the rest does not matter"),),
        results=_returns("armed", "bool", "1 if an alarm was armed, else 0"),
        linux=LinuxUse("clockevent shutdown", Bind.GET, "a null call if GetCycleFrequency is offered"),
        requirements=(
            "VMI-CancelAlarm-01: It returns 1 if the counter's alarm was armed, else 0.",
            "VMI-CancelAlarm-02: After the call that alarm fires no more.",
            "VMI-CancelAlarm-03: Flags other than the counter number are ignored.",
            "VMI-CancelAlarm-04: A one-shot alarm that has fired is no longer armed.",
        ),
        source=_SPEC,
    ),
    _call(
        70,
        "GetWallclockTime",
        _G.TIME,
        3,
        Kind.CALL_OUT,
        "Tell the time of day.",
        results=_returns("nanoseconds", "u64", "nanoseconds since 1970-01-01 00:00 UTC"),
        linux=LinuxUse("get_wallclock", Bind.GET, "a null call if GetCycleFrequency is offered"),
        requirements=(
            "VMI-GetWallclockTime-01: The unit is the nanosecond, counted from 1970 in UTC.",
            "VMI-GetWallclockTime-02: It advances with the real counter, scaled by GetCycleFrequency, unless "
            "the host sets the time.",
        ),
        source=_SPEC,
    ),
    _call(
        71,
        "WallclockUpdated",
        _G.TIME,
        3,
        Kind.CALL_OUT,
        "Tell whether the time of day was set since the last question.",
        results=_returns("updated", "bool", "1 if it was set since the last call, else 0"),
        linux=LinuxUse("looked up, never called", Bind.GET, "nothing"),
        requirements=(
            "VMI-WallclockUpdated-01: It returns 1 at the first call after the host set the time, else 0.",
            "VMI-WallclockUpdated-02: The normal passing of time is not an update.",
        ),
        source=_SPEC,
    ),
    _call(
        72,
        "SetCallbacks",
        _G.SYSTEM,
        3,
        Kind.CALL_OUT,
        "Reserved: the number is taken, arguments and meaning are unknown.",
        relocations=(Reloc.NONE,),
        linux=LinuxUse("none", Bind.UNUSED, "no caller"),
        requirements=("VMI-SetCallbacks-01: The relocation is NONE, as nobody can know what to pass.",),
        source=_HEADERS + " No source tells what it does.",
    ),
    _call(
        73,
        "SetLazyMode",
        _G.SYSTEM,
        2,
        Kind.IN_ROM,
        "Allow the hypervisor to queue effects, or make it catch up.",
        args=(_eax("mode", "u32", "LazyMode: 0 none, 1 MMU, 2 CPU"),),
        relocations=_SKIPPABLE,
        linux=LinuxUse("lazy MMU and CPU sections, context switch", Bind.WRAP, "no batching"),
        requirements=(
            "VMI-SetLazyMode-01: On return from mode 0 every queued update is in force.",
            "VMI-SetLazyMode-02: In mode 1 page-table updates may wait; memory still holds them at once.",
            "VMI-SetLazyMode-03: In mode 2 the calls marked for lazy CPU mode may wait; each has its effect "
            "no later than mode 0.",
            "VMI-SetLazyMode-04: A page fault in mode 1 that a queued update explains is resolved without "
            "the guest noticing.",
            "VMI-SetLazyMode-05: An interrupt handler may leave the mode by 0 and enter it again before it "
            "returns.",
            "VMI-SetLazyMode-06: Going from one mode straight to another brings the first one's updates into "
            "force.",
        ),
        notes=(
            "Modes never nest.",
            "Answering NOP or NONE is right for a hypervisor that queues nothing.",
        ),
        source=_SPEC,
    ),
)


# --- Look-ups and texts --------------------------------------------------------------------------

BY_NAME: dict[str, Call] = {call.name: call for call in CALLS}
BY_INSTRUCTION: dict[str, Call] = {form: call for call in CALLS for form in call.instructions}
ALL_REQUIREMENTS: dict[str, Requirement] = {
    requirement.id: requirement
    for requirements in (*(topic.requirements for topic in TOPICS), *(call.requirements for call in CALLS))
    for requirement in requirements
}


def find(name_or_number: str) -> Call:
    """Return the call with this name (any case) or this number (any Python base prefix).

    Raises KeyError, with what was asked for, if there is no such call.
    """
    wanted = name_or_number.strip().lower()
    for call in CALLS:
        if call.name.lower() == wanted:
            return call
    try:
        number = int(wanted, 0)
    except ValueError:
        raise KeyError(name_or_number) from None
    if not 0 <= number < len(CALLS):
        raise KeyError(name_or_number)
    return CALLS[number]


def suggest(name: str) -> tuple[str, ...]:
    """Return at most three call names that look like `name`, best first."""
    names = {call.name.lower(): call.name for call in CALLS}
    close = difflib.get_close_matches(name.strip().lower(), names, n=3, cutoff=0.6)
    return tuple(names[match] for match in close)


def _place(place: str) -> str:
    return f"[esp+{stack_offset(place)}]" if place.startswith("stack") else place.upper()


def places_text(places: tuple[str, ...]) -> str:
    """Write places the field's way: "EAX", "EDX:EAX" (high word first), "[esp+8]:[esp+4]"."""
    return ":".join(_place(place) for place in reversed(places))


def facts(call: Call) -> list[tuple[str, str]]:
    """Return the properties of a call as (label, text), leaving out what does not apply to it."""
    rows = [
        ("group", f"{call.group}, level {call.level} ({LEVELS[call.level]})"),
        ("kind", f"{call.kind}, {call.convention} convention"),
        ("stands for", ", ".join(call.instructions) or "no single instruction"),
    ]
    if call.returns:
        rows.append(("clobbers", ", ".join([*(register.upper() for register in call.clobbers), "flags"])))
    else:
        rows.append(("returns", "never to the instruction after the call"))
    rows += [("fault", f"{fault.name} if {fault.when}") for fault in call.faults]
    if call.delivers:
        rows.append(
            ("interrupts", "a guest handler may run inside, even if the call is entered with them off")
        )
    if call.lazy:
        rows.append(("lazy mode", f"the effect may be queued in {call.lazy.name} mode"))
    rows.append(("relocation", ", ".join(kind.name for kind in call.relocations)))
    rows.append(("Linux", f"{call.linux.operation} ({call.linux.bind}); if NONE: {call.linux.if_none}"))
    rows += [("note", note) for note in call.notes]
    rows.append(("source", call.source))
    return rows


def operands(call: Call) -> list[tuple[str, str, str, str, str]]:
    """Return arguments and results as (in or out, place, name, type, meaning)."""
    rows = [("in", places_text(arg.places), arg.name, arg.type, arg.meaning) for arg in call.args]
    if call.convention is Convention.FRAME:
        rows.append(("in", "[esp]", "frame", "words", FRAME_MEANING))
    rows += [
        ("out", places_text(result.places), result.name, result.type, result.meaning)
        for result in call.results
    ]
    return rows


def describe(call: Call) -> str:
    """Return the reference page of a call: plain text, lines of at most 100 columns, no trailing newline."""
    lines = [f"{call.name}, call {call.number}", "", call.summary, ""]
    for direction, place, name, type_, meaning in operands(call):
        lines += _labelled(direction, f"{place}  {name} ({type_}): {meaning}")
    for label, text in facts(call):
        lines += _labelled(label, text)
    for requirement in call.requirements:
        lines += ["", requirement.id, *_wrapped(requirement.text, "  ", "  ")]
    return "\n".join(lines)


def _labelled(label: str, text: str) -> list[str]:
    return _wrapped(text, f"  {label:<11} ", " " * 14)


def _wrapped(text: str, first: str, rest: str) -> list[str]:
    return textwrap.wrap(text, 100, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False)


def call_to_json(call: Call) -> dict[str, object]:
    """Return the row as JSON-able values; relocation types and lazy mode by name."""
    row = asdict(call)
    row["relocations"] = [kind.name for kind in call.relocations]
    row["lazy"] = call.lazy.name
    row["preserves"] = call.preserves
    row["stack_words"] = call.stack_words
    row["requirements"] = [{"id": item.id, "text": item.text} for item in call.requirements]
    plain: dict[str, object] = json.loads(json.dumps(row))
    return plain


SUMMARY_COLUMNS = ("#", "call", "in", "out", "clobbers", "stands for", "summary")


def summary_rows(calls: Iterable[Call] = CALLS) -> list[tuple[str, ...]]:
    """Return one row of texts per call, in the columns of SUMMARY_COLUMNS."""
    return [
        (
            str(call.number),
            call.name,
            ", ".join(places_text(arg.places) for arg in call.args),
            ", ".join(places_text(result.places) for result in call.results),
            clobbers_text(call),
            ", ".join(call.instructions),
            call.summary,
        )
        for call in calls
    ]


def clobbers_text(call: Call) -> str:
    """Name what a call destroys besides its results: "std" is EAX, ECX, EDX and flags, as far as free."""
    if not call.returns:
        return "no return"
    if not call.clobbers:
        return "flags"
    return "std"
