# SPDX-License-Identifier: GPL-2.0-only
"""The sweep finds instruction starts, and keeps in step around data in the text."""

from __future__ import annotations

import struct

from tests.patcher.images import BASE, OFFSET, code_image, function, source_image
from vmi.patcher.decode import Kind
from vmi.patcher.model import Access, Image, Section, Segment
from vmi.patcher.scan import Scan, scan


def starts(result: Scan) -> list[int]:
    return [start for listing in result.listings for start in listing.starts]


def test_every_instruction_is_listed_with_kind_form_and_target() -> None:
    image, made = source_image(
        """
        begin: cli
               test eax, eax
               jz short end
               call helper
        end:   ret
        helper: jmp begin
        """
    )
    result = scan(image)
    (listing,) = result.listings
    assert [Kind(kind) for kind in listing.kinds] == [
        Kind.PLAIN,
        Kind.PLAIN,
        Kind.JCC,
        Kind.CALL,
        Kind.RET,
        Kind.JMP,
    ]
    assert {address: form.name for address, form in listing.forms.items()} == {BASE: "cli"}
    assert sorted(listing.targets.values()) == sorted(
        made.labels[name] for name in ("end", "helper", "begin")
    )
    assert listing.raw(listing.at(made.labels["end"])) == b"\xc3"
    assert listing.at(made.labels["end"] + 1) == listing.at(made.labels["helper"])
    assert listing.at(BASE + 2) == -1
    assert listing.covering(BASE + 2) == 1


def test_a_direct_branch_puts_a_lost_sweep_back_in_step() -> None:
    # The two bytes before `real` start a five-byte instruction that would swallow it.
    code = bytes.fromhex("eb02 05ff fa90c3".replace(" ", ""))
    result = scan(code_image(code))
    assert starts(result) == [BASE, BASE + 2, BASE + 4, BASE + 5, BASE + 6]
    assert result.listings[0].forms[BASE + 4].name == "cli"


def test_a_branch_past_a_lock_prefix_is_not_a_lost_sweep() -> None:
    # jne to the byte after the lock prefix of `lock inc [eax]`, as alternatives and retry loops do.
    code = bytes.fromhex("7501f0ff00c3")
    assert starts(scan(code_image(code))) == [BASE, BASE + 2, BASE + 5]


def test_function_symbols_put_the_sweep_in_step() -> None:
    code = bytes.fromhex("c305fffac3")
    result = scan(code_image(code, symbols=[function("f", BASE + 3)]))
    assert BASE + 3 in starts(result)
    assert result.listings[0].forms[BASE + 3].name == "cli"


def test_the_multiboot_header_is_data() -> None:
    header = struct.pack("<III", 0x1BADB002, 0, -0x1BADB002 & 0xFFFFFFFF)
    text = b"\xeb\x0e\x66\x90" + header + b"\xfa\xc3"
    image = Image(
        b"\0" * 0x1000 + text,
        (Segment(BASE, BASE - OFFSET, text, len(text), Access.R | Access.X, 0x1000),),
        BASE - OFFSET,
    )
    result = scan(image)
    assert [(one.start, one.end, one.reason) for one in result.data] == [
        (BASE + 4, BASE + 16, "This is the multiboot header.")
    ]
    assert starts(result) == [BASE, BASE + 2, BASE + 16, BASE + 17]


def test_a_descriptor_table_in_the_text_is_data() -> None:
    # lgdt [physical address of `descriptor`], as boot code before paging does.
    image, made = source_image(
        f"""
                lgdt [{{pointer - {OFFSET}}}]
                cli
        hang:   jmp short hang
        .align 8
        table:  .long 0, 0, 0xFFFF, 0xCF9A00, 0xFFFF, 0xCF9200
        pointer: .word 23
                .long {{table - {OFFSET}}}
        after:  cli
                ret
        """
    )
    result = scan(image)
    table, pointer, after = (made.labels[name] for name in ("table", "pointer", "after"))
    assert [(one.start, one.end) for one in result.data] == [(table, table + 24), (pointer, pointer + 6)]
    assert [address for address in starts(result) if address >= table] == [after, after + 1]


def test_a_jump_table_in_the_text_is_data() -> None:
    image, made = source_image(
        """
                jmp dword ptr [eax*4 + {table}]
        .byte 0x90, 0x90
        table:  .long first, second
        first:  cli
                ret
        second: sti
                ret
        """
    )
    result = scan(image)
    table = made.labels["table"]
    assert [(one.start, one.end) for one in result.data] == [(table, table + 8)]
    assert made.labels["first"] in starts(result)


def test_four_words_in_a_row_that_are_text_addresses_are_data() -> None:
    image, made = source_image(
        """
        first:  cli
                ret
        second: sti
                ret
                .byte 0
        table:  .long first, second, first, second
        last:   cli
                ret
        """
    )
    result = scan(image)
    table = made.labels["table"]
    assert [(one.start, one.end, one.reason) for one in result.data] == [
        (table, table + 16, "These bytes are a table of code addresses.")
    ]
    assert made.labels["last"] in starts(result)


def test_only_executable_sections_are_searched_when_there_are_sections() -> None:
    text, rodata = b"\xfa\xc3", b"\xfa\xfa\xfa\xfa"
    whole = text + rodata
    sections = [
        Section(".text", BASE, len(text), True, False),
        Section(".rodata", BASE + len(text), len(rodata), False, False),
    ]
    assert starts(scan(code_image(whole, sections=sections))) == [BASE, BASE + 1]
    image = code_image(whole)
    bare = Image(image.data, image.segments, image.entry)
    assert len(starts(scan(bare))) == 6


def test_an_image_without_code_gives_an_empty_scan() -> None:
    segment = Segment(BASE, BASE - OFFSET, b"\xfa", 1, Access.R | Access.W)
    result = scan(Image(b"", (segment,), BASE))
    assert result.listings == ()
    assert result.instructions == 0


def test_a_segment_at_another_offset_is_pinned_as_a_whole() -> None:
    main = Segment(BASE, BASE - OFFSET, b"\xfa" * 8 + b"\xc3", 9, Access.R | Access.X)
    other = Segment(0x8000, 0x8000, b"\xfa\xc3", 2, Access.R | Access.X)
    (pin,) = scan(Image(b"", (other, main), BASE)).pins
    assert (pin.start, pin.end, pin.untouchable) == (0x8000, 0x8002, False)
    assert pin.reason == (
        "Its segment lies 0x0 above its physical address, the main text 0xc0000000,"
        " so a jump can't reach a trampoline in both forms."
    )


def test_a_truncated_instruction_at_the_end_is_bad() -> None:
    (listing,) = scan(code_image(b"\x90\xe8\x01")).listings
    assert [Kind(kind) for kind in listing.kinds] == [Kind.PLAIN, Kind.BAD]
    assert not listing.joined(0)
