# SPDX-License-Identifier: GPL-2.0-only
"""Cases made from the ABI table about interrupts that arrive in a call, at each of its instructions."""

from __future__ import annotations

from vmi import abi
from vmi.abi import Call
from vmi.conformance.arrivals import BELOW, FRAME, LINE, VECTOR, Arrival, arrivals, flag, in_rom, kernel_cs
from vmi.conformance.case import Findings
from vmi.conformance.examples import Example
from vmi.conformance.layout import FREE_PAGES, IDT, STACK, gate
from vmi.conformance.rig import Called, Rig, branch, fill
from vmi.memory import PAGE_SIZE
from vmi.x86 import Eflags

_IF = int(Eflags.IF)
#: Calls that switch interrupts off, and those that switch them on: cases by hand are about them.
SWITCH_OFF, SWITCH_ON = {"DisableInterrupts", "SetInterruptMask"}, {"EnableInterrupts", "SetInterruptMask"}
#: Calls that can't be made again in a handler as they have been made.
ONCE = {"SetTR"}
_HANDLER = FREE_PAGES + 30 * PAGE_SIZE
_PUSHAD, _POPAD, _PUSH, _MOV, _ADD_ESP = b"\x60", b"\x61", b"\x68", 0xB8, b"\x83\xc4"
_NUMBERS = {"eax": 0, "ecx": 1, "edx": 2, "ebx": 3, "ebp": 5, "esi": 6, "edi": 7}

INTERRUPTED = tuple(f"VMI-Interrupt-{number:02}" for number in range(1, 9))
MASKED = ("VMI-Interrupt-09", "VMI-Interrupt-10")
REENTERED = ("VMI-Interrupt-11",)


def _registers(example: Example) -> dict[str, int]:
    return {**fill(0), **example.registers}


def _set_off(rig: Rig, call: Call, example: Example, *, on: bool) -> None:
    """Everything up to the call instruction, which comes next."""
    rig.go("open_irq1")
    example.before(rig)
    rig.value("EnableInterrupts" if on else "DisableInterrupts")
    rig.set_off_to(rig.entry(call.name)[1], *example.stack, **_registers(example))


def interrupted(rig: Rig, found: Findings, *, call: Call, example: Example) -> None:
    """An interrupt in it is handled once and at once; the call is as without it."""
    rig.need(call.name)
    cs = kernel_cs(rig)
    _set_off(rig, call, example, on=True)
    wanted = rig.arrive()
    for arrival in arrivals(rig, lambda: _set_off(rig, call, example, on=True)):
        done, where = arrival.done, arrival.where
        found.equal(f"vectors of the events {where}", done.vectors, [VECTOR])
        found.true(done.returned, f"the call must return from an interrupt {where}")
        _same(rig, found, call, example, arrival, wanted)
        if done.vectors == [VECTOR]:
            _frame(rig, found, call, example, arrival, cs)


def _same(rig: Rig, found: Findings, call: Call, example: Example, arrival: Arrival, wanted: Called) -> None:
    """Registers, stack and result are those without an interrupt."""
    done, where = arrival.done, arrival.where
    names = call.preserves
    if example.same:
        names += tuple(place for result in call.results for place in result.places)
    for name in dict.fromkeys(names):
        found.equal(
            f"{name.upper()} behind a call interrupted {where}", done.registers[name], wanted.registers[name]
        )
    found.equal(f"what the call took off the stack, interrupted {where}", done.popped, wanted.popped)
    flags = Eflags.DF | Eflags.IF
    found.equal(f"DF and IF behind a call interrupted {where}", done.registers["eflags"] & flags,
                wanted.registers["eflags"] & flags)  # fmt: skip
    esp = STACK - 4 * len(example.stack)
    found.equal(f"the stack's arguments behind a call interrupted {where}",
                [rig.word(esp + 4 * n) for n in range(len(example.stack))], list(example.stack))  # fmt: skip


def _frame(rig: Rig, found: Findings, call: Call, example: Example, arrival: Arrival, cs: int) -> None:
    """The handler's frame is that of an event between two instructions of the guest."""
    frame, where = arrival.done.first, arrival.where
    site, esp = rig.labels["site"], STACK - 4 * len(example.stack)
    behind = frame.eip == rig.labels["done"]
    found.true(
        frame.eip == site or behind or in_rom(rig, frame),
        f"the frame's EIP must be the site, behind it or in the ROM, but it is {frame.eip:#x} {where}",
    )
    found.equal(f"CS in the frame {where}", frame.cs, cs)
    found.equal(f"IF in the frame {where}", flag(frame), _IF)
    top = frame.handler_esp + FRAME
    found.true(
        esp - BELOW <= top <= esp,
        f"the frame must be on the caller's stack, but it ends at {top:#x} {where}",
    )
    if frame.eip == site:
        _kept(found, frame, _registers(example), f"in front of the call {where}")
    elif behind:
        left = {name: arrival.done.registers[name] for name in abi.REGISTERS}
        _kept(found, frame, left, f"behind the call {where}")


def _kept(found: Findings, frame: object, wanted: dict[str, int], where: str) -> None:
    got = {name: getattr(frame, name) for name in wanted}
    found.true(got == wanted, f"a handler must find {wanted} {where}, but it finds {got}")


def masked(rig: Rig, found: Findings, *, call: Call, example: Example) -> None:
    """With interrupts off one in it waits, and is handled once when they are on."""
    rig.need(call.name)
    for arrival in arrivals(rig, lambda: _set_off(rig, call, example, on=False)):
        done, where = arrival.done, arrival.where
        found.equal(f"vectors of the events {where}, interrupts off", done.vectors, [])
        found.true(done.returned, f"the call must return from an interrupt {where}")
        found.equal(f"IF behind a call interrupted {where}", done.registers["eflags"] & _IF, 0)
        vectors = [*rig.call("EnableInterrupts").vectors, *rig.call("EnableInterrupts").vectors]
        found.equal(f"vectors once interrupts are on, after one {where}", vectors, [VECTOR])


def reentered(rig: Rig, found: Findings, *, call: Call, example: Example) -> None:
    """A handler that makes the very call that it has interrupted does not disturb it."""
    rig.need(call.name)

    def prepare() -> None:
        rig.write(_HANDLER, _handler(rig, call, example))
        rig.write(IDT + 8 * VECTOR, gate(_HANDLER))
        _set_off(rig, call, example, on=True)

    prepare()
    wanted = rig.arrive()
    for arrival in arrivals(rig, prepare, line=LINE):
        found.equal(f"vectors of the events {arrival.where}", arrival.done.vectors, [VECTOR])
        _same(rig, found, call, example, arrival, wanted)


def _handler(rig: Rig, call: Call, example: Example) -> bytes:
    """A handler that makes the call and then does what the usual one does."""
    code = _PUSHAD
    for word in reversed(example.stack):
        code += _PUSH + word.to_bytes(4, "little")
    for name, value in {**fill(1), **example.registers}.items():
        code += bytes([_MOV + _NUMBERS[name]]) + value.to_bytes(4, "little")
    code += branch(_HANDLER + len(code), rig.entry(call.name)[1], call=True)
    code += _ADD_ESP + bytes([4 * len(example.stack)]) + _POPAD
    return code + branch(_HANDLER + len(code), rig.labels[f"v{VECTOR}"], call=False)
