# SPDX-License-Identifier: GPL-2.0-only
"""The assembler gives the bytes that the text asks for, or refuses; it never gives other bytes."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from iced_x86 import Decoder, Formatter, FormatterSyntax

from vmi.errors import AssembleError
from vmi.rom.assemble import assemble

# Forms that Keystone 0.9.2 encodes wrong without saying so, or refuses although they exist:
# the bytes that are right, or None where the assembler must refuse.
KEYSTONE_WRONG = [
    ("iret", "cf"),
    ("iretd", "cf"),
    ("pushf", "9c"),
    ("pushfd", "9c"),
    ("popf", "9d"),
    ("popfd", "9d"),
    ("push cs", "0e"),
    ("push ss", "16"),
    ("push ds", "1e"),
    ("push es", "06"),
    ("push fs", "0fa0"),
    ("push gs", "0fa8"),
    ("pop ss", "17"),
    ("pop ds", "1f"),
    ("pop es", "07"),
    ("pop fs", "0fa1"),
    ("pop gs", "0fa9"),
    ("pop cs", None),
    ("lgdt [eax]", "0f0110"),
    ("lidt [eax]", "0f0118"),
    ("sgdt [eax]", "0f0100"),
    ("sidt [eax]", "0f0108"),
    ("lidt [esp + 8]", "0f015c2408"),
    ("lidt cs:[0x12345678]", "2e0f011d78563412"),
    ("sgdt ss:[ecx + eax*4 - 0x1000]", "360f01848100f0ffff"),
    ("jmp 8:0x12345678", "ea785634120800"),
    ("call 0x10:0xc0000000", "9a000000c01000"),
    ("jmp fword ptr [eax]", "ff28"),
    ("call fword ptr [eax + 4]", "ff5804"),
    ("push 0x78", "6a78"),
    ("push 0xffff", "68ffff0000"),
    ("push 0xff80", "6880ff0000"),
    ("push -128", "6a80"),
    ("push 0xffffff80", "6a80"),
    ("push 0x80000000", "6800000080"),
    ("pop dword ptr [edx]", "8f02"),
    ("mov al, 0x1ff", None),
    ("mov ax, 0x12345", None),
    ("add byte ptr [eax], 0x100", None),
    ("pusha", None),
    ("iretw", None),
    ("ljmp 8:0x12345678", None),
    ("nop dword ptr [eax]", None),
    ("mov [eax], 1", None),
    ("inc [eax]", None),
    ("shl [eax], cl", None),
    ("jmp [eax]", None),
    ("mov eax, cx", None),
    ("mov cr1, eax", None),
]


@pytest.mark.parametrize(("line", "expected"), KEYSTONE_WRONG, ids=[line for line, _ in KEYSTONE_WRONG])
def test_forms_keystone_gets_wrong(line: str, expected: str | None) -> None:
    if expected is None:
        with pytest.raises(AssembleError, match=r"^assembly line 1 '.*' is refused: .*$"):
            assemble(line)
    else:
        assert assemble(line).code.hex() == expected


PLAIN = [
    ("mov cr3, eax", "0f22d8"),
    ("mov eax, cr0", "0f20c0"),
    ("mov dr7, eax", "0f23f8"),
    ("rep insd", "f36d"),
    ("rep outsw", "f3666f"),
    ("insw", "666d"),
    ("lldt ax", "0f00d0"),
    ("ltr cx", "0f00d9"),
    ("str eax", "0f00c8"),
    ("sldt ax", "660f00c0"),
    ("in al, 0x60", "e460"),
    ("in ax, dx", "66ed"),
    ("out 0x80, al", "e680"),
    ("int 0x82", "cd82"),
    ("lock inc dword ptr [eax]", "f0ff00"),
    ("test eax, [ecx]", "8501"),
    ("xchg eax, [ecx]", "8701"),
    ("mov ax, ds", "668cd8"),
    ("mov eax, ss:[ecx + 0x10]", "368b4110"),
    ("mov dword ptr [esp], 0xffffffff", "c70424ffffffff"),
    ("lea esp, [esp + 4]", "8d642404"),
    ("mov eax, [0x1234]", "a134120000"),
    ("call eax", "ffd0"),
    ("jmp dword ptr cs:[ebx*4 + 0x100]", "2eff249d00010000"),
    ("retf", "cb"),
    ("ret 8", "c20800"),
    ("MOV EAX, DWORD PTR [ECX]  ; upper case", "8b01"),
]


@pytest.mark.parametrize(("line", "expected"), PLAIN, ids=[line for line, _ in PLAIN])
def test_plain_instructions(line: str, expected: str) -> None:
    assert assemble(line).code.hex() == expected


def test_branches_reach_labels_symbols_and_addresses() -> None:
    result = assemble(
        """
        start:  jmp done            ; forward
                jz start            ; backward
                call target         ; symbol
                jmp 0x2000          ; address
                jmp short start
                jecxz start
        done:   ret
        """,
        0x1000,
        {"target": 0xFFFF_F000},
    )
    assert [instruction.near_branch_target for instruction in Decoder(32, result.code, ip=0x1000)] == [
        result.labels["done"],
        0x1000,
        0xFFFF_F000,
        0x2000,
        0x1000,
        0x1000,
        0,
    ]
    assert result.code.hex() == "e9140000000f84f5ffffffe8f0dfffffe9eb0f0000ebe9e3e7c3"
    assert repr(result) == "<Assembled 26 bytes at 0x1000, 2 labels>"


def test_expressions_use_labels_defined_later() -> None:
    result = assemble(
        """
        call next
        next: pop ecx
        mov dword ptr ss:[ecx + {data - next + WORD*2}], {MASK}
        ret
        .align 64, 0xcc
        data: .long 1, data, -1
        .byte {2 * (3 - 1)}
        """,
        0x100,
        {"WORD": 4, "MASK": 0x200},
    )
    assert result.labels == {"next": 0x105, "data": 0x140}
    assert result.code[6:14].hex() == "36c7414300020000"
    assert result.code[0x40:].hex() == "0100000040010000ffffffff04"
    assert set(result.code[15:0x40]) == {0xCC}


def test_size_of_displacement_follows_the_distance() -> None:
    near, far = (f"mov eax, [ecx + {{end - start}}]\nstart: .zero {size}\nend:" for size in (100, 200))
    assert len(assemble(near).code) == 3 + 100
    assert len(assemble(far).code) == 6 + 200


def test_data_directives() -> None:
    source = '.ascii "a;b\\"\\0"\n.word 0x1234, -1\n.zero 3\n.org 0x20, 0x90\n'
    source += ".code16\nxor ax, ax\nretf\n.code32\npush 1"
    assert assemble(source, 0x10).code.hex() == ("613b6222003412ffff000000" + "90" * 4 + "31c0cb6a01")


BAD = [
    ("jmp nowhere", "'nowhere' is neither a label nor a symbol"),
    ("a: nop\na: nop", "label 'a' is defined twice"),
    ("known: nop", "label 'known' is a symbol already"),
    ("eax: nop", "'eax' can't be a label"),
    ("frob eax", "'frob' is not an instruction or directive"),
    (".frob 1", "'.frob' is not a directive"),
    (".byte 256", "0x100 does not fit 1 bytes"),
    (".byte 1/0", "an expression holds numbers, labels, symbols and + - * only"),
    (".byte 1 +", "'1 +' is not an expression"),
    (".byte", "'' is not an expression"),
    (".align 3", "3 is not a power of two"),
    ("nop\n.org 0", "address 0x0 is already behind, the code has reached 0x1"),
    (".zero -1", "can't place -1 bytes of 0x0"),
    (".ascii hello", "expected one string in double quotes"),
    ("x: .zero 200\njmp short x", "the target is -202 bytes away, a short branch reaches -128 to 127"),
    ("call short 0", "there is no short call"),
    ("jcxz 0", "'jcxz' is not available in 32-bit code"),
    ("jz eax", "'eax' is not a label, symbol or address"),
    ("mov eax, frob", "'frob' is not a register, number, memory operand, label or symbol"),
    ("mov eax, [frob]", "'[frob]' has the part 'frob', not a register, register*1/2/4/8 or number"),
    ("mov eax, []", "'[]' has an empty address"),
    ("mov eax, [eax ecx]", "'[eax ecx]' has the part 'eax ecx', not a register, register*1/2/4/8 or number"),
    ("mov eax, [eax + ecx + edx]", "'[eax + ecx + edx]' adds more than two registers"),
    ("mov eax, frob ptr [eax]",
     "'frob ptr' is not a size, known are byte, word, dword, fword, qword, tbyte, xmmword"),
    ("mov eax, 0x100000000", "0x100000000 does not fit 32 bits"),
    ("mov eax, cx", "no encoding known: Invalid operand (KS_ERR_ASM_INVALIDOPERAND)"),
    ("mov al, 0x1ff", "encoded as b0ff, which is wrong: an operand differs"),
]  # fmt: skip


@pytest.mark.parametrize(("source", "reason"), BAD, ids=[source for source, _ in BAD])
def test_refusals_name_line_and_reason(source: str, reason: str) -> None:
    last = source.rpartition("\n")[2]
    number = source.count("\n") + 1
    with pytest.raises(AssembleError) as caught:
        assemble(source, symbols={"known": 1})
    assert str(caught.value) == f"assembly line {number} '{last}' is refused: {reason}"


def test_code_that_never_settles_is_refused() -> None:
    with pytest.raises(
        AssembleError, match=r"^the code does not settle: label addresses still move after 16 passes$"
    ):
        assemble("start: .zero {3 - (end - start)}\nend:")


GPR = st.sampled_from(["eax", "ecx", "edx", "ebx", "ebp", "esi", "edi"])
NUMBER = st.one_of(st.integers(-0x80000000, 0x7FFFFFFF), st.integers(-130, 130))


@st.composite
def memory(draw: st.DrawFn) -> tuple[str, str]:
    """A memory operand as our text and as the formatter prints it."""
    segment = draw(st.sampled_from(["", "es:", "cs:", "fs:", "gs:"]))
    base, index, scale = draw(GPR), draw(st.none() | GPR), draw(st.sampled_from([2, 4, 8]))
    displacement = draw(NUMBER)
    body = base + (f" + {index}*{scale}" if index else "")
    sign = "-" if displacement < 0 else "+"
    text = f"{segment}[{body} + {{{displacement}}}]"
    printed = f"[{segment}{body.replace(' ', '')}"
    if displacement:
        printed += f"{sign}{abs(displacement):#x}"
    return text, printed + "]"


def _print(code: bytes) -> str:
    formatter = Formatter(FormatterSyntax.NASM)
    formatter.hex_prefix, formatter.hex_suffix, formatter.uppercase_hex = "0x", "", False
    formatter.small_hex_numbers_in_decimal, formatter.signed_immediate_operands = False, True
    instructions = list(Decoder(32, code))
    assert len(instructions) == 1
    return formatter.format(instructions[0])


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["mov", "add", "and", "or", "cmp", "xor"]), GPR, memory(), NUMBER)
def test_any_operand_comes_back_from_the_decoder(
    name: str, register: str, operand: tuple[str, str], number: int
) -> None:
    text, printed = operand
    assert _print(assemble(f"{name} {register}, {text}").code) == f"{name} {register},{printed}"
    assert _print(assemble(f"{name} {text}, {register}").code) == f"{name} {printed},{register}"
    code = assemble(f"{name} dword ptr {text}, {number}").code
    shown = f"{'-' if number < 0 else ''}{abs(number):#x}"
    # A short sign-extended immediate prints as `byte`: the size of the operation is still 32 bits.
    assert _print(code).replace("byte ", "") == f"{name} dword {printed},{shown}"


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 0xFFFFFFFF), st.integers(0, 0xFFFFFFFF), st.sampled_from(["jmp", "call", "jz", "jnbe"]))
def test_rel32_reaches_any_address(origin: int, target: int, name: str) -> None:
    code = assemble(f"{name} {{there}}", origin, {"there": target}).code
    assert next(iter(Decoder(32, code, ip=origin))).near_branch_target & 0xFFFFFFFF == target


WORDS = """mov add push pop jmp call jz loop lgdt rep lock short eax cx al cr0 ds ss xmm1 int3 in ret
[ ] { } , : + - * ; ptr dword word fword 0x10 -1 0xffffffffff label .byte .org .align .ascii .code16 " ' \\"""
TOKENS = st.sampled_from([*WORDS.split(), "\n"])


@settings(max_examples=400, deadline=None)
@given(st.lists(TOKENS, max_size=12).map(" ".join) | st.text(max_size=40))
def test_any_text_is_assembled_or_refused(source: str) -> None:
    try:
        result = assemble(source)
    except AssembleError as error:
        assert "is refused: " in str(error) or "does not settle" in str(error)
    else:
        assert list(assemble(source).code) == list(result.code)
