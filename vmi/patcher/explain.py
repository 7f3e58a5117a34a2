# SPDX-License-Identifier: GPL-2.0-only
"""Say what became of one address of a kernel: the code there before, and what runs instead now.

Whoever debugs a patched kernel has an address, from a crash or a breakpoint, and wants to know which
instruction of the original it is. So any address will do: of the instruction, its window, a springboard, a
trampoline (in one piece or many), an adaptor. It works while patching, when all is known, and on a patched
file alone: then the site table and the bytes tell most, and the original's side is there if the file's undo
record is. Reasons and forms are the patch report's only.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

from vmi import abi, sitetable
from vmi.errors import UsageError
from vmi.patcher import elf, symbols
from vmi.patcher.container import open_container
from vmi.patcher.disassembly import Row, disassemble
from vmi.patcher.model import Image, Symbol, SymbolKind
from vmi.patcher.moves import Finder, Moved, Stretch
from vmi.patcher.report import Move, Report, SiteReport
from vmi.sitetable import SiteFlag, SiteRecord, SiteTable, Tactic

WIDTH = 120
"""Columns from which on the two sides stand side by side."""

_OFFSET = re.compile(r"(?P<name>.+?)(?:\+(?P<offset>0x[0-9a-f]+|\d+))?", re.IGNORECASE)
_NUMBER = re.compile(r"(?:0x)?([0-9a-f]{1,8})", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the picture: an original instruction, one that runs now, or both. A title has neither."""

    original: Row | None = None
    patched: Row | None = None
    title: str = ""


@dataclass(frozen=True)
class Explanation:
    """What is known about ``address``. ``facts`` are sentences; ``lines`` the code, in running order."""

    address: int
    facts: tuple[str, ...]
    lines: tuple[Line, ...] = field(repr=False)

    def to_json(self) -> dict[str, object]:
        """All of it as plain values."""

        def row(one: Row | None) -> dict[str, object] | None:
            return None if one is None else asdict(one) | {"code": one.code.hex()}

        return {
            "address": self.address,
            "facts": list(self.facts),
            "code": [
                {"title": line.title, "original": row(line.original), "patched": row(line.patched)}
                for line in self.lines
            ],
        }

    def to_text(self, width: int = WIDTH) -> str:
        """The facts, then original and patched code side by side, or one after the other where narrow."""
        text = list(self.facts)
        sides = [(self._shown(line.original), self._shown(line.patched)) for line in self.lines]
        left = max((len(before) for before, _ in sides), default=0)
        right = max((len(now) for _, now in sides), default=0)
        titles = [f"{line.title}:" if line.title else "" for line in self.lines]
        if self.lines:
            text.append("")
        if left and left + right + 3 <= width:
            text.append(f"{'  original':<{left}} |   patched")
            for title, (before, now) in zip(titles, sides, strict=True):
                text.append(f"{before:<{left}} | {title or now}".rstrip())
        else:
            text += ["original:", *(before for before, _ in sides if before), "patched:"] if left else []
            text += [title or now for title, (_, now) in zip(titles, sides, strict=True) if title or now]
        return "\n".join(text) + "\n"

    def _shown(self, row: Row | None) -> str:
        if row is None:
            return ""
        return f"{'>' if row.address <= self.address < row.address + len(row.code) else ' '} {row}"


def of_patch(original: bytes, output: bytes, report: Report, names: bytes | None = None) -> Explainer:
    """Answers about a patch run: its input, its output, its report; ``names`` is the symbol file it had."""
    before, after = (open_container(data).kernel for data in (original, output))
    image = elf.load(after, patched=True)
    home = elf.vmi_segment(image)
    assert home is not None
    kernel = elf.load(before)
    kernel = kernel if names is None else symbols.merge(kernel, names)
    return Explainer(image, sitetable.parse(home.data, home.vaddr), kernel, report)


def parse_address(text: str, known: tuple[Symbol, ...]) -> int:
    """An address from ``c0100000``, ``0xc0100000``, ``name`` or ``name+0x12``; raises UsageError.

    A symbol's name wins over a number without ``0x``.
    """
    match = _OFFSET.fullmatch(text.strip())
    if match is not None:
        found = sorted(symbol.address for symbol in known if symbol.name == match["name"])
        if len(set(found)) > 1:
            where = ", ".join(f"{address:#x}" for address in sorted(set(found)))
            raise UsageError(f"symbol {match['name']!r} has several addresses: {where}")
        if found:
            return (found[0] + int(match["offset"] or "0", 0)) & 0xFFFFFFFF
    number = _NUMBER.fullmatch(text.strip())
    if number is None:
        raise UsageError(
            f"address {text!r} is not understood: expected up to 8 hexadecimal digits, like c0100000, or a "
            "symbol of the kernel, like start+0x10"
        )
    return int(number[1], 16)


class Explainer:
    """Answers for one patched kernel.

    ``image`` and ``table`` are of the patched file. ``original`` and ``report`` are there when known.
    """

    def __init__(
        self, image: Image, table: SiteTable, original: Image | None = None, report: Report | None = None
    ) -> None:
        home = image.segment_at(table.header.sites)
        assert home is not None
        self._image, self._table, self._home = image, table, home
        self._original, self._report = original, report
        self._finder = Finder(image, home, table, None if report is None else map(_moved, report.moves))
        self._names = sorted((s.address, s.name) for s in self.symbols if s.kind is not SymbolKind.OBJECT)

    @property
    def symbols(self) -> tuple[Symbol, ...]:
        """The kernel's symbols, as far as known."""
        before = self._original.symbols if self._original is not None else ()
        return before or self._image.symbols

    def explain(self, address: int) -> Explanation:
        """All that is known about ``address``; never fails."""
        records = [record for record in self._table.sites if _concerns(record, address)]
        homes = {record.adaptor for record in records if record.adaptor}
        moved = self._finder.at(records[0].slot) if records else self._finder.at(address)
        users = [record for record in self._table.sites if record.adaptor and record.has_call]
        adaptor = self._adaptor_at(address, users)
        if not records and moved is not None:
            records = self._finder.records(moved)
        facts = [*self._where(address, moved, adaptor)]
        sites = self._sites(address, moved)
        facts += [fact for site in sites for fact in _site_facts(site)]
        if not self._report:
            facts += [fact for record in records for fact in self._record_facts(record)]
        if adaptor:
            facts.append(f"  slots that use it: {sum(record.adaptor == adaptor.address for record in users)}")
        facts += self._elsewhere(address)
        lines = [*self._code(moved)] if moved is not None else [*self._in_place(records)]
        for home in sorted(homes | ({adaptor.address} if adaptor is not None else set())):
            lines.append(Line(title=f"adaptor at {home:#x}"))
            lines += [Line(patched=row) for row in self._adaptor(home)]
        if len(facts) == 1 and not lines:
            facts = [f"{facts[0]} is neither a sensitive instruction nor in a window"]
        return Explanation(address, tuple(facts), tuple(lines))

    # ------------------------------------------------------------ facts

    def _named(self, address: int) -> str:
        at = bisect_right(self._names, (address, "\uffff")) - 1
        known = at >= 0 and self._image.segment_at(address) is not self._home
        if not known or self._image.segment_at(self._names[at][0]) is not self._image.segment_at(address):
            return f"{address:#x}"
        start, name = self._names[at]
        return f"{address:#x} ({name}+{address - start:#x})"

    def _where(self, address: int, moved: Moved | None, adaptor: Stretch | None) -> Iterator[str]:
        here = self._named(address)
        if adaptor is not None:
            yield f"{here} is in the adaptor at {adaptor.address:#x}"
        elif moved is None:
            activation = self._table.header.activation_entry
            yield f"{here} is the start of the activation code" if address == activation else here
        elif any(address in piece for piece in moved.pieces):
            many = f", in {len(moved.pieces)} pieces" if len(moved.pieces) > 1 else ""
            yield f"{here} is in the trampoline for the window at {self._named(moved.start)}{many}"
        elif moved.springboard and moved.springboard <= address < moved.springboard + 5:
            yield f"{here} is in the springboard of the window at {self._named(moved.start)}"
        else:
            yield f"{here} is in the window from {moved.start:#x} to {moved.end:#x}"

    def _sites(self, address: int, moved: Moved | None) -> list[SiteReport]:
        if self._report is None:
            return []
        exact = [s for s in self._report.sites if s.address <= address < s.end]
        exact += [s for s in self._report.sites if s.has_slot and s.slot <= address < s.slot + s.slot_length]
        slots = {record.slot for record in self._finder.records(moved)} if moved is not None else set()
        return list(dict.fromkeys(exact)) or [s for s in self._report.sites if s.slot in slots]

    def _record_facts(self, record: SiteRecord) -> Iterator[str]:
        call = _call(record)
        yield f"site {self._named(record.site)}: {call}; tactic: {record.tactic.value}"
        if record.has_call:
            how = f"through the adaptor at {record.adaptor:#x}" if record.adaptor else "directly"
            yield f"  slot: {record.slot:#x}, {record.length} bytes, connected {how}"
        for flag, meaning in _FLAGS:
            if record.flags & flag:
                yield f"  {meaning}"

    def _elsewhere(self, address: int) -> Iterator[str]:
        if self._report is None:
            return
        for skip in self._report.skipped:
            if int(skip["start"]) <= address < int(skip["end"]):
                yield f"{address:#x} was not searched: {skip['reason']}"
        for one in self._report.refused:
            if one["address"] == address:
                yield f"{address:#x} was named by the {one['source']} and is no site: {one['reason']}"

    # ------------------------------------------------------------ code

    def _code(self, moved: Moved) -> Iterator[Line]:
        """The window's jump, then the trampoline with each original instruction beside what stands for it."""
        yield Line(title=f"window at {moved.start:#x}")
        size = 2 if moved.springboard else 5
        yield from (
            Line(patched=row) for row in self._rows(Stretch(moved.start, self._read(moved.start, size)))
        )
        if moved.springboard:
            yield Line(title=f"springboard at {moved.springboard:#x}")
            board = Stretch(moved.springboard, self._read(moved.springboard, 5))
            yield from (Line(patched=row) for row in self._rows(board))
        left: list[Row] = []
        if self._original is not None:
            rows = disassemble(self._original.read(moved.start, moved.length), moved.start)
            left = [row for row in rows if row.text != "(bad)"]  # the first bytes of a longer padding
        for number, piece in enumerate(moved.pieces):
            where = "trampoline" if not number else "goes on"
            yield Line(title=f"{where} at {piece.address:#x}")
            for row in self._rows(piece):
                pairs = bool(left) and _same(left[0], row)
                yield Line(original=left.pop(0) if pairs else None, patched=row)
        yield from (Line(original=row) for row in left)

    def _in_place(self, records: list[SiteRecord]) -> Iterator[Line]:
        for record in records:
            yield Line(title=f"slot at {record.slot:#x}" if record.has_call else f"left at {record.slot:#x}")
            rows = disassemble(self._read(record.slot, record.length), record.slot)
            before = self._original.read(record.slot, record.length) if self._original else b""
            known = {row.address: row for row in disassemble(before, record.slot)}
            yield from (Line(known.get(row.address), row) for row in rows)

    def _rows(self, piece: Stretch) -> list[Row]:
        return disassemble(piece.code, piece.address)

    def _read(self, address: int, size: int) -> bytes:
        return self._image.read(address, size)

    def _adaptor(self, address: int) -> list[Row]:
        """An adaptor's instructions: straight code up to its return."""
        rows: list[Row] = []
        for row in disassemble(self._read(address, 256), address):
            rows.append(row)
            if row.text.startswith(("ret", "iret", "jmp")):
                break
        return rows

    def _adaptor_at(self, address: int, users: list[SiteRecord]) -> Stretch | None:
        homes = sorted({record.adaptor for record in users})
        at = bisect_right(homes, address) - 1
        if at < 0:
            return None
        code = b"".join(row.code for row in self._adaptor(homes[at]))
        found = Stretch(homes[at], code)
        return found if address in found else None


_FLAGS = (
    (SiteFlag.PAD_AFTER, "the slot's NOPs stand behind the instruction"),
    (
        SiteFlag.RECOVERED,
        "connected only to a call that faults at its caller: the kernel recovers by address",
    ),
    (SiteFlag.ISOLATED, "not connected: it may run with most memory unmapped, adaptors included"),
)


def _moved(move: Move) -> Moved:
    pieces = (Stretch(piece.address, bytes.fromhex(piece.code)) for piece in move.pieces)
    return Moved(move.start, move.end - move.start, move.springboard, tuple(pieces))


def _concerns(record: SiteRecord, address: int) -> bool:
    return record.site == address or record.slot <= address < record.slot + record.length


def _call(record: SiteRecord) -> str:
    if record.call == sitetable.NO_CALL:
        return "no call, a breakpoint when de-privileged"
    return "inline adaptor" if record.call == sitetable.INLINE else f"call {abi.CALLS[record.call].name}"


def _same(before: Row, now: Row) -> bool:
    """True when ``now`` is ``before`` in its new place: the same bytes, or the same jump."""
    if before.code == now.code:
        return True
    old, new = before.text.split(), now.text.split()
    jumps = old[0] == new[0] and old[0].startswith(("j", "call", "loop"))
    return jumps and (old[-1] == new[-1] or old[0].startswith(("loop", "jecxz")))


def _site_facts(site: SiteReport) -> Iterator[str]:
    yield f"{site.address:#x}  {site.text}  (form {site.form}, {site.source})"
    yield f"  call: {site.call or 'none'}; tactic: {site.tactic}"
    if site.reason:
        yield f"  reason: {site.reason}"
    if site.slot:
        how = f"through the adaptor at {site.adaptor:#x}" if site.adaptor else "directly"
        way = "" if site.tactic == Tactic.TRAP else f", connected {how}"
        yield f"  slot: {site.slot:#x}, {site.slot_length} bytes{way}"
    for known, meaning in zip((site.padded_after, site.recovered, site.isolated), _FLAGS, strict=True):
        if known:
            yield f"  {meaning[1]}"
