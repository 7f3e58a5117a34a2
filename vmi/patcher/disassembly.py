# SPDX-License-Identifier: GPL-2.0-only
"""Instructions as text, for reports and for looking at files. Intel syntax, numbers as in C."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from iced_x86 import Decoder, Formatter, FormatterSyntax


@dataclass(frozen=True, slots=True)
class Row:
    """One instruction of a listing."""

    address: int
    code: bytes
    text: str

    def __str__(self) -> str:
        return f"{self.address:08x}  {self.code.hex():<14} {self.text}"


@cache
def _formatter() -> Formatter:
    formatter = Formatter(FormatterSyntax.INTEL)
    formatter.hex_prefix, formatter.hex_suffix = "0x", ""
    formatter.uppercase_hex = False
    formatter.space_after_operand_separator = True
    formatter.branch_leading_zeros = False
    return formatter


def disassemble(raw: bytes, address: int) -> list[Row]:
    """Each instruction in ``raw``, which is at virtual ``address``."""
    formatter = _formatter()
    found = []
    for insn in Decoder(32, raw, ip=address):
        at = (insn.ip32 - address) & 0xFFFFFFFF
        code = raw[at : at + insn.len]
        # What pads slots has another name with a prefix.
        text = "nop" if code.lstrip(b"\x66") == b"\x90" else formatter.format(insn)
        found.append(Row(insn.ip32, code, text))
    return found


def one_line(raw: bytes, address: int) -> str:
    """The instructions in ``raw`` with semicolons between them."""
    return "; ".join(row.text for row in disassemble(raw, address))
