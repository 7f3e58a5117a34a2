# SPDX-License-Identifier: GPL-2.0-only
"""What a ROM image says of itself, and what is wrong with it, without running it.

A ROM that a guest ignores, or a BIOS drops, gives no message: it is just not there. So every rule that
a BIOS, Linux or a patched kernel applies is checked here, one sentence per fault. Faults make somebody
refuse the ROM; warnings are odd but survive.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass

from iced_x86 import Decoder, FlowControl, Instruction

from vmi import abi
from vmi.abi import Reloc
from vmi.errors import RomError
from vmi.rom import flow, layout
from vmi.rom.build import MAX_SIZE, PRODUCT
from vmi.rom.layout import CallTable, PciData, PnpData, Promise, RomHeader

Facts = tuple[tuple[str, str], ...]
_UNKNOWN = "unknown without running it"
_END = (FlowControl.RETURN, FlowControl.UNCONDITIONAL_BRANCH, FlowControl.INDIRECT_BRANCH)


@dataclass(frozen=True, repr=False)
class CallEntry:
    """The answer of GetRelocationInfo for a call: type and offset of the entry in the image."""

    name: str
    number: int
    relocation: str
    offset: int

    def __repr__(self) -> str:
        return f"<{self.name} {self.relocation} {self.offset:#x}>"


@dataclass(frozen=True, repr=False)
class Inspection:
    """All that is known about an image. `calls` is None when only running the ROM would tell."""

    size: int
    facts: Facts
    code: tuple[tuple[str, tuple[str, ...]], ...]
    calls: tuple[CallEntry, ...] | None
    faults: tuple[str, ...]
    warnings: tuple[str, ...]

    def __repr__(self) -> str:
        return f"<Inspection {self.size} bytes, {len(self.faults)} faults, {len(self.warnings)} warnings>"

    @property
    def good(self) -> bool:
        """Whether BIOS, Linux and patched kernels accept the ROM."""
        return not self.faults

    def to_json(self) -> dict[str, object]:
        """Everything, as plain JSON values."""
        calls = self.calls and [
            {"number": call.number, "name": call.name, "relocation": call.relocation, "offset": call.offset}
            for call in self.calls
        ]
        return {
            "size": self.size,
            "facts": dict(self.facts),
            "code": {name: list(lines) for name, lines in self.code},
            "calls": list(calls) if calls else None,
            "faults": list(self.faults),
            "warnings": list(self.warnings),
        }

    def to_text(self) -> str:
        """Everything, for a terminal of 80 columns."""
        lines = [f"{name:<14}{value}" for name, value in self.facts]
        for name, disassembly in self.code:
            lines += [f"{name}:", *(f"    {line}" for line in disassembly)]
        lines += self._call_lines()
        for title, sentences in (("warning", self.warnings), ("fault", self.faults)):
            lines += [f"{title}: {sentence}" for sentence in sentences]
        if self.good:
            lines.append("This is a good ROM.")
        return "\n".join(lines) + "\n"

    def _call_lines(self) -> list[str]:
        if self.calls is None:
            return [f"calls: {_UNKNOWN}"]
        absent = [call.name for call in self.calls if call.relocation == Reloc.NONE.name]
        lines = ["calls:"]
        lines += [
            f"  {call.number:>3} {call.name:<20}{call.relocation:<10}{call.offset:#06x}"
            for call in self.calls
            if call.relocation != Reloc.NONE.name
        ]
        rest = f"not offered: {', '.join(absent) or 'none'}"
        return [*lines, *textwrap.wrap(rest, 78, subsequent_indent="    ")]


def check(image: bytes) -> None:
    """Raise RomError with the first fault of an image, if it has one."""
    faults = inspect(image).faults
    if faults:
        raise RomError(faults[0])


def inspect(image: bytes) -> Inspection:
    """Everything about an image; any bytes will do, and nothing is raised."""
    found = _Findings()
    if len(image) < abi.ROM_HEADER_SIZE:
        found.faults.append(
            f"the image has {len(image)} bytes, the header of a VMI ROM alone has {abi.ROM_HEADER_SIZE}"
        )
        return found.result(image)
    header = RomHeader.parse(image)
    _signatures(image, header, found)
    if len(found.faults) == 2:
        return found.result(image)  # something else altogether
    _lengths(image, header, found)
    _licence(image, header, found)
    _pci(image, header, found)
    product = _pnp(image, header, found)
    _header_rest(header, found)
    for name, offset, size, bits in (
        ("BIOS entry", 3, 4, 16),
        ("VMI_Init", abi.INIT_OFFSET, abi.ENTRY_SLOT_SIZE, 32),
        ("GetRelocationInfo", abi.GET_RELOC_OFFSET, abi.ENTRY_SLOT_SIZE, 32),
    ):
        _slot_code(image, name, offset, size, bits, found)
    table = CallTable.parse(image)
    if table is not None and product is not None and product.startswith(PRODUCT):
        found.facts.insert(0, ("flavour", product.removeprefix(PRODUCT)))
        _calls(image, table, found)
    return found.result(image)


class _Findings:
    def __init__(self) -> None:
        self.facts: list[tuple[str, str]] = []
        self.code: list[tuple[str, tuple[str, ...]]] = []
        self.calls: tuple[CallEntry, ...] | None = None
        self.faults: list[str] = []
        self.warnings: list[str] = []

    def result(self, image: bytes) -> Inspection:
        return Inspection(
            len(image),
            tuple(self.facts),
            tuple(self.code),
            self.calls,
            tuple(self.faults),
            tuple(self.warnings),
        )


def _signatures(image: bytes, header: RomHeader, found: _Findings) -> None:
    found.facts.append(("size", f"{len(image)} bytes, the header says {header.size}"))
    if header.rom_signature != abi.ROM_SIGNATURE:
        found.faults.append(f"the image starts with {image[:2].hex(' ').upper()}, an option ROM with 55 AA")
    if header.vrom_signature != abi.VROM_SIGNATURE:
        found.faults.append(f"at offset 8 stands {image[8:12]!r}, a VMI ROM has b'cVmi' there")


def _lengths(image: bytes, header: RomHeader, found: _Findings) -> None:
    if header.size == 0:
        found.faults.append("the length field is 0, so the ROM has no bytes for a BIOS")
    elif header.size > len(image):
        found.faults.append(f"the length field says {header.size} bytes, the image has only {len(image)}")
    else:
        total = layout.checksum(image[: header.size])
        if total:
            found.faults.append(f"the ROM's bytes add up to {total:#04x} modulo 256 instead of 0")
        found.facts.append(("checksum", "good" if not total else f"off by {total:#04x}"))
        if header.size < len(image):
            extra = len(image) - header.size
            found.warnings.append(f"the length field says {header.size} bytes, {extra} more come after them")
    if header.size > MAX_SIZE:
        found.warnings.append(
            f"patched kernels stay native: they keep {MAX_SIZE} bytes for a ROM's copy, not {header.size}"
        )
    found.facts.append(("API", f"{header.api_version_maj}.{header.api_version_min}"))
    if header.api_version_maj != abi.API_MAJOR:
        found.faults.append(f"the API major version is {header.api_version_maj}, guests want {abi.API_MAJOR}")


def _licence(image: bytes, header: RomHeader, found: _Findings) -> None:
    offset = header.license_offs
    text = layout.text_at(image, offset)
    found.facts.append(("licence", text if text is not None else "none"))
    if offset == 0:
        found.faults.append("there is no licence string; Linux uses only ROMs under GPL or GPL v2")
    elif text is None:
        found.faults.append(f"the licence offset {offset:#x} leads to no NUL-terminated text in the image")
    elif text not in abi.LICENCES:
        found.faults.append(f"the licence is '{text}'; Linux uses only ROMs under GPL or GPL v2")


def _pci(image: bytes, header: RomHeader, found: _Findings) -> None:
    offset = header.pci_header_offs
    if offset == 0:
        found.faults.append("the PCI data offset is 0, so guests refuse the ROM")
        return
    try:
        pci = PciData.parse(image, offset)
    except RomError:
        found.faults.append(f"the PCI data offset {offset:#x} leads out of the image")
        return
    identity = f"{pci.vendor_id:04x}:{pci.device_id:04x}"
    found.facts.append(("PCI device", f"{identity}, class {pci.class_code:02x}{pci.subclass:02x}"))
    found.facts.append(("ROM version", f"{pci.rom_version_maj}.{pci.rom_version_min}"))
    if pci.signature != abi.PCI_SIGNATURE:
        found.faults.append(f"the PCI data at {offset:#x} start with {pci.signature!r} instead of b'PCIR'")
        return
    if (pci.vendor_id, pci.device_id) != (abi.PCI_VENDOR, abi.PCI_DEVICE):
        found.warnings.append(f"the PCI device is {identity}; Linux expects 15ad:0801 and goes on")
    if pci.chunks != header.rom_length:
        found.warnings.append(
            f"the PCI data say {pci.chunks} units of 512 bytes, the ROM header {header.rom_length}"
        )
    if not pci.last_rom & 0x80:
        found.warnings.append("the PCI data say that another image follows")


def _pnp(image: bytes, header: RomHeader, found: _Findings) -> str | None:
    """The product's name, if there is one."""
    offset = header.pnp_header_offs
    if offset == 0:
        found.warnings.append("there is no $PnP header, so many BIOSes do not run the ROM's BIOS entry")
        return None
    try:
        pnp = PnpData.parse(image, offset)
    except RomError:
        found.faults.append(f"the $PnP header offset {offset:#x} leads out of the image")
        return None
    if pnp.signature != abi.PNP_SIGNATURE:
        found.faults.append(
            f"the $PnP header at {offset:#x} starts with {pnp.signature!r} instead of b'$PnP'"
        )
        return None
    length = pnp.length_units * 16
    if length < layout.PNP_SIZE or offset + length > len(image):
        found.warnings.append(f"the $PnP header says that it is {length} bytes long, a BIOS reads 32")
    elif layout.checksum(image[offset : offset + length]):
        found.warnings.append("the bytes of the $PnP header do not add up to 0 modulo 256")
    product = layout.text_at(image, pnp.product_offset)
    found.facts.append(("maker", layout.text_at(image, pnp.manufacturer_offset) or "none"))
    found.facts.append(("product", product or "none"))
    return product


def _header_rest(header: RomHeader, found: _Findings) -> None:
    top = header.virtual_top
    found.facts.append(("virtual top", f"{top:#010x}" if top else "0, no hole"))
    for name in ("rom_pad0", "reserved1", "reserved2", "rom_pad3", "reserved"):
        value = getattr(header, name)
        if any(value) if isinstance(value, bytes) else value:
            found.warnings.append(f"the reserved field {name} is not 0")


def _slot_code(image: bytes, name: str, offset: int, size: int, bits: int, found: _Findings) -> None:
    """Disassemble a short entry; it has to leave before its room ends."""
    lines: list[str] = []
    fault = f"the code of {name} runs past its {size} bytes without a jump or return"
    for instruction in Decoder(bits, image[offset : offset + size], ip=offset):
        if instruction.is_invalid:
            fault = f"the code of {name} at {instruction.ip32:#x} is no instruction within its {size} bytes"
            break
        lines.append(f"{instruction.ip32:04x}  {flow.text(instruction)}")
        if instruction.flow_control in _END:
            fault = ""
            _check_target(image, name, instruction, found)
            break
    if fault:
        found.faults.append(fault)
    found.code.append((name, tuple(lines)))


def _check_target(image: bytes, name: str, instruction: Instruction, found: _Findings) -> None:
    if not instruction.is_jmp_short_or_near:
        return
    target = instruction.near_branch_target & 0xFFFF_FFFF
    if target >= len(image):
        found.warnings.append(f"{name} jumps to {target:#x} from the ROM's start, outside of the image")


def _calls(image: bytes, table: CallTable, found: _Findings) -> None:
    entries: list[CallEntry] = []
    for call in abi.CALLS:
        kind, offset = table.entry(call.number)
        entries.append(CallEntry(call.name, call.number, kind.name, offset))
        if kind not in call.relocations:
            found.faults.append(f"{call.name} is answered {kind.name}, which it may not be")
        elif offset >= len(image):
            found.faults.append(f"the entry of {call.name} at {offset:#x} lies outside of the image")
    if table.gates:
        found.facts.append(("gates", f"{table.gates:#06x}"))
    if table.data_page:
        found.facts.append(("data page", f"{table.data_page:#06x}"))
    if table.promises & Promise.FAULTS_AT_CALL:
        found.facts.append(("promises", "a fault of a call is reported at the call"))
    found.calls = tuple(entries)
