# SPDX-License-Identifier: GPL-2.0-only
"""Code at the end of a page whose next one is absent: only the instruction that needs it faults.

The emulator fetches whole blocks, so a block that runs on into the page would fault before it begins.
"""

from __future__ import annotations

import pytest

from tests.e2e.qemu import needs_qemu
from tests.native.corners import ABSENT, DATA, TABLE, Case, differences, idt_gate, more, run, run_all, store
from tests.native.guest import CODE, Guest
from vmi.native.wiring import Stop

DB, UD, PF, DONE = 1, 6, 14, 0x20
END = ABSENT


def tail(code, *, before="nop", filler="nop", user=False):
    """A case that jumps to machine code, given in hexadecimal, that ends with the page."""
    at = END - len(bytes.fromhex(code))
    jump = f"{filler} | mov ebx,{at} | jmp ebx"
    setup = f"{store(at, code)} | {before}"
    return Case(code, setup, user=jump) if user else Case(code, f"{setup} | {jump}")


def fault(seen):
    """Vector, EIP, error code and CR2."""
    return seen.event.vector, seen.event.eip, seen.event.error, seen.event.cr2


@pytest.mark.parametrize("user", [False, True])
@pytest.mark.parametrize("count", [1, 2, 3, 40])
def test_instructions_in_front_are_done(user, count):
    seen = run(tail("40" * count, filler="xor eax,eax", user=user))  # inc eax
    assert fault(seen) == (PF, END, 4 if user else 0, END)
    assert seen.event.eax == count


@pytest.mark.parametrize("inside", [1, 2, 3, 4])
def test_instruction_across_the_end_faults_at_itself(inside):
    seen = run(tail("40" + "b801020304"[: 2 * inside], filler="xor eax,eax"))  # inc eax; mov eax, 4030201h
    assert fault(seen) == (PF, END - inside, 0, END)
    assert seen.event.eax == 1


@pytest.mark.parametrize(
    ("code", "vector", "back"),
    [("400f0b", UD, 2), ("40f7f1", 0, 2), ("40cd21", 0x21, 0), ("40cc", 3, 0), ("40a30000b000", PF, 5)],
)
def test_event_at_the_end_is_that_of_its_instruction(code, vector, back):
    """UD2, DIV, INT, INT3 and a store to an absent page."""
    before = f"mov dword ptr [{TABLE + 4 * 0xB0}],0 | mov eax,0xb0000 | invlpg [eax]"
    seen = run(tail(code, before=before, filler="xor ecx,ecx | xor eax,eax"))
    assert (seen.event.vector, seen.event.eip, seen.event.eax) == (vector, END - back, 1)


FLAGS = {
    "add": "0401",
    "cmp": "3c05",
    "inc": "fec0",
    "shl": "d0e0",
    "neg": "f6d8",
    "mul": "f6e0",
    "repe cmpsb": "f3a6",
    "repe scasb": "f3ae",
}


REGISTERS = f"mov eax,0x7f | mov ecx,2 | mov esi,{DATA} | mov edi,{DATA}"


def _flags(code, behind):
    """Flags made in one block and used in the next, which runs on."""
    return tail(code + behind + "0f90c1 0f92c5 9c 5a", filler=REGISTERS)


@pytest.mark.parametrize("behind", ["", "eb00", "9090"])
@pytest.mark.parametrize("name", FLAGS)
def test_flags(name, behind):
    """SETO, SETC and PUSHF behind the fault see what they see elsewhere."""
    code = f"{FLAGS[name]}{behind}0f90c10f92c59c5a"
    here = f".byte {','.join(str(byte) for byte in bytes.fromhex(code))}"
    there, plain = run_all([_flags(FLAGS[name], behind), Case("", f"{REGISTERS} | {here}")])
    assert there.event.vector == PF
    wanted, got = plain.event, there.event
    assert (got.eax, got.ecx, got.edx & 0xFFFF) == (wanted.eax, wanted.ecx, wanted.edx & 0xFFFF)
    assert got.frame[2] == wanted.frame[2]


def test_handler_brings_the_page_and_the_code_goes_on():
    code = "0401eb000f90c10f92c59c5a"
    at = END - len(bytes.fromhex(code))
    handler = (
        f"pf@: pushfd | push eax | mov dword ptr [{TABLE + 4 * (END >> 12)}],{DATA | 7} | mov eax,{END}"
        f" | invlpg [eax] | {store(END, 'cd20')} | pop eax | popfd | add esp,4 | iretd"
    )
    setup = f"{store(at, code)} | {idt_gate(PF, 'pf@', access=0x8E)}"
    seen = run(Case("", f"{setup} | mov eax,0x7f | mov ecx,0 | mov ebx,{at} | jmp ebx | {handler}"))
    assert (seen.event.vector, seen.event.eip) == (DONE, END + 2)
    assert (seen.event.eax & 0xFF, seen.event.ecx, seen.event.edx) == (0x80, 1, 0x892)


def test_data_next_to_the_code_is_no_code():
    """A load right behind the code, from the absent page, faults as a load: flags and count are right."""
    seen = run(tail("0401a10000 1a00 9090".replace(" ", ""), filler="mov eax,0x7f"))
    assert fault(seen) == (PF, END - 7, 0, END)
    assert seen.event.frame[2] == 0x892


def test_steps_up_to_the_end():
    seen = run(tail("40404040", filler=f"{more(6)} | push 0x102 | popfd"))
    ends = [(event.vector, event.eip) for event in seen.events]
    assert ends[2:] == [(DB, END - 3), (DB, END - 2), (DB, END - 1), (DB, END), (PF, END)]


def test_budget_is_exact_there():
    guest = Guest("h: hlt", {PF: "h"})
    guest.page(0x31000)
    cpu = guest.cpu
    for budget in range(1, 9):
        guest.cpu.write_memory(0x30FFA, b"\x40" * 6)
        cpu.eip, cpu.eax, before = 0x30FFA, 0, cpu.instructions
        cpu.run(budget)
        assert cpu.instructions - before == cpu.eax == min(budget, 6)
        assert cpu.eip == (0x30FFA + budget if budget < 6 else guest.labels["h"])


def test_code_that_runs_out_of_memory(cpu):
    """There the whole block is lost; nothing can go on anyway."""
    cpu.write_memory(0x1FFFFE, b"\x40\x40")
    cpu.eip = 0x1FFFFE
    assert cpu.run(100) is Stop.UNMAPPED


def test_loop_that_ends_with_the_page():
    """It never needs the next page, however often it comes by."""
    guest = Guest(f"h: hlt | .org {CODE + 0xFFC} | l: inc eax | .byte 0xe2,0xfd | nop", {PF: "h"})
    guest.page(CODE + 0x1000)
    guest.cpu.eip, guest.cpu.ecx, guest.cpu.eax = guest.labels["l"], 1000, 0
    guest.run()
    assert guest.cpu.eax == 1000
    assert guest.cpu.cr2 == CODE + 0x1000
    assert guest.stack(2) == [0, CODE + 0x1000]


def _cases():
    for name, code in FLAGS.items():
        for behind in ("", "eb00", "90" * 5, "eb00" + "90" * 20, "eb00" + "90" * 40):
            yield Case(f"{name}, {behind}", _flags(code, behind).code)
    for code in (
        "0401a100001a0090", "0401eb00a100001a00" + "90" * 6, "0401eb00a300001a00" + "90" * 6,
        "0401b805", "b805",
        "0401f3aa0401", "90fbfa90", "16179090", "40cd21", "900f0b", "c605feff190041", "0401e2fc90",
    ):  # fmt: skip
        yield tail(code, filler=f"mov eax,0x7f | mov ecx,5 | mov edi,{DATA}")
    yield tail("40404040", user=True)
    yield tail("04010401", filler=f"{more(5)} | mov eax,0x7f | push 0x102 | popfd")


@pytest.mark.e2e
@needs_qemu
def test_as_under_qemu(tmp_path):
    assert differences(tmp_path, list(_cases())) == []
