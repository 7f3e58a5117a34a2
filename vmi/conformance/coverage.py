# SPDX-License-Identifier: GPL-2.0-only
"""How much of a ROM's code the suite executes, call by call: what no case runs, no case has tested.

Code is what the entries lead to (:mod:`vmi.rom.flow`), those of the calls that were asked about. The machine
shows each block of code before the guest executes it, so bytes count by blocks: one that an event ended early
counts whole. Asked for only, since a guest whose code is watched forgets it between two cases.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from iced_x86 import Instruction

from vmi import abi
from vmi.rom import flow

if TYPE_CHECKING:
    from vmi.native.machine import Machine

Block = tuple[int, int]  # offset in the image, bytes
_MOST_LINES = 100  # of what was never executed, on a terminal
_FIXED = {
    "ROM": ("BIOS entry", 3, 16),
    "Init": ("VMI_Init", abi.INIT_OFFSET, 32),
    "GetReloc": ("GetRelocationInfo", abi.GET_RELOC_OFFSET, 32),
}


class Ran:
    """Which bytes of a ROM were executed, on all machines that are watched.

    :param size: bytes of the image.
    """

    def __init__(self, size: int) -> None:
        # what a machine's checkpoint doesn't find: it would take back what was seen since
        self._bytes = memoryview(bytearray(size))

    def __repr__(self) -> str:
        return f"<Ran {sum(self._bytes)} of {len(self._bytes)} bytes>"

    def watch(self, machine: Machine, base: int) -> None:
        """See what a machine executes of the ROM at an address."""
        machine.cpu.watch_code(_Watch(self._bytes, base))

    def image(self) -> bytes:
        """For each byte of the ROM 1 if it was executed, else 0."""
        return bytes(self._bytes)

    def add(self, image: bytes) -> None:
        """Take over what :meth:`image` gave elsewhere."""
        for offset, ran in enumerate(image):
            self._bytes[offset] |= ran


class _Watch:
    """See :class:`vmi.native.wiring.CodeWatch`."""

    def __init__(self, seen: memoryview, base: int) -> None:
        self._seen, self._base = seen, base

    def code_appeared(self, linear: int, size: int) -> bool:
        """See :class:`vmi.native.wiring.CodeWatch`."""
        offset = linear - self._base
        if 0 <= offset < len(self._seen):
            size = min(size, len(self._seen) - offset)
            self._seen[offset : offset + size] = b"\1" * size
        return False

    def change_code(self) -> None:
        """See :class:`vmi.native.wiring.CodeWatch`."""


@dataclass(frozen=True)
class Entry:
    """What was executed of the code that a call's entry leads to; calls may share code.

    :ivar offset: of the entry in the image.
    :ivar size: bytes of code.
    :ivar never: (offset, bytes) of what was not executed.
    """

    name: str
    offset: int
    size: int
    never: tuple[Block, ...]

    @property
    def ran(self) -> int:
        """Bytes that were executed."""
        return self.size - sum(size for _, size in self.never)


@dataclass(frozen=True)
class Gap:
    """Code in a row that was not executed, as (offset, instruction); ``calls`` lead to it."""

    offset: int
    size: int
    calls: tuple[str, ...]
    code: tuple[tuple[int, str], ...]


@dataclass(frozen=True, repr=False)
class Coverage:
    """The code of one ROM, and what of it was executed.

    :ivar size: bytes of code; ``ran`` of them were executed.
    :ivar elsewhere: bytes that were executed, and that no entry leads to as far as can be seen.
    """

    size: int
    ran: int
    elsewhere: int
    entries: tuple[Entry, ...]
    gaps: tuple[Gap, ...]

    def __repr__(self) -> str:
        return f"<Coverage {self.ran} of {self.size} bytes>"

    def to_json(self) -> dict[str, object]:
        """Everything, as plain JSON values."""
        return {
            "bytes": self.size,
            "ran": self.ran,
            "percent": percent(self.ran, self.size),
            "elsewhere": self.elsewhere,
            "entries": [
                {
                    "name": entry.name,
                    "offset": entry.offset,
                    "bytes": entry.size,
                    "ran": entry.ran,
                    "percent": percent(entry.ran, entry.size),
                    "never": [list(block) for block in entry.never],
                }
                for entry in self.entries
            ],
            "never": [
                {
                    "offset": gap.offset,
                    "bytes": gap.size,
                    "entries": list(gap.calls),
                    "code": [f"{offset:04x}  {instruction}" for offset, instruction in gap.code],
                }
                for gap in self.gaps
            ],
        }

    def to_text(self, *, verbose: bool = False) -> str:
        """The sum, entries that were not executed whole, and what was never.

        :param verbose: all entries, and all of what was never executed.
        """
        lines = [
            f"{entry.name:<20}{entry.offset:#06x}{entry.ran:>6} of {entry.size:>4} bytes"
            f"{percent(entry.ran, entry.size):>7.1f} %"
            for entry in self.entries
            if verbose or entry.ran < entry.size
        ]
        never = [line for gap in self.gaps for line in _lines(gap)]
        shown = never if verbose or len(never) <= _MOST_LINES else never[:_MOST_LINES]
        lines += shown
        if shown is not never:
            lines.append(f"and {len(never) - len(shown)} lines more of what was never run; -v shows all")
        whole = sum(entry.ran == entry.size for entry in self.entries)
        lines.append(
            f"ROM code run: {self.ran} of {self.size} bytes, {percent(self.ran, self.size):.1f} %; "
            f"{whole} of {len(self.entries)} entries whole"
        )
        if self.elsewhere:
            lines.append(f"{self.elsewhere} bytes more were run that no entry visibly leads to")
        return "\n".join(lines) + "\n"


def _lines(gap: Gap) -> list[str]:
    head = f"never run: {gap.size} bytes at {gap.offset:#06x}, of {', '.join(gap.calls)}"
    return [head, *(f"    {offset:04x}  {instruction}" for offset, instruction in gap.code)]


def percent(part: int, whole: int) -> float:
    """Rounded down to a tenth, so that 100 means all; 100 of nothing."""
    return 1000 * part // whole / 10 if whole else 100.0


def measure(image: bytes, ran: Ran, calls: Mapping[str, int], asked: Container[str]) -> Coverage:
    """What was executed of the code of an image.

    :param calls: offsets of the entries of calls in the image, by name.
    :param asked: calls and topics whose entries are looked at.
    """
    executed = ran.image()
    code: dict[int, Instruction] = {}
    used: dict[int, list[str]] = {}
    entries, elsewhere = [], bytearray(executed)
    places = {**_FIXED, **{call: (call, offset, 32) for call, offset in calls.items()}}
    for subject, (name, offset, bits) in places.items():
        own = flow.reachable(image, offset, bits)
        for at, instruction in own.items():
            elsewhere[at : at + instruction.len] = bytes(instruction.len)
            if subject in asked:
                code.setdefault(at, instruction)
                used.setdefault(at, []).append(name)
        if subject in asked:
            size = sum(instruction.len for instruction in own.values())
            missing = _runs((at, own[at].len) for at in own if not executed[at])
            entries.append(Entry(name, offset, size, tuple(missing)))
    size = sum(instruction.len for instruction in code.values())
    never = sum(instruction.len for at, instruction in code.items() if not executed[at])
    gaps = _gaps(code, used, executed)
    return Coverage(size, size - never, sum(elsewhere), tuple(entries), tuple(gaps))


def _runs(blocks: Iterable[Block]) -> list[Block]:
    """Blocks in order, those that touch put together."""
    found: list[Block] = []
    for offset, size in blocks:
        if found and sum(found[-1]) == offset:
            found[-1] = found[-1][0], found[-1][1] + size
        else:
            found.append((offset, size))
    return found


def _gaps(known: Mapping[int, Instruction], used: Mapping[int, list[str]], executed: bytes) -> Iterable[Gap]:
    missing = [at for at in sorted(known) if not executed[at]]
    for offset, size in _runs((at, known[at].len) for at in missing):
        inside = [at for at in missing if offset <= at < offset + size]
        calls = dict.fromkeys(name for at in inside for name in used[at])
        yield Gap(offset, size, tuple(calls), tuple((at, flow.text(known[at])) for at in inside))
