# SPDX-License-Identifier: GPL-2.0-only
"""How a kernel gets to activation when the entry point in its ELF header is not what counts.

A multiboot header may hold an entry point of its own, which is easily changed. But the decompressor of a
bzImage starts the kernel at its first byte whatever any header says. So the instructions there move like
those of a window; only the jump that takes their place leads to activation, and activation to them.
"""

from __future__ import annotations

import struct

from iced_x86 import Decoder, FlowControl

from vmi.errors import BadInput
from vmi.patcher import elf
from vmi.patcher.adaptorcode import same
from vmi.patcher.model import MIN_SLOT, Access, Image, Insn, Plan, Window
from vmi.patcher.trampoline import FILLER, rel32

MAX_LENGTH = 15  # bytes of one instruction


def entry_window(plan: Plan) -> Window:
    """The window at the entry point: whole instructions, as many as a jump needs; raises BadInput."""
    image = plan.image
    start = image.entry_virtual
    assert start is not None  # the reader checks the entry point
    insns: list[Insn] = []
    at = start
    for insn in Decoder(32, image.read(start, MIN_SLOT + MAX_LENGTH), ip=start):
        straight = same(insn.flow_control, FlowControl.NEXT)
        if insn.is_invalid or not straight:
            raise BadInput(f"the instruction at {at:#x}, which starts the kernel, can't be moved")
        insns.append(Insn(at, image.read(at, insn.len)))
        at = insn.next_ip32
        if at - start >= MIN_SLOT:
            break
    if at - start < MIN_SLOT:
        raise BadInput(f"there are no {MIN_SLOT} bytes of code at the kernel's entry point {start:#x}")
    _check_alone(plan, start, at)
    label = _label_inside(image, {insn.address for insn in insns[1:]})
    if label is not None:
        raise BadInput(f"the jump to the activation code would cover {label:#x}, where the kernel jumps to")
    return Window(start, at - start, tuple(insns), (), (), at)


def entry_edit(window: Window, activation: int) -> bytes:
    """What the kernel's first bytes become: a jump to the activation code."""
    return rel32(0xE9, window.start, activation).ljust(window.length, bytes([FILLER]))


def kludge_edit(image: Image, end: int, entry: int) -> dict[int, bytes]:
    """What the load addresses of a multiboot header become, if it has them: virtual address to bytes.

    ``end`` is the new segment's physical end: all up to there is loaded, so nothing is left to be cleared.
    ``entry`` is the physical address of the new entry point.
    """
    header = elf.multiboot(image.data)
    if header is None or not header.kludge:
        return {}
    at, start, *_ = elf.KLUDGE_FIELDS.unpack_from(image.data, header.offset + elf.KLUDGE_AT)
    home = image.virtual(at)
    if home is None:
        raise BadInput(f"the multiboot header at {at:#x} lies in no segment")
    return {home + elf.KLUDGE_AT: elf.KLUDGE_FIELDS.pack(at, start, end, end, entry)}


def _check_alone(plan: Plan, start: int, end: int) -> None:
    """Raise unless nothing else of the plan is in the bytes of the jump."""
    taken = [(site.address, site.end) for site in plan.sites]
    taken += [(window.start, window.end) for window in plan.windows]
    taken += [(w.springboard, w.springboard + MIN_SLOT) for w in plan.windows if w.springboard is not None]
    for low, high in taken:
        if low < end and high > start:
            raise BadInput(
                f"the jump to the activation code at {start:#x} would cover the window or sensitive "
                f"instruction at {low:#x}"
            )


def _label_inside(image: Image, inside: set[int]) -> int | None:
    """One of these addresses that a branch goes to or a word names, or None."""
    if not inside:
        return None
    offsets = {0, *(segment.offset for segment in image.segments)}
    words = {struct.pack("<I", a - o & 0xFFFFFFFF): a for a in inside for o in offsets}
    for segment in image.segments:
        for word, address in words.items():
            if word in segment.data:
                return address
        if segment.flags & Access.X:
            for insn in Decoder(32, segment.data, ip=segment.vaddr):
                if insn.near_branch_target in inside:
                    return int(insn.near_branch_target)
    return None
