# SPDX-License-Identifier: GPL-2.0-only
"""Labels come from everywhere control may come from; pins from everything that needs bytes to stay."""

from __future__ import annotations

import struct

from tests.patcher.images import BASE, DATA, OFFSET, code_image, source_image
from vmi.patcher.flow import Code, Flow, flow
from vmi.patcher.hints import Pin
from vmi.patcher.model import Image, Relocation, Symbol, SymbolKind
from vmi.patcher.scan import scan


def only_code(image: Image) -> Code:
    (code,) = flow(scan(image)).codes
    return code


def labels(code: Code) -> set[int]:
    return {code.listing.start + at for at, byte in enumerate(code.labels) if byte}


def reached(code: Code) -> set[int]:
    return {start for start, byte in zip(code.listing.starts, code.reached, strict=True) if byte}


def test_branches_calls_entry_and_symbols_are_labels() -> None:
    image, made = source_image(
        """
        a: nop
        b: call d
           jz short c
        c: loop b
        d: ret
        """,
        symbols=[Symbol("local", BASE + 1, 0, SymbolKind.OTHER)],
    )
    assert labels(only_code(image)) == {made.labels[name] for name in "abcd"}


def test_numbers_in_instructions_are_labels_in_both_forms() -> None:
    image, made = source_image(
        f"""
        start: mov eax, {{virtual}}
               mov ecx, {{physical - {OFFSET}}}
               push {{pushed}}
               lea edx, [ebx + {{indexed}}]
               jmp eax
        virtual: nop
        physical: nop
        pushed: nop
        indexed: ret
        """
    )
    assert labels(only_code(image)) == set(made.labels.values())


def test_words_in_data_are_labels_at_any_alignment() -> None:
    code = b"\x90" * 8 + b"\xc3"
    data = b"\x01" + struct.pack("<I", BASE + 3) + b"\0\0\0" + struct.pack("<I", BASE + 5)
    assert labels(only_code(code_image(code, data=data))) == {BASE, BASE + 3, BASE + 5}


def test_kept_relocations_replace_guessing() -> None:
    code = b"\x90" * 8 + b"\xc3"
    data = struct.pack("<II", BASE + 3, BASE + 5)
    guessed = code_image(code, data=data)
    told = Image(b"", guessed.segments, guessed.entry, guessed.sections, (), (Relocation(DATA + 4, 1),))
    assert labels(only_code(guessed)) == {BASE, BASE + 3, BASE + 5}
    assert labels(only_code(told)) == {BASE, BASE + 5}


def test_a_direct_far_jump_is_a_label() -> None:
    code = b"\xea" + struct.pack("<IH", BASE + 8, 8) + b"\x90" + b"\xfa\xc3"
    assert labels(only_code(code_image(code))) == {BASE, BASE + 8}


def test_code_that_nothing_leads_to_is_not_reached() -> None:
    image, made = source_image(
        """
        start: jmp short used
        dead:  cli
               ret
        used:  sti
               ret
        """
    )
    assert reached(only_code(image)) == {BASE, made.labels["used"], made.labels["used"] + 1}


def test_bytes_that_instructions_use_as_data_are_pinned() -> None:
    image, made = source_image(
        """
        start: mov byte ptr [{patched}], 1
               nop
        patched: mov eax, 1
               ret
        """
    )
    code = only_code(image)
    at = made.labels["patched"]
    assert code.pin(at, at + 5) == Pin(
        at, at + 1, "Other instructions read or write these bytes as data.", True
    )
    assert code.pin(at - 1, at) is None


def test_an_instruction_branched_into_is_pinned() -> None:
    code = only_code(code_image(bytes.fromhex("7501f0ff00c3")))
    assert code.pin(BASE + 2, BASE + 5) == Pin(
        BASE + 2, BASE + 5, "Something refers to the middle of this instruction."
    )


def test_a_memory_access_in_the_middle_of_code_that_data_points_at_is_pinned() -> None:
    image, made = source_image(
        "start: nop\nfault: mov eax, [ecx]\nafter: nop\n lea eax, [ecx]\n ret\n",
        words=["fault", "after"],
    )
    code = only_code(image)
    reason = "Data points at this instruction, which may fault: perhaps a recovery table."
    assert code.pinned == (Pin(made.labels["fault"], made.labels["after"], reason),)


def test_overlapping_pins_become_disjoint_and_the_stricter_one_wins() -> None:
    image, made = source_image(
        "start: nop\nboth: mov eax, [ecx + 4]\n nop\n mov edx, [{both}]\n ret\n", words=["both"]
    )
    code = only_code(image)
    at = made.labels["both"]
    assert [(p.start, p.end, p.untouchable) for p in code.pinned] == [(at, at + 4, True)]


def test_code_with_address_size_prefixes_is_16_bit() -> None:
    code = bytes.fromhex("90 676689450f 67668b4508 fa c3".replace(" ", ""))
    (found,) = flow(scan(code_image(code))).sixteen_bit
    assert (found.start, found.end, found.reason) == (BASE, BASE + len(code), "This looks like 16-bit code.")


def test_a_far_jump_out_of_real_mode_marks_16_bit_code() -> None:
    code = bytes.fromhex("fa 31c0 8ed8 0f22c0 66ea00001000 0800 c3".replace(" ", ""))
    found = flow(scan(code_image(code))).sixteen_bit
    assert [(one.start, one.end) for one in found] == [(BASE, BASE + 14)]


def test_32_bit_code_is_not_16_bit() -> None:
    image, _ = source_image("start: mov dx, 0x300\n out dx, ax\n mov ax, [ecx]\n out dx, ax\n cli\n ret")
    assert flow(scan(image)).sixteen_bit == ()


def test_flow_finds_the_code_of_an_address() -> None:
    image, _ = source_image("nop\n ret")
    result: Flow = flow(scan(image))
    assert result.code_at(BASE + 1) is result.codes[0]
    assert result.code_at(BASE + 2) is None
