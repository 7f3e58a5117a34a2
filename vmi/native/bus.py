# SPDX-License-Identifier: GPL-2.0-only
"""The I/O port bus and what a device on it must offer.

Every device owns its registers, state and statistics; the bus only finds it by port number. ISA
devices are one byte wide, so the bus splits wider accesses into bytes, as the ISA bridge does, and a
port that nobody claims reads as all ones, as the pulled-up data lines do.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, Protocol

from vmi.errors import UsageError
from vmi.native.stamped import Stamped

#: JSON-able device state: str keys; int, bool, str, None, and lists and dicts of them as values.
State = dict[str, Any]

PORT_COUNT = 0x10000


class IrqLine(Protocol):
    """An interrupt request input: a device drives its level, the interrupt controller listens."""

    def set(self, level: bool, /) -> None:
        """Drive the line high (True) or low (False)."""


class Device(Stamped, ABC):
    """One device with port registers.

    ``name`` is unique on its bus. ``ports`` are the port numbers it claims. A ``wide`` device gets
    2- and 4-byte accesses that begin in its range whole; other devices only ever see single bytes.
    """

    name: str
    ports: tuple[range, ...]
    wide: bool = False

    @abstractmethod
    def read(self, port: int, size: int) -> int:
        """Answer a read of ``size`` bytes (1, 2 or 4; always 1 unless ``wide``)."""

    @abstractmethod
    def write(self, port: int, size: int, value: int) -> None:
        """Take a write of ``size`` bytes (1, 2 or 4; always 1 unless ``wide``)."""

    @abstractmethod
    def reset(self) -> None:
        """Return to the state after the RESET line."""

    @abstractmethod
    def save(self) -> State:
        """Give the whole state as JSON-able values; ``load`` of it continues identically."""

    @abstractmethod
    def load(self, state: State) -> None:
        """Take over a state that ``save`` gave."""

    def stats(self) -> dict[str, int]:
        """Give event counts since the device was made (not part of the state)."""
        return {}

    def __repr__(self) -> str:
        spans = ",".join(f"{r.start:x}-{r.stop - 1:x}" if len(r) > 1 else f"{r.start:x}" for r in self.ports)
        return f"<{type(self).__name__} {self.name} ports {spans}>"


class PortBus(Stamped):
    """The 64 Ki I/O ports: finds the device of a port, splits wide accesses, counts strays."""

    def __init__(self) -> None:
        self._by_port: Mapping[int, Device] = MappingProxyType({})
        self._devices: Mapping[str, Device] = MappingProxyType({})
        self.unclaimed_reads: Counter[int] = Counter()
        self.unclaimed_writes: Counter[int] = Counter()

    @property
    def devices(self) -> tuple[Device, ...]:
        """All devices in the order of attachment."""
        return tuple(self._devices.values())

    def device(self, name: str) -> Device:
        """Find a device by name; KeyError if there is none."""
        return self._devices[name]

    def name_of(self, port: int) -> str | None:
        """The name of the device that answers a port, None if nobody does."""
        device = self._by_port.get(port)
        return None if device is None else device.name

    def attach(self, *devices: Device) -> None:
        """Plug devices in. UsageError if a name or a port is taken already."""
        by_name, by_port = dict(self._devices), dict(self._by_port)
        for device in devices:
            if device.name in by_name:
                raise UsageError(f"device names must be unique, but {device.name!r} is on the bus already")
            for port in _numbers(device.ports):
                other = by_port.get(port)
                if other is not None:
                    raise UsageError(f"port {port:#x} of {device.name} is claimed by {other.name} already")
            by_name[device.name] = device
            by_port.update(dict.fromkeys(_numbers(device.ports), device))
        self._devices, self._by_port = MappingProxyType(by_name), MappingProxyType(by_port)

    def move(self, device: Device, ports: tuple[range, ...]) -> None:
        """Let a device on the bus answer these ports instead of those it has.

        Ports that another device has stay with that one: a guest can choose any address.
        """
        by_port = {port: other for port, other in self._by_port.items() if other is not device}
        device.ports = ports
        for port in _numbers(ports):
            by_port.setdefault(port % PORT_COUNT, device)
        self._by_port = MappingProxyType(by_port)

    def read(self, port: int, size: int) -> int:
        """Read ``size`` (1, 2, 4) bytes; strays give all ones."""
        device = self._by_port.get(port)
        if device is not None and (size == 1 or device.wide):
            return device.read(port, size)
        if size == 1:
            self.unclaimed_reads[port] += 1
            return 0xFF
        value = 0
        for i in range(size):
            at = (port + i) % PORT_COUNT
            part = self._by_port.get(at)
            if part is None or part.wide:
                self.unclaimed_reads[at] += 1
                byte = 0xFF
            else:
                byte = part.read(at, 1)
            value |= byte << 8 * i
        return value

    def write(self, port: int, size: int, value: int) -> None:
        """Write the low ``size`` (1, 2, 4) bytes of ``value``; strays are counted and dropped."""
        value &= (1 << 8 * size) - 1
        device = self._by_port.get(port)
        if device is not None and (size == 1 or device.wide):
            device.write(port, size, value)
            return
        if size == 1:
            self.unclaimed_writes[port] += 1
            return
        for i in range(size):
            at = (port + i) % PORT_COUNT
            part = self._by_port.get(at)
            # A wide register is addressed as a whole: a neighbour's access must not spill into it
            # (a 32-bit PCI probe at CF8 would otherwise hit the reset register at CF9).
            if part is None or part.wide:
                self.unclaimed_writes[at] += 1
            else:
                part.write(at, 1, value >> 8 * i & 0xFF)

    def reset(self) -> None:
        """Pulse the RESET line of every device."""
        for device in self._devices.values():
            device.reset()

    def save(self) -> State:
        """Give the state of every device by name."""
        return {name: device.save() for name, device in self._devices.items()}

    def load(self, state: State) -> None:
        """Take over what ``save`` gave. UsageError if it is of another set of devices."""
        if set(state) != set(self._devices):
            wanted, got = ", ".join(sorted(self._devices)), ", ".join(sorted(state))
            raise UsageError(f"the saved state must be of the devices {wanted}, but it is of {got}")
        for name, device in self._devices.items():
            device.load(state[name])

    def stats(self) -> dict[str, dict[str, int]]:
        """Give every device's counts by name, and the unclaimed accesses under ``bus``."""
        counts = {name: device.stats() for name, device in self._devices.items()}
        counts["bus"] = {
            "unclaimed_reads": self.unclaimed_reads.total(),
            "unclaimed_writes": self.unclaimed_writes.total(),
        }
        return counts


def _numbers(ports: tuple[range, ...]) -> Iterable[int]:
    for span in ports:
        yield from span
