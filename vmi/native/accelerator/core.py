# SPDX-License-Identifier: GPL-2.0-only
"""What C and Python share: a structure per CPU, and the tables of functions of the C library.

The C library knows where things are in one build of the emulator library, and takes the place of that one's
functions. So before any pointer is exchanged the build is compared, and all functions are looked up.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vmi.errors import EngineError
from vmi.native import pointers, translator
from vmi.native.straight import Straight

PAGE_HOLDS_CODE, PAGE_IS_WATCHED = 1, 2

_POINTER, _U64, _U32 = ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint32
_HELPERS = (
    "helper_debug_x86_64",
    "helper_cc_compute_all_x86_64",
    "helper_reset_rf_x86_64",
    "helper_iret_protected_x86_64",
)

#: Python functions that C calls: all that a CPU is asked while it runs.
ASKED = (
    "port_read", "port_write", "cpuid", "rdtsc", "interrupt", "invalid", "rom_write", "breakpoint",
    "memory_read", "memory_write", "read_msr", "write_msr", "fast_call", "long_call", "control_loaded",
    "cached", "paused", "storing", "block_appeared", "load_control",
)  # fmt: skip

#: The library's operations of which C makes code, as the library names them.
OPERATIONS = {
    "op_movi": "movi_i64", "op_ld": "ld_i64", "op_st": "st_i64", "op_add": "add_i64",
    "op_set_label": "set_label",
    "flag_movi_i32": "movi_i32", "flag_movi_i64": "movi_i64", "flag_call": "call",
    "flag_discard": "discard", "flag_insn_start": "insn_start",
}  # fmt: skip


class Core(ctypes.Structure):
    """``struct core`` of the C source, which says what the fields are."""

    _fields_ = (
        ("size", _U64),
        ("counter", _U64),
        ("budget", _U64),
        ("engine", _POINTER),
        ("cpu", _POINTER),
        ("env", _POINTER),
        ("pages", _POINTER),
        ("page_count", _U64),
        ("ram", _POINTER),
        ("hidden_from", _U64),
        ("nowhere", _U64),
        ("uncached", _U64),
        ("running", _U32),
        ("inside", _U32),
        ("window", _U32),
        ("tells_of_pauses", _U32),
        ("tells_of_blocks", _U32),
        ("tells_of_control", _U32),
        *((name, _U32) for name in OPERATIONS),
        ("tsc_steady", _U32),
        ("tsc_known", _U32),
        ("tsc_origin", _U64),
        ("walking", _U32),
        ("walk_back", _U64),
        ("last_back", _U64),
        ("store_back", _U64),
        ("charge", _POINTER),
        ("counts", _U32),
        ("breaks", _U32),
        ("cut", _U32),
        ("resumes", _U32),
        ("resumed", _U32),
        ("known_parts", _U64),
        ("making", _POINTER),
        ("made", _POINTER),
        ("left_early", _U32),
        ("haste", _U32),
        ("straight", _POINTER),
        *((name, _POINTER) for name in ASKED),
    )


class Region(ctypes.Structure):
    """``struct region``: device memory, by the CPU that it belongs to and its first address."""

    _fields_ = (("core", _POINTER), ("start", _U64))


class Library:
    """The C library, loaded.

    :raises OSError: it can't be, or was built from another version of its source.
    :raises AttributeError: it is another library.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._functions: Any = ctypes.CDLL(str(path))
        size = self._function("size", _U64)
        straight_size: Any = self._functions.vmi_straight_size
        straight_size.restype = _U64
        if size() != ctypes.sizeof(Core) or straight_size() != ctypes.sizeof(Straight):
            raise OSError(f"{path} was built from another version of its source")
        self.run = self._function("run", ctypes.c_int, _POINTER, _U64)
        self.enter: Any = self._functions.vmi_straight_enter
        self.enter.restype = ctypes.c_int
        self.enter.argtypes = (_POINTER, ctypes.c_uint32, ctypes.c_int, ctypes.c_int64, ctypes.c_int)
        self.adopt = self._function("adopt", None, _POINTER)
        self._put_behind = self._function("put_behind", ctypes.c_bool, ctypes.c_char_p, _POINTER)
        self._callback = self._function("callback", _POINTER, ctypes.c_char_p)
        self._imports = list(self._names("import"))
        self._replaced = list(self._names("replaced"))

    def __repr__(self) -> str:
        return f"<Library {self.path.name}>"

    def _function(self, name: str, result: Any, *arguments: Any) -> Any:
        function = self._functions[f"vmi_core_{name}"]
        function.restype, function.argtypes = result, arguments
        return function

    def _names(self, table: str) -> Iterator[str]:
        name_of = self._function(table, ctypes.c_char_p, ctypes.c_uint)
        number = 0
        while (name := name_of(number)) is not None:
            yield name.decode()
            number += 1

    def install(self, library: Any) -> None:
        """Take the place of the emulator library's functions; does nothing the second time.

        :raises EngineError: it is another build, or lacks one of them; nothing is changed then.
        """
        global _installed
        if _installed is self:
            return
        found = pointers.build_of(library)
        if found != pointers.BUILD:
            raise EngineError(f"the CPU emulator should be build {pointers.BUILD}, but it is {found}")
        imports = [pointers.original(library, name) for name in self._imports]
        originals = [pointers.current(library, name) for name in self._replaced]
        helpers = [pointers.original(library, name) for name in _HELPERS]
        replacement = self._function("replacement", _POINTER, ctypes.c_uint)
        install = self._function("install", _POINTER, *(_POINTER,) * (4 + len(_HELPERS)))
        tables = (_U64 * len(imports))(*imports), (_U64 * len(originals))(*originals)
        starts = translator.own(library), translator.current(library)
        translator.exchange(library, install(*tables, *starts, *helpers))
        targets = {name: replacement(number) for number, name in enumerate(self._replaced)}
        pointers.exchange(library, targets)
        _installed = self

    def put_behind(self, targets: Mapping[str, int]) -> dict[str, int]:
        """Have other functions called for the CPUs of others; gives those that C doesn't replace."""
        return {name: to for name, to in targets.items() if not self._put_behind(name.encode(), to)}

    def callback(self, name: str) -> Any:
        """The C function for one of the emulator library's callbacks."""
        return _POINTER(self._callback(name.encode()))


_installed: Library | None = None


def installed() -> Library | None:
    """The C library that has taken the place of the emulator library's functions, if one has."""
    return _installed
