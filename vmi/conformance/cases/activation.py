# SPDX-License-Identifier: GPL-2.0-only
"""What a patched kernel does before it starts: which ROM it takes, and what it makes of the answers.

The kernel is the toolkit's; ROMs are the subject's, copies of it that are damaged or elsewhere, and such as
give answers that the subject's does not.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from vmi import abi
from vmi.abi import Reloc
from vmi.conformance import patched
from vmi.conformance.case import Findings, case
from vmi.conformance.layout import Paging
from vmi.conformance.patched import BIAS, ENTRY, PADDR, Run, answering, checked
from vmi.conformance.rig import Rig, Unfit, branch
from vmi.rom.layout import CALL_TABLE, CallTable, Promise, RomHeader
from vmi.sitetable import INLINE, SITE_SIZE, MapStatus, SiteFlag, SiteRecord, Status, header_offset

_OFF = frozenset({Paging.OFF})
_NOP = 0x90
_PLACES = (0xC0000, 0xC0800, 0xD1000, 0xDC000)
_ELSEWHERE = 0xD4000
_OUTSIDE = (0xE0000, 0xBF800)
_MBI, _MAP, _MULTIBOOT = 0x7000, 0x7100, 0x2BADB002
_RESERVED, _USABLE = 2, 1
_END = b"\xe6\xf4\xeb\xfc"  # code that ends the run: OUT F4h, AL again and again


def _native(found: Findings, done: Run, status: Status) -> None:
    """The kernel runs as if it had not been patched, and nothing of it has changed."""
    tables = done.image.tables
    assert tables is not None
    found.equal("status", Status(done.word("status")), status)
    for record in tables.sites:
        before, after = done.slot(record.slot, record.length)
        found.true(before == after, f"the slot at {record.slot:#x} must stay as it is")
    for link in tables.links:
        before, after = done.slot(link.address, 5)
        found.true(before == after, f"the link at {link.address:#x} must stay as it is")
    text = slice(0, 0x1000)
    found.true(done.before[text] == done.after[text], "the kernel's own code must stay as it is")
    found.equal("the end", done.results["end"], 1)


@case("Activation", "found anywhere", 1, begun=False, paging=_OFF)
def found_anywhere(rig: Rig, found: Findings) -> None:
    """The same ROM is found at the beginning of the range, in it and near its end."""
    rom = patched.rom_image(rig)
    for at in _PLACES:
        if at + len(rom) > 0xE0000:
            continue
        patched.ready(rig, patched.image(), (at, rom))
        done = patched.start(rig, patched.image())
        found.equal(f"status with a ROM at {at:#x}", Status(done.word("status")), Status.ACTIVE)
        found.equal("rom_base", done.word("rom_base"), at)


def _with(offset: int, data: bytes) -> Callable[[bytes], bytes]:
    """An image with other bytes somewhere, its sum right."""
    return lambda rom: checked(rom[:offset] + data + rom[offset + len(data) :])


def _another_licence(rom: bytes) -> bytes:
    at = RomHeader.parse(rom).license_offs
    return checked(rom[:at] + b"GPL v3\0" + rom[at + 7 :])


_DAMAGED: dict[str, tuple[int, Callable[[bytes], bytes]]] = {
    "checksum": (2, lambda rom: rom[:-1] + bytes([rom[-1] ^ 1])),
    "no 55 AA": (3, _with(0, b"\x55\xab")),
    "no cVmi": (3, _with(8, b"cVmj")),
    "another major version": (4, _with(13, b"\x04")),
    "length 0": (5, _with(2, b"\0")),
    "no PCI header": (6, _with(0x18, b"\0\0")),
    "no licence": (7, _with(0x16, b"\0\0")),
    "licence outside": (7, _with(0x16, b"\xfe\xff")),
    "another licence": (7, _another_licence),
}

for _what, (_number, _damage) in _DAMAGED.items():

    @case("Activation", f"damaged ROM, {_what}", _number, 10, begun=False, paging=_OFF)
    def damaged(rig: Rig, found: Findings, damage: Callable[[bytes], bytes] = _damage) -> None:
        """It is passed over, and the kernel runs natively."""
        rom = damage(patched.rom_image(rig))
        patched.ready(rig, patched.image(), (rig.rom, rom))
        done = patched.start(rig, patched.image())
        _native(found, done, Status.NATIVE)
        found.equal("rom_base", done.word("rom_base"), 0)


@case("Activation", "behind a damaged ROM", 8, begun=False, paging=_OFF)
def goes_on(rig: Rig, found: Findings) -> None:
    """The search goes on behind one that is passed over."""
    rom = patched.rom_image(rig)
    for what, (_, damage) in _DAMAGED.items():
        patched.ready(rig, patched.image(), (rig.rom, damage(rom)), (_ELSEWHERE, rom))
        done = patched.start(rig, patched.image())
        found.equal(f"rom_base behind a ROM with {what}", done.word("rom_base"), _ELSEWHERE)
        found.equal("status", Status(done.word("status")), Status.ACTIVE)


@case("Activation", "outside the range", 9, 10, begun=False, paging=_OFF)
def outside(rig: Rig, found: Findings) -> None:
    """One that begins below C0000h or from E0000h on is not looked at."""
    rom = answering({})
    patched.rom_image(rig)
    for at in _OUTSIDE:
        patched.ready(rig, patched.image(), (at, rom))
        _native(found, patched.start(rig, patched.image()), Status.NATIVE)


@case("Activation", "too large", 11, begun=False, paging=_OFF)
def too_large(rig: Rig, found: Findings) -> None:
    """A ROM that the reserved space has no room for is not started; one that just fits is."""
    patched.rom_image(rig)
    tables = patched.image().tables
    assert tables is not None
    room = tables.header.rom_reserve_size
    patched.ready(rig, patched.image(), (0xC0000, answering({}, size=room + abi.ROM_UNIT)))
    _native(found, patched.start(rig, patched.image()), Status.TOO_LARGE)
    patched.ready(rig, patched.image(), (0xC0000, answering({}, size=room)))
    status = patched.start(rig, patched.image()).word("status")
    found.equal("status with one that fits", Status(status), Status.ACTIVE)


@case("Activation", "refused", 12, begun=False, paging=_OFF)
def refused(rig: Rig, found: Findings) -> None:
    """VMI_Init that answers anything but 0 leaves the kernel native."""
    patched.rom_image(rig)
    for answer in (1, 0x80000000, 0xFFFFFFFF):
        rom = answering({"DisableInterrupts": (Reloc.CALL_REL, 0x100)}, init=f"mov eax, {answer}")
        patched.ready(rig, patched.image(), (0xC0000, rom))
        _native(found, patched.start(rig, patched.image()), Status.REFUSED)


@case("Activation", "copy of the ROM", 13, begun=False, paging=_OFF)
def copied(rig: Rig, found: Findings) -> None:
    """VMI_Init runs in a copy that is the image, with the header's address in EBX."""
    patched.rom_image(rig)
    loaded = patched.image()
    tables = loaded.tables
    assert tables is not None
    header, reserve = loaded.segment - BIAS, tables.header.rom_reserve - BIAS
    rom = answering(
        {},
        init=f"cmp ebx, {header}\njne wrong\ncall place\nplace: pop eax\nsub eax, {{place}}\n"
        f"cmp eax, {reserve}\njne wrong\nxor eax, eax\nret\nwrong: mov eax, 1",
    )
    patched.ready(rig, loaded, (0xC0000, rom))
    done = patched.start(rig, loaded)
    found.equal("status", Status(done.word("status")), Status.ACTIVE)
    found.true(rig.read(reserve, len(rom)) == rom, "the reserved space must hold the image")


def _entry(done: Run, answers: dict[str, tuple[Reloc, int]], name: str) -> int:
    """Virtual address of an entry in the ROM's copy."""
    tables = done.image.tables
    assert tables is not None
    return tables.header.rom_reserve + answers[name][1]


_STUB = 0x600  # `ret`s of our ROMs, where nothing is ever called


def _answers(kind: Reloc) -> dict[str, tuple[Reloc, int]]:
    return {call.name: (kind, _STUB + call.number) for call in abi.CALLS}


def _activated(rig: Rig, rom: bytes, changed: dict[int, int] | None = None) -> Run:
    """Run activation alone, up to the kernel's entry, where the run ends.

    :param changed: flags to set in records of the site table, by number.
    """
    patched.rom_image(rig)
    loaded = patched.image()
    patched.ready(rig, loaded, (0xC0000, rom))
    assert loaded.tables is not None
    for number, flags in (changed or {}).items():
        at = loaded.tables.header.sites - BIAS + SITE_SIZE * number + 7
        rig.write(at, bytes([rig.read(at, 1)[0] | flags]))
    rig.write(PADDR, _END)
    before = rig.read(PADDR, patched.span(loaded))
    rig.subject.set_registers({**ENTRY, "esp": 0, "eip": loaded.entry})
    rig.subject.run(rig.limit_ns)
    return Run({}, before, rig.read(PADDR, patched.span(loaded)), rig, loaded)


def _records(done: Run) -> tuple[SiteRecord, ...]:
    """Records of slots outside the first bytes, which the case has replaced."""
    assert done.image.tables is not None
    return tuple(record for record in done.image.tables.sites if record.slot - patched.VADDR >= 4)


@case("Activation", "CALL_REL", 14, 18, 19, begun=False, paging=_OFF)
def call_rel(rig: Rig, found: Findings) -> None:
    """Slots become calls and NOPs, links lead to the entries."""
    answers = _answers(Reloc.CALL_REL)
    done = _activated(rig, answering(answers))
    assert done.image.tables is not None
    for record in _records(done):
        _, after = done.slot(record.slot, record.length)
        if record.call == INLINE:
            target = record.adaptor
        else:
            target = record.adaptor or _entry(done, answers, abi.CALLS[record.call].name)
        wanted = branch(record.slot, target, call=True) + bytes([_NOP]) * (record.length - 5)
        found.true(
            after == wanted, f"the slot at {record.slot:#x} must be {wanted.hex()}, but is {after.hex()}"
        )
    for link in done.image.tables.links:
        wanted = branch(link.address, _entry(done, answers, abi.CALLS[link.call].name), call=True)
        _, after = done.slot(link.address, 5)
        found.true(
            after == wanted, f"the link at {link.address:#x} must be {wanted.hex()}, but is {after.hex()}"
        )


@case("Activation", "NONE", 15, 18, begun=False, paging=_OFF)
def none(rig: Rig, found: Findings) -> None:
    """Slots and links stay as they are, but for those whose adaptor does everything itself."""
    done = _activated(rig, answering({}))
    assert done.image.tables is not None
    for record in _records(done):
        before, after = done.slot(record.slot, record.length)
        if record.call == INLINE:
            found.true(
                after[:5] == branch(record.slot, record.adaptor, call=True),
                "a slot with call 254 is connected",
            )
        else:
            found.true(before == after, f"the slot at {record.slot:#x} must stay as it is")
    for link in done.image.tables.links:
        before, after = done.slot(link.address, 5)
        found.true(before == after, f"the link at {link.address:#x} must stay as it is")


@case("Activation", "NOP", 16, begun=False, paging=_OFF)
def nop(rig: Rig, found: Findings) -> None:
    """Slots that may be left out become NOPs, the others stay."""
    done = _activated(rig, answering(_answers(Reloc.NOP)))
    for record in _records(done):
        before, after = done.slot(record.slot, record.length)
        if record.flags & SiteFlag.NOP_OK and record.call != INLINE:
            before = bytes([_NOP]) * record.length
        if record.call != INLINE:
            found.true(
                after == before, f"the slot at {record.slot:#x} must be {before.hex()}, but is {after.hex()}"
            )


@case("Activation", "JUMP_REL", 17, begun=False, paging=_OFF)
def jump_rel(rig: Rig, found: Findings) -> None:
    """Slots of calls that don't come back become jumps to the entry, the others stay."""
    answers = _answers(Reloc.JUMP_REL)
    done = _activated(rig, answering(answers))
    jumps = 0
    for record in _records(done):
        before, after = done.slot(record.slot, record.length)
        if record.flags & SiteFlag.JUMP_OK:
            name = abi.CALLS[record.call].name
            before = branch(record.slot, _entry(done, answers, name), call=False) + bytes([_NOP]) * (
                record.length - 5
            )
            jumps += 1
        if record.call != INLINE:
            found.true(
                after == before, f"the slot at {record.slot:#x} must be {before.hex()}, but is {after.hex()}"
            )
    found.true(jumps > 0, "the kernel must have such a slot")


def _promising(rom: bytes, promises: Promise) -> bytes:
    """A ROM of ours with the record that promises are in; its table of answers lies elsewhere."""
    types = bytes(len(abi.CALLS))
    record = CallTable(0, 0, 0, 0, tuple(types), promises).pack()
    return checked(rom[:CALL_TABLE] + record + rom[CALL_TABLE + len(record) :])


@case("Activation", "not to be connected", 20, 21, begun=False, paging=_OFF)
def unconnected(rig: Rig, found: Findings) -> None:
    """Isolated slots never are; recovered ones only without adaptor, to a ROM that promises so."""
    rom = answering(_answers(Reloc.CALL_REL))
    for flag, promises in (
        (SiteFlag.ISOLATED, Promise(0)),
        (SiteFlag.ISOLATED, Promise.FAULTS_AT_CALL),
        (SiteFlag.RECOVERED, Promise(0)),
        (SiteFlag.RECOVERED, Promise.FAULTS_AT_CALL),
    ):
        count = len(patched.image().tables.sites)  # type: ignore[union-attr]
        done = _activated(rig, _promising(rom, promises), dict.fromkeys(range(count), int(flag)))
        found.equal("status", Status(done.word("status")), Status.ACTIVE)
        left = SiteFlag.ISOLATED | (SiteFlag(0) if promises else SiteFlag.RECOVERED)
        found.equal("unconnected", SiteFlag(done.word("unconnected")), left)
        for record in _records(done):
            before, after = done.slot(record.slot, record.length)
            stays = bool(flag & left) or bool(record.adaptor)
            found.true(
                (before == after) is stays,
                f"the slot at {record.slot:#x} must {'stay' if stays else 'be connected'} with {flag!r} "
                f"and {promises!r}",
            )


@case("Activation", "registers", 22, begun=False, paging=_OFF)
def registers(rig: Rig, found: Findings) -> None:
    """Everything but ESP is as the boot loader left it, with any ROM and without one."""
    own = patched.rom_image(rig)
    loaded = patched.image()
    assert loaded.tables is not None
    for rom in (own, answering({}), answering({}, init="mov eax, 1"), bytes(len(own))):
        patched.ready(rig, loaded, (rig.rom, rom))
        done = patched.start(rig, loaded)
        got = {name: done.results[name] for name in ENTRY}
        found.true(got == ENTRY, f"the kernel must be entered with {ENTRY}, but it has {got}")
        found.equal("ESP", done.results["esp"], loaded.tables.header.stack_top - BIAS)
        found.equal("flags", done.results["flags"] & 0xED5, 0)


@case("Activation", "nothing else", 23, begun=False, paging=_OFF)
def nothing_else(rig: Rig, found: Findings) -> None:
    """Outside slots, links, header, the ROM's copy and its own scratch space it writes nothing."""
    done = _activated(rig, answering(_answers(Reloc.CALL_REL)))
    tables = done.image.tables
    assert tables is not None
    header, changed = tables.header, []
    may = [
        (header.rom_reserve, header.rom_reserve_size),
        (done.image.segment, header.sites - done.image.segment),
    ]
    may += [(record.slot, record.length) for record in tables.sites]
    may += [(link.address, 5) for link in tables.links]
    covered = {at - patched.VADDR + n for at, size in may for n in range(size)}
    for n, (before, after) in enumerate(zip(done.before, done.after, strict=True)):
        if before != after and n not in covered:
            changed.append(n + patched.VADDR)
    found.true(
        not changed, f"it must not write elsewhere, but {[hex(at) for at in changed[:4]]} have changed"
    )
    words = ("size", "rom_reserve", "sites", "site_count", "links", "original_entry", "bias", "image_flags")
    for name in words:
        found.equal(f"the header's {name}", done.word(name), getattr(header, name))


def _memory_map(rig: Rig, entries: list[tuple[int, int, int]]) -> None:
    packed = b"".join(struct.pack("<IQQI", 20, *entry) for entry in entries)
    rig.write(_MAP, packed)
    rig.write(_MBI, struct.pack("<I", 0x40 if entries else 0).ljust(44, b"\0"))
    rig.put(_MBI + 44, len(packed), _MAP)


def _started(
    rig: Rig, entries: list[tuple[int, int, int]], eax: int
) -> tuple[list[tuple[int, int, int]], MapStatus]:
    """The memory map that the kernel gets, and map_status."""
    loaded = patched.image()
    patched.ready(rig, loaded, patched.NO_ROM)
    rig.write(PADDR, _END)
    _memory_map(rig, entries)
    rig.subject.set_registers({**ENTRY, "eax": eax, "ebx": _MBI, "esp": 0, "eip": loaded.entry})
    rig.subject.run(rig.limit_ns)
    size, at = struct.unpack("<II", rig.read(_MBI + 44, 8))
    rows = [struct.unpack("<QQI", rig.read(at + n + 4, 20)) for n in range(0, size, 24)]
    status = rig.word(loaded.segment - BIAS + header_offset("map_status"))
    return [(base, length, kind) for base, length, kind in rows], MapStatus(status)


@case("Activation", "memory map", 24, 25, begun=False, paging=_OFF)
def memory_map(rig: Rig, found: Findings) -> None:
    """The segment is taken out of the map of a multiboot loader, and of nothing else."""
    patched.rom_image(rig)
    loaded = patched.image()
    assert loaded.tables is not None
    low = loaded.segment - BIAS
    high = low + loaded.tables.header.size
    given = [(0, 0x9FC00, _USABLE), (0xF0000, 0x10000, _RESERVED), (0x100000, 0x300000, _USABLE)]
    got, status = _started(rig, given, _MULTIBOOT)
    found.equal("map_status", status, MapStatus.CARVED)
    found.equal("the map", got, [
        *given[:2], (0x100000, low - 0x100000, _USABLE), (low, high - low, _RESERVED),
        (high, 0x400000 - high, _USABLE),
    ])  # fmt: skip
    got, status = _started(rig, given, ENTRY["eax"])
    found.equal("map_status with another boot loader", status, MapStatus.UNTOUCHED)
    found.equal("its map", got, given)
    _, status = _started(rig, [], _MULTIBOOT)
    found.equal("map_status without a map", status, MapStatus.NO_MAP)


@case("Activation", "again", 26, begun=False, paging=_OFF)
def again(rig: Rig, found: Findings) -> None:
    """Activation that runs once more leaves the slots as they are, and the kernel works."""
    patched.rom_image(rig)
    loaded = patched.image()
    patched.ready(rig, loaded)
    first = patched.start(rig, loaded)
    if Status(first.word("status")) is not Status.ACTIVE:
        raise Unfit("the ROM is not taken")
    second = patched.start(rig, loaded, "starting the kernel again")
    wanted = {name: value for name, value in first.results.items() if name != "flags"}
    got = {name: value for name, value in second.results.items() if name != "flags"}
    found.true(got == wanted, f"the kernel must give {wanted} again, but it gives {got}")
    assert loaded.tables is not None
    for record in loaded.tables.sites:
        before, after = second.slot(record.slot, record.length)
        found.true(before == after, f"the slot at {record.slot:#x} must stay as it is")
