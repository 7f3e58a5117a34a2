# SPDX-License-Identifier: GPL-2.0-only
"""Code that does to a board's devices what no driver does: any register, any size, any value, any order."""

from __future__ import annotations

from random import Random

from vmi.native.board import Board

SIZE = 0xC00

#: A handler that tells both interrupt controllers and the local APIC that it is done.
ACKNOWLEDGE = bytes.fromhex("50 b020 e6a0 e620 31c0 a3b000e0fe 58 cf")

_APIC, _IO_APIC = 0xFEE00000, 0xFEC00000
_APIC_REGISTERS = (
    0x20, 0x30, 0x80, 0x90, 0xA0, 0xB0, 0xD0, 0xE0, 0xF0, 0x100, 0x180, 0x200, 0x270, 0x280, 0x300, 0x310,
    0x320, 0x330, 0x340, 0x350, 0x360, 0x370, 0x380, 0x390, 0x3E0,
)  # fmt: skip
#: Guest-physical spans that devices answer, or might on another board.
_SPANS = (
    range(0xA0000, 0xC0000), range(0xC0000, 0x100000), range(_APIC, _APIC + 0x1000),
    range(_IO_APIC, _IO_APIC + 0x1000), range(0xFED00000, 0xFED01000), range(0xE0000000, 0xE0100000),
    range(0xFFFFF000, 0x100000000),
)  # fmt: skip
_ENDS = ("debug_exit", "reset_control")  # they end the run
_MOVABLE = range(0xC000, 0xC010)  # where PCI registers may move ports to
PIECES = 0x30000  # of a bus master's pieces of memory


_DISK_COMMANDS = (0x20, 0x30, 0xC4, 0xC5, 0xC6, 0xC8, 0xCA, 0xE7, 0xEC, 0xA1)


def _dword(value: int) -> bytes:
    return (value & 0xFFFFFFFF).to_bytes(4, "little")


def _out(port: int, value: int) -> bytes:
    return b"\xb0" + bytes([value]) + b"\xe6" + bytes([port])


def _store(address: int, value: int) -> bytes:
    return b"\xc7\x05" + _dword(address) + _dword(value)


def _configure(function: int, register: int, value: int) -> bytes:
    """Code that writes a PCI configuration register of a function of bus 0."""
    select = b"\xba" + _dword(0xCF8) + b"\xb8" + _dword(1 << 31 | function << 8 | register) + b"\xef"
    return select + b"\xb2\xfc\xb8" + _dword(value) + b"\xef"


def pieces(random: Random) -> bytes:
    """A bus master's list of pieces of memory, for :data:`PIECES`, with or without an end."""
    spread = random.choice((0x8000, 0x40000, 0x200000, 1 << 32))
    entries = []
    for _ in range(32):
        size = random.choice((0, 2, 512, 512, 4096, random.randrange(0x10000)))
        entries.append(_dword(random.randrange(spread)) + _dword(size | (random.random() < 0.2) << 31))
    return b"".join(entries)


def wild_value(random: Random) -> int:
    """A value that a device might have an opinion on."""
    return random.choice(
        (
            0, 1, 0xFF, 0x80, 0x11, 0x20, 0x34, 0x1FF, 0x20030, 0x700, 0xFFFFFFFF, 1 << random.randrange(32),
            random.randrange(256), random.randrange(256), random.randrange(0x10000), random.getrandbits(32),
            *_DISK_COMMANDS, 0xA0, 0xE0, 9, PIECES,
        )
    )  # fmt: skip


def port_access(random: Random, port: int, wide: bool) -> bytes:
    """IN, OUT, INS or OUTS of a port."""
    kind = random.randrange(20)
    load = b"\xba" + _dword(port)
    widths = ((b"\xee", b"\xec"), (b"\xef", b"\xed"), (b"\x66\xef", b"\x66\xed"))
    write, read = random.choice(widths) if wide or random.random() < 0.1 else widths[0]
    if kind < 11:
        return load + b"\xb8" + _dword(wild_value(random)) + write
    if kind < 19:
        return load + read
    text = random.choice((b"\x6c", b"\x6d", b"\x66\x6d", b"\x6e", b"\x6f", b"\x66\x6f"))
    buffer = random.choice((0x30000, 0x30000, 0x30FFF, 0xB8000, 0xC0000, 0x1FFFFE, _APIC + 0x80))
    count = b"\xb9" + _dword(random.randrange(1, 20))
    return load + count + b"\xbe" + _dword(buffer) + b"\xbf" + _dword(buffer) + b"\xf3" + text


def memory_access(random: Random) -> bytes:
    """A load, a store, or both in one, at a device's memory."""
    kind = random.random()
    if kind < 0.5:
        return _store(_APIC + random.choice(_APIC_REGISTERS), wild_value(random))
    if kind < 0.7:
        return _store(_IO_APIC, random.randrange(0x42)) + _store(_IO_APIC + 0x10, wild_value(random))
    at = _dword(random.choice(random.choice(_SPANS)) & (random.choice((~15, ~15, ~3, ~0))))
    return b"\xb8" + _dword(wild_value(random)) + random.choice(
        (
            b"\xa3" + at, b"\xa2" + at, b"\x66\xa3" + at, b"\xa1" + at, b"\xa0" + at, b"\x66\xa1" + at,
            b"\xf0\x01\x05" + at, b"\x87\x05" + at, b"\xdd\x05" + at, b"\xdd\x1d" + at,
            b"\x0f\x7f\x05" + at, b"\x0f\xb1\x0d" + at,
        )
    )  # fmt: skip


def between(random: Random) -> bytes:
    """What happens between two accesses: nothing, a wait, interrupts on or off."""
    return random.choice(
        (*(b"",) * 12, b"\xfb", b"\xfb\x90", b"\xfa", b"\xb9\x40\0\0\0\xe2\xfe", b"\xcd\x80")
    )


def _outs(*writes: tuple[int, int]) -> bytes:
    return b"".join(
        b"\x66\xba" + port.to_bytes(2, "little") + b"\xb0" + bytes([value]) + b"\xee"
        for port, value in writes
    )


def disk_access(random: Random) -> bytes:
    """A whole command to a drive, as data by the processor or by the bus master, or nearly one."""
    base, engine = random.choice(((0x1F0, _MOVABLE.start), (0x170, _MOVABLE.start + 8)))
    command = random.choice(_DISK_COMMANDS)
    writes = [(base + 6, random.choice((0xE0, 0xE0, 0xF0, 0xA0))), (base + 2, random.choice((1, 1, 2, 8, 0)))]
    writes += [(base + 3 + n, value) for n, value in enumerate((random.randrange(80), 0, 0))]
    writes += [(base + 7, command), (engine, 0), (engine + 2, 6), (engine, random.choice((9, 1)))]
    code = _outs(*(write for write in writes if random.random() < 0.98))
    code += b"\xb9" + _dword(random.choice((1, 50, 400))) + b"\xe2\xfe"  # a wait
    if random.random() < 0.5:
        return code
    words = (
        b"\xb9"
        + _dword(random.choice((256, 256, 255, 600)))
        + b"\xbe"
        + _dword(0x40000)
        + b"\xbf"
        + _dword(0x40000)
    )
    return code + b"\xba" + _dword(base) + words + random.choice((b"\xf3\x66\x6d", b"\xf3\x66\x6f"))


def order(random: Random) -> bytes:
    """Interrupt controllers as a kernel sets them up, or some of it."""
    first, second = (0x20, 0x11), (0xA0, 0x11)
    bases = ((0x21, 0x20), (0xA1, 0x28), (0x21, 4), (0xA1, 2), (0x21, 1), (0xA1, 1), (0x21, 0), (0xA1, 0))
    code = b"".join(_out(port, value) for port, value in (first, second, *bases) if random.random() < 0.98)
    if random.random() < 0.5:
        code += _store(_APIC + 0xF0, 0x1FF) + _store(_APIC + 0x350, random.choice((0x700, 0x10700)))
        code += _store(_APIC + 0x320, random.choice((0x20030, 0x31, 0x10030))) + _store(_APIC + 0x3E0, 0xB)
        code += _store(_APIC + 0x380, random.choice((1, 100, 5000)))
    if random.random() < 0.3:
        for entry in range(24):
            code += _store(_IO_APIC, 0x10 + 2 * entry)
            code += _store(_IO_APIC + 0x10, 0x40 + entry | random.choice((0, 0, 0x8000, 0xA000, 0x700)))
    if random.random() < 0.5:
        bus_master = 1 << 3 | 1
        code += _configure(bus_master, 0x20, _MOVABLE.start | 1) + _configure(bus_master, 4, 5)
        code += b"".join(
            b"\xba" + _dword(_MOVABLE.start + channel + 4) + b"\xb8" + _dword(PIECES) + b"\xef"
            for channel in (0, 8)
        )
    return code + random.choice((b"\xfb", b"\xfb", b""))


def device_code(random: Random, board: Board) -> bytes:
    """Accesses to devices over and over: to all of them, or to a few so as to get deep into each."""
    devices = [device for device in board.ports.devices if device.name not in _ENDS or random.random() < 0.05]
    if random.random() < 0.7:
        devices = random.sample(devices, min(len(devices), random.choice((1, 1, 2, 3))))
    drives = any(device.name.startswith("ide") for device in devices)
    memory = random.choice((0.0, 0.1, 0.5, 0.95))
    chosen = []
    for _ in range(random.choice((3, 10, 30, 300))):
        device = random.choice(devices)
        port = random.choice(random.choice(device.ports or (_MOVABLE,))) + random.choice((*(0,) * 9, 1, -1))
        chosen.append((port & 0xFFFF, device.wide))
    code = bytearray(order(random)) if random.random() < 0.8 else bytearray()
    again = len(code)
    while len(code) < SIZE - 150:
        if drives and random.random() < 0.1:
            code += disk_access(random)
        elif random.random() < memory:
            code += memory_access(random)
        else:
            code += port_access(random, *random.choice(chosen))
        code += between(random)
    return bytes(code) + b"\xe9" + _dword(again - len(code) - 5)
