# SPDX-License-Identifier: GPL-2.0-only
"""Any address of a patched kernel is explained, and the file alone tells what the patch run knew."""

from __future__ import annotations

from functools import cache

import pytest

from vmi import samples
from vmi.errors import UsageError
from vmi.patcher import Options, Patched, inspect_file, patch
from vmi.patcher.elf import load, vmi_segment
from vmi.patcher.explain import Explainer, of_patch, parse_address
from vmi.patcher.inspect import site_table
from vmi.patcher.model import Symbol, SymbolKind
from vmi.patcher.moves import Finder
from vmi.patcher.report import Move, SiteReport
from vmi.sitetable import Tactic

NAMES = tuple(samples.names())


@cache
def original(name: str) -> bytes:
    return samples.get(name).path.read_bytes()


@cache
def patched(name: str) -> Patched:
    return patch(original(name), Options(undo=False))


@cache
def explainer(name: str) -> Explainer:
    return of_patch(original(name), patched(name).data, patched(name).report)


@cache
def alone(name: str) -> Explainer:
    return inspect_file(patched(name).data).explainer()


def moves() -> list[tuple[str, Move]]:
    return [(name, move) for name in NAMES for move in patched(name).report.moves]


# ---------------------------------------------------------------- windows found again


@pytest.mark.parametrize("name", NAMES)
def test_the_file_alone_tells_what_moved_where(name: str) -> None:
    image = load(patched(name).data, patched=True)
    home = vmi_segment(image)
    assert home is not None
    finder = Finder(image, home, site_table(home))
    told = {
        (move.start, move.end, move.springboard, tuple((p.address, p.code) for p in move.pieces))
        for move in patched(name).report.moves
    }
    found = {
        (moved.start, moved.end, moved.springboard, tuple((p.address, p.code.hex()) for p in moved.pieces))
        for moved in finder.moved
    }
    assert found == told


# ---------------------------------------------------------------- what is said


def site_of(name: str, move: Move) -> SiteReport:
    sites = patched(name).report.sites
    return next(s for s in sites if move.start <= s.address < move.end and s.has_slot)


def test_every_address_around_a_window_leads_to_it() -> None:
    for name, move in moves():
        if not any(move.start <= s.address < move.end for s in patched(name).report.sites):
            continue  # it makes room for a neighbour's jump
        site = site_of(name, move)
        places = {
            "window": (site.address, move.end - 1),
            "trampoline": (move.trampoline, site.slot, site.slot + site.slot_length - 1),
            "springboard": (move.springboard,) * bool(move.springboard),
        }
        for kind, addresses in places.items():
            for address in addresses:
                answer = explainer(name).explain(address)
                assert f" is in the {kind} " in answer.facts[0], (name, hex(address))
                assert f"window at {move.start:#x}" in {line.title for line in answer.lines}
                assert alone(name).explain(address).lines[0] == answer.lines[0]


def test_originals_stand_beside_what_stands_for_them() -> None:
    for name, move in moves():
        lines = explainer(name).explain(move.start).lines
        pairs = [(line.original, line.patched) for line in lines if line.original and line.patched]
        assert pairs
        for before, now in pairs:
            assert before.code == now.code or before.text.split()[0] == now.text.split()[0]
        whole = b"".join(line.original.code for line in lines if line.original)
        assert bytes.fromhex(move.before).startswith(whole)


def test_the_file_alone_has_no_original_but_the_same_code() -> None:
    for name, move in moves():
        full, less = explainer(name).explain(move.start), alone(name).explain(move.start)
        assert not any(line.original for line in less.lines)
        assert [line.patched for line in less.lines if line.patched] == [
            line.patched for line in full.lines if line.patched
        ]


def test_the_undo_record_gives_the_original() -> None:
    found = inspect_file(patch(original("sched")).data)
    assert found.undoable
    move = patched("sched").report.moves[0]
    assert found.explainer().explain(move.start).lines == explainer("sched").explain(move.start).lines


def test_a_damaged_undo_record_costs_the_original_only() -> None:
    data = bytearray(patch(original("sched")).data)
    data[-100] ^= 1
    found = inspect_file(bytes(data))
    move = patched("sched").report.moves[0]
    answer = found.explainer().explain(move.start)
    assert answer.lines and not any(line.original for line in answer.lines)


def test_site_call_tactic_and_way() -> None:
    site = next(s for s in patched("sched").report.sites if s.form == "mov cr3,r")
    facts = explainer("sched").explain(site.address).facts
    assert f"{site.address:#x}  {site.text}  (form mov cr3,r, discovered)" in facts
    assert f"  call: SetCR3; tactic: {site.tactic}" in facts
    assert f"  slot: {site.slot:#x}, 5 bytes, connected through the adaptor at {site.adaptor:#x}" in facts
    text = alone("sched").explain(site.address).to_text()
    assert ": call SetCR3; tactic: " in text
    assert f"adaptor at {site.adaptor:#x}:\n" in text


def test_adaptors() -> None:
    report = patched("sched").report
    adaptor = max(report.adaptors, key=lambda one: one["users"])
    home = int(adaptor["address"])
    for answer in (explainer("sched").explain(home + 1), alone("sched").explain(home + 1)):
        assert answer.facts == (
            f"{home + 1:#x} is in the adaptor at {home:#x}",
            f"  slots that use it: {adaptor['users']}",
        )
        code = b"".join(line.patched.code for line in answer.lines if line.patched)
        assert code.hex() == adaptor["code"]


def test_the_reason_for_a_miss() -> None:
    site = next(s for s in patched("traps").report.sites if s.tactic == Tactic.LEFT)
    assert f"  reason: {site.reason}" in explainer("traps").explain(site.address).facts


def test_slots_that_the_source_made() -> None:
    site = next(s for s in patched("sched-annotated").report.sites if s.tactic == Tactic.ANNOTATED)
    answer = explainer("sched-annotated").explain(site.address)
    assert f"{site.address:#x}  {site.text}  (form {site.form}, annotated)" in answer.facts
    assert answer.lines[0].title == f"slot at {site.slot:#x}"
    assert all(line.original == line.patched for line in answer.lines[1:4])


def test_what_was_not_searched() -> None:
    skip = patched("hello").report.skipped[0]
    facts = explainer("hello").explain(int(skip["start"])).facts
    assert f"{int(skip['start']):#x} was not searched: {skip['reason']}" in facts


def test_nothing() -> None:
    for one in (explainer("hello"), alone("hello")):
        answer = one.explain(0x1234)
        assert answer.to_text() == "0x1234 is neither a sensitive instruction nor in a window\n"
        assert answer.to_json() == {
            "address": 0x1234,
            "facts": ["0x1234 is neither a sensitive instruction nor in a window"],
            "code": [],
        }


def test_the_activation_code() -> None:
    found = inspect_file(patched("hello").data)
    assert found.table is not None
    start = found.table.header.activation_entry
    assert f"{start:#x} is the start of the activation code" in explainer("hello").explain(start).facts[0]


# ---------------------------------------------------------------- the picture


def test_two_columns_where_there_is_room() -> None:
    move = patched("sched").report.moves[0]
    answer = explainer("sched").explain(move.start)
    wide, narrow = answer.to_text(200).splitlines(), answer.to_text(60).splitlines()
    bar = wide[len(answer.facts) + 1].index("|")
    assert wide[len(answer.facts) + 1] == f"{'  original':<{bar}}|   patched"
    assert {line[bar] for line in wide[len(answer.facts) + 1 :]} == {"|"}
    assert "original:" in narrow and "patched:" in narrow and not any(" | " in line for line in narrow)
    rows = [str(row) for line in answer.lines for row in (line.original, line.patched) if row]
    for row in rows:
        assert sum(row in line for line in wide) >= 1
        assert sum(row in line for line in narrow) >= 1


def test_the_line_that_was_asked_for_is_marked() -> None:
    move = patched("sched").report.moves[0]
    text = explainer("sched").explain(move.trampoline).to_text(60).splitlines()
    assert [line[2:10] for line in text if line.startswith(">")] == [f"{move.trampoline:08x}"]


# ---------------------------------------------------------------- addresses

SYMBOLS = (
    Symbol("start", 0xC0100000, 0, SymbolKind.FUNCTION),
    Symbol("add", 0xC0100010, 0, SymbolKind.FUNCTION),
    Symbol("twice", 0xC0100020, 0, SymbolKind.FUNCTION),
    Symbol("twice", 0xC0100030, 0, SymbolKind.FUNCTION),
)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("c0100000", 0xC0100000), ("0xC0100000", 0xC0100000), (" 10 ", 0x10), ("start", 0xC0100000),
        ("start+0x1f", 0xC010001F), ("start+16", 0xC0100010), ("add", 0xC0100010), ("0xadd", 0xADD),
        ("ADD", 0xADD),
    ],
)  # fmt: skip
def test_addresses(text: str, address: int) -> None:
    assert parse_address(text, SYMBOLS) == address


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("twice+1", "symbol 'twice' has several addresses: 0xc0100020, 0xc0100030"),
        *(
            (
                text,
                f"address {text!r} is not understood: expected up to 8 hexadecimal digits, like c0100000, or "
                "a symbol of the kernel, like start+0x10",
            )
            for text in ("", "stop", "123456789", "start+", "start-1", "0x", "+4")
        ),
    ],
)
def test_what_is_no_address(text: str, sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_address(text, SYMBOLS)
    assert str(caught.value) == sentence
