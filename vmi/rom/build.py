# SPDX-License-Identifier: GPL-2.0-only
"""Build a flavour into a ROM image.

The image is made from three things only: the ABI table, the flavour's table and the map in
`vmi.rom.layout`. Nothing depends on time or machine, so the same source gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from vmi import abi
from vmi.abi import Reloc
from vmi.errors import AssembleError, RomError, UsageError
from vmi.files import read_input
from vmi.rom import layout
from vmi.rom.assemble import assemble
from vmi.rom.flavours import FLAVOURS, get
from vmi.rom.layout import NO_PROMISES, PciData, PnpData, Promise, RomHeader
from vmi.rom.template import Flavour

__all__ = ["FLAVOURS", "MAX_SIZE", "Rom", "build"]

LICENCE = "GPL v2"
MANUFACTURER = "vmi"
PRODUCT = "VMI ROM, flavour "  # and its name
MAX_SIZE = 4 * layout.PAGE  # what a patched kernel keeps free for a copy

# A guest with a direct map of RAM needs room between that and the hole, for its fixed and its dynamic maps.
_TOPS = range(0xF0000000, 0x100000000 - layout.PAGE + 1)

_FILL = 0xCC  # int3: code that nobody should reach says so
_REAL_MODE_ENTRY = ".code16\nxor ax, ax\nretf"  # nothing to boot from, nothing to set up


@dataclass(frozen=True, repr=False)
class Rom:
    """A ROM image; `calls` are (relocation type, offset of the entry, 0 if none) by call number."""

    image: bytes
    flavour: str
    calls: tuple[tuple[Reloc, int], ...]
    data_page: int | None
    promises: Promise = NO_PROMISES

    def __repr__(self) -> str:
        offered = sum(kind != Reloc.NONE for kind, _ in self.calls)
        return f"<Rom {self.flavour}, {len(self.image)} bytes, {offered} calls>"

    def offset(self, name: str) -> int:
        """Offset of a call's entry in the image; raises RomError when it is not offered."""
        kind, offset = self.calls[abi.BY_NAME[name].number]
        if kind == Reloc.NONE:
            raise RomError(f"flavour {self.flavour} does not offer {name}")
        return offset


@cache
def build(flavour: str, virtual_top: int = 0) -> Rom:
    """Build the flavour of that name.

    :param virtual_top: the hypervisor keeps linear addresses from here on to itself; 0 if it keeps none.
    :raises RomError: there is none of that name, its table can't be built, or no guest could live with the
        address.
    """
    return build_flavour(get(flavour), virtual_top)


def named(text: str) -> bytes:
    """A ROM image by the name of a flavour, or by file name (``./native`` is a file).

    :raises UsageError: it is neither.
    :raises BadInput: the file can't be read.
    """
    if text in FLAVOURS:
        return build(text).image
    if "/" not in text and not Path(text).exists():
        raise UsageError(
            f"ROM {text!r} is neither a flavour ({', '.join(sorted(FLAVOURS))}) nor the name of a file"
        )
    return read_input(text, "ROM")


def build_flavour(flavour: Flavour, virtual_top: int = 0) -> Rom:
    """Build a flavour that need not be registered, see :func:`build`."""
    flavour.check()
    if virtual_top and (virtual_top not in _TOPS or virtual_top % layout.PAGE):
        raise RomError(
            f"virtual_top must be 0 or a whole page from {_TOPS.start:#x} to {_TOPS[-1]:#x}, "
            f"but it is {virtual_top:#x}"
        )
    table = layout.CallTable(
        slots=layout.SLOTS,
        slot_size=layout.SLOT_SIZE,
        gates=layout.GATES if flavour.gate_interrupt is not None else 0,
        data_page=layout.DATA_PAGE if flavour.words else 0,
        types=tuple(int(flavour.template(call).relocation) for call in abi.CALLS),
        promises=flavour.promises,
    )
    image = bytearray(_code(flavour, table))
    image += bytes(-len(image) % layout.PAGE)
    if flavour.words:
        image = image[: layout.CODE_LIMIT].ljust(layout.DATA_PAGE + layout.PAGE, b"\0")
    if len(image) > MAX_SIZE:
        raise RomError(f"flavour {flavour.name} makes a ROM of {len(image)} bytes, the most is {MAX_SIZE}")
    _describe(image, flavour, virtual_top)
    image[layout.CHECKSUM] = -sum(image) & 0xFF
    calls = tuple(table.entry(call.number) for call in abi.CALLS)
    return Rom(bytes(image), flavour.name, calls, table.data_page or None, table.promises)


def _code(flavour: Flavour, table: layout.CallTable) -> bytes:
    """All that is executed, and the call table, each at its place; the rest of the space is zero."""
    try:
        result = assemble("\n".join(_source(flavour, table)), symbols=_symbols(flavour))
    except AssembleError as error:
        raise RomError(f"flavour {flavour.name} can't be built: {error}") from error
    if flavour.words and len(result.code) > layout.CODE_LIMIT:
        raise RomError(
            f"flavour {flavour.name} has code up to {len(result.code):#x}, the end is {layout.CODE_LIMIT:#x}"
        )
    return result.code


def _symbols(flavour: Flavour) -> dict[str, int]:
    words = {name: layout.DATA_PAGE + offset for name, offset in flavour.words.items()}
    slots = {_slot_end(call): layout.SLOTS + layout.SLOT_SIZE * (call.number + 1) for call in abi.CALLS}
    return words | slots


def _slot_end(call: abi.Call) -> str:
    """A symbol, so that the assembler's complaint about too long code names the call."""
    return f"end_of_{call.name}_slot"


def _source(flavour: Flavour, table: layout.CallTable) -> Iterator[str]:
    yield f".org {abi.INIT_OFFSET}"
    yield flavour.init
    yield f".org {abi.GET_RELOC_OFFSET}, {_FILL}"
    yield "jmp get_reloc"
    yield f".org {abi.ROM_HEADER_SIZE}, {_FILL}"
    yield f".org {layout.GATES}"
    if flavour.gate_interrupt is not None:
        for call in abi.CALLS:
            if flavour.template(call).leaves:
                yield f"{call.name}_gate: int {flavour.gate_interrupt}\nret\nnop"
            else:
                yield f".byte {', '.join([str(_FILL)] * layout.GATE_SIZE)}"
        for name in flavour.special_gates:
            yield f"{name}: int {flavour.gate_interrupt}\nret\nnop"
    yield f".org {layout.CALL_TABLE}"
    yield f"call_table: .byte {', '.join(map(str, table.pack()))}"
    yield f".org {layout.SLOTS}"
    bodies: list[str] = []
    for call in abi.CALLS:
        template = flavour.template(call)
        text = template.source.replace("@", f"{call.name}_")
        if template.in_slot:
            yield f"{call.name}:\n{text}"
        else:
            yield f"{call.name}: jmp {call.name}_body"
            bodies.append(f"{call.name}_body:\n{text}")
        yield f".org {_slot_end(call)}, {_FILL}"
    yield _GET_RELOC
    yield from bodies


# EAX = call. Both answers are computed from where this code runs, and the type comes from the table.
_GET_RELOC = f"""
get_reloc:
        cmp eax, {len(abi.CALLS)}
        jae short get_reloc_none
        call get_reloc_here
get_reloc_here:
        pop ecx
        movzx edx, byte ptr ss:[ecx + eax + {{call_table + {layout.CallTable.TYPES} - get_reloc_here}}]
        test edx, edx
        jz short get_reloc_none
        imul eax, eax, {layout.SLOT_SIZE}
        lea eax, [ecx + eax + {{{layout.SLOTS} - get_reloc_here}}]
        ret
get_reloc_none:
        xor eax, eax
        xor edx, edx
        ret
"""


def _describe(image: bytearray, flavour: Flavour, virtual_top: int) -> None:
    """Header, licence, PCI and PnP data, names: what a BIOS or a guest reads without running it."""
    texts = {"licence": LICENCE, "maker": MANUFACTURER, "product": PRODUCT + flavour.name}
    places: dict[str, int] = {}
    position = layout.INFO
    for name, text in texts.items():
        places[name] = position
        raw = text.encode("ascii") + b"\0"
        image[position : position + len(raw)] = raw
        position += len(raw)
    units = len(image) // abi.ROM_UNIT
    # BIOSes look for both structures on 16-byte boundaries only.
    pci, pnp = _aligned(position), _aligned(position) + 0x20
    pnp_data = PnpData(manufacturer_offset=places["maker"], product_offset=places["product"])
    image[pci : pci + 24] = PciData(chunks=units).pack()
    image[pnp : pnp + layout.PNP_SIZE] = pnp_data.pack()
    if pnp + layout.PNP_SIZE > layout.CHECKSUM:
        raise RomError(f"the name of flavour {flavour.name} is too long for the ROM's description")
    header = RomHeader(
        rom_signature=abi.ROM_SIGNATURE,
        rom_length=units,
        rom_entry=assemble(_REAL_MODE_ENTRY).code,
        rom_pad0=0,
        vrom_signature=abi.VROM_SIGNATURE,
        api_version_min=abi.API_MINOR,
        api_version_maj=abi.API_MAJOR,
        jump_slots=len(abi.CALLS),
        reserved1=0,
        virtual_top=virtual_top,
        reserved2=0,
        license_offs=places["licence"],
        pci_header_offs=pci,
        pnp_header_offs=pnp,
        rom_pad3=0,
        reserved=b"",
        vmi_init=bytes(image[abi.INIT_OFFSET : abi.GET_RELOC_OFFSET]),
        get_reloc=bytes(image[abi.GET_RELOC_OFFSET : abi.ROM_HEADER_SIZE]),
    )
    image[: abi.ROM_HEADER_SIZE] = header.pack()


def _aligned(offset: int) -> int:
    return (offset + 15) // 16 * 16
