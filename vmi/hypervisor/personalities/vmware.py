# SPDX-License-Identifier: GPL-2.0-only
"""The hypervisor side of the `vmware` ROM: its gates, and the words it shares with the guest.

The ROM runs from a copy in guest memory, or in place. It is recognised by its code, byte for byte, when
VMI_Init is called; from then on a gate is only a gate at its place inside that copy. The data page
belongs to the guest: what it holds can mislead the guest about its own interrupt flag and nothing else.
"""

from __future__ import annotations

from vmi import abi
from vmi.errors import RomError
from vmi.hypervisor.personality import Gate
from vmi.memory import PAGE_SIZE, PhysicalMemory
from vmi.rom import layout
from vmi.rom.build import PRODUCT
from vmi.rom.flavours import vmware as flavour
from vmi.x86 import IF_BIT

_SPECIAL = {flavour.INIT_GATE: Gate.INIT, flavour.PENDING_GATE: Gate.PENDING}


class Vmware:
    """One guest's copy of a `vmware` ROM.

    :param image: the ROM as it is plugged in.
    :raises RomError: it calls itself a ROM of this flavour and is laid out as none.
    """

    name = flavour.FLAVOUR.name
    interrupt: int | None = flavour.GATE_INTERRUPT

    def __init__(self, image: bytes, memory: PhysicalMemory) -> None:
        table = layout.CallTable.parse(image)
        if table is None or table.gates != layout.GATES or table.data_page != len(image) - PAGE_SIZE:
            raise RomError(f"a ROM of flavour {self.name} must have gates, and a data page at its end")
        self._memory = memory
        self._code = image[: table.data_page]
        self._size = len(image)
        self._data = table.data_page
        self._base: int | None = None
        self.virtual_top = layout.RomHeader.parse(image).virtual_top

    @classmethod
    def for_rom(cls, image: bytes, memory: PhysicalMemory) -> Vmware | None:
        """See :class:`vmi.hypervisor.personalities.PersonalityClass`."""
        return cls(image, memory) if product(image) == PRODUCT + cls.name else None

    @property
    def base(self) -> int:
        """Guest-physical address of the copy in use."""
        if self._base is None:
            raise ValueError("no copy of the ROM is in use")
        return self._base

    def adopt(self, address: int) -> bool:
        """See :class:`vmi.hypervisor.personality.Personality`."""
        base = address - layout.gate_offset(flavour.INIT_GATE)
        if base < 0 or base + self._size > self._memory.size:
            return False
        if self._memory.read(base, len(self._code)) != self._code:
            return False
        self._base = base
        return True

    def gate(self, address: int) -> abi.Call | Gate | None:
        """See :class:`vmi.hypervisor.personality.Personality`."""
        number = layout.gate_number(address - self.base)
        if number is None:
            return None
        return abi.CALLS[number] if number < len(abi.CALLS) else _SPECIAL.get(number)

    def holds_code(self, address: int) -> bool:
        """See :class:`vmi.hypervisor.personality.Personality`."""
        return self.base <= address < self.base + self._data

    def holds_data(self, address: int) -> bool:
        """See :class:`vmi.hypervisor.personality.Personality`."""
        start = self.base + self._data
        return start <= address < start + PAGE_SIZE

    def _word(self, offset: int) -> int:
        return self._memory.u32(self.base + self._data + offset)

    def _set_word(self, offset: int, value: int) -> None:
        self._memory.put_u32(self.base + self._data + offset, value)

    def get(self) -> bool:
        """See :class:`vmi.hypervisor.personality.Personality`."""
        return bool(self._word(flavour.VIF) & IF_BIT)

    def set(self, on: bool) -> None:
        """See :class:`vmi.hypervisor.personality.Personality`."""
        self._set_word(flavour.VIF, IF_BIT if on else 0)

    def set_iopl(self, iopl: int) -> None:
        """See :class:`vmi.hypervisor.personality.Personality`."""
        self._set_word(flavour.IOPL, iopl)

    def set_pending(self, waits: bool) -> None:
        """See :class:`vmi.hypervisor.personality.Personality`."""
        self._set_word(flavour.PENDING, int(waits))

    def want(self, wanted: bool) -> None:
        """See :class:`vmi.hypervisor.personality.Personality`."""

    def take(self) -> list[int]:
        """See :class:`vmi.hypervisor.personality.Personality`."""
        return []

    def undo_iret(self) -> int:
        """See :class:`vmi.hypervisor.personality.Personality`."""
        self.set(bool(self._word(flavour.IRET_VIF) & IF_BIT))
        return self._word(flavour.IRET_SITE)


def product(image: bytes) -> str | None:
    """The product string of a ROM, or None."""
    try:
        pnp = layout.PnpData.parse(image, layout.RomHeader.parse(image).pnp_header_offs)
    except RomError:
        return None
    return layout.text_at(image, pnp.product_offset)


PERSONALITY = Vmware
