# SPDX-License-Identifier: GPL-2.0-only
"""What activation makes of a patched kernel when a ROM is there: slots and adaptors connected, ROM copied.

This follows the page that describes the site table, not the activation code: an activation that did
anything else would make another kernel than the one that is proved here, and a test compares the two.
"""

from __future__ import annotations

from dataclasses import dataclass

from vmi.abi import CALLS, Call, Reloc
from vmi.rom.build import Rom
from vmi.rom.layout import Promise
from vmi.sitetable import INLINE, NO_CALL, SiteFlag, SiteTable

_CALL, _JUMP, _NOP = 0xE8, 0xE9, 0x90


@dataclass(frozen=True)
class Connected:
    """The bytes that activation changes, the ROM's entries by address, and the slots that became calls."""

    changes: dict[int, bytes]
    entries: dict[int, Call]
    slots: frozenset[int]


def connect(table: SiteTable, rom: Rom) -> Connected:
    """Connect all slots to a ROM."""
    base = table.header.rom_reserve
    changes = {base: rom.image}
    entries = {
        base + offset: CALLS[n] for n, (kind, offset) in enumerate(rom.calls) if kind is not Reloc.NONE
    }
    promised = rom.promises & Promise.FAULTS_AT_CALL
    slots = set()
    for record in table.sites:
        if record.call == NO_CALL or record.flags & SiteFlag.ISOLATED:
            continue
        if record.flags & SiteFlag.RECOVERED and (record.adaptor or not promised):
            continue
        if record.call == INLINE:
            kind, target = Reloc.CALL_REL, record.adaptor
        else:
            kind, offset = rom.calls[record.call]
            target = base + offset
        if kind is Reloc.CALL_REL:
            first = _rel32(_CALL, record.slot, record.adaptor or target)
        elif kind is Reloc.JUMP_REL and record.flags & SiteFlag.JUMP_OK:
            first = _rel32(_JUMP, record.slot, target)
        elif kind is Reloc.NOP and record.flags & SiteFlag.NOP_OK:
            first = b""
        else:
            continue
        changes[record.slot] = first.ljust(record.length, bytes((_NOP,)))
        slots.add(record.slot)
    for link in table.links:
        kind, offset = rom.calls[link.call]
        if kind is Reloc.CALL_REL:
            changes[link.address] = _rel32(_CALL, link.address, base + offset)
    return Connected(changes, entries, frozenset(slots))


def _rel32(opcode: int, at: int, target: int) -> bytes:
    return bytes((opcode,)) + (target - at - 5 & 0xFFFFFFFF).to_bytes(4, "little")
