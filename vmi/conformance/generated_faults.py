# SPDX-License-Identifier: GPL-2.0-only
"""Cases made from what calls refuse: the fault as a handler sees it, and the call once its cause is gone."""

from __future__ import annotations

from vmi.conformance.arrivals import BELOW, FRAME, VECTOR, flag, in_rom, kernel_cs
from vmi.conformance.case import Findings
from vmi.conformance.layout import STACK, WORDS
from vmi.conformance.refusals import PF, Refusal
from vmi.conformance.rig import CALL_LENGTH, Called, Frame, Rig, Unfit, fill
from vmi.rom.layout import CallTable, Promise
from vmi.x86 import Eflags

_IF = int(Eflags.IF)
REFUSED = tuple(f"VMI-Fault-{number:02}" for number in range(1, 6))
PROMISED, CURED, WITH_INTERRUPT = ("VMI-Fault-06",), ("VMI-Fault-07",), ("VMI-Fault-08",)


def _registers(row: Refusal) -> dict[str, int]:
    return {**fill(0), **row.registers}


def _try(rig: Rig, row: Refusal) -> Called:
    """Make the call, whose handler goes to the end of the run."""
    rig.resume_at("done")
    done = rig.call(row.call, *row.stack, **_registers(row))
    rig.put(WORDS["RESUME"], 0)
    return done


def _make(rig: Rig, row: Refusal, *, on: bool) -> Called:
    """The same with interrupts on or off. :raises Unfit: the call was done, as it may be."""
    rig.value("EnableInterrupts" if on else "DisableInterrupts")
    done = _try(rig, row)
    if row.may and not done.faults:
        raise Unfit("the call was done, which it may be")
    return done


def _need(rig: Rig, row: Refusal) -> None:
    rig.need(row.call)
    if not row.emulated and not rig.deprivileged:
        raise Unfit("without a hypervisor it is up to the processor, and emulated ones don't refuse it")


def done_or_refused(rig: Rig, found: Findings, *, row: Refusal) -> None:
    """It is refused as the native instruction, or done as if there were nothing to refuse."""
    _need(rig, row)
    row.before(rig)
    before = row.kept(rig)
    done = _try(rig, row)
    if done.frames:
        found.equal("events", done.faults, [(row.vector, row.error)])
        found.equal("what the call would have changed", row.kept(rig), before)
    else:
        got, wanted = row.result(rig, done)
        found.equal("what the call has done", got, wanted)


def refused(rig: Rig, found: Findings, *, row: Refusal) -> None:
    """It is delivered once, as the native instruction's, and nothing has changed."""
    _need(rig, row)
    cs = kernel_cs(rig)
    for on in (False, True):
        rig.again()
        row.before(rig)
        before = row.kept(rig)
        done = _make(rig, row, on=on)
        found.equal("events", done.faults, [(row.vector, row.error)])
        if not done.frames:
            continue
        frame = done.first
        found.equal("CS in the frame", frame.cs, cs)
        found.equal("IF in the frame", flag(frame), _IF if on else 0)
        _place(rig, found, row, frame)
        found.equal("the interrupt flag behind it", rig.value("GetInterruptMask") & _IF, _IF if on else 0)
        if row.vector == PF:
            found.equal("CR2", rig.value("GetCR2"), row.address)
        found.equal("what the call would have changed", row.kept(rig), before)
        got, wanted = row.begun(rig)
        found.equal("what the call has done before", got, wanted)


def _place(rig: Rig, found: Findings, row: Refusal, frame: Frame) -> None:
    """Where the fault is reported, and what is on the stack."""
    site, esp = rig.labels["site"], STACK - 4 * len(row.stack)
    found.true(
        frame.eip == site or in_rom(rig, frame),
        f"EIP must be the site or in the ROM, but it is {frame.eip:#x}",
    )
    top = frame.handler_esp + FRAME
    found.true(esp - BELOW <= top <= esp, f"the frame must be on the caller's stack, but it ends at {top:#x}")
    words = [rig.word(esp + 4 * n) for n in range(len(row.stack))]
    found.equal("the stack's arguments", words, list(row.stack))


def promises(rig: Rig) -> Promise:
    """What the ROM promises besides the interface."""
    table = CallTable.parse(rig.image())
    return Promise(0) if table is None else table.promises


def at_site(rig: Rig, found: Findings, *, row: Refusal) -> None:
    """A ROM that promises so reports it at the call instruction, with registers and stack as before it."""
    _need(rig, row)
    if not promises(rig) & Promise.FAULTS_AT_CALL:
        raise Unfit("the ROM does not promise it")
    row.before(rig)
    done = _make(rig, row, on=False)
    if not done.frames:
        found.true(False, "the call must be refused")
        return
    frame = done.first
    found.equal("EIP", frame.eip, rig.labels["site"])
    found.equal("ESP", frame.handler_esp + FRAME, STACK - 4 * len(row.stack))
    wanted = _registers(row)
    if row.string:  # as the instruction itself, it shows how far it has come
        wanted = {name: value for name, value in wanted.items() if name not in ("esi", "edi", "ecx")}
    got = {name: getattr(frame, name) for name in wanted}
    found.true(got == wanted, f"registers must be {wanted}, but they are {got}")


def cured(rig: Rig, found: Findings, *, row: Refusal) -> None:
    """Once its cause is gone, a handler that returns lets the call do what it should."""
    assert row.cure is not None
    _need(rig, row)
    row.before(rig)
    frame = _make(rig, row, on=False).first
    kept = [(at, rig.read(at, size)) for at, size in ((rig.labels["site"], CALL_LENGTH), (STACK - 128, 128))]
    row.cure(rig)
    for at, data in kept:  # the cure makes calls as well
        rig.write(at, data)
    registers = {name: getattr(frame, name) for name in fill(0)}
    rig.set_off(frame.eip, esp=frame.handler_esp + FRAME, **registers)
    done = rig.arrive()
    found.equal("events of the call made again", done.faults, [])
    found.true(done.returned, "the call must return once its cause is gone")
    got, wanted = row.result(rig, done)
    found.equal("what the call has done", got, wanted)
    found.equal("ESP", done.registers["esp"], STACK - 4 * len(row.stack))


def with_interrupt(rig: Rig, found: Findings, *, row: Refusal) -> None:
    """A fault and an interrupt that waits: each handled once, the interrupt when the flag allows it."""
    _need(rig, row)
    row.before(rig)
    rig.value("DisableInterrupts")
    rig.go("open_irq1")
    rig.subject.interrupt(1)
    done = _make(rig, row, on=False)
    found.equal("events with interrupts off", done.faults, [(row.vector, row.error)])
    vectors = [*rig.call("EnableInterrupts").vectors, *rig.call("EnableInterrupts").vectors]
    found.equal("vectors once interrupts are on", vectors, [VECTOR])
