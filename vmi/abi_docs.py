# SPDX-License-Identifier: GPL-2.0-only
"""Renders the ABI table as the reference page docs/abi.md.

The page is written by this module alone, so it can't say anything that the table doesn't. A test
compares the file with the output; ``python -m vmi.abi_docs > docs/abi.md`` brings it up to date.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import IntFlag

from vmi import abi

_INTRODUCTION = """\
# The VMI ABI, API 3.0

Generated from `vmi/abi.py` by `python -m vmi.abi_docs`; edit the table, not this page.

A guest kernel finds an option ROM between C0000h and DFFFFh, on a 2 KiB boundary, by its signatures
and major version. It calls the entry at offset 80h once (VMI_Init) to let the hypervisor take over,
and the entry at offset 88h (GetRelocationInfo) for each call it wants to use. From then on its
sensitive instructions are calls into the ROM.

**Convention.** gcc `regparm(3)`: arguments in EAX, EDX, ECX, then on the stack; the first stack
argument is at [esp+4] on entry, and the caller removes it. Results come in EAX or EDX:EAX. EBX, ESI,
EDI and EBP survive, DF is clear on return, and nothing is said about an error: a bad argument is
undefined or a fault. Calls with the *native* convention take the registers of the instruction they
stand for; *frame* means the stack frame of that instruction. CS, SS, DS and ES must be flat, but the
four interrupt-flag calls, IRET and SYSEXIT need CS and SS only; FS and GS may hold anything.

**Clobbers.** *std* is EAX, ECX, EDX and flags, as far as they hold no result; *flags* is flags only.

**Levels.** A hypervisor can be built, and checked, in this order:"""


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    cells = [head, ["---"] * len(head), *rows]
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells]
    return ["", *lines, ""]


def _requirements(requirements: Iterable[abi.Requirement]) -> list[str]:
    return ["", *(f"- **{item.id}** {item.text}" for item in requirements), ""]


def _layout(title: str, fields: tuple[abi.Field, ...]) -> list[str]:
    last = fields[-1]
    rows = [(f"{f.offset:02X}h", str(f.size), f"`{f.name}`", f.meaning) for f in fields]
    return [
        f"### {title} ({last.offset + last.size} bytes)",
        *_table(("offset", "size", "field", "meaning"), rows),
    ]


def _constants(constants: abi.Constants) -> list[str]:
    hexadecimal = issubclass(constants.kind, IntFlag)
    rows = [
        (f"{value:X}h" if hexadecimal else str(int(value)), f"{constants.kind(value).name}", meaning)
        for value, meaning in constants.meanings
    ]
    return [f"### {constants.title}", *_table(("value", "name", "meaning"), rows)]


def _call(call: abi.Call) -> list[str]:
    operands = abi.operands(call)
    return [
        f"### {call.number} {call.name}",
        "",
        call.summary,
        *(_table(("", "place", "name", "type", "meaning"), operands) if operands else [""]),
        *(f"- {label}: {text}" for label, text in abi.facts(call)),
        "",
        "Requirements:",
        *_requirements(call.requirements),
    ]


def render() -> str:
    """Return the whole page, Markdown, ending in one newline; the same text every time."""
    lines = [_INTRODUCTION, ""]
    lines += [f"{level}. {name}" for level, name in enumerate(abi.LEVELS)]
    lines += ["", "## All calls", *_table(abi.SUMMARY_COLUMNS, abi.summary_rows())]
    lines += ["## Layouts", ""]
    for title, fields in abi.LAYOUTS:
        lines += _layout(title, fields)
    lines += ["## Constants", ""]
    for constants in abi.CONSTANTS:
        lines += _constants(constants)
    lines += ["## ROM, entries and convention", ""]
    for topic in abi.TOPICS:
        lines += [f"### {topic.title}", *_requirements(topic.requirements)]
    lines += ["## Calls in detail", ""]
    for call in abi.CALLS:
        lines += _call(call)
    return "\n".join(lines).rstrip("\n") + "\n"


if __name__ == "__main__":
    print(render(), end="")
