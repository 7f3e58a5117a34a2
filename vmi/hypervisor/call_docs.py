# SPDX-License-Identifier: GPL-2.0-only
"""Renders where each call is served, as the table in docs/hypervisor.md.

It comes from the ROM flavour's table and the handlers' own words, so it can't say anything that they
don't. A test compares; ``python -m vmi.hypervisor.call_docs`` prints the table.
"""

from __future__ import annotations

from vmi import abi
from vmi.abi import Reloc
from vmi.hypervisor import calls
from vmi.rom.flavours import get
from vmi.rom.template import Template


def where(template: Template) -> str:
    """Who serves a call: ROM, hypervisor, or the one as long as it can."""
    if template.relocation is Reloc.NONE:
        return "nobody"
    if template.is_gate:
        return "hypervisor"
    return "ROM, else hypervisor" if "@gate" in template.source or "_gate" in template.source else "ROM"


def what(call: abi.Call, template: Template) -> str:
    """Why a call is not offered, or what the hypervisor does for it, in the words of its code."""
    handler = calls.load_all().get(call.number)
    if template.reason or handler is None:
        return template.reason
    return (handler.__doc__ or "").split("\n\n")[0].replace("\n    ", " ")


def render(flavour: str = "vmware") -> str:
    """The table as Markdown, one row a call."""
    lines = ["| call | served by | hypervisor's part, or why nobody |", "| --- | --- | --- |"]
    for call in abi.CALLS:
        template = get(flavour).template(call)
        lines.append(f"| {call.number} {call.name} | {where(template)} | {what(call, template)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(render(), end="")
