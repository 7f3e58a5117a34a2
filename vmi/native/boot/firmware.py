# SPDX-License-Identifier: GPL-2.0-only
"""The state in which a PC's firmware leaves board and low memory when it starts a kernel.

There is no firmware here, but kernels rely on what it did: the interval timer runs, the interrupt
controllers have vectors, the data area at 400h describes the machine. Values are those that SeaBIOS
leaves on ``qemu-system-i386 -M isapc``.
"""

from __future__ import annotations

from vmi.memory import PhysicalMemory
from vmi.native.boot.multiboot import LOW_RAM_END
from vmi.native.bus import PortBus

_WRITES = (
    # Interrupt controllers: vectors 08h and 70h, all requests masked but those firmware uses.
    (0x20, 0x11), (0x21, 0x08), (0x21, 0x04), (0x21, 0x01), (0x21, 0xB8),
    (0xA0, 0x11), (0xA1, 0x70), (0xA1, 0x02), (0xA1, 0x01), (0xA1, 0x8E),
    # Timer: 18.2 Hz on counter 0; counter 2 idle.
    (0x43, 0x34), (0x40, 0x00), (0x40, 0x00), (0x43, 0xB0),
)  # fmt: skip

_DATA_AREA = 0x400


def settle(bus: PortBus, memory: PhysicalMemory) -> None:
    """Program the devices and fill the data area as firmware does."""
    for port, value in _WRITES:
        bus.write(port, 1, value)
    memory.write(_DATA_AREA, bytes(0x100))
    claimed = [base for base in (0x3F8, 0x2F8) if any(base in span for d in bus.devices for span in d.ports)]
    for number, base in enumerate(claimed):
        memory.write(_DATA_AREA + 2 * number, base.to_bytes(2, "little"))
    memory.write(_DATA_AREA + 0x0E, (LOW_RAM_END >> 4).to_bytes(2, "little"))
    memory.write(_DATA_AREA + 0x10, (0x06 | len(claimed) << 9).to_bytes(2, "little"))
    memory.write(_DATA_AREA + 0x13, (LOW_RAM_END >> 10).to_bytes(2, "little"))
