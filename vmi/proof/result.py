# SPDX-License-Identifier: GPL-2.0-only
"""What a proof found: numbers, and each disagreement with all that is needed to see it again."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field

NATIVE = "native"
CONNECTED = "connected"
"""The two states of a patched kernel: without a ROM, and with all slots connected to the native ROM."""


@dataclass(frozen=True, slots=True)
class Disagreement:
    """A window whose moved code does something else than the original.

    ``trial`` and ``window`` give the same run again; -1: no run showed it, but the files alone. ``state`` is
    the start of the run.
    """

    window: int
    trial: int
    mode: str
    what: str
    state: str = ""
    path: tuple[int, ...] = ()

    def __str__(self) -> str:
        which = f"trial {self.trial}, {self.mode}" if self.trial >= 0 else self.mode
        return f"window {self.window:#x} ({which}): {self.what}"


@dataclass(frozen=True, slots=True)
class Count:
    """Runs of one mode, by how the original ended; ``later``: registers agreed only further on."""

    runs: int = 0
    arrived: int = 0
    faults: int = 0
    leaves: int = 0
    endless: int = 0
    later: int = 0
    open: int = 0


@dataclass(frozen=True)
class Proof:
    """The result for a whole file. ``trials`` is per window and mode."""

    windows: int
    sites: int
    trials: int
    counts: dict[str, Count]
    disagreements: tuple[Disagreement, ...] = field(repr=False)

    @property
    def agrees(self) -> bool:
        """True when nothing disagrees."""
        return not self.disagreements

    def to_json(self) -> str:
        """All of it as JSON text."""
        content = {
            "agrees": self.agrees,
            "windows": self.windows,
            "sites": self.sites,
            "trials": self.trials,
            "runs": {mode: asdict(count) for mode, count in self.counts.items()},
            "disagreements": [asdict(one) for one in self.disagreements],
        }
        return json.dumps(content, indent=1) + "\n"

    def to_text(self) -> str:
        """Some lines for people."""
        lines = [f"{self.windows} windows with {self.sites} sites, {self.trials} trials of each"]
        for mode, count in self.counts.items():
            later = f", {count.later} agreed some instructions later" if count.later else ""
            opened = f", {count.open} not decided" if count.open else ""
            lines.append(
                f"{mode}: {count.runs} runs compared with the original: {count.arrived} went through,"
                f" {count.faults} ended in an exception, {count.leaves} at a change of segment or level,"
                f" {count.endless} had no end{later}{opened}"
            )
        if self.agrees:
            lines.append("the patched kernel does what the original does in all of them")
        else:
            places = len({one.window for one in self.disagreements})
            lines.append(f"{len(self.disagreements)} disagreements in {places} windows:")
            lines += [f"  {one}" for one in self.disagreements]
        return "\n".join(lines) + "\n"
