# SPDX-License-Identifier: GPL-2.0-only
"""PVH: the direct boot protocol that Xen defined for ELF kernels, with start information of version 1.

A note in the file gives the physical entry point. Follows Xen's document on the x86/HVM direct boot ABI
and its public header start_info.h. Modules go to the top of RAM, the last one highest, which is where
QEMU puts an initrd; the structures are at fixed places in low memory.
"""

from __future__ import annotations

from struct import Struct

from vmi.errors import BadInput
from vmi.native.boot import elf, placement
from vmi.native.boot.memory_map import HIGH_RAM, LOW_RAM_END, memory_map, ram_end
from vmi.native.boot.state import BootState, Module, Plan, Request, Write

START_MAGIC = 0x336EC578
START_AT = 0x9000
_VERSION = 1
_OWNER, _PHYS32_ENTRY = b"Xen", 18

_START = Struct("<4I4Q2I")
_MAP_ENTRY = Struct("<2Q2I")
_MODULE = Struct("<4Q")
_TASK_LIMIT = 0x67


def recognise(image: bytes) -> bool:
    """Whether this is an i386 ELF executable with the note."""
    try:
        return _entry_note(elf.parse(image)) is not None
    except BadInput:
        return False


def _entry_note(executable: elf.Executable) -> bytes | None:
    for note in executable.notes:
        if note.owner == _OWNER and note.kind == _PHYS32_ENTRY:
            return note.data
    return None


def plan(request: Request, ram_size: int) -> Plan:
    """What to load for a kernel; its command line is its options alone."""
    executable = elf.parse(request.image)
    note = _entry_note(executable)
    if note is None:
        raise BadInput("the kernel has no Xen note with the entry point (type 18), which PVH needs")
    if len(note) not in (4, 8):  # the wider one is what 64-bit kernels have
        raise BadInput(f"the kernel's PVH entry point must have 4 or 8 bytes, but its note has {len(note)}")
    entry = int.from_bytes(note, "little")
    pieces = placement.by_segments(executable)
    kernel = placement.check_place(pieces, ram_size)
    placement.check_entry(pieces, entry)
    modules, end = _at_the_top(request.modules, max(kernel.stop, HIGH_RAM), ram_end(ram_size))
    tables = _tables(request, modules, ram_size)
    span = range(START_AT, START_AT + len(tables))
    if span.stop > LOW_RAM_END:
        raise BadInput(
            f"the command line and the module list need memory up to {span.stop:#x}, "
            f"but low RAM ends at {LOW_RAM_END:#x}"
        )
    placement.check_free(pieces, span)
    state = BootState(eip=entry, ebx=START_AT, kernel=kernel, end=end, task_limit=_TASK_LIMIT)
    return Plan(state, (*placement.writes(request.image, pieces), Write(START_AT, tables), *modules))


def _at_the_top(modules: tuple[Module, ...], floor: int, top: int) -> tuple[list[Write], int]:
    """The modules on pages downwards from the top of RAM, and the first address after all of them."""
    found: list[Write] = []
    limit = top
    for module in reversed(modules):
        start = placement.below(limit, len(module.data))
        if start < floor:
            raise BadInput(
                f"the module {module.string!r} of {len(module.data)} bytes does not fit "
                f"between the kernel's end {floor:#x} and {limit:#x}"
            )
        found.insert(0, Write(start, module.data))
        limit = start
    last = found[-1] if found else Write(floor, b"")
    return found, last.address + len(last.data)


def _tables(request: Request, modules: list[Write], ram_size: int) -> bytes:
    """Start information, memory map, module list and strings, one after the other."""
    areas = memory_map(ram_size)
    map_at = START_AT + _START.size
    list_at = map_at + _MAP_ENTRY.size * len(areas)
    strings = placement.Strings(list_at + _MODULE.size * len(modules))
    command_line_at = strings.add(request.append, "the command line")
    rows = b"".join(
        _MODULE.pack(write.address, len(write.data), strings.add(module.string, "a module's string"), 0)
        for module, write in zip(request.modules, modules, strict=True)
    )
    start = _START.pack(
        START_MAGIC, _VERSION, 0, len(modules), list_at if modules else 0, command_line_at,
        0, map_at, len(areas), 0,  # no ACPI tables
    )  # fmt: skip
    entries = b"".join(_MAP_ENTRY.pack(a.start, a.stop - a.start, a.kind, 0) for a in areas)
    return start + entries + rows + bytes(strings.data)
