# SPDX-License-Identifier: GPL-2.0-only
"""De-privileged guests that mean harm, made from a seed: to themselves, and to what stands behind them.

They damage what they share with the hypervisor (the ROM's copy, its data page, the site table) and what
it reads of theirs (GDT, IDT, TSS, page tables, stacks), while random code runs on ring 1. Run as a
program (``python -m tests.hypervisor.hostile FIRST COUNT``) it runs that many and prints each seed
before it does, since what it looks for includes crashes and endless loops inside the emulator.
"""

from __future__ import annotations

from random import Random

from iced_x86 import Decoder, Mnemonic

from tests.hypervisor.lab import ROM, ROM_AT, U32, Lab
from tests.native.guest import CODE, CODE0, GDT, IDT, PAGES, STACK, TSS, descriptor, gate
from tests.native.hostile import main
from vmi.abi import CALLS
from vmi.native.machine import End
from vmi.native.registers import Segment
from vmi.rom.flavours import vmware
from vmi.x86 import HAS_ERROR_CODE, Seg

LIMIT_NS = 200_000
CODE_SIZE, HANDLERS, TABLE = 0x400, 0x14000, 0x90000
DATA_PAGE = ROM_AT + (ROM.data_page or 0)

# What a kernel on ring 1 could try; ``?`` is a random digit.
_SHARP = """
    fa fb f4 9c 9d 669c 669d cf 66cf cb 66cb ca0?00 cd82 cd?? cc ce f1 0f06 0f08 0f09 0fa2 0f31 0f30
    0f32 0f33 0f20c? 0f20d? 0f20e? 0f20?? 0f22c0 0f22d0 0f22d8 0f22e0 0f22c? 0f21?? 0f23?? 0f0110
    0f0118 0f0100 0f0108 0f0130 0f01f0 0f01e0 0f0138 0f00d? 0f00c? 0f00d8 0f00c8 0f00e? 0f0010
    0f02?? 0f03?? 8ed? 8ed0 8ed8 8ec0 8ee0 8ee8 8cd? 8cc? 8c08 17 1f 07 0fa1 0fa9 6617 0fb2?? 0fb4??
    c5?? c4?? 0e 16 ea????0?00??00 9a????0?00??00 ff2b ff1b 66ff1b 66ff2b 0f34 0f35 0f05 0f07 0f0b
    0faa 0f01d? e4?? e6?? ec ee ed ef 6c 6e f36c f36e e620 e621 b8???????? b9????0000 bb00?00000
    bb00001000 bb00201000 31c0 40 90 ebfe e2fe 74fe 58 50 6a?? 68????0?00 b811000000
    b811000080 b800000080 b8b0020000 b800200200 0d00400000 c80?0000 f3a4 f3ab f2ae 8703 8903 8b03
    64a1???????? 368b03 2e8b03 66cf 6607 661f e8??????00 0f01c? 9b d9?? dd?? 0fae?? 62?? 63??
    f00fc74b0?
"""
SHARP = _SHARP.split()
_WANTED = """
    PUSHFD PUSHF POPFD POPF IRETD IRET RETF LAR LSL VERR VERW SGDT SIDT SLDT STR SMSW CPUID LSS
"""
_SILENT = {getattr(Mnemonic, name) for name in _WANTED.split()}
ENTRIES = [ROM_AT + ROM.offset(call.name) for call in CALLS if ROM.calls[call.number][0]]


def address(random: Random) -> int:
    """An address at or around something that matters."""
    places = (
        0,
        GDT,
        IDT,
        TSS,
        CODE,
        PAGES,
        STACK,
        ROM_AT,
        DATA_PAGE,
        0xC0000,
        0x1FFFF0,
        0x200000,
        0xFFFFFFF0,
    )
    return (random.choice(places) + random.choice((0, 0, 2, 8, 0xFFE, random.randrange(0x3000)))) & 0xFFFFFFFF


def load(register: int, value: int) -> bytes:
    """MOV of a constant to a general register."""
    return bytes([0xB8 + register]) + value.to_bytes(4, "little")


def selector(random: Random) -> int:
    """A selector, of something that exists more often than not."""
    known = (
        0x08,
        0x10,
        0x1B,
        0x23,
        0x28,
        0x30,
        0x38,
        0x40,
        0x58,
        0x60,
        0x68,
        0x6B,
        0x70,
        0x0C,
        0x0F,
        0x09,
        0x11,
        0,
    )
    return random.choice(known) if random.random() < 0.9 else random.getrandbits(16)


def with_selector(random: Random) -> bytes:
    """Something done with a selector in EAX."""
    uses = (
        "8ed0 8ed8 8ec0 8ee0 0f00d8 0f00d0 0f02c8 0f03c8 0f00e0 0f00e8 5017 501f 500fa1 660f02c8 668cc8 8cd1"
    )
    return load(0, selector(random)) + bytes.fromhex(random.choice(uses.split()))


def push(value: int) -> bytes:
    """PUSH of a constant."""
    return b"\x68" + value.to_bytes(4, "little")


def returning(random: Random, at: int) -> bytes:
    """A return through a frame made up on the spot."""
    image = random.choice((2, 0x202, 0x102, 0x3202, 0x4202, 0x20202, random.getrandbits(22)))
    target = random.choice((CODE, CODE + random.randrange(CODE_SIZE), address(random)))
    words = (selector(random), random.choice((0x9800, address(random))), image, selector(random), target)
    frame = b"".join(push(word) for word in words)
    if random.random() < 0.2:
        frame += push(0x4002) + b"\x9d"  # to another task, perhaps
    how = random.choice((b"\xcf", b"\xcf", b"\x66\xcf", b"\xcb", b"\xca\x08\x00", b"call"))
    if how == b"call":
        how = b"\xe8" + (ROM_AT + ROM.offset("IRET") - at - len(frame) - 5 & U32).to_bytes(4, "little")
    return frame + how


def sharp(random: Random, at: int) -> bytes:
    """What matters to the hypervisor: a call of the ROM, perhaps into its middle, or an instruction."""
    kind = random.random()
    if kind < 0.25:
        target = random.choice(ENTRIES)
        if random.random() < 0.1:
            target = ROM_AT + random.randrange(ROM.data_page or 1)
        values = (random.choice((address(random), random.randrange(64), 0x10)) for _ in range(3))
        arguments = b"".join(load(n, value) for n, value in enumerate(values) if random.random() < 0.7)
        return arguments + b"\xe8" + (target - at - len(arguments) - 5 & U32).to_bytes(4, "little")
    if kind < 0.35:
        return load(4, STACK)
    if kind < 0.45:
        return with_selector(random)
    if kind < 0.5:
        return returning(random, at)
    if kind < 0.55:
        target = random.choice((CODE, CODE + random.randrange(CODE_SIZE), HANDLERS))
        return (
            random.choice((b"\x9a", b"\xea"))
            + target.to_bytes(4, "little")
            + selector(random).to_bytes(2, "little")
        )
    digits = "".join(random.choice("0123456789abcdef") if c == "?" else c for c in random.choice(SHARP))
    return bytes.fromhex(digits)


def code(random: Random, size: int, at: int) -> bytes:
    """Sharp instructions, perhaps with random bytes between, round and round."""
    share, data = random.choice((0.5, 0.95, 1.0, 1.0)), bytearray()
    while len(data) < size - 5:
        plain = random.randbytes(random.randint(1, 3))
        data += sharp(random, at + len(data)) if random.random() < share else plain
    data = data[: size - 5]
    return bytes(data) + b"\xe9" + (-size & 0xFFFFFFFF).to_bytes(4, "little")


def damage(random: Random, lab: Lab) -> None:
    """Change something of the guest's that the hypervisor looks at."""
    write, kind = lab.cpu.write_memory, random.randrange(11)
    if kind == 0:
        write(ROM_AT + random.randrange(len(ROM.image)), random.randbytes(random.choice((1, 4, 64))))
    elif kind == 1:
        word = random.choice(list(vmware.FLAVOUR.words.values()))
        write(
            DATA_PAGE + word, random.choice((random.getrandbits(32), address(random))).to_bytes(4, "little")
        )
    elif kind == 2:
        write(DATA_PAGE, random.randbytes(64))
    elif kind == 3:
        at = GDT + 8 * random.randrange(16)
        access = random.choice(
            (random.randrange(256), 0x9A, 0x92, 0xFA, 0x89, 0x8B, 0x82, 0x85, 0x8C, 0xEC, 0xE4, 0x9E)
        )
        write(
            at, descriptor(random.choice((0, 0, address(random))), random.choice((0xFFFFF, 0x67, 8)), access)
        )
    elif kind == 4:
        selector, kind_of_gate = (
            random.choice((CODE0, 8, 0x28, 0x40, random.getrandbits(16))),
            random.randrange(256),
        )
        write(GDT + 8 * random.randrange(16), gate(selector, HANDLERS, kind_of_gate))
    elif kind == 5:
        at = IDT + 8 * random.choice((1, 3, 6, 8, 10, 11, 12, 13, 14, 0x40, 0x82, random.randrange(256)))
        access = random.choice((0x8E, 0xEE, 0x8F, 0x85, 0xE5, 0x86, 0x0E, random.randrange(256)))
        write(at, gate(random.choice((CODE0, 0x28, 0x1B, random.getrandbits(16))), HANDLERS, access))
    elif kind == 6:
        write(TSS + random.choice((0, 4, 8, 12, 16, random.randrange(0x60))), random.randbytes(4))
    elif kind == 7:
        entry = random.choice((0, 5, 7, 0x87)) | random.choice(
            (address(random) & ~0xFFF, 0x400000, 0xFFFFF000)
        )
        write(
            PAGES + 4 * random.choice((0, 1024 + random.randrange(512), 1024 + (GDT >> 12))),
            entry.to_bytes(4, "little"),
        )
    elif kind == 8:
        lab.cpu.esp = address(random)
    elif kind == 9:
        flags = random.choice((0x100, 0x4000, 0x10000, 0x40000))
        lab.cpu.system_flags |= flags
    else:
        lab.machine.interrupts.line(random.choice((0, 1, 4))).set(random.random() < 0.7)


def silent(random: Random, data: bytes) -> list[int]:
    """Places in the code where a patcher might want a breakpoint, and some others."""
    found = [
        i.ip
        for i in Decoder(32, data, ip=CODE)
        if (i.mnemonic in _SILENT or i.is_call_far) and random.random() < 0.7
    ]
    return found + [CODE + random.randrange(CODE_SIZE) for _ in range(random.choice((0, 0, 3)))]


def table(random: Random, sites: list[int]) -> bytes:
    """A site table with something wrong, or one that names what it should not."""
    data = bytearray(random.randbytes(0x400))
    words = [
        0x1000,
        ROM_AT,
        0x4000,
        TABLE + 0x100,
        random.choice((1, 5, 30, 0xFFFFFFFF)),
        TABLE + 0x300,
        0,
        0,
        0,
        0,
        0,
    ]
    for i, word in enumerate(words):
        data[8 + 4 * i : 12 + 4 * i] = word.to_bytes(4, "little")
    data[:8] = b"VMIS" + (1).to_bytes(2, "little") + (68).to_bytes(2, "little")
    for at in range(0x100, 0x300, 16):
        slot = random.choice(
            (CODE + random.randrange(CODE_SIZE), ROM_AT + random.randrange(0x2000), address(random))
        )
        data[at : at + 8] = slot.to_bytes(4, "little") + bytes([1, 0xFF, random.randrange(8), 0])
    if random.random() < 0.2:
        data[random.randrange(0x200)] ^= 1 << random.randrange(8)
    return bytes(data)


def handlers(random: Random, lab: Lab) -> None:
    """Handlers: mostly ones that skip what faulted, so that the guest gets on; else random code."""
    memory = lab.memory
    if random.random() < 0.25:
        memory.write(HANDLERS, random.choice((code(random, 0x400, HANDLERS), b"\xcf" * 1024)))
        offsets = [random.randrange(0x400) for _ in range(256)]
    else:
        skip = random.choice((1, 2, 3, 5))
        memory.write(
            HANDLERS, bytes.fromhex(f"83442404{skip:02x}83c404cf")
        )  # add [esp+4], skip; drop the code
        memory.write(HANDLERS + 16, bytes.fromhex(f"830424{skip:02x}cf"))
        memory.write(HANDLERS + 32, bytes.fromhex("50b020e62058cf"))  # end of interrupt
        offsets = [0 if v in HAS_ERROR_CODE else 16 if v in (0, 4, 5, 6, 7, 16) else 32 for v in range(256)]
    for vector, offset in enumerate(offsets):
        memory.write(IDT + 8 * vector, gate(CODE0, HANDLERS + offset, random.choice((0x8E, 0xEE, 0xEF))))


def make(seed: int) -> Lab:
    """The guest of a seed."""
    random = Random(seed)
    mode = random.choice(("paravirt", "paravirt", "full"))
    lab = Lab("start: nop", mode=mode, taken=False, mmu=("direct", "shadow")[seed % 2])
    cpu, memory = lab.cpu, lab.memory
    memory.write(CODE, code(random, CODE_SIZE, CODE))
    lab.sites = silent(random, memory.read(CODE, CODE_SIZE))
    handlers(random, lab)
    task = [0] * 26
    task[7:10] = (
        PAGES,
        random.choice((CODE, HANDLERS, address(random))),
        random.choice((2, 0x202, 0x4202, 0x20202)),
    )
    task[14], task[24] = STACK - 0x400, random.choice((0, 0x70))
    task[18:24] = [
        selector(random) if random.random() < 0.2 else known for known in (0x10, 8, 0x10, 0x10, 0, 0)
    ]
    memory.write(0x5000, b"".join(word.to_bytes(4, "little") for word in task))
    lab.describe(0x58, descriptor(0x5000, 0x67, random.choice((0x89, 0xE9, 0x8B)), 0))
    lab.describe(0x60, gate(0x58, 0, random.choice((0x85, 0xE5))))
    lab.describe(0x68, gate(CODE0, HANDLERS, random.choice((0xEC, 0xE4, 0x8C))))
    lab.describe(0x70, descriptor(0x5000, 0x3F, 0x82, 0))
    memory.put_u32(TSS, random.choice((0x58, 0x28, 0)))
    if random.random() < 0.5:
        lab.page()
    if random.random() < 0.7:
        memory.write(TABLE, table(random, lab.sites))
        cpu.ebx = TABLE
    bus = lab.machine.board.ports
    for port, value in (
        (0x20, 0x11),
        (0x21, random.choice((0x40, 0x80, 8))),
        (0x21, 4),
        (0x21, random.choice((1, 3))),
    ):
        bus.write(port, 1, value)
    lab.take()
    for _ in range(random.choice((0, 0, 3))):
        memory.put_u32(PAGES + 0x1000 + 4 * (address(random) >> 12 & 0x3FF), random.choice((0, 5)))
    if random.random() < 0.2:
        lab.user("start", random.choice((0x202, 0x302)))
    if random.random() < 0.1:
        base = random.choice((0, 0x60000, ROM_AT))
        cpu.set_segment(Seg.SS, Segment(0x11, base, 0xFFFF, 0xB300))
    for number in (0, 1, 2, 3, 5, 6, 7):
        cpu.set_gpr(number, random.choice((random.getrandbits(32), address(random), random.randrange(256))))
    lab.set_word(vmware.VIF, random.choice((0, 0x200, 0xFFFFFFFF)))
    return lab


def run(seed: int) -> End:
    """Run the guest of a seed, damaging it now and then; whatever it does, the run comes to an end."""
    lab, random = make(seed), Random(-seed - 1)
    machine = lab.machine
    stop = machine.clock.now() + LIMIT_NS
    end = machine.run(random.randrange(1000))
    while end.outcome == "timeout" and machine.clock.now() < stop:
        damage(random, lab)
        end = machine.run(random.choice((10, 100, 1000, 20_000)))
    assert end.reason
    return end


if __name__ == "__main__":
    main(run)
