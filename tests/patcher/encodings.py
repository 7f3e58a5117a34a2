# SPDX-License-Identifier: GPL-2.0-only
"""Every way to encode every sensitive instruction, found by asking the decoder about all opcodes.

So a form that is new in the table is in here without anybody's doing, and a test that goes through all
of this can't forget one.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import cache

from iced_x86 import Decoder, Instruction

from vmi.patcher.forms import PAGE_TABLE_FORMS, Form, classify, pair

DISPLACEMENT = 0x40
ABSOLUTE = 0x5100
"""What stands in for displacements: of a register, and of none."""

SEGMENTS = {"es": 0x26, "cs": 0x2E, "ss": 0x36, "ds": 0x3E, "fs": 0x64, "gs": 0x65}
_OPCODES = [map_ + bytes([op]) for map_ in (b"", b"\x0f", b"\x0f\x38", b"\x0f\x3a") for op in range(256)]

_PREFIXES = (b"", b"\x66", b"\xf3", b"\xf2")

# Instructions that store, for the forms that no opcode tells: opcode, digit of ModRM or None for a
# register operand, bytes of the immediate operand.
_PLAIN = ((b"\x89", None, 0), (b"\xc7", 0, 4))
_OTHER = (
    (b"\x87", None, 0),  # xchg
    (b"\x66\x89", None, 0),  # mov, 16 bits
    (b"\x88", None, 0),  # mov, 8 bits
    (b"\xc6", 0, 1),
    (b"\x21", None, 0),  # and
    (b"\xf0\x21", None, 0),
    (b"\xf0\x83", 1, 1),  # lock or imm8
    (b"\x80", 4, 1),  # and, 8 bits
    (b"\xf0\x0f\xba", 6, 1),  # lock btr
    (b"\x0f\xba", 5, 1),  # bts
    (b"\xf0\x0f\xc1", None, 0),  # lock xadd
    (b"\xf0\x0f\xb1", None, 0),  # lock cmpxchg
    (b"\xff", 0, 0),  # inc
    (b"\x0f\x94", 0, 0),  # setz
)
_LONG = (*_PLAIN, *_OTHER, (b"\xf0\x0f\xc7", 1, 0), (b"\x0f\xc7", 1, 0))  # cmpxchg8b


def decode(raw: bytes) -> Instruction:
    return Decoder(32, raw).decode()


def _tail(modrm: int, sib: int | None) -> bytes:
    """ModRM, SIB and displacement."""
    mod, rm = modrm >> 6, modrm & 7
    raw = bytes([modrm])
    absolute = mod == 0 and rm == 5
    if mod != 3 and rm == 4:
        assert sib is not None
        raw += bytes([sib])
        absolute = mod == 0 and sib & 7 == 5
    if absolute:
        return raw + ABSOLUTE.to_bytes(4, "little")
    return raw + (b"", bytes([DISPLACEMENT]), DISPLACEMENT.to_bytes(4, "little"), b"")[mod]


def _operands(digit: int | None) -> Iterator[bytes]:
    """All of ModRM and what belongs to it, with one scale for each pair of base and index."""
    for mod, reg, rm in itertools.product(range(4), range(8), range(8)):
        if digit is not None and reg != digit:
            continue
        modrm = mod << 6 | reg << 3 | rm
        if mod == 3 or rm != 4:
            yield _tail(modrm, None)
            continue
        for index, base in itertools.product(range(8), range(8)):
            if (index + base) % 3 == mod:  # each pair with one displacement size
                yield _tail(modrm, (index + mod & 3) << 6 | index << 3 | base)


def _short_operands(digit: int | None) -> Iterator[bytes]:
    """Memory operands with 16-bit addresses."""
    for mod, reg, rm in itertools.product(range(3), range(8), range(8)):
        if digit is None or reg == digit:
            size = 2 if mod == 2 or (mod == 0 and rm == 6) else mod
            value = ABSOLUTE if mod == 0 and rm == 6 else DISPLACEMENT
            yield bytes([mod << 6 | reg << 3 | rm]) + value.to_bytes(4, "little")[:size]


def _form(start: bytes) -> Form | None:
    insn = decode(start + bytes(12))
    return None if insn.is_invalid else classify(insn)


def all_instructions() -> Iterator[Instruction]:
    """One instruction or more for each opcode of the decoder, with every ModRM byte."""
    for prefix, opcode, modrm in itertools.product(_PREFIXES, _OPCODES, range(256)):
        insn = decode(prefix + opcode + bytes([modrm]) + bytes(11))
        if not insn.is_invalid:
            yield insn


@cache
def all_forms() -> dict[str, tuple[Form, tuple[bytes, ...]]]:
    """Each form that an opcode tells, with all its encodings that matter.

    Segment prefixes and 16-bit addresses come with a few operands only.
    """
    found: dict[str, tuple[Form, list[bytes]]] = {}

    def add(raw: bytes) -> None:
        form = _form(raw)
        if form is not None:
            raw = (raw + bytes(12))[: decode(raw + bytes(12)).len]
            found.setdefault(form.name, (form, []))[1].append(raw)

    for prefix, opcode in itertools.product(_PREFIXES, _OPCODES):
        head = prefix + opcode
        for digit in range(8):
            tails = [bytes([mod << 6 | digit << 3 | rm]) for mod in (0, 3) for rm in range(8)]
            if not any(_form(head + tail) for tail in tails):
                continue
            for tail in _operands(digit):
                add(head + tail)
            for number in SEGMENTS.values():
                add(bytes([number]) + head + _tail(0x43 | digit << 3, None))
                add(bytes([number]) + head + _tail(0x44 | digit << 3, 0x24))
            for tail in _short_operands(digit):
                add(b"\x67" + head + tail)
            if prefix == b"\x66":
                add(b"\xf3" + head)
    first, second = classify(decode(b"\xfb")), classify(decode(b"\xf4"))
    assert first is not None
    both = pair(first, second)
    assert both is not None
    found[both.name] = (both, [b"\xfb\xf4"])
    return {name: (form, tuple(dict.fromkeys(rows))) for name, (form, rows) in found.items()}


@cache
def stores() -> dict[str, tuple[Form, tuple[bytes, ...]]]:
    """Stores for the forms of page-table entries."""
    groups = {"set pte": _PLAIN, "update pte": _OTHER, "update pte long": _LONG}
    result = {}
    for name, form in PAGE_TABLE_FORMS.items():
        rows: list[bytes] = [b"\xa3" + ABSOLUTE.to_bytes(4, "little")] if name != "update pte" else []
        for opcode, digit, size in groups[name]:
            for number, tail in enumerate(_operands(digit)):
                register = tail[0] >> 3 & 7
                if tail[0] >> 6 < 3 and (digit is not None or number % 3 == 0 or register < 3):
                    rows.append(opcode + tail + b"\x05\x00\x00\x00"[:size])
            for tail in _short_operands(digit):
                rows.append(b"\x67" + opcode + tail + b"\x05\x00\x00\x00"[:size])
        result[name] = (form, tuple(rows))
    return result


def with_adaptors() -> dict[str, tuple[Form, tuple[bytes, ...]]]:
    """The forms that a call stands for, or an inline adaptor."""
    forms = {name: row for name, row in all_forms().items() if row[0].call or row[0].inline}
    return forms | stores()


def some(rows: tuple[bytes, ...], most: int) -> list[bytes]:
    """All of them, or that many from all over."""
    return list(rows) if len(rows) <= most else [rows[len(rows) * n // most] for n in range(most)]
