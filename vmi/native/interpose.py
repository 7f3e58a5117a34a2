# SPDX-License-Identifier: GPL-2.0-only
"""Functions of the emulator library that are done here instead, for the CPUs of this toolkit.

The library has no hook for some things that a machine must decide: what a model-specific register
holds, what SYSENTER does, and which pages of memory hold translated code. It reaches its own functions
for them through pointers (see :mod:`vmi.native.pointers`), which are exchanged once per process; an engine
that is not ours still gets the library's own function. So does a CPU that the accelerator serves: its
functions (:mod:`vmi.native.accelerator`) come first then, and call these for all other CPUs.

The pages matter for speed: the library treats each page that a guest may execute, which without the NX
bit are all of them, as if it held code, and looks for translations to discard at every store into it.
Here only pages that do hold some are treated so, by all the addresses they are mapped at.

The library's one look at the host's clock is done here too: the cache of address translations shrinks when
little of it was used for 100 ms, and with it changes what a guest sees that doesn't tell the processor of
changed page tables. For the library no time passes, so that a run depends on its input alone.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Mapping, MutableSet
from struct import Struct
from typing import Any, Protocol
from weakref import ReferenceType, WeakValueDictionary, ref

from vmi.memory import PAGE_SIZE
from vmi.native import accelerator, pointers, translator
from vmi.x86 import U32

_POINTER, _U64, _U32, _INT = ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint32, ctypes.c_int
_PAGE_SHIFT = 12
_WRITABLE = 2  # the library's page protection bit

_SET_PAGE_TYPES = None, _POINTER, _U64, _U64, _U32, _INT, _INT, _U64
_SET_PAGE = ctypes.CFUNCTYPE(*_SET_PAGE_TYPES)
_PAGE_OF_CODE = ctypes.CFUNCTYPE(None, _POINTER, _U64)
# the library's own, which call nothing of ours: without letting other threads in between
_OWN_SET_PAGE, _OWN_SET_DIRTY = ctypes.PYFUNCTYPE(*_SET_PAGE_TYPES), ctypes.PYFUNCTYPE(None, _POINTER, _U64)
_WITH_STATE = ctypes.CFUNCTYPE(None, _POINTER)
_CALL = ctypes.CFUNCTYPE(None, _POINTER, _INT)
_RESET_DIRTY = ctypes.CFUNCTYPE(None, _POINTER, _U64, _U64)
_LOCK = ctypes.CFUNCTYPE(_U64, _POINTER, _U64, _U64)
_UNLOCK = ctypes.CFUNCTYPE(None, _U64)
_CONTROL = ctypes.CFUNCTYPE(None, _POINTER, _U32)
_TO_CONTROL = ctypes.CFUNCTYPE(None, _POINTER, _INT, _U64)
_TIME = ctypes.CFUNCTYPE(_INT, _POINTER, _POINTER)
_MOST_TIMES = 64
_WITH_BLOCK = ctypes.CFUNCTYPE(None, _POINTER, _POINTER)
_BLOCK = Struct("<Q12xH")  # how the library describes a block: linear address, and size in bytes
_INTERCEPT = ctypes.CFUNCTYPE(None, _POINTER, _U32, _U64, _POINTER)
_PAUSE = 0x77  # among what a hypervisor may want to know of


class Owner(Protocol):
    """What a CPU offers to the functions that replace the library's."""

    code_pages: MutableSet[int]
    watched_pages: set[int]  # stores into these are told too
    hidden_from: int  # linear addresses from here on show nothing
    nowhere: int  # guest-physical address of a page that nothing answers
    uncached_word: memoryview  # linear address of a page to be told of
    on_pause: Callable[[], None]  # PAUSE, after tell_of_pauses(); must not raise anything
    host_cpu: int  # address of the library's CPU structure

    def cached(self) -> None:
        """A translation is about to be cached that has part in the page of ``uncached_word``; no errors."""

    def block_appeared(self, linear: int, size: int) -> None:
        """After tell_of_blocks(): a block of code was translated, and none of it executed; must not raise."""

    def host_page(self, page: int) -> int | None:
        """Address in this process of a page of guest RAM, None if the number is none."""

    def read_msr(self) -> None:
        """RDMSR."""

    def write_msr(self) -> None:
        """WRMSR."""

    def fast_call(self) -> None:
        """SYSENTER."""

    def long_call(self) -> None:
        """SYSCALL."""

    def storing_into_code(self) -> None:
        """A store into a page of code has begun."""

    def stored_into_code(self) -> None:
        """It is about to be done; or the library will do the whole instruction again."""

    def storing_into_watched(self, address: int, size: int) -> None:
        """The current instruction is about to store into a watched page."""

    def takes_control(self, number: int, value: int) -> bool:
        """MOV to a control register loads it; else it is refused."""

    def refuse(self) -> None:
        """The instruction that executes has no effect but #GP."""

    def control_loaded(self) -> None:
        """CR0, CR3 or CR4 was loaded."""


#: Instructions that a CPU does itself: the library's function, its kind, and what is done instead.
_HELPERS: tuple[tuple[str, Any, Callable[[Owner], None]], ...] = (
    ("helper_sysenter", _CALL, lambda owner: owner.fast_call()),
    ("helper_syscall", _CALL, lambda owner: owner.long_call()),
    ("helper_rdmsr", _WITH_STATE, lambda owner: owner.read_msr()),
    ("helper_wrmsr", _WITH_STATE, lambda owner: owner.write_msr()),
)

# one more for what is asked most, since a WeakValueDictionary looks up in Python
_by_cpu: dict[int, ReferenceType[Any]] = {}
_by_state: WeakValueDictionary[int, Any] = WeakValueDictionary()
_by_engine: WeakValueDictionary[int, Any] = WeakValueDictionary()
_kept: list[Any] = []  # what C code points to must live as long as the process
_installed: list[Any] = []  # the library, once all pointers are exchanged
_times: dict[int, memoryview] = {}  # what gettimeofday() fills, by address: there are few, on the stack
_told_of_pauses: dict[int, ReferenceType[Any]] = {}
_tells_of_pauses: list[Any] = []
_tells_of_blocks: list[Any] = []


class _Running(threading.local):
    """The engine that runs in a thread."""

    engine = 0


_running = _Running()


def adopt(owner: Owner, *, engine: int, cpu: int, state: int) -> None:
    """Serve a CPU from now on.

    :param engine: host address of the library's engine structure, ``cpu`` and ``state`` likewise of its
        CPU and register state.
    """
    _by_engine[engine] = _by_state[state] = owner

    def gone(reference: ReferenceType[Any]) -> None:
        if _by_cpu.get(cpu) is reference:
            del _by_cpu[cpu]
            translator.release(cpu)

    _by_cpu[cpu] = ref(owner, gone)
    translator.adopt(cpu, engine)


def _put(library: Any, made: Mapping[str, Any]) -> None:
    """Have C functions of ours called from now on, by the names that they replace."""
    targets = {name: _target(function) for name, function in made.items()}
    first = accelerator.installed()
    if first is not None:
        targets = first.put_behind(targets)
    if targets:
        pointers.exchange(library, targets)
    _kept.extend(made.values())


def _own(library: Any, name: str, kind: Any) -> Any:
    """The function that replaces nobody."""
    return kind(pointers.original(library, f"{name}_x86_64"))


def install(library: Any) -> None:
    """Exchange the pointers; does nothing the second time. :raises EngineError: one isn't found."""
    if _installed:
        return

    def own(name: str, kind: Any) -> Any:
        return _own(library, name, kind)

    set_page = own("tlb_set_page_with_attrs", _OWN_SET_PAGE)
    set_dirty = own("tlb_set_dirty", _OWN_SET_DIRTY)
    reset_dirty = own("tlb_reset_dirty", _RESET_DIRTY)
    protect = own("tlb_protect_code", _PAGE_OF_CODE)
    unprotect = own("tlb_unprotect_code", _PAGE_OF_CODE)

    def on_set_page(
        cpu: int, linear: int, physical: int, attributes: int, access: int, mode: int, size: int
    ) -> None:
        reference = _by_cpu.get(cpu)
        owner = None if reference is None else reference()
        if owner is None:
            set_page(cpu, linear, physical, attributes, access, mode, size)
            return
        at = linear & U32  # what a segment's base and an offset add up to may pass 4 GiB here
        if at >= owner.hidden_from:
            physical = owner.nowhere
        if not (at ^ owner.uncached_word[0]) & -size:
            owner.cached()
        set_page(cpu, linear, physical, attributes, access, mode, size)
        if access & _WRITABLE:
            page = physical >> _PAGE_SHIFT
            if page not in owner.code_pages and page not in owner.watched_pages:
                set_dirty(cpu, linear)  # has no effect on ROM and devices

    def on_set_dirty(cpu: int, linear: int) -> None:
        # The library asks for this behind the first store through a mapping that can't be executed, and
        # would miss the next one into code there. Pages without code have had it above.
        if cpu not in _by_cpu:
            set_dirty(cpu, linear)

    def on_protect(engine: int, ram: int) -> None:
        owner = _by_engine.get(engine)
        if owner is None:
            protect(engine, ram)
            return
        page = ram // PAGE_SIZE
        host = owner.host_page(page)
        if host is not None:
            owner.code_pages.add(page)
            reset_dirty(owner.host_cpu, host, PAGE_SIZE)

    def on_unprotect(engine: int, ram: int) -> None:
        owner = _by_engine.get(engine)
        if owner is None:
            unprotect(engine, ram)
        else:
            owner.code_pages.discard(ram // PAGE_SIZE)

    lock = own("page_collection_lock", _LOCK)
    unlock = own("page_collection_unlock", _UNLOCK)
    storing: list[Any] = [None]

    def on_lock(engine: int, start: int, end: int) -> int:
        owner = storing[0] = _by_engine.get(engine)
        if owner is not None:
            if start // PAGE_SIZE in owner.watched_pages:
                owner.storing_into_watched(start, end - start)
            owner.storing_into_code()
        locked: int = lock(engine, start, end)
        return locked

    def on_unlock(pages: int) -> None:
        unlock(pages)
        owner, storing[0] = storing[0], None
        if owner is not None:
            owner.stored_into_code()

    def control(name: str) -> Any:
        original = own(name, _CONTROL)

        def function(state: int, value: int) -> None:
            original(state, value)
            owner = _by_state.get(state)
            if owner is not None:
                owner.control_loaded()

        return _CONTROL(function)

    load_control = own("helper_write_crN", _TO_CONTROL)

    def on_load_control(state: int, number: int, value: int) -> None:
        owner = _by_state.get(state)
        if owner is None or owner.takes_control(number, value & U32):
            load_control(state, number, value)
        else:
            owner.refuse()

    replaced = {
        "helper_write_crN": _TO_CONTROL(on_load_control),
        "tlb_set_page_with_attrs": _SET_PAGE(on_set_page),
        "tlb_set_dirty": _PAGE_OF_CODE(on_set_dirty),
        "tlb_protect_code": _PAGE_OF_CODE(on_protect),
        "tlb_unprotect_code": _PAGE_OF_CODE(on_unprotect),
        "page_collection_lock": _LOCK(on_lock),
        "page_collection_unlock": _UNLOCK(on_unlock),
        "cpu_x86_update_cr0": control("cpu_x86_update_cr0"),
        "cpu_x86_update_cr3": control("cpu_x86_update_cr3"),
        "cpu_x86_update_cr4": control("cpu_x86_update_cr4"),
    }
    for name, kind, act in _HELPERS:
        replaced[name] = _for_owner(kind, own(name, kind), act)
    made = {f"{name}_x86_64": function for name, function in replaced.items()}
    _put(library, {**made, "gettimeofday": _TIME(_no_time)})
    _installed.append(library)
    translator.install(library)


def begin_run(engine: int) -> None:
    """An engine runs in this thread from now on, by the host address of its structure."""
    _running.engine = engine


def tell_of_blocks(library: Any) -> None:
    """Have :meth:`Owner.block_appeared` called from now on."""
    if _tells_of_blocks:
        return
    insert = _own(library, "tcg_tb_insert", _WITH_BLOCK)

    def on_insert(context: int, block: int) -> None:
        insert(context, block)
        owner = _by_engine.get(_running.engine)
        if owner is not None:
            owner.block_appeared(*_BLOCK.unpack(ctypes.string_at(block, _BLOCK.size)))

    _put(library, {"tcg_tb_insert_x86_64": _WITH_BLOCK(on_insert)})
    _tells_of_blocks.append(library)


def tell_of_pauses(library: Any, owner: Owner, state: int) -> None:
    """Tell an owner of each PAUSE from now on. Costs a little for that and some other instructions.

    The library's own PAUSE leaves its main loop in a way that can't be done here; before that it asks
    whether a hypervisor of the guest's own wants to know, as for those other instructions.

    :param state: host address of the library's register state.
    """
    _told_of_pauses[state] = ref(owner, lambda _: _told_of_pauses.pop(state, None))
    if _tells_of_pauses:
        return
    original = _own(library, "cpu_svm_check_intercept_param", _INTERCEPT)

    def on_intercept(state: int, kind: int, parameter: int, back: int) -> None:
        listener = _told_of_pauses.get(state)
        if listener is not None:
            owner = listener()
            if kind == _PAUSE and owner is not None:
                owner.on_pause()
        elif _by_state.get(state) is None:
            original(state, kind, parameter, back)

    _put(library, {"cpu_svm_check_intercept_param_x86_64": _INTERCEPT(on_intercept)})
    _tells_of_pauses.append(library)


def _no_time(result: int, _zone: int) -> int:
    time = _times.get(result)
    if time is None:
        if len(_times) >= _MOST_TIMES:
            _times.clear()
        time = _times[result] = memoryview((_U64 * 2).from_address(result)).cast("B").cast("Q")
    time[0] = time[1] = 0
    return 0


def _for_owner(kind: Any, original: Any, act: Callable[[Any], None]) -> Any:
    """A helper of ``kind`` that ``act`` does for our CPUs, and ``original`` for all others."""

    def function(state: int, *rest: int) -> None:
        owner = _by_state.get(state)
        if owner is None:
            original(state, *rest)
        else:
            act(owner)

    return kind(function)


def _target(made: Any) -> int:
    return ctypes.cast(made, _POINTER).value or 0
