# SPDX-License-Identifier: GPL-2.0-only
"""Where everything of the suite's guest lies, and its tables: segments, gates, task, page tables.

Linear and physical addresses are the same. Only guest memory is described here: the same bytes go into any
subject, whatever runs them.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum

from vmi.memory import PAGE_SIZE
from vmi.x86 import Cr0, Cr4

RAM = 4 << 20  # bytes of RAM that the guest needs

GDT, IDT, TSS = 0x1000, 0x2000, 0x3000  # the TSS has room for the I/O bitmap: up to 6000h
PARAMETERS = 0x6000
LOG, LOG_ENTRY = 0x7000, 64  # bytes
STACK, KERNEL_STACK, USER_STACK = 0xA000, 0xB000, 0xD000  # each grows down
AGENT = 0x10000
USER = 0x20000  # user code
SCRATCH = 0x21000  # a page that cases may use, and the next ones
RECORDS, RECORD = 0x30000, 96  # calls to be made in one run, and bytes of each; the last one has no site
RETURNED, RETURN = 0x31000, 40  # what those calls left, downwards from there, and bytes of each
SITES = 0x31000  # the sites of such calls, a page
NEEDS = 0x32000  # what they need in memory, a page to copy from
PAGE_TABLES = 0x40000  # root first; 16 pages
FREE_PAGES = 0x60000  # 32 pages that nothing uses

#: Words of the agent, by name: it finds them at these addresses.
WORDS = {
    name: PARAMETERS + 4 * n
    for n, name in enumerate((
        "CR0", "CR3", "CR4", "LOG_COUNT", "RESUME", "USER_FLAGS",
        "ONCE", "WALK_RECORD", "WALK_LOG", "WALK_SITE", "WALK_ESP",
    ))
}  # fmt: skip
SYMBOLS = {
    **WORDS,
    "RECORD": RECORD,
    "GDT": GDT, "IDT": IDT, "LOG": LOG, "USER": USER, "USER_STACK": USER_STACK, "SCRATCH": SCRATCH,
}  # fmt: skip

CODE0, DATA0, CODE3, DATA3, TASK, LDT = 0x08, 0x10, 0x1B, 0x23, 0x28, 0x30
FREE_SELECTOR = 0x60  # the first descriptor that cases may use
USER_END = 0x31  # the vector that ends user code; 30h is for cases, both from level 3
VECTORS = 49  # handlers that the agent has, from 0

_TASK_LIMIT = 0x2067  # with a bitmap for all ports
_DATA, _USER_DATA = 0x92, 0xF2


class Paging(StrEnum):
    """How the guest's addresses are translated."""

    OFF = "off"
    TWO_LEVEL = "2-level"
    PSE = "pse"  # 4 MiB pages where nothing needs smaller ones
    PAE = "pae"


def descriptor(base: int, limit: int, access: int, flags: int = 0xC) -> bytes:
    """A segment descriptor; ``flags`` are G, D, L and AVL, ``limit`` counts as G says."""
    low = base << 16 & 0xFFFF0000 | limit & 0xFFFF
    high = base & 0xFF000000 | flags << 20 | limit & 0xF0000 | access << 8 | base >> 16 & 0xFF
    return (high << 32 | low).to_bytes(8, "little")


def gate(offset: int, access: int = 0x8E, selector: int = CODE0) -> bytes:
    """An IDT gate; by default a 32-bit interrupt gate that level 0 alone may use."""
    low, high = selector << 16 | offset & 0xFFFF, offset & 0xFFFF0000 | access << 8
    return (high << 32 | low).to_bytes(8, "little")


def tables(labels: dict[str, int]) -> Iterator[tuple[int, bytes]]:
    """GDT, IDT and TSS as (address, bytes)."""
    for selector, data in (
        (CODE0, descriptor(0, 0xFFFFF, 0x9A)),
        (DATA0, descriptor(0, 0xFFFFF, _DATA)),
        (CODE3, descriptor(0, 0xFFFFF, 0xFA)),
        (DATA3, descriptor(0, 0xFFFFF, _USER_DATA)),
        (TASK, descriptor(TSS, _TASK_LIMIT, 0x89, 0)),
        (LDT, descriptor(SCRATCH + 0x800, 0xFF, 0x82, 0)),
    ):
        yield GDT + (selector & ~7), data
    for vector in range(VECTORS):
        yield IDT + 8 * vector, gate(labels[f"v{vector}"], 0xEE if vector in (3, 4, 0x30) else 0x8E)
    yield IDT + 8 * USER_END, gate(labels["done"], 0xEE)
    yield TSS + 4, KERNEL_STACK.to_bytes(4, "little") + DATA0.to_bytes(4, "little")
    yield TSS + 100, (104 << 16).to_bytes(4, "little")
    yield TSS + 104, bytes(0x2000) + b"\xff"


def control(paging: Paging) -> dict[str, int]:
    """CR0, CR3 and CR4 of a kind of paging, by name."""
    cr4 = {Paging.PSE: Cr4.PSE | Cr4.PGE, Paging.PAE: Cr4.PAE | Cr4.PGE}.get(paging, 0)
    cr0 = Cr0.PE | Cr0.ET | (0 if paging is Paging.OFF else Cr0.PG | Cr0.WP)
    return {"CR0": int(cr0), "CR3": 0 if paging is Paging.OFF else PAGE_TABLES, "CR4": int(cr4)}


_RIGHTS = 7  # present, writable, user
_LARGE = 0x80


def page_tables(paging: Paging) -> Iterator[tuple[int, bytes]]:
    """Tables that map RAM one to one, and nothing else, as (address, bytes)."""
    if paging is Paging.OFF:
        return
    size = 8 if paging is Paging.PAE else 4
    if paging is Paging.PAE:
        yield PAGE_TABLES, _entries(size, [PAGE_TABLES + PAGE_SIZE | 1])
        directory, count = PAGE_TABLES + PAGE_SIZE, RAM >> 21
    else:
        directory, count = PAGE_TABLES, RAM >> 22
    first = directory + PAGE_SIZE
    entries = [first + PAGE_SIZE * n | _RIGHTS for n in range(count)]
    if paging is Paging.PSE:  # large pages elsewhere: RAM again at 1 GiB
        entries += [0] * (256 - count) + [_RIGHTS | _LARGE]
    yield directory, _entries(size, entries)
    for n in range(count):
        span = PAGE_SIZE // size
        yield first + PAGE_SIZE * n, _entries(size, [(n * span + i) << 12 | _RIGHTS for i in range(span)])


def entry_address(paging: Paging, linear: int) -> int:
    """Where the page-table entry of a linear address in RAM lies; paging must be on."""
    if paging is Paging.PAE:
        return PAGE_TABLES + 2 * PAGE_SIZE + 8 * (linear >> 12)
    return PAGE_TABLES + PAGE_SIZE + 4 * (linear >> 12)


def _entries(size: int, values: list[int]) -> bytes:
    return b"".join(value.to_bytes(size, "little") for value in values)
