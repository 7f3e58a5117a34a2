# SPDX-License-Identifier: GPL-2.0-only
"""Every adaptor against the instruction it stands for, on a processor, from random states.

The oracle is the native instruction itself. The ROM is the nastiest one that the ABI allows: each call
does what the native instruction does, then spoils every register and flag that it may.
"""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass, field

import pytest
from unicorn import UC_ARCH_X86, UC_HOOK_INSN, UC_HOOK_MEM_WRITE, UC_MODE_32, Uc
from unicorn.x86_const import (
    UC_X86_INS_IN,
    UC_X86_INS_OUT,
    UC_X86_REG_CR0,
    UC_X86_REG_CR2,
    UC_X86_REG_CR3,
    UC_X86_REG_CR4,
    UC_X86_REG_DR0,
    UC_X86_REG_DR3,
    UC_X86_REG_EAX,
    UC_X86_REG_EBP,
    UC_X86_REG_EBX,
    UC_X86_REG_ECX,
    UC_X86_REG_EDI,
    UC_X86_REG_EDX,
    UC_X86_REG_EFLAGS,
    UC_X86_REG_EIP,
    UC_X86_REG_ESI,
    UC_X86_REG_ESP,
    UC_X86_REG_GDTR,
    UC_X86_REG_IDTR,
    UC_X86_REG_LDTR,
    UC_X86_REG_TR,
)

from vmi import abi
from vmi.patcher.adaptorcode import Adaptor
from vmi.patcher.adaptors import JUMP_OK, Refused, choose
from vmi.patcher.model import Site
from vmi.rom.assemble import assemble

CODE, ADAPTOR, ROM = 0x1000, 0x2000, 0x3000
DATA, STACK_LOW, STACK = 0x10000, 0x20000, 0x21000
DESCRIPTORS = 0x18000  # a GDT with a data, an LDT and a TSS descriptor
LDT_SELECTOR, TSS_SELECTOR = 0x10, 0x18
ARITHMETIC = 0x8D5  # OF SF ZF AF PF CF
INTERRUPT, DIRECTION = 0x200, 0x400

GPR = {
    "eax": UC_X86_REG_EAX,
    "ecx": UC_X86_REG_ECX,
    "edx": UC_X86_REG_EDX,
    "ebx": UC_X86_REG_EBX,
    "esp": UC_X86_REG_ESP,
    "ebp": UC_X86_REG_EBP,
    "esi": UC_X86_REG_ESI,
    "edi": UC_X86_REG_EDI,
}
SYSTEM = {
    "cr0": UC_X86_REG_CR0,
    "cr2": UC_X86_REG_CR2,
    "cr3": UC_X86_REG_CR3,
    "cr4": UC_X86_REG_CR4,
    "dr0": UC_X86_REG_DR0,
    "dr3": UC_X86_REG_DR3,
    "gdtr": UC_X86_REG_GDTR,
    "idtr": UC_X86_REG_IDTR,
    "ldtr": UC_X86_REG_LDTR,
    "tr": UC_X86_REG_TR,
}

# What each call's ROM code does before it spoils things; "" takes the native instruction as it stands.
SET_DR = """
    test eax, eax
    jne three
    mov dr0, edx
    jmp done
three:
    mov dr3, edx
done:
"""
GET_DR = """
    test eax, eax
    jne three
    mov eax, dr0
    jmp done
three:
    mov eax, dr3
done:
"""
FAKE_TIME = "mov eax, 0x11223344\nmov edx, 0x55667788\n"
ROM_CODE = {
    "CPUID": "cpuid",
    "WRMSR": "wrmsr",
    "RDMSR": "rdmsr",
    "SetGDT": "lgdt [eax]",
    "SetLDT": "lldt ax",
    "SetIDT": "lidt [eax]",
    "SetTR": "ltr ax",
    "GetGDT": "sgdt [eax]",
    "GetLDT": "sldt eax\nor eax, 0x5a5a0000",
    "GetIDT": "sidt [eax]",
    "GetTR": "str eax\nor eax, 0x5a5a0000",
    "SetCR0": "mov cr0, eax",
    "SetCR2": "mov cr2, eax",
    "SetCR3": "mov cr3, eax",
    "SetCR4": "mov cr4, eax",
    "GetCR0": "mov eax, cr0",
    "GetCR2": "mov eax, cr2",
    "GetCR3": "mov eax, cr3",
    "GetCR4": "mov eax, cr4",
    "WBINVD": "wbinvd",
    "SetDR": SET_DR,
    "GetDR": GET_DR,
    "RDPMC": FAKE_TIME,
    "RDTSC": FAKE_TIME,
    "CLTS": "clts",
    "EnableInterrupts": "sti",
    "DisableInterrupts": "cli",
    "GetInterruptMask": "pushfd\npop eax\nor eax, 0xfffff0ff",
    "SetInterruptMask": "push eax\npopfd",
    "Halt": "sti",
    "InvalPage": "invlpg [eax]",
    "INL": "in eax, dx",
    "INB": "in al, dx",
    "INW": "in ax, dx",
    "INSL": "rep insd",
    "INSB": "rep insb",
    "INSW": "rep insw",
    "OUTL": "out dx, eax",
    "OUTB": "out dx, al",
    "OUTW": "out dx, ax",
    "OUTSL": "rep outsd",
    "OUTSB": "rep outsb",
    "OUTSW": "rep outsw",
}


@dataclass
class Case:
    """A native instruction, its form, and an oracle where the processor can't play it."""

    source: str
    form: str
    oracle: str = ""
    memory: dict[str, int] = field(default_factory=dict)  # registers that must address the data area
    raw: bytes = b""

    def __post_init__(self) -> None:
        self.raw = assemble(self.source, CODE).code

    def __str__(self) -> str:
        return self.source.replace("\n", "; ")


def cases() -> list[Case]:
    result = [
        Case("cpuid", "cpuid"),
        Case("wrmsr", "wrmsr"),
        Case("rdmsr", "rdmsr"),
        Case("wbinvd", "wbinvd"),
        Case("clts", "clts"),
        Case("sti", "sti"),
        Case("cli", "cli"),
        Case("pushfd", "pushf"),
        Case("popfd", "popf"),
        Case("rdtsc", "rdtsc", FAKE_TIME),
        Case("rdpmc", "rdpmc", FAKE_TIME),
        Case("sti\nhlt", "sti;hlt", "sti"),
    ]
    registers = [name for name in GPR if name != "esp"]
    for number in (0, 2, 3, 4):
        result += [Case(f"mov cr{number}, {r}", f"mov cr{number},r") for r in registers]
        result += [Case(f"mov {r}, cr{number}", f"mov r,cr{number}") for r in registers]
    for number in (0, 3):
        result += [Case(f"mov dr{number}, {r}", "mov dr,r") for r in GPR]
        result += [Case(f"mov {r}, dr{number}", "mov r,dr") for r in registers]
    result += [Case("mov cr2, esp", "mov cr2,r"), Case("mov cr3, esp", "mov cr3,r")]
    operands: list[tuple[str, dict[str, int]]] = [
        ("[0x10040]", {}),
        ("[esp+8]", {}),
        ("[esp]", {}),
        ("[esp+ecx*2+4]", {"ecx": 4}),
        ("[ebp-8]", {"ebp": DATA + 0x80}),
        ("[eax]", {"eax": DATA + 0x40}),
        ("[ecx+0x20]", {"ecx": DATA + 0x40}),
        ("[edx-0x44]", {"edx": DATA + 0x80}),
        ("[eax+edx*4+0x10]", {"eax": DATA, "edx": 0x20}),
        ("[esi*8+0x10000]", {"esi": 0x10}),
        ("cs:[ebx+0x7ffe]", {"ebx": DATA - 0x7F00}),
        ("ss:[edi]", {"edi": DATA + 0x100}),
    ]
    for text, memory in operands:
        for name in ("lgdt", "lidt", "sgdt", "sidt", "invlpg"):
            result.append(Case(f"{name} {text}", f"{name} m", memory=memory))
        for name in ("lldt", "ltr", "sldt", "str"):
            result.append(Case(f"{name} word ptr {text}", f"{name} rm", memory=memory))
    words = ("ax", "cx", "dx", "bx", "bp", "si", "di")
    for name in ("lldt", "ltr", "sldt", "str"):
        result += [Case(f"{name} {r}", f"{name} rm") for r in words]
    for name in ("sldt", "str"):
        result += [Case(f"{name} {r}", f"{name} rm") for r in registers]
    for part, size in (("al", "b"), ("ax", "w"), ("eax", "d")):
        result.append(Case(f"in {part}, dx", f"in {part}"))
        result.append(Case(f"in {part}, 0x60", f"in {part}"))
        result.append(Case(f"out dx, {part}", f"out {part}"))
        result.append(Case(f"out 0x80, {part}", f"out {part}"))
        for rep in ("", "rep "):
            result.append(Case(f"{rep}ins{size}", f"ins{size}", memory={"edi": DATA + 0x200, "ecx": 5}))
            result.append(Case(f"{rep}outs{size}", f"outs{size}", memory={"esi": DATA + 0x240, "ecx": 5}))
    return result


CASES = cases()


def spoil(call: abi.Call, rng: random.Random) -> str:
    """Code that changes everything the call may change besides its results."""
    lines = [f"mov {register}, {rng.getrandbits(32):#x}" for register in call.clobbers]
    narrow = [result for result in call.results if result.type in ("u8", "u16")]
    if narrow and narrow[0].places == ("eax",):
        # The ABI gives these calls AL or AX: the rest of EAX may be anything.
        mask = 0xFFFFFF00 if narrow[0].type == "u8" else 0xFFFF0000
        lines.append(f"xor eax, {rng.getrandbits(32) & mask:#x}")
    flags = rng.getrandbits(8) << 8 | rng.getrandbits(8)
    return "\n".join([*lines, "push eax", f"mov eax, {flags:#x}", "add al, 0x7f", "sahf", "pop eax", "ret"])


@dataclass
class Run:
    """A processor with the code of one experiment and what it did."""

    ports: list[tuple[str, int, int, int]] = field(default_factory=list)
    stray: list[int] = field(default_factory=list)

    def go(self, code: dict[int, bytes], state: State, start: int, stop: int) -> dict[str, object]:
        cpu = Uc(UC_ARCH_X86, UC_MODE_32)
        cpu.mem_map(0, 0x30000)
        cpu.mem_write(DATA, state.data)
        cpu.mem_write(STACK_LOW, state.stack)
        cpu.mem_write(DESCRIPTORS, state.descriptors())
        for address, raw in code.items():
            cpu.mem_write(address, raw)
        cpu.hook_add(UC_HOOK_INSN, self._in, None, 1, 0, UC_X86_INS_IN)
        cpu.hook_add(UC_HOOK_INSN, self._out, None, 1, 0, UC_X86_INS_OUT)
        cpu.hook_add(UC_HOOK_MEM_WRITE, self._wrote)
        for name, value in state.system.items():
            cpu.reg_write(SYSTEM[name], value)
        for name, value in state.registers.items():
            cpu.reg_write(GPR[name], value)
        cpu.reg_write(UC_X86_REG_EFLAGS, state.flags)
        cpu.emu_start(start, stop, count=2000)
        assert cpu.reg_read(UC_X86_REG_EIP) == stop
        result: dict[str, object] = {name: cpu.reg_read(number) for name, number in GPR.items()}
        result.update({name: cpu.reg_read(number) for name, number in SYSTEM.items()})
        result["flags"] = cpu.reg_read(UC_X86_REG_EFLAGS)
        result["data"] = bytes(cpu.mem_read(DATA, len(state.data)))
        esp = min(cpu.reg_read(UC_X86_REG_ESP), state.registers["esp"])
        result["stack"] = bytes(cpu.mem_read(esp, STACK + 0x800 - esp))
        result["ports"] = tuple(self.ports)
        return result

    def _in(self, _cpu: Uc, port: int, size: int, _user: object) -> int:
        value = (port * 0x01010101 + 0xA7 * (len(self.ports) + 1)) & ((1 << 8 * size) - 1)
        self.ports.append(("in", port, size, value))
        return value

    def _out(self, _cpu: Uc, port: int, size: int, value: int, _user: object) -> None:
        self.ports.append(("out", port, size, value & ((1 << 8 * size) - 1)))

    def _wrote(self, _cpu: Uc, _kind: int, address: int, _size: int, _value: int, _user: object) -> bool:
        if not DATA <= address < STACK + 0x1000:
            self.stray.append(address)
        return True


@dataclass
class State:
    """Where an experiment starts."""

    registers: dict[str, int]
    flags: int
    system: dict[str, object]
    data: bytes
    stack: bytes

    @staticmethod
    def descriptors() -> bytes:
        data = 0x00CF92000000FFFF
        ldt = 0x0000820080000007 | (DATA >> 16) << 32
        tss = 0x0000890080000067 | (DATA >> 16) << 32
        return struct.pack("<QQQQ", 0, data, ldt, tss)


def random_state(case: Case, rng: random.Random) -> State:
    registers = {name: rng.getrandbits(32) for name in GPR}
    registers["esp"] = STACK
    registers.update(case.memory)
    data = bytearray(rng.randbytes(0x1000))
    stack = bytearray(rng.randbytes(0x2000))
    name = case.form.split()[0]
    if name in ("lldt", "ltr"):
        selector = LDT_SELECTOR if name == "lldt" else TSS_SELECTOR
        for register in set(registers) - set(case.memory) - {"esp"}:
            registers[register] = registers[register] & 0xFFFF0000 | selector
        for buffer in (data, stack):
            buffer[:] = struct.pack("<H", selector) * (len(buffer) // 2)
    if case.form in ("wrmsr", "rdmsr"):
        registers["ecx"] = 0x174  # SYSENTER_CS
    if case.form == "cpuid":
        registers["eax"], registers["ecx"] = rng.choice((0, 1, 4)), rng.randrange(2)
    control = {"mov cr0,r": (0x11, 0xE), "mov cr4,r": (0, 0x9C), "mov cr3,r": (0, 0xFFFFF000)}
    if case.form in control:
        fixed, mask = control[case.form]
        for register in set(registers) - {"esp"}:
            registers[register] = registers[register] & mask | fixed
    flags = 2 | rng.getrandbits(32) & (ARITHMETIC | INTERRUPT)
    if case.form == "popf":
        image = 2 | rng.getrandbits(32) & (ARITHMETIC | INTERRUPT | DIRECTION)
        stack[0x1000:0x1004] = struct.pack("<I", image)
    system: dict[str, object] = {
        "cr0": 0x11 | rng.getrandbits(32) & 0xE,
        "cr2": rng.getrandbits(32),
        "cr3": rng.getrandbits(32) & 0xFFFFF000,
        "cr4": rng.getrandbits(32) & 0x98,
        "dr0": rng.getrandbits(32),
        "dr3": rng.getrandbits(32),
        "gdtr": (0, DESCRIPTORS, 31, 0),
        "idtr": (0, rng.getrandbits(32), rng.getrandbits(16), 0),
    }
    return State(registers, flags, system, bytes(data), bytes(stack))


def run_both(
    case: Case, live: bool, dead: tuple[str, ...], rng: random.Random
) -> tuple[dict[str, object], dict[str, object], Adaptor | None]:
    call = abi.BY_INSTRUCTION[case.form]
    site = Site(CODE, case.raw, case.form, call, False, True, live, dead)
    adaptor = choose(site)
    state = random_state(case, rng)
    oracle = assemble(case.oracle or case.source, CODE).code
    native = Run()
    expected = native.go({CODE: oracle}, state, CODE, CODE + len(oracle))
    rom = assemble(ROM_CODE[call.name] + "\n" + spoil(call, rng), ROM).code
    target = ROM
    code = {ROM: rom}
    if adaptor is not None:
        linked = bytearray(adaptor.code)
        at = adaptor.hole
        assert linked[at] == 0xE8
        linked[at + 1 : at + 5] = struct.pack("<i", ROM - (ADAPTOR + at + 5))
        code[ADAPTOR] = bytes(linked)
        target = ADAPTOR
    code[CODE] = b"\xe8" + struct.pack("<i", target - (CODE + 5))
    patched = Run()
    found = patched.go(code, state, CODE, CODE + 5)
    assert not patched.stray
    for register in dead:
        expected[register] = found[register] = 0
    if not live and case.form != "popf":
        for result in (expected, found):
            assert isinstance(result["flags"], int)
            result["flags"] &= ~ARITHMETIC
    return expected, found, adaptor


@pytest.mark.parametrize("case", CASES, ids=str)
def test_an_adaptor_does_what_the_instruction_does(case: Case) -> None:
    rng = random.Random(str(case))
    for live in (True, False):
        for dead in ((), ("ecx", "edx"), ("eax",), ("eax", "ecx", "edx")):
            for _ in range(2):
                expected, found, _ = run_both(case, live, dead, rng)
                assert found == expected, f"flags live: {live}, dead: {dead}"


def test_every_form_of_the_abi_table_is_tried() -> None:
    tried = {case.form for case in CASES}
    assert set(abi.BY_INSTRUCTION) - tried == set(JUMP_OK)


def site(source: str, form: str, live: bool = False, dead: tuple[str, ...] = ()) -> Site:
    raw = assemble(source).code
    return Site(CODE, raw, form, abi.BY_INSTRUCTION[form], False, True, live, dead)


@pytest.mark.parametrize(
    ("source", "form", "dead"),
    [
        ("cli", "cli", ()),
        ("sti", "sti", ()),
        ("iretd", "iret", ()),
        ("sysexit", "sysexit", ()),
        ("out dx, al", "out al", ()),
        ("in eax, dx", "in eax", ()),
        ("rep outsd", "outsd", ()),
        ("cpuid", "cpuid", ()),
        ("wbinvd", "wbinvd", ("eax", "ecx", "edx")),
        ("rdmsr", "rdmsr", ("ecx",)),
    ],
)
def test_where_operands_fit_the_slot_calls_the_rom_directly(
    source: str, form: str, dead: tuple[str, ...]
) -> None:
    assert choose(site(source, form, dead=dead)) is None


UNFLAT = "The operand is addressed through FS or GS, and the call takes a flat address."


@pytest.mark.parametrize(
    ("source", "form", "sentence"),
    [
        ("mov esp, cr3", "mov r,cr3", "The result goes to the stack pointer."),
        ("lgdt fs:[0x10]", "lgdt m", UNFLAT),
        ("invlpg gs:[eax]", "invlpg m", UNFLAT),
        ("lgdt [bx+si]", "lgdt m", "The operand has a 16-bit address."),
        (
            "sgdt [esp-8]",
            "sgdt m",
            "The operand lies below the stack pointer, where the call's own frame goes.",
        ),
    ],
)
def test_operands_that_no_call_can_stand_for_are_refused(source: str, form: str, sentence: str) -> None:
    with pytest.raises(Refused) as caught:
        choose(site(source, form))
    assert str(caught.value) == sentence


def test_a_site_without_a_call_is_refused() -> None:
    with pytest.raises(Refused) as caught:
        choose(Site(CODE, b"\x0e", "push cs", None, True, False))
    assert str(caught.value) == "No VMI call stands for this instruction."


def test_pushf_shows_the_virtual_interrupt_flag_not_the_real_one() -> None:
    """At CPL 1 the real IF is always 1; the ROM knows the virtual one."""
    adaptor = choose(site("pushfd", "pushf", live=True))
    assert adaptor is not None
    for answer in (0, INTERRUPT):
        code = bytearray(adaptor.code)
        code[adaptor.hole + 1 : adaptor.hole + 5] = struct.pack("<i", ROM - (ADAPTOR + adaptor.hole + 5))
        rom = assemble(f"mov eax, {answer}\ncmp eax, 1\nret", ROM).code
        state = random_state(Case("pushfd", "pushf"), random.Random(7))
        state.flags = 0x2 | INTERRUPT | 0x41
        call = b"\xe8" + struct.pack("<i", ADAPTOR - (CODE + 5))
        found = Run().go({CODE: call, ADAPTOR: bytes(code), ROM: rom}, state, CODE, CODE + 5)
        assert found["esp"] == STACK - 4
        stack = found["stack"]
        assert isinstance(stack, bytes)
        assert struct.unpack_from("<I", stack)[0] & ~0x3000 == 0x43 | answer
        assert found["flags"] == 0x43 | INTERRUPT
        assert found["eax"] == state.registers["eax"]
