# SPDX-License-Identifier: GPL-2.0-only
"""Patched kernels, annotated ones too, beside the kernels that they were made from; and damaged tables."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from vmi import sitetable
from vmi.conformance import patched
from vmi.conformance.case import Findings, case
from vmi.conformance.layout import RAM, SCRATCH, Paging
from vmi.conformance.patched import BIAS, Image, Run
from vmi.conformance.rig import Rig, Unfit
from vmi.errors import BadInput
from vmi.patcher import Options, elf, patch
from vmi.patcher.inspect import site_table
from vmi.sitetable import HEADER_SIZE, SITE_SIZE, Header, SiteFlag, SiteRecord, Status, Tactic, header_offset

_OFF = frozenset({Paging.OFF})
_QUICK = Options(undo=False)
_ARITHMETIC = ("carry", "registers", "port")
_INTERRUPTS = ("IF behind CLI", "IF behind STI", "IF behind POPF", "IRET")
_STATE = ("CR0", "CR2", "CR3", "GDT limit", "GDT base", "LDT", "loop", "end")


def _run(rig: Rig, loaded: Image, *roms: tuple[int, bytes]) -> Run:
    patched.ready(rig, loaded, *roms)
    return patched.start(rig, loaded)


def _same(found: Findings, done: Run, wanted: Run, names: tuple[str, ...]) -> None:
    for name in names:
        found.equal(name, done.results[name], wanted.results[name])


def _original(rig: Rig) -> Run:
    """What the kernel gives that nobody has patched."""
    patched.rom_image(rig)
    return _run(rig, patched.original(), patched.NO_ROM)


@case("Patched", "without a ROM", 1, begun=False, paging=_OFF)
def without_rom(rig: Rig, found: Findings) -> None:
    """A patched kernel gives what the original gives, and none of its slots has changed."""
    wanted = _original(rig)
    for marked in (False, True):
        done = _run(rig, patched.image(marked=marked), patched.NO_ROM)
        _same(found, done, wanted, (*_ARITHMETIC, *_INTERRUPTS, *_STATE))
        found.equal("status", Status(done.word("status")), Status.NATIVE)


@case("Patched", "with the ROM", 2, 3, 4, begun=False, paging=_OFF)
def with_rom(rig: Rig, found: Findings) -> None:
    """With the ROM it gives the same: registers and flags, the interrupt flag, and what else it reads."""
    wanted = _original(rig)
    done = _run(rig, patched.image())
    found.equal("status", Status(done.word("status")), Status.ACTIVE)
    _same(found, done, wanted, (*_ARITHMETIC, *_INTERRUPTS, *_STATE))


@case("Patched", "annotated", 5, begun=False, paging=_OFF)
def annotated(rig: Rig, found: Findings) -> None:
    """Slots are where the source has made them, and the kernel gives the same."""
    wanted = _original(rig)
    loaded = patched.image(marked=True)
    assert loaded.tables is not None
    _, records = patched.annotated()
    starts = {start for start, _, _, _ in struct.iter_unpack("<IHBB", records)}
    slots = {record.slot for record in loaded.tables.sites if record.tactic is Tactic.ANNOTATED}
    found.true(slots == starts, f"slots must be at {sorted(starts)}, but they are at {sorted(slots)}")
    done = _run(rig, loaded)
    found.equal("status", Status(done.word("status")), Status.ACTIVE)
    _same(found, done, wanted, (*_ARITHMETIC, *_INTERRUPTS, *_STATE))


@case("Patched", "patched twice", 6, begun=False, paging=_OFF)
def twice(_rig: Rig, found: Findings) -> None:
    """A patched file is not patched again."""
    data = patched.patched().data
    found.true(_refuses(lambda: patch(data, _QUICK)), "a patched file must be refused")


@case("Patched", "damaged annotations", 7, begun=False, paging=_OFF)
def damaged_annotations(_rig: Rig, found: Findings) -> None:
    """Records that are not true of the code, or that contradict each other, are refused."""
    code, records = patched.annotated()
    first = records[:8]
    start, length, _, _ = struct.unpack("<IHBB", first)
    for what, wrong in (
        ("outside the code", struct.pack("<IHBB", start + 0x100000, length, 1, 0)),
        ("in the middle of an instruction", struct.pack("<IHBB", start + length - 1, length, 1, 0)),
        ("of no sensitive instruction", struct.pack("<IHBB", patched.VADDR, 5, 1, 0)),
        ("too short", struct.pack("<IHBB", start, 4, 1, 0)),
        ("of another version", struct.pack("<IHBB", start, length, 2, 0)),
        ("of an unknown kind", struct.pack("<IHBB", start, length, 1, 9)),
        ("that overlaps", first + struct.pack("<IHBB", start + 1, length, 1, 0)),
        ("cut short", first[:7]),
    ):
        file = patched.kernel(code, wrong)
        found.true(_refuses(partial(patch, file, _QUICK)), f"a record {what} must be refused")


def _refuses(do: Callable[[], object]) -> bool:
    try:
        do()
    except BadInput:
        return True
    return False


def _segment() -> tuple[int, bytes]:
    loaded = patched.image()
    data = next(data for at, data in loaded.pieces if at == loaded.segment - BIAS)
    return loaded.segment, data


def _word(name: str, value: int) -> Callable[[bytes], bytes]:
    at = header_offset(name)
    return lambda data: data[:at] + (value & 0xFFFFFFFF).to_bytes(4, "little") + data[at + 4 :]


def _bytes(at: int, value: bytes) -> Callable[[bytes], bytes]:
    return lambda data: data[:at] + value + data[at + len(value) :]


def _record(at: int, value: int) -> Callable[[bytes], bytes]:
    """A byte of the first record of the site table."""
    loaded = patched.image()
    assert loaded.tables is not None
    return _bytes(loaded.tables.header.sites - loaded.segment + at, bytes([value]))


_DAMAGE: dict[str, tuple[int, Callable[[], Callable[[bytes], bytes]]]] = {
    "magic": (1, lambda: _bytes(0, b"VMIT")),
    "version 1": (2, lambda: _bytes(4, b"\x01\0")),
    "version 3": (2, lambda: _bytes(4, b"\x03\0")),
    "header too short": (3, lambda: _bytes(6, (HEADER_SIZE - 4).to_bytes(2, "little"))),
    "cut in the header": (4, lambda: lambda data: data[: HEADER_SIZE - 1]),
    "cut in the tables": (4, lambda: lambda data: data[: HEADER_SIZE + SITE_SIZE]),
    "site table before the segment": (5, lambda: _word("sites", 0x1000)),
    "site table in the header": (5, lambda: _word("sites", patched.image().segment + 16)),
    "site table behind the segment": (5, lambda: _word("sites", patched.image().segment + (1 << 24))),
    "link table outside": (5, lambda: _word("links", 0)),
    "too many sites": (6, lambda: _word("site_count", 0x0FFFFFFF)),
    "too many links": (6, lambda: _word("link_count", 0xFFFFFFFF)),
    "unknown tactic": (7, lambda: _record(6, 200)),
    "unknown call": (8, lambda: _record(5, 200)),
}

for _what, (_number, _damage) in _DAMAGE.items():

    @case("Table", f"damaged, {_what}", _number, begun=False, paging=_OFF)
    def damaged_table(
        _rig: Rig, found: Findings, damage: Callable[[], Callable[[bytes], bytes]] = _damage
    ) -> None:
        """A reader refuses it with a sentence."""
        vaddr, data = _segment()
        image = elf.load(patched.patched().data, patched=True)
        home = elf.vmi_segment(image)
        assert home is not None
        found.true(not _refuses(lambda: site_table(home)), "the table as it was made must be read")
        wrong = replace(home, data=damage()(data), vaddr=vaddr)
        found.true(_refuses(lambda: site_table(wrong)), "a damaged table must be refused")


@case("Table", "longer header", 9, begun=False, paging=_OFF)
def longer_header(_rig: Rig, found: Findings) -> None:
    """A header that says that it is longer is read as far as it is known."""
    vaddr, data = _segment()
    longer = _bytes(6, (HEADER_SIZE + 8).to_bytes(2, "little"))(data)
    found.true(not _refuses(lambda: sitetable.parse(longer, vaddr)), "a longer header must be read")
    found.equal("the header", sitetable.parse_header(longer), sitetable.parse_header(data))


@case("Table", "order", 10, 11, begun=False, paging=_OFF)
def order(_rig: Rig, found: Findings) -> None:
    """Records are in the order of their slots, each of 5 bytes or more, in code and apart from each other."""
    for marked in (False, True):
        tables = patched.image(marked=marked).tables
        assert tables is not None
        slots = [(record.slot, record.length) for record in tables.sites if record.has_call]
        found.true(slots == sorted(slots), "the records must be in the order of their slots")
        for record in tables.sites:
            found.true(not record.has_call or record.length >= 5, f"{record} must have 5 bytes or more")
        ends = [slot + length for slot, length in slots]
        apart = all(end <= slot for end, (slot, _) in zip(ends, slots[1:], strict=False))
        found.true(apart, "slots must not overlap")
        links = {link.address for link in tables.links}
        found.equal("links at one address", len(links), len(tables.links))


_AT = SCRATCH + 0x400


def _table(traps: tuple[int, ...] = (), **changes: int) -> bytes:
    """A segment at :data:`_AT`, linked where it lies, with records of places to be trapped."""
    sites = _AT + HEADER_SIZE
    records = b"".join(
        SiteRecord(
            at & 0xFFFFFFFF, 1, sitetable.NO_CALL, Tactic.TRAP, SiteFlag.SILENT, 0, at & 0xFFFFFFFF
        ).pack()
        for at in traps
    )
    fields = {
        **dict.fromkeys(("rom_reserve", "rom_reserve_size", "original_entry", "activation_entry"), 0),
        "size": HEADER_SIZE + len(records), "sites": sites, "site_count": len(traps), "links": sites,
        "link_count": 0, "image_flags": 0, "bias": 0, **changes,
    }  # fmt: skip
    return Header(**fields).pack() + records


_HINTS: dict[str, tuple[int, bytes]] = {
    "nothing": (0, b""),
    "no table": (_AT, b"VMIT" + bytes(200)),
    "outside RAM": (RAM + 0x100000, b""),
    "at the end of RAM": (RAM - 8, b"VMIS\x02\0\x60\0"),
    "end of the address space": (0xFFFFFFFC, b""),
    "another version": (_AT, _table().replace(b"VMIS\x02", b"VMIS\x07")),
    "segment too large": (_AT, _table(size=0xFFFFFFFF)),
    "table outside": (_AT, _table(sites=0x300000)),
    "too many sites": (_AT, _table(site_count=0x10000000)),
    "bias": (_AT, _table(bias=0x12345678)),
    "sites outside RAM": (_AT, _table((RAM, RAM + 0x1000, 0x80000000, 0xFFFFFFFF))),
}

for _what, (_place, _data) in _HINTS.items():

    @case("Init", f"hint, {_what}", 6, begun=False)
    def hint(rig: Rig, found: Findings, place: int = _place, data: bytes = _data) -> None:
        """The guest is taken over or refused, without a fault, and works."""
        rig.power_on()
        if data:
            rig.write(place, data)
        if rig.environment.paging is not Paging.OFF and place >= RAM:
            raise Unfit("nothing is mapped there")
        kept = rig.read(0x10000, 0x2000)
        answer = rig.initialise(ebx=place)
        found.true(answer.returned, "VMI_Init must return")
        found.equal("events", answer.faults, [])
        found.equal("EAX", answer.registers["eax"], 0)
        site = rig.labels["site"] - 0x10000
        after = rig.read(0x10000, 0x2000)
        found.true(
            after[:site] + after[site + 5 :] == kept[:site] + kept[site + 5 :], "the guest's code must stay"
        )
        rig.value("DisableInterrupts")
        found.equal("the mask", rig.value("GetInterruptMask") & 0x200, 0)


@case("Init", "records of call 255", 7, begun=False)
def planted(rig: Rig, found: Findings) -> None:
    """A silent instruction that such a record names does what it does at level 0."""
    code, at = b"\x9c\x58\x8c\xc9", SCRATCH  # pushfd; pop eax; mov ecx, cs
    rig.power_on()
    rig.write(at, code)
    rig.jump_to(at + len(code), rig.labels["done"], call=False)
    rig.write(_AT, _table((at, at + 2)))
    found.equal("VMI_Init", rig.initialise(ebx=_AT).registers["eax"], 0)
    for name, wanted in (("EnableInterrupts", 0x200), ("DisableInterrupts", 0)):
        rig.value(name)
        done = rig.start(at)
        found.equal("events", done.faults, [])
        found.equal(f"IF by PUSHFD behind {name}", done.registers["eax"] & 0x200, wanted)
        found.equal("the level in CS", done.registers["ecx"] & 3, 0)
