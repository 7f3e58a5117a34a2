# SPDX-License-Identifier: GPL-2.0-only
"""The emulator library (Unicorn): the one module that imports it.

What is here is plumbing: an engine is opened, memory and devices are mapped, callbacks are registered
through the library's C interface (the binding's own wrappers cost several times as much per event), and
functions are called by name. What the events mean is :mod:`vmi.native.cpu`'s business.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable
from enum import IntEnum
from typing import Any

import unicorn
from unicorn import unicorn_const as const
from unicorn import x86_const
from unicorn.unicorn_py3 import unicorn as binding

from vmi.errors import EngineError
from vmi.memory import PhysicalMemory
from vmi.native import accelerator, interpose
from vmi.native.accelerator.served import Served

VERSION = "2.1.4"

#: The area of ROMs below 1 MiB, and the pieces that a chipset can protect each on its own.
ROM_START, ROM_END = 0xC0000, 0x100000
ROM_PIECE = 0x4000

_TOP = 1 << 32  # where firmware ends
_PHYSICAL_END = 1 << 52  # with PAE or 4 MiB pages a guest can ask for addresses above 4 GiB
#: Guest-physical addresses that a hypervisor can put memory of its own at, see :meth:`Engine.map_hidden`.
HIDDEN_START, HIDDEN_SIZE = 1 << 39, 64 << 20
_HIDDEN_END = HIDDEN_START + HIDDEN_SIZE
#: A page of guest-physical addresses that nothing ever answers.
NOWHERE = HIDDEN_START >> 1
_RWX, _RX = const.UC_PROT_ALL, const.UC_PROT_READ | const.UC_PROT_EXEC
# Bytes for translated code, which is emptied when full: a guest that changes its code fills any amount.
_TRANSLATIONS = 64 << 20

PTR, U32, I32, U64 = ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint64


class Hook(IntEnum):
    """Events that the library calls back for, by its own numbers."""

    INTERRUPT = const.UC_HOOK_INTR
    INVALID = const.UC_HOOK_INSN_INVALID
    INSTRUCTION = const.UC_HOOK_INSN
    PROTECTED_WRITE = const.UC_HOOK_MEM_WRITE_PROT


class Instruction(IntEnum):
    """Instructions that have a hook of their own."""

    IN = x86_const.UC_X86_INS_IN
    OUT = x86_const.UC_X86_INS_OUT
    CPUID = x86_const.UC_X86_INS_CPUID
    RDTSC = x86_const.UC_X86_INS_RDTSC


class Register(IntEnum):
    """Registers that are better reached through the library than in its structures."""

    EFLAGS = x86_const.UC_X86_REG_EFLAGS
    CR0 = x86_const.UC_X86_REG_CR0
    CR3 = x86_const.UC_X86_REG_CR3
    CR4 = x86_const.UC_X86_REG_CR4
    FPU_CONTROL = x86_const.UC_X86_REG_FPCW
    FPU_STATUS = x86_const.UC_X86_REG_FPSW
    FPU_TAGS = x86_const.UC_X86_REG_FPTAG
    FPU_OPCODE = x86_const.UC_X86_REG_FOP
    FPU_CODE = x86_const.UC_X86_REG_FCS
    FPU_EIP = x86_const.UC_X86_REG_FIP
    FPU_DATA = x86_const.UC_X86_REG_FDS
    FPU_OPERAND = x86_const.UC_X86_REG_FDP
    FPU_0 = x86_const.UC_X86_REG_FP0  # the first of 8 in a row, by number, not by place on the stack
    MXCSR = x86_const.UC_X86_REG_MXCSR
    XMM_0 = x86_const.UC_X86_REG_XMM0  # the first of 8 in a row


OK = const.UC_ERR_OK
NO_CODE = (const.UC_ERR_FETCH_UNMAPPED, const.UC_ERR_FETCH_PROT)


class Engine:
    """One engine with RAM, firmware and a space for devices.

    :param rom: firmware that ends at 4 GiB, whole pages.
    :param on_error: told each exception that a callback raised; the library can't carry it.
    :raises EngineError: the library is not the version this was made for, or refuses something.
    """

    def __init__(self, memory: PhysicalMemory, rom: bytes, on_error: Callable[[BaseException], None]) -> None:
        if unicorn.__version__ != VERSION:
            raise EngineError(f"the CPU emulator must be unicorn {VERSION}, but it is {unicorn.__version__}")
        self.lib: Any = binding.uclib
        library = accelerator.load()
        if library is not None:
            try:
                library.install(self.lib)
            except EngineError as error:
                accelerator.give_up(str(error))
                library = None
        if library is None:
            interpose.install(self.lib)
        self._uc = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_32)
        self._uc.ctl_set_cpu_model(x86_const.UC_CPU_X86_QEMU32)
        # the type checker reads the binding's variant for Python 2
        self._uc.ctl_set_tcg_buffer_size(_TRANSLATIONS)  # type: ignore[attr-defined]
        self.handle: Any = self._uc._uch
        self.structure: int = (self.handle.value if self.handle is not None else 0) or 0
        if not self.structure:
            raise EngineError("the CPU emulator gave no engine")
        self.served = None if library is None else Served(library, self.structure, memory)
        # Other threads get in between during callbacks only: to let them in for all else takes a fifth of a
        # microsecond at each callback, and a run is short.
        start = ctypes.PYFUNCTYPE(I32, PTR, U64, U64, U64, ctypes.c_size_t)
        self._start: Any = start(self.function("uc_emu_start"))
        self._on_error = on_error
        self._callbacks: list[object] = []
        self._uc.ctl_exits_enabled(True)
        self._memory = memory
        self._rom = rom
        self._rom_buffer = mmap.mmap(-1, len(rom) or mmap.PAGESIZE)
        self._rom_buffer[: len(rom)] = rom

    def map(self, read: Callable[[int, int], int], write: Callable[[int, int, int], None]) -> None:
        """Map RAM, the ROM area and firmware; everything else is ``read`` and ``write`` (address, bytes)."""
        self._read, self._write = read, write
        size, host = self._memory.size, self._memory.host_address
        # The library numbers its pages of RAM in the order of mapping, and goes wrong when a block that
        # isn't the smallest so far is followed by another. In this order they have their guest addresses.
        self._uc.mem_map_ptr(0, ROM_START, _RWX, host)
        for start in range(ROM_START, ROM_END, mmap.PAGESIZE):
            self._map_rom(start, mmap.PAGESIZE, host + start)
        if size > ROM_END:
            self._uc.mem_map_ptr(ROM_END, size - ROM_END, _RWX, host + ROM_END)
        begin = _TOP - len(self._rom)
        if self._rom:
            self._uc.mem_map(begin, mmap.PAGESIZE)
            self._uc.mem_unmap(begin, mmap.PAGESIZE)  # from now on it looks where numbers are free
            at = ctypes.addressof(ctypes.c_char.from_buffer(self._rom_buffer))
            self._map_rom(begin, len(self._rom), at)
        self._map_devices(size, begin)
        for start, end in ((_TOP, HIDDEN_START), (HIDDEN_START, _HIDDEN_END), (_HIDDEN_END, _PHYSICAL_END)):
            self._map_devices(start, end)

    def map_hidden(self, host: int, size: int) -> None:
        """Put ``size`` bytes of this process's memory at HIDDEN_START, where nothing answered until now."""
        self._uc.mem_unmap(HIDDEN_START, HIDDEN_SIZE)
        self._uc.mem_map(HIDDEN_START, mmap.PAGESIZE)
        self._uc.mem_unmap(HIDDEN_START, mmap.PAGESIZE)  # as for firmware
        self._uc.mem_map_ptr(HIDDEN_START, size, const.UC_PROT_READ | const.UC_PROT_WRITE, host)
        if size < HIDDEN_SIZE:
            self._map_devices(HIDDEN_START + size, _HIDDEN_END)

    def _map_rom(self, start: int, size: int, host: int) -> None:
        # only a change of protection makes the library discard writes that its hook has accepted
        self._uc.mem_map_ptr(start, size, _RWX, host)
        self._uc.mem_protect(start, size, _RX)

    def _map_devices(self, start: int, end: int) -> None:
        read, write = self._read, self._write
        user = None
        if self.served is not None:
            reader, writer = self.served.callback("memory_read"), self.served.callback("memory_write")
            user = self.served.region(start)
        else:
            reader = self.callback(
                (U64, PTR, U64, ctypes.c_uint, PTR),
                lambda _uc, offset, width, _user: read(start + offset, width),
                0,
            )
            writer = self.callback(
                (None, PTR, U64, ctypes.c_uint, U64, PTR),
                lambda _uc, offset, width, value, _user: write(start + offset, width, value),
                None,
            )
        status = self.lib.uc_mmio_map(
            self.handle, U64(start), ctypes.c_size_t(end - start), reader, user, writer, user
        )
        self.check(status, "map the space above RAM")

    def set_writable(self, start: int, writable: bool, size: int) -> None:
        """Let the guest write to pages of the ROM area, or not; only between runs."""
        self._uc.mem_protect(start, size, _RWX if writable else _RX)

    def callback(self, signature: tuple[Any, ...], function: Callable[..., Any], otherwise: Any) -> Any:
        """A C function that calls ``function`` and gives ``otherwise`` where that raises.

        :param signature: C types of the result and of the arguments.
        """

        def guarded(*args: Any) -> Any:
            try:
                return function(*args)
            except BaseException as error:
                self._on_error(error)
                return otherwise

        return self.raw_callback(signature, guarded)

    def raw_callback(self, signature: tuple[Any, ...], function: Callable[..., Any]) -> Any:
        """A C function that calls ``function``, which must not raise anything.

        :param signature: as for :meth:`callback`; the last arguments may be left out.
        """
        made = ctypes.CFUNCTYPE(*signature)(function)
        self._callbacks.append(made)
        return made

    def hook(self, kind: Hook, callback: Any, begin: int = 1, end: int = 0, *extra: Any) -> None:
        """Have an event called back, for a range of addresses or for all."""
        hook = ctypes.c_size_t()
        status = self.lib.uc_hook_add(
            self.handle,
            ctypes.byref(hook),
            I32(kind),
            ctypes.cast(callback, PTR),
            None if self.served is None else self.served.user,
            U64(begin),
            U64(end),
            *extra,
        )
        self.check(status, "add a hook")

    def hook_instruction(self, which: Instruction, callback: Any) -> None:
        """Have one instruction called back."""
        self.hook(Hook.INSTRUCTION, callback, 1, 0, I32(which))

    def hook_rom_writes(self, callback: Any) -> None:
        """Have stores into the ROM area and into firmware called back."""
        # bounded: an unbounded protection hook would send all memory traffic down the slow path
        self.hook(Hook.PROTECTED_WRITE, callback, ROM_START, ROM_END - 1)
        if self._rom:
            self.hook(Hook.PROTECTED_WRITE, callback, _TOP - len(self._rom), _TOP - 1)

    def check(self, status: int, what: str) -> None:
        """Raise EngineError unless a function of the library answered that all is well."""
        if status != const.UC_ERR_OK:
            raise EngineError(f"the CPU emulator refused to {what}: error {status}")

    def function(self, name: str) -> int:
        """Address of one of the library's functions, 0 if it has none of that name."""
        function: Any = getattr(self.lib, name, None)
        return ctypes.cast(function, PTR).value or 0

    def start(self, eip: int, budget: int) -> int:
        """Execute up to ``budget`` instructions from EIP; gives the library's error number."""
        if self.served is not None:
            return self.served.run(eip, budget)
        interpose.begin_run(self.structure)
        status: int = self._start(self.handle, eip, 0, 0, budget)
        return status

    def leave(self) -> None:
        """End the run when the library next looks."""
        self.lib.uc_emu_stop(self.handle)

    def read_register(self, register: int, buffer: Any) -> None:
        """Read a register into a C buffer; also right in the middle of a run."""
        self.lib.uc_reg_read(self.handle, I32(register), ctypes.byref(buffer))

    def write_register(self, register: Register, value: int) -> None:
        """Write a register with all that follows from it."""
        buffer = U64(value)
        status = self.lib.uc_reg_write(self.handle, I32(register), ctypes.byref(buffer))
        self.check(status, f"set {register.name}")

    def write_bytes(self, register: int, data: bytes) -> None:
        """Write a register of any width, little endian, with all that follows from it."""
        status = self.lib.uc_reg_write(self.handle, I32(register), data)
        self.check(status, f"set register {register}")

    def drop_translations(self, address: int, size: int) -> None:
        """Forget code translated from a range of guest-physical addresses."""
        self.lib.tb_invalidate_phys_range_x86_64(self.handle, U64(address), U64(address + size))
