# SPDX-License-Identifier: GPL-2.0-only
"""The hypervisor's own page tables are used, made from the guest's at page faults.

The processor's CR3 points to memory that no address of the guest's reaches. A page fault that the guest's
tables do not explain is the shadow's own: an entry is made, and the guest never learns of it, neither by
CR2 nor by its clock. Any other is the guest's, with the error code that its own tables give.

What the shadow holds is kept from one address space to the next and compared with the guest's tables at
each point where a processor forgets what it has cached: a load of CR3, a flush, INVLPG. That the guest
tells of its updates (SetPxE) makes them count sooner, but nothing depends on it: kernels change entries
by plain stores too, and tear down whole address spaces without a word.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from struct import Struct

from vmi.hypervisor.mmu.guest import GuestTables
from vmi.hypervisor.mmu.notices import Notices
from vmi.hypervisor.mmu.pool import Full, Pool
from vmi.hypervisor.mmu.spaces import Root, Spaces
from vmi.hypervisor.mmu.tables import ENTRIES, Directory, Mode, Source, Table, leaf
from vmi.memory import PAGE_SIZE
from vmi.native.machine import Machine, Outcome
from vmi.x86 import (
    EFER_NXE,
    PTE_D,
    PTE_FRAME,
    PTE_NX,
    PTE_P,
    PTE_RW,
    PTE_US,
    U32,
    Cr0,
    Cr4,
    GuestFault,
    Paging,
    PfError,
    Translation,
)

#: Pages of shadow tables for one guest, 8 MiB; when they are used up, all are made anew as needed.
PAGES = 2048
# Page faults of one instruction that the guest never sees; each makes an entry that stays.
_MOST_FAULTS = 256
_POINTERS = Struct("<4Q")  # the top level of PAE
_FLUSHING = Cr4.PGE | Cr4.PSE | Cr4.PAE
_ABOVE = PTE_RW | PTE_US | PTE_NX


@dataclass(slots=True)
class PagingState:
    """What belongs to one virtual CPU.

    :ivar cr3: as the guest loaded it; ``protects`` is CR0.WP and ``wide`` CR4.PAE, which are other for real.
    :ivar pointers: the top level of PAE as it was when CR3 was loaded.
    """

    cr3: int = 0
    protects: bool = False
    wide: bool = False
    efer: int = 0
    pointers: list[int] = field(default_factory=lambda: [0, 0, 0, 0])


class ShadowMmu(GuestTables):
    """See :class:`vmi.hypervisor.mmu.Mmu`.

    :param pages: limit of the shadow tables' size.
    """

    name = "shadow"
    by_registers = False

    def __init__(self, machine: Machine, notices: Notices, virtual_top: int, pages: int = PAGES) -> None:
        super().__init__(machine, notices, virtual_top)
        self.state = PagingState()
        self.spaces = Spaces(machine.memory, Pool(machine.cpu, pages))
        self._root: Root | None = None
        self._mode, self._a20 = self._mode_now(), -1
        self._expected: dict[int, int] = {}
        self._loading = False
        self._streak = (0, 0)  # instructions executed, page faults hidden since

    def __repr__(self) -> str:
        return f"<ShadowMmu {self.spaces.pool!r}>"

    # -- the guest's registers --------------------------------------------------------------

    def start(self) -> None:
        """See :class:`vmi.hypervisor.mmu.Mmu`."""
        cpu = self._cpu
        self.state = PagingState(cpu.cr(3), bool(cpu.cr(0) & Cr0.WP), bool(cpu.cr(4) & Cr4.PAE), cpu.efer)
        cpu.cr2 = cpu.cr(2)
        cpu.pager = self
        self._notices.want(True)
        self._hide()
        self._load()

    def leave(self) -> PagingState | None:
        """See :class:`vmi.hypervisor.mmu.Mmu`."""
        if self._cpu.pager is None:
            return None
        self.catch_up()
        self._cpu.pager = None
        return self.state

    def enter(self, state: PagingState | None) -> None:
        """See :class:`vmi.hypervisor.mmu.Mmu`."""
        self._cpu.pager = None
        self.state = PagingState() if state is None else state
        if state is not None:
            self._cpu.pager = self
            self.use()

    def read(self, number: int) -> int:
        """See :class:`vmi.hypervisor.mmu.Mmu`."""
        shown = self._paging()
        return shown.cr3 if number == 3 else shown.cr4 if number else shown.cr0

    def _paging(self) -> Paging:
        cpu, state = self._cpu, self.state
        if cpu.pager is None:
            return super()._paging()
        cr0 = cpu.cr(0) & ~Cr0.WP | (Cr0.WP if state.protects else 0)
        cr4 = cpu.cr(4) & ~Cr4.PAE | (Cr4.PAE if state.wide else 0)
        return Paging(cr0, state.cr3, cr4, state.efer, cpu.a20_mask | ~U32)

    @property
    def efer(self) -> int:
        """See :class:`vmi.hypervisor.mmu.Mmu`."""
        return self._cpu.efer if self._cpu.pager is None else self.state.efer

    def write(self, number: int, value: int) -> None:
        """See :class:`vmi.hypervisor.mmu.Mmu`."""
        self.catch_up()
        cpu, state = self._cpu, self.state
        # a change of these drops all cached translations, global ones too: kernels flush that way
        flushes = number == 3 or (number == 4 and (self.read(4) ^ value) & _FLUSHING)
        self._loading = True
        if number == 0:
            state.protects = bool(value & Cr0.WP)
            cpu.set_cr(0, value | (Cr0.WP if value & Cr0.PG else 0))
        elif number == 3:
            state.cr3 = value & U32
        else:
            state.wide = bool(value & Cr4.PAE)
            cpu.set_cr(4, value | (Cr4.PAE if self._root is not None else 0))
        self._loading = False
        if flushes or self._mode != self._mode_now() or bool(cpu.cr(0) & Cr0.PG) != (self._root is not None):
            self._load()

    def write_efer(self, value: int) -> None:
        """See :class:`vmi.hypervisor.mmu.Mmu`."""
        self.state.efer = value
        self._load()

    def control_changed(self) -> None:
        """See :class:`vmi.native.wiring.Pager`.

        A guest can get the processor to load CR3 by itself, from a TSS that its user code may switch to;
        and for some instructions it may be on the real ring 0, see :mod:`vmi.hypervisor.domain`.
        """
        if self._loading:
            return
        cpu, root = self._cpu, self._root
        if root is not None and cpu.root != root.page.address:
            self.write(3, cpu.root & U32)
            self._show_descriptors()
        for number, bits in ((0, Cr0.PG | Cr0.WP), (4, Cr4.PAE | Cr4.PSE)):
            value = cpu.cr(number)
            if value & bits != self._expected[number] & bits:
                self.write(number, value)

    def _show_descriptors(self) -> None:
        """Map the GDT for a task switch in progress: the processor can't begin one again at a page fault."""
        table = self._cpu.gdt
        for linear in range(table.base & ~(PAGE_SIZE - 1), table.base + table.limit + 1, PAGE_SIZE):
            with contextlib.suppress(GuestFault):
                self._map(linear & U32, self._walk(linear & U32, write=False, user=False))

    def _mode_now(self) -> Mode:
        cpu, state = self._cpu, self.state
        large, a20 = bool(cpu.cr(4) & Cr4.PSE), bool(cpu.a20_mask >> 20 & 1)
        return Mode(state.wide, large, state.protects, bool(state.efer & EFER_NXE), a20)

    def _registers(self) -> tuple[object, ...]:
        real, state = super()._registers(), self.state
        if self._cpu.pager is None:
            return real
        # entries of the top level that are missing don't matter: no walk has gone through one
        return (*real, state.cr3, state.protects, state.wide, state.efer, *state.pointers)

    def _pointers(self) -> Sequence[int] | None:
        """What was there when CR3 was loaded stays; an entry that was missing is looked for again."""
        state = self.state
        if not state.wide or self._cpu.pager is None:
            return None
        table = _POINTERS.unpack(self._memory.read(state.cr3 & ~31 & self._a20, _POINTERS.size))
        for number, value in enumerate(state.pointers):
            if not value & PTE_P:
                state.pointers[number] = table[number]
        return state.pointers

    # -- what the processor uses ------------------------------------------------------------

    def _load(self) -> None:
        """Give the processor the tables of the guest's address space, as they are in memory now."""
        self.state.pointers = [0, 0, 0, 0]
        self._pointers()
        self.use()

    def use(self) -> None:
        """Let the processor use the tables of :attr:`state`, all caught up; its cached translations go."""
        cpu, state = self._cpu, self.state
        self._loading = True
        self._mode = self._mode_now()
        self._a20 = cpu.a20_mask | ~U32
        if cpu.cr(0) & Cr0.PG:
            try:
                root = self.spaces.root(self._mode, state.cr3)
            except Full:
                self._forget()
                root = self.spaces.root(self._mode, state.cr3)
            self._root = root
            self._sync(root)
        else:
            self._root = None
        shadowed = self._root is not None
        for number, bit, wanted in (
            (0, Cr0.WP, shadowed or state.protects),
            (4, Cr4.PAE, shadowed or state.wide),
        ):
            value = cpu.cr(number)
            if bool(value & bit) != wanted:
                cpu.set_cr(number, value ^ bit)
        cpu.efer = state.efer | (EFER_NXE if shadowed else 0)
        cpu.load_root(state.cr3 if self._root is None else self._root.page.address)
        cpu.flush_tlb()
        self._expected = {0: cpu.cr(0), 4: cpu.cr(4)}
        self._loading = False

    def _sync(self, root: Root) -> None:
        """Drop what the guest's tables say no more."""
        for number, directory in enumerate(root.directories):
            if directory is not None and directory.source == self._directory_source(number):
                directory.sync(self._memory)
            else:
                root.point(number, None)

    def _directory_source(self, number: int) -> Source:
        """Where the guest's directory of an address space's quarter is; where none is, there is no page."""
        state = self.state
        if not state.wide:
            at = (state.cr3 & ~(PAGE_SIZE - 1)) + 1024 * number & self._a20
        else:
            pointer = state.pointers[number]
            at = pointer & PTE_FRAME & self._a20 if pointer & PTE_P else -PAGE_SIZE
        return Source(self._mode, at, directory=True)

    def _forget(self) -> None:
        """All pages are used up: start again with none."""
        self._machine.exits["shadow tables dropped"] += 1
        self.spaces.forget()
        self._root = None

    # -- page faults ------------------------------------------------------------------------

    def page_fault(self, linear: int, error: int) -> int | None:
        """See :class:`vmi.native.wiring.Pager`."""
        self.catch_up()
        write, user = bool(error & PfError.W), bool(error & PfError.U)
        try:
            found = self._walk(linear, write=write, user=user, fetch=bool(error & PfError.I))
        except GuestFault as fault:
            return fault.error
        self._machine.exits["shadow page fault"] += 1
        self._count_hidden()
        self._map(linear, found, write=write)
        return None

    def _count_hidden(self) -> None:
        """Nothing that is right here can go on for ever; what isn't must not hang."""
        now = self._cpu.now_instructions()
        last, count = self._streak
        self._streak = now, count + 1 if now == last else 1
        if self._streak[1] > _MOST_FAULTS:
            self._machine.finish(
                Outcome.CRASHED, f"the instruction at {self._cpu.eip:#x} needs more pages than can be mapped"
            )

    def _map(self, linear: int, found: Translation, *, write: bool = False) -> None:
        try:
            self._make(linear, found, write=write)
        except Full:
            self._forget()
            self.use()
            self._make(linear, found, write=write)

    def _make(self, linear: int, found: Translation, *, write: bool) -> None:
        """Make the shadow entry for an access that the guest's tables allow."""
        directory = self._directory(linear >> 30)
        index = linear >> 21 & ENTRIES - 1
        if directory.refresh(self._memory, index if directory.width == 8 else index // 2):
            self._cpu.flush_tlb()  # the guest's entry is another than that of what was here
        table = self._table(directory, index, linear, found)
        number = linear >> 12 & ENTRIES - 1
        frame = found.physical & ~(PAGE_SIZE - 1)
        if write and not found.rights & PTE_RW:
            # the kernel may write here since CR0.WP is clear, so for now the page is the kernel's alone
            value = leaf(frame, found.rights & PTE_NX | PTE_RW, dirty=True)
        else:
            value = leaf(frame, found.rights, dirty=bool(found.entry & PTE_D))
        if not found.large:
            table.note(number, found.entry)
        words = table.page.words
        if words[number]:
            self._cpu.flush_page(linear)
        words[number] = value

    def _directory(self, number: int) -> Directory:
        root = self._root
        assert root is not None
        source = self._directory_source(number)
        directory = root.directories[number]
        if directory is None or directory.source != source:
            directory = self.spaces.directory(source)
            if root.point(number, directory):
                self._cpu.flush_tlb()
        return directory

    def _table(self, directory: Directory, index: int, linear: int, found: Translation) -> Table:
        """The table behind a directory's entry; one that is there for another guest table goes."""
        source = self._table_source(directory.source.mode, linear, found)
        linked = directory.links.get(index)
        if linked is not None and linked.source == source:
            assert isinstance(linked, Table)
            return linked
        table, gone = self.spaces.table(source)
        if directory.unlink(index) or gone:
            self._cpu.flush_tlb()
        directory.link(index, table)
        return table

    def _table_source(self, mode: Mode, linear: int, found: Translation) -> Source:
        entry = found.directory
        if found.large:
            part = 0 if mode.wide else linear >> 21 & 1
            return Source(mode, entry, found.rights, part * ENTRIES)
        above = entry & (_ABOVE if mode.wide else PTE_RW | PTE_US)
        if mode.wide:
            return Source(mode, entry & PTE_FRAME & self._a20, above)
        half = 2048 * (linear >> 21 & 1)
        return Source(mode, (entry & U32 & ~(PAGE_SIZE - 1) & self._a20) + half, above)

    # -- flushes and updates ----------------------------------------------------------------

    def invalidate(self, linear: int) -> None:
        """See :class:`vmi.hypervisor.mmu.Mmu`."""
        self.catch_up()
        root = self._root
        if root is not None:
            directory = root.directories[linear >> 30]
            if directory is not None:
                index = linear >> 21 & ENTRIES - 1
                if directory.refresh(self._memory, index if directory.width == 8 else index // 2):
                    self._cpu.flush_tlb()  # all that the entry stood for
                table = directory.links.get(index)
                if table is not None:
                    table.refresh(self._memory, linear >> 12 & ENTRIES - 1)
        self._cpu.flush_page(linear)

    def flush(self, *, everything: bool) -> None:
        """See :class:`vmi.hypervisor.mmu.Mmu`. What is global is treated as everything else."""
        self.catch_up()
        self._load()

    def entry_changed(self, entry: int) -> None:
        """See :class:`vmi.hypervisor.mmu.Mmu`."""
        try:
            at = self._locate(entry & U32)
        except GuestFault:
            return  # nothing is there: whatever the guest has changed is somewhere else
        for shadow in self.spaces.made_from(at // PAGE_SIZE):
            offset = at - shadow.source.at
            if 0 <= offset < shadow.size and shadow.refresh(self._memory, offset // shadow.width):
                self._cpu.flush_tlb()

    def _locate(self, linear: int) -> int:
        """Guest-physical address of a page-table entry. :raises GuestFault: it is not mapped."""
        for first, pages, frame in self._notices.linear_maps():
            if 0 <= linear - first < pages * PAGE_SIZE:
                return linear - first + frame * PAGE_SIZE
        return self.translate(linear)

    def _is_paged(self) -> bool:
        return super()._is_paged() if self._cpu.pager is None else self._root is not None

    def catch_up(self) -> None:
        """See :class:`vmi.hypervisor.mmu.Mmu`."""
        for entry in self._notices.take():
            self.entry_changed(entry)

    def announce(self, frame: int) -> None:
        """See :class:`vmi.hypervisor.mmu.Mmu`: that it is a table shows when it is used as one."""
        self.catch_up()

    def release(self, frame: int) -> None:
        """See :class:`vmi.hypervisor.mmu.Mmu`: the shadow of its entries is given up."""
        self.catch_up()
        if self.spaces.release(frame, self._root):
            self._cpu.flush_tlb()
