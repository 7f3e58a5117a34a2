# SPDX-License-Identifier: GPL-2.0-only
"""Kernels without a boot protocol: an ELF file as it is, or bytes for an address.

They get a stack and 32-bit flat segments and nothing else: no command line, no module, no memory map.
This is what bare test programs want. A Linux ``vmlinux`` without a PVH note is loaded like any other
ELF file, but expects boot parameters that only its bzImage gets.
"""

from __future__ import annotations

from vmi.errors import BadInput, UsageError
from vmi.native.boot import elf, placement
from vmi.native.boot.memory_map import HIGH_RAM
from vmi.native.boot.placement import Piece
from vmi.native.boot.state import BootState, Plan, Request


def recognise(image: bytes) -> bool:
    """Whether this is an ELF file of any kind."""
    return image.startswith(elf.MAGIC)


def never(_image: bytes) -> bool:
    """Flat images can't be told from anything else, so they must be asked for."""
    return False


def plan_elf(request: Request, ram_size: int) -> Plan:
    """What to load for an ELF kernel: its segments; it starts at its entry point."""
    executable = elf.parse(request.image)
    return _plan(request, placement.by_segments(executable), executable.physical_entry(), ram_size, "an ELF")


def plan_flat(request: Request, ram_size: int) -> Plan:
    """What to load for a flat kernel: its bytes at the address; it starts with the first of them."""
    address = HIGH_RAM if request.address is None else request.address
    if address < 0:
        raise UsageError(f"the load address must not be negative, but it is {address}")
    size = len(request.image)
    if not size:
        raise BadInput("the kernel is empty")
    return _plan(request, [Piece(address, 0, size, size)], address, ram_size, "a flat")


def _plan(request: Request, pieces: list[Piece], entry: int, ram_size: int, kind: str) -> Plan:
    if request.append:
        raise UsageError(f"{kind} kernel without a boot protocol can't be given a command line")
    if request.modules:
        raise UsageError(f"{kind} kernel without a boot protocol can't be given a module")
    kernel = placement.check_place(pieces, ram_size)
    placement.check_entry(pieces, entry)
    stack = placement.stack_beside(pieces)
    state = BootState(eip=entry, esp=stack, kernel=kernel, end=max(kernel.stop, HIGH_RAM))
    return Plan(state, placement.writes(request.image, pieces))
