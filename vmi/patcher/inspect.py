# SPDX-License-Identifier: GPL-2.0-only
"""Look at a kernel file, patched or not, without changing it.

For a patched file this reads back what ``docs/site-table.md`` describes; for any other it says what
the patcher would find. Both give facts as JSON for tools and as text for people.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass

from vmi import abi, sitetable
from vmi.errors import BadInput
from vmi.patcher import adaptors, elf
from vmi.patcher.disassembly import one_line
from vmi.patcher.model import Access, Image, Segment
from vmi.patcher.plan import make_plan
from vmi.sitetable import SiteTable


@dataclass(frozen=True, slots=True)
class Inspection:
    """What a kernel file holds. ``table`` is None for a kernel that is not patched."""

    image: Image
    table: SiteTable | None
    counts: dict[str, int]  # sites per tactic
    forms: dict[str, int]  # unpatched: sites per normal form; patched: records per call name

    @property
    def patched(self) -> bool:
        return self.table is not None

    def __repr__(self) -> str:
        return f"Inspection({'' if self.patched else 'not '}patched, {sum(self.counts.values())} sites)"

    def to_json(self) -> str:
        """All facts as JSON text; for a patched file with every record."""
        content: dict[str, object] = {
            "patched": self.patched,
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
        lines = [f"entry {self.image.entry:#x}, " + ("patched" if self.patched else "not patched")]
        for segment in self.image.segments:
            where = f"{segment.vaddr:#010x}  pa {segment.paddr:#010x}"
            lines.append(f"  {where}  {segment.memsz:#9x} bytes  {rwx(segment)}")
        lines.append(f"{sum(self.counts.values())} sites")
        lines += [f"  {name:<12}{count:>7}" for name, count in self.counts.items()]
        lines.append("calls:" if self.patched else "instructions:")
        lines += [f"  {name:<18}{count:>7}" for name, count in self.forms.items()]
        if self.table is not None:
            header = self.table.header
            lines += [
                f"original entry {header.original_entry:#x}, activation {header.activation_entry:#x}",
                f"room for a ROM of {header.rom_reserve_size} bytes at {header.rom_reserve:#x}",
                f"{header.link_count} adaptors",
            ]
            if sites:
                lines += self._site_lines(self.table)
        return "\n".join(lines) + "\n"

    def _site_lines(self, found: SiteTable) -> list[str]:
        lines = []
        for record in found.sites:
            raw = self.image.read(record.slot, record.length)
            text = one_line(raw, record.slot)
            how = f"adaptor {record.adaptor:#x}" if record.adaptor else "direct" if record.has_call else ""
            where = f"{record.site:08x} -> {record.slot:08x}+{record.length}"
            lines.append(f"  {where} {call_name(record.call):<18}{how:<20}{text}")
        return lines


def inspect_file(data: bytes) -> Inspection:
    """Inspect a kernel file's bytes; raises BadInput for what is no kernel or has damaged tables."""
    image = elf.load(data, patched=True)
    home = elf.vmi_segment(image)
    if home is None:
        plan = make_plan(image, adaptors.refusal)
        counts = {tactic.value: count for tactic, count in sorted(plan.by_tactic.items())}
        return Inspection(image, None, counts, dict(plan.by_form.most_common()))
    found = site_table(home)
    tactics = Counter(record.tactic.value for record in found.sites)
    calls = Counter(call_name(record.call) for record in found.sites)
    return Inspection(image, found, dict(sorted(tactics.items())), dict(calls.most_common()))


def site_table(segment: Segment) -> SiteTable:
    """The tables of a `.vmi` segment; raises BadInput when a record names no call that there is."""
    found = sitetable.parse(segment.data, segment.vaddr)
    numbers = {site.call for site in found.sites if site.has_call} | {link.call for link in found.links}
    for number in sorted(numbers):
        if number >= len(abi.CALLS) and number != sitetable.INLINE:
            raise BadInput(f"a record of the .vmi segment names call {number}, which does not exist")
    return found


def call_name(number: int) -> str:
    """The name of a record's call, "trap" or "inline" for the numbers that mean none."""
    names = {sitetable.NO_CALL: "trap", sitetable.INLINE: "inline"}
    return names.get(number) or abi.CALLS[number].name


def rwx(segment: Segment) -> str:
    """A segment's permissions as in `ls`."""
    bits = (("r", Access.R), ("w", Access.W), ("x", Access.X))
    return "".join(letter if segment.flags & bit else "-" for letter, bit in bits)
