# SPDX-License-Identifier: GPL-2.0-only
"""ROM files that are none, or mean harm: each gets its verdicts, and the suite goes on."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from tests.conformance.mutants import Mutant
from vmi import abi
from vmi.conformance import generated, rig, runner, suite
from vmi.conformance.case import Case, Findings
from vmi.conformance.layout import AGENT, Paging
from vmi.conformance.rig import Rig
from vmi.conformance.subject import Environment
from vmi.conformance.verdict import Verdict
from vmi.rom.build import build
from vmi.rom.template import body

CASES = suite.Selection(("ROM/*", "Init/*", "GetReloc/*", "GetCR3/*")).pick(suite.all_cases())
Change = Callable[[bytearray], None]


def code(at: int, text: str) -> Change:
    """Other code somewhere."""

    def change(image: bytearray) -> None:
        image[at : at + len(text) // 2] = bytes.fromhex(text)

    return change


def byte(at: int, value: int) -> Change:
    """Another byte somewhere."""
    return code(at, f"{value:02x}")


INIT, RELOC = abi.INIT_OFFSET, abi.GET_RELOC_OFFSET
ROMS: dict[str, Change] = {
    "empty": lambda image: image.clear(),
    "one byte": lambda image: image.__delitem__(slice(1, None)),
    "truncated": lambda image: image.__delitem__(slice(600, None)),
    "random": lambda image: image.__setitem__(slice(None), random.Random(5).randbytes(8192)),
    "longer than the bay": lambda image: image.extend(bytes(200_000)),
    "says it is longer": byte(2, 0xFF),
    "says it is shorter": byte(2, 1),
    "says it has no length": byte(2, 0),
    "licence outside": code(0x16, "ffff"),
    "PCI data outside": code(0x18, "ffff"),
    "VMI_Init loops": code(INIT, "ebfe"),
    "VMI_Init does what nobody can": code(INIT, "0fffffffffff0f0b"),
    "VMI_Init corrupts the stack": code(INIT, "31c083c404c3"),
    "VMI_Init returns with a broken ESP": code(INIT, "31c0c20800"),
    "VMI_Init writes to its own image": code(INIT, "e800000000588800c3"),
    "unknown relocation type": code(RELOC, "ba07000000c3"),
    "entries outside": code(RELOC, "31c0ba01000000c3"),
    "entries in guest code": code(RELOC, "b800000100b201c3"),
    "GetRelocationInfo loops": code(RELOC, "ebfe"),
}


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step has several times as long as one with a good ROM takes; lost guests run up to that."""
    monkeypatch.setattr(rig, "LIMIT_NS", 2_000_000)


def test_a_good_rom_is_in_time() -> None:
    target = suite.Target("ours", build("vmware").image)
    assert all(result.verdict.good for result in runner.run(CASES, target.make, Environment()))


@pytest.mark.parametrize("name", ROMS)
def test_a_hostile_rom_gets_its_verdict(name: str) -> None:
    image = bytearray(build("vmware").image)
    ROMS[name](image)
    if len(image) > 4096 and len(image) == len(build("vmware").image):
        image[-1] = (image[-1] - sum(image)) & 0xFF
    target = suite.Target("theirs", bytes(image))
    results = list(runner.run(CASES, target.make, Environment()))
    bad = [result for result in results if not result.verdict.good]
    assert bad and all(result.case.requirements for result in bad)
    assert all(result.verdict is not Verdict.ERROR for result in results), [r.reasons for r in results]
    told = [result.case for result in results if result.case.fits(Environment())]
    assert told == [case for case in CASES if case.fits(Environment())]


def test_a_guest_that_is_lost_is_not_asked_at_each_instruction() -> None:
    """That would be hours with a ROM all of whose calls loop."""
    lost = Mutant("it loops", (), {"IODelay": body("here:\njmp here")})
    (case,) = suite.Selection(("IODelay/interrupt in it 0",)).pick(suite.all_cases())
    (result,) = runner.run([case], suite.Target("theirs", lost.rom()).make, Environment())
    assert result.verdict is Verdict.TIMEOUT and result.assertions < 20
    assert result.reasons[-1].startswith("while coming to the end, interrupted at instruction 0, EIP ")


def test_a_call_that_overwrites_the_suites_own_code() -> None:
    """The loop that instructions are counted by is not waited for without end."""
    source = f"pushad\nmov edi, {AGENT}\nmov ecx, 256\nmov eax, 0xf4f4f4f4\ncld\nrep stosd\npopad\nret"
    rom = Mutant("it writes", (), {"GetTR": body(source)}).rom()
    wanted = suite.Selection(("GetTR",)).pick(suite.all_cases())
    results = list(runner.run(wanted, suite.Target("theirs", rom).make, Environment(Paging.TWO_LEVEL)))
    assert not any(result.verdict is Verdict.ERROR for result in results)
    lost = next(result for result in results if result.case.name == "GetTR/call in the handler 0")
    assert lost.verdict is Verdict.TIMEOUT
    assert lost.reasons[-1] == "while going round a loop, which does not turn: timeout"


def test_a_case_that_has_found_plenty_ends() -> None:
    """A lost guest makes events without end, and each looks wrong in several ways."""

    def looks(_rig: Rig, found: Findings) -> None:
        for number in range(10**9):
            found.equal(f"number {number}", number, -1)

    case = Case("ROM/endless", ("VMI-ROM-01",), "ROM", "rom", 0, looks)
    (result,) = runner.run([case], suite.Target("ours", build("native").image).make, Environment())
    assert (result.verdict, result.assertions, len(result.reasons)) == (Verdict.FAIL, 20, 21)
    assert result.reasons[-1] == "no more was looked at"


def test_an_answer_that_is_another_each_time() -> None:
    """Both types are right for IRET, and one address: but a client asks once."""

    class Fickle:
        types = iter((1, 2))

        def relocation(self, _number: int) -> dict[str, int]:
            return {"eax": 0xC0820, "edx": next(self.types)}

    found = Findings()
    generated.relocation(Fickle(), found, call=abi.BY_NAME["IRET"])  # type: ignore[arg-type]
    assert found.faults == ["the second answer must be CALL_REL to 0xc0820, but it is JUMP_REL to 0xc0820"]
