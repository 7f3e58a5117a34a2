# SPDX-License-Identifier: GPL-2.0-only
"""The hypervisor side of the `vmware` ROM: its gates, and the words it shares with the guest.

The ROM runs from a copy in guest memory, or in place. It is recognised by its code, byte for byte, when
VMI_Init is called; from then on a gate is only a gate at its place inside that copy. The data page
belongs to the guest: what it holds can mislead the guest about its own state and nothing else.
"""

from __future__ import annotations

from vmi import abi
from vmi.errors import RomError
from vmi.hypervisor.mirror import Told
from vmi.hypervisor.personality import Gate
from vmi.memory import PAGE_SIZE, PhysicalMemory
from vmi.native.stamped import Stamped
from vmi.native.straight import Cells
from vmi.rom import layout
from vmi.rom.build import PRODUCT
from vmi.rom.flavours import vmware as flavour
from vmi.x86 import IF_BIT, IOPL_MASK, U32

_WIDE = frozenset({Told.HERTZ, Told.REAL, Told.AVAILABLE, Told.STOLEN})  # 64 bits
_TOLD = {what: flavour.FLAVOUR.words[what.name] // 4 for what in Told}
_WORDS = flavour.QUEUE // 4  # dwords that belong to one CPU
_LINEAR = range(flavour.LINEAR // 4, flavour.LINEAR // 4 + 3 * abi.LINEAR_SLOTS, 3)

_GATE = bytes((0xCD, flavour.GATE_INTERRUPT))
_SPECIAL = {flavour.INIT_GATE: Gate.INIT, flavour.PENDING_GATE: Gate.PENDING}


class Vmware(Stamped):
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
        numbers = range(layout.MAX_GATES)
        self._gates = frozenset(n for n in numbers if image.startswith(_GATE, layout.gate_offset(n)))
        self._slots = range(table.slots, table.slots + table.slot_size * len(abi.CALLS), table.slot_size)
        self._base: int | None = None
        self._words = memoryview(bytearray(PAGE_SIZE)).cast("I")  # until a copy is in use
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
        start = base + self._data
        self._words = self._memory.ram[start : start + PAGE_SIZE].cast("I")
        return True

    def gate(self, address: int) -> abi.Call | Gate | None:
        """See :class:`vmi.hypervisor.personality.Personality`."""
        number = layout.gate_number(address - self.base)
        if number not in self._gates:
            return None
        return abi.CALLS[number] if number < len(abi.CALLS) else _SPECIAL.get(number)

    def gate_address(self, call: abi.Call) -> int:
        """See :class:`vmi.hypervisor.personality.Personality`."""
        return self.base + layout.gate_offset(call.number)

    def is_entry(self, address: int) -> bool:
        """See :class:`vmi.hypervisor.personality.Personality`."""
        return address - self.base in self._slots

    def holds_code(self, address: int) -> bool:
        """See :class:`vmi.hypervisor.personality.Personality`."""
        return self.base <= address < self.base + self._data

    def holds_data(self, address: int) -> bool:
        """See :class:`vmi.hypervisor.personality.Personality`."""
        start = self.base + self._data
        return start <= address < start + PAGE_SIZE

    def get(self) -> bool:
        """See :class:`vmi.hypervisor.personality.Personality`."""
        return bool(self._words[flavour.VIF // 4] & IF_BIT)

    def set(self, on: bool) -> None:
        """See :class:`vmi.hypervisor.personality.Personality`."""
        self._words[flavour.VIF // 4] = IF_BIT if on else 0

    def iopl(self) -> int:
        """See :class:`vmi.hypervisor.personality.Personality`."""
        return self._words[flavour.IOPL // 4] & IOPL_MASK

    def set_iopl(self, iopl: int) -> None:
        """See :class:`vmi.hypervisor.personality.Personality`."""
        self._words[flavour.IOPL // 4] = iopl

    def kernel_stack(self) -> tuple[int, int] | None:
        """See :class:`vmi.hypervisor.personality.Personality`."""
        selector = self._words[flavour.KERNEL_SS // 4]
        if not selector & flavour.KERNEL_SS_GIVEN:
            return None
        return selector & 0xFFFC, self._words[flavour.KERNEL_ESP // 4]

    def tell(self, what: Told, value: int) -> None:
        """See :class:`vmi.hypervisor.personality.Personality`."""
        place = _TOLD[what]
        self._words[place] = value & U32
        if what in _WIDE:
            self._words[place + 1] = value >> 32 & U32

    def set_pending(self, waits: bool) -> None:
        """See :class:`vmi.hypervisor.personality.Personality`."""
        self._words[flavour.PENDING // 4] = int(waits)

    def want(self, wanted: bool) -> None:
        """See :class:`vmi.hypervisor.personality.Personality`."""
        self._words[flavour.WANTED // 4] = int(wanted)

    def take(self) -> list[int]:
        """See :class:`vmi.hypervisor.personality.Personality`."""
        count = self._words[flavour.QUEUED // 4]
        if not count:
            return []
        self._words[flavour.QUEUED // 4] = 0
        first = flavour.QUEUE // 4
        return self._words[first : first + min(count, flavour.QUEUE_SIZE)].tolist()

    def linear_maps(self) -> list[tuple[int, int, int]]:
        """See :class:`vmi.hypervisor.personality.Personality`."""
        return [(self._words[at], self._words[at + 1], self._words[at + 2]) for at in _LINEAR]

    def show_uncached(self, page: int | None) -> None:
        """See :class:`vmi.hypervisor.personality.Personality`."""
        self._words[flavour.UNCACHED // 4] = 0 if page is None else page | flavour.UNCACHED_KNOWN

    def cells(self) -> Cells:
        """See :class:`vmi.hypervisor.personality.Personality`."""
        at = self._memory.host_address + self.base + self._data
        return Cells(
            interrupts=at + flavour.VIF,
            iopl=at + flavour.IOPL,
            kernel_ss=at + flavour.KERNEL_SS,
            kernel_esp=at + flavour.KERNEL_ESP,
            kernel_ss_given=flavour.KERNEL_SS_GIVEN,
            cr2=at + 4 * _TOLD[Told.CR2],
            cr3=at + 4 * _TOLD[Told.CR3],
            uncached=at + flavour.UNCACHED,
            uncached_known=flavour.UNCACHED_KNOWN,
            rom=range(self.base, self.base + self._data),
            gates=range(
                self.base + layout.gate_offset(0),
                self.base + layout.gate_offset(flavour.PENDING_GATE + 1),
                layout.GATE_SIZE,
            ),
        )

    def save_words(self) -> bytes:
        """See :class:`vmi.hypervisor.personality.Personality`."""
        return self._words[:_WORDS].tobytes()

    def load_words(self, words: bytes) -> None:
        """See :class:`vmi.hypervisor.personality.Personality`."""
        self._words[:_WORDS] = memoryview(words.ljust(4 * _WORDS, b"\0")).cast("I")

    def undo_iret(self) -> tuple[int, bool]:
        """See :class:`vmi.hypervisor.personality.Personality`."""
        word = self._words[flavour.IRET_VIF // 4]
        self.set(bool(word & IF_BIT))
        return self._words[flavour.IRET_SITE // 4], bool(word & flavour.IRET_RAISED)


def product(image: bytes) -> str | None:
    """The product string of a ROM, or None."""
    try:
        pnp = layout.PnpData.parse(image, layout.RomHeader.parse(image).pnp_header_offs)
    except RomError:
        return None
    return layout.text_at(image, pnp.product_offset)


PERSONALITY = Vmware
