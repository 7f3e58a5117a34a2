# SPDX-License-Identifier: GPL-2.0-only
"""String transfers that a page fault interrupts."""

from __future__ import annotations

from vmi.conformance.case import PAGED, Findings, case
from vmi.conformance.layout import FREE_PAGES, entry_address
from vmi.conformance.rig import Rig
from vmi.memory import PAGE_SIZE

_NOBODY = 0xE4
_PF = 14
_SIZES = {"B": 1, "W": 2, "L": 4}

for _direction, _pointer in (("INS", "edi"), ("OUTS", "esi")):
    for _width, _size in _SIZES.items():

        @case(f"{_direction}{_width}", "page fault", 4, paging=PAGED)
        def interrupted(
            rig: Rig,
            found: Findings,
            name: str = f"{_direction}{_width}",
            pointer: str = _pointer,
            size: int = _size,
        ) -> None:
            """A fault in the middle is the guest's, at what has been transferred; made again it goes on."""
            second = FREE_PAGES + PAGE_SIZE
            entry = entry_address(rig.environment.paging, second)
            rig.put(entry, 0)
            rig.value("InvalPage", eax=second)
            start, count = second - 4 * size, 10
            rig.resume_at("done")
            registers = {pointer: start, "edx": _NOBODY, "ecx": count}
            done = rig.call(name, **registers)
            found.equal("vectors", done.vectors, [_PF])
            if not done.frames:
                return
            frame = done.first
            at = getattr(frame, pointer)
            found.equal("where it stood", (at, frame.ecx), (second, count - 4))
            found.equal("CR2", rig.value("GetCR2"), second)
            rig.put(entry, second | 7)
            rig.value("InvalPage", eax=second)
            done = rig.call(name, **{pointer: at, "edx": _NOBODY, "ecx": frame.ecx})
            found.equal(
                "where it ended", (done.registers[pointer], done.registers["ecx"]), (start + count * size, 0)
            )
