# SPDX-License-Identifier: GPL-2.0-only
"""What a patch run did, site by site: as JSON for tools, as a short text for people.

A miss must never be silent, so every sensitive instruction of the kernel is in the report, with the
reason when it has no slot. The JSON holds nothing that changes from run to run: no time, no path. Its
form is published as ``report.schema.json`` beside this file. What becomes of one address is ``explain``'s.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from vmi import abi
from vmi.patcher.disassembly import one_line
from vmi.patcher.emit import Emission, PlacedSite
from vmi.patcher.trampoline import Trampoline
from vmi.sitetable import LINK_SIZE, SITE_SIZE, Tactic

FORMAT = 2
"""Version of the JSON report; it changes when a key changes its meaning or goes away."""

DISCOVERED, ANNOTATED = "discovered", "annotated"
INLINE = "inline"
"""Stands where a call's name would, for adaptors that call nothing."""


@dataclass(frozen=True, slots=True)
class SiteReport:
    """One sensitive instruction. Addresses are virtual; 0 = none.

    ``call``: the VMI call's name, "inline" for an adaptor that needs none, else empty. ``copies``: more slots
    of an instruction that stays where it is (tactic edge). ``source``: who says that it is a site.
    """

    address: int
    bytes: str
    text: str
    form: str
    call: str
    tactic: str
    reason: str
    silent: bool
    flags_live: bool
    isolated: bool
    recovered: bool
    padded_after: bool
    source: str
    slot: int
    slot_length: int
    adaptor: int
    copies: tuple[int, ...] = ()

    @property
    def end(self) -> int:
        return self.address + len(self.bytes) // 2

    @property
    def has_slot(self) -> bool:
        return Tactic(self.tactic).has_slot

    def facts(self) -> dict[str, Any]:
        """The fields by name, as plain values."""
        return {name: getattr(self, name) for name in self.__slots__} | {"copies": list(self.copies)}


@dataclass(frozen=True, slots=True)
class Piece:
    """Code of a trampoline; most have one piece, those in the text's padding have several."""

    address: int
    code: str


@dataclass(frozen=True, slots=True)
class Move:
    """A window that moved: the bytes there before and after, and its trampoline."""

    start: int
    before: str
    after: str
    springboard: int
    in_padding: bool
    pieces: tuple[Piece, ...]

    @property
    def end(self) -> int:
        return self.start + len(self.before) // 2

    @property
    def trampoline(self) -> int:
        """Where the window's jump leads, over a springboard or not."""
        return self.pieces[0].address


@dataclass(frozen=True, slots=True)
class Input:
    """What the file was that was patched: ``kind`` is that of its container; notes are sentences."""

    kind: str = "elf"
    size: int = 0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Report:
    """The whole story of one patch run."""

    sites: tuple[SiteReport, ...]
    moves: tuple[Move, ...]
    adaptors: tuple[dict[str, int | str], ...]
    skipped: tuple[dict[str, int | str], ...]
    refused: tuple[dict[str, int | str], ...]
    harmless: dict[str, int]
    instructions: int
    sizes: dict[str, int]
    segment: dict[str, int]
    strategy: str
    text_padding: bool
    hide_nx: bool
    placement: tuple[str, ...]
    warnings: tuple[str, ...]
    input: Input

    def __repr__(self) -> str:
        return f"Report({len(self.sites)} sites, {len(self.moves)} windows, {len(self.warnings)} warnings)"

    # ------------------------------------------------------------ counts

    @property
    def by_tactic(self) -> dict[str, int]:
        """Number of sites per tactic, in the tactics' own order."""
        count = Counter(site.tactic for site in self.sites)
        return {tactic.value: count[tactic.value] for tactic in Tactic if count[tactic.value]}

    @property
    def slotted(self) -> int:
        """Number of sites with a slot."""
        return sum(site.has_slot for site in self.sites)

    @property
    def replaceable(self) -> int:
        """Number of sites that a VMI call or an adaptor of their own can stand for."""
        return sum(bool(site.call) for site in self.sites)

    def coverage(self, key: Callable[[SiteReport], str]) -> dict[str, dict[str, int | float]]:
        """Sites, slots and their share for each value of ``key``, most sites first."""
        total = Counter(key(site) for site in self.sites)
        slots = Counter(key(site) for site in self.sites if site.has_slot)
        return {
            name: {"sites": count, "slots": slots[name], "percent": _share(slots[name], count)}
            for name, count in sorted(total.items(), key=lambda item: (-item[1], item[0]))
        }

    # ------------------------------------------------------------ JSON

    def facts(self) -> dict[str, Any]:
        """The report as plain values, keys in a fixed order."""
        total, grown = len(self.sites), self.sizes["output"] - self.input.size
        return {
            "format": FORMAT,
            "summary": {
                "sites": total,
                "slots": self.slotted,
                "replaceable": self.replaceable,
                "percent_of_replaceable": _share(self.slotted, self.replaceable),
                "percent_of_all": _share(self.slotted, total),
                "instructions": self.instructions,
                "windows": len(self.moves),
                "windows_in_padding": sum(move.in_padding for move in self.moves),
                "adaptors": len(self.adaptors),
                "by_tactic": {
                    name: {"count": count, "percent": _share(count, total)}
                    for name, count in self.by_tactic.items()
                },
                "by_call": self.coverage(lambda site: site.call or "none"),
                "by_form": self.coverage(lambda site: site.form),
                "harmless": self.harmless,
                "sizes": self.sizes,
                "growth": {"bytes": grown, "percent": _share(grown, self.input.size)},
            },
            "input": {"kind": self.input.kind, "size": self.input.size, "notes": list(self.input.notes)},
            "placement": {
                "strategy": self.strategy,
                **self.segment,
                "text_padding": self.text_padding,
                "hide_nx": self.hide_nx,
                "reasons": list(self.placement),
                "warnings": list(self.warnings),
            },
            "sites": [site.facts() for site in self.sites],
            "windows": [
                {
                    "start": move.start,
                    "before": move.before,
                    "after": move.after,
                    "springboard": move.springboard,
                    "in_padding": move.in_padding,
                    "pieces": [{"address": piece.address, "code": piece.code} for piece in move.pieces],
                }
                for move in self.moves
            ],
            "adaptors": list(self.adaptors),
            "skipped": list(self.skipped),
            "refused": list(self.refused),
        }

    def to_json(self) -> str:
        """The report as JSON text, a line for each site or window: the same run gives the same bytes."""
        parts = [f"{json.dumps(name)}: {_rows(value)}" for name, value in self.facts().items()]
        return "{\n" + ",\n".join(parts) + "\n}\n"

    # ------------------------------------------------------------ text

    def to_text(self) -> str:
        """A summary of some lines: counts, shares, sizes, warnings."""
        total = len(self.sites)
        lines = [
            f"{total} sensitive instructions among {self.instructions}, {self.slotted} of them in slots "
            f"({_percent(self.slotted, total)})",
            f"  that is {_percent(self.slotted, self.replaceable)} of the {self.replaceable} for which "
            "a VMI call or an adaptor can stand",
        ]
        for tactic, count in self.by_tactic.items():
            lines.append(f"  {tactic:<12}{count:>7}{_percent(count, total):>9}")
        inside = sum(move.in_padding for move in self.moves)
        padding = f" ({inside} of them in padding of the text)" if inside else ""
        direct = sum(site.has_slot and not site.adaptor for site in self.sites)
        lines.append(
            f"{len(self.moves)} windows moved to trampolines{padding}, {len(self.adaptors)} adaptors, "
            f"{direct} slots without adaptor"
        )
        grown = f"{100 * (self.sizes['output'] / max(1, self.input.size) - 1):+.1f} %"
        lines.append(
            f".vmi segment: {self.sizes['segment']} bytes at {self.segment['vaddr']:#x} ({self.strategy}); "
            f"file: {self.input.size} -> {self.sizes['output']} bytes ({grown})"
        )
        if self.input.kind == "gzip":
            lines.append("the input was compressed with gzip, the output is a plain ELF file")
        lines += [f"note: {note}" for note in self.input.notes]
        lines += [f"warning: {warning}" for warning in self.warnings]
        return "\n".join(lines) + "\n"


def schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) that every report keeps to."""
    text = files("vmi.patcher").joinpath("report.schema.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


def make_report(
    emission: Emission,
    output_size: int,
    given: Input,
    *,
    sources: Mapping[int, str] | None = None,
    refused: Iterable[tuple[int, str, str]] = (),
) -> Report:
    """The report of a finished emission; ``output_size`` in bytes.

    ``sources``: who named a site, by address, where it was not found by searching. ``refused``: address,
    source and reason of what was named and is no site.
    """
    plan, place, header = emission.plan, emission.place, emission.header
    layout = place.layout
    return Report(
        sites=tuple(_site(placed, sources or {}) for placed in emission.sites),
        moves=tuple(_move(emission, built) for built in emission.trampolines),
        adaptors=tuple(
            {
                "address": placed.address,
                "call": INLINE if placed.adaptor.hole is None else abi.CALLS[placed.call].name,
                "users": placed.users,
                "code": placed.adaptor.code.hex(),
            }
            for placed in emission.adaptors
        ),
        skipped=tuple({"start": s.start, "end": s.end, "reason": s.reason} for s in plan.skipped),
        refused=tuple({"address": at, "source": who, "reason": why} for at, who, why in refused),
        harmless=dict(plan.harmless),
        instructions=plan.instructions,
        sizes={
            "kernel": len(plan.image.data),
            "output": output_size,
            "segment": header.size,
            "trampolines": sum(len(built.code) for built in emission.trampolines),
            "in_padding": sum(len(built.code) for built in emission.trampolines if built.window.pads),
            "padding_left": sum(pad.size for pad in plan.padding),
            "adaptors": sum(len(placed.adaptor.code) for placed in emission.adaptors),
            "tables": header.site_count * SITE_SIZE + header.link_count * LINK_SIZE,
        },
        segment={
            "vaddr": layout.base,
            "paddr": layout.loaded(layout.base),
            "size": header.size,
            "original_entry": header.original_entry,
            "activation_entry": header.activation_entry,
            "site_table": header.sites,
            "link_table": header.links,
        },
        strategy=place.strategy.value,
        text_padding=place.text_padding,
        hide_nx=place.hide_nx,
        placement=place.reasons,
        warnings=place.warnings,
        input=given,
    )


def _site(placed: PlacedSite, sources: Mapping[int, str]) -> SiteReport:
    site, record = placed.site, placed.record
    found = ANNOTATED if placed.tactic is Tactic.ANNOTATED else DISCOVERED
    return SiteReport(
        address=site.address,
        bytes=site.raw.hex(),
        text=one_line(site.raw, site.address),
        form=site.form,
        call=site.call.name if site.call else INLINE if site.inline else "",
        tactic=placed.tactic.value,
        reason=placed.reason,
        silent=site.silent,
        flags_live=site.flags_live,
        isolated=site.isolated,
        recovered=site.recovered,
        padded_after=site.pad_after,
        source=sources.get(site.address, found),
        slot=record.slot if record else 0,
        slot_length=record.length if record else 0,
        adaptor=record.adaptor if record else 0,
        copies=tuple(other.slot for other in placed.records[1:]),
    )


def _move(emission: Emission, built: Trampoline) -> Move:
    window = built.window
    return Move(
        start=window.start,
        before=emission.plan.image.read(window.start, window.length).hex(),
        after=emission.edits[window.start].hex(),
        springboard=window.springboard or 0,
        in_padding=bool(window.pads),
        pieces=tuple(Piece(piece.start, piece.code.hex()) for piece in built.pieces),
    )


def _rows(value: object) -> str:
    """A value as JSON. In lists and objects there is one line for each member: the encoder makes such a line
    much faster than one that it indents."""
    if isinstance(value, list) and value:
        return "[\n " + ",\n ".join(map(json.dumps, value)) + "\n]"
    if isinstance(value, dict) and value:
        return "{\n " + ",\n ".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in value.items()) + "\n}"
    return json.dumps(value)


def _share(count: int, total: int) -> float:
    return round(100 * count / total, 2) if total else 0.0


def _percent(count: int, total: int) -> str:
    return f"{100 * count / total:.1f} %" if total else "-"
