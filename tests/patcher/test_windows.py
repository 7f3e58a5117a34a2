# SPDX-License-Identifier: GPL-2.0-only
"""Whatever the code, no plan leads control astray: properties over random instructions and labels."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.patcher.images import BASE, code_image
from vmi.patcher.flow import flow
from vmi.patcher.model import Branch, Image, Plan, Window
from vmi.patcher.plan import make_plan
from vmi.patcher.scan import scan
from vmi.sitetable import Tactic

PLAIN = ("90", "50", "89c8", "83c001", "b801000000", "8b45fc", "c745fc01000000", "8d7600")
SITES = ("fa", "fb", "9c", "9d", "ec", "ee", "e680", "0f22d8", "0f011578563412", "0fa2", "f36d", "0f20c0")
OTHERS = ("f4", "8ed0", "17", "8cc8", "0e", "ff18", "cc", "0f0b", "ffd0")
ENDS = ("c3", "cf", "ffe0", "cb")
PADDING = ("90", "cc", "6690", "c3" + "cc" * 7, "c3" + "90" * 6)
BRANCHES = ("jmp", "jcc", "loop", "call")

Part = tuple[str, int]
"""Bytes or a kind of branch, and the number of the part it goes to."""


def parts_of_code() -> st.SearchStrategy[list[Part]]:
    shadows = ("fb", "fbf4", "8ed0", "17")
    table = PLAIN * 3 + SITES * 4 + shadows * 3 + OTHERS + ENDS * 2 + PADDING * 2 + BRANCHES
    one = st.tuples(st.sampled_from(table), st.integers(0, 80))
    return st.lists(one, min_size=12, max_size=80)


def layout(parts: list[Part]) -> tuple[bytes, list[int], set[int]]:
    """The code, the address of each part, and all branch targets."""
    sizes = {"jmp": 5, "jcc": 6, "loop": 2, "call": 5}
    addresses, at = [], BASE
    for what, _ in parts:
        addresses.append(at)
        at += sizes.get(what) or len(what) // 2
    code, targets = bytearray(), set()
    for (what, number), address in zip(parts, addresses, strict=True):
        target = addresses[number % len(parts)]
        if what not in sizes:
            code += bytes.fromhex(what)
            continue
        distance = target - address - sizes[what]
        if what == "loop" and not -128 <= distance <= 127:
            code += b"\x66\x90"
            continue
        targets.add(target)
        short = {"jmp": b"\xe9", "jcc": b"\x0f\x85", "call": b"\xe8", "loop": b"\xe2"}[what]
        code += short + distance.to_bytes(1 if what == "loop" else 4, "little", signed=True)
    return bytes(code), addresses, targets


@dataclass(frozen=True)
class Kernel:
    """An image of random code, where control may come to in it, and by which jumps it does."""

    image: Image
    targets: set[int]
    named: set[int]
    jumps: dict[int, int]


@st.composite
def kernels(draw: st.DrawFn) -> Kernel:
    parts = draw(parts_of_code())
    code, addresses, targets = layout(parts)
    words = draw(st.lists(st.sampled_from(addresses), max_size=5))
    data = b"".join(struct.pack("<I", word) for word in words)
    image = code_image(code + b"\xc3", data=data)
    jumps = {
        address: addresses[number % len(parts)]
        for (what, number), address in zip(parts, addresses, strict=True)
        if what in BRANCHES and code[address - BASE] != 0x66
    }
    named = set(words) | {BASE} | {at for source, at in jumps.items() if code[source - BASE] == 0xE8}
    return Kernel(image, targets | named, named, jumps)


def walk(image: Image, start: int, windows: dict[int, Window]) -> Iterator[int]:
    """Addresses of the instructions executed from ``start`` on when no branch is taken."""
    listing = scan(image).listings[0]
    at: int | None = start
    while at is not None:
        window = windows.get(at)
        if window is not None:
            yield from (insn.address for insn in window.insns)
            at = window.resume
            continue
        index = listing.at(at)
        if index < 0:
            return
        yield at
        at = listing.stop(index) if listing.joined(index) else None


def overwritten(plan: Plan) -> list[range]:
    """All that changes in the text; springboards in hosts are checked here."""
    ranges = [range(w.start, w.end) for w in plan.windows]
    ranges += [range(s.start, s.start + s.length) for s in plan.slots]
    boards = [w.springboard for w in plan.windows if w.springboard is not None]
    assert len(boards) == len(set(boards))
    hosts = {w.start + 5: w for w in plan.windows if w.length >= 10}
    for board in boards:
        if board in hosts:
            assert hosts[board].springboard is None
        else:
            ranges.append(range(board, board + 5))
    return ranges


def moved_by(plan: Plan) -> dict[int, Window]:
    """The window of each instruction that is no longer where it was."""
    return {i.address: w for w in plan.windows for i in w.insns if w.start <= i.address < w.end}


@settings(max_examples=150, deadline=None)
@given(kernels())
def test_windows_are_disjoint_and_only_moved_jumps_lead_inside(kernel: Kernel) -> None:
    plan = make_plan(kernel.image)
    free = [range(pad.start, pad.end) for pad in plan.padding]
    for first, second in pairwise(sorted(overwritten(plan) + free, key=lambda r: r.start)):
        assert first.stop <= second.start
    moved = moved_by(plan)
    boards = {window.springboard for window in plan.windows}
    for window in plan.windows:
        # The last one was made to hold a springboard, and for nothing else.
        assert window.sites or window.edges or window.inner or window.start + 5 in boards
        inside = range(window.start + 1, window.end)
        assert not kernel.named.intersection(inside)
        assert all(other.resume not in inside for other in plan.windows)
        for source, target in kernel.jumps.items():
            assert target not in inside or target in moved[source].inner
        assert all(moved[at].start != at for at in window.inner)
        if window.springboard is None:
            assert window.length >= 5
        else:
            assert 2 <= window.length <= 4
            assert -128 <= window.springboard - window.start - 2 <= 127
            if not any(w.start <= window.springboard < w.end for w in plan.windows):
                free.append(range(window.springboard, window.springboard + 5))
    assert not any(kernel.targets.intersection(one) for one in free)


@settings(max_examples=150, deadline=None)
@given(kernels())
def test_the_same_instructions_run_in_the_same_order(kernel: Kernel) -> None:
    image = kernel.image
    plan = make_plan(image)
    windows = {window.start: window for window in plan.windows}
    inner = {at for window in plan.windows for at in window.inner}
    for label in sorted(kernel.targets - inner):
        if flow(scan(image)).codes[0].listing.at(label) < 0:
            continue
        before = list(walk(image, label, {}))
        expanded = [
            address
            for address in walk(image, label, windows)
            for address in ([address, address + 1] if _is_pair(plan, address) else [address])
        ]
        assert expanded == before


def _is_pair(plan: Plan, address: int) -> bool:
    return any(
        p.site.address == address and p.site.form == "sti;hlt" and p.tactic.has_slot for p in plan.placements
    )


@settings(max_examples=150, deadline=None)
@given(kernels())
def test_every_site_is_accounted_for_once(kernel: Kernel) -> None:
    image = kernel.image
    plan = make_plan(image)
    homes = [site for window in plan.windows for site in window.sites] + [slot.site for slot in plan.slots]
    slotted = [p.site for p in plan.placements if p.tactic.has_slot and p.tactic is not Tactic.EDGE]
    assert sorted(homes, key=lambda s: s.address) == slotted
    moved = moved_by(plan)
    split = {p.site for p in plan.placements if p.tactic is Tactic.EDGE}
    assert split == {site for window in plan.windows for site in window.edges}
    for site in split:
        assert site.address not in moved
        assert site.address not in kernel.named
        ways = [moved[source] for source, at in kernel.jumps.items() if at == site.address]
        assert all(site in window.edges for window in ways)
    assert all((site.call is not None) != site.inline for site in slotted)
    assert all(bool(p.reason) != p.tactic.has_slot for p in plan.placements)
    addresses = [address for p in plan.placements for address in range(p.site.address, p.site.end)]
    assert addresses == sorted(set(addresses))
    for address, form in flow(scan(image)).codes[0].listing.forms.items():
        skipped = any(one.start <= address < one.end for one in plan.skipped)
        assert skipped or form.effect == "harmless" or address in addresses
    for window in plan.windows:
        inside = {insn.address for insn in window.insns}
        traps = [p.site for p in plan.placements if p.tactic is Tactic.TRAP and p.site.address in inside]
        assert list(window.traps) == traps


@settings(max_examples=150, deadline=None)
@given(kernels())
def test_nothing_comes_between_a_shadow_and_its_instruction(kernel: Kernel) -> None:
    image = kernel.image
    plan = make_plan(image)
    listing = scan(image).listings[0]
    windows = {window.start: window for window in plan.windows}
    moved = {insn.address: window for window in plan.windows for insn in window.insns}
    for address, form in listing.forms.items():
        if not form.shadow or not listing.joined(listing.at(address)) or _is_pair(plan, address):
            continue
        following = listing.stop(listing.at(address))
        window = moved.get(address)
        if window is None:
            assert following not in windows
            continue
        order = [insn.address for insn in window.insns]
        where = order.index(address)
        assert order[where + 1] == following
        assert all(s.address != following or s.length >= 5 or s.pad_after for s in window.sites)


@settings(max_examples=50, deadline=None)
@given(kernels())
def test_calls_and_ends_are_last_and_the_plan_is_always_the_same(kernel: Kernel) -> None:
    image = kernel.image
    plan = make_plan(image)
    for window in plan.windows:
        for insn in window.insns[:-1]:
            assert insn.branch not in (Branch.CALL, Branch.JMP)
            assert insn.raw.hex() not in (*ENDS, "ffd0")
        assert all(insn.raw.hex() not in ("cc", "0f0b", "ff18") for insn in window.insns)
    assert make_plan(image) == plan
