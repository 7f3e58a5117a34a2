# SPDX-License-Identifier: GPL-2.0-only
"""Look at a kernel file, patched or not, without changing it.

For a patched file this reads back what ``docs/site-table.md`` describes; for any other it says what
the patcher would find. Both give facts as JSON for tools and as text for people.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property

from vmi import abi, sitetable
from vmi.errors import BadInput
from vmi.patcher import adaptors, elf, undo
from vmi.patcher.container import Container, open_container
from vmi.patcher.disassembly import one_line
from vmi.patcher.explain import Explainer
from vmi.patcher.model import Access, Image, Segment
from vmi.patcher.plan import make_plan
from vmi.sitetable import SiteTable, Tactic

Cross = Mapping[str, Mapping[str, int]]
"""Counts by name of an instruction or call, then by tactic."""


@dataclass(frozen=True)
class Inspection:
    """What a kernel file holds. ``table`` is None for a kernel that is not patched.

    ``cross`` counts by instruction and tactic in a kernel that isn't patched, by call and tactic in one that
    is. ``reasons`` counts the sites without a slot by why they have none; a patched file doesn't tell.
    """

    source: Container = field(repr=False)
    image: Image
    table: SiteTable | None
    cross: Cross
    reasons: Mapping[str, int]

    @property
    def patched(self) -> bool:
        return self.table is not None

    @property
    def undoable(self) -> bool:
        """The file ends with a record by which the original can be made again."""
        return undo.MAGIC in self.source.data[-64:]

    @property
    def counts(self) -> dict[str, int]:
        """Number of sites per tactic, in the order of the tactics' names."""
        total: Counter[str] = Counter()
        for row in self.cross.values():
            total.update(row)
        return dict(sorted(total.items()))

    @property
    def forms(self) -> dict[str, int]:
        """Number of sites per instruction, or of records per call, most frequent first."""
        return {name: sum(row.values()) for name, row in self.cross.items()}

    def __repr__(self) -> str:
        return f"Inspection({'' if self.patched else 'not '}patched, {sum(self.counts.values())} sites)"

    @cached_property
    def original(self) -> Image | None:
        """The kernel before it was patched, from the undo record; None where there is none, or no good one.

        Takes as long as compressing a bzImage does.
        """
        if not self.undoable:
            return None
        try:
            source = open_container(undo.restore(self.source.data))
            return replace(elf.load(source.kernel), displaced=source.displaced)
        except BadInput:
            return None

    def explainer(self) -> Explainer:
        """Answers about addresses of a patched file; raises BadInput for another."""
        if self.table is None:
            raise BadInput("the file isn't patched: `vmi patch --explain` says what would become of it")
        return Explainer(self.image, self.table, self.original)

    # ------------------------------------------------------------ output

    def to_json(self) -> str:
        """All facts as JSON text; for a patched file with every record."""
        content: dict[str, object] = {
            "patched": self.patched,
            "container": self.source.kind.value,
            "undo": self.undoable,
            "entry": self.image.entry,
            "multiboot": elf.multiboot(self.image.data) is not None,
            "segments": [
                {
                    "vaddr": segment.vaddr,
                    "paddr": segment.paddr,
                    "file_size": segment.filesz,
                    "memory_size": segment.memsz,
                    "flags": rwx(segment),
                }
                for segment in self.image.segments
            ],
            "by_tactic": self.counts,
            "by_call" if self.patched else "by_form": self.forms,
            "cross": {name: dict(row) for name, row in self.cross.items()},
            "reasons": dict(self.reasons),
        }
        if self.table is not None:
            content["header"] = asdict(self.table.header)
            content["sites"] = [
                {
                    "slot": record.slot,
                    "length": record.length,
                    "call": call_name(record.call),
                    "tactic": record.tactic.value,
                    "flags": int(record.flags),
                    "adaptor": record.adaptor,
                    "site": record.site,
                }
                for record in self.table.sites
            ]
            content["links"] = [
                {"address": link.address, "call": call_name(link.call)} for link in self.table.links
            ]
        return json.dumps(content, indent=1) + "\n"

    def to_text(self, sites: bool = False) -> str:
        """Some lines for people; with ``sites`` one more line per record."""
        kind = "" if self.source.kind == "elf" else f" ({self.source.kind.value})"
        lines = [f"entry {self.image.entry:#x}, " + ("patched" if self.patched else "not patched") + kind]
        for segment in self.image.segments:
            where = f"{segment.vaddr:#010x}  pa {segment.paddr:#010x}"
            lines.append(f"  {where}  {segment.memsz:#9x} bytes  {rwx(segment)}")
        lines.append(f"{sum(self.counts.values())} sites")
        lines += [f"  {name:<12}{count:>7}" for name, count in self.counts.items()]
        lines.append("calls:" if self.patched else "instructions:")
        lines += [f"  {name:<18}{count:>7}" for name, count in self.forms.items()]
        if self.table is not None:
            header = self.table.header
            home = elf.vmi_segment(self.image)
            if home is not None and header.image_flags & sitetable.ImageFlag.LIFTED:
                belongs = home.vaddr - header.bias & 0xFFFFFFFF
                lines.append(f"the .vmi segment is moved to pa {belongs:#010x} before the kernel starts")
            lines += [
                f"original entry {header.original_entry:#x}, activation {header.activation_entry:#x}",
                f"room for a ROM of {header.rom_reserve_size} bytes at {header.rom_reserve:#x}",
                f"{header.link_count} adaptors that call the ROM",
                "the original can be restored from the record at the file's end"
                if self.undoable
                else "no record to restore the original from",
            ]
        if sites:
            lines += self.site_lines()
        return "\n".join(lines) + "\n"

    def site_lines(self) -> list[str]:
        """One line per record of a patched file: where it was, where the slot is, how it is connected."""
        lines = []
        for record in self.table.sites if self.table is not None else ():
            text = one_line(self.image.read(record.slot, record.length), record.slot)
            how = f"adaptor {record.adaptor:#x}" if record.adaptor else "direct" if record.has_call else ""
            where = f"{record.site:08x} -> {record.slot:08x}+{record.length}"
            name = call_name(record.call)
            lines.append(f"  {where} {name:<18}{record.tactic.value:<12}{how:<20}{text}")
        return lines


def inspect_file(data: bytes) -> Inspection:
    """Inspect a kernel file's bytes; raises BadInput for what is no kernel or has damaged tables."""
    source = open_container(data)
    image = replace(elf.load(source.kernel, patched=True), displaced=source.displaced)
    home = elf.vmi_segment(image)
    if home is None:
        plan = make_plan(image, adaptors.refusal)
        pairs = ((p.site.form, p.tactic) for p in plan.placements)
        reasons = Counter(p.reason for p in plan.placements if p.reason)
        return Inspection(source, image, None, _cross(pairs), dict(reasons.most_common()))
    found = site_table(home)
    return Inspection(source, image, found, _cross((call_name(r.call), r.tactic) for r in found.sites), {})


def _cross(pairs: Iterable[tuple[str, Tactic]]) -> Cross:
    rows: dict[str, Counter[str]] = {}
    for name, tactic in pairs:
        rows.setdefault(name, Counter())[tactic.value] += 1
    ordered = sorted(rows, key=lambda name: (-rows[name].total(), name))
    return {name: dict(sorted(rows[name].items())) for name in ordered}


def site_table(segment: Segment) -> SiteTable:
    """The tables of a `.vmi` segment; raises BadInput when a record names no call that there is."""
    found = sitetable.parse(segment.data, segment.vaddr)
    numbers = {site.call for site in found.sites if site.has_call} | {link.call for link in found.links}
    for number in sorted(numbers - {sitetable.INLINE}):
        if number >= len(abi.CALLS):
            raise BadInput(f"a record of the .vmi segment names call {number}, which does not exist")
    return found


def call_name(number: int) -> str:
    """The name of a record's call; "trap" and "inline" for the two numbers that mean none."""
    if number == sitetable.NO_CALL:
        return "trap"
    return "inline" if number == sitetable.INLINE else abi.CALLS[number].name


def rwx(segment: Segment) -> str:
    """A segment's permissions as in `ls`."""
    bits = (("r", Access.R), ("w", Access.W), ("x", Access.X))
    return "".join(letter if segment.flags & bit else "-" for letter, bit in bits)
