# SPDX-License-Identifier: GPL-2.0-only
"""Stores that somebody says write page-table entries: believed when they can, refused with a reason else."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.patcher.elfs import small_kernel
from tests.patcher.images import BASE, code_image, source_image
from vmi.errors import BadInput
from vmi.patcher import pagetables
from vmi.patcher.forms import SET_PTE, UPDATE_PTE, UPDATE_PTE_LONG
from vmi.patcher.model import Section, Segment
from vmi.patcher.pagetables import Candidate, Refused, Source
from vmi.patcher.plan import make_plan
from vmi.patcher.scan import scan

LINES, PROFILE, ANNOTATION = Source.LINES, Source.PROFILE, Source.ANNOTATION

SOURCE = """
    mov [eax], edx
    mov dword ptr [eax + 4], 0x1003
    or dword ptr [ecx], 1
    xchg [ecx], edx
    cmpxchg8b [edi]
    ret
"""
IMAGE, MADE = source_image(SOURCE)


def chosen(source: str, *, long: bool = False) -> pagetables.PageTableSites:
    image, _ = source_image(source)
    return pagetables.choose(image, [Candidate(BASE, PROFILE, long)])


def addresses(image: object = IMAGE) -> list[int]:
    return list(scan(image).listings[0].starts)  # type: ignore[arg-type]


def test_the_form_follows_from_the_instruction() -> None:
    at = addresses()
    sites = pagetables.choose(IMAGE, [Candidate(address, PROFILE) for address in at])
    assert dict(sites.forms) == {at[0]: SET_PTE, at[1]: SET_PTE, at[2]: UPDATE_PTE, at[3]: UPDATE_PTE}
    assert sites.refused == (
        Refused(at[4], PROFILE, "`cmpxchg8b qword ptr [edi]` writes 8 bytes, and an entry has 4."),
        Refused(at[5], PROFILE, "`ret` does not write memory."),
    )
    assert repr(sites) == "PageTableSites(4 stores, 2 refused)"


def test_entries_of_8_bytes_are_only_reported() -> None:
    at = addresses()[:5]
    sites = pagetables.choose(IMAGE, [Candidate(address, PROFILE, long=True) for address in at])
    assert dict(sites.forms) == dict.fromkeys(at, UPDATE_PTE_LONG)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("push eax", "`push eax` writes to the stack."),
        ("mov [esp + 8], eax", "`mov [esp+8],eax` writes to the stack."),
        ("mov [ebp - 8], eax", "`mov [ebp-8],eax` writes to the stack."),
        ("rep stosd", "`rep stosd` may write several entries, and a call stands for one."),
        ("mov eax, [ecx]", "`mov eax,[ecx]` does not write memory."),
        (".byte 0x0f, 0x04, 0xff, 0xff", "The bytes there are no instruction."),
        ("fxsave [eax]", "`fxsave [eax]` writes 512 bytes, and an entry has 4."),
    ],
)
def test_what_can_not_be_such_a_store_is_refused(source: str, reason: str) -> None:
    sites = chosen(source)
    assert (sites.forms, [one.reason for one in sites.refused]) == ({}, [reason])


def test_a_frame_pointer_used_for_something_else_is_no_stack() -> None:
    assert list(chosen("mov [ebp + 8], eax").forms) == [BASE]
    assert list(chosen("mov [ebp + ecx*4 - 8], eax").forms) == [BASE]


def test_half_an_entry_of_8_bytes_has_4() -> None:
    sites = chosen("mov word ptr [eax], 1", long=True)
    assert sites.refused[0].reason == "`mov word ptr [eax],1` writes 2 bytes, and an entry has 8."


def test_what_is_not_code_is_refused() -> None:
    sections = [Section(".text", BASE, 2, True, False), Section(".data", BASE + 2, 2, False, True)]
    image = code_image(bytes.fromhex("8910 8910"), sections=sections)
    sites = pagetables.choose(image, [Candidate(a, LINES) for a in (BASE, BASE + 2, 0x5000)])
    assert list(sites.forms) == [BASE]
    reason = "It is not in the kernel's code."
    assert sites.refused == (Refused(0x5000, LINES, reason), Refused(BASE + 2, LINES, reason))
    bare = replace(image, sections=())
    assert list(pagetables.choose(bare, [Candidate(BASE + 2, LINES)]).forms) == [BASE + 2]


def test_a_profile_must_have_seen_the_same_bytes() -> None:
    wrong = Candidate(BASE, PROFILE, code=bytes.fromhex("8911"))
    right = Candidate(BASE, PROFILE, code=bytes.fromhex("8910 ffffff"))  # what is behind doesn't count
    refused = pagetables.choose(IMAGE, [wrong])
    assert refused.refused == (Refused(BASE, PROFILE, "The profile saw other bytes there."),)
    both = pagetables.choose(IMAGE, [wrong, right])
    assert (list(both.forms), both.refused) == ([BASE], ())


def test_of_a_range_only_what_writes_memory_counts() -> None:
    image, made = source_image("mov eax, [ecx]\n mov [esp + 4], eax\n mov [ecx], eax\n end:\n mov [edx], eax")
    sites = pagetables.choose(image, [Candidate(BASE, LINES, range_end=made.labels["end"])])
    assert list(sites.forms) == [BASE + 6]
    assert [one.address for one in sites.refused] == [BASE + 2]


def test_the_first_who_names_a_store_counts() -> None:
    sites = pagetables.choose(IMAGE, [Candidate(BASE, LINES), Candidate(BASE, PROFILE, long=True)])
    assert dict(sites.sources) == {BASE: LINES}
    assert dict(sites.forms) == {BASE: SET_PTE}


def test_a_store_inside_an_instruction_is_taken_back() -> None:
    image, _ = source_image("mov eax, 0x1089\n mov [eax], edx\n ret")
    sites = pagetables.choose(image, [Candidate(BASE + 1, PROFILE), Candidate(BASE + 5, PROFILE)])
    assert list(sites.forms) == [BASE + 1, BASE + 5]
    plan = make_plan(image, extra=sites.forms)
    assert [(p.site.address, p.site.form) for p in plan.placements] == [(BASE + 5, "set pte")]
    assert [(one.start, one.reason) for one in plan.skipped] == [
        (BASE + 1, "No instruction that the search found begins there.")
    ]


def test_such_a_store_gets_a_slot_as_any_site_does() -> None:
    at = addresses()
    sites = pagetables.choose(IMAGE, [Candidate(at[1], PROFILE), Candidate(at[2], PROFILE)])
    plan = make_plan(IMAGE, extra=sites.forms)
    assert [(p.site.form, p.site.call and p.site.call.name, p.tactic.has_slot) for p in plan.placements] == [
        ("set pte", "SetPxE", True),
        ("update pte", "UpdatePxE", True),
    ]
    assert make_plan(IMAGE).placements == ()


# ---------------------------------------------------------------- line tables


def line_table(*spans: tuple[int, int, int], files: bytes) -> bytes:
    """A table of version 2; each span is (start, length, file number)."""
    body = bytes([1, 1, 0xFD, 12, 10, 0, 1, 1, 1, 1, 0, 0, 0, 1]) + b"\0" + files + b"\0"
    code = b""
    for start, length, file in spans:
        code += b"\0\x05\x02" + start.to_bytes(4, "little") + bytes([4, file, 1, 2, length]) + b"\0\x01\x01"
    content = (2).to_bytes(2, "little") + len(body).to_bytes(4, "little") + body + code
    return len(content).to_bytes(4, "little") + content


def test_the_line_table_names_the_stores_of_a_few_headers() -> None:
    files = b"asm/pgtable-2level.h\0\0\0\0mm/memory.c\0\0\0\0asm/pgalloc.h\0\0\0\0"
    table = line_table((0x100, 4, 1), (0x200, 6, 2), (0x300, 8, 3), (0x100, 4, 1), files=files)
    found = pagetables.from_lines(small_kernel(extra={".debug_line": table}))
    assert found == (
        Candidate(0x100, LINES, range_end=0x104),
        Candidate(0x300, LINES, range_end=0x308),
    )


def test_a_header_of_pae_makes_all_entries_long() -> None:
    files = b"pgtable-3level.h\0\0\0\0pgtable.h\0\0\0\0"
    table = line_table((0x100, 4, 1), (0x200, 6, 2), files=files)
    found = pagetables.from_lines(small_kernel(extra={".debug_line": table}))
    assert [(one.address, one.long) for one in found] == [(0x100, True), (0x200, True)]


def test_a_file_without_line_table_names_nothing() -> None:
    assert pagetables.from_lines(small_kernel()) == ()
    assert pagetables.from_lines(b"c0100000 T start\n") == ()


def test_a_damaged_line_table_is_refused() -> None:
    with pytest.raises(BadInput) as caught:
        pagetables.from_lines(small_kernel(extra={".debug_line": b"\x10\0\0\0"}))
    assert str(caught.value) == (
        "the symbol file can't be used: the line table is damaged in its unit at byte 0x0"
    )


def test_a_file_of_another_machine_is_refused() -> None:
    data = small_kernel()
    with pytest.raises(BadInput) as caught:
        pagetables.from_lines(data[:18] + b"\x28" + data[19:])
    assert str(caught.value) == (
        "the symbol file can't be used: expected an i386 kernel (ELF machine 3), got machine 40"
    )


def test_segments_that_are_not_executable_hold_no_stores() -> None:
    image = replace(IMAGE, sections=(), segments=tuple(_data(s) for s in IMAGE.segments))
    assert pagetables.choose(image, [Candidate(BASE, PROFILE)]).refused[0].reason == pagetables.OUTSIDE


def _data(segment: Segment) -> Segment:
    return replace(segment, flags=segment.flags & ~1)
