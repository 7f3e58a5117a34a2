# SPDX-License-Identifier: GPL-2.0-only
"""What code does to registers and stack: short pieces, one for each thing that is followed."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmi import abi
from vmi.rom.assemble import assemble
from vmi.rom.build import build
from vmi.rom.ways import Return, Value, Ways, go
from vmi.x86 import GPR32


def ways(source: str) -> Ways:
    """All ways through a piece of code."""
    return go(assemble(source.replace("; ", "\n").replace(": ", ":\n")).code, 0)


def one(source: str) -> Return:
    """Its only return."""
    found = ways(source)
    assert found.whole and not found.ends
    (only,) = found.returns
    return only


def survives(source: str, *names: str) -> bool:
    """Registers hold what they held, and ESP leads to the return address."""
    back = one(source)
    return back.off == 0 and all(back.registers[name] == Value("was", name) for name in names)


@pytest.mark.parametrize(
    "source",
    [
        "ret",
        "push ebx; mov ebx, 5; pop ebx; ret",
        "mov eax, ebx; xor ebx, ebx; mov ebx, eax; ret",
        "sub esp, 8; mov [esp+4], ebx; mov ebx, [esp]; mov ebx, [esp+4]; add esp, 8; ret",
        "push ebp; mov ebp, esp; sub esp, 64; mov [ebp-4], ebx; inc ebx; mov ebx, [ebp-4]; leave; ret",
        "push ebp; mov ebp, esp; push ebx; inc ebx; lea esp, [ebp-4]; pop ebx; mov esp, ebp; pop ebp; ret",
        "pushad; xor ebx, ebx; xor ebp, ebp; popad; ret",
        "xchg eax, ebx; xchg ebx, eax; ret",
        "pop eax; pop ecx; push ecx; push eax; ret",
        "call f; ret; f: push ebx; mov bl, 1; pop ebx; ret",
        "call f; f: pop eax; mov ecx, [eax+4]; ret",
        "push ebx; mov ebx, ds:[0x1234]; int 0x82; pop ebx; ret",
        "mov ecx, gs; mov gs, ecx; ret",
        "pushfd; std; popfd; ret",
        "std; cld; ret",
        "push 7; pop eax; ret",
        "lea esi, [esi+0]; lea edi, [edi*1+0]; or ebx, ebx; and ebp, ebp; add ebx, 0; xor ebx, 0; ret",
        "mov ax, ds; mov ds, ax; ret",
    ],
)
def test_what_survives(source: str) -> None:
    assert survives(source, "ebx", "ebp", "esi", "edi", "gs", "ds", "df")


@pytest.mark.parametrize(
    ("source", "name", "at"),
    [
        ("nop; mov ebx, 5; ret", "ebx", 1),
        ("nop; inc ebx; ret", "ebx", 1),
        ("mov bl, 1; ret", "ebx", 0),
        ("nop; cpuid; ret", "ebx", 1),
        ("rep stosb; ret", "edi", 0),
        ("pop eax; push eax; inc esi; ret", "esi", 2),
        ("std; ret", "df", 0),
        ("call f; ret; f: xor ebp, ebp; ret", "ebp", 6),
        ("push ebx; inc ebx; push ebx; pop ecx; pop eax; ret", "ebx", 1),
        ("mov eax, 3; mov ds, ax; ret", "ds", 5),
    ],
)
def test_what_is_changed(source: str, name: str, at: int) -> None:
    value = one(source).registers[name]
    assert (value.kind, value.number) == ("changed", at)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("mov ebx, ds:[0x1000]; ret", "ebx"),
        ("push ebx; mov eax, esp; mov dword ptr [eax], 1; pop ebx; ret", "ebx"),
        ("int 0x82; ret", "eax"),
        ("inc ebx; dec ebx; ret", "ebx"),
        ("xor eax, ebx; xor ebx, eax; xor ebx, eax; ret", "ebx"),
        ("push bx; inc ebx; pop bx; ret", "ebx"),
        ("xchg bl, al; nop; xchg bl, al; ret", "ebx"),
        ("mov bl, al; ret", "ebx"),
        ("movd xmm0, ebx; inc ebx; movd ebx, xmm0; ret", "ebx"),
        ("mov ebx, dr0; ret", "ebx"),
        ("sub esp, 4; popfd; ret", "df"),
    ],
)
def test_what_nobody_knows(source: str, name: str) -> None:
    assert one(source).registers[name].kind == "unknown"


@pytest.mark.parametrize(
    ("source", "off", "pops"),
    [
        ("add esp, 4; ret", 4, 0),
        ("pop eax; pop ecx; push eax; ret", 4, 0),
        ("pop eax; ret", 4, 0),
        ("sub esp, 12; ret", -12, 0),
        ("ret 8", 0, 8),
        ("mov esp, eax; ret", None, 0),
        ("and esp, -16; ret", None, 0),
    ],
)
def test_the_stack_at_a_return(source: str, off: int | None, pops: int) -> None:
    back = one(source)
    assert (back.off, back.pops) == (off, pops)


def test_both_ways_of_a_branch() -> None:
    found = ways("test eax, eax; jz a; ret; a: inc ebx; ret")
    assert sorted(back.registers["ebx"].kind for back in found.returns) == ["changed", "was"]


@pytest.mark.parametrize(
    "source", ["jmp eax", "iretd", "int3", "push eax; ret", "call eax; jmp ecx", "ud2", "jmp 0x1000"]
)
def test_other_ends(source: str) -> None:
    found = ways(source)
    assert found.ends == 1 and not found.returns and found.whole


def test_a_loop_comes_to_no_end() -> None:
    assert ways("a: jmp a") == Ways((), 0, (), True)


def test_endless_pushing_is_given_up() -> None:
    assert not ways("a: push eax; jmp a").whole


def test_stores_to_the_code() -> None:
    assert ways("call a; a: pop ecx; mov [ecx+8], eax; add ecx, 4; mov [ecx], al; ret").stores == (6, 12)
    assert ways("call a; a: pop ecx; lea edx, [ecx+eax*8+4]; inc dword ptr [edx]; ret").stores == (10,)
    assert ways("call a; a: pop ecx; mov eax, [ecx]; mov [eax], eax; mov [esp-4], ecx; ret").stores == ()


@settings(max_examples=200)
@given(st.binary(max_size=48))
def test_any_bytes_do(code: bytes) -> None:
    found = go(code, 0)
    assert all(set(back.registers) >= set(GPR32) for back in found.returns)


@pytest.mark.parametrize("flavour", ["native", "vmware"])
def test_our_own_roms(flavour: str) -> None:
    rom = build(flavour)
    for call in abi.CALLS:
        kind, offset = rom.calls[call.number]
        found = go(rom.image, offset) if kind in (abi.Reloc.CALL_REL, abi.Reloc.JUMP_REL) else None
        assert found is None or (found.whole and (found.returns or found.ends))
        for back in found.returns if found is not None else ():
            assert (back.off, back.pops) == (0, 0), call.name
            kept = {
                name: back.registers[name].kind for name in (*call.preserves, "ds", "df") if name != "esp"
            }
            assert "changed" not in kept.values(), (call.name, kept)
