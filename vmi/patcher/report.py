# SPDX-License-Identifier: GPL-2.0-only
"""What a patch run did, site by site: as JSON for tools, as a short text, as an answer about one address.

A miss must never be silent, so every sensitive instruction of the kernel is in the report, with the
reason when it has no slot. The JSON holds nothing that changes from run to run: no time, no path.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from iced_x86 import Decoder, Formatter, FormatterSyntax

from vmi import abi
from vmi.patcher.emit import Emission
from vmi.patcher.trampoline import Trampoline
from vmi.sitetable import Tactic

FORMAT = 1
"""Version of the JSON report; it changes when a key changes its meaning or goes away."""


@dataclass(frozen=True, slots=True)
class SiteReport:
    """One sensitive instruction. Addresses are virtual; 0 = none."""

    address: int
    bytes: str
    text: str
    form: str
    call: str
    tactic: str
    reason: str
    silent: bool
    flags_live: bool
    slot: int
    slot_length: int
    adaptor: int


@dataclass(frozen=True, slots=True)
class Move:
    """A window that moved: the bytes there before and after, and its trampoline's code."""

    start: int
    before: str
    after: str
    trampoline: int
    code: str
    springboard: int

    @property
    def end(self) -> int:
        return self.start + len(self.before) // 2


@dataclass(frozen=True, slots=True)
class Report:
    """The whole story of one patch run."""

    sites: tuple[SiteReport, ...]
    moves: tuple[Move, ...]
    adaptors: tuple[dict[str, int | str], ...]
    skipped: tuple[dict[str, int | str], ...]
    harmless: dict[str, int]
    instructions: int
    sizes: dict[str, int]
    segment: dict[str, int]
    placement: tuple[str, ...]
    warnings: tuple[str, ...]
    compressed: bool

    def __repr__(self) -> str:
        return f"Report({len(self.sites)} sites, {len(self.moves)} windows, {len(self.warnings)} warnings)"

    @property
    def by_tactic(self) -> dict[str, int]:
        """Number of sites per tactic, in the tactics' own order."""
        count = Counter(site.tactic for site in self.sites)
        return {tactic.value: count[tactic.value] for tactic in Tactic if count[tactic.value]}

    @property
    def by_form(self) -> dict[str, int]:
        """Number of sites per normal form, most frequent first."""
        count = Counter(site.form for site in self.sites)
        return dict(sorted(count.items(), key=lambda item: (-item[1], item[0])))

    @property
    def slotted(self) -> int:
        """Number of sites with a slot."""
        return sum(site.slot != 0 and site.tactic != Tactic.TRAP for site in self.sites)

    def to_json(self) -> str:
        """The report as JSON text, keys in a fixed order."""
        total = len(self.sites)
        content = {
            "format": FORMAT,
            "summary": {
                "sites": total,
                "slots": self.slotted,
                "instructions": self.instructions,
                "windows": len(self.moves),
                "adaptors": len(self.adaptors),
                "by_tactic": _shares(self.by_tactic, total),
                "by_form": _shares(self.by_form, total),
                "harmless": self.harmless,
                "sizes": self.sizes,
                "input_was_compressed": self.compressed,
            },
            "segment": self.segment,
            "placement": list(self.placement),
            "warnings": list(self.warnings),
            "sites": [asdict(site) for site in self.sites],
            "windows": [asdict(move) for move in self.moves],
            "adaptors": list(self.adaptors),
            "skipped": list(self.skipped),
        }
        return json.dumps(content, indent=1) + "\n"

    def to_text(self) -> str:
        """A summary of some lines: counts, shares, sizes, warnings."""
        total = len(self.sites)
        lines = [
            f"{total} sensitive instructions among {self.instructions}, {self.slotted} of them in slots "
            f"({_percent(self.slotted, total)})"
        ]
        for tactic, count in self.by_tactic.items():
            lines.append(f"  {tactic:<12}{count:>7}{_percent(count, total):>9}")
        lines.append(
            f"{len(self.moves)} windows moved to trampolines, {len(self.adaptors)} adaptors, "
            f"{self._direct} slots without adaptor"
        )
        lines.append(
            f".vmi segment: {self.sizes['segment']} bytes at {self.segment['vaddr']:#x}; file: "
            f"{self.sizes['input']} -> {self.sizes['output']} bytes"
        )
        if self.compressed:
            lines.append("the input was compressed with gzip, the output is a plain ELF file")
        lines += [f"warning: {warning}" for warning in self.warnings]
        return "\n".join(lines) + "\n"

    @property
    def _direct(self) -> int:
        return sum(1 for site in self.sites if site.slot and site.tactic != Tactic.TRAP and not site.adaptor)

    def explain(self, address: int) -> str:
        """Text about one address: the site there, its window before and after, its trampoline."""
        lines = []
        for site in self.sites:
            if site.address <= address < site.address + len(site.bytes) // 2:
                lines += _site_lines(site)
        for move in self.moves:
            inside = move.start <= address < move.end
            moved = move.trampoline <= address < move.trampoline + len(move.code) // 2
            if inside or moved:
                lines += _move_lines(move)
        for skip in self.skipped:
            if int(skip["start"]) <= address < int(skip["end"]):
                lines.append(f"{address:#x} was not searched: {skip['reason']}")
        return "\n".join(lines or [f"{address:#x} is neither a sensitive instruction nor in a window"]) + "\n"


def make_report(emission: Emission, output_size: int, compressed: bool) -> Report:
    """The report of a finished emission; ``output_size`` in bytes."""
    plan, layout = emission.plan, emission.place.layout
    sites = []
    for placed in emission.sites:
        site, record = placed.site, placed.record
        sites.append(
            SiteReport(
                address=site.address,
                bytes=site.raw.hex(),
                text="; ".join(text for _, _, text in disassemble(site.raw, site.address)),
                form=site.form,
                call=site.call.name if site.call else "",
                tactic=placed.tactic.value,
                reason=placed.reason,
                silent=site.silent,
                flags_live=site.flags_live,
                slot=record.slot if record else 0,
                slot_length=record.length if record else 0,
                adaptor=record.adaptor if record else 0,
            )
        )
    return Report(
        sites=tuple(sites),
        moves=tuple(_move(emission, built) for built in emission.trampolines),
        adaptors=tuple(
            {
                "address": placed.address,
                "call": "inline" if placed.adaptor.hole is None else abi.CALLS[placed.call].name,
                "users": placed.users,
                "code": placed.adaptor.code.hex(),
            }
            for placed in emission.adaptors
        ),
        skipped=tuple({"start": s.start, "end": s.end, "reason": s.reason} for s in plan.skipped),
        harmless=dict(plan.harmless),
        instructions=plan.instructions,
        sizes={
            "input": len(plan.image.data),
            "output": output_size,
            "segment": emission.header.size,
            "trampolines": sum(len(built.code) for built in emission.trampolines),
            "adaptors": sum(len(placed.adaptor.code) for placed in emission.adaptors),
            "tables": emission.header.site_count * 16 + emission.header.link_count * 8,
        },
        segment={
            "vaddr": layout.base,
            "paddr": layout.physical(layout.base),
            "size": emission.header.size,
            "original_entry": emission.header.original_entry,
            "activation_entry": emission.header.activation_entry,
            "site_table": emission.header.sites,
            "link_table": emission.header.links,
        },
        placement=emission.place.reasons,
        warnings=emission.place.warnings,
        compressed=compressed,
    )


def _move(emission: Emission, built: Trampoline) -> Move:
    window = built.window
    return Move(
        start=window.start,
        before=emission.plan.image.read(window.start, window.length).hex(),
        after=emission.edits[window.start].hex(),
        trampoline=built.start,
        code=built.code.hex(),
        springboard=window.springboard or 0,
    )


def _percent(count: int, total: int) -> str:
    return f"{100 * count / total:.1f} %" if total else "-"


def _shares(counts: dict[str, int], total: int) -> dict[str, dict[str, int | float]]:
    return {
        name: {"count": count, "percent": round(100 * count / total, 2)} for name, count in counts.items()
    }


def disassemble(raw: bytes, address: int) -> list[tuple[int, bytes, str]]:
    """(address, bytes, text) of each instruction in ``raw``, in Intel syntax."""
    formatter = Formatter(FormatterSyntax.INTEL)
    formatter.hex_prefix, formatter.hex_suffix = "0x", ""
    formatter.uppercase_hex = False
    formatter.space_after_operand_separator = True
    formatter.branch_leading_zeros = False
    found = []
    for insn in Decoder(32, raw, ip=address):
        at = insn.ip32 - address
        found.append((insn.ip32, raw[at : at + insn.len], formatter.format(insn)))
    return found


def _listing(title: str, raw: str, address: int) -> Iterable[str]:
    yield f"{title}:"
    for at, code, text in disassemble(bytes.fromhex(raw), address):
        yield f"  {at:08x}  {code.hex(' '):<24}{text}"


def _site_lines(site: SiteReport) -> list[str]:
    lines = [f"{site.address:#x}  {site.text}  (form {site.form})"]
    lines.append(f"  call: {site.call or 'none'}; tactic: {site.tactic}")
    if site.reason:
        lines.append(f"  reason: {site.reason}")
    if site.slot:
        how = f"through the adaptor at {site.adaptor:#x}" if site.adaptor else "directly"
        reach = "" if site.tactic == Tactic.TRAP else f", reaches the ROM {how}"
        lines.append(f"  slot: {site.slot:#x}, {site.slot_length} bytes{reach}")
    return lines


def _move_lines(move: Move) -> list[str]:
    jump = move.after[: 2 * (2 if move.springboard else 5)]
    return [
        *_listing("before", move.before, move.start),
        *_listing("after", jump, move.start),
        *_listing("trampoline", move.code, move.trampoline),
    ]
