# SPDX-License-Identifier: GPL-2.0-only
"""Guests of several processors that mean harm, made from a seed: bare, trapped, and behind the ROM.

They send each other messages of every kind, give each other states to begin in that are more or less right,
and run wild code in real mode and in 32 bits. Run as a program (``python -m
tests.hypervisor.hostile_processors FIRST COUNT``) it runs that many and prints each seed before it does.
"""

from __future__ import annotations

from random import Random

from tests.hypervisor.lab import MODES, ROM_AT, Lab
from tests.native.guest import CODE, GDT, IDT, PAGES, gate
from tests.native.hostile import main, wild_address, wild_code
from vmi import abi
from vmi.native.cpuid import I686_APIC
from vmi.native.machine import End, Outcome

LIMIT_NS = 300_000
HANDLERS, STATE, TABLE_POINTER = 0x14000, 0x7801, 0x7100
PAGES_TO_BEGIN_AT = range(0x18, 0x1C)
_TO_32_BITS = bytes.fromhex("fa 66 0f 01 16 00 71 0f 20 c0 0c 01 0f 22 c0 66 ea")
_LAPIC = 0xFEE00000


def store(address: int, value: int) -> bytes:
    """MOV of a constant to memory."""
    return b"\xc7\x05" + address.to_bytes(4, "little") + value.to_bytes(4, "little")


def message(random: Random) -> bytes:
    """A message to somebody, of the kinds that start and stop processors more often than not."""
    mode = random.choice((0, 0, 1, 2, 4, 5, 5, 5, 6, 6, 6, 6, 7))
    vector = random.choice((*PAGES_TO_BEGIN_AT, 0x20, 0x41, random.randrange(256)))
    low = mode << 8 | vector | random.choice((0, 0x800)) | random.choice((0x4000, 0x4000, 0xC000, 0x8000, 0))
    low |= random.choice((0, 0, 0, 1, 2, 3, 3)) << 18
    destination = random.choice((0, 1, 1, 2, 3, 0xFF, random.randrange(256)))
    return store(_LAPIC + 0x310, destination << 24) + store(_LAPIC + 0x300, low)


def begin_another() -> bytes:
    """INIT and a start-up message to processor 1."""
    return b"".join(
        store(_LAPIC + 0x310, 1 << 24) + store(_LAPIC + 0x300, low)
        for low in (0x4500, 0x4600 | PAGES_TO_BEGIN_AT.start)
    )


def wait(random: Random) -> bytes:
    """A loop, with or without PAUSE."""
    body = random.choice((b"", b"\xf3\x90"))
    loop = body + bytes([0xE2, -2 - len(body) & 0xFF])
    return b"\xb9" + random.choice((5, 300, 3000)).to_bytes(4, "little") + loop


def lapic_write(random: Random) -> bytes:
    register = random.choice((0xD0, 0xE0, 0xF0, 0x80, 0xB0, 0x320, 0x350, 0x360, 0x380, 0x3E0))
    return store(_LAPIC + register, random.choice((random.getrandbits(32), 0x1FF, 0x41, 0x20041, 500)))


def code(random: Random, size: int, call: bytes) -> bytes:
    """Messages, waiting, a call, and what is wild; round and round."""
    data = bytearray()
    wild = random.choice((0.02, 0.2, 0.5))
    while len(data) < size - 5:
        kind = random.random()
        if kind < wild:
            data += wild_code(random)[: random.randint(1, 8)]
        elif kind < wild + 0.2:
            data += message(random)
        elif kind < wild + 0.3:
            data += random.choice((b"\xfb\xf4", b"\xfb", b"\xfa", b"\xf4", b"\xf3\x90", call))
        elif kind < wild + 0.4:
            data += lapic_write(random)
        else:
            data += wait(random)
    return bytes(data[: size - 5]) + b"\xe9" + (-size & 0xFFFFFFFF).to_bytes(4, "little")


def state(random: Random) -> bytes:
    """A state to begin in, whole or damaged."""
    fields = {
        "cr0": 0x11, "esp": 0xC000, "cs": 8, "ss": 0x10, "ds": 0x10, "es": 0x10, "eip": CODE,
        "gdtr_base": GDT, "gdtr_limit": 0xFFF, "idtr_base": IDT, "idtr_limit": 0x7FF,
    }  # fmt: skip
    if random.random() < 0.3:
        fields |= {"cr0": 0x80000011, "cr3": PAGES}
    for _ in range(random.choice((0, 0, 1, 2))):
        each = random.choice(abi.AP_STATE)
        fields[each.name] = random.choice((random.getrandbits(64), wild_address(random), 0, 8, 0x1B))
    data = bytearray(abi.AP_STATE_SIZE)
    for each in abi.AP_STATE:
        value = fields.get(each.name, 0) & (1 << 8 * each.size) - 1
        data[each.offset : each.offset + each.size] = value.to_bytes(each.size, "little")
    return bytes(data)


def make(seed: int) -> Lab:
    """The guest of a seed."""
    random = Random(seed)
    mode = random.choice(MODES)
    lab = Lab("start: nop", {}, mode, model=I686_APIC, cpus=random.choice((2, 2, 3, 8)), taken=False)
    memory = lab.memory
    call = b"\x90"
    if mode == "paravirt":
        begin = CODE + 0x900  # a small routine: the call with its arguments
        target = ROM_AT + lab.rom.offset("SetInitialAPState")
        routine = b"\x60\xb8" + STATE.to_bytes(4, "little") + b"\xba"
        routine += random.choice((1, 1, 2, 5)).to_bytes(4, "little")
        routine += (
            b"\xe8" + (target - begin - len(routine) - 5 & 0xFFFFFFFF).to_bytes(4, "little") + b"\x61\xc3"
        )
        memory.write(begin, routine)
        call = b"\x68" + begin.to_bytes(4, "little") + b"\x58\xff\xd0"
        memory.write(STATE, state(random))
    start = begin_another() if random.random() < 0.8 else b""
    memory.write(CODE, start + code(random, 0x400, call))
    memory.write(HANDLERS, random.choice((b"\xcf" * 64, b"\x83\xc4\x04\xcf" * 16, code(random, 0x200, call))))
    for vector in range(256):
        memory.write(IDT + 8 * vector, gate(8, HANDLERS, 0x8E))
    memory.write(TABLE_POINTER, (0xFFF).to_bytes(2, "little") + GDT.to_bytes(4, "little"))
    for page in PAGES_TO_BEGIN_AT:
        start = random.choice((CODE, CODE, CODE + random.randrange(0x400)))
        whole = _TO_32_BITS + start.to_bytes(4, "little") + b"\x08\0"
        memory.write(page << 12, whole if random.random() < 0.8 else wild_code(random))
    if random.random() < 0.4:
        lab.page()
    lab.cpu.eflags = random.choice((2, 0x202))
    lab.take()
    return lab


def run(seed: int) -> End:
    """Run the guest of a seed; it must come to an end."""
    machine = make(seed).machine
    started = machine.clock.now()
    end = machine.run(LIMIT_NS)
    assert isinstance(end, End) and end.reason, end
    assert machine.clock.now() - started <= LIMIT_NS + 250_000 or end.outcome is not Outcome.TIMEOUT, end
    return end


if __name__ == "__main__":
    main(run)
