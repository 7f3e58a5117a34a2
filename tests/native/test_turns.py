# SPDX-License-Identifier: GPL-2.0-only
"""Several processors: how they start, what is each one's own, how their times agree, and that runs repeat."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.native.guest import CODE, GDT, MS, Guest
from tests.native.test_snapshot import fingerprint
from vmi import samples
from vmi.errors import UsageError
from vmi.native.cpuid import MODELS
from vmi.native.event_log import EventLog
from vmi.native.machine import Machine, Outcome
from vmi.patcher import patch
from vmi.rom.build import build
from vmi.run import run_kernel

ICR, ICR_HIGH = 0xFEE00300, 0xFEE00310
INIT, STARTUP, TO_ONE = 0x4500, 0x4600, f"mov dword ptr [{ICR_HIGH:#x}],0x1000000"
PAGE = 0x12  # where the second processor begins, in pages
SHARED = 0x7000
TABLE_POINTER = 0x7100
DONE = "mov al,1 | out 0xf4,al | hlt"
# Real mode to 32 bits at label "other": lgdt [7100h], CR0.PE, far jump.
TO_32_BITS = "fa 66 0f 01 16 00 71 0f 20 c0 0c 01 0f 22 c0 66 ea"


def messages(*values: int) -> str:
    """Code that sends messages to processor 1; the last one is followed by nothing."""
    return " | ".join((TO_ONE, *(f"mov dword ptr [{ICR:#x}],{value:#x}" for value in values)))


START = messages(INIT, STARTUP | PAGE)


def two(source: str, code: str = "", *, cpus: int = 2) -> Guest:
    """A guest whose second processor executes ``code``, in hexadecimal; by default that at label "other".

    The others are as after power-on, when no firmware has touched them yet.
    """
    guest = Guest(source, cpus=cpus)
    guest.memory.write(TABLE_POINTER, (0xFFF).to_bytes(2, "little") + GDT.to_bytes(4, "little"))
    other = guest.labels.get("other", 0).to_bytes(4, "little").hex()
    guest.memory.write(PAGE << 12, bytes.fromhex(code or f"{TO_32_BITS} {other} 08 00"))
    return guest


FLAT = "mov eax,0x10 | mov ds,eax | mov es,eax | mov ss,eax | mov esp,0x9000"
RETURN = "mov dword ptr [0x7ffc],1 | cli | hlt"


def ended(guest: Guest, ms: int = 100) -> None:
    end = guest.machine.run(ms * MS)
    assert end.outcome is Outcome.DEBUG_EXIT, end.reason


# -- whole kernels ------------------------------------------------------------------------------


@pytest.mark.parametrize("cpus", [1, 2, 3, 8])
def test_the_sample_kernel_sees_nothing_wrong(cpus: int) -> None:
    sample = samples.get("smp")
    result = run_kernel(sample.path.read_bytes(), cpus=cpus, timeout_ns=1000 * MS)
    assert (result.console.decode(), result.exit_status) == (sample.expected, sample.exit_status)
    assert ("processor switch" in result.exits) == (cpus > 1)


def test_it_sees_nothing_wrong_when_patched_and_behind_the_native_rom() -> None:
    sample = samples.get("smp")
    image = patch(sample.path.read_bytes()).data
    for rom in (None, build("native").image):
        result = run_kernel(image, rom=rom, model=MODELS["i686-apic"], cpus=3, timeout_ns=1000 * MS)
        assert (result.console.decode(), result.exit_status) == (sample.expected, sample.exit_status)


def smp(cpus: int) -> Machine:
    machine = Machine(ram=8 << 20, cpus=cpus)
    machine.load(samples.get("smp").path.read_bytes())
    return machine


def test_two_runs_are_the_same() -> None:
    first, second = smp(4), smp(4)
    ends = [machine.run(1000 * MS) for machine in (first, second)]
    assert ends[0] == ends[1]
    assert ends[0].outcome is Outcome.DEBUG_EXIT
    assert fingerprint(first) == fingerprint(second)


def test_a_run_goes_on_from_a_snapshot(tmp_path: Path) -> None:
    whole = smp(3)
    end = whole.run(1000 * MS)
    machine, cuts = smp(3), 0
    while (now := machine.run(400_000)).outcome is Outcome.TIMEOUT:
        machine.save(tmp_path / "snapshot")
        machine = Machine.restore(tmp_path / "snapshot")
        cuts += 1
    assert now == end
    assert cuts >= 3
    assert fingerprint(machine) == fingerprint(whole)


# -- starting -----------------------------------------------------------------------------------


def test_a_processor_begins_in_real_mode_at_its_page() -> None:
    store_cs_and_edx = "8c c8 a3 00 70 66 89 16 04 70 c6 06 fc 7f 01 f4"
    guest = two(f"{START} | l: cmp byte ptr [0x7ffc],0 | je l | {DONE}", store_cs_and_edx)
    ended(guest)
    assert guest.memory.read(SHARED, 2) == (PAGE << 8).to_bytes(2, "little")
    assert guest.memory.u32(SHARED + 4) == guest.machine.model.signature


COUNT = "ff 06 00 70 f4"  # inc word [7000h], hlt
WAIT = "mov ecx,20000 | l{0}: dec ecx | jnz l{0}"


@pytest.mark.parametrize(
    ("sent", "starts"),
    [
        ([INIT, STARTUP | PAGE], 1),
        ([STARTUP | PAGE], 1),  # it waits for one since power-on
        ([INIT, STARTUP | PAGE, 0, STARTUP | PAGE, 0, STARTUP | PAGE], 1),
        ([INIT, STARTUP | PAGE, 0, INIT, STARTUP | PAGE], 2),
        ([INIT, STARTUP | PAGE, 0, INIT, 0xC500 & ~0x4000 | 0x8000], 1),
        ([INIT], 0),
    ],
)
def test_start_up_messages(sent: list[int], starts: int) -> None:
    """A 0 stands for time in which the processor does its work."""
    parts = [WAIT.format(n) if value == 0 else messages(value) for n, value in enumerate([*sent, 0])]
    guest = two(" | ".join((*parts, DONE)), COUNT)
    ended(guest)
    assert guest.memory.u32(SHARED) == starts


def test_firmware_has_started_and_halted_the_others_before_a_kernel() -> None:
    """So only INIT brings one to wait for a start-up message."""
    for sent, starts in (([STARTUP | PAGE], 0), ([INIT, STARTUP | PAGE], 1)):
        source = f"{messages(*sent)} | {WAIT.format(0)} | {DONE}"
        guest = two(source, COUNT)
        eip = guest.cpu.eip
        guest.machine.load(guest.assembled.code, protocol="flat", address=CODE)
        assert guest.cpu.eip == eip
        ended(guest)
        assert guest.memory.u32(SHARED) == starts


def test_init_of_the_boot_processor_is_a_reset() -> None:
    guest = two(f"mov dword ptr [{ICR_HIGH:#x}],0 | mov dword ptr [{ICR:#x}],{INIT:#x} | hlt")
    end = guest.machine.run(MS)
    sentence = "the guest reset the machine through an INIT message to the boot processor"
    assert (end.outcome, end.reason) == (Outcome.RESET, sentence)


def test_all_halted_for_ever() -> None:
    guest = two(f"{START} | {WAIT.format(0)} | hlt", "f4")
    end = guest.machine.run(MS)
    assert end.outcome is Outcome.HALTED


def test_a_halted_processor_wakes_another_one() -> None:
    """The boot processor sleeps with interrupts off; what wakes the machine is the other one's own timer."""
    guest = two(
        f"{START} | hlt"
        f" | other: {FLAT} | mov dword ptr [0xfee000f0],0x1ff | mov dword ptr [0xfee00320],0x40"
        f" | mov dword ptr [0xfee00380],50000 | lidt [0x7110] | sti | hlt | {DONE} | h: iretd"
    )
    guest.memory.write(0x7110, (0x7FF).to_bytes(2, "little") + (0x2000).to_bytes(4, "little"))
    guest.handle(0x40, "h")
    ended(guest)
    assert guest.machine.exits["interrupt"] == 1


# -- what is each one's own -----------------------------------------------------------------------


def test_who_is_who() -> None:
    """The APIC's ID in its register and in CPUID, and the boot processor's bit in APIC_BASE."""
    look = (
        "mov eax,[0xfee00020] | mov [{0:#x}],eax | mov eax,1 | cpuid | mov [{0:#x}+4],ebx"
        " | mov ecx,0x1b | rdmsr | mov [{0:#x}+8],eax"
    )
    guest = two(
        f"{START} | {look.format(SHARED)} | l: cmp byte ptr [0x7ffc],0 | je l | {DONE}"
        f" | other: {FLAT} | {look.format(SHARED + 16)} | {RETURN}"
    )
    ended(guest)
    words = [guest.memory.u32(SHARED + 4 * n) for n in range(8)]
    assert (words[0] >> 24, words[1] >> 24, words[2]) == (0, 0, 0xFEE00900)
    assert (words[4] >> 24, words[5] >> 24, words[6]) == (1, 1, 0xFEE00800)


def test_registers_of_the_fpu_and_of_sse() -> None:
    use = "fninit | {0} | mov eax,{1} | movd xmm3,eax"
    spin = "l{0}: pause | cmp dword ptr [{1:#x}],0 | je l{0}"
    guest = two(
        f"mov eax,cr4 | or eax,0x200 | mov cr4,eax | {use.format('fld1', 7)} | {START}"
        f" | {spin.format(0, 0x7010)} | fstp dword ptr [0x7000] | movd eax,xmm3 | mov [0x7004],eax"
        f" | mov dword ptr [0x7014],1 | {spin.format(1, 0x7FFC)} | {DONE}"
        f" | other: {FLAT} | mov eax,cr4 | or eax,0x200 | mov cr4,eax | {use.format('fldz', 9)}"
        f" | mov dword ptr [0x7010],1 | {spin.format(2, 0x7014)}"
        f" | fstp dword ptr [0x7008] | movd eax,xmm3 | mov [0x700c],eax | {RETURN}"
    )
    ended(guest)
    assert [guest.memory.u32(SHARED + 4 * n) for n in range(4)] == [0x3F800000, 7, 0, 9]


def test_breakpoints() -> None:
    """One in a debug register stops its own processor only, also after others have had their turns."""
    guest = two(
        f"mov eax,[0x7020] | mov dr0,eax | mov eax,1 | mov dr7,eax | {START}"
        f" | l: pause | cmp byte ptr [0x7ffc],0 | je l | call here | {DONE}"
        f" | other: {FLAT} | call here | call here | {RETURN}"
        " | here: inc dword ptr [0x7000] | ret"
        " | trap: inc dword ptr [0x7004] | or dword ptr [esp+8],0x10000 | iretd"
    )
    guest.handle(1, "trap")
    guest.memory.put_u32(0x7020, guest.labels["here"])
    ended(guest)
    assert (guest.memory.u32(SHARED), guest.memory.u32(SHARED + 4)) == (3, 1)


# -- time -----------------------------------------------------------------------------------------


def test_time_never_runs_backwards_from_one_to_the_other() -> None:
    """Both look at the time stamp counter in turn, under a lock, and compare it with the last look."""
    look = (
        "mov ebx,2000 | n{0}: | t{0}: mov eax,1 | xchg eax,[0x7000] | test eax,eax | jnz t{0}"
        " | rdtsc | cmp edx,[0x7008] | jb bad | ja g{0} | cmp eax,[0x7004] | jb bad"
        " | g{0}: mov [0x7004],eax | mov [0x7008],edx | mov dword ptr [0x7000],0 | dec ebx | jnz n{0}"
    )
    guest = two(
        f"{START} | {look.format(0)} | l: cmp byte ptr [0x7ffc],0 | je l | {DONE}"
        f" | other: {FLAT} | {look.format(1)} | {RETURN} | bad: mov al,2 | out 0xf4,al | hlt"
    )
    end = guest.machine.run(100 * MS)
    assert (end.outcome, end.value) == (Outcome.DEBUG_EXIT, 1)


def test_they_run_side_by_side() -> None:
    """Twice the work in the same guest time: 200,000 instructions of 10 ns on each."""
    work = "mov ecx,100000 | w{0}: dec ecx | jnz w{0}"
    guest = two(
        f"{START} | {work.format(0)} | l: pause | cmp byte ptr [0x7ffc],0 | je l | {DONE}"
        f" | other: {FLAT} | {work.format(1)} | {RETURN}"
    )
    ended(guest)
    assert guest.machine.instructions > 400_000
    assert 2_000_000 < guest.machine.clock.now() < 2_500_000


def test_who_spins_gives_up_its_turn() -> None:
    work = "mov ecx,100000 | w: dec ecx | jnz w"
    guest = two(
        f"{START} | l: pause | cmp byte ptr [0x7ffc],0 | je l | {DONE} | other: {FLAT} | {work} | {RETURN}"
    )
    ended(guest)
    assert 200_000 < guest.machine.instructions < 205_000
    assert guest.machine.clock.now() > 2_000_000


def test_a_short_delay_is_not_stretched() -> None:
    """Eight PAUSEs while the other one works, then a look at the time: no turn was given up."""
    guest = two(
        f"{START} | rdtsc | mov esi,eax | {' | '.join(['pause'] * 8)} | rdtsc | sub eax,esi"
        f" | mov [0x7000],eax | {DONE} | other: l: jmp l"
    )
    ended(guest)
    assert guest.memory.u32(SHARED) < 20


# -- the outside ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"cpus": 0}, "there can be 1 to 8 processors, but 0 were asked for"),
        ({"cpus": 9}, "there can be 1 to 8 processors, but 9 were asked for"),
        ({"cpus": 2, "model": MODELS["486"]}, "several processors need APICs, but the model 486 has none"),
    ],
)
def test_numbers_that_are_refused(options: dict[str, object], sentence: str) -> None:
    with pytest.raises(UsageError) as raised:
        Machine(**options)  # type: ignore[arg-type]
    assert str(raised.value) == sentence


def test_the_log_says_who() -> None:
    lines: list[str] = []
    source = f"{START} | l: cmp byte ptr [0x7ffc],0 | je l | {DONE}"
    guest = two(f"{source} | other: {FLAT} | out 0x80,al | {RETURN}")
    machine, turns = guest.machine, guest.machine.turns
    assert turns is not None
    machine.log = EventLog(
        EventLog.parse("ports,cpu"),
        lines.append,
        machine.clock.now,
        lambda: (0, machine.cpu.eip),
        processor=lambda: turns.current.number,
    )
    ended(guest)
    assert [line.split(None, 3)[1] for line in lines] == ["cpu1", "cpu1", "cpu0", "cpu0"]
    assert "processor 1 begins at a start-up message for page 12" in lines[0]
