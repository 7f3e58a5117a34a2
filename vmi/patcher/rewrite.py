# SPDX-License-Identifier: GPL-2.0-only
"""Patch a kernel: bytes in, bytes and a report out.

Plan, emit, write, verify: nothing is returned that did not pass the check. The same input gives the
same output on any machine; only the times differ, so they are kept apart from the report.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from vmi.errors import NoSites
from vmi.patcher import adaptors, elf, elfwrite
from vmi.patcher.emit import Emission, emit
from vmi.patcher.model import Plan
from vmi.patcher.place import place
from vmi.patcher.plan import make_plan
from vmi.patcher.report import Input, Report, make_report
from vmi.patcher.verify import verify


@dataclass(frozen=True, slots=True)
class Patched:
    """A patched kernel. ``seconds`` is the time per phase, real time, for people only."""

    data: bytes = field(repr=False)
    report: Report
    seconds: dict[str, float]


def patch(data: bytes, *, allow_empty: bool = False) -> Patched:
    """Patch a kernel ELF file (or one in gzip) and check the result.

    Raises BadInput for a file that can't be patched, NoSites when it holds no sensitive instruction (unless
    ``allow_empty``: then only the activation code is added), and VerifyError when the output would not be
    what was planned, which is a defect of the patcher.
    """
    seconds: dict[str, float] = {}
    with _timed(seconds, "read"):
        image = elf.load(data)
        where = place(image)
    with _timed(seconds, "plan"):
        plan = make_plan(image, adaptors.refusal)
    if not plan.placements and not allow_empty:
        raise NoSites(f"there is no sensitive instruction among the {plan.instructions} of this kernel")
    with _timed(seconds, "emit"):
        emission = emit(plan, where)
    with _timed(seconds, "write"):
        output = write(emission)
    with _timed(seconds, "verify"):
        verify(emission, output)
    with _timed(seconds, "report"):
        report = make_report(
            emission, len(output), Input("gzip" if data[:2] == elf.GZIP_MAGIC else "elf", len(data))
        )
    return Patched(output, report, seconds)


def write(emission: Emission) -> bytes:
    """The output file of an emission, not yet checked."""
    layout, plan = emission.place.layout, emission.plan
    paddr = layout.physical(layout.base)
    segment = elfwrite.NewSegment(layout.base, paddr, emission.segment, emission.place.file_offset)
    return elfwrite.write(plan.image, emission.edits, segment, emission.entry, emission.file_edits)


def plan_of(data: bytes) -> Plan:
    """The plan alone, for looking at a kernel without writing anything; raises BadInput."""
    return make_plan(elf.load(data), adaptors.refusal)


@contextmanager
def _timed(seconds: dict[str, float], phase: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[phase] = time.perf_counter() - start
