# SPDX-License-Identifier: GPL-2.0-only
"""A guest that has a share of a processor finds out by its counters, and finds them consistent."""

from __future__ import annotations

import pytest

from tests.hypervisor.lab import Lab, exit_value
from tests.hypervisor.test_processors import START, two
from tests.native.guest import DONE, EOI, MS, PIC, timer
from vmi import samples
from vmi.abi import Counter
from vmi.errors import UsageError
from vmi.hypervisor.share import PERIOD_NS
from vmi.hypervisor.timer import NS_PER_CYCLE
from vmi.native.cpuid import I686_APIC
from vmi.native.machine import Outcome
from vmi.patcher import patch
from vmi.rom.build import build
from vmi.run import Setup, prepare, run_kernel

PERIOD = PERIOD_NS // NS_PER_CYCLE  # cycles
AT_ONCE = 64  # cycles that three calls in a row take at most, if nothing is stolen meanwhile

# Reads the stolen, the real, the available and again the stolen counter; if the first and the last agree,
# nothing was stolen in between, and the real one is the sum of the others but for the time of a call.
# ESI: rounds; EDI: those where it is not; the last values are at {at}.
READ = """
{name}: mov eax, 2
        call GetCycleCounter
        mov [{at} + 8], eax
        mov [{at} + 12], edx
        xor eax, eax
        call GetCycleCounter
        mov [{at}], eax
        mov [{at} + 4], edx
        mov eax, 1
        call GetCycleCounter
        mov [{at} + 16], eax
        mov [{at} + 20], edx
        mov eax, 2
        call GetCycleCounter
        cmp eax, [{at} + 8]
        jne {name}
        mov eax, [{at} + 16]
        mov edx, [{at} + 20]
        add eax, [{at} + 8]
        adc edx, [{at} + 12]
        sub eax, [{at}]
        sbb edx, [{at} + 4]
        jne {name}_bad
        cmp eax, {at_once}
        jb {name}_good
{name}_bad:
        inc edi
{name}_good:
        inc esi
"""
SEEN = 0x6000


def read(name: str, at: int = SEEN) -> str:
    source = READ
    for key, value in {"name": name, "at": str(at), "at_once": str(AT_ONCE)}.items():
        source = source.replace("{" + key + "}", value)
    return source


def seen(lab: Lab, at: int = SEEN) -> tuple[int, int, int]:
    """Real, available and stolen counter as the guest read them last."""
    real, stolen, available = (lab.u32(at + 8 * n) | lab.u32(at + 8 * n + 4) << 32 for n in range(3))
    return real, available, stolen


def counted(lab: Lab) -> list[int]:
    assert lab.domain is not None
    return [lab.domain.timer.count(counter) for counter in Counter]


def shared(source: str, percent: int, handlers: dict[int, str] | None = None) -> Lab:
    lab = Lab(source, handlers, "paravirt")
    assert lab.domain is not None
    lab.domain.share_processors(percent)
    return lab


BUSY = f"xor esi, esi\nxor edi, edi\n{read('again')}\njmp again"


@pytest.mark.parametrize("percent", [1, 25, 60, 99, 100])
def test_a_busy_guest_has_its_share(percent: int) -> None:
    """After ten periods; the first of them begins when the guest has run for one already."""
    lab = shared(BUSY, percent)
    limit = 10 * PERIOD_NS + PERIOD_NS * (100 - percent) // 100 + PERIOD_NS // 200
    assert lab.machine.run(limit).outcome is Outcome.TIMEOUT
    real, available, stolen = seen(lab)
    assert lab.cpu.edi == 0 and lab.cpu.esi > 1000
    assert stolen == 10 * PERIOD * (100 - percent) // 100
    assert real > 10 * PERIOD and 0 <= real - stolen - available + AT_ONCE < 2 * AT_ONCE
    now = counted(lab)
    assert now[0] == now[1] + now[2]
    assert lab.machine.exits["processor lost"] == (10 if percent < 100 else 0)


def test_the_same_share_is_the_same_run() -> None:
    ends = []
    for _ in range(2):
        lab = shared(BUSY, 40)
        lab.machine.run(35 * MS)
        ends.append((lab.memory.sha256(), lab.machine.instructions, seen(lab)))
    assert ends[0] == ends[1]


# The timer comes 14 ms after the start, which is 4 ms into the period that begins at 10 ms.
HALTED = f"""
        {PIC.replace(" | ", chr(10))}
        {timer(16705).replace(" | ", chr(10))}
        xor esi, esi
        xor edi, edi
        call Halt
        {read("done")}
        {DONE.replace(" | ", chr(10))}
irq:    pushad
        {EOI.replace(" | ", chr(10))}
        popad
        @iret
"""


@pytest.mark.parametrize(("percent", "waited_ms"), [(100, 0), (70, 0), (40, 2), (10, 5)])
def test_a_halted_guest_loses_only_what_it_waits_for_behind_an_interrupt(
    percent: int, waited_ms: int
) -> None:
    lab = shared(HALTED, percent, {0x20: "irq"})
    assert exit_value(lab) == 1
    real, _, stolen = seen(lab)
    waited = waited_ms * MS // NS_PER_CYCLE
    assert lab.cpu.edi == 0
    assert abs(stolen - waited) < 1000 * bool(waited) + 1
    assert abs(real - waited - 14 * MS // NS_PER_CYCLE) < 3000


def test_each_processor_has_an_account_of_its_own() -> None:
    """The second one begins after the first has lost a part; both read their counters until the end."""
    other = SEEN + 0x100
    source = f"""
        xor esi, esi
        xor edi, edi
    wait:   xor eax, eax
        call GetCycleCounter
        cmp eax, {PERIOD * 3 // 2}
        jb wait
        {START}
        {read("mine")}
        jmp mine
    other:  xor esi, esi
        xor edi, edi
        {read("its", other)}
        jmp its
    """
    lab = two(source)
    assert lab.domain is not None
    lab.domain.share_processors(50)
    assert lab.machine.run(4 * PERIOD_NS + PERIOD_NS * 3 // 4).outcome is Outcome.TIMEOUT
    (real, _, stolen), (its_real, _, its_stolen) = seen(lab), seen(lab, other)
    assert (stolen, its_stolen) == (4 * PERIOD // 2, 3 * PERIOD // 2)
    assert abs(real - its_real) < PERIOD // 2, "one machine, one real time"
    assert lab.machine.turns is not None
    for virtual in lab.domain.processors.all:
        values = [virtual.timer.count(counter) for counter in Counter]
        assert values[0] == values[1] + values[2]


def test_a_sample_kernel_with_half_a_processor_takes_longer() -> None:
    """Its timer interrupts come late or fall together, and it does what it always does."""
    image = patch(samples.get("paging").path.read_bytes()).data
    results = [run_kernel(image, rom=build("vmware").image, share=share) for share in (100, 50)]
    assert results[0].console == results[1].console
    assert [result.exit_status for result in results] == [33, 33]
    lost = results[1].exits.get("processor lost", 0)
    assert results[1].virtual_ns - results[0].virtual_ns <= lost * PERIOD_NS


@pytest.mark.parametrize("share", [0, -1, 101])
def test_a_share_is_a_percentage(share: int) -> None:
    sentence = f"^a guest's share must be 1 to 100 percent, but it is {share}$"
    with pytest.raises(UsageError, match=sentence):
        prepare(Setup(b"", share=share))


@pytest.mark.parametrize("rom", [None, build("native").image])
def test_without_a_hypervisor_there_is_nobody_to_share(rom: bytes | None) -> None:
    image = samples.get("hello").path.read_bytes()
    with pytest.raises(UsageError, match=r"^only a hypervisor shares processors out, and there is none$"):
        prepare(Setup(image, rom=rom, share=50, model=I686_APIC))
