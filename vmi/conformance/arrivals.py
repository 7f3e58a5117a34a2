# SPDX-License-Identifier: GPL-2.0-only
"""Interrupts that arrive in a call: at each instruction of it at which a machine can be stopped.

A machine whose time is that of its instructions stops wherever it is asked to, so that each instruction
between the site and the one behind it gets its turn. On another one an arrival is wherever the guest has come
to by then, and those that are too late are none.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

from vmi.conformance.layout import CODE0
from vmi.conformance.rig import Broken, Called, Frame, Rig
from vmi.conformance.subject import End, Stop
from vmi.x86 import Eflags

LINE, VECTOR = 1, 0x21
FRAME = 20  # bytes: vector, error code, EIP, CS, EFLAGS
BELOW = 4 + 32  # return address, and what a call may write below it
_MOST = 300  # instructions of a call that get their turn
_PROBE_NS, _SPIN = 2_000, 100_000


@dataclass(frozen=True)
class Arrival:
    """One interrupt that arrived.

    :ivar number: how many instructions had run since the guest set off.
    :ivar registers: of the guest at that moment.
    :ivar done: what came of it.
    """

    number: int
    registers: dict[str, int]
    done: Called

    @property
    def where(self) -> str:
        """For a sentence."""
        return f"at instruction {self.number}, EIP {self.registers['eip']:#x}"


def instruction_ns(rig: Rig) -> int:
    """How long an instruction takes, in the guest's time: from how far a loop gets.

    :raises Broken: it gets nowhere.
    """
    limit = _PROBE_NS
    while limit <= rig.limit_ns:
        rig.set_off(rig.labels["spin"], ecx=_SPIN)
        if not rig.advance(limit):
            return 1
        passed = _SPIN - rig.subject.registers()["ecx"]
        if passed:
            return max(1, limit // (2 * passed))
        limit *= 10
    raise Broken(Stop(End.TIMEOUT), "going round a loop, which does not turn")


def arrivals(
    rig: Rig, prepare: Callable[[], None], *, line: int = LINE, until: Collection[int] = ()
) -> Iterator[Arrival]:
    """Let an interrupt arrive at each instruction in turn, on a guest that has just begun each time.

    The first arrives before any. There is none from the guest's end on.

    :param prepare: sets the guest off; the interrupt line must be open when it has.
    :param until: none arrives from when EIP is one of these.
    :raises Broken: the guest has not come to its end; what that was like has been given before.
    """
    step, at_once, singly = instruction_ns(rig), 0, 0
    last: dict[str, int] = {}
    for number in range(_MOST):
        rig.again()
        prepare()
        # as far as possible in one go; behind what takes longer than an instruction, one at a time
        going = not at_once or rig.advance(at_once * step)
        for _ in range(singly):
            going = going and rig.advance(step)
        if not going:
            return
        registers = rig.subject.registers()
        if registers == last and not singly:
            at_once -= 1
            singly = 1
            if not rig.advance(step):
                return
            registers = rig.subject.registers()
        last = registers
        if registers["eip"] in until:
            return
        rig.subject.interrupt(line)
        arrival = Arrival(number, registers, rig.arrive())
        yield arrival
        if not arrival.done.returned:
            # a guest that is lost takes all the time that it may: once is enough to tell
            raise Broken(arrival.done.stop, f"coming to the end, interrupted {arrival.where}")
        if singly:
            singly += 1
        else:
            at_once += 1


def kernel_cs(rig: Rig) -> int:
    """CS of the kernel as its frames show it; CODE0 if it can't be found out."""
    frames = rig.go("int30").frames
    return frames[0].cs if frames else CODE0


def in_rom(rig: Rig, frame: Frame) -> bool:
    """The frame's EIP is in the ROM, or in what a hypervisor keeps for itself."""
    return rig.may_hold_code(frame.eip)


def flag(frame: Frame) -> int:
    """The interrupt flag in a frame."""
    return frame.eflags & Eflags.IF
