# SPDX-License-Identifier: GPL-2.0-only
"""Calls without end: every call of the ROM in random order, with arguments near every boundary there is.

``python -m tests.hypervisor.storm CALLS [SEED]`` makes at least that many call-outs and prints what came of
them, one line of JSON. A guest that it has brought to its end is replaced by another. Beside it in the same
process stands a second domain that makes calls of its own now and then, and must not notice.
"""

from __future__ import annotations

import json
import resource
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random

from tests.hypervisor.lab import ROM, ROM_AT, U32, Lab, call
from tests.native.guest import CODE, CODE0, GDT, IDT, PAGES, STACK, TSS, gate
from vmi.abi import CALLS
from vmi.native.event_log import EventLog
from vmi.native.machine import Outcome
from vmi.x86 import HAS_ERROR_CODE

BATCH = 48  # calls in a row, then round again
BATCH_NS = 200_000
HANDLERS, SKIP = 0x14000, 5  # a handler goes on behind the call that faulted
SERVED = [one for one in CALLS if ROM.calls[one.number][0]]
#: Calls after which there may be no guest left to make another: one of them now and then, at a batch's end.
_FATAL = {"SetCR0", "SetCR3", "SetCR4", "SetGDT", "SetIDT", "SetTR", "Reboot", "Shutdown", "SYSEXIT", "IRET"}
_FATAL |= {"Halt", "WriteGDTEntry", "WriteIDTEntry", "UpdateKernelStack", "SetInitialAPState", "WRMSR"}
FATAL = [one for one in SERVED if one.name in _FATAL]
LASTING = [one for one in SERVED if one.name not in _FATAL]
EDGES = (0, 1, 2, 3, 4, 7, 8, 0x10, 0x20, 0xFF, 0x1000, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, U32)
PLACES = (
    GDT,
    IDT,
    TSS,
    CODE,
    PAGES,
    STACK,
    ROM_AT,
    ROM_AT + (ROM.data_page or 0),
    0xC0000,
    0x1FF000,
    2 << 20,
)


@dataclass
class Report:
    """What came of a storm; ``refused`` is what the event log calls that which was refused."""

    calls: int = 0
    guests: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    by_name: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    growth_kib: int = 0


def value(random: Random) -> int:
    """An argument: at, or next to, a boundary."""
    base = random.choice(EDGES if random.random() < 0.6 else PLACES)
    if random.random() < 0.1:
        return random.getrandbits(32)
    return base + random.choice((0, 0, -1, 1, 4, 0xFFC, 0xFFD, -8)) & U32


def batch(random: Random) -> bytes:
    """Code that makes :data:`BATCH` calls, and begins again."""
    data = bytearray()
    for number in range(BATCH):
        made = random.choice(FATAL if number == BATCH - 1 and random.random() < 0.25 else LASTING)
        data += b"\xbc" + STACK.to_bytes(4, "little")  # mov esp, STACK
        for _ in range(3):
            data += b"\x68" + value(random).to_bytes(4, "little")
        for register in (0, 1, 2, 3):
            given = value(random)
            if register == 1 and "S" in made.name[-2:-1]:
                given %= 64  # INS and OUTS count in ECX, and the machine's devices are no matter here
            data += bytes([0xB8 + register]) + given.to_bytes(4, "little")
        target = ROM_AT + ROM.offset(made.name)
        data += b"\xe8" + (target - CODE - len(data) - 5 & U32).to_bytes(4, "little")
    return bytes(data) + b"\xe9" + (-len(data) - 5 & U32).to_bytes(4, "little")


def guest(random: Random, lines: list[str]) -> Lab:
    """One guest, de-privileged, whose handlers skip the call that faulted."""
    lab = Lab("start: nop", mode="paravirt", taken=False)
    skip = f"83442404{SKIP:02x}83c404cf", f"830424{SKIP:02x}cf"  # with and without an error code
    for at, code in zip((HANDLERS, HANDLERS + 16), skip, strict=True):
        lab.memory.write(at, bytes.fromhex(code))
    for vector in range(256):
        where = HANDLERS if vector in HAS_ERROR_CODE else HANDLERS + 16
        lab.memory.write(IDT + 8 * vector, gate(CODE0, where, 0x8F))
    if random.random() < 0.7:
        lab.page(0x1FF000)
    lab.take()
    now = lab.machine.clock.now
    lab.machine.log = EventLog(EventLog.parse("refusals"), lines.append, now, lambda: (0, now()))
    return lab


class Bystander:
    """Another guest of the same process."""

    def __init__(self) -> None:
        self._lab = Lab("start: nop", mode="paravirt")
        self._seen = self._look()

    def _look(self) -> tuple[object, ...]:
        lab = self._lab
        answers = [call(lab, name).registers["eax"] for name in ("GetCR0", "GetCR3", "GetInterruptMask")]
        return lab.memory.sha256(), *answers, lab.machine.log

    def unchanged(self) -> bool:
        """Its memory and what its calls answer are what they were."""
        return self._look() == self._seen


def storms(random: Random, report: Report) -> Iterator[None]:
    """Run guest after guest, one batch at a time."""
    while True:
        lines: list[str] = []
        lab = guest(random, lines)
        assert lab.domain is not None
        report.guests += 1
        while True:
            lab.cpu.write_memory(CODE, batch(random))
            lab.cpu.eip, lab.cpu.esp = CODE, STACK
            before = sum(lab.domain.calls.values())
            end = lab.machine.run(BATCH_NS)
            lab.machine.log.close()  # type: ignore[union-attr]
            made = sum(lab.domain.calls.values()) - before
            report.calls += made
            for line in lines:
                report.refused[line.split(" no ", 1)[1].split(":")[0].strip()] += 1
            lines.clear()
            yield
            if end.outcome is not Outcome.TIMEOUT or not made:  # or it is stuck between faults of its own
                report.ends[end.outcome.value] += 1
                break
        report.by_name.update(lab.domain.calls)


def run(calls: int, seed: int = 0) -> Report:
    """Make at least so many calls."""
    random, report, bystander = Random(seed), Report(), Bystander()
    grown = 0
    for number, _ in enumerate(storms(random, report)):
        if number % 50 == 0:
            assert bystander.unchanged(), "the guest beside it has changed"
        if not grown and report.calls > calls // 4:
            grown = _resident()
        if report.calls >= calls:
            break
    assert bystander.unchanged(), "the guest beside it has changed"
    report.growth_kib = _resident() - grown if grown else 0
    return report


def _resident() -> int:
    """The most memory this process has had so far, KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    print(json.dumps(vars(run(int(sys.argv[1]), *map(int, sys.argv[2:3])))))
