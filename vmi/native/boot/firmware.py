# SPDX-License-Identifier: GPL-2.0-only
"""The state in which a PC's firmware leaves board and low memory when it starts a kernel.

There is no firmware here, but kernels rely on what it did: the interval timer runs, the interrupt
controllers have vectors, the data area at 400h describes the machine. Values are those that SeaBIOS
leaves on ``qemu-system-i386 -M isapc``.
"""

from __future__ import annotations

from vmi.memory import PhysicalMemory
from vmi.native.boot.memory_map import DATA_AREA, LOW_END, LOW_RAM_END
from vmi.native.bus import PortBus

_WRITES = (
    # Interrupt controllers: vectors 08h and 70h, all requests masked but those firmware uses.
    (0x20, 0x11), (0x21, 0x08), (0x21, 0x04), (0x21, 0x01), (0x21, 0xB8),
    (0xA0, 0x11), (0xA1, 0x70), (0xA1, 0x02), (0xA1, 0x01), (0xA1, 0x8E),
    # Timer: 18.2 Hz on counter 0; counter 2 idle.
    (0x43, 0x34), (0x40, 0x00), (0x40, 0x00), (0x43, 0xB0),
)  # fmt: skip

_UNIT, _LARGEST = 64 << 10, 8 << 20  # bytes of firmware; below it are the APICs
_SERIAL_PORTS = (0x3F8, 0x2F8)
_CRTC = 0x3D4
_TEXT, _BLANK_TEXT = 0xB8000, b" \x07" * 0x4000  # 32 KiB of grey on black
_COPROCESSOR_AND_MOUSE, _COLOUR_80x25, _SERIAL_SHIFT = 0x06, 0x20, 9

# Variables of the data area as (offset, bytes, value).
_KEYBOARD = (
    (0x1A, 2, 0x1E), (0x1C, 2, 0x1E),  # head and tail of the buffer of keys: empty
    (0x80, 2, 0x1E), (0x82, 2, 0x3E),  # where it begins and ends
    (0x96, 1, 0x10),  # 101 keys or more
)  # fmt: skip
_DISPLAY = (
    (0x49, 1, 3), (0x4A, 2, 80), (0x84, 1, 24),  # text mode 3, columns, rows less one
    (0x4C, 2, 0x1000), (0x60, 2, 0x0607), (0x63, 2, _CRTC),  # bytes of a page, cursor lines, index port
    (0x85, 2, 16), (0x87, 1, 0x60), (0x88, 1, 0xF9), (0x89, 1, 0x51),  # lines of a letter; VGA, 256 KiB
)  # fmt: skip


def can_be_mapped(image: bytes) -> bool:
    """Firmware ends at 4 GiB: it has whole 64 KiB there, up to 8 MiB."""
    return 0 < len(image) <= _LARGEST and not len(image) % _UNIT


def settle(bus: PortBus, memory: PhysicalMemory) -> None:
    """Program the devices and fill the data areas as firmware does."""
    for port, value in _WRITES:
        bus.write(port, 1, value)
    serial = [base for base in _SERIAL_PORTS if _answers(bus, base)]
    display = _answers(bus, _CRTC)
    equipment = _COPROCESSOR_AND_MOUSE | len(serial) << _SERIAL_SHIFT | (_COLOUR_80x25 if display else 0)
    variables = [
        *((2 * number, 2, base) for number, base in enumerate(serial)),
        (0x0E, 2, LOW_RAM_END >> 4),  # segment of the extended data area
        (0x10, 2, equipment),
        (0x13, 2, LOW_RAM_END >> 10),  # KiB of low memory
        *_KEYBOARD,
        *(_DISPLAY if display else ()),
    ]
    memory.write(DATA_AREA, bytes(0x100))
    for offset, size, value in variables:
        memory.write(DATA_AREA + offset, value.to_bytes(size, "little"))
    if display:
        memory.write(_TEXT, _BLANK_TEXT)
    memory.write(LOW_RAM_END, bytes([(LOW_END - LOW_RAM_END) >> 10]))  # its first byte is its size in KiB


def _answers(bus: PortBus, port: int) -> bool:
    return any(port in span for device in bus.devices for span in device.ports)
