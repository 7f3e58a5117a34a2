# SPDX-License-Identifier: GPL-2.0-only
"""The `.vmi` segment's header, site records and link records: what they mean, pack and parse.

Three programs read these bytes: the activation code inside the guest, which rewrites the slots; the
hypervisor, which plants breakpoints at the silent sites without a slot; and tools that inspect a
patched file. So the format has a version and a page of its own, ``docs/site-table.md``. All words are
little endian; all addresses are virtual. In the file they are the linked ones; activation makes them those
of a kernel that runs elsewhere.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass, fields
from enum import IntEnum, IntFlag, StrEnum

from vmi.errors import BadInput

MAGIC = b"VMIS"
VERSION = 2
NO_CALL = 0xFF
"""Call number of a record without a VMI call: the hypervisor must plant a breakpoint there."""
INLINE = 0xFE
"""Call number of a slot whose adaptor does everything itself: connected to it whatever the ROM answers."""

MAX_RECORDS = 1 << 22


class Tactic(StrEnum):
    """How a site was dealt with. TRAP and LEFT are the two that give no slot."""

    ANNOTATED = "annotated"
    """The guest's source already made a slot."""
    IN_PLACE = "in_place"
    """The instruction itself has 5 bytes or more."""
    FORWARD = "forward"
    """A window from the site on."""
    BACKWARD = "backward"
    """A window that ends with the site."""
    BOTH = "both"
    """A window with instructions before and after the site."""
    MERGED = "merged"
    """Inside a window that was made for another site."""
    SPRINGBOARD = "springboard"
    """A window of 2-4 bytes: an 8-bit jump to padding close by, which holds the 32-bit jump."""
    HOST = "host"
    """A window of 2-4 bytes: an 8-bit jump into the unused bytes of a longer window close by."""
    EDGE = "edge"
    """It stays, and every way to it leads through a copy in a slot (edge split)."""
    TRAP = "trap"
    """Silent and without a slot: the hypervisor plants a breakpoint at activation."""
    LEFT = "left"
    """Left as it is and only listed: it traps by itself, or its bytes must not be touched (the reason says
    so)."""

    @property
    def has_slot(self) -> bool:
        return self not in (Tactic.TRAP, Tactic.LEFT)


class ImageFlag(IntFlag):
    """Header word ``image_flags``."""

    MULTIBOOT = 1
    """The file has a multiboot 1 header, so activation takes the segment out of the memory map."""
    PHYSICAL_ENTRY = 2
    """The original e_entry was a physical address, and so is the new one."""
    LINUX = 4
    """The kernel is started by Linux's boot protocol: its entry point is the original one, where a jump leads
    to the activation code, and a setup_data node right before the segment covers it."""
    LIFTED = 8
    """The segment is loaded above where it belongs, at its program header's physical address. What runs first
    moves it to where its virtual address and ``bias`` say."""


class Status(IntEnum):
    """Header word ``status``, written by activation."""

    NATIVE = 0
    """No acceptable ROM was found (or activation never ran)."""
    ACTIVE = 1
    """The slots are connected to the ROM."""
    REFUSED = 2
    """The ROM's VMI_Init failed; the kernel runs natively."""
    TOO_LARGE = 3
    """A ROM was found that doesn't fit in the space kept for it; the kernel runs natively."""


class MapStatus(IntEnum):
    """Header word ``map_status``, written by activation."""

    UNTOUCHED = 0
    """Not started by a multiboot 1 loader (or activation never ran)."""
    CARVED = 1
    """The memory map shows the segment as reserved."""
    NO_MAP = 2
    """The boot loader gave no memory map."""
    NOT_CARVED = 3
    """The map is damaged, too long for the buffer, or doesn't show the segment as usable memory; or the boot
    protocol is too old to tell a Linux kernel of the segment."""
    LISTED = 4
    """The setup_data list of a Linux kernel holds a node that covers the segment."""
    BLOCKED = 5
    """The segment can't go where it belongs, because of what the boot loader left there: the kernel was not
    started. In the header where it was loaded."""


class SiteFlag(IntFlag):
    """``SiteRecord.flags``."""

    FLAGS_LIVE = 1
    """The kernel may read the arithmetic flags that the instruction leaves."""
    JUMP_OK = 2
    """The call never returns, so a JUMP_REL answer may be planted."""
    NOP_OK = 4
    """The instruction only has an effect that a NOP answer declares needless."""
    MOVED = 8
    """The slot is not at the original address."""
    PAD_AFTER = 16
    """The slot's NOPs stand behind the instruction, not before it."""
    RECOVERED = 32
    """The kernel recovers from a fault of this instruction by its address: connected only where it has no
    adaptor, and the ROM promises that its calls fault at the caller."""
    ISOLATED = 64
    """May run while most of the kernel is unmapped: not connected."""
    SILENT = 128
    """It doesn't trap at CPL 1: where it stays native, the hypervisor must plant a breakpoint."""


# Order gives the byte in the record: append only.
TACTIC_CODES: tuple[Tactic, ...] = (
    Tactic.ANNOTATED,
    Tactic.IN_PLACE,
    Tactic.FORWARD,
    Tactic.BACKWARD,
    Tactic.BOTH,
    Tactic.MERGED,
    Tactic.SPRINGBOARD,
    Tactic.TRAP,
    Tactic.HOST,
    Tactic.EDGE,
)


@dataclass(frozen=True, slots=True)
class Header:
    """The first bytes of the segment, after magic, version and header size. Fields in file order."""

    size: int  # of the segment in bytes
    rom_reserve: int
    rom_reserve_size: int
    sites: int
    site_count: int
    links: int
    link_count: int
    original_entry: int
    activation_entry: int
    image_flags: int
    bias: int  # virtual minus physical address, modulo 2**32
    status: int = 0
    rom_base: int = 0  # physical address of the ROM found, 0 = none
    map_status: int = 0
    stack_top: int = 0
    displaced: int = 0  # packed list of the words that move along with the kernel, 0 = none
    displaced_size: int = 0
    displacement: int = 0  # modulo 2**32
    unconnected: int = 0  # SiteFlag: slots with one of these were not connected
    boot_params: int = 0  # physical address, 0 = none
    cleared: int = 0  # packed list of the bytes that become 0 when a ROM is active, 0 = none
    cleared_size: int = 0

    def pack(self) -> bytes:
        """The header's bytes, HEADER_SIZE of them."""
        values = (getattr(self, f.name) for f in fields(self))
        return _HEADER.pack(MAGIC, VERSION, HEADER_SIZE, *values)


_HEADER = struct.Struct("<4sHH22I")
HEADER_SIZE = _HEADER.size


def header_offset(name: str) -> int:
    """Offset in the segment of a Header field by name."""
    return 8 + 4 * [f.name for f in fields(Header)].index(name)


@dataclass(frozen=True, slots=True)
class SiteRecord:
    """One slot, or one silent instruction to be trapped (``call`` is NO_CALL then)."""

    slot: int
    length: int
    call: int
    tactic: Tactic
    flags: SiteFlag
    adaptor: int  # 0: the slot reaches the ROM's entry directly
    site: int  # where the instruction was in the original file

    @property
    def has_call(self) -> bool:
        """False when there is no slot, only an instruction to be trapped."""
        return self.call != NO_CALL

    def pack(self) -> bytes:
        """The record's 16 bytes."""
        code = TACTIC_CODES.index(self.tactic)
        return _SITE.pack(self.slot, self.length, self.call, code, self.flags, self.adaptor, self.site)

    def __repr__(self) -> str:
        call = {NO_CALL: "trap", INLINE: "inline"}.get(self.call, f"call {self.call}")
        return f"SiteRecord({self.slot:#x}+{self.length}, {call}, {self.tactic}, site {self.site:#x})"


_SITE = struct.Struct("<IBBBBII")
SITE_SIZE = _SITE.size


@dataclass(frozen=True, slots=True)
class LinkRecord:
    """A ``call rel32`` in an adaptor that activation points at the ROM's entry of ``call``."""

    address: int
    call: int

    def pack(self) -> bytes:
        """The record's 8 bytes."""
        return _LINK.pack(self.address, self.call)

    def __repr__(self) -> str:
        return f"LinkRecord({self.address:#x}, call {self.call})"


_LINK = struct.Struct("<IB3x")
LINK_SIZE = _LINK.size


@dataclass(frozen=True, slots=True)
class SiteTable:
    """All that a `.vmi` segment says about itself."""

    header: Header
    sites: tuple[SiteRecord, ...]
    links: tuple[LinkRecord, ...]

    @property
    def traps(self) -> tuple[SiteRecord, ...]:
        """The records where the hypervisor must plant a breakpoint."""
        return tuple(site for site in self.sites if not site.has_call)

    @property
    def unconnected(self) -> tuple[SiteRecord, ...]:
        """The slots with a silent instruction that activation found it must not connect.

        Whatever the ROM answers: the hypervisor must plant a breakpoint at the instruction in them, too.
        Known as soon as activation looks for a ROM; empty in a file.
        """
        left = self.header.unconnected
        if not left:
            return ()
        return tuple(
            site
            for site in self.sites
            if site.has_call
            and site.flags & SiteFlag.SILENT
            and (site.flags & left or (site.flags & SiteFlag.RECOVERED and site.adaptor))
        )

    def __repr__(self) -> str:
        return f"SiteTable({len(self.sites)} sites, {len(self.links)} links)"


def pack_sites(records: Iterable[SiteRecord]) -> bytes:
    """Records in slot order, 16 bytes each."""
    return b"".join(record.pack() for record in sorted(records, key=lambda record: record.slot))


def pack_links(records: Iterable[LinkRecord]) -> bytes:
    """Records in address order, 8 bytes each."""
    return b"".join(record.pack() for record in sorted(records, key=lambda record: record.address))


def parse_header(segment: bytes) -> Header:
    """Read the header of a segment; raises BadInput when it is none or has another version."""
    if segment[:4] != MAGIC:
        raise BadInput(f"expected a .vmi segment to start with {MAGIC!r}, got {segment[:4]!r}")
    if len(segment) < HEADER_SIZE:
        raise BadInput(f"a .vmi header has {HEADER_SIZE} bytes, got {len(segment)}")
    _magic, version, header_size, *values = _HEADER.unpack_from(segment)
    if version != VERSION:
        raise BadInput(f"expected a .vmi segment of version {VERSION}, got version {version}")
    if header_size < HEADER_SIZE:
        raise BadInput(f"expected a .vmi header of at least {HEADER_SIZE} bytes, got {header_size}")
    return Header(*values)


def parse(segment: bytes, vaddr: int) -> SiteTable:
    """Read the tables of a segment that is linked at ``vaddr``; raises BadInput with one sentence."""
    header = parse_header(segment)
    sites = []
    for raw in _table(segment, vaddr, "site", header.sites, header.site_count, SITE_SIZE):
        slot, length, call, code, flags, adaptor, site = _SITE.unpack(raw)
        if code >= len(TACTIC_CODES):
            raise BadInput(f"the site record for {site:#x} has the unknown tactic {code}")
        sites.append(SiteRecord(slot, length, call, TACTIC_CODES[code], SiteFlag(flags), adaptor, site))
    links = [
        LinkRecord(*_LINK.unpack(raw))
        for raw in _table(segment, vaddr, "link", header.links, header.link_count, LINK_SIZE)
    ]
    return SiteTable(header, tuple(sites), tuple(links))


def _table(segment: bytes, vaddr: int, name: str, address: int, count: int, size: int) -> list[bytes]:
    start = address - vaddr
    if count > MAX_RECORDS or start < HEADER_SIZE or start + count * size > len(segment):
        raise BadInput(f"the {name} table at {address:#x} with {count} records lies outside the .vmi segment")
    return [segment[at : at + size] for at in range(start, start + count * size, size)]
