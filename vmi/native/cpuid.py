# SPDX-License-Identifier: GPL-2.0-only
"""What CPUID answers: processor models that promise only what works on this machine.

Each model is the one of the same name in QEMU 7.2, leaf by leaf, less the features of :data:`WITHHELD`,
each of which has its reason there: a kernel that believes a promise which nobody keeps goes wrong in
places where nobody looks. The words with which the emulator decides what it decodes come from the same
sets, so an instruction of a feature that a model lacks is an invalid opcode, where the emulator knows
the difference at all.

Bit 31 of leaf 1 ECX ("below this is a hypervisor", never set on silicon) and leaf 40000000h are as with
QEMU, signature included: the code is executed by its TCG, guests know what that means (no microcode to
load, no errata to look for, a slow clock is enough), and a guest that asks is told the truth.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto
from functools import cached_property
from types import MappingProxyType

Leaf = tuple[int, int, int, int]

_ZERO: Leaf = (0, 0, 0, 0)
HYPERVISOR_LEAF, EXTENDED_LEAF, _CENTAUR_LEAF = 0x40000000, 0x80000000, 0xC0000000
_SIGNATURE = "TCGTCGTCGTCG"
_INTEL, _AMD = "GenuineIntel", "AuthenticAMD"
_CACHE_LINE = 64  # bytes that CLFLUSH flushes
_PHYSICAL_BITS = 36


class Word(Enum):
    """A CPUID register that holds feature bits."""

    LEAF_1_EDX = auto()
    LEAF_1_ECX = auto()
    LEAF_7_EBX = auto()
    LEAF_7_ECX = auto()
    EXTENDED_EDX = auto()  # leaf 80000001h
    EXTENDED_ECX = auto()


# Names in the order of the bits, a dot for a bit that no model here has. The names are QEMU's.
_NAMES = {
    Word.LEAF_1_EDX: """
        fpu vme de pse tsc msr pae mce cx8 apic . sep mtrr pge mca cmov
        pat pse36 . clflush . . acpi mmx fxsr sse sse2 ss""",
    Word.LEAF_1_ECX: """
        sse3 pclmulqdq . monitor . . . . . ssse3 . . fma cx16 . .
        . . . sse4.1 sse4.2 . movbe popcnt . aes xsave . avx f16c rdrand hypervisor""",
    Word.LEAF_7_EBX: """
        fsgsbase . . bmi1 . avx2 . smep bmi2 erms . . . . mpx .
        . . . adx smap . pcommit clflushopt clwb""",
    Word.LEAF_7_ECX: """
        . . umip pku . . . . . vaes . . . . . .
        la57 . . . . . . . . . . . . . . pks""",
    Word.EXTENDED_EDX: """
        . . . . . . . . . . . . . . . .
        . . . . nx . mmxext . . . pdpe1gb rdtscp . . 3dnowext 3dnow""",
    Word.EXTENDED_ECX: "lahf_lm . svm . cr8legacy abm sse4a",
}

FEATURES: dict[str, tuple[Word, int]] = {
    name: (word, bit)
    for word, names in _NAMES.items()
    for bit, name in enumerate(names.split())
    if name != "."
}

# Leaf 1 bits that processors of AMD repeat in leaf 80000001h.
_AMD_REPEATS = 0x0183F3FF

_ONLY_64 = "it belongs to 64-bit mode, which this machine doesn't have"
_NO_AVX = "the emulator executes none of AVX, to which it belongs"
_OWN_WALK = "the machine's own walk of page tables, when it delivers events, doesn't know it"

# Features that a model of QEMU has and the one here has not, and why.
WITHHELD: dict[str, str] = {
    "acpi": "there are no registers for thermal monitoring and clock control",
    "ss": "it tells how caches behave, and there are none",
    "monitor": "nothing here can wait for a store to memory",
    "fma": _NO_AVX,
    "avx": _NO_AVX,
    "avx2": _NO_AVX,
    "f16c": _NO_AVX,
    "vaes": _NO_AVX,
    "xsave": "there is no state beyond what FXSAVE saves",
    "rdrand": "its numbers differ from run to run, and runs must not",
    "rdtscp": "the emulator answers it with the host's time",
    "smep": _OWN_WALK,
    "smap": _OWN_WALK,
    "umip": "the emulator doesn't have it: SGDT and the like execute on every ring",
    "pks": _ONLY_64,
    "mpx": "bounds checking was dropped by its maker and by every system",
    "erms": "string instructions go item by item here, so that bytes are the slowest way, not the fastest",
    "pcommit": "it was never built into any processor",
    "fsgsbase": _ONLY_64,
    "pku": _ONLY_64,
    "la57": _ONLY_64,
    "cx16": _ONLY_64,
    "pdpe1gb": _ONLY_64,
    "lahf_lm": _ONLY_64,
    "svm": "a guest can't run guests of its own here",
    "cr8legacy": "the priority register behind CR8 is reached through the local APIC only",
}


def _chars(text: str) -> tuple[int, int, int]:
    """Twelve characters as three registers."""
    data = text.encode("ascii").ljust(12, b"\0")
    first, second, third = (int.from_bytes(data[i : i + 4], "little") for i in (0, 4, 8))
    return first, second, third


@dataclass(frozen=True, repr=False)
class CpuModel:
    """One processor model.

    :ivar vendor: 12 characters.
    :ivar signature: leaf 1 EAX: stepping, model and family.
    :ivar judge: names of the features that QEMU's model of this name has.
    :ivar max_leaf: the highest basic leaf; one above the highest leaf answers as this one does.
    :ivar max_extended: the highest extended leaf, 0 if there are none.
    :ivar caches: leaf 2.
    :ivar cache_leaves: leaf 4, one after the other.
    :ivar brand: up to 47 characters, if there are extended leaves.
    :ivar amd_caches: leaves 80000005h and 80000006h.
    """

    name: str
    vendor: str
    signature: int
    judge: frozenset[str]
    max_leaf: int = 1
    max_extended: int = 0
    caches: Leaf = _ZERO
    cache_leaves: tuple[Leaf, ...] = ()
    brand: str = ""
    amd_caches: tuple[Leaf, Leaf] = (_ZERO, _ZERO)

    def __repr__(self) -> str:
        return f"CpuModel({self.name})"

    @property
    def family(self) -> int:
        """Family, 4 for a 486."""
        return self.signature >> 8 & 15

    @cached_property
    def features(self) -> frozenset[str]:
        """Names of the features that this model promises, keys of :data:`FEATURES`."""
        return frozenset(self.judge - WITHHELD.keys())

    @property
    def withheld(self) -> dict[str, str]:
        """What QEMU's model has and this one has not: the reason by the feature's name."""
        return {name: WITHHELD[name] for name in sorted(self.judge & WITHHELD.keys())}

    def has(self, feature: str) -> bool:
        """The model promises a feature, given by name."""
        return feature in self.features

    @cached_property
    def words(self) -> Mapping[Word, int]:
        """The promised bits by feature register. The emulator decodes by these."""
        words = dict.fromkeys(Word, 0)
        for name in self.features:
            word, bit = FEATURES[name]
            words[word] |= 1 << bit
        if self.vendor == _AMD:
            words[Word.EXTENDED_EDX] |= words[Word.LEAF_1_EDX] & _AMD_REPEATS
        return MappingProxyType(words)

    def cpuid(self, leaf: int, subleaf: int = 0, *, apic: bool = True, apic_id: int = 0) -> Leaf:
        """EAX, EBX, ECX, EDX of CPUID with ``leaf`` in EAX and ``subleaf`` in ECX.

        :param apic: the local APIC is enabled in its base register; its feature bit follows.
        :param apic_id: the local APIC's ID at reset.
        """
        if leaf > self._limit(leaf):
            leaf = self.max_leaf
        if HYPERVISOR_LEAF <= leaf < EXTENDED_LEAF:
            return self._hypervisor(leaf)
        if leaf >= EXTENDED_LEAF:
            return self._extended(leaf, apic)
        if leaf == 0:
            ebx, edx, ecx = _chars(self.vendor)
            return self.max_leaf, ebx, ecx, edx
        if leaf == 1:
            edx = self.words[Word.LEAF_1_EDX] & ~_apic_bit(apic)
            ebx = apic_id << 24 | _CACHE_LINE // 8 << 8
            return self.signature, ebx, self.words[Word.LEAF_1_ECX], edx
        if leaf == 2:
            return self.caches
        if leaf == 4 and subleaf < len(self.cache_leaves):
            return self.cache_leaves[subleaf]
        if leaf == 7 and subleaf == 0:
            return 0, self.words[Word.LEAF_7_EBX], self.words[Word.LEAF_7_ECX], 0
        return _ZERO

    def _limit(self, leaf: int) -> int:
        if leaf >= _CENTAUR_LEAF:
            return 0
        if leaf >= EXTENDED_LEAF:
            return self.max_extended
        if leaf >= HYPERVISOR_LEAF and self.has("hypervisor"):
            return HYPERVISOR_LEAF + 1
        return self.max_leaf

    @staticmethod
    def _hypervisor(leaf: int) -> Leaf:
        return (HYPERVISOR_LEAF + 1, *_chars(_SIGNATURE)) if leaf == HYPERVISOR_LEAF else _ZERO

    def _extended(self, leaf: int, apic: bool) -> Leaf:
        number = leaf - EXTENDED_LEAF
        if number == 0:
            ebx, edx, ecx = _chars(self.vendor)
            return self.max_extended, ebx, ecx, edx
        if number == 1:
            edx = self.words[Word.EXTENDED_EDX]
            if self.vendor == _AMD:
                edx &= ~_apic_bit(apic)
            return self.signature, 0, self.words[Word.EXTENDED_ECX], edx
        if number in (2, 3, 4):
            data = self.brand.encode("ascii").ljust(48, b"\0")[16 * (number - 2) :]
            eax, ebx, ecx, edx = (int.from_bytes(data[i : i + 4], "little") for i in (0, 4, 8, 12))
            return eax, ebx, ecx, edx
        if number in (5, 6):
            return self.amd_caches[number - 5]
        if number == 8:
            return _PHYSICAL_BITS, 0, 0, 0
        return _ZERO


def _apic_bit(enabled: bool) -> int:
    """The bit to take away from EDX."""
    return 0 if enabled else 1 << FEATURES["apic"][1]


def _set(names: str) -> frozenset[str]:
    found = frozenset(names.split())
    if not found <= FEATURES.keys():
        raise ValueError(f"no such features: {', '.join(sorted(found - FEATURES.keys()))}")
    return found


_PENTIUM = _set("fpu de pse tsc msr mce cx8 apic mmx hypervisor")
_PENTIUM3 = _PENTIUM | _set("pae sep mtrr pge mca cmov pat pse36 fxsr sse")
_QEMU32 = _PENTIUM | _set("pae sep pge cmov pat fxsr sse sse2 sse3")
_MAX = _PENTIUM3 | _set("""
    clflush acpi sse2 ss sse3 pclmulqdq monitor ssse3 fma cx16 sse4.1 sse4.2 movbe popcnt aes xsave avx f16c
    rdrand fsgsbase bmi1 avx2 smep bmi2 erms mpx adx smap pcommit clflushopt clwb umip pku vaes la57 pks
    nx mmxext pdpe1gb rdtscp 3dnowext 3dnow lahf_lm svm cr8legacy abm sse4a
""")
# 32 KiB of L1 for code and data each, 2 MiB of L2: descriptors 2Ch, 30h and 7Dh
_P6_CACHES: Leaf = (1, 0, 0x4D, 0x2C307D)

MODELS: dict[str, CpuModel] = {
    model.name: model
    for model in (
        CpuModel("486", _INTEL, 0x480, _set("fpu pse hypervisor")),
        CpuModel("pentium", _INTEL, 0x543, _PENTIUM),
        CpuModel("pentium3", _INTEL, 0x673, _PENTIUM3, max_leaf=3, caches=_P6_CACHES),
        CpuModel(
            "qemu32",
            _INTEL,
            0x663,
            _QEMU32,
            max_leaf=4,
            max_extended=0x80000004,
            caches=_P6_CACHES,
            cache_leaves=(
                (0x121, 0x1C0003F, 0x3F, 1),
                (0x122, 0x1C0003F, 0x3F, 1),
                (0x143, 0x3C0003F, 0xFFF, 1),
                (0x163, 0x3C0003F, 0x3FFF, 6),
            ),
            brand="QEMU Virtual CPU version 2.5+",
        ),
        # QEMU's goes on to leaf Dh and 8000000Ah: APIC IDs of 32 bits, XSAVE and SVM.
        CpuModel(
            "max",
            _AMD,
            0x663,
            _MAX,
            max_leaf=7,
            max_extended=0x80000008,
            brand="QEMU TCG CPU version 2.5+",
            amd_caches=(
                (0x01FF01FF, 0x01FF01FF, 0x40020140, 0x40020140),
                (0, 0x42004200, 0x02008140, 0x00808140),
            ),
        ),
    )
}

_I686 = _set("fpu pse tsc cx8 pge cmov mmx fxsr sse sse2")

#: What a de-privileged kernel finds if nothing else is asked for: no APIC, RDMSR or SYSENTER.
I686 = CpuModel("i686", _INTEL, 0x663, _I686, max_leaf=1)
#: The same with an APIC, and the registers that one is found by.
I686_APIC = CpuModel("i686-apic", _INTEL, 0x663, _I686 | _set("msr apic"), max_leaf=1)
#: The same with PAE, NX, and the register that NX is switched on by.
I686_PAE = CpuModel(
    "i686-pae", _INTEL, 0x663, _I686 | _set("msr pae nx"), max_leaf=1, max_extended=0x80000001
)
MODELS |= {model.name: model for model in (I686, I686_APIC, I686_PAE)}
