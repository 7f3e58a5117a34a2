# SPDX-License-Identifier: GPL-2.0-only
"""Proof, made once per process, that the emulator library does what :mod:`vmi.native.cpu` relies on.

The CPU view reaches into the library's structures and depends on the order in which it does things.
None of that is documented, so it is not assumed: short pieces of machine code go through every place
and every event, and the first that differs ends the program with a sentence instead of a guest that
goes subtly wrong. It takes some ten milliseconds.
"""

from __future__ import annotations

from vmi.native.cpuid import MODELS
from vmi.native.probe import CODE, DATA, GDT, HALT, HIGH, LDT, PAGES, Probe, expect, le
from vmi.native.registers import Segment, TableRegister
from vmi.native.wiring import Stop
from vmi.x86 import Cr0, Cr4, Seg, Vector

_GPRS = tuple(0x10203040 + 0x01010101 * i for i in range(8))
_DATA_SEGMENTS = ((Seg.ES, "26"), (Seg.SS, "36"), (Seg.DS, "3e"), (Seg.FS, "64"), (Seg.GS, "65"))
_TABLE = 0xB000  # page tables: up to three of them
_FREE = 3 << 12  # a segment descriptor's flags: none that this proof sets


def prove() -> None:
    """Check everything. :raises EngineError: something differs; the sentence names it."""
    probe = Probe()
    for check in _CHECKS:
        probe.reset()
        check(probe)


def _budget(p: Probe) -> None:
    before = p.cpu.instructions
    stop = p.run("90" * 16, budget=5)
    expect("the end of a run that uses up its budget", Stop.BUDGET, stop)
    expect("the count of instructions after a budget of 5", 5, p.cpu.instructions - before)
    expect("EIP after a budget of 5 instructions of 1 byte", CODE + 5, p.cpu.eip)


def _halt(p: Probe) -> None:
    before = p.cpu.instructions
    stop = p.run("90 f4")
    expect("the end of a run at HLT", (Stop.HALTED, CODE + 2), (stop, p.cpu.eip))
    expect("the count of instructions up to HLT", 2, p.cpu.instructions - before)
    expect("the end of a run after HLT", Stop.BUDGET, p.run("90" * 4, budget=2))


def _stop_in_out(p: Probe) -> None:
    p.answer = p.cpu.stop_soon
    p.run("e6 80" + "90" * 16)
    expect("EIP after a stop from inside OUT", CODE + 2, p.cpu.eip)
    p.answer = lambda: p.cpu.stop_within(3)
    p.run("e6 80" + "90" * 16)
    expect("EIP 3 instructions after OUT", CODE + 5, p.cpu.eip)


def _general_registers(p: Probe) -> None:
    cpu = p.cpu
    for number, value in enumerate(_GPRS):
        cpu.set_gpr(number, value)
    p.run(
        "".join(f"89{5 | n << 3:02x}{le(DATA + 4 * n)}" for n in range(8)) + "f4"
    )  # mov [DATA+4*n], register n
    expect("the general registers that code sees", list(_GPRS), p.words(8))
    p.run("".join(f"{0xB8 + n:02x}{le(~v)}" for n, v in enumerate(_GPRS)) + "f4")  # mov register n, ~value
    seen = [cpu.gpr(n) for n in range(8)]
    expect("the general registers that code sets", [~v & 0xFFFFFFFF for v in _GPRS], seen)
    names = (cpu.eax, cpu.ecx, cpu.edx, cpu.ebx, cpu.esp)
    expect("the general registers by name", seen[:5], list(names))


def _flags(p: Probe) -> None:
    cpu = p.cpu
    cpu.eflags = 0x4CD7
    p.run(f"9c 8f05{le(DATA)} f4")  # pushf; pop [DATA]
    expect("EFLAGS that code sees", [0x4CD7], p.words(1))
    p.run("68" + le(0x200CD5) + "9d f4")  # push; popf
    expect("EFLAGS that code sets", 0x200CD7, cpu.eflags)
    seen = []

    def look() -> None:
        seen.append(cpu.eflags)

    p.answer = look
    p.run("fc b07f 0401 e680 fd e680 f4")  # cld; mov al,127; add al,1; out; std; out
    expect("EFLAGS in the middle of a run", [0x200892, 0x200C92], seen)

    def change() -> None:
        cpu.eflags = 0x4893

    p.answer = change
    p.run(f"cd30 9c 8f05{le(DATA)} f4")  # int 48; pushf; pop [DATA]
    expect("EFLAGS set in the middle of a run", [0x4893], p.words(1))


def _segment_registers(p: Probe) -> None:
    cpu = p.cpu
    table = TableRegister(GDT, 0xFF)
    cpu.gdt = table
    want = {}
    code = "".join(f"66b8{le(0x10 + 8 * seg)[:4]} 8e{0xC0 | seg << 3:02x}" for seg, _ in _DATA_SEGMENTS)
    for seg in (Seg.CS, *(seg for seg, _ in _DATA_SEGMENTS)):
        base, limit = 0x10000 * (1 + seg), 0x10 + seg
        high = (0x009B00 if seg == Seg.CS else 0x009300) | 0xC00000 | base >> 16
        p.memory.put_u32(GDT + 0x10 + 8 * seg, limit | base << 16 & 0xFFFF0000)
        p.memory.put_u32(GDT + 0x14 + 8 * seg, high)
        want[seg] = Segment(0x10 + 8 * seg, base, limit << 12 | 0xFFF, high)
    p.memory.write(0x20000 + HALT, b"\xf4")
    p.run(f"{code} ea{le(HALT)}{le(0x18)[:4]}")  # load all; jmp 18h:HALT
    for seg, segment in want.items():
        expect(f"{seg.name} that code loads", _fields(segment), _fields(cpu.segment(seg)))
    p.reset()
    for seg, prefix in _DATA_SEGMENTS:
        base = 0x20000 + 0x1000 * seg
        p.memory.put_u32(base + 8, 0xC0DE0000 | seg)
        cpu.set_segment(seg, Segment(0x10, base, 0xFFFFFFFF, 0xCF9300))
        p.run(f"{prefix}a1{le(8)} f4")  # mov eax, seg:[8]
        expect(f"what code loads through {seg.name}", 0xC0DE0000 | seg, cpu.eax)
    cpu.set_segment(Seg.CS, Segment(8, 0x800, 0xFFFFFFFF, 0xCF9B00))
    p.run("8cc8 f4")  # mov eax, cs
    expect("EIP in a code segment with a base", (CODE + 3 - 0x800, 8), (cpu.eip, cpu.eax & 0xFFFF))


def _fields(segment: Segment) -> tuple[int, ...]:
    return segment.selector, segment.base, segment.limit, segment.flags & ~_FREE


def _tables(p: Probe) -> None:
    cpu = p.cpu
    cpu.gdt, cpu.idt = TableRegister(GDT, 0x1FF), TableRegister(0x345678, 0x2FF)
    p.run(f"0f0105{le(DATA)} 0f010d{le(DATA + 8)} f4")  # sgdt, sidt
    got = [p.memory.read(DATA + 8 * i, 6) for i in range(2)]
    expect("GDTR and IDTR that code stores", ["ff0100800000", "ff0278563400"], [data.hex() for data in got])
    p.memory.write(DATA, bytes.fromhex("bc0a 44332200 cd0b 55443300"))
    p.run(f"0f0115{le(DATA)} 0f011d{le(DATA + 6)} f4")  # lgdt, lidt
    loaded = (cpu.gdt.base, cpu.gdt.limit, cpu.idt.base, cpu.idt.limit)
    expect("GDTR and IDTR that code loads", (0x223344, 0xABC, 0x334455, 0xBCD), loaded)
    cpu.gdt = TableRegister(GDT, 0xFF)
    p.memory.write(GDT + 0x20, bytes.fromhex("2700 0090 00820000 6700 0070 00890000"))
    p.run("66b82000 0f00d0 66b82800 0f00d8 f4")  # lldt 20h, ltr 28h
    expect("LDTR that code loads", (0x20, LDT, 0x27, 0x8200), _fields(cpu.ldt))
    expect("TR that code loads", (0x28, 0x7000, 0x67, 0x8900), _fields(cpu.tr))
    cpu.ldt, cpu.tr = Segment(0x48, LDT, 0x0F, 0x8200), Segment(0x50, 0, 0xFFFF, 0x8900)
    p.memory.write(LDT + 8, bytes.fromhex("ffff 0000 01 93cf 00"))
    p.memory.put_u32(0x10004, 0xFEED)
    p.run(
        "0f00c1 0f00ca 66b80c00 8ec0 26a104000000 f4"
    )  # sldt cx, str dx, es := LDT entry 1, mov eax, es:[4]
    got_now = (cpu.ecx & 0xFFFF, cpu.edx & 0xFFFF, cpu.eax)
    expect("LDTR, TR and a load through the LDT", (0x48, 0x50, 0xFEED), got_now)


def _control_registers(p: Probe) -> None:
    cpu = p.cpu
    cpu.cr2 = 0xC2C2
    cpu.set_cr(3, PAGES)
    cpu.set_cr(4, 0x10)
    for number in range(4):
        cpu.set_dr(number, 0xD0 + number)
    reads = "".join(f"0f20{0xC0 | n << 3:02x} 89 05{le(DATA + 4 * i)}" for i, n in enumerate((0, 2, 3, 4)))
    reads += "".join(f"0f21{0xC0 | n << 3:02x} 89 05{le(DATA + 16 + 4 * n)}" for n in range(4))
    p.run(reads + "f4")
    expect("CR0, CR2, CR3, CR4 that code sees", [0x11, 0xC2C2, PAGES, 0x10], p.words(4))
    expect("DR0 to DR3 that code sees", [0xD0, 0xD1, 0xD2, 0xD3], p.words(8)[4:])
    writes = "".join(
        f"b8{le(v)} 0f22{0xC0 | n << 3:02x}" for n, v in ((0, 0x13), (2, 0x222), (3, 0x3000), (4, 0))
    )
    writes += "".join(f"b8{le(0x70 + n)} 0f23{0xC0 | n << 3:02x}" for n in (0, 1, 2, 3))
    p.run(writes + "f4")
    expect("CR0, CR2, CR3, CR4 that code sets", [0x13, 0x222, 0x3000, 0], [cpu.cr(n) for n in (0, 2, 3, 4)])
    expect("DR0 to DR3 that code sets", [0x70, 0x71, 0x72, 0x73], [cpu.dr(n) for n in range(4)])


def _exceptions(p: Probe) -> None:
    for what, code, *event in (
        ("INT 48", "cd30", 0x30, 1, 0, CODE + 2),
        ("INT 6", "cd06", 6, 1, 0, CODE + 2),
        ("INT3", "cc", 3, 1, 0, CODE + 1),
        ("UD2", "0f0b", 6, 0, 0, CODE),
        ("RDRAND", "0fc7f0", 6, 0, 0, CODE),
        ("a division by zero", "31c9f7f1", 0, 0, 0, CODE + 2),
        ("a bad selector", "66b834128ed8", 13, 0, 0x1234, CODE + 4),
    ):
        p.events.clear()
        p.run(code + "f4")
        # an exception without an error code leaves the word of an older one
        got = [(v, i, e if event[2] else 0, at) for v, i, e, at in p.events]
        expect(f"vector, kind, error code and EIP of {what}", [tuple(event)], got)


def _page_faults(p: Probe) -> None:
    p.memory.put_u32(PAGES, 0x83)  # 4 MiB, one to one
    p.memory.put_u32(PAGES + 4, 0)
    p.cpu.set_cr(4, 0x10)
    p.cpu.set_cr(3, PAGES)
    p.cpu.set_cr(0, Cr0.PE | Cr0.PG)
    for what, code, error in (("a load", "a1", 0), ("a store", "a3", 2), ("another load", "a1", 0)):
        p.events.clear()
        address = 0x412344 + error
        p.run(f"{code}{le(address)} f4")
        got = [(vector, got_error, p.cpu.cr2) for vector, _, got_error, _ in p.events]
        expect(f"vector, error code and CR2 of {what} where no page is", [(14, error, address)], got)
    seen = []

    def look() -> None:
        seen.append(p.cpu.eflags)
        p.cpu.eip = HALT

    p.answer = look
    p.run("b07f 0401 a1" + le(0x412344) + "f4")  # mov al, 127; add al, 1
    expect("EFLAGS in front of a load where no page is", [0x892], seen)


def _rings(p: Probe) -> None:
    p.ring(3)
    p.run("fa f4")  # cli
    expect("CLI on ring 3", [(Vector.GP, 0, 0, CODE)], p.events[:1])
    expect("the ring that the host set", 3, p.cpu.cpl)
    p.reset()
    p.ring(1)

    def enter_ring_0() -> None:
        p.ring(0)

    p.answer = enter_ring_0
    p.run("cd30 fa f4")  # int 48, cli
    expect("CLI after a switch to ring 0 in the middle of a run", 1, len(p.events))


def _window(p: Probe) -> None:
    p.run("90 fb 90", budget=2)
    expect("the interrupt shadow behind STI", True, p.cpu.irq_shadow)
    p.cpu.eflags, p.cpu.irq_shadow = 2, False
    stop = p.run("90 fb 90 90 90 f4", window=True)
    expect("the end of a run when interrupts become acceptable", (Stop.WINDOW, CODE + 3), (stop, p.cpu.eip))
    p.cpu.eflags = 2
    expect("the end of a run with interrupts off", Stop.HALTED, p.run("90 90 f4", window=True))


def _memory(p: Probe) -> None:
    cpu, rom, beyond = p.cpu, 0xC8000, 0x80000000
    before = p.memory.u32(rom)
    p.run(f"b8{le(~before)} a3{le(rom)} f4")  # mov [ROM], eax
    expect("a store to ROM", ([(rom, 4, ~before & 0xFFFFFFFF)], before), (p.events, p.memory.u32(rom)))
    p.events.clear()
    p.run(f"a1{le(beyond)} a3{le(beyond + 4)} f4")
    expect("a load and a store where no memory is", [(beyond, 4), (beyond + 4, 4, 0x5A5A5A5A)], p.events)
    p.reset()
    expect("a jump to where no memory is", Stop.UNMAPPED, p.run(f"b8{le(beyond)} ffe0"))
    for at in (CODE, rom, HIGH):
        for value in (1, 2):  # mov eax, value
            p.run(f"b8{le(value)} f4", at=at)
            expect(f"code that the host changed at {at:#x}", value, cpu.eax)


def _ports_and_numbers(p: Probe) -> None:
    cpu = p.cpu
    p.answer = lambda: None
    p.run("e4 71 66e5 72 e5 73 e7 74 f4")
    expect("IN and OUT", ([(0x74, 4, 0x40073)], 0x40073), (p.events, cpu.eax))
    p.run("b810000000 0fa2 f4")
    expect("CPUID", (0x11, 0x12, 0x13, 0x14), (cpu.eax, cpu.ebx, cpu.ecx, cpu.edx))
    p.run("0f31 f4")
    expect("RDTSC", (0x55667788, 0x11223344), (cpu.eax, cpu.edx))


def _breakpoint(p: Probe) -> None:
    p.cpu.set_segment(Seg.CS, Segment(8, 0x800, 0xFFFFFFFF, 0xCF9B00))
    hit = CODE + 16

    def ignore() -> None:
        p.cpu.set_segment(Seg.CS, Segment(8, 0, 0xFFFFFFFF, 0xCF9B00))
        p.cpu.eip = HALT

    p.answer = ignore
    p.run(f"b8{le(hit)} 0f23c0 b802000000 0f23f8 90 f4")  # mov dr0, eax; mov dr7, 2
    expect(
        "the debug exception of a breakpoint", [(1, 0, hit - 0x800)], [(v, i, at) for v, i, _, at in p.events]
    )


def _model_specific_registers(p: Probe) -> None:
    cpu = p.cpu
    p.run("b974010000 0f32 f4")  # mov ecx, 174h; rdmsr
    expect("a model-specific register that code reads", (0x4D5352, 0x174), (cpu.eax, cpu.edx))
    p.run("b810000000 ba20000000 0f30 f4")  # mov eax, 10h; mov edx, 20h; wrmsr
    expect("a model-specific register that code writes", [(0x174, 0x2000000010)], p.events)
    p.events.clear()
    p.run("b900100000 b8aa000000 0f32 90 f4")  # mov ecx, 1000h; mov eax, 0AAh; rdmsr
    expect("an unknown model-specific register", [(13, 0, 0, CODE + 10)], p.events)
    expect("EAX behind a refused RDMSR", 0xAA, cpu.eax)


def _refused_port(p: Probe) -> None:
    cpu = p.cpu
    p.memory.write(DATA, b"\x77")
    cpu.esi, cpu.ecx, cpu.edx = DATA, 3, 0x80
    after: list[tuple[int, ...]] = []

    def refuse() -> None:
        if not after and len(p.events) == 1:
            cpu.refuse()
            after.append((cpu.esi, cpu.ecx))

    p.answer = refuse
    p.run("f36e 90 90 f4", budget=1)  # rep outsb
    expect("what follows a refused OUTS", [(0x80, 1, 0x77), (13, 0, 0, CODE)], p.events)
    expect("ESI and ECX behind a refused OUTS", after, [(cpu.esi, cpu.ecx)])


def _fast_call(p: Probe) -> None:
    cpu = p.cpu
    p.ring(3)
    cpu.eflags, cpu.fast_call_target = 0x246, (0x1000, 0x5000, CODE + 16)
    p.run("0f34" + "f4" * 14 + "9c 8f05" + le(DATA) + "f4")  # sysenter; at its target: pushf; pop [DATA]
    got = (cpu.segment(Seg.CS).selector, cpu.segment(Seg.SS).selector, cpu.cpl, cpu.esp, p.words(1)[0])
    expect("CS, SS, CPL, ESP and EFLAGS behind SYSENTER", (0x1000, 0x1008, 0, 0x5000, 0x46), got)
    p.ring(0)
    p.events.clear()
    cpu.ecx, cpu.edx = 0x5800, CODE + 32
    p.run("0f35" + "90" * 30 + "fa")  # sysexit; at its target: cli, which is refused
    back = (cpu.segment(Seg.CS).selector, cpu.segment(Seg.SS).selector, cpu.esp, p.events[0][3])
    expect("CS, SS, ESP and EIP behind SYSEXIT", (0x1013, 0x101B, 0x5800, CODE + 32), back)
    p.events.clear()
    p.ring(3)
    cpu.fast_call_target = (0, 0, 0)
    p.run("90 0f34 f4")
    expect("SYSENTER without a target", [(13, CODE + 1)], [(v, at) for v, _, _, at in p.events])
    p.events.clear()
    p.run("90 0f05 f4")
    expect("SYSCALL", [(6, CODE + 1)], [(v, at) for v, _, _, at in p.events])


def _pages_of_code(p: Probe) -> None:
    at = 0x190000
    before = set(p.cpu.code_pages)
    p.run("90 f4", at=at)
    expect("the pages that translated code lies in", [at >> 12], sorted(p.cpu.code_pages - before))
    p.run(f"c605{le(at)}41 e9{le(at - CODE - 12)}", at=CODE)  # mov byte [at], inc ecx; jmp at
    p.cpu.ecx = 0
    p.run(f"c605{le(at)}40 c605{le(at)}41 e9{le(at - CODE - 19)}", at=CODE)
    expect("what code stored into code does", 1, p.cpu.ecx)


def _own_block(p: Probe) -> None:
    # mov al, 127; add al, 1; mov byte [the NOP], 90h; pushf; pop ebx; nop; hlt
    p.run(f"b07f 0401 c605{le(CODE + 13)}90 9c 5b 90 f4")
    expect("EFLAGS behind a store into the block of code that it is in", 0x892, p.cpu.ebx)


def _end_of_page(p: Probe) -> None:
    cpu, end = p.cpu, 0x191000
    for page in range(512):
        p.memory.put_u32(_TABLE + 4 * page, 0 if page == end >> 12 else page << 12 | 3)
    p.memory.put_u32(PAGES, _TABLE | 3)
    cpu.set_cr(3, PAGES)
    cpu.set_cr(0, Cr0.PE | Cr0.PG)
    cpu.eax = 0
    p.run("40" * 3, at=end - 3)  # inc eax
    expect("where code faults that runs on into an absent page", (14, end, 3), (*p.events[0][::3], cpu.eax))


def _no_execute(p: Probe) -> None:
    cpu, other = p.cpu, 0x200000  # the same memory again, where it can't be executed

    def put_u64(at: int, value: int) -> None:
        p.memory.write(at, value.to_bytes(8, "little"))

    put_u64(PAGES, _TABLE | 1)
    for table, bits in ((1, 0), (2, 1 << 63)):
        put_u64(_TABLE + 8 * (table - 1), _TABLE + 0x1000 * table | 3)
        for page in range(512):
            put_u64(_TABLE + 0x1000 * table + 8 * page, page << 12 | 3 | bits)
    cpu.efer = 1 << 11
    cpu.set_cr(3, PAGES)
    cpu.set_cr(4, Cr4.PAE)
    cpu.set_cr(0, Cr0.PE | Cr0.PG)
    p.run(f"e9{le(other + HIGH - CODE - 5)}")
    expect("a jump to where nothing can be executed", [(14, 0, 0x11, other + HIGH)], p.events)
    spots = (HIGH, HIGH + 0x100)
    for at in spots:
        p.run("b801000000 f4", at=at)  # mov eax, 1
    p.run("".join(f"c605{le(other + at + 1)}02" for at in spots) + "f4")
    seen = []
    for at in spots:
        cpu.eip = at
        cpu.run(10)
        seen.append(cpu.eax)
    expect("what code does that was changed where it can't be executed", [2, 2], seen)


def _address_line_20(p: Probe) -> None:
    p.memory.put_u32(0x103000, 0x11111111)
    p.memory.put_u32(0x003000, 0x22222222)
    seen = []
    for open_ in (False, True):
        p.cpu.set_a20(open_)
        p.run(f"a1{le(0x103000)} f4")  # mov eax, [103000h]
        seen.append(p.cpu.eax)
    expect("what code loads with address line 20 closed and open", [0x22222222, 0x11111111], seen)


def _decoding(p: Probe) -> None:
    for name, events in (("486", [(6, 0, 0, CODE)]), ("qemu32", [])):
        p.events.clear()
        p.cpu.decode(MODELS[name])
        p.run("0f44c1 f4")  # cmovz eax, ecx
        expect(f"the exception at CMOVZ on a {name}", events, p.events)


# in this order: what later ones rest on comes first
_CHECKS = (
    _pages_of_code,  # first, as all other code here is put into memory by what relies on it
    _budget,
    _halt,
    _stop_in_out,
    _general_registers,
    _flags,
    _segment_registers,
    _tables,
    _control_registers,
    _exceptions,
    _page_faults,
    _rings,
    _window,
    _memory,
    _ports_and_numbers,
    _breakpoint,
    _model_specific_registers,
    _refused_port,
    _fast_call,
    _own_block,
    _end_of_page,
    _no_execute,
    _address_line_20,
    _decoding,
)
