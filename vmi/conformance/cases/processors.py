# SPDX-License-Identifier: GPL-2.0-only
"""A second processor: the state it starts with, and what starts it."""

from __future__ import annotations

from vmi import abi
from vmi.abi import Reloc
from vmi.conformance.case import PAGED, Findings, case
from vmi.conformance.layout import CODE0, DATA0, FREE_PAGES, GDT, IDT, SCRATCH, control
from vmi.conformance.rig import Rig

_ICR, _ICR_HIGH, _SPURIOUS = 0x300, 0x310, 0xF0
_INIT, _STARTUP = 0x4500, 0x4600
_STATE = SCRATCH + 0x401  # at an odd address: any alignment will do
_SEEN = SCRATCH + 0x40  # what the second processor writes down: see the agent's label ``second``
_STACK = FREE_PAGES + 0x800
_VALUES = {"eax": 0xA1, "ebx": 0xB2, "ecx": 0xC3, "edx": 0xD4, "ebp": 0xE5, "esi": 0xF6, "edi": 0x17}


def _begin(rig: Rig) -> None:
    """Put the calls that the second processor makes in place, and switch the local APIC on."""
    rig.need("SetInitialAPState", "APICWrite")
    for label, name in (("second_mask", "GetInterruptMask"), ("second_tr", "GetTR")):
        kind, target = rig.entry(name)
        assert kind is Reloc.CALL_REL
        rig.jump_to(rig.labels[label], target, call=True)
    rig.call("APICWrite", eax=_SPURIOUS, edx=0x1FF)
    rig.put(_SEEN, *[0] * 16)


def _state(rig: Rig, **changes: int) -> bytes:
    registers = control(rig.environment.paging)
    values = {
        **{name.lower(): value for name, value in registers.items()},
        **_VALUES,
        "eip": rig.labels["second"],
        "esp": _STACK,
        "cs": CODE0,
        **dict.fromkeys(("ss", "ds", "es"), DATA0),
        "gdtr_base": GDT,
        "gdtr_limit": 0x7FF,
        "idtr_base": IDT,
        "idtr_limit": 0x7FF,
        **changes,
    }
    data = bytearray(abi.AP_STATE_SIZE)
    for field in abi.AP_STATE:
        value = values.get(field.name, 0)
        data[field.offset : field.offset + field.size] = value.to_bytes(field.size, "little")
    return bytes(data)


def _announce(rig: Rig) -> None:
    rig.write(_STATE, _state(rig))
    rig.call("SetInitialAPState", eax=_STATE, edx=1)
    rig.write(_STATE, bytes(abi.AP_STATE_SIZE))


def _message(rig: Rig, what: int) -> None:
    rig.call("APICWrite", eax=_ICR_HIGH, edx=1 << 24)
    rig.call("APICWrite", eax=_ICR, edx=what)
    for _ in range(20):
        rig.go("spin", ecx=2000)


def _seen(rig: Rig, name: str) -> int:
    return rig.word(_SEEN + 4 * _PLACES.index(name))


_PLACES = ("eax", "ebx", "ecx", "edx", "ebp", "esi", "edi", "esp", "starts", "mask", "tr")


@case("SetInitialAPState", "registers", 1, 2, 4, 5, 6, paging=PAGED, cpus=2)
def registers(rig: Rig, found: Findings) -> None:
    """It starts with the registers that were given, whatever the message's vector, interrupts off."""
    _begin(rig)
    _announce(rig)
    found.equal("starts before the message", _seen(rig, "starts"), 0)
    _message(rig, _INIT)
    _message(rig, _STARTUP | 0x77)
    found.equal("starts", _seen(rig, "starts"), 1)
    for name, value in {**_VALUES, "esp": _STACK}.items():
        found.equal(name.upper(), _seen(rig, name), value)
    found.equal("the mask", _seen(rig, "mask") & 0x200, 0)
    found.equal("TR", _seen(rig, "tr"), 0)


@case("SetInitialAPState", "a second message", 3, paging=PAGED, cpus=2)
def second_message(rig: Rig, found: Findings) -> None:
    """Another STARTUP to the processor that runs has no effect."""
    _begin(rig)
    _announce(rig)
    _message(rig, _INIT)
    for _ in range(3):
        _message(rig, _STARTUP | 0x77)
    found.equal("starts", _seen(rig, "starts"), 1)
