# SPDX-License-Identifier: GPL-2.0-only
"""Guests that mean harm, made from a seed: wild code, page tables, descriptor tables, stacks, devices.

Run as a program (``python -m tests.native.hostile FIRST COUNT``) it runs that many, a process of its own,
since what it looks for includes crashes and endless loops inside the emulator. It prints each seed before
it runs, so that the last line names the one that did it, and ends with status 1 if they leave memory
behind. The tests run some thousand; 100 000 take half an hour:

    python -m tests.native.hostile 0 100000 >ends.txt
"""

from __future__ import annotations

import faulthandler
import gc
import json
import sys
from collections.abc import Callable
from random import Random

from tests.native.guest import CODE, DATA0, GDT, IDT, PAGES, TSS, Guest, descriptor, gate
from tests.native.hostile_devices import ACKNOWLEDGE, PIECES, device_code, pieces
from vmi.native.cpuid import MODELS
from vmi.native.disk import Disk
from vmi.native.machine import End, Outcome
from vmi.native.registers import Segment, TableRegister
from vmi.x86 import Cr0, Seg

RAM = 2 << 20
LIMIT_NS = 300_000
LONGEST_S = 120  # of the host, for one guest; usual is a fiftieth of one
MOST_GROWTH = 8 << 20  # bytes of host memory, over any number of guests
BETWEEN = 50  # guests, between two looks at it
CODE_SIZE = 0x400
HANDLERS = 0x14000

# Instructions with which a guest could hurt the machine below it; ``?`` stands for a random byte.
_SHARP = """
    0f01d? 0f01c? 0f010500?0?000 0f011d00?0?000 0f0115?0???000 0f00d? 0f00d8 0f00d0 0f01f? 0f20c? 0f22c0
    0f22d8 0f22e0 0f22d0 0f23f8 0f23c0 0f23c8 0f21f8 0f2100 0f06 0f08 0f09 0f30 0f32 0f31 0f33 0fa2 0f05
    0f34 0f35 0f07 0faa 0f0b 0f01d8 0f01d9 0f01da f4 fa fb 9c 9d cf 66cf cb ca??00 66cb ea????0?00??00
    9a????0?00??00 ff28 ff18 ff2d????0?00 cd?? cc ce f1 cd06 cd08 cd03 8ed0 8ed8 8ec0 8ee0 17 1f 07 0fa1
    0fa9 8ed4 0fb2?? e4?? e5?? e6?? e7?? ec ed ee ef 6c 6d 6e 6f f36c f36e f36d f36f e6f3 e664 e621 e643
    f3a4 f3a5 f3ab f3aa f3ae f2ae fd fc f0???? f00fc7???? 0fc7?? 0fae?? 9b d9?? dd?? db?? c8???? 60 61
    6a?? 68???????? 58 5c bc???????? b8???????? b9???????? ba???????? 89e5 94 8700 b9800000c0 b91b000000
    b974010000 b8010000800f22c0 b8110000000f22c0 b8b00000000f22e0 0d00000080 62?? 63?? 0f02?? 0f03??
    0f00e? 0f00e8 c5???? c4???? 66 67 f3 f2 2e 65 26 ebfe 74fe e2fe
    b9800000c00f30 b97?0100000f30 b9??0200000f30 b9??0400000f30 b91b0000000f30 b9100000000f30 0f32 b9ff020000
    b8a00600000f22e0 b8f?0700000f22e0 a1?00?e0fe a3?00?e0fe a1?000c0fe a3?000c0fe a3??80 0b00 6689041f e692
    e664b0dfe664 b0d1e664b0dde660 f0 f30fc7f? 0f38???? 0f3a?????? c4e2???? c4e3?????? 0f0f???? 0fae????
    660f???? f30f???? f20f???? 0f77 0f0e dfe0 9bdbe3 ddd8 d9ee 0f18?? 0f0d?? 0f1f?? 0fc8 0fb1?? 0fc1??
    0f31 0f01f9 0f01c? 0f01d? 0f01ca 8c?? 8e?? 6c6d6e6f 0f35 6668????07 689?00?2009d 68??0?0200cf
"""
SHARP = _SHARP.split()


def sharp(random: Random) -> bytes:
    """One of the sharp instructions, blanks filled."""
    digits = "".join(random.choice("0123456789abcdef") if c == "?" else c for c in random.choice(SHARP))
    return bytes.fromhex(digits)


def wild_code(random: Random) -> bytes:
    """Code of random bytes, sharp instructions, or both."""
    share = random.choice((0.0, 0.3, 0.8, 1.0))
    code = bytearray()
    while len(code) < CODE_SIZE:
        code += sharp(random) if random.random() < share else random.randbytes(random.randint(1, 4))
    return bytes(code[:CODE_SIZE])


def wild_address(random: Random) -> int:
    """An address at or around something that matters."""
    base = random.choice(
        (
            *(0, GDT, IDT, TSS, CODE, PAGES, 0xA0000, 0xB8000, 0xC0000, 0xFF000, RAM - 16, RAM, 0x80000000),
            *(0xFEC00000, 0xFEE00000, 0xFFFFFFF0),
        )
    )
    return (base + random.choice((0, 0, 8, 0xFF8, random.randrange(0x10000)))) & 0xFFFFFFFF


def wild_descriptor(random: Random) -> bytes:
    """A descriptor or gate that is more or less right."""
    if random.random() < 0.3:
        return random.randbytes(8)
    if random.random() < 0.5:
        selector = random.choice(
            (8, 0x10, 0x1B, 0x23, 0x28, 0x30, 0x38, 0x58, 0x5C, random.randrange(0x10000))
        )
        return gate(
            selector, HANDLERS + random.randrange(0x400), random.choice((0x8E, 0xEF, 0x86, 0xE5, 0xEC, 0x84))
        )
    return descriptor(
        random.choice((0, wild_address(random))),
        random.choice((0xFFFFF, 0x67, random.randrange(1 << 20))),
        random.randrange(256) | random.choice((0, 0x80)),
        random.randrange(16),
    )


def wild_table(random: Random, guest: Guest, at: int) -> TableRegister:
    """A descriptor table: as it was, damaged, or elsewhere."""
    kind = random.randrange(4)
    for _ in range((0, 3, 20, 0)[kind]):
        guest.memory.write(at + 8 * random.randrange(64), wild_descriptor(random))
    if kind < 3:
        return TableRegister(at, random.choice((0x7FF, 0x7FF, 0xFFF, 0x40, 0)))
    return TableRegister(wild_address(random), random.choice((0xFFFF, 0x7FF, 0)))


def wild_paging(random: Random, guest: Guest) -> None:
    """Page tables: one to one with damage, or nonsense."""
    guest.page(user=random.random() < 0.7)
    for _ in range(random.choice((0, 5, 300))):
        entry = random.choice((0, 7, 0x87, 0x83, 0x1E7, 3, 5, 1)) | random.choice(
            (wild_address(random) & ~0xFFF, random.randrange(1 << 20) << 12, 0xE7 << 13)
        )
        table = random.choice((PAGES, PAGES + 0x1000))
        guest.memory.put_u32(table + 4 * random.choice((random.randrange(1024), random.randrange(32))), entry)
    mode = random.choice((0, 0x10, 0x20, 0x30, 0xB0, 0x6A0))
    if mode & 0x20:
        wide_tables(random, guest)
    guest.cpu.set_cr(4, mode)
    if random.random() < 0.2:
        guest.cpu.set_cr(3, wild_address(random))


def wide_tables(random: Random, guest: Guest) -> None:
    """PAE tables over the first 4 MiB, more or less right, in place of the others."""

    def put(at: int, entry: int) -> None:
        if random.random() < 0.02:
            entry ^= random.choice((1, 2, 4, 0x80, 1 << 63, 1 << 36, 1 << 52, random.getrandbits(64)))
        guest.memory.write(at, entry.to_bytes(8, "little"))

    for number in range(4):
        put(PAGES + 8 * number, PAGES + 0x1000 | 1)
    for number in range(512):
        leaf = PAGES + 0x2000 + 0x1000 * (number % 2)
        put(PAGES + 0x1000 + 8 * number, number << 21 | 0x87 if random.random() < 0.1 else leaf | 7)
    for number in range(1024):
        put(PAGES + 0x2000 + 8 * number, number << 12 | 7)
    guest.cpu.efer = random.choice((0, 0x800))


def wild_stack(random: Random, guest: Guest) -> None:
    """A stack: usable, or in ROM, in nothing, at address 0, or 16 bits wide and never at an end."""
    cpu = guest.cpu
    kind = random.randrange(6)
    if kind == 1:
        cpu.esp = wild_address(random)
    elif kind == 2:
        cpu.esp = random.choice((0, 1, 2, 3, 5, 0xFFFFFFFF))
    elif kind == 3:
        ring = cpu.cpl
        base = random.choice((0xD0000, 0x60000, 0xFFFF8000, RAM - 0x8000))
        cpu.set_segment(Seg.SS, Segment(DATA0 | ring, base, 0xFFFF, 0x9300 | ring << 13))
    guest.memory.put_u32(TSS + 4, random.choice((0x9000, 0x9000, wild_address(random))))
    guest.memory.put_u32(TSS + 8, random.choice((DATA0, DATA0, DATA0, random.randrange(0x10000))))


def make(seed: int) -> Guest:
    """The guest of a seed."""
    random = Random(seed)
    model = MODELS[random.choice(("qemu32", "max", "pentium3", "486"))]
    disks = [Disk.from_bytes(random.randbytes(0x8000)) if random.random() < 0.5 else None for _ in range(4)]
    guest = Guest("start: nop", ram=RAM, model=model, disks=disks)
    cpu, memory = guest.cpu, guest.memory
    devices = random.random() < 0.3
    memory.write(CODE, device_code(random, guest.machine.board) if devices else wild_code(random))
    memory.write(HANDLERS, random.choice((wild_code(random), b"\x83\xc4\x04\xcf" * 256, b"\xcf" * 1024)))
    memory.write(HANDLERS + 0x800, ACKNOWLEDGE)
    memory.write(PIECES, pieces(random))
    orderly = devices and random.random() < 0.8
    for vector in range(256):
        handler = HANDLERS + (0x800 if orderly else random.randrange(0x400))
        memory.write(IDT + 8 * vector, gate(8, handler, random.choice((0x8E, 0xEE, 0xEF))))
    wild_permissions(random, guest)
    if random.random() < (0.2 if devices else 0.5):
        guest.user("start", random.choice((2, 0x202, 0x3202, 0x3202 if devices else 0x102, 0x4202)))
    elif random.random() < 0.15:
        guest.real_mode("start")
        cpu.set_segment(Seg.CS, Segment(CODE >> 4, CODE, 0xFFFF, 0x9B00))
        cpu.eip = 0
    else:
        cpu.eflags = random.choice((2, 0x202, 0x202 if devices else 0x102, 0x4002))
    if devices and random.random() < 0.7:
        return guest  # whole in all else, so that it reaches far
    if random.random() < 0.4 and cpu.cr(0) & Cr0.PE:
        wild_paging(random, guest)
    if random.random() < 0.6:
        cpu.gdt, cpu.idt = wild_table(random, guest, GDT), wild_table(random, guest, IDT)
    wild_stack(random, guest)
    for number in (0, 1, 2, 3, 5, 6, 7):
        cpu.set_gpr(
            number, random.choice((random.getrandbits(32), wild_address(random), random.randrange(256)))
        )
    if random.random() < 0.3:  # a timer that runs, at whatever vector
        write = guest.machine.board.ports.write
        for port, value in (
            (0x20, 0x11),
            (0x21, random.randrange(256)),
            (0x21, 4),
            (0x21, random.choice((1, 3))),
        ):
            write(port, 1, value)
        for port, value in ((0x21, 0), (0x43, 0x34), (0x40, random.choice((1, 2, 50))), (0x40, 0)):
            write(port, 1, value)
    return guest


def wild_permissions(random: Random, guest: Guest) -> None:
    """A map of the ports that ring 3 may use, somewhere in the TSS or behind its end."""
    at = random.choice((0x68, 0x68, 0x67, 0x1000, random.randrange(0x10000)))
    guest.memory.write(TSS + 0x66, at.to_bytes(2, "little"))
    limit = random.choice((0x67, 0x67, 0x2068, at + random.randrange(64)))
    guest.cpu.tr = Segment(0x28, TSS, limit, 0x8900)


def run(seed: int) -> End:
    """Run the guest of a seed; it must come to an end."""
    guest = make(seed)
    clock, board = guest.machine.clock, guest.machine.board
    started = clock.now()
    end = guest.machine.run(LIMIT_NS)
    assert isinstance(end, End) and end.reason, end
    assert clock.now() - started <= LIMIT_NS + 10_000 or end.outcome is not Outcome.TIMEOUT, end
    if seed % 8 == 0:
        state = json.loads(json.dumps(board.save()))
        board.load(state)
        assert board.save() == state
    return end


def resident() -> int:
    """Bytes of memory of this process; 0 on a system that doesn't tell."""
    try:
        with open("/proc/self/statm", encoding="ascii") as numbers:
            return int(numbers.read().split()[1]) * 4096
    except OSError:
        return 0


def main(run: Callable[[int], End]) -> None:
    """Run the seeds that the command line names: the first, and how many."""
    first, count = int(sys.argv[1]), int(sys.argv[2])
    before = 0
    try:
        for number, seed in enumerate(range(first, first + count), 1):
            faulthandler.dump_traceback_later(LONGEST_S, exit=True, file=sys.__stderr__)
            print(seed, end=" ", flush=True)
            print(run(seed).outcome.value, flush=True)
            if number % BETWEEN:
                continue
            gc.collect()
            now = resident()
            before = before or now
            if now - before > MOST_GROWTH:
                sys.exit(f"memory grew from {before >> 20} MiB to {now >> 20} MiB over {number} guests")
    finally:
        faulthandler.cancel_dump_traceback_later()


if __name__ == "__main__":
    main(run)
