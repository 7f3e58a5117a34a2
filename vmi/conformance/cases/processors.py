# SPDX-License-Identifier: GPL-2.0-only
"""A second processor: the state it starts with, and what starts it."""

from __future__ import annotations

from vmi import abi
from vmi.abi import Reloc
from vmi.conformance.case import PAGED, Findings, case
from vmi.conformance.layout import (
    CODE0,
    DATA0,
    FREE_PAGES,
    GDT,
    IDT,
    PAGE_TABLES,
    SCRATCH,
    Paging,
    control,
    entry_address,
)
from vmi.conformance.rig import CALL_LENGTH, Rig, Unfit
from vmi.memory import PAGE_SIZE

_PF = 14
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


def _announce(rig: Rig, **changes: int) -> None:
    rig.write(_STATE, _state(rig, **changes))
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


_WINDOW, _PAGES = FREE_PAGES + 4 * PAGE_SIZE, tuple(FREE_PAGES + n * PAGE_SIZE for n in (5, 6, 7))
_CODE, _SECOND_CODE = FREE_PAGES + 0x10000, FREE_PAGES + 0x11000
_MAPPED_AT, _SLOT = 0xC0000000, 1
_LOADED = _SEEN + 0x30
_TWO_LEVEL = frozenset({Paging.TWO_LEVEL, Paging.PSE})


def _call(rig: Rig, at: int, code: bytes, name: str, *stack: int, **registers: int) -> bytes:
    """Code that will lie at an address, with one more call behind it."""
    for word in reversed(stack):
        code += b"\x68" + word.to_bytes(4, "little")
    for number, register in enumerate(("eax", "ecx", "edx")):
        if register in registers:
            code += bytes([0xB8 + number]) + registers[register].to_bytes(4, "little")
    offset = rig.entry(name)[1] - (at + len(code)) - CALL_LENGTH & 0xFFFFFFFF
    return code + b"\xe8" + offset.to_bytes(4, "little") + b"\x83\xc4" + bytes([4 * len(stack)])


def _batch(rig: Rig, at: int, value: int) -> bytes:
    """Code that loads from the window, changes its entry by way of the slot's range, and loads again."""
    load = b"\xa1" + _WINDOW.to_bytes(4, "little")
    entry = _MAPPED_AT + entry_address(rig.environment.paging, _WINDOW)
    code = _call(rig, at, load, "SetLazyMode", eax=1)
    code = _call(rig, at, code, "SetPxE", eax=value | 7, edx=entry, ecx=1)
    code = _call(rig, at, code, "SetLazyMode", eax=0)
    return code + load + b"\xa3" + _LOADED.to_bytes(4, "little")


def _loads(rig: Rig, value: int) -> int:
    """What the first processor loads behind such a batch."""
    code = _batch(rig, _CODE, value)
    rig.write(_CODE, code)
    rig.jump_to(_CODE + len(code), rig.labels["done"], call=False)
    rig.start(_CODE)
    return rig.word(_LOADED)


@case("SetLinearMapping", "each processor its own", 3, paging=_TWO_LEVEL, cpus=2)
def own_slots(rig: Rig, found: Findings) -> None:
    """What one processor gives for a slot, right or wrong, is nothing to the other, before or after.

    It shows in a change of a present entry that takes effect without a flush, which nobody has to do.
    """
    rig.need("SetLinearMapping", "SetPxE", "SetLazyMode")
    _begin(rig)
    for number, page in enumerate(_PAGES, 1):
        rig.put(page, number)
    rig.put(entry_address(rig.environment.paging, _WINDOW), _PAGES[0] | 7)
    rig.put(PAGE_TABLES + 4 * (_MAPPED_AT >> 22), PAGE_TABLES + PAGE_SIZE | 7)
    rig.value("FlushTLB", eax=1)
    rig.value("SetLinearMapping", 0, eax=_SLOT, edx=_MAPPED_AT, ecx=0x400)
    if _loads(rig, _PAGES[2]) != 3:
        raise Unfit("a change of a present entry needs a flush, so that slots show in nothing")
    # wrong here, and the other processor, which has no slot, must not go by it
    rig.value("SetLinearMapping", 0x100, eax=_SLOT, edx=_MAPPED_AT, ecx=0x400)
    code = _batch(rig, _SECOND_CODE, _PAGES[1])
    # wrong there, once the first one has what is right
    code = _call(rig, _SECOND_CODE, code, "SetLinearMapping", 0x200, eax=_SLOT, edx=_MAPPED_AT, ecx=0x400)
    code += b"\xff\x05" + (_SEEN + 4 * _PLACES.index("starts")).to_bytes(4, "little") + b"\xf3\x90\xeb\xfc"
    rig.write(_SECOND_CODE, code)
    _announce(rig, eip=_SECOND_CODE)
    _message(rig, _INIT)
    _message(rig, _STARTUP | 0x77)
    found.equal("starts", _seen(rig, "starts"), 1)
    found.equal("a load of the other processor behind its batch", rig.word(_LOADED), 2)
    rig.value("SetLinearMapping", 0, eax=_SLOT, edx=_MAPPED_AT, ecx=0x400)
    for _ in range(20):
        rig.go("spin", ecx=2000)
    rig.value("FlushTLB", eax=1)
    found.equal("a load behind a batch", _loads(rig, _PAGES[2]), 3)


@case("InvalPage", "a page that another processor has used", 1, paging=PAGED, cpus=2)
def used_elsewhere(rig: Rig, found: Findings) -> None:
    """A processor's page fault, and what the other one does with the page since, change nothing of it."""
    _begin(rig)
    entry = entry_address(rig.environment.paging, _WINDOW)
    for number, page in enumerate(_PAGES, 1):
        rig.put(page, number)
    rig.put(entry, 0)
    rig.value("InvalPage", eax=_WINDOW)
    rig.resume_at("done")
    found.equal("events of a load", rig.go("load", ebx=_WINDOW).vectors, [_PF])
    rig.put(entry, _PAGES[0] | 7)
    starts = _SEEN + 4 * _PLACES.index("starts")
    load, store = (
        opcode + address.to_bytes(4, "little") for opcode, address in ((b"\xa1", _WINDOW), (b"\xa3", _LOADED))
    )
    rig.write(_SECOND_CODE, load + store + b"\xff\x05" + starts.to_bytes(4, "little") + b"\xf3\x90\xeb\xfc")
    _announce(rig, eip=_SECOND_CODE)
    _message(rig, _INIT)
    _message(rig, _STARTUP | 0x77)
    found.equal("starts", _seen(rig, "starts"), 1)
    found.equal("a load of the other processor", rig.word(_LOADED), 1)
    for number, page in enumerate(_PAGES, 1):
        rig.put(entry, page | 7)
        rig.value("InvalPage", eax=_WINDOW)
        found.equal("a load", rig.go("load", ebx=_WINDOW).registers["eax"], number)
