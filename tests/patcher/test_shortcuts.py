# SPDX-License-Identifier: GPL-2.0-only
"""What is kept of the decoder's answers is what it would answer again."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st
from iced_x86 import Code, Decoder, OpKind

from vmi.patcher import shortcuts
from vmi.patcher.branches import Branches
from vmi.patcher.decode import Bounds, Kind, Role, decode, naming, refer

START = 0xC0100000
BOUNDS = Bounds(START, START + 0x1000, 0xC0000000)
TEXT = [(BOUNDS.start, BOUNDS.end)]
FIXED = (Kind.ODD, Kind.ODD_END)
STARTS = bytes.fromhex("0f 26 2e 36 3e 64 65 66 67 f0 f2 f3 9b 8f 62 c4 c5 04 05 25 38 3a 7f e8 eb")


def agree(data: bytes) -> None:
    """The listing has the decoder's instructions, and the targets of direct branches."""
    listing = decode(data, START, BOUNDS)
    insns = list(Decoder(32, data, ip=START))
    assert list(listing.starts) == [insn.ip32 for insn in insns]
    assert list(listing.lengths) == [insn.len for insn in insns]
    bad = [kind == Kind.BAD for kind in listing.kinds]
    assert bad == [insn.code == Code.INVALID for insn in insns]
    near = {insn.ip32: insn.near_branch32 for insn in insns if insn.op0_kind == OpKind.NEAR_BRANCH32}
    odd = {start for start, kind in zip(listing.starts, listing.kinds, strict=True) if kind in FIXED}
    assert dict(listing.targets) == {at: target for at, target in near.items() if at not in odd}


@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(st.sampled_from(STARTS), st.integers(0, 255)), max_size=60).map(bytes))
def test_any_bytes(data: bytes) -> None:
    agree(data)


def test_all_starts_with_other_bytes_behind_them() -> None:
    chance = random.Random(5)
    for first in range(256):
        for _ in range(2):
            # Each start is seen twice, so once the answer is what was kept.
            agree(b"".join(bytes([first, second]) + chance.randbytes(13) for second in range(256)))


def test_three_bytes_that_are_not_enough() -> None:
    before = [list(row) for row in shortcuts.TWO]
    for raw in (
        "678b04",
        "0f38f0",
        "0f3a0f",
        "0f0f00",
        "c4e271",
        "62f17c",
        "8fe878",
        "9bd9c0",
        "660f6f",
        "8b",
    ):
        shortcuts.learn(bytes.fromhex(raw), 3)
    assert before == shortcuts.TWO


def test_references_are_those_of_the_decoder() -> None:
    code = bytes.fromhex(
        "b800021000"  # mov eax, 100200: the physical form
        "8b0c85000310c0"  # mov ecx, [eax*4+c0100300]
        "ff25000410c0"  # jmp [c0100400]
        "ea000510c01000"  # jmp 10:c0100500
        "e9001010c0"  # a jump: what looks like an address is a distance
        "c70580001000000610c0"  # mov [100080], c0100600
        "3e8b88000710c0"  # mov ecx, ds:[eax+c0100700]
        "a1000810c0"  # mov eax, [c0100800]
        "c705000910c0000a10c0"  # mov [c0100900], c0100a00
        "83c01089c1"  # add eax, 16 and mov ecx, eax: nothing that is in two
        "0f0115000b10c0"  # lgdt [c0100b00]
    )
    listing = decode(code, START, BOUNDS)
    refer(listing, BOUNDS, naming(code, BOUNDS, TEXT))
    assert [(one.value - START, one.role) for one in listing.references] == [
        (0x200, Role.IMMEDIATE),
        (0x300, Role.DISPLACEMENT),
        (0x400, Role.ABSOLUTE),
        (0x500, Role.FAR),
        (0x80, Role.ABSOLUTE),
        (0x600, Role.IMMEDIATE),
        (0x700, Role.DISPLACEMENT),
        (0x800, Role.ABSOLUTE),
        (0x900, Role.ABSOLUTE),
        (0xA00, Role.IMMEDIATE),
        (0xB00, Role.DESCRIPTORS),
    ]


def test_low_addresses_are_found_in_single_bytes() -> None:
    low = Bounds(0, 0x1000, 0)
    code = bytes.fromhex("c7450878563412 c645087f")
    listing = decode(code, 0, low)
    assert naming(code, low, [(0, 0x1000)]) is None
    refer(listing, low, None)
    assert [(one.value, one.role) for one in listing.references] == [(8, Role.DISPLACEMENT)]


def test_branches_are_a_mapping() -> None:
    branches = Branches()
    branches.append(0x10, 0xFFFFFFFF)
    branches.append(0x20, 0)
    more = Branches()
    more.append(0x30, 5)
    branches.extend(more)
    assert dict(branches) == {0x10: 0xFFFFFFFF, 0x20: 0, 0x30: 5}
    assert list(branches.pairs()) == list(branches.items())
    assert 0x20 in branches
    assert branches.get(0x11) is None
    assert branches.get(0x31, 7) == 7
    branches.pop()
    assert len(branches) == 2
    assert repr(branches) == "Branches(2)"
