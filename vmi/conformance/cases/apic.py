# SPDX-License-Identifier: GPL-2.0-only
"""The local APIC by calls and by memory."""

from __future__ import annotations

from vmi.conformance.case import Findings, case
from vmi.conformance.layout import PAGE_TABLES, Paging
from vmi.conformance.rig import Rig, Unfit
from vmi.memory import PAGE_SIZE

_APIC = 0xFEE00000
_APIC_BIT = 9
_TPR, _EOI, _SPURIOUS, _LVT_TIMER, _ICR, _ICR_HIGH, _IN_SERVICE = 0x80, 0xB0, 0xF0, 0x320, 0x300, 0x310, 0x100
_VECTOR = 0x30
_RW_UNCACHED = 0x13


def _map(rig: Rig) -> None:
    """Map the APIC's page where it is."""
    paging = rig.environment.paging
    if paging is Paging.OFF:
        return
    table = PAGE_TABLES + 14 * PAGE_SIZE
    if paging is Paging.PAE:
        directory = PAGE_TABLES + 13 * PAGE_SIZE
        rig.put(PAGE_TABLES + 8 * 3, directory | 1)
        rig.put(directory + 8 * (_APIC >> 21 & 511), table | 7)
        rig.put(table + 8 * (_APIC >> 12 & 511), _APIC | _RW_UNCACHED)
        rig.value("SetCR3", eax=PAGE_TABLES)
    else:
        rig.put(PAGE_TABLES + 4 * (_APIC >> 22), table | 7)
        rig.put(table + 4 * (_APIC >> 12 & 1023), _APIC | _RW_UNCACHED)
        rig.value("FlushTLB", eax=1)


def _begin(rig: Rig) -> None:
    if not rig.has(_APIC_BIT):
        raise Unfit("the processor has no local APIC")
    rig.need("APICRead", "APICWrite")
    _map(rig)


def _read(rig: Rig, register: int) -> int:
    return rig.value("APICRead", eax=register)


@case("APICWrite", "memory agrees", 1, 2, more=("VMI-APICRead-01", "VMI-APICRead-02", "VMI-CPUID-04"))
def agrees(rig: Rig, found: Findings) -> None:
    """What is written one way is read the other; only bits 11 to 0 of the register count."""
    _begin(rig)
    rig.call("APICWrite", eax=_SPURIOUS, edx=0x1FF)  # or each timer entry is masked
    for register, value in ((_TPR, 0x50), (_LVT_TIMER, 0x10000 | _VECTOR), (_LVT_TIMER, _VECTOR), (_TPR, 0)):
        rig.call("APICWrite", eax=register, edx=value)
        found.equal("by memory", rig.go("load", ebx=_APIC + register).registers["eax"], value)
        rig.go("store", ebx=_APIC + register, eax=value ^ 0x20)
        found.equal("by the call", _read(rig, register), value ^ 0x20)
        found.equal("by its address", _read(rig, _APIC + register), value ^ 0x20)


@case("APICWrite", "end of interrupt", 3)
def end_of_interrupt(rig: Rig, found: Findings) -> None:
    """Any value to 0B0h ends what is in service."""
    _begin(rig)
    rig.call("APICWrite", eax=_SPURIOUS, edx=0x1FF)
    for value in (0, 0xFFFFFFFF, 0x1234):
        rig.call("APICWrite", eax=_ICR_HIGH, edx=0)
        rig.call("APICWrite", eax=_ICR, edx=0x40000 | _VECTOR)
        rig.value("EnableInterrupts")
        vectors = [frame.vector for frame in rig.go("spin", ecx=100).frames]
        rig.value("DisableInterrupts")
        in_service = _read(rig, _IN_SERVICE + 0x10)
        found.equal("in service", in_service >> (_VECTOR & 31) & 1, 1)
        rig.call("APICWrite", eax=_EOI, edx=value)
        found.equal("in service after its end", _read(rig, _IN_SERVICE + 0x10), 0)
        found.true(len(vectors) <= 1, "it must come once")


@case("APICRead", "no APIC", 3)
def no_apic(rig: Rig, found: Findings) -> None:
    """Without a local APIC the call gives what a load there gives."""
    if rig.has(_APIC_BIT):
        raise Unfit("the processor has a local APIC")
    rig.need("APICRead")
    _map(rig)
    found.equal("the result", _read(rig, 0x30), rig.go("load", ebx=_APIC + 0x30).registers["eax"])
