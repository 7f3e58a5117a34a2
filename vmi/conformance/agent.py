# SPDX-License-Identifier: GPL-2.0-only
"""The guest's code, shipped built: ``guest/agent.bin`` and its labels, made from ``guest/agent.s``.

``python -m vmi.conformance.agent`` builds both anew; a test compares them with the source.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import NamedTuple

from vmi.conformance import layout

_FOLDER = Path(__file__).parent / "guest"


class Agent(NamedTuple):
    """Code for :data:`vmi.conformance.layout.AGENT`, and where each label is."""

    code: bytes
    labels: dict[str, int]


@cache
def load() -> Agent:
    """The code as it is shipped."""
    labels: dict[str, int] = json.loads((_FOLDER / "agent.json").read_text(encoding="ascii"))
    return Agent((_FOLDER / "agent.bin").read_bytes(), labels)


def build() -> Agent:
    """The code made anew from its source."""
    from vmi.rom.assemble import assemble

    made = assemble((_FOLDER / "agent.s").read_text(encoding="utf-8"), layout.AGENT, layout.SYMBOLS)
    return Agent(made.code, dict(made.labels))


if __name__ == "__main__":
    _made = build()
    (_FOLDER / "agent.bin").write_bytes(_made.code)
    (_FOLDER / "agent.json").write_text(json.dumps(_made.labels, indent=1) + "\n", encoding="ascii")
