# SPDX-License-Identifier: GPL-2.0-only
"""Control and debug registers: what a call sets, the guest sees, and the processor obeys."""

from __future__ import annotations

from vmi.conformance.case import PAGED, Findings, case
from vmi.conformance.layout import (
    FREE_PAGES,
    PAGE_TABLES,
    SCRATCH,
    Paging,
    control,
    entry_address,
    page_tables,
)
from vmi.conformance.rig import Rig, Unfit
from vmi.memory import PAGE_SIZE
from vmi.x86 import Cr0, Cr4

_NM, _PF, _DB, _GP = 7, 14, 1, 13
_PGE_TSD = Cr4.PGE | Cr4.TSD
_LARGE = 0x80
_PAE = 6  # CPUID
_TABLES = 16 * PAGE_SIZE  # a second set of page tables lies so far behind the first


@case("SetCR0", "read back", 1, 4, more=("VMI-GetCR0-01", "VMI-GetCR0-02"))
def cr0_read_back(rig: Rig, found: Findings) -> None:
    """Each way of setting TS, MP, EM and NE is read back, with ET."""
    base = control(rig.environment.paging)["CR0"]
    for value in (base | Cr0.TS, base, base | Cr0.TS | Cr0.MP | Cr0.NE, base | Cr0.NE):
        rig.value("SetCR0", eax=value & ~Cr0.ET)
        found.equal("CR0", rig.value("GetCR0"), value | Cr0.ET)


@case("SetCR0", "TS", 2, more=("VMI-CLTS-01", "VMI-CLTS-02"))
def task_switched(rig: Rig, found: Findings) -> None:
    """With TS set an FPU instruction raises #NM; after CLTS it does not."""
    base = control(rig.environment.paging)["CR0"]
    rig.value("SetCR0", eax=base | Cr0.TS)
    rig.resume_at("done")
    found.equal("events of an FPU instruction with TS", rig.go("fpu").vectors, [_NM])
    rig.value("CLTS")
    found.equal("CR0 after CLTS", rig.value("GetCR0"), base)
    found.equal("events of an FPU instruction after CLTS", rig.go("fpu").vectors, [])


@case("SetCR0", "WP", 3, paging=PAGED)
def write_protection(rig: Rig, found: Findings) -> None:
    """A store of the kernel to a read-only user page faults with WP, and does not without."""
    entry = entry_address(rig.environment.paging, FREE_PAGES)
    rig.put(entry, FREE_PAGES | 5)
    rig.value("InvalPage", eax=FREE_PAGES)
    base = control(rig.environment.paging)["CR0"]
    for value, wanted in ((base, [_PF]), (base & ~Cr0.WP, []), (base, [_PF])):
        rig.value("SetCR0", eax=value)
        if wanted:
            rig.resume_at("done")
        done = rig.go("store", ebx=FREE_PAGES, eax=value)
        found.equal(f"events of a store with CR0 {value:#x}", done.vectors, wanted)
        if wanted:
            found.equal("its error code", done.first.error, 3)


@case("SetCR2", "read back", 1, 2, more=("VMI-GetCR2-01",))
def cr2_read_back(rig: Rig, found: Findings) -> None:
    """Any value is kept."""
    for value in (0, 1, 0xFFFFFFFF, 0x80000000, 0x12345678):
        rig.value("SetCR2", eax=value)
        found.equal("CR2", rig.value("GetCR2"), value)


@case("GetCR2", "page fault", 1, paging=PAGED)
def cr2_of_a_fault(rig: Rig, found: Findings) -> None:
    """After a page fault it is the address of the access, on loads and stores, at either end of a page."""
    for address in (0x70000000, 0x70000FFF, 0x3FFFFFFC):
        for routine, error in (("load", 0), ("store", 2)):
            rig.resume_at("done")
            done = rig.go(routine, ebx=address)
            found.equal(f"events of a {routine}", done.vectors, [_PF])
            found.equal("the error code", done.first.error if done.frames else None, error)
            found.equal("CR2", rig.value("GetCR2"), address)


@case("GetCR2", "hidden fault", 2, paging=PAGED)
def cr2_of_a_hidden_fault(rig: Rig, found: Findings) -> None:
    """Accesses that the page tables allow do not change it, whatever the hypervisor has to do for them."""
    rig.value("SetCR2", eax=0x1234)
    for page in range(8):
        rig.go("store", ebx=FREE_PAGES + PAGE_SIZE * page, eax=page)
    found.equal("CR2", rig.value("GetCR2"), 0x1234)


def second_tables(rig: Rig, paging: Paging) -> int:
    """Another set of page tables that maps one page elsewhere; gives its root."""
    size = 8 if paging is Paging.PAE else 4
    for address, data in page_tables(paging):
        words = [int.from_bytes(data[i : i + size], "little") for i in range(0, len(data), size)]
        if address < entry_address(paging, 0):  # root or directory: it points to tables
            words = [word + _TABLES if word and not word & _LARGE else word for word in words]
        rig.write(address + _TABLES, b"".join(word.to_bytes(size, "little") for word in words))
    rig.put(entry_address(paging, FREE_PAGES) + _TABLES, FREE_PAGES + PAGE_SIZE | 7)
    return PAGE_TABLES + _TABLES


def _two_pages(rig: Rig) -> None:
    """1 in the page that a case maps, 2 in the page that it may map there instead."""
    rig.put(FREE_PAGES, 1)
    rig.put(FREE_PAGES + PAGE_SIZE, 2)


@case("SetCR3", "queued updates", 4, paging=PAGED)
def queued_updates(rig: Rig, found: Findings) -> None:
    """Updates of lazy MMU mode to the tables that are switched to are in force behind the switch."""
    rig.need("SetLazyMode")
    _two_pages(rig)
    paging = rig.environment.paging
    second = second_tables(rig, paging)
    entry = entry_address(paging, FREE_PAGES) + _TABLES
    rig.value("SetCR3", eax=second)
    found.equal("a load", rig.go("load", ebx=FREE_PAGES).registers["eax"], 2)
    rig.value("SetLazyMode", eax=1)
    if paging is Paging.PAE:
        rig.call("SetPxELong", 1, eax=FREE_PAGES | 7, edx=0, ecx=entry)
    else:
        rig.call("SetPxE", eax=FREE_PAGES | 7, edx=entry, ecx=1)
    rig.value("SetCR3", eax=second)
    found.equal("a load behind the switch", rig.go("load", ebx=FREE_PAGES).registers["eax"], 1)
    rig.value("SetLazyMode", eax=0)


@case("SetCR3", "root filled in", 6, paging=frozenset({Paging.PAE}))
def root_filled_in(rig: Rig, found: Findings) -> None:
    """An entry of the root in use that was not present is in force behind a load of the same root."""
    rig.put(FREE_PAGES, 0xC0FFEE)
    rig.put(PAGE_TABLES + 8, PAGE_TABLES + PAGE_SIZE | 1)
    rig.value("SetCR3", eax=PAGE_TABLES)
    found.equal("a load", rig.go("load", ebx=0x40000000 + FREE_PAGES).registers["eax"], 0xC0FFEE)


@case("SetCR4", "PAE with paging on", 5, paging=frozenset({Paging.TWO_LEVEL, Paging.PSE}))
def pae_switched_on(rig: Rig, found: Findings) -> None:
    """CR3, whose low bits meant nothing, is read as a PAE root from then on."""
    if not rig.has(_PAE):
        raise Unfit("the processor has no PAE")
    _two_pages(rig)
    second_tables(rig, Paging.PAE)
    root = PAGE_TABLES + PAGE_SIZE - 32
    rig.put(root, PAGE_TABLES + _TABLES + PAGE_SIZE | 1, 0)
    rig.value("SetCR3", eax=root)
    found.equal("a load before", rig.go("load", ebx=FREE_PAGES).registers["eax"], 1)
    value = rig.value("GetCR4") | Cr4.PAE
    rig.value("SetCR4", eax=value)
    found.equal("CR4", rig.value("GetCR4"), value)
    found.equal("a load behind the call", rig.go("load", ebx=FREE_PAGES).registers["eax"], 2)


@case("SetCR3", "new tables", 1, 2, 3, 5, more=("VMI-GetCR3-01", "VMI-GetCR3-02"), paging=PAGED)
def new_tables(rig: Rig, found: Findings) -> None:
    """Loads go through the tables at the new root, which nobody announced; and back."""
    _two_pages(rig)
    second = second_tables(rig, rig.environment.paging)
    found.equal("a load before", rig.go("load", ebx=FREE_PAGES).registers["eax"], 1)
    for root, wanted in ((second, 2), (PAGE_TABLES, 1), (second | 0x18, 2)):
        rig.value("SetCR3", eax=root)
        found.equal("CR3", rig.value("GetCR3"), root)
        found.equal("a load", rig.go("load", ebx=FREE_PAGES).registers["eax"], wanted)


@case("SetCR3", "before paging is on", 1, 3, more=("VMI-GetCR3-01",), paging=frozenset({Paging.OFF}))
def before_paging(rig: Rig, found: Findings) -> None:
    """What is given without paging is read back, and is what counts once SetCR0 switches it on."""
    _two_pages(rig)
    for address, data in page_tables(Paging.TWO_LEVEL):
        rig.write(address, data)
    for root, wanted in ((PAGE_TABLES, 1), (second_tables(rig, Paging.TWO_LEVEL), 2)):
        rig.value("SetCR3", eax=root)
        found.equal("CR3", rig.value("GetCR3"), root)
        off = rig.value("GetCR0")
        rig.value("SetCR0", eax=off | Cr0.PG)
        found.equal("a load", rig.go("load", ebx=FREE_PAGES).registers["eax"], wanted)
        rig.value("SetCR0", eax=off)


@case("SetCR3", "same root", 2, paging=PAGED)
def same_root(rig: Rig, found: Findings) -> None:
    """Loading the root in use drops translations."""
    _two_pages(rig)
    rig.go("load", ebx=FREE_PAGES)
    rig.put(entry_address(rig.environment.paging, FREE_PAGES), FREE_PAGES + PAGE_SIZE | 7)
    rig.value("SetCR3", eax=PAGE_TABLES)
    found.equal("a load", rig.go("load", ebx=FREE_PAGES).registers["eax"], 2)


@case("SetCR4", "read back", 1, 4, more=("VMI-GetCR4-01", "VMI-GetCR4-02"))
def cr4_read_back(rig: Rig, found: Findings) -> None:
    """Each bit that CPUID offers is kept, PGE and TSD again and again."""
    base = control(rig.environment.paging)["CR4"]
    found.equal("CR4 at first", rig.value("GetCR4"), base)
    for value in (base | _PGE_TSD, base & ~Cr4.PGE, base | Cr4.TSD, base):
        done = rig.call("SetCR4", eax=value)
        found.equal("events", done.vectors, [])
        found.equal("CR4", rig.value("GetCR4"), value)


@case("SetCR4", "reserved bit", more=("VMI-SetCR4-01",))
def cr4_reserved(rig: Rig, found: Findings) -> None:
    """A bit that no processor has raises #GP with error code 0, and nothing changes."""
    before = rig.value("GetCR4")
    rig.resume_at("done")
    done = rig.call("SetCR4", eax=before | 1 << 31)
    found.equal("events", done.faults, [(_GP, 0)])
    found.equal("CR4", rig.value("GetCR4"), before)


@case("SetCR4", "large pages", 2, paging=frozenset({Paging.PSE}))
def large_pages(rig: Rig, found: Findings) -> None:
    """An entry with bit 7 maps 4 MiB."""
    rig.put(FREE_PAGES, 0xC0FFEE)
    found.equal("a load", rig.go("load", ebx=0x40000000 + FREE_PAGES).registers["eax"], 0xC0FFEE)


@case("SetCR4", "no stale global translation", 3, paging=frozenset({Paging.PSE, Paging.PAE}))
def global_translations(rig: Rig, found: Findings) -> None:
    """Clearing PGE drops global translations too."""
    entry = entry_address(rig.environment.paging, FREE_PAGES)
    _two_pages(rig)
    rig.put(entry, FREE_PAGES | 0x107)
    rig.value("InvalPage", eax=FREE_PAGES)
    found.equal("a load", rig.go("load", ebx=FREE_PAGES).registers["eax"], 1)
    rig.put(entry, FREE_PAGES + PAGE_SIZE | 0x107)
    base = control(rig.environment.paging)["CR4"]
    rig.value("SetCR4", eax=base & ~Cr4.PGE)
    found.equal("a load after PGE was cleared", rig.go("load", ebx=FREE_PAGES).registers["eax"], 2)
    rig.value("SetCR4", eax=base)


@case("WBINVD", "memory", 1, 2)
def write_back(rig: Rig, found: Findings) -> None:
    """Memory holds what it held."""
    before = rig.read(SCRATCH, PAGE_SIZE)
    rig.value("WBINVD")
    found.true(rig.read(SCRATCH, PAGE_SIZE) == before, "the call must not change memory")


@case("SetDR", "read back", 1, more=("VMI-GetDR-01",))
def debug_registers(rig: Rig, found: Findings) -> None:
    """Addresses are kept as they are; DR6 and DR7 with their fixed bits."""
    for number in range(4):
        rig.value("SetDR", eax=number, edx=0x1000 * number + 0xABC)
    for number in range(4):
        found.equal(f"DR{number}", rig.value("GetDR", eax=number), 0x1000 * number + 0xABC)
    rig.value("SetDR", eax=6, edx=0)
    found.equal("DR6", rig.value("GetDR", eax=6) & 0xE00F, 0)
    rig.value("SetDR", eax=7, edx=0x10000)
    found.equal("DR7", rig.value("GetDR", eax=7), 0x10400)


@case("SetDR", "breakpoint", 2, more=("VMI-GetDR-02",))
def breakpoint_hit(rig: Rig, found: Findings) -> None:
    """A breakpoint on an instruction raises #DB in front of it, and DR6 names it."""
    rig.value("SetDR", eax=1, edx=rig.labels["fpu"])
    rig.value("SetDR", eax=7, edx=0x404)
    rig.resume_at("done")
    done = rig.go("fpu")
    found.equal("events", [(frame.vector, frame.eip) for frame in done.frames], [(_DB, rig.labels["fpu"])])
    found.equal("DR6", rig.value("GetDR", eax=6) & 0xF, 2)


@case("SetDR", "user code", 3)
def debug_registers_in_user_code(rig: Rig, found: Findings) -> None:
    """Addresses are kept while user code runs."""
    rig.value("SetDR", eax=2, edx=0x4321)
    rig.user(b"\x90" * 8)
    found.equal("DR2", rig.value("GetDR", eax=2), 0x4321)
