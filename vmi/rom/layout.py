# SPDX-License-Identifier: GPL-2.0-only
"""Where things are in a ROM image: header, PCI and PnP data, call table, gates, slots.

The header and the two standard structures are the interface's, field by field from the ABI table.
The map below them is the one our own flavours share; a ROM made by others has its own, and is found
out about by asking GetRelocationInfo.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from enum import IntFlag

from vmi import abi
from vmi.abi import Field, Reloc
from vmi.errors import RomError

# The map of our flavours: offsets and sizes in bytes.
INFO = abi.ROM_HEADER_SIZE  # licence, PCIR, $PnP and names
CHECKSUM = 0x1FF  # one byte that makes the sum of the image 0
GATES = 0x200
GATE_SIZE = 4
CALL_TABLE = 0x330
SLOTS = 0x400
SLOT_SIZE = 32
BODIES = SLOTS + SLOT_SIZE * len(abi.CALLS)
PAGE = 4096
# The data page comes after a gap of 2 KiB. A ROM that runs in place starts on any 2 KiB boundary, and
# a store to a page that also holds code makes a processor (or an emulator) drop that code.
CODE_LIMIT = 0x1800
DATA_PAGE = 0x2000

MAX_GATES = (CALL_TABLE - GATES) // GATE_SIZE

PNP_SIZE = 32  # the BIOS's structure; the ABI table names the 18 bytes that guests read
PNP_CHECKSUM = 9
PNP_DEVICE = 0x0108A959  # EISA identifier "VMI0801"

_Value = int | bytes


def unpack(table: Sequence[Field], data: bytes, offset: int = 0) -> list[_Value]:
    """Values of a structure's fields: numbers up to 4 bytes, else (and for code) bytes.

    Raises RomError when `data` ends inside the structure.
    """
    end = offset + table[-1].offset + table[-1].size
    if offset < 0 or end > len(data):
        raise RomError(f"a structure at offset {offset:#x} needs {end} bytes, the image has {len(data)}")
    values: list[_Value] = []
    for field in table:
        raw = data[offset + field.offset : offset + field.offset + field.size]
        values.append(raw if _is_bytes(field) else int.from_bytes(raw, "little"))
    return values


def pack(table: Sequence[Field], values: Sequence[_Value]) -> bytes:
    """The structure's bytes; raises RomError when a value does not fit its field."""
    out = bytearray(table[-1].offset + table[-1].size)
    for field, value in zip(table, values, strict=True):
        if isinstance(value, int):
            if not 0 <= value < 1 << 8 * field.size:
                raise RomError(f"{field.name} is {field.size} bytes wide and can't hold {value:#x}")
            value = value.to_bytes(field.size, "little")
        if len(value) > field.size:
            raise RomError(f"{field.name} is {field.size} bytes wide and can't hold {len(value)} bytes")
        out[field.offset : field.offset + len(value)] = value
    return bytes(out)


def _is_bytes(field: Field) -> bool:
    return field.size > 4 or field.name in ("rom_entry", "signature")


@dataclass(frozen=True, repr=False)
class RomHeader:
    """The header at the start of a VMI ROM, fields as in `abi.ROM_HEADER`."""

    rom_signature: int
    rom_length: int
    rom_entry: bytes
    rom_pad0: int
    vrom_signature: int
    api_version_min: int
    api_version_maj: int
    jump_slots: int
    reserved1: int
    virtual_top: int
    reserved2: int
    license_offs: int
    pci_header_offs: int
    pnp_header_offs: int
    rom_pad3: int
    reserved: bytes
    vmi_init: bytes
    get_reloc: bytes

    def __repr__(self) -> str:
        return f"<RomHeader {self.size} bytes, API {self.api_version_maj}.{self.api_version_min}>"

    @property
    def size(self) -> int:
        """Length of the image in bytes, as the header says it."""
        return self.rom_length * abi.ROM_UNIT

    @classmethod
    def parse(cls, image: bytes) -> RomHeader:
        """Read the header; nothing is checked but the length. Raises RomError."""
        return cls(*unpack(abi.ROM_HEADER, image))  # type: ignore[arg-type]

    def pack(self) -> bytes:
        """The 144 bytes."""
        return pack(abi.ROM_HEADER, astuple(self))


@dataclass(frozen=True)
class PciData:
    """The PCI data structure, fields as in `abi.PCI_HEADER`."""

    signature: bytes = abi.PCI_SIGNATURE
    vendor_id: int = abi.PCI_VENDOR
    device_id: int = abi.PCI_DEVICE
    vpd_data: int = 0
    size: int = 24
    revision: int = 0
    class_code: int = 0x08  # a system peripheral ...
    subclass: int = 0x80  # ... of no other kind
    interface: int = 0
    chunks: int = 0
    rom_version_min: int = 0
    rom_version_maj: int = 1
    code_type: int = 0
    last_rom: int = 0x80
    reserved: int = 0

    @classmethod
    def parse(cls, image: bytes, offset: int) -> PciData:
        """Read the structure at `offset`; raises RomError when it does not lie inside the image."""
        return cls(*unpack(abi.PCI_HEADER, image, offset))  # type: ignore[arg-type]

    def pack(self) -> bytes:
        """The 24 bytes."""
        return pack(abi.PCI_HEADER, astuple(self))


@dataclass(frozen=True)
class PnpData:
    """The PnP expansion header, fields as in `abi.PNP_HEADER`."""

    signature: bytes = abi.PNP_SIGNATURE
    revision: int = 1
    length_units: int = PNP_SIZE // 16
    next_header: int = 0
    reserved: int = 0
    device_id: int = PNP_DEVICE
    manufacturer_offset: int = 0
    product_offset: int = 0

    @classmethod
    def parse(cls, image: bytes, offset: int) -> PnpData:
        """Read the structure at `offset`; raises RomError when it does not lie inside the image."""
        return cls(*unpack(abi.PNP_HEADER, image, offset))  # type: ignore[arg-type]

    def pack(self) -> bytes:
        """The 32 bytes, summing up to 0 as a BIOS may check."""
        data = bytearray(pack(abi.PNP_HEADER, astuple(self)).ljust(PNP_SIZE, b"\0"))
        data[PNP_CHECKSUM] = 0
        data[PNP_CHECKSUM] = -sum(data) & 0xFF
        return bytes(data)


class Promise(IntFlag):
    """What a ROM undertakes beyond the interface; a guest that doesn't look loses nothing but speed."""

    FAULTS_AT_CALL = 1
    """A fault of a call that `call rel32` makes to its entry is reported at that instruction."""


NO_PROMISES = Promise(0)


@dataclass(frozen=True, repr=False)
class CallTable:
    """Our record at CALL_TABLE: where slots, gates and data page are, and each call's relocation type.

    16 bytes: "VMIR", version 1 (u8), number of calls (u8), offset of the slots, their size, offset of
    the gates, offset of the data page (u16 each, 0 = none), promises (u16); then one type byte per call.
    """

    slots: int
    slot_size: int
    gates: int
    data_page: int
    types: tuple[int, ...]
    promises: Promise = NO_PROMISES

    MAGIC = b"VMIR"
    VERSION = 1
    PROMISES = 14  # offset of the promises
    TYPES = 16  # offset of the type bytes

    def __repr__(self) -> str:
        return f"<CallTable {len(self.types)} calls, slots at {self.slots:#x}>"

    @classmethod
    def parse(cls, image: bytes) -> CallTable | None:
        """The record, or None when the image has none that this version can read."""
        head = image[CALL_TABLE : CALL_TABLE + cls.TYPES]
        if len(head) < cls.TYPES or head[:5] != cls.MAGIC + bytes([cls.VERSION]):
            return None
        start, count = CALL_TABLE + cls.TYPES, head[5]
        types = image[start : start + count]
        if len(types) < count:
            return None
        slots, slot_size, gates, data_page, promises = (
            int.from_bytes(head[at : at + 2], "little") for at in (6, 8, 10, 12, cls.PROMISES)
        )
        return cls(slots, slot_size, gates, data_page, tuple(types), Promise(promises))

    def pack(self) -> bytes:
        """The record's bytes."""
        words = (self.slots, self.slot_size, self.gates, self.data_page, int(self.promises))
        head = self.MAGIC + bytes([self.VERSION, len(self.types)])
        return head + b"".join(word.to_bytes(2, "little") for word in words) + bytes(self.types)

    def entry(self, number: int) -> tuple[Reloc, int]:
        """(relocation type, offset of the entry) of a call; unknown numbers are not offered."""
        known = 0 <= number < len(self.types) and self.types[number] in Reloc.__members__.values()
        kind = Reloc(self.types[number]) if known else Reloc.NONE
        return kind, self.slots + self.slot_size * number if kind != Reloc.NONE else 0


def gate_offset(number: int) -> int:
    """Offset of gate `number` (a call's number, or a special one after the last call) in the image."""
    return GATES + GATE_SIZE * number


def gate_number(offset: int) -> int | None:
    """The gate that `offset` lies in, or None; EIP after a gate's interrupt lies in that gate."""
    number = (offset - GATES) // GATE_SIZE
    return number if 0 <= number < MAX_GATES else None


def checksum(image: bytes) -> int:
    """Sum of all bytes modulo 256; 0 in a good ROM."""
    return sum(image) & 0xFF


def text_at(image: bytes, offset: int) -> str | None:
    """The NUL-terminated printable ASCII string at `offset`, at most 255 characters, or None."""
    end = image.find(b"\0", offset, offset + 256) if 0 < offset < len(image) else -1
    if end < 0:
        return None
    raw = image[offset:end]
    return raw.decode("ascii") if all(32 <= byte < 127 for byte in raw) else None


assert [field.name for field in fields(RomHeader)] == [field.name for field in abi.ROM_HEADER]
