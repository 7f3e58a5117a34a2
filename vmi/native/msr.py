# SPDX-License-Identifier: GPL-2.0-only
"""The model-specific registers of each processor model, for RDMSR and WRMSR.

A model has the registers of the features that it promises, and those that kernels touch without asking.
Anything else, and a value that a register can't take, is a #GP, as on silicon. QEMU 7.2, the judge of
values, is more lenient there: it reads an unknown register as 0 and drops what is written, so a kernel
that relies on this needs its register in the table: those of :data:`_UNASKED` are such. They hold what
QEMU shows and take what is written without keeping it.

Memory types (MTRR, PAT) and machine-check banks have nothing to act on: they are kept and shown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from vmi.native.bus import State
from vmi.native.cpuid import CpuModel
from vmi.native.stamped import Stamped

TSC = 0x10
APIC_BASE = 0x1B
SYSENTER_CS, SYSENTER_ESP, SYSENTER_EIP = 0x174, 0x175, 0x176
PAT = 0x277
EFER = 0xC0000080
EFER_NXE = 1 << 11

MTRR_COUNT = 8  # variable ranges
BANK_COUNT = 10  # machine-check banks

_ALL = (1 << 64) - 1
_PHYSICAL = (1 << 36) - 1
_MEMORY_TYPES = frozenset({0, 1, 4, 5, 6})  # UC, WC, WT, WP, WB
_PAT_TYPES = _MEMORY_TYPES | {7}  # and UC-, which MTRR can override


@dataclass(frozen=True)
class Live:
    """A register that is kept elsewhere: in the CPU, or in the local APIC."""

    read: Callable[[], int]
    write: Callable[[int], None]


@dataclass(frozen=True)
class Msr:
    """One register.

    :ivar index: its number, in ECX.
    :ivar reset: value after reset.
    :ivar keeps: bits that a write changes.
    :ivar accepts: False for a value that is a #GP.
    :ivar firmware: value that a PC's firmware leaves, None for the reset value.
    """

    index: int
    name: str
    reset: int = 0
    keeps: int = _ALL
    accepts: Callable[[int], bool] = lambda _value: True
    firmware: int | None = None

    def __repr__(self) -> str:
        return f"Msr({self.index:#x} {self.name})"


def _never(_value: int) -> bool:
    return False


def _zero(value: int) -> bool:
    return value == 0


def _within(mask: int) -> Callable[[int], bool]:
    return lambda value: not value & ~mask


def _types(allowed: frozenset[int]) -> Callable[[int], bool]:
    """Eight memory types, one a byte."""
    return lambda value: all(byte in allowed for byte in value.to_bytes(8, "little"))


def _range_base(value: int) -> bool:
    return value & 0xFF in _MEMORY_TYPES and not value & ~(_PHYSICAL & ~0xF00)


def _default_type(value: int) -> bool:
    return value & 0xFF in _MEMORY_TYPES and not value & ~0xCFF


def _mtrr() -> Iterable[Msr]:
    yield Msr(0xFE, "MTRRCAP", 0x508, accepts=_never)  # 8 ranges, fixed ones too, write combining
    for n in range(MTRR_COUNT):
        # The space above RAM is where devices are: not cached.
        base, mask = (0x80000000, 0xF80000800) if n == 0 else (0, 0)
        yield Msr(0x200 + 2 * n, f"MTRR_PHYSBASE{n}", accepts=_range_base, firmware=base)
        yield Msr(0x201 + 2 * n, f"MTRR_PHYSMASK{n}", accepts=_within(_PHYSICAL & ~0x7FF), firmware=mask)
    write_back, write_protected = 0x0606060606060606, 0x0505050505050505
    fixed = [(0x250, "64K_00000", write_back), (0x258, "16K_80000", write_back), (0x259, "16K_A0000", 0)]
    fixed += [(0x268 + n, f"4K_{0xC0000 + n * 0x8000:05X}", write_protected) for n in range(8)]
    for index, span, left in fixed:
        yield Msr(index, f"MTRR_FIX{span}", accepts=_types(_MEMORY_TYPES), firmware=left)
    yield Msr(0x2FF, "MTRR_DEF_TYPE", accepts=_default_type, firmware=0xC06)


def _machine_check() -> Iterable[Msr]:
    yield Msr(0x179, "MCG_CAP", 0x0100_0100 | BANK_COUNT, accepts=_never)
    yield Msr(0x17A, "MCG_STATUS", accepts=_within(7))
    yield Msr(0x17B, "MCG_CTL", _ALL)
    for n in range(BANK_COUNT):
        yield Msr(0x400 + 4 * n, f"MC{n}_CTL", _ALL)
        for at, part in enumerate(("STATUS", "ADDR", "MISC"), 1):
            yield Msr(0x400 + 4 * n + at, f"MC{n}_{part}", accepts=_zero)


_BY_FEATURE: dict[str, tuple[Msr, ...]] = {
    "tsc": (Msr(TSC, "TSC"),),
    "apic": (Msr(APIC_BASE, "APIC_BASE", 0xFEE00900, 0xFFFFFF800, _within(_PHYSICAL & ~0x6FF)),),
    "sep": (
        Msr(SYSENTER_CS, "SYSENTER_CS", keeps=0xFFFF),
        Msr(SYSENTER_ESP, "SYSENTER_ESP", keeps=0xFFFFFFFF),
        Msr(SYSENTER_EIP, "SYSENTER_EIP", keeps=0xFFFFFFFF),
    ),
    "pat": (Msr(PAT, "PAT", 0x0007040600070406, accepts=_types(_PAT_TYPES)),),
    "mtrr": tuple(_mtrr()),
    "mca": tuple(_machine_check()),
    "nx": (Msr(EFER, "EFER", keeps=EFER_NXE, accepts=_within(EFER_NXE)),),
}


def _dead(index: int, name: str, shows: int = 0) -> Msr:
    """A register that always shows the same."""
    return Msr(index, name, shows, keeps=0)


# What kernels touch without a look at CPUID, by vendor and lowest family.
_UNASKED: dict[tuple[str, int], tuple[Msr, ...]] = {
    # Linux, command line "mce": the Pentium's machine check
    ("GenuineIntel", 5): (_dead(0x0, "P5_MC_ADDR"), _dead(0x1, "P5_MC_TYPE")),
    ("GenuineIntel", 6): (
        # Linux and NetBSD: the microcode's revision and the platform it is for; loaders of microcode
        _dead(0x17, "PLATFORM_ID"),
        _dead(0x79, "BIOS_UPDT_TRIG"),
        _dead(0x8B, "BIOS_SIGN_ID", 1 << 32),
        _dead(0x2A, "EBL_CR_POWERON"),  # OpenBSD: the ratio of clocks
        # Linux, command line "nmi_watchdog=2": finds that they don't count, and says so
        _dead(0xC1, "PERFCTR0"),
        _dead(0xC2, "PERFCTR1"),
        _dead(0x186, "EVNTSEL0"),
        _dead(0x187, "EVNTSEL1"),
        Msr(0x1A0, "MISC_ENABLE", 1),
        _dead(0x1D9, "DEBUGCTL"),  # Linux: a debugger's step to the next branch
    ),
    ("AuthenticAMD", 6): (
        _dead(0x8B, "PATCH_LEVEL", 0x01000065),
        *(_dead(0xC0010000 + n, f"EVNTSEL{n}") for n in range(4)),  # the same
        *(_dead(0xC0010004 + n, f"PERFCTR{n}") for n in range(4)),
    ),
}


def registers(model: CpuModel) -> Mapping[int, Msr]:
    """The registers that a model has, by number; none if it has no RDMSR."""
    if not model.has("msr"):
        return {}
    rows = [msr for feature, found in _BY_FEATURE.items() if model.has(feature) for msr in found]
    for (vendor, family), found in _UNASKED.items():
        if model.vendor == vendor and model.family >= family:
            rows += found
    return MappingProxyType({msr.index: msr for msr in rows})


class MsrFile(Stamped):
    """The model-specific registers of one processor.

    :param counter: cycles since power-on; the time stamp counter is this plus what a guest has set.
    :param live: registers that are kept elsewhere, by number. They see only values that the register
        takes, and :meth:`save` leaves them to their keeper. Those not given are kept here.
    """

    def __init__(
        self, model: CpuModel, counter: Callable[[], int], live: Mapping[int, Live] | None = None
    ) -> None:
        self.registers = registers(model)
        self._counter = counter
        self._live = {index: found for index, found in (live or {}).items() if index in self.registers}
        self._offset = 0
        self._values = self._at_reset()

    def __repr__(self) -> str:
        return f"<MsrFile {len(self.registers)} registers>"

    def reset(self) -> None:
        """Return to the values after the RESET line; live registers are their keeper's."""
        self._offset = -self._counter()
        self._values = self._at_reset()

    def _at_reset(self) -> dict[int, int]:
        elsewhere = {TSC, *self._live}
        return {index: msr.reset for index, msr in self.registers.items() if index not in elsewhere}

    def settle(self) -> None:
        """Set what a PC's firmware sets before it starts a kernel: the types of memory."""
        for msr in self.registers.values():
            if msr.firmware is not None and msr.index in self._values:
                self._values[msr.index] = msr.firmware

    def tsc(self) -> int:
        """The time stamp counter, 64 bits."""
        return (self._counter() + self._offset) & _ALL

    def read(self, index: int) -> int | None:
        """A register's 64 bits, None where RDMSR is a #GP."""
        if index not in self.registers:
            return None
        if index == TSC:
            return self.tsc()
        live = self._live.get(index)
        return self._values[index] if live is None else live.read() & _ALL

    def write(self, index: int, value: int) -> bool:
        """Store 64 bits; False where WRMSR is a #GP, and nothing has changed then."""
        msr = self.registers.get(index)
        if msr is None or not msr.accepts(value):
            return False
        if index == TSC:
            self._offset = value - self._counter()
            return True
        live = self._live.get(index)
        old = self._values[index] if live is None else live.read()
        value = old & ~msr.keeps & _ALL | value & msr.keeps
        if live is not None:
            live.write(value)
        else:
            self._values[index] = value
        return True

    def save(self) -> State:
        """The whole state as JSON-able values, live registers left out."""
        return {"offset": self._offset, "values": {f"{index:x}": v for index, v in self._values.items()}}

    def load(self, state: State) -> None:
        """Take over a state that :meth:`save` gave on the same model."""
        self._offset = state["offset"]
        self._values = {int(index, 16): value for index, value in state["values"].items()}
