# SPDX-License-Identifier: GPL-2.0-only
"""Trampolines in padding: pieces lie in free padding, in order, run like the window, and losses are told."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from iced_x86 import Decoder, Mnemonic
from unicorn import UC_ARCH_X86, UC_MODE_32, Uc
from unicorn.x86_const import (
    UC_X86_REG_EAX,
    UC_X86_REG_EBX,
    UC_X86_REG_ECX,
    UC_X86_REG_EDX,
    UC_X86_REG_EFLAGS,
    UC_X86_REG_EIP,
    UC_X86_REG_ESP,
)

from tests.patcher import planned
from tests.patcher.elfs import VADDR
from vmi import abi
from vmi.patcher import chains, pads, pieces, trampoline
from vmi.patcher.model import (
    Access,
    Branch,
    EntryCode,
    Image,
    Insn,
    Pad,
    Placement,
    Plan,
    Segment,
    Site,
    Window,
)
from vmi.sitetable import Tactic

PAGE = 0x1000
TEXT = 0xC0100000
EDGE_END = VADDR + 0x1D
PLAIN = ("43", "89c8", "83c001", "8d440102", "b878563412", "81c344332211", "c7442404aabbccdd")
SITES = {"fa": "cli", "fb": "sti", "0f22d8": "mov cr3,r", "ec": "in al", "9c": "pushf"}


@st.composite
def windows(draw: st.DrawFn, start: int = TEXT) -> Window:
    """A window of up to 12 instructions, some of them sites, perhaps with a branch at its end."""
    insns: list[Insn] = []
    sites: list[Site] = []
    at = start
    for raw in draw(st.lists(st.sampled_from([*PLAIN, *SITES]), min_size=1, max_size=12)):
        if raw in SITES and (not insns or insns[-1].form not in pieces.SHADOWS):
            form = SITES[raw]
            call = abi.BY_INSTRUCTION[form]
            after = draw(st.booleans())
            sites.append(
                Site(at, bytes.fromhex(raw), form, call, False, True, pad_after=after and raw != "fb")
            )
            insns.append(Insn(at, bytes.fromhex(raw), form))
        elif raw in PLAIN:
            insns.append(Insn(at, bytes.fromhex(raw)))
        else:
            continue
        at = insns[-1].end
    if not insns or insns[-1].form in pieces.SHADOWS:
        insns.append(Insn(at, b"\x43"))
        at += 1
    if draw(st.booleans()):
        target = draw(st.sampled_from((TEXT - 0x40, TEXT + 0x90, TEXT + 0x4000)))
        raw = bytes([draw(st.sampled_from((0x74, 0xE3)))]) + b"\x10"
        insns.append(Insn(at, raw, None, Branch.JCC if raw[0] == 0x74 else Branch.LOOP, target))
        at += 2
    return Window(start, max(5, at - start), tuple(insns), tuple(sites), (), max(at, start + 5))


@st.composite
def paddings(draw: st.DrawFn) -> tuple[Pad, ...]:
    found = []
    at = TEXT + 0x100
    for gap, size in draw(
        st.lists(
            st.tuples(st.integers(0, 200), st.one_of(st.integers(5, 15), st.integers(16, 40))), max_size=40
        )
    ):
        if at // PAGE != (at + gap + size) // PAGE:
            break
        found.append(Pad(at + gap, size))
        at += gap + size + 1
    return tuple(found)


def inside(pad: Pad, free: tuple[Pad, ...]) -> bool:
    return any(one.start <= pad.start and pad.end <= one.end for one in free)


@given(windows(), paddings())
def test_a_chain_lies_in_free_padding_and_holds_all(window: Window, free: tuple[Pad, ...]) -> None:
    found = chains.chain(pieces.units(window), free)
    assert all(inside(pad, free) for pad in found)
    assert len({pad.start for pad in found}) == len(found)
    if found:
        built = trampoline.build(replace(window, pads=found), 0)
        assert [(piece.start, len(piece.code)) for piece in built.pieces] == [
            (pad.start, pad.size) for pad in found
        ]
    room = max((pad.size for pad in free), default=0)
    if room >= pieces.whole(pieces.units(window)):
        assert len(found) == 1


@given(windows(), paddings())
def test_pieces_decode_to_the_instructions_with_their_links_followed(
    window: Window, free: tuple[Pad, ...]
) -> None:
    found = chains.chain(pieces.units(window), free)
    if not found:
        return
    built = trampoline.build(replace(window, pads=found), 0)
    code = {piece.start + n: byte for piece in built.pieces for n, byte in enumerate(piece.code)}
    at = built.start
    number = 0
    seen: list[tuple[int, str]] = []
    while True:
        raw = bytes(code[n] for n in range(at, min(at + 15, built.pieces[number].end)))
        insn = Decoder(32, raw, ip=at).decode()
        seen.append((at, raw[: insn.len].hex()))
        at += insn.len
        if insn.mnemonic == Mnemonic.JMP and insn.near_branch32 == window.resume:
            break
        if (
            insn.mnemonic == Mnemonic.JMP
            and number + 1 < len(built.pieces)
            and at == built.pieces[number].end
        ):
            number += 1
            assert insn.near_branch32 == built.pieces[number].start
            at = insn.near_branch32
    assert number == len(built.pieces) - 1
    plain = [insn for insn in window.insns if insn.branch is None]
    natives = [moved for moved in built.moved if moved.insn.branch is None]
    assert [moved.insn for moved in natives] == plain
    for moved in natives:
        assert (moved.at, moved.insn.raw.hex()) in seen


@settings(max_examples=50)
@given(st.lists(windows(), max_size=6), paddings())
def test_windows_never_share_padding(drawn: list[Window], free: tuple[Pad, ...]) -> None:
    shifted = [moved(window, 0x40 * number) for number, window in enumerate(drawn)]
    packed = chains.pack([chains.job(window) for window in shifted], free)
    taken = sorted((pad for pads_ in packed.pads.values() for pad in pads_), key=lambda pad: pad.start)
    everything = sorted([*taken, *packed.free], key=lambda pad: pad.start)
    assert all(inside(pad, free) for pad in everything)
    assert all(low.end <= high.start for low, high in pairwise(everything))
    assert packed == chains.pack([chains.job(window) for window in reversed(shifted)], free)


def moved(window: Window, by: int) -> Window:
    insns = tuple(replace(insn, address=insn.address + by) for insn in window.insns)
    sites = tuple(replace(site, address=site.address + by) for site in window.sites)
    resume = None if window.resume is None else window.resume + by
    return replace(window, start=window.start + by, insns=insns, sites=sites, resume=resume)


# ---------------------------------------------------------------- whole plans


def test_all_windows_of_the_small_plan_find_room() -> None:
    plan = pads.into_padding(planned.plan())
    assert all(window.pads for window in plan.windows)
    assert plan.placements == planned.plan().placements
    for pad in (pad for window in plan.windows for pad in window.pads):
        assert inside(pad, planned.plan().padding)
        assert not any(pad.start < free.end and free.start < pad.end for free in plan.padding)


@pytest.mark.parametrize("eax", [0, 1])
@pytest.mark.parametrize("padded", [False, True])
def test_a_patched_text_does_what_the_original_did(eax: int, padded: bool) -> None:
    """On a processor: through an edge or a host and its guest, in the segment or in pieces."""
    plan = pads.into_padding(planned.plan()) if padded else planned.plan()
    built = [trampoline.build(window, VADDR + 0x4000 + 0x40 * n) for n, window in enumerate(plan.windows)]
    moved = {} if padded else {one.start: one.code for one in built}

    def run(changes: dict[int, bytes]) -> list[int]:
        cpu = Uc(UC_ARCH_X86, UC_MODE_32)
        cpu.mem_map(VADDR, 0x10000)
        for segment in planned.image().segments:
            cpu.mem_write(segment.vaddr, segment.data)
        for at, raw in changes.items():
            cpu.mem_write(at, raw)
        cpu.reg_write(UC_X86_REG_EAX, eax)
        cpu.reg_write(UC_X86_REG_ESP, VADDR + 0x8000)
        cpu.emu_start(VADDR + 0x01, EDGE_END, count=60)
        registers = (UC_X86_REG_EBX, UC_X86_REG_ECX, UC_X86_REG_EDX, UC_X86_REG_ESP, UC_X86_REG_EIP)
        values = [cpu.reg_read(register) for register in registers]
        flags = cpu.reg_read(UC_X86_REG_EFLAGS)
        return [*values, flags, int.from_bytes(cpu.mem_read(values[3], 4), "little")]

    native = run({})
    assert native[4] == EDGE_END
    assert native[2] == eax  # EDX counts only on the long way
    assert run(trampoline.edits(built) | moved) == native


def run_of(start: int, raw: str, count: int) -> Window:
    """A window of ``count`` equal instructions, all of them sites if they are sensitive."""
    code = bytes.fromhex(raw)
    form = SITES.get(raw)
    insns = tuple(Insn(start + n * len(code), code, form) for n in range(count))
    call = abi.BY_INSTRUCTION[form] if form else None
    sites = tuple(Site(insn.address, code, form, call, False, True) for insn in insns) if form else ()
    return Window(start, count * len(code), insns, sites, (), insns[-1].end)


def test_where_room_is_scarce_what_saves_most_comes_first() -> None:
    long = [run_of(TEXT + 0x100 * n, "43", 20 - n) for n in range(2)]
    rich = [run_of(TEXT + 0x100 * n, "fa", 2) for n in range(2, 4)]
    jobs = [chains.job(window) for window in (*long, *rich)]
    packed = chains.pack(jobs, (Pad(TEXT + 0x800, 30),), attempts=2)
    assert sorted(packed.pads) == [window.start for window in rich]


def small_plan(room: int, **more: object) -> Plan:
    """One window with two sites at the start of a page whose only padding has ``room`` bytes."""
    code = bytes.fromhex("fa 89c8 ec c3").ljust(0x100, b"\x90") + b"\xc3" * 0x2F00
    segment = Segment(TEXT, TEXT - 0xC0000000, code, len(code), Access.R | Access.X, 0x1000)
    image = Image(b"", (segment,), TEXT)
    cli = Site(TEXT, b"\xfa", "cli", abi.BY_INSTRUCTION["cli"], False, True, **more)  # type: ignore[arg-type]
    read = Site(TEXT + 3, b"\xec", "in al", abi.BY_INSTRUCTION["in al"], False, True)
    insns = (
        Insn(TEXT, b"\xfa", "cli"),
        Insn(TEXT + 1, b"\x89\xc8"),
        Insn(TEXT + 3, b"\xec", "in al"),
        Insn(TEXT + 4, b"\xc3"),
    )
    window = Window(TEXT, 5, insns, (cli, read), (), None)
    placements = (Placement(cli, Tactic.FORWARD), Placement(read, Tactic.MERGED))
    return Plan(image, (window,), (), placements, padding=(Pad(TEXT + 0x10, room),))


def test_a_window_without_room_is_given_up_with_its_sites() -> None:
    before = small_plan(12)
    plan = pads.into_padding(before)
    assert plan.windows == ()
    assert plan.padding == before.padding
    reason = "The padding of the text has no room for its trampoline."
    assert [(p.tactic, p.reason) for p in plan.placements] == [(Tactic.LEFT, reason)] * 2


def test_room_for_the_last_byte_is_enough() -> None:
    assert pads.into_padding(small_plan(13)).windows[0].pads == (Pad(TEXT + 0x10, 13),)


def test_other_pages_are_for_code_that_is_never_isolated() -> None:
    far = (Pad(TEXT + 0x2000, 15),)
    plan = pads.into_padding(replace(small_plan(5), padding=far))
    assert plan.windows[0].pads == (Pad(TEXT + 0x2000, 13),)
    isolated = pads.into_padding(replace(small_plan(5, isolated=True), padding=far))
    assert isolated.windows == ()
    assert isolated.placements[0].reason == (
        "The padding in its page has no room for its trampoline, and other pages may not be mapped."
    )


def test_isolated_code_may_use_pages_that_are_mapped_with_its_own() -> None:
    near, far = range(TEXT, TEXT + 2 * PAGE), range(TEXT + 2 * PAGE, TEXT + 4 * PAGE)
    pad = (Pad(TEXT + 0x1800, 15),)
    for mapped, used in (((near,), (Pad(TEXT + 0x1800, 13),)), ((far,), ())):
        before = replace(small_plan(5, isolated=True), padding=pad, entry_code=EntryCode((), mapped))
        assert tuple(p for window in pads.into_padding(before).windows for p in window.pads) == used
    before = replace(small_plan(5, isolated=True), padding=(*pad, Pad(TEXT + 0x10, 15)))
    board = replace(before.windows[0], springboard=TEXT + 0x1820)
    before = replace(before, windows=(board,))
    assert pads.into_padding(replace(before, entry_code=EntryCode((), (near,)))).windows
    assert not pads.into_padding(before).windows


def test_a_window_without_sites_in_entry_code_is_isolated_too() -> None:
    before = replace(small_plan(5), padding=(Pad(TEXT + 0x2000, 15),))
    assert pads.into_padding(before).windows
    code = EntryCode((range(TEXT + 1, TEXT + 2),), ())
    assert not pads.into_padding(replace(before, entry_code=code)).windows


def test_padding_of_awkward_sizes_nearby_costs_no_window() -> None:
    """Long instructions and a jump fit in none of the many pads close by, but in some further off."""
    before = small_plan(5)
    long = [Insn(TEXT + 3 + 10 * n, bytes.fromhex("c78424000100002a0000")) for n in range(2)]
    window = replace(before.windows[0], length=23, insns=(*before.windows[0].insns[:2], *long))
    window = replace(window, sites=window.sites[:1], resume=TEXT + 23)
    near = tuple(Pad(TEXT + 0x200 * n, 12) for n in range(1, 48))
    far = tuple(Pad(TEXT + 0x8000 + 0x200 * n, 15) for n in range(3))
    segment = replace(before.image.segments[0], data=bytes(0x10000), memsz=0x10000)
    plan = replace(
        before,
        image=replace(before.image, segments=(segment,)),
        windows=(window,),
        placements=before.placements[:1],
    )
    assert pads.into_padding(replace(plan, padding=(*near, *far))).windows
    assert not pads.into_padding(replace(plan, padding=near)).windows


def test_a_silent_site_without_room_is_to_be_trapped() -> None:
    before = small_plan(5)
    silent = replace(before.placements[0].site, silent=True, trapping=False)
    window = replace(before.windows[0], sites=(silent, before.windows[0].sites[1]))
    placements = (Placement(silent, Tactic.FORWARD), before.placements[1])
    plan = pads.into_padding(replace(before, windows=(window,), placements=placements))
    assert [p.tactic for p in plan.placements] == [Tactic.TRAP, Tactic.LEFT]


def test_without_its_host_a_short_window_goes_too() -> None:
    before = planned.plan()
    host, short = before.windows[1], replace(before.windows[2], edges=())
    room = (Pad(VADDR + 0x40, 15),)
    plan = pads.into_padding(replace(before, windows=(host, short), padding=room))
    tactics = {p.site.address - VADDR: (p.tactic, p.reason) for p in plan.placements}
    assert plan.windows == ()
    assert tactics[0x13] == (Tactic.LEFT, "The padding of the text has no room for its trampoline.")
    assert tactics[0x1A] == (
        Tactic.TRAP,
        "The window that its short jump leads through found no room in the padding.",
    )


def test_a_host_that_holds_nothing_of_its_own_goes_with_the_short_window() -> None:
    before = small_plan(15)
    short = replace(before.windows[0], length=4, springboard=TEXT + 0x85)
    insns = tuple(Insn(TEXT + 0x80 + n, b"\x43") for n in range(10))
    host = Window(TEXT + 0x80, 10, insns, (), (), TEXT + 0x8A)
    both = replace(before, windows=(short, host))
    assert pads.into_padding(both).windows == ()
    room = (*before.padding, Pad(TEXT + 0x40, 15))
    assert len(pads.into_padding(replace(both, padding=room)).windows) == 2


def test_a_site_that_stays_needs_a_copy_on_every_way_to_it() -> None:
    before = planned.plan()
    edged, short = before.windows[0], replace(before.windows[2], springboard=VADDR + 0x50)
    room = (Pad(VADDR + 0x40, 15),)
    plan = pads.into_padding(replace(before, windows=(edged, short), padding=room))
    tactics = {p.site.address - VADDR: (p.tactic, p.reason) for p in plan.placements}
    assert tactics[0x05] == (Tactic.LEFT, "The padding of the text has no room for its trampoline.")
    assert tactics[0x1C] == (
        Tactic.LEFT,
        "On one of the ways to it the padding has no room for a copy of it.",
    )
    assert tactics[0x1A] == (Tactic.HOST, "")
    assert [(window.start - VADDR, window.edges) for window in plan.windows] == [(0x1A, ())]


def test_a_window_for_edges_alone_goes_with_them() -> None:
    before = planned.plan()
    edged, short = before.windows[0], replace(before.windows[2], sites=(), springboard=VADDR + 0x50)
    room = (Pad(VADDR + 0x40, 15),)
    plan = pads.into_padding(replace(before, windows=(edged, short), padding=room))
    assert plan.windows == ()
    assert plan.padding == room


def jumping_plan(*rooms: int) -> Plan:
    """Two windows of a page: the first one's jump leads to the `in` that stands inside the second one."""
    code = bytes.fromhex("fa 89c8 eb03 90 89c8 ec 89c8 c3").ljust(0x100, b"\x90") + b"\xc3" * 0x2F00
    segment = Segment(TEXT, TEXT - 0xC0000000, code, len(code), Access.R | Access.X, 0x1000)
    image = Image(b"", (segment,), TEXT)
    cli = Site(TEXT, b"\xfa", "cli", abi.BY_INSTRUCTION["cli"], False, True)
    read = Site(TEXT + 8, b"\xec", "in al", abi.BY_INSTRUCTION["in al"], False, True)
    target = read.address
    first = (
        Insn(TEXT, b"\xfa", "cli"),
        Insn(TEXT + 1, b"\x89\xc8"),
        Insn(TEXT + 3, b"\xeb\x03", None, Branch.JMP, target),
    )
    second = (Insn(TEXT + 6, b"\x89\xc8"), Insn(target, b"\xec", "in al"), Insn(target + 1, b"\x89\xc8"))
    windows = (
        Window(TEXT, 5, first, (cli,), (), None, inner=(target,)),
        Window(TEXT + 6, 5, second, (read,), (), TEXT + 11),
    )
    placements = (Placement(cli, Tactic.FORWARD), Placement(read, Tactic.BOTH))
    padding = tuple(Pad(TEXT + 0x20 * (1 + number), room) for number, room in enumerate(rooms))
    return Plan(image, windows, (), placements, padding=padding)


def test_a_branch_into_a_window_is_kept_with_it() -> None:
    plan = pads.into_padding(jumping_plan(14, 14))
    assert [window.inner for window in plan.windows] == [(TEXT + 8,), ()]


def test_a_window_is_given_up_with_a_branch_into_it() -> None:
    before = jumping_plan(14)
    long = replace(before.windows[0], insns=(Insn(TEXT + 0x80, b"\x90" * 15), *before.windows[0].insns))
    plan = pads.into_padding(replace(before, windows=(long, before.windows[1])))
    assert plan.windows == ()
    assert [p.reason for p in plan.placements] == [
        "The padding of the text has no room for its trampoline.",
        "A branch into its window found no room in the padding, so it comes to where it was.",
    ]


def test_a_branch_into_a_window_that_is_given_up_is_an_ordinary_one() -> None:
    before = jumping_plan(14)
    long = replace(before.windows[1], insns=(Insn(TEXT + 0x80, b"\x90" * 15), *before.windows[1].insns))
    plan = pads.into_padding(replace(before, windows=(before.windows[0], long)))
    assert [(window.start, window.inner) for window in plan.windows] == [(TEXT, ())]
    assert [p.tactic for p in plan.placements] == [Tactic.FORWARD, Tactic.LEFT]


def branching(before: Plan, room: tuple[Pad, ...], start: int, size: int) -> Plan:
    """The small plan with a window of ``size`` bytes that branches to the middle of the other."""
    jump = Insn(start, b"\x74\x10", None, Branch.JCC, TEXT + 3)
    filler = tuple(Insn(start + 2 + n, b"\x43") for n in range(size - 2))
    branches = Window(start, size, (jump, *filler), (), (), start + size, inner=(TEXT + 3,))
    return pads.into_padding(replace(before, windows=(before.windows[0], branches), padding=room))


def test_a_window_goes_when_a_branch_into_it_stays() -> None:
    plan = branching(small_plan(5), (Pad(TEXT + 0x10, 13),), TEXT + 0x40, 0x30)
    assert plan.windows == ()
    assert plan.padding == (Pad(TEXT + 0x10, 13),)
    reason = "A branch into its window found no room in the padding, so it comes to where it was."
    assert [(p.tactic, p.reason) for p in plan.placements] == [(Tactic.LEFT, reason)] * 2


def test_a_branch_stays_when_the_window_that_it_leads_into_goes() -> None:
    plan = branching(small_plan(5), (Pad(TEXT + 0x10, 12),), TEXT + 0x40, 2)
    assert plan.windows == ()
    assert plan.padding == (Pad(TEXT + 0x10, 12),)
    assert {p.reason for p in plan.placements} == {"The padding of the text has no room for its trampoline."}


def test_isolated_code_gets_no_springboard_in_another_page() -> None:
    before = small_plan(15, isolated=True)
    board = replace(before.windows[0], springboard=TEXT - 0x20)
    plan = pads.into_padding(replace(before, windows=(board,)))
    assert {p.reason for p in plan.placements} == {
        "Its short jump leads to another page, which may not be mapped."
    }


def test_isolated_code_changes_no_tables_at_the_end_of_a_page() -> None:
    before = small_plan(15, isolated=True)
    start = TEXT + 0xFFD
    load = Site(
        start, b"\x0f\x22\xd8", "mov cr3,r", abi.BY_INSTRUCTION["mov cr3,r"], False, True, isolated=True
    )
    insns = (Insn(start, load.raw, load.form), Insn(start + 3, b"\x89\xc8"))
    window = Window(start, 5, insns, (load,), (), start + 5)
    placements = (Placement(load, Tactic.FORWARD),)
    plan = pads.into_padding(replace(before, windows=(window,), placements=placements))
    assert plan.placements[0].reason == "Its window changes how pages are mapped, at the end of one."


def test_a_window_across_the_end_of_a_page_may_use_both() -> None:
    before = small_plan(15, isolated=True)
    window = moved(before.windows[0], 0xFFD)
    placements = tuple(Placement(site, Tactic.FORWARD) for site in window.sites)
    for room in (Pad(TEXT + 0x800, 15), Pad(TEXT + 0x1800, 15)):
        plan = pads.into_padding(replace(before, windows=(window,), placements=placements, padding=(room,)))
        assert plan.windows[0].pads == (Pad(room.start, 13),)


def test_padding_across_the_end_of_a_page_is_two_pads() -> None:
    plan = pads.into_padding(
        replace(small_plan(5), windows=(), placements=(), padding=(Pad(TEXT + 0xFF8, 20),))
    )
    assert plan.padding == (Pad(TEXT + 0xFF8, 8), Pad(TEXT + 0x1000, 12))


def test_an_instruction_with_five_bytes_stays_in_place_when_its_window_goes() -> None:
    before = small_plan(5)
    raw = b"\x0f\x01\x15\x00\x00\x10\xc0"
    lgdt = Site(TEXT, raw, "lgdt m", abi.BY_INSTRUCTION["lgdt m"], False, True)
    window = Window(TEXT, 7, (Insn(TEXT, raw, "lgdt m"),), (lgdt,), (), TEXT + 7)
    placements = (Placement(lgdt, Tactic.MERGED),)
    plan = pads.into_padding(replace(before, windows=(window,), placements=placements, padding=()))
    assert plan.placements[0].tactic is Tactic.IN_PLACE
    assert [(slot.start, slot.length) for slot in plan.slots] == [(TEXT, 7)]


def test_pads_that_a_window_does_not_fill_are_a_defect() -> None:
    window = pads.into_padding(small_plan(13)).windows[0]
    wrong = replace(window, pads=(Pad(TEXT + 0x10, 14),))
    with pytest.raises(ValueError, match=r"^the trampoline of the window at 0xc0100000 doesn't fill Pad\("):
        trampoline.build(wrong, 0)
