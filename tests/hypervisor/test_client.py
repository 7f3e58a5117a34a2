# SPDX-License-Identifier: GPL-2.0-only
"""A kernel that speaks the interface itself: it knows its ring from CS, and finds it wherever it looks."""

from __future__ import annotations

import pytest

from tests.hypervisor.lab import Lab, exit_value
from tests.native.guest import CODE0, DATA0, FREE, GDT, IDT, STACK, TASK_GATE, TSS, descriptor, gate
from vmi.x86 import Seg

RING = 1
OTHER, CS_FIELD = 0x4000, 0x4C  # a second TSS; where a TSS has CS
LOWERED = f"and byte ptr [{GDT + DATA0 + 5}], 0x9f"  # DPL 0 again
FAULT = "fault: mov al, 0x77\nout 0xf4, al"
HANDLERS = {10: "fault", 11: "fault", 12: "fault", 13: "fault", 14: "fault", 8: "fault"}


def client(source: str, handlers: dict[int, str] | None = None) -> Lab:
    """A client of the interface; the guest's end is the value it writes to the debug-exit port."""
    return Lab(f"{source}\n{FAULT}", {**HANDLERS, **(handlers or {})}, "paravirt", client=True)


def test_cs_behind_init_is_what_every_frame_shows() -> None:
    lab = client(
        """
        start:  int 0x40
        handler: mov eax, [esp + 4]
                mov edx, cs
                cmp eax, edx
                jne fault
                out 0xf4, al
        """,
        {0x40: "handler"},
    )
    assert exit_value(lab) == CODE0 | RING


def test_a_frame_of_a_patched_kernel_shows_ring_0() -> None:
    lab = Lab("start: int 0x40\nhandler: mov eax, [esp + 4]\nout 0xf4, al", {0x40: "handler"}, "paravirt")
    assert exit_value(lab) == CODE0


@pytest.mark.parametrize("rpl", [0, RING])
def test_iret_takes_either_ring(rpl: int) -> None:
    code = "call behind\nmov eax, cs\nout 0xf4, al\nbehind: pop eax"
    lab = client(f"start: {code}\npushfd\npush {CODE0 | rpl}\npush eax\n@iret")
    assert exit_value(lab) == CODE0 | RING


@pytest.mark.parametrize("rpl", [0, RING])
def test_the_stack_segment_takes_either_ring(rpl: int) -> None:
    """With a descriptor written by a plain store, too: it is raised when its use is refused."""
    lab = client(f"start: {LOWERED}\nmov eax, {DATA0 | rpl}\nmov ss, ax\nmov eax, ss\nout 0xf4, al")
    assert exit_value(lab) == DATA0 | RING


@pytest.mark.parametrize("rpl", [0, RING])
def test_a_data_segment_takes_either_ring(rpl: int) -> None:
    lab = client(f"start: {LOWERED}\nmov eax, {DATA0 | rpl}\nmov es, ax\nmov eax, es\nout 0xf4, al")
    assert exit_value(lab) == DATA0 | rpl


@pytest.mark.parametrize("rpl", [0, RING])
def test_a_task_is_left_and_entered_with_the_ring(rpl: int) -> None:
    lab = client(f"start: int 0x41\ntask: mov al, [{TSS + CS_FIELD}]\nout 0xf4, al")
    lab.describe(FREE, descriptor(OTHER, 0x67, 0x89, 0))
    lab.memory.write(IDT + 8 * 0x41, gate(FREE, 0, TASK_GATE))
    fields = {0x20: lab.labels["task"], 0x38: STACK, CS_FIELD: CODE0 | rpl, 0x50: DATA0 | rpl, 0x54: DATA0}
    for offset, value in fields.items():
        lab.memory.put_u32(OTHER + offset, value)
    assert exit_value(lab) == CODE0 | RING
    assert lab.cpu.segment(Seg.SS).selector == DATA0 | RING
