# SPDX-License-Identifier: GPL-2.0-only
"""Each emulated instruction against the bare machine: one step from the same random state, same result.

Left out of the random states are the documented differences: RPL 1 and descriptors of DPL 1 (ring 1 is
the kernel's), reserved bits of control registers and unknown MSRs (which the CPU core accepts on ring 0),
and the null selector for LTR. They have tests of their own below.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest

from tests.hypervisor.lab import Lab
from tests.hypervisor.state import LDT, LDT_SIZE, differences, snapshot
from tests.native.guest import CODE, CODE0, CODE16, DATA0, GDT, IDT, PAGES, TASK, TSS, descriptor, gate
from vmi.native.registers import NULL_SEGMENT, Segment, TableRegister
from vmi.native.wiring import Stop
from vmi.x86 import U32, Cr0, Eflags, Seg

SEEDS = 14
HANDLERS, TARGET = 0x11000, 0x12000
BUFFER, ABSENT, READ_ONLY = 0x60000, 0x62000, 0x63000
KERNEL_STACK, USER_STACK, STACK = 0x40000, 0x44000, 0x48000
TSS2, TSS3 = 0x3100, 0x3200
GDT_LIMIT = 0xF7
TO_ABSENT = 0xE0

# beyond the entries of every guest: (selector, bytes)
_ENTRIES = {
    0x48: descriptor(0, 0xFFFFF, 0x98),  # execute-only code
    0x50: descriptor(0, 0xFFFFF, 0x90),  # read-only data
    0x58: descriptor(0, 0xFFFFF, 0x12),  # absent
    0x60: descriptor(0, 0xFFFFF, 0x1A),
    0x68: descriptor(LDT, LDT_SIZE - 1, 0x82, 0),
    0x70: descriptor(LDT, LDT_SIZE - 1, 0x02, 0),
    0x78: descriptor(TSS2, 0x67, 0x89, 0),
    0x80: gate(0x78, 0, 0x85),
    0x88: gate(CODE0, TARGET, 0x8C),
    0x90: gate(CODE0, TARGET, 0xEC),
    0x98: gate(CODE0, TARGET & 0xFFFF, 0x84),
    0xA0: gate(CODE0, TARGET, 0x0C),
    0xA8: descriptor(TSS3, 0x67, 0x8B, 0),
    0xB0: descriptor(0x1000, 0xFFF, 0x96),  # expands down
    0xB8: gate(0, TARGET, 0x8C),
    0xC0: gate(DATA0, TARGET, 0x8C),
    0xC8: descriptor(0, 0xFFFFF, 0x9C),  # conforming, execute-only
    0xD0: descriptor(TSS2, 0x67, 0x09, 0),
    0xD8: descriptor(0, 0x7FFF, 0x92, 0x0),  # a 16-bit stack
    TO_ABSENT: gate(0x60, TARGET, 0x8C),  # to absent code
    0xE8: descriptor(0x20000, 0xFFFFF, 0xF2),
    0xF0: descriptor(0x30000, 0xFFFFF, 0xFA),
}
_LOCAL = {
    0x08: descriptor(0, 0xFFFFF, 0x92),
    0x10: descriptor(0, 0xFFFFF, 0xF2),
    0x18: descriptor(0, 0xFFFFF, 0x9A),
    0x20: descriptor(0, 0xFFFFF, 0xFA),
    0x28: descriptor(0x1000, 0xFFFFF, 0x12),
}
_TABLE = [*range(0, 0x48, 8), *_ENTRIES, 0xF8]
SELECTORS = [selector | rpl for selector in _TABLE for rpl in (0, 2, 3)] + [
    index | 4 | rpl for index in (*_LOCAL, 0x40) for rpl in (0, 3)
]
_GOOD = [0x08, 0x10, 0x1B, 0x23, 0x40, 0x0C, 0x17, 0x1C]
_NO_RESERVED_CR4 = 0x10 | 0x80 | 0x200 | 0x400


class Bench:
    """The same instruction on the bare machine and de-privileged."""

    def __init__(self, code: str, *, planted: bool) -> None:
        source = f"start: .byte {','.join(str(byte) for byte in bytes.fromhex(code))}\nnop\nnop"
        self.native = Lab(source)
        self.full = Lab(source, mode="full", silent=["start"] if planted else [])
        assert self.full.domain is not None
        self._domain = self.full.domain
        self._images = {lab.mode: lab.memory.read(0, 0x80000) for lab in (self.native, self.full)}

    def differences(self, seed: int, setup: Setup) -> dict[str, object]:
        """Run one instruction on both from the state of a seed; what is not equal then."""
        random = Random(f"{seed}")
        flags = random.getrandbits(32) & 0x2408D5 | 2 | random.choice((0, 0x200))
        flags |= (
            random.choice((0, 0, 0x100))
            | random.choice((0, 0, 0x1000, 0x3000))
            | random.choice((0, 0, 0x4000))
        )
        paging, shadow, raised = random.random() < 0.5, random.random() < 0.2, random.random() < 0.5
        states = []
        for lab in (self.native, self.full):
            choice = Random(f"{seed} state")
            self._reset(lab, choice, paging=paging)
            flags = setup(lab, choice, flags)
            lab.cpu.eflags = flags
            if lab.domain is not None:
                lab.domain.vcpu.deprivilege()
                lab.domain.privilege.restore_flags(flags)
                if not raised:
                    self._lower(lab)
            lab.cpu.irq_shadow = shadow
            lab.cpu.flush_tlb()
            if lab.cpu.run(1) is Stop.HALTED:
                lab.machine.halt()
            states.append(snapshot(lab))
        return differences(*states)

    def _reset(self, lab: Lab, random: Random, *, paging: bool) -> None:
        cpu, memory = lab.cpu, lab.memory
        cpu.write_memory(0, self._images[lab.mode])
        memory.write(BUFFER, random.randbytes(0x1000))
        for selector, entry in _ENTRIES.items():
            accessed = bytearray(entry)
            if accessed[5] & 0x10 and random.random() < 0.5:
                accessed[5] |= 1
            memory.write(GDT + selector, bytes(accessed))
        for index, entry in _LOCAL.items():
            memory.write(LDT + index, entry)
        for vector in range(32):
            memory.write(IDT + 8 * vector, gate(CODE0, HANDLERS + 16 * vector))
        for tss in (TSS, TSS2, TSS3):
            memory.write(tss, _task(random))
        memory.put_u32(TSS, random.choice((0xA8, 0xA8, 0x78, 0x10, 0, 0x1C)))
        cpu.set_cr(0, Cr0.PE | random.choice((0, Cr0.TS)) | random.choice((0, Cr0.MP)))
        cpu.set_cr(4, random.choice((0, 0x10)))
        cpu.set_cr(3, 0)
        cpu.set_segment(Seg.CS, Segment(CODE0, 0, U32, 0xCF9B00))
        for seg in (Seg.ES, Seg.SS, Seg.DS, Seg.FS, Seg.GS):
            cpu.set_segment(seg, Segment(DATA0, 0, U32, 0xCF9300))
        cpu.gdt, cpu.idt = TableRegister(GDT, GDT_LIMIT), TableRegister(IDT, 0xFF)
        cpu.ldt = random.choice((Segment(0x68, LDT, LDT_SIZE - 1, 0x8200), NULL_SEGMENT))
        cpu.tr = Segment(TASK, TSS, 0x67, 0x8900)
        memory.write(GDT + TASK, descriptor(TSS, 0x67, 0x8B, 0))
        for number in range(8):
            cpu.set_gpr(number, random.getrandbits(32))
        cpu.eip, cpu.esp, cpu.cr2 = CODE, STACK, 0x12345678
        for number, value in ((7, 0x400), (6, 0xFFFF0FF0), (0, 1), (1, 2), (2, 3), (3, 4)):
            cpu.load_dr(number, value)
        lab.machine.halted, lab.machine.end = False, None
        if paging:
            lab.page(ABSENT, size=4 << 20)
            at = 0x20000 + 0x1000 + 4 * (READ_ONLY >> 12)
            memory.put_u32(at, READ_ONLY | 5)

    @staticmethod
    def _lower(lab: Lab) -> None:
        """As a guest that has just rewritten its table: nothing is raised any more."""
        for at in range(GDT + 8, GDT + GDT_LIMIT, 8):
            high = lab.memory.u32(at + 4)
            if high & 0x7000 == 0x3000:
                lab.memory.put_u32(at + 4, high & ~0x6000)


def _task(random: Random) -> bytes:
    """A TSS of kernel or user code."""
    user = random.random() < 0.3
    words = [0] * 26
    words[1:3] = KERNEL_STACK, DATA0
    words[7:10] = (
        PAGES,
        TARGET + 0x100,
        random.choice((2, 0x202, 0x4102, 0x3202)) | (Eflags.IF if user else 0),
    )
    words[10:18] = [random.getrandbits(32) for _ in range(4)] + [STACK] + words[10:13]
    words[18:25] = [0x23, 0x1B, 0x23, 0, 0, 0, 0x68] if user else [DATA0, CODE0, DATA0, 0x23, 0, 0x17, 0x68]
    return b"".join(word.to_bytes(4, "little") for word in words)


# A setup prepares registers and memory for one kind of instruction, and may change the flags.
Setup = Callable[[Lab, Random, int], int]


def plain(lab: Lab, random: Random, flags: int) -> int:
    """Nothing in particular; EBX points to memory, which may be absent or read-only."""
    lab.cpu.ebx = random.choice((BUFFER, BUFFER + 0x800, BUFFER + 0xFFE, ABSENT - 2, ABSENT, READ_ONLY))
    return flags


def aligned(lab: Lab, random: Random, flags: int) -> int:
    """As :func:`plain`, with no access over a page's end, of which the CPU core does the first part."""
    plain(lab, random, flags)
    lab.cpu.ebx &= ~0xFF
    return flags


def pick(random: Random) -> int:
    """A selector, a good one every other time."""
    return random.choice(_GOOD) if random.random() < 0.4 else random.choice(SELECTORS)


def selector(lab: Lab, random: Random, flags: int) -> int:
    """A selector in AX, at [EBX] and on the stack, with anything around it."""
    plain(lab, random, flags)
    chosen = pick(random)
    lab.cpu.eax = random.getrandbits(16) << 16 | chosen
    lab.memory.put_u32(lab.cpu.ebx, lab.cpu.eax)
    lab.push(lab.cpu.eax)
    return flags


def control(lab: Lab, random: Random, flags: int) -> int:
    """A value for a control register in EAX that is good for each of them."""
    lab.cpu.ebx = BUFFER
    value = lab.cpu.cr(0) ^ random.choice((0, 2, 4, 8, 0x20, 0x10000, 0x40000, 0x60000000))
    lab.cpu.eax = value
    lab.memory.put_u32(BUFFER, random.getrandbits(32))
    return flags


def control4(lab: Lab, random: Random, flags: int) -> int:
    """A value for CR4 in EAX."""
    lab.cpu.eax = random.getrandbits(32) & _NO_RESERVED_CR4
    return flags


def pointer(lab: Lab, random: Random, flags: int) -> int:
    """A descriptor table pointer at [EBX]."""
    lab.cpu.ebx = random.choice((BUFFER, ABSENT - 4, ABSENT))
    base = random.choice((GDT, 0x01001000))
    lab.memory.write(
        lab.cpu.ebx, random.choice((0xFF, 0xFFF)).to_bytes(2, "little") + base.to_bytes(4, "little")
    )
    return flags


def far(lab: Lab, random: Random, flags: int) -> int:
    """A far pointer at [EBX], and words on the stack.

    Not beyond the limit of 16-bit code: a call's #GP has code 0 by the manual, the selector by the CPU core.
    """
    lab.cpu.ebx = BUFFER
    chosen = pick(random)
    lab.memory.put_u32(BUFFER, TARGET)
    lab.memory.put_u32(BUFFER + 4, CODE0 if chosen & ~7 == CODE16 else chosen)
    lab.push(*(random.getrandbits(32) for _ in range(8)))
    return flags


def far_jump(lab: Lab, random: Random, flags: int) -> int:
    """As :func:`far`, but not through the gate to absent code: #NP by the manual, #GP by the CPU core."""
    far(lab, random, flags)
    if lab.u32(BUFFER + 4) & ~7 == TO_ABSENT:
        lab.memory.put_u32(BUFFER + 4, 0x08)
    return flags


def far_short(lab: Lab, random: Random, flags: int) -> int:
    """As :func:`far_jump` with an offset of 16 bits."""
    far_jump(lab, random, flags)
    lab.memory.put_u32(BUFFER, lab.u32(BUFFER + 4) << 16 | TARGET & 0xFFFF)
    return flags


def root(lab: Lab, random: Random, flags: int) -> int:
    """A root of page tables in EAX, one that maps the code if paging is on."""
    lab.cpu.eax = random.getrandbits(32)
    if lab.cpu.cr(0) & Cr0.PG:
        lab.cpu.eax = PAGES | random.choice((0, 8, 0x10, 0x18))
    return flags


def frame(lab: Lab, random: Random, flags: int) -> int:
    """A return frame of 32-bit values on the stack."""
    image = random.getrandbits(32) & 0x2577D5 & ~random.choice((0, 0x4000)) | 2
    if random.random() < 0.1:
        image = image & ~Eflags.RF | Eflags.VM  # the CPU core takes no RF on this way
    code = random.choice((0x08, 0x08, 0x1B, 0x1B, 0x40, 0x43, pick(random)))
    stack = random.choice((0x23, 0x23, 0x10, 0xEB, 0xDB, pick(random)))
    rest = [random.getrandbits(16) for _ in range(4)]
    if code & 3 == 3 or image & Eflags.VM:
        image |= Eflags.IF  # user code's interrupts are always on behind a hypervisor
    words = [TARGET, random.getrandbits(16) << 16 | code, image, USER_STACK, stack, *rest]
    lab.push(*reversed(words))
    if random.random() < 0.05:
        lab.cpu.esp = ABSENT - 8
    if random.random() < 0.8:
        flags &= ~Eflags.NT
    return flags


def far_frame(lab: Lab, random: Random, flags: int) -> int:
    """A far return frame of 32-bit values, eight bytes of arguments, and an outer stack."""
    code = random.choice((0x08, 0x1B, 0x43, pick(random)))
    stack = random.choice((0x23, pick(random)))
    words = [TARGET, code, USER_STACK, stack, USER_STACK - 64, stack]
    lab.push(*reversed(words))
    return flags | Eflags.IF if code & 3 == 3 else flags


def short_frame(lab: Lab, random: Random, flags: int) -> int:
    """A return frame of 16-bit values."""
    code = random.choice((0x08, 0x1B, pick(random)))
    image = random.getrandbits(16) & 0x77D5 | 2 | (0x200 if code & 3 == 3 else 0)
    words = [TARGET & 0xFFFF, code, image, USER_STACK & 0xFFFF, 0x23]
    lab.cpu.esp -= 10
    lab.memory.write(lab.cpu.esp, b"".join(word.to_bytes(2, "little") for word in words))
    return flags & ~Eflags.NT


def segments(lab: Lab, random: Random, flags: int) -> int:
    """Any selector in each data segment register; sometimes a 16-bit stack."""
    plain(lab, random, flags)
    lab.cpu.ebx = BUFFER
    lab.push(random.getrandbits(32))
    if random.random() < 0.3:
        lab.cpu.set_segment(Seg.SS, Segment(0xD8, 0x50000, 0x7FFF, 0x9300))
        lab.cpu.esp = random.choice((0x12340000 | 0x8000, 0xABCD0002))
    return flags


TRAPPING: dict[str, tuple[str, Setup]] = {
    "cli": ("fa", plain), "sti": ("fb", plain), "hlt": ("f4", plain), "clts": ("0f06", plain),
    "wbinvd": ("0f09", plain), "invd": ("0f08", plain), "invlpg [ebx]": ("0f013b", plain),
    "lgdt [ebx]": ("0f0113", pointer), "lgdt [ebx], 24 bits": ("660f0113", pointer),
    "lidt [ebx]": ("0f011b", pointer), "lidt [ebx], 24 bits": ("660f011b", pointer),
    "lldt ax": ("0f00d0", selector), "lldt [ebx]": ("0f0013", selector),
    "lmsw ax": ("0f01f0", control), "lmsw [ebx]": ("0f0133", control),
    "mov cr0, eax": ("0f22c0", control), "mov cr2, eax": ("0f22d0", plain), "mov cr3, eax": ("0f22d8", root),
    "mov cr4, eax": ("0f22e0", control4), "mov eax, cr0": ("0f20c0", plain),
    "mov ecx, cr2": ("0f20d1", plain), "mov esp, cr3": ("0f20dc", plain), "mov edi, cr4": ("0f20e7", plain),
    "mov cr1, eax": ("0f22c8", plain), "mov eax, cr5": ("0f20e8", plain),
    **{f"mov dr{n}, eax": (f"0f23{0xC0 | n << 3:x}", control4) for n in range(8)},
    **{f"mov ebp, dr{n}": (f"0f21{0xC5 | n << 3:x}", plain) for n in range(8)},
    "mov ss, ax": ("8ed0", selector), "mov ss, [ebx]": ("8e13", selector), "pop ss": ("17", selector),
    "pop ss, 16 bits": ("6617", selector), "mov ds, ax": ("8ed8", selector), "mov es, ax": ("8ec0", selector),
    "mov fs, ax": ("8ee0", selector), "mov gs, [ebx]": ("8e2b", selector), "pop ds": ("1f", selector),
    "pop es, 16 bits": ("6607", selector), "pop fs": ("0fa1", selector), "pop gs": ("0fa9", selector),
    "lss ecx, [ebx]": ("0fb20b", far), "lss cx, [ebx]": ("660fb20b", far_short),
    "lds ecx, [ebx]": ("c50b", far), "les ecx, [ebx]": ("c40b", far),
    "lfs cx, [ebx]": ("660fb40b", far_short), "lgs ecx, [ebx]": ("0fb50b", far),
    "jmp [ebx]": ("ff2b", far_jump), "jmp [ebx], 16 bits": ("66ff2b", far_short),
    "jmp 8:target": (f"ea{TARGET.to_bytes(4, 'little').hex()}0800", plain),
    "rdtsc": ("0f31", plain),
}  # fmt: skip
PLANTED: dict[str, tuple[str, Setup]] = {
    "pushfd": ("9c", segments), "pushf": ("669c", segments), "popfd": ("9d", segments),
    "popf": ("669d", segments), "iretd": ("cf", frame), "iret": ("66cf", short_frame),
    "retf": ("cb", far_frame), "retf 8": ("ca0800", far_frame), "retf, 16 bits": ("66cb", short_frame),
    "call [ebx]": ("ff1b", far), "call [ebx], 16 bits": ("66ff1b", far_short),
    "call 0x90:0": ("9a000000009000", far),
    "call 8:target": (f"9a{TARGET.to_bytes(4, 'little').hex()}0800", plain),
    "mov eax, cs": ("8cc8", plain), "mov ax, cs": ("668cc8", plain), "mov [ebx], cs": ("8c0b", plain),
    "mov ecx, ss": ("8cd1", plain), "push cs": ("0e", segments), "push cs, 16 bits": ("660e", segments),
    "push ss": ("16", segments), "lar ecx, eax": ("0f02c8", selector), "lar cx, ax": ("660f02c8", selector),
    "lar ecx, [ebx]": ("0f020b", selector), "lsl ecx, eax": ("0f03c8", selector),
    "lsl cx, ax": ("660f03c8", selector), "verr ax": ("0f00e0", selector), "verw ax": ("0f00e8", selector),
    "verr [ebx]": ("0f0023", selector),
    "sgdt [ebx]": ("0f0103", aligned), "sgdt [ebx], 24 bits": ("660f0103", aligned),
    "sidt [ebx]": ("0f010b", aligned), "sldt eax": ("0f00c0", plain), "sldt cx": ("660f00c1", plain),
    "sldt [ebx]": ("0f0003", plain), "str edx": ("0f00ca", plain), "str [ebx]": ("0f000b", plain),
    "smsw eax": ("0f01e0", plain), "smsw cx": ("660f01e1", plain), "smsw [ebx]": ("0f0123", plain),
    "cpuid": ("0fa2", plain), "mov ss, ax": ("8ed0", selector), "lss ecx, [ebx]": ("0fb20b", far),
}  # fmt: skip


@pytest.mark.parametrize("name", TRAPPING)
def test_a_refused_instruction_does_as_on_the_bare_machine(name: str) -> None:
    code, setup = TRAPPING[name]
    bench = Bench(code, planted=False)
    for seed in range(SEEDS):
        assert not bench.differences(seed, setup), seed


@pytest.mark.parametrize("name", PLANTED)
def test_a_silent_instruction_does_as_on_the_bare_machine(name: str) -> None:
    code, setup = PLANTED[name]
    bench = Bench(code, planted=True)
    for seed in range(SEEDS):
        assert not bench.differences(seed, setup), seed
