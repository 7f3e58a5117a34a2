# SPDX-License-Identifier: GPL-2.0-only
"""Breakpoints at silent instructions: planted by the guest's own table, and no trouble when it is damaged."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.hypervisor.lab import SILENT_USER, Lab, exit_value
from tests.hypervisor.test_domain import DONE, standing_by
from tests.native.guest import CODE, CODE0, CODE3, IDT, gate
from vmi import sitetable
from vmi.hypervisor.breakpoints import silent_sites
from vmi.memory import PhysicalMemory
from vmi.native.machine import Outcome


def table(
    traps: list[int],
    *,
    bias: int = 0,
    at: int = 0x90000,
    records: Sequence[sitetable.SiteRecord] = (),
    unconnected: int = 0,
) -> bytes:
    """A `.vmi` segment that names silent sites."""
    records = [
        *records,
        *(
            sitetable.SiteRecord(
                slot, 1, sitetable.NO_CALL, sitetable.Tactic.TRAP, sitetable.SiteFlag(0), 0, slot
            )
            for slot in traps
        ),
    ]
    raw = sitetable.pack_sites(records)
    header = sitetable.Header(
        0x1000,
        0,
        0,
        at + bias + 0x100,
        len(records),
        at + bias + 0x100,
        0,
        0,
        0,
        0,
        bias,
        unconnected=unconnected,
    )
    return header.pack().ljust(0x100, b"\0") + raw


def test_the_site_table_plants_breakpoints() -> None:
    lab = standing_by(f"start: nop\nsilent: pushfd\npop ecx\n{DONE}")
    lab.memory.write(0x90000, table([lab.labels["silent"] + 0xC0000000], bias=0xC0000000))
    lab.cpu.ebx = 0x90000
    lab.take()
    assert lab.memory.read(lab.labels["silent"], 1) == b"\xcc"
    assert exit_value(lab) == 1
    assert not lab.cpu.ecx & 0x200, "the real flag would be set"
    assert lab.machine.exits["breakpoint: pushfd"] == 1


@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize("unconnected", [0, sitetable.SiteFlag.ISOLATED])
def test_silent_instructions_in_slots_that_stay_native_get_one_too(unconnected: int, behind: bool) -> None:
    """Entry code of isolated page tables: the slot is NOPs and the instruction, in either order."""
    padding = "nop\nnop\nlea esi, [esi]"
    slot = f"pushfd\nsilent_end: {padding}" if behind else f"{padding}\nsilent: pushfd"
    lab = standing_by(f"start: nop\nslot: {slot}\npop ecx\n{DONE}")
    flags = sitetable.SiteFlag.ISOLATED | sitetable.SiteFlag.SILENT
    if behind:
        flags |= sitetable.SiteFlag.PAD_AFTER
    at = lab.labels["slot" if behind else "silent"]
    record = sitetable.SiteRecord(lab.labels["slot"], 5, 1, sitetable.Tactic.FORWARD, flags, 0, 0)
    lab.memory.write(0x90000, table([], records=[record], unconnected=unconnected))
    lab.cpu.ebx = 0x90000
    lab.take()
    assert (lab.memory.read(at, 1) == b"\xcc") == bool(unconnected)
    assert exit_value(lab) == 1
    assert lab.machine.exits["breakpoint: pushfd"] == bool(unconnected)


DAMAGE: list[tuple[str, dict[int, bytes]]] = [
    ("no magic", {0: b"XXXX"}),
    ("another version", {4: b"\x01\x00"}),
    ("a short header", {6: b"\x08\x00"}),
    ("a size beyond memory", {8: b"\xff\xff\xff\x7f"}),
    ("a table outside", {20: b"\x00\x00\x00\x70"}),
    ("records beyond the end", {24: b"\x00\x10\x00\x00"}),
    ("four billion records", {24: b"\xff\xff\xff\xff"}),
    ("an unknown tactic", {0x106: b"\xee"}),
]


@pytest.mark.parametrize(("what", "changes"), DAMAGE, ids=[what for what, _ in DAMAGE])
def test_a_damaged_site_table_names_nothing(what: str, changes: dict[int, bytes]) -> None:
    lab = standing_by()
    raw = bytearray(table([CODE]))
    for at, data in changes.items():
        raw[at : at + len(data)] = data
    lab.memory.write(0x90000, bytes(raw))
    lab.cpu.ebx = 0x90000
    lab.take()
    assert lab.domain is not None and lab.domain.active and not lab.domain.breakpoints.originals()
    assert not lab.domain.privilege.iopl_from_frames


@pytest.mark.parametrize("ebx", [0, 0xFFFFFFFC, 0x1FFFFC, 0xC0000, 0xDEADBEEF])
def test_anything_in_ebx_is_fine(ebx: int) -> None:
    lab = standing_by()
    lab.cpu.ebx = ebx
    assert lab.initialise() == 0


def test_sites_outside_memory_are_left_out() -> None:
    lab = standing_by(f"start: nop\nsilent: pushfd\n{DONE}")
    lab.memory.write(0x90000, table([lab.labels["silent"], 0x7FFFFFFF, 0xFFFFFFFF, 0x1FFFFF]))
    lab.cpu.ebx = 0x90000
    lab.take()
    assert lab.domain is not None
    assert sorted(lab.domain.breakpoints.originals()) == [lab.labels["silent"], 0x1FFFFF]


def test_memory_that_ends_in_a_table() -> None:
    memory = PhysicalMemory(1 << 20)
    memory.write((1 << 20) - 32, table([CODE])[:32])
    assert silent_sites(memory, (1 << 20) - 32) is None


def test_a_breakpoint_of_the_guests_own_is_its_own() -> None:
    lab = Lab(f"start: int3\nback: {DONE}", {3: "back"}, "full", silent=[])
    assert exit_value(lab) == 1
    assert lab.u32(lab.cpu.esp) == CODE + 1


def test_an_overwritten_breakpoint_is_the_guests() -> None:
    """The place is used for something else now; its first byte happens to be INT3 again."""
    source = f"""
    start:  mov dword ptr [{{silent}}], 0x909090cc
    silent: mov eax, cs
            nop
            nop
            {DONE}
    back:   mov al, 2
            out 0xf4, al
    """
    lab = Lab(source, {3: "back"}, "full", silent=["silent"])
    assert exit_value(lab) == 2
    assert lab.u32(lab.cpu.esp) == lab.labels["silent"] + 1


def test_the_two_byte_form_is_no_breakpoint() -> None:
    lab = Lab(f"start: .byte 0xcd, 3\nback: {DONE}", {3: "back"}, "full", silent=[])
    lab.domain.breakpoints.plant([CODE + 1])  # type: ignore[union-attr]
    lab.cpu.write_memory(CODE + 1, b"\x03")
    assert exit_value(lab) == 1
    assert lab.u32(lab.cpu.esp) == CODE + 2


def test_user_code_gets_its_instruction_back() -> None:
    """Code of the kernel's image that user mode runs: what is silent there is right there."""
    lab = Lab(SILENT_USER, {}, "full")
    lab.domain.breakpoints.plant([lab.labels["user"] + 2])  # type: ignore[union-attr]
    lab.memory.write(IDT + 8 * 0x30, gate(CODE0, lab.labels["back"], 0xEE))
    assert exit_value(lab) == 1
    assert lab.cpu.ebx & 0x200 and lab.cpu.ecx == CODE3
    assert lab.memory.read(lab.labels["user"], 1) == b"\x9c"
    assert lab.machine.exits["breakpoint in user code"] == 2


def test_a_breakpoint_at_an_instruction_that_needs_none_ends_the_run() -> None:
    lab = Lab("start: add eax, ecx\nhlt", mode="full", silent=["start"])
    end = lab.run()
    assert (end.outcome, end.reason) == (
        Outcome.CRASHED,
        f"the instruction behind the breakpoint at {CODE:#x} is none that needs one",
    )


@pytest.mark.parametrize("adjacent", [True, False])
def test_breakpoints_show_instructions_as_they_were(adjacent: bool) -> None:
    """A refused instruction is decoded without the breakpoints that stand in or behind it."""
    source = f"start: cli\nnext: pushfd\npop ecx\n{DONE}"
    lab = Lab(source, mode="full", silent=["next"] if adjacent else ["start", "next"])
    assert exit_value(lab) == 1 and not lab.cpu.ecx & 0x200


def test_an_instruction_that_traps_is_decoded_anew_when_it_has_changed() -> None:
    """Through a store by the guest, which tells nobody."""
    source = f"""
    start:  mov ecx, 3
    again:  mov eax, cr0
    mark:   mov byte ptr [{{again}} + 2], 0xd8
            mov edx, 5
            dec ecx
            jnz again
            {DONE}
    """
    lab = Lab(source, {}, "full")
    lab.cpu.set_cr(3, 0x123000)
    assert exit_value(lab) == 1
    assert lab.cpu.eax == 0x123001, "it has become a read of CR3"
    assert lab.machine.exits["privileged instruction: mov"] == 3


def test_a_breakpoint_is_planted_once() -> None:
    """The second would cover the first, and nobody knew any more what was there."""
    lab = Lab(f"start: pushfd\npop ecx\n{DONE}", {}, "full")
    assert lab.domain is not None
    before = lab.domain.breakpoints.originals()
    lab.domain.breakpoints.plant([lab.labels["start"]])
    assert lab.domain.breakpoints.originals() == before == {lab.labels["start"]: 0x9C}
    assert exit_value(lab) == 1
