# SPDX-License-Identifier: GPL-2.0-only
"""IN and OUT where IOPL and the task's bitmap of ports decide, and what a refused one leaves behind."""

from __future__ import annotations

import pytest

from tests.e2e.qemu import needs_qemu
from tests.native.bare import put
from tests.native.corners import (
    ABSENT,
    BITMAP,
    CODE3,
    DATA,
    DATA0,
    DATA3,
    GDT,
    KERNEL_STACK,
    LOW,
    TASK,
    TSS,
    TSS16,
    USER_STACK,
    Case,
    differences,
    more,
    run,
    run_all,
    store,
)
from tests.native.guest import CODE
from vmi.native.wiring import Stop
from vmi.x86 import GuestFault, Vector

P = 0x680  # a port that no device has, at the start of a byte of the bitmap
SIZES = {1: ("in al,dx", "out dx,al"), 2: ("in ax,dx", "out dx,ax"), 4: ("in eax,dx", "out dx,eax")}
STRINGS = ("insb", "insw", "insd", "outsb", "outsw", "outsd")
GP, PF, DB, DONE = 13, 14, 1, 0x20


def bits(port, value):
    """Code that sets the byte of the bitmap that a port is in."""
    return f"mov byte ptr [{BITMAP + port // 8}],{value}"


def task(limit, base=TSS):
    """Code that loads a task register with other bounds."""
    low, high = base << 16 & 0xFFFFFFFF | limit, base & 0xFF000000 | 0x8900 | base >> 16 & 0xFF
    return (
        f"mov dword ptr [{GDT + TASK}],{low} | mov dword ptr [{GDT + TASK + 4}],{high}"
        f" | mov eax,{TASK} | ltr ax"
    )


DENY = bits(P, 0xFF)
TSS_ELSEWHERE = (
    f"{task(0x2FFF, ABSENT - 0x1000)} | mov dword ptr [{ABSENT - 0x1000 + 4}],{KERNEL_STACK}"
    f" | mov dword ptr [{ABSENT - 0x1000 + 8}],{DATA0} | mov word ptr [{ABSENT - 0x1000 + 0x66}],"
)


# -- who may --------------------------------------------------------------------------------------


@pytest.mark.parametrize("iopl", range(4))
@pytest.mark.parametrize("access", ["in al,dx", "out dx,al"])
def test_iopl_and_ring(iopl, access):
    """Ring 0 always may, ring 3 with IOPL 3 or by the bitmap."""
    flags, source = iopl << 12 | 2, f"mov edx,{P} | here@: {access}"
    inner, allowed, denied = run_all(
        [
            Case("ring 0", f"{DENY} | push {flags} | popfd | {source}"),
            Case("allowed", user=source, flags=flags),
            Case("denied", DENY, user=source, flags=flags),
        ]
    )
    assert [inner.event.vector, allowed.event.vector] == [DONE, DONE]
    assert denied.event.vector == (DONE if iopl == 3 else GP)
    if iopl < 3:
        assert denied.event.error == 0
        assert denied.event.frame == (denied.at("here"), CODE3, flags, USER_STACK, DATA3)


@pytest.mark.parametrize("iopl", range(4))
def test_virtual_8086_mode_asks_the_bitmap_whatever_iopl_is(iopl):
    case = {"low": f"mov dx,{P} | in al,dx | ud2", "v86": True, "flags": iopl << 12 | 2}
    allowed, denied = run_all([Case("allowed", **case), Case("denied", DENY, **case)])
    assert (allowed.event.vector, allowed.event.eip) == (6, 4)
    assert (denied.event.vector, denied.event.error) == (GP, 0)
    assert denied.event.frame[:3] == (3, LOW >> 4, iopl << 12 | 0x20002)


def test_real_mode_has_no_bitmap():
    code = f"{DENY} | mov eax,0x10 | mov cr0,eax | mov edx,{P} | in al,dx | mov eax,0x80000011 | mov cr0,eax"
    assert run(Case("", code)).event.vector == DONE


@pytest.mark.parametrize("size", SIZES)
def test_each_port_of_an_access_is_asked_for(size):
    """One port is denied: an access is refused exactly if it touches it, in one byte of the bitmap or two."""
    wanted, cases = [], []
    for denied in range(P + 3, P + 10):
        for port in range(P + 1, P + 10):
            for access in SIZES[size]:
                cases.append(Case("", bits(denied, 1 << denied % 8), user=f"mov edx,{port} | {access}"))
                wanted.append(GP if port <= denied < port + size else DONE)
    assert [seen.event.vector for seen in run_all(cases)] == wanted


def test_bitmap_beyond_the_limit():
    """The processor reads two bytes of it, and both must be there."""
    at = BITMAP - TSS + P // 8
    limits = {0x66: GP, 0x67: GP, 0x68: GP, at - 1: GP, at: GP, at + 1: DONE, at + 2: DONE}
    seen = run_all([Case("", task(limit), user=f"mov edx,{P} | in al,dx") for limit in limits])
    assert [one.event.vector for one in seen] == list(limits.values())


def test_where_the_bitmap_begins():
    begins = {0xFFFF: GP, 0x2FFF: GP, 0x2FFE - P // 8: DONE, 0x2FFF - P // 8: GP, 0x68: DONE}
    code = f"mov word ptr [{TSS + 0x66}],"
    seen = run_all([Case("", f"{code}{begin}", user=f"mov edx,{P} | in al,dx") for begin in begins])
    assert [one.event.vector for one in seen] == list(begins.values())


@pytest.mark.parametrize("limit", [0x2B, 0x2FFF])
def test_task_of_16_bits_has_no_bitmap(limit):
    stack = f"mov dword ptr [{TSS + 2}],{0x6000 | DATA0 << 16}"
    code = f"mov word ptr [{GDT + TSS16}],{limit} | mov eax,{TSS16} | ltr ax | {stack}"
    seen = run(Case("", code, user=f"mov edx,{P} | here@: in al,dx"))
    assert (seen.event.vector, seen.event.eip) == (GP, seen.at("here"))


@pytest.mark.parametrize(("begin", "address"), [(0x1000, ABSENT + P // 8), (0xFFF - P // 8, ABSENT)])
def test_bitmap_that_is_not_in_memory_is_a_page_fault(begin, address):
    seen = run(Case("", f"{TSS_ELSEWHERE}{begin}", user=f"mov edx,{P} | here@: in al,dx"))
    event = seen.event
    assert (event.vector, event.error, event.cr2, event.eip) == (PF, 0, address, seen.at("here"))


# -- what a refused one leaves behind -------------------------------------------------------------


@pytest.mark.parametrize("access", [one for pair in SIZES.values() for one in pair])
def test_registers_and_flags_are_untouched(access):
    registers = "mov ebx,0x11 | mov ecx,0x22 | mov ebp,0x55 | mov esi,0x66 | mov edi,0x77"
    seen = run(
        Case("", DENY, user=f"mov edx,{P} | {registers} | mov eax,0x4455667f | add al,1 | here@: {access}")
    )
    event = seen.event
    found = (event.eax, event.ebx, event.ecx, event.edx, event.ebp, event.esi, event.edi)
    assert found == (0x44556680, 0x11, 0x22, P, 0x55, 0x66, 0x77)
    assert event.frame == (seen.at("here"), CODE3, 0x892, USER_STACK, DATA3)


@pytest.mark.parametrize("name", STRINGS)
def test_string_access_refused_at_once(name):
    """INS has stored zero where it was to store: the only trace."""
    size = {"b": 1, "w": 2, "d": 4}[name[-1]]
    registers = f"mov esi,{DATA} | mov edi,{DATA + 16} | mov edx,{P} | mov ecx,3 | stc | std"
    length = 3 if size == 2 else 2
    seen = run(
        Case(
            "",
            f"{DENY} | {store(DATA + 16, '11223344')} | {more(1, coded=[GP], advance=length)}",
            user=f"{registers} | here@: rep {name} | mov eax,[{DATA + 16}]",
        )
    )
    event, behind = seen.events
    assert (event.vector, event.error, event.eip) == (GP, 0, seen.at("here"))
    assert (event.esi, event.edi, event.ecx, event.edx) == (DATA, DATA + 16, 3, P)
    assert event.frame[2] == 0x403
    cleared = (0x44332211 >> 8 * size << 8 * size) & 0xFFFFFFFF if name.startswith("ins") else 0x44332211
    assert behind.eax == cleared


@pytest.mark.parametrize(("name", "size"), [("insb", 1), ("insw", 2), ("insd", 4)])
def test_string_access_refused_in_a_later_round(name, size):
    """A repeated INS that overwrites the bitmap that allows it: the rounds before it are done."""
    at = BITMAP + P // 8 - 8
    seen = run(Case("", user=f"mov edi,{at} | mov edx,{P} | mov ecx,30 | stc | here@: rep {name}"))
    event = seen.event
    rounds = 8 // size + 1
    assert (event.vector, event.error, event.eip) == (GP, 0, seen.at("here"))
    assert (event.ecx, event.edi) == (30 - rounds, at + rounds * size)
    assert event.frame[2] == 3


def test_string_access_of_no_rounds_asks_for_nothing():
    """As the manual has it; QEMU refuses it."""
    cases = [Case("", DENY, user=f"mov edx,{P} | xor ecx,ecx | rep {name}") for name in STRINGS]
    assert [seen.event.vector for seen in run_all(cases)] == [DONE] * len(STRINGS)


def test_page_fault_of_a_string_access_comes_first():
    """QEMU asks for the port first; the access is refused when the page has come."""
    for name in STRINGS:
        seen = run(Case("", DENY, user=f"mov edx,{P} | mov esi,{ABSENT} | mov edi,{ABSENT} | here@: {name}"))
        assert (seen.event.vector, seen.event.cr2, seen.event.eip) == (PF, ABSENT, seen.at("here"))


@pytest.mark.parametrize(
    ("access", "length"), [("in al,dx", 1), ("out dx,al", 1), ("insb", 1), ("rep outsb", 2)]
)
def test_single_step_of_a_refused_access(access, length):
    """There is the #GP only, and DR6 knows of no step; behind its handler the stepping goes on."""
    seen = run(
        Case(
            "",
            f"{DENY} | {more(2, coded=[GP], advance=length)}",
            user=f"mov esi,{DATA} | mov edi,{DATA} | mov edx,{P} | mov ecx,2 | push 0x102 | popfd"
            f" | here@: {access} | there@: nop | nop | nop | nop",
        )
    )
    first, second, third = seen.events
    assert (first.vector, first.eip, first.frame[2], first.dr6) == (GP, seen.at("here"), 0x102, 0xFFFF0FF0)
    behind = [seen.at("there") + 1, seen.at("there") + 2]
    assert [(event.vector, event.eip, event.dr6) for event in (second, third)] == [
        (DB, at, 0xFFFF4FF0) for at in behind
    ]


@pytest.mark.parametrize("flags", [2, 0x102])
@pytest.mark.parametrize("code", ["ec", "ee"])
def test_refused_access_at_the_end_of_a_page_whose_next_is_absent(code, flags):
    at = ABSENT - 1
    user = f"mov edx,{P} | mov eax,{at} | push {flags} | popfd | jmp eax"
    denied, allowed = run_all(
        [Case("", f"{DENY} | {store(at, code)}", user=user), Case("", store(at, code), user=user)]
    )
    if flags == 2:
        event = denied.event
        assert (event.vector, event.error, event.eip) == (GP, 0, at)
        assert (allowed.event.vector, allowed.event.cr2, allowed.event.eip) == (PF, ABSENT, ABSENT)
    else:
        assert [seen.event.vector for seen in (denied, allowed)] == [DB, DB]


def test_breakpoint_behind_a_refused_access_has_not_been_reached():
    arm = "mov eax,{b@} | mov dr0,eax | mov eax,3 | mov dr7,eax"
    seen = run(Case("", f"{DENY} | {arm}", user=f"mov edx,{P} | here@: in al,dx | b@: nop"))
    assert (seen.event.vector, seen.event.eip, seen.event.dr6) == (GP, seen.at("here"), 0xFFFF0FF0)


def test_interrupt_shadow_is_over_behind_a_refused_access(cpu, bus):
    put(cpu, "sti\nin al,0x80\nnop")
    bus.act = lambda: cpu.refuse() if bus.log[-1] == ("in", 0x80, 1) else None
    assert cpu.run(100) is Stop.BUDGET
    assert bus.log == [("in", 0x80, 1), (GP, False, 0, CODE + 1)]
    assert (cpu.eip, cpu.irq_shadow) == (CODE + 1, False)


def test_refusal_with_another_fault(cpu, bus):
    put(cpu, "out 0x80,al\nnop")
    fault = GuestFault(Vector.PF, 4, 0x12345)
    bus.act = lambda: cpu.refuse(fault) if bus.log[-1][0] == "out" else None
    cpu.run(100)
    assert bus.log[1:] == [(PF, False, 4, CODE)]
    assert cpu.cr2 == 0x12345


def test_refused_access_takes_its_time(cpu, bus):
    """It counts as an instruction, so a guest that retries for ever has an end."""
    put(cpu, "in al,0x80")
    bus.act = lambda: cpu.refuse() if bus.log[-1][0] == "in" else None
    for _ in range(5):
        cpu.run(100)
    assert cpu.instructions == 5
    assert len(bus.log) == 10


# -- the judge ------------------------------------------------------------------------------------


def _cases():
    """All of the above and their surroundings, but for what QEMU does otherwise."""
    quiet = "mov eax,0"  # what an absent port gives is not the matter here
    for iopl in range(4):
        flags = iopl << 12 | 2
        for value in (0, 0xFF):
            yield Case(
                f"ring 3, IOPL {iopl}, {value}", bits(P, value), flags=flags,
                user=f"mov edx,{P} | in al,dx | out dx,al",
            )  # fmt: skip
            yield Case(
                f"virtual 8086, IOPL {iopl}, {value}", bits(P, value), v86=True, flags=flags,
                low=f"mov dx,{P} | in al,dx | out dx,al | int 0x20",
            )  # fmt: skip
    for size, pair in SIZES.items():
        for port in range(P - 4, P + 9):
            for access in pair:
                user = f"mov edx,{port} | stc | mov eax,0x44556677 | {access} | {quiet}"
                yield Case(f"{access} at {port:#x}", bits(P, 1), user=user)
        user = f"mov edx,{P + 4} | {pair[0]} | {quiet}"
        for limit in (0x66, 0x67, 0x68, *(BITMAP - TSS + P // 8 + n for n in range(-1, 3))):
            yield Case(
                f"limit {limit:#x}, {size}", task(limit), user=f"mov edx,{P + 4} | {pair[0]} | {quiet}"
            )
    for begin in (0x67, 0xFFFF, 0xDFFF, 0x2FFF, 0, 0x2FFE - P // 8, 0x2FFF - P // 8):
        code = f"mov word ptr [{TSS + 0x66}],{begin}"
        yield Case(f"bitmap at {begin:#x}", code, user=f"mov edx,{P} | in al,dx")
    yield Case("last port", user=f"mov edx,0xffff | in al,dx | out dx,eax | {quiet}")
    yield Case("absent bitmap", f"{TSS_ELSEWHERE}0x1000", user=f"mov edx,{P} | in al,dx")
    yield Case("half a bitmap", f"{TSS_ELSEWHERE}{0xFFF - P // 8}", user=f"mov edx,{P} | in al,dx")
    registers = f"mov esi,{DATA} | mov edi,{DATA + 16} | mov edx,{P} | mov ecx,3 | stc | std"
    for name in STRINGS:
        yield Case(f"{name} denied", f"{DENY} | mov dword ptr [{DATA}],1", user=f"{registers} | rep {name}")
        yield Case(f"{name} allowed", user=f"{registers} | rep {name}")
        yield Case(f"{name} stepped", DENY, user=f"{registers} | push 0x102 | popfd | rep {name} | nop | nop")
        at = ABSENT - 2
        user = f"mov esi,{at} | mov edi,{at} | mov edx,{P} | mov ecx,5 | rep {name}"
        yield Case(f"{name} absent", user=user)
    for name, size in (("insb", 1), ("insw", 2), ("insd", 4)):
        user = f"mov edi,{BITMAP + P // 8 - 8} | mov edx,{P} | mov ecx,30 | rep {name}"
        yield Case(f"{name} in a later round, {size}", user=user)
    yield Case("port of the code itself", DENY, user=f"mov al,0x7f | add al,1 | mov edx,{P} | out dx,al")
    yield Case("flags of a loop", DENY, user=f"mov edx,{P} | mov ecx,3 | l@: loop l@ | cmp ecx,5 | out dx,al")
    yield Case("locked", user=".byte 0xf0,0xe4,0x80")
    yield Case(
        "stepped on", f"{DENY} | {more(3, coded=[GP], advance=1)}",
        user=f"mov edx,{P} | push 0x102 | popfd | in al,dx | nop | nop | nop | nop | nop",
    )  # fmt: skip
    debug = f"mov eax,{P} | mov dr0,eax | mov eax,8 | mov cr4,eax | mov eax,0x20003 | mov dr7,eax"
    user = f"mov edx,{P} | out dx,al | nop"
    for name, code in (("denied", DENY), ("allowed", "nop")):
        yield Case(
            f"breakpoint on the port, {name}", f"{code} | {debug}", user=f"mov edx,{P} | out dx,al | nop"
        )


@pytest.mark.e2e
@needs_qemu
def test_as_under_qemu(tmp_path):
    assert differences(tmp_path, list(_cases())) == []
