# SPDX-License-Identifier: GPL-2.0-only
"""Tables in an image say what is code, what must stay, and where control may arrive."""

from __future__ import annotations

import struct

from tests.patcher.images import BASE, DATA, OFFSET, code_image
from vmi.patcher.hints import Hints, Pin, read_hints, unwind_starts
from vmi.patcher.model import Access, FaultTable, Image, Section, Segment
from vmi.patcher.scan import scan


def table_image(name: str, table: bytes, code: bytes = b"\x90" * 31 + b"\xc3") -> Image:
    sections = (
        Section(".text", BASE, len(code), True, False),
        Section(name, DATA, len(table), False, False),
    )
    segments = (
        Segment(BASE, BASE - OFFSET, code, len(code), Access.R | Access.X),
        Segment(DATA, DATA - OFFSET, table, len(table), Access.R),
    )
    return Image(b"", segments, BASE, sections)


def hints_of(image: Image) -> Hints:
    return read_hints(image, lambda address: BASE <= address < BASE + 32)


def relative(at: int, target: int) -> bytes:
    return struct.pack("<I", (target - DATA - at) & 0xFFFFFFFF)


def fault_table_of(table: bytes) -> FaultTable | None:
    return hints_of(table_image("__ex_table", table)).fault_table


def test_a_fault_table_names_instructions_and_places_to_go_on() -> None:
    table = relative(0, BASE + 2) + relative(4, BASE + 20) + b"\1\0\0\0"
    hints = hints_of(table_image("__ex_table", table))
    assert hints.fault_table == FaultTable(DATA, 1, 12, True)
    assert (hints.recovered, hints.fixups) == ((BASE + 2,), {BASE + 20})
    assert (hints.labels, hints.pins) == ((), ())


def test_the_third_word_of_a_fault_table_is_a_handler_or_a_number() -> None:
    start = relative(0, BASE + 2) + relative(4, BASE + 20)
    assert fault_table_of(start + relative(8, BASE + 8)) == FaultTable(DATA, 1, 12, True, True)
    assert fault_table_of(start + struct.pack("<I", 0x0003_0211)) == FaultTable(DATA, 1, 12, True, False)
    assert fault_table_of(start + struct.pack("<I", 0x0003_02FF)) is None


def test_a_fault_table_of_eight_bytes_is_relative_or_absolute() -> None:
    near = relative(0, BASE + 2) + relative(4, BASE + 20) + relative(8, BASE + 5) + relative(12, BASE + 21)
    assert fault_table_of(near) == FaultTable(DATA, 2, 8, True)
    hints = hints_of(table_image("__ex_table", struct.pack("<4I", BASE + 5, BASE + 20, BASE + 2, BASE + 21)))
    assert hints.fault_table == FaultTable(DATA, 2, 8, False)
    assert (hints.recovered, hints.fixups) == ((BASE + 2, BASE + 5), {BASE + 20, BASE + 21})


def test_a_fault_table_of_unknown_layout_pins_whatever_it_may_name() -> None:
    hints = hints_of(table_image("__ex_table", struct.pack("<4I", BASE + 2, 7, 9, BASE + 5)))
    reason = "The kernel finds this instruction by its address when it faults (__ex_table)."
    assert hints.fault_table is None
    assert hints.pins == tuple(Pin(at, at + 1, reason, False) for at in (BASE + 2, BASE + 5))


def test_tables_of_patched_code_say_where_jumps_may_become_nops() -> None:
    table = relative(0, BASE + 4) + relative(4, 0) + struct.pack("<HBB", 7, 3, 3)
    assert hints_of(table_image(".altinstructions", table)).rewritten == {BASE + 4, BASE + 5, BASE + 6}
    assert hints_of(table_image(".smp_locks", relative(0, BASE + 4))).rewritten == frozenset()


def test_alternatives_pin_the_whole_patched_range() -> None:
    table = relative(0, BASE + 4) + relative(4, 0) + struct.pack("<HBB", 7, 9, 3)
    (pin,) = hints_of(table_image(".altinstructions", table)).pins
    assert (pin.start, pin.end, pin.untouchable) == (BASE + 4, BASE + 13, True)
    assert pin.reason == "The kernel rewrites these bytes itself (.altinstructions)."


def test_an_unknown_table_layout_pins_whatever_could_be_an_address() -> None:
    table = struct.pack("<5I", 0, BASE + 6, 0, 7, 0) + b"\0"
    hints = hints_of(table_image(".static_call_sites", table))
    assert [(pin.start, pin.untouchable) for pin in hints.pins] == [(BASE + 6, True)]


def test_sections_that_only_hold_replacements_are_pinned_whole() -> None:
    code = b"\xfa\xc3"
    sections = [
        Section(".text", BASE, 1, True, False),
        Section(".altinstr_replacement", BASE + 1, 1, True, False),
    ]
    (pin,) = scan(code_image(code, sections=sections)).pins
    assert (pin.start, pin.end, pin.untouchable) == (BASE + 1, BASE + 2, True)


def eh_frame(at: int, starts: list[int]) -> bytes:
    """One CIE (augmentation zR, relative words) and an FDE per start, as gcc writes them."""
    body = struct.pack("<I", 0) + b"\1zR\0" + b"\x01\x7c\x08" + b"\x01\x1b" + b"\x0c\x04\x04\x88\x01"
    frame = struct.pack("<I", len(body)) + body
    for start in starts:
        here = len(frame) + 8
        fde = struct.pack("<III", len(frame) + 4, (start - at - here) & 0xFFFFFFFF, 16) + b"\0" * 4
        frame += struct.pack("<I", len(fde)) + fde
    return frame + b"\0\0\0\0"


def test_unwind_entries_name_function_starts() -> None:
    image = table_image(".eh_frame", eh_frame(DATA, [BASE + 4, BASE + 9]))
    assert list(unwind_starts(image)) == [BASE + 4, BASE + 9]
    assert hints_of(image).functions == (BASE + 4, BASE + 9)


def test_a_damaged_unwind_section_is_read_as_far_as_it_makes_sense() -> None:
    frame = eh_frame(DATA, [BASE + 4, BASE + 9])
    for size in range(len(frame)):
        found = list(unwind_starts(table_image(".eh_frame", frame[:size] + b"\xff" * (size > 4))))
        assert found == [BASE + 4, BASE + 9][: len(found)]
