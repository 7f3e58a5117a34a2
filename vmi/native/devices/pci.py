# SPDX-License-Identifier: GPL-2.0-only
"""PCI configuration space: the ports that reach it, and the 256 bytes of one function.

Configuration mechanism 1: a dword at CF8h names bus, device, function and register, CFCh-CFFh are a window
onto that register. There is one bus, number 0; where no function is, all ones are read.

A function's base address registers say where its ports and its memory lie. Whoever makes the function hears
of each change, so that the decoding itself stays with the buses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from vmi.errors import UsageError
from vmi.memory import PAGE_SIZE
from vmi.native.bus import PORT_COUNT, Device, State
from vmi.native.stamped import Stamped

SIZE = 256  # bytes of a function's configuration space
SLOTS, FUNCTIONS = 32, 8

# Offsets of the header that all functions have.
COMMAND, STATUS, CLASS, HEADER_TYPE, BAR0, SUBSYSTEM, ROM_ADDRESS = 0x04, 0x06, 0x09, 0x0E, 0x10, 0x2C, 0x30
INTERRUPT_LINE, INTERRUPT_PIN, OWN = 0x3C, 0x3D, 0x40
_CACHE_LINE = 0x0C

IO_ENABLE, MEMORY_ENABLE = 0x0001, 0x0002
_COMMAND_WRITABLE = 0x0507  # I/O, memory, bus master, SERR, interrupt disable
_MULTIFUNCTION = 0x80
ROM = 6  # the number of the expansion ROM among the base address registers
_ROM_ENABLE = 1

_ENABLE = 1 << 31  # in the dword at CF8h
_ADDRESS, _DATA = 0xCF8, 0xCFC


@dataclass(frozen=True)
class Bar:
    """A base address register: ``size`` bytes, a power of two, of ports or of memory."""

    size: int
    io: bool = False
    prefetchable: bool = False

    def __post_init__(self) -> None:
        least = 4 if self.io else PAGE_SIZE
        if self.size & (self.size - 1) or self.size < least:
            kind = "ports" if self.io else "memory"
            raise UsageError(
                f"a base address register for {kind} must have a power of two of at least {least} bytes, "
                f"but {self.size} were asked for"
            )

    @property
    def flags(self) -> int:
        """The constant low bits of the register."""
        return 1 if self.io else 8 if self.prefetchable else 0


@dataclass(frozen=True)
class Identity:
    """What a function is: ``code`` is class, subclass and programming interface, one byte each."""

    vendor: int
    device: int
    code: int
    revision: int = 0
    subsystem_vendor: int = 0x1AF4
    subsystem: int = 0x1100
    multifunction: bool = False

    def __repr__(self) -> str:
        return f"<{self.vendor:04x}:{self.device:04x} class {self.code:06x} rev {self.revision}>"


class PciFunction(Stamped):
    """The configuration space of one function.

    :param bars: by number: 0 to 5, and ``ROM`` for the expansion ROM.
    :param pin: interrupt pin, 1 for INTA#, 0 for none.
    :param registers: values after reset by offset, one byte each, beyond what ``identity`` tells.
    :param on_map: called with a number of ``bars`` and where it decodes now, None for nowhere.

    All bytes from 40h on can be written to unless a subclass says otherwise.
    """

    def __init__(
        self,
        identity: Identity,
        *,
        bars: Mapping[int, Bar] | None = None,
        pin: int = 0,
        registers: Mapping[int, int] | None = None,
        on_map: Callable[[int, int | None], None] | None = None,
    ) -> None:
        self.identity = identity
        self.bars = dict(bars or {})
        self.on_map = on_map
        self._where: dict[int, int | None] = dict.fromkeys(self.bars)
        self._initial = self._make_initial(pin, registers or {})
        self._writable = self._make_writable()
        self.space = bytearray(self._initial)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.identity!r}>"

    def _make_initial(self, pin: int, registers: Mapping[int, int]) -> bytes:
        identity, space = self.identity, bytearray(SIZE)
        space[0:4] = (identity.device << 16 | identity.vendor).to_bytes(4, "little")
        space[8:12] = (identity.code << 8 | identity.revision).to_bytes(4, "little")
        space[HEADER_TYPE] = _MULTIFUNCTION if identity.multifunction else 0
        subsystem = identity.subsystem << 16 | identity.subsystem_vendor
        space[SUBSYSTEM : SUBSYSTEM + 4] = subsystem.to_bytes(4, "little")
        space[INTERRUPT_PIN] = pin
        for number, bar in self.bars.items():
            if number != ROM:
                space[BAR0 + 4 * number] = bar.flags
        for offset, value in registers.items():
            space[offset] = value
        return bytes(space)

    def _make_writable(self) -> bytes:
        mask = bytearray(OWN) + b"\xff" * (SIZE - OWN)
        mask[COMMAND : COMMAND + 2] = _COMMAND_WRITABLE.to_bytes(2, "little")
        mask[_CACHE_LINE] = mask[INTERRUPT_LINE] = 0xFF
        for number, bar in self.bars.items():
            bits = -bar.size & 0xFFFFFFFF | (_ROM_ENABLE if number == ROM else 0)
            mask[(at := register_of(number)) : at + 4] = bits.to_bytes(4, "little")
        return bytes(mask)

    # --- access ---

    def read(self, offset: int, size: int) -> int:
        """Read ``size`` bytes; those beyond the end are zero."""
        return int.from_bytes(self.space[offset : offset + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        """Write the bytes that can be written to."""
        span = range(offset, min(offset + size, SIZE))
        for at in span:
            byte, mask = value >> 8 * (at - offset) & 0xFF, self._writable[at]
            self.space[at] = self.space[at] & ~mask | byte & mask
        self._remap()
        self._written(span)

    def _written(self, span: range) -> None:
        """Registers of these offsets have been written, or may have changed otherwise."""

    # --- decoding ---

    def where(self, number: int) -> int | None:
        """Where a base address register decodes now: port or physical address, or None."""
        return self._where[number]

    def _decodes(self, number: int, bar: Bar) -> int | None:
        register = self.read(register_of(number), 4)
        enabled = self.read(COMMAND, 2) & (IO_ENABLE if bar.io else MEMORY_ENABLE)
        if not enabled or (number == ROM and not register & _ROM_ENABLE):
            return None
        address = register & -bar.size
        # All ones are written to find the size; that, and zero, are no addresses to be used.
        end = address + bar.size
        if not address or end >= 1 << 32 or (bar.io and end > PORT_COUNT):
            return None
        return address

    def _remap(self) -> None:
        moved = {n: to for n, bar in self.bars.items() if (to := self._decodes(n, bar)) != self._where[n]}
        self._where.update(moved)
        if self.on_map is not None:
            for number, address in moved.items():
                self.on_map(number, address)

    # --- state ---

    def reset(self) -> None:
        """Return to power-on: nothing is decoded."""
        self._replace(self._initial)

    def save(self) -> State:
        """Give the whole space."""
        return {"space": self.space.hex()}

    def load(self, state: State) -> None:
        """Take over the whole space, with what it decodes."""
        self._replace(bytes.fromhex(state["space"]))

    def _replace(self, space: bytes) -> None:
        self.space[:] = space
        self._remap()
        self._written(range(SIZE))


def register_of(number: int) -> int:
    """The offset of a base address register."""
    return ROM_ADDRESS if number == ROM else BAR0 + 4 * number


class PciHost(Device):
    """The ports CF8h and CFCh-CFFh, and all functions behind them.

    Port CF9h is the reset register's, a device of its own: it takes single bytes, this takes dwords at CF8h.
    """

    name = "pci"
    ports = (range(_ADDRESS, _ADDRESS + 1), range(_ADDRESS + 2, _DATA + 4))
    wide = True

    def __init__(self) -> None:
        self.address = 0
        self._functions: dict[tuple[int, int], PciFunction] = {}
        self._reads = self._writes = self._absent = 0

    @property
    def functions(self) -> dict[tuple[int, int], PciFunction]:
        """All functions by (slot, number), in the order in which firmware finds them."""
        return dict(sorted(self._functions.items()))

    def add(self, slot: int, number: int, function: PciFunction) -> None:
        """Plug a function in. UsageError if that can't be, or would never be found there."""
        where = f"{slot:02x}.{number}"
        if not (0 <= slot < SLOTS and 0 <= number < FUNCTIONS):
            raise UsageError(
                f"a PCI function must be at slots 0 to {SLOTS - 1} and numbers 0 to {FUNCTIONS - 1}, "
                f"but slot {slot}, number {number} was asked for"
            )
        if (slot, number) in self._functions:
            raise UsageError(f"PCI function {where} is {self._functions[slot, number]!r} already")
        first = self._functions.get((slot, 0))
        if number and (first is None or not first.identity.multifunction):
            raise UsageError(f"PCI function {where} needs a function 0 that says that there are others")
        self._functions[slot, number] = function

    # --- ports ---

    def _selected(self) -> PciFunction | None:
        address = self.address
        if not address & _ENABLE or address & 0x00FF0000:
            return None
        return self._functions.get((address >> 11 & 0x1F, address >> 8 & 7))

    def read(self, port: int, size: int) -> int:
        """Read the address, or the register it names; bytes beyond the window are ones."""
        if port < _DATA:
            # Any port of the address gives its low bytes, as in QEMU.
            inside = min(size, _DATA - port)
            value = self.address & (1 << 8 * inside) - 1
        else:
            inside = min(size, _DATA + 4 - port)
            value = self._read_data(self.address & 0xFF | port & 3, inside)
        return value | (1 << 8 * size) - (1 << 8 * inside)

    def _read_data(self, offset: int, size: int) -> int:
        self._reads += 1
        function = self._selected()
        if function is None:
            self._absent += 1
            return (1 << 8 * size) - 1
        return function.read(offset, size)

    def write(self, port: int, size: int, value: int) -> None:
        """Write the address, which takes dwords alone, or the register it names."""
        if port < _DATA:
            if port == _ADDRESS and size == 4:
                self.address = value
            return
        self._writes += 1
        function = self._selected()
        if function is not None:
            function.write(self.address & 0xFF | port & 3, min(size, _DATA + 4 - port), value)

    # --- state ---

    def reset(self) -> None:
        """Return all functions to power-on."""
        self.address = 0
        for function in self._functions.values():
            function.reset()

    def save(self) -> State:
        """Give the address and every function's space."""
        return {
            "address": self.address,
            "functions": {f"{slot:02x}.{n}": each.save() for (slot, n), each in self.functions.items()},
        }

    def load(self, state: State) -> None:
        """Take over what ``save`` gave. UsageError if it is of other functions."""
        own = {f"{slot:02x}.{n}": each for (slot, n), each in self.functions.items()}
        saved = state["functions"]
        if set(saved) != set(own):
            wanted, got = ", ".join(own), ", ".join(sorted(saved))
            raise UsageError(f"the saved state must be of the PCI functions {wanted}, but it is of {got}")
        self.address = state["address"]
        for name, function in own.items():
            function.load(saved[name])

    def stats(self) -> dict[str, int]:
        """Count accesses to configuration space, and reads that found no function."""
        return {"reads": self._reads, "writes": self._writes, "absent": self._absent}
