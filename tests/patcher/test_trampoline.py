# SPDX-License-Identifier: GPL-2.0-only
"""Trampolines run like the window they replace, branches keep their targets, NOPs never break a shadow."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from iced_x86 import Decoder
from unicorn import UC_ARCH_X86, UC_MODE_32, Uc
from unicorn.x86_const import UC_X86_REG_ECX, UC_X86_REG_EFLAGS, UC_X86_REG_EIP, UC_X86_REG_ESP

from vmi import abi
from vmi.patcher import trampoline
from vmi.patcher.model import Branch, Insn, Site, Window

HOME = 0xC0163000
ADDRESSES = st.integers(0x1000, 0xFFFFF000)


def insn(raw: str, branch: Branch | None = None, target: int = 0, form: str | None = None) -> Insn:
    return Insn(0xC0100000, bytes.fromhex(raw), form, branch, target)


@pytest.mark.parametrize(
    ("raw", "kind"),
    [
        ("eb10", Branch.JMP),
        ("e910000000", Branch.JMP),
        ("e810000000", Branch.CALL),
        ("7410", Branch.JCC),
        ("0f8e75000000", Branch.JCC),
        ("3e7210", Branch.JCC),
        ("2e0f8f00000000", Branch.JCC),
    ],
)
@given(at=ADDRESSES, target=ADDRESSES)
def test_a_branch_keeps_its_kind_and_its_target(raw: str, kind: Branch, at: int, target: int) -> None:
    code = trampoline.branch(insn(raw, kind, target), at)
    new = Decoder(32, code, ip=at).decode()
    old = Decoder(32, bytes.fromhex(raw)).decode()
    assert new.mnemonic == old.mnemonic
    assert new.near_branch32 == target
    assert new.len == len(code)


@pytest.mark.parametrize("raw", ["e3fe", "67e3fe", "e2fe", "e1fe", "e0fe", "67e2fe"])
@pytest.mark.parametrize("flags", [0x2, 0x42])
@pytest.mark.parametrize("count", [0, 1, 2, 0x10000, 0x10001])
def test_loop_and_jecxz_go_where_they_did(raw: str, flags: int, count: int) -> None:
    """On a processor: the branch in place, and the one in a trampoline."""
    taken, at = 0x2000, 0x1000
    short = 0x1040

    def run(code: bytes, target: int) -> tuple[bool, int, int]:
        cpu = Uc(UC_ARCH_X86, UC_MODE_32)
        cpu.mem_map(0, 0x4000)
        cpu.mem_write(0, b"\xf4" * 0x4000)
        cpu.mem_write(at, code)
        cpu.reg_write(UC_X86_REG_ECX, count)
        cpu.reg_write(UC_X86_REG_EFLAGS, flags)
        cpu.emu_start(at, 0x3FFF, count=8)
        end = cpu.reg_read(UC_X86_REG_EIP)
        assert end - 1 in (target, at + len(code))
        return end - 1 == target, cpu.reg_read(UC_X86_REG_ECX), cpu.reg_read(UC_X86_REG_EFLAGS)

    native = bytes.fromhex(raw)
    native = native[:-1] + bytes([short - (at + len(native))])
    moved = trampoline.branch(insn(raw, Branch.LOOP, taken), at)
    assert run(moved, taken) == run(native, short)


@pytest.mark.parametrize("size", range(5))
def test_padding_is_at_most_one_instruction(size: int) -> None:
    code = trampoline.nops(size)
    assert len(code) == size
    decoded = list(Decoder(32, code))
    assert len(decoded) == (1 if size else 0)


def window(*insns: Insn, sites: tuple[Site, ...] = (), **changes: object) -> Window:
    fields: dict[str, object] = {
        "start": 0xC0100000,
        "length": 6,
        "insns": insns,
        "sites": sites,
        "traps": (),
        "resume": 0xC0100006,
    } | changes
    return Window(**fields)  # type: ignore[arg-type]


def site(address: int, raw: str, form: str) -> Site:
    return Site(address, bytes.fromhex(raw), form, abi.BY_INSTRUCTION.get(form), False, True)


def test_a_window_becomes_slots_and_copies() -> None:
    insns = (
        Insn(0xC0100000, b"\xfa", "cli"),
        Insn(0xC0100001, b"\x0f\x22\xd8", "mov cr3,r"),
        Insn(0xC0100004, b"\x89\xc8"),
    )
    sites = (site(0xC0100000, "fa", "cli"), site(0xC0100001, "0f22d8", "mov cr3,r"))
    built = trampoline.build(window(*insns, sites=sites), HOME)
    assert built.code.hex(" ") == ("66 66 66 90 fa  66 90 0f 22 d8  89 c8  e9 f5 cf f9 ff".replace("  ", " "))
    assert [(slot.start, slot.length, slot.instruction) for slot in built.slots] == [
        (HOME, 5, HOME + 4),
        (HOME + 5, 5, HOME + 7),
    ]
    assert trampoline.edits([built]) == {0xC0100000: bytes.fromhex("e9fb2f0600cc")}


def test_an_instruction_of_five_bytes_needs_no_padding() -> None:
    raw = "0f011582000001"
    found = Insn(0xC0100000, bytes.fromhex(raw), "lgdt m")
    built = trampoline.build(
        window(found, sites=(site(0xC0100000, raw, "lgdt m"),), length=7, resume=None), HOME
    )
    assert built.code == bytes.fromhex(raw)


def test_a_moved_silent_instruction_is_recorded_at_its_new_address() -> None:
    insns = (Insn(0xC0100000, b"\xfa", "cli"), Insn(0xC0100001, b"\x8c\xd0", "mov r,ss"))
    silent = site(0xC0100001, "8cd0", "mov r,ss")
    built = trampoline.build(window(*insns, sites=(site(0xC0100000, "fa", "cli"),), traps=(silent,)), HOME)
    assert built.traps == ((HOME + 5, silent),)


def test_a_springboard_is_a_short_jump_and_a_long_one() -> None:
    short = window(Insn(0xC0100000, b"\xfa", "cli"), length=3, springboard=0xC0100042)
    built = trampoline.build(short, HOME)
    assert trampoline.edits([built]) == {
        0xC0100000: bytes.fromhex("eb40cc"),
        0xC0100042: bytes.fromhex("e9b92f0600"),
    }


def test_a_springboard_out_of_reach_is_a_defect() -> None:
    far = window(Insn(0xC0100000, b"\xfa", "cli"), length=3, springboard=0xC0100082)
    with pytest.raises(ValueError, match=r"^the springboard of the window at 0xc0100000 is out of reach$"):
        trampoline.edits([trampoline.build(far, HOME)])


def test_the_shadow_of_sti_reaches_its_next_instruction() -> None:
    """Padding goes before `sti`, never after it."""
    insns = (Insn(0xC0100000, b"\xfb", "sti"), Insn(0xC0100001, b"\xc3"))
    built = trampoline.build(window(*insns, sites=(site(0xC0100000, "fb", "sti"),), resume=None), HOME)
    assert built.code == bytes.fromhex("66666690 fb c3")


def test_a_call_returns_into_the_trampoline() -> None:
    at = 0xC0100000
    call = Insn(at + 1, bytes.fromhex("e8fa0f0000"), None, Branch.CALL, at + 0x1000)
    insns = (Insn(at, b"\xfa", "cli"), call)
    built = trampoline.build(window(*insns, sites=(site(at, "fa", "cli"),), resume=at + 6), 0xC0108000)
    cpu = Uc(UC_ARCH_X86, UC_MODE_32)
    cpu.mem_map(at, 0x10000)
    cpu.mem_write(at + 0x1000, b"\xc3")
    cpu.mem_write(built.start, built.code)
    cpu.reg_write(UC_X86_REG_ESP, at + 0xF000)
    cpu.emu_start(built.start, at + 6, count=20)
    assert cpu.reg_read(UC_X86_REG_EIP) == at + 6
    assert cpu.reg_read(UC_X86_REG_ESP) == at + 0xF000
