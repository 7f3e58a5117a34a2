# SPDX-License-Identifier: GPL-2.0-only
"""QEMU as a subject: what the suite calls native is what QEMU does, and how its guests and itself can end."""

from __future__ import annotations

import gc
import os
import signal
from datetime import date
from pathlib import Path

import pytest

from tests.e2e.qemu import needs_qemu
from vmi.conformance import qemu, qemu_lines, runner, suite, waivers
from vmi.conformance.case import Case
from vmi.conformance.fuzz import Fuzzer
from vmi.conformance.layout import Paging
from vmi.conformance.qemu import Qemu
from vmi.conformance.subject import REGISTERS, End, Environment, Stop
from vmi.conformance.suite import Target
from vmi.conformance.verdict import Verdict
from vmi.conformance.waivers import Waiver
from vmi.errors import EngineError, RomError, UsageError, VmiError
from vmi.native.machine import ROM_BAY
from vmi.rom.build import build

pytestmark = [pytest.mark.e2e, needs_qemu]

WAIVERS = Path(__file__).parents[2] / "docs" / "qemu-waivers.toml"
BACKEND = "vmi.conformance.qemu:Qemu"
_TODAY = date(2026, 1, 1)
_SHARDS = 2  # of the cases; one of them runs in each paging
#: Cases that once took something of this toolkit's own machine for what every machine does.
_ASKED_TOO_MUCH = {
    "Activation/registers",
    "Mmu/behind RAM",
    *(f"SetCR4/{name}, bit {bit} pae" for name in ("fault", "fault and interrupt") for bit in (11, 22)),
}
_CODE = 0x10000
_MS = 1_000_000


def _waivers() -> list[Waiver]:
    places = Target("qemu", backend=BACKEND).environments()
    return waivers.parse(WAIVERS.read_text(encoding="utf-8"), suite.all_cases(), places, _TODAY)


def _some(number: int) -> list[Case]:
    """Level 0, and every other one of the other cases, without those in which QEMU is known to be wrong."""
    known = {each.case for each in _waivers()}
    cases = [case for case in suite.all_cases() if case.name not in known]
    always = [case for case in cases if case.level == 0 or case.name in _ASKED_TOO_MUCH]
    return [*always, *[case for case in cases if case not in always][number % _SHARDS :: _SHARDS]]


@pytest.mark.parametrize("number", range(len(Paging)))
def test_native_is_what_qemu_does(number: int) -> None:
    environment = Environment(list(Paging)[number])
    results = list(runner.run(_some(number), Target("qemu", backend=BACKEND).make, environment))
    bad = [(each.case.name, each.verdict, each.reasons) for each in results if not each.verdict.good]
    assert not bad
    assert sum(each.verdict is Verdict.PASS for each in results) > 400


def test_a_known_deviation_is_one() -> None:
    """A waiver that nothing needs would be an error of the command; this one is needed."""
    cases = [case for case in suite.all_cases() if case.name == "RDMSR/fault, register badbadh"]
    found, unused = waivers.apply(
        runner.run(cases, Qemu, Environment()),
        [each for each in _waivers() if each.case == cases[0].name],
    )
    assert [each.verdict for each in found] == [Verdict.WAIVED] and not unused


#: What the two do differently, by its sentence: see the waivers; and their processors differ in features.
_DIFFERENT = ("RDMSR", "WRMSR", "SetCR4")


@pytest.mark.parametrize(("paging", "first"), [(Paging.PSE, 0), (Paging.PAE, 100)])
def test_random_sequences_come_to_the_same(paging: Paging, first: int) -> None:
    ours = Target("native", build("native").image)
    fuzzer = Fuzzer.against(ours, Target("qemu", backend=BACKEND), Environment(paging))
    wrong = [fuzzer.seed(seed) for seed in range(first, first + 40)]
    assert not [sentence for sentence in wrong if sentence and not sentence.startswith(_DIFFERENT)]


def test_two_processors_begin() -> None:
    environment = Environment(Paging.TWO_LEVEL, cpus=2)
    cases = [case for case in suite.all_cases() if case.cpus == 2]
    found = [each.reasons for each in runner.run(cases, Qemu, environment)]
    assert ("the ROM answers NONE for SetInitialAPState",) in found


@pytest.fixture(scope="module")
def begun() -> Qemu:
    return Qemu(Environment())


def _run(subject: Qemu, code: bytes, limit_ns: int = 20 * _MS, **registers: int) -> Stop:
    subject.reset()
    subject.write(_CODE, code)
    subject.set_registers({**registers, "esp": 0x9000, "eip": _CODE})
    return subject.run(limit_ns)


def test_what_is_written_is_read(begun: Qemu) -> None:
    begun.reset()
    assert begun.read(0, 1 << 16) == bytes(1 << 16)
    for at, data in ((0x8000, b"x"), (0x9FFF, bytes(range(256)) * 40), (0xD0000, b"in the ROM's place")):
        begun.write(at, data)
        assert begun.read(at, len(data)) == data
    begun.write(0x8000, b"")
    assert begun.read(0x8000, 1) == b"x" and begun.read(0x8000, 0) == b""
    values = {name: 0x1234 + n for n, name in enumerate(REGISTERS) if name not in ("eip", "eflags")}
    _run(begun, b"\xf9\xe6\xf4", **values)  # stc; out 0f4h, al
    left = begun.registers()
    assert {name: left[name] for name in values} == {**values, "esp": 0x9000}
    assert (left["eip"], left["eflags"] & 1) == (_CODE + 3, 1)


@pytest.mark.parametrize(
    ("code", "end"),
    [
        (b"\xe6\xf4\xeb\xfc", Stop(End.DONE)),  # out 0f4h, al; jmp
        (b"\xba\xf4\0\0\0\xee\xeb\xfd", Stop(End.DONE)),  # mov edx, 0f4h; out dx, al; jmp
        (b"\xeb\x02\xe6\xf4\xf4", Stop(End.HALTED)),  # jmp behind an out; hlt
        (b"\xeb\xfe", Stop(End.TIMEOUT)),
        (b"\x0f\x0b", Stop(End.CRASHED, "triple fault")),  # ud2, and no table
        (b"\xb0\xfe\xe6\x64\xeb\xfe", Stop(End.RESET)),  # by the keyboard's controller
    ],
)
def test_how_a_guest_ends(begun: Qemu, code: bytes, end: Stop) -> None:
    assert _run(begun, code) == end
    if end.end is End.DONE:
        assert begun.registers()["eip"] == _CODE + code.rindex(b"\xeb")
        assert begun.run(20 * _MS) == end  # and once more around


def test_a_guest_that_switches_off(begun: Qemu) -> None:
    # power management gets a port by PCI configuration, and is told there, by mov eax; mov edx; out dx, eax
    writes = ((0xCF8, 0x80000B40), (0xCFC, 0x601), (0xCF8, 0x80000B80), (0xCFC, 1), (0x604, 0x2000))
    code = b"".join(
        b"\xb8" + value.to_bytes(4, "little") + b"\xba" + port.to_bytes(4, "little") + b"\xef"
        for port, value in writes
    )
    assert _run(begun, code[:-1] + b"\x66\xef\xeb\xfe") == Stop(End.OFF)
    assert _run(begun, b"\xe6\xf4") == Stop(End.DONE)


def test_a_short_limit_is_counted_in_instructions(begun: Qemu) -> None:
    assert _run(begun, b"\x41" * 20 + b"\xe6\xf4", 700, ecx=0) == Stop(End.TIMEOUT)  # inc ecx
    assert (begun.registers()["ecx"], begun.registers()["eip"]) == (7, _CODE + 7)
    assert begun.run(5_000) == Stop(End.DONE)
    assert begun.registers()["ecx"] == 20
    assert _run(begun, b"\xf4", 5_000) == Stop(End.HALTED)


def test_qemu_ends_with_its_subject_and_another_takes_its_place() -> None:
    subject = Qemu(Environment())
    subject.reset()
    lines = subject._lines
    assert lines is not None
    process = lines._process
    os.kill(process.pid, signal.SIGKILL)
    with pytest.raises(EngineError, match=r"^QEMU has ended with status -9: it says nothing$"):
        subject.read(0, 4)
    with pytest.raises(EngineError, match=r"^QEMU is not running: it needs a reset first$"):
        subject.read(0, 4)
    assert _run(subject, b"\xe6\xf4") == Stop(End.DONE)
    lines = subject._lines
    assert lines is not None and lines._process is not process
    process = lines._process
    del subject, lines
    gc.collect()
    assert process.poll() == -signal.SIGKILL


@pytest.mark.parametrize(
    ("command", "kind", "sentence"),
    [
        (
            "no-such-qemu -x",
            EngineError,
            "no-such-qemu is not installed, or not where programs are looked for",
        ),
        ("'", UsageError, "VMI_QEMU must be a command, but it is none: No closing quotation"),
        (
            "qemu-system-i386 -nonsense",
            EngineError,
            "QEMU has ended with status 1: qemu-system-i386: -nonsense: invalid option",
        ),
        ("true", EngineError, "QEMU has ended with status 0: it says nothing"),
        (
            "qemu-system-i386 -M q35",
            EngineError,
            "QEMU's machine must begin and have RAM from C0000h on as pc does, but it has not",
        ),
    ],
)
def test_no_qemu(monkeypatch: pytest.MonkeyPatch, command: str, kind: type[VmiError], sentence: str) -> None:
    monkeypatch.setenv(qemu.COMMAND, command)
    with pytest.raises(kind) as error:
        Qemu(Environment()).reset()
    assert str(error.value) == sentence


def test_a_program_that_does_not_answer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    silent = tmp_path / "silent"
    silent.write_text("#!/bin/sh\nexec sleep 1000\n")
    silent.chmod(0o755)
    monkeypatch.setenv(qemu.COMMAND, str(silent))
    monkeypatch.setattr(qemu_lines, "PATIENCE", 0.2)
    with pytest.raises(EngineError, match=r"^QEMU has not answered for 0.2 seconds$"):
        Qemu(Environment()).reset()


def test_the_rom() -> None:
    with pytest.raises(RomError, match=r"^the ROM bay has 131072 bytes, the ROM needs 131073$"):
        Qemu(Environment(), bytes(len(ROM_BAY) + 1))
    subject = Qemu(Environment(), b"\x55\xaa and so on")
    subject.reset()
    assert subject.read(ROM_BAY.start, 11) == b"\x55\xaa and so o"
    assert subject.exits() == 0 and subject.mark() is None
    facts = subject.facts()
    assert facts["processor"] == "qemu32" and facts["hypervisor"] == "none"
    assert facts["engine"].startswith("QEMU emulator version")
