# SPDX-License-Identifier: GPL-2.0-only
"""Cases made from the ABI table: what is to be said of every call alike, for each with its examples."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

from vmi import abi
from vmi.abi import Call, FlagsEffect, Reloc
from vmi.conformance import generated_arrivals as arriving
from vmi.conformance import generated_faults as faulting
from vmi.conformance.case import ALL_PAGING, Body, Case, Findings
from vmi.conformance.examples import EXAMPLES, Example
from vmi.conformance.layout import FREE_SELECTOR, GDT, STACK, Paging, descriptor
from vmi.conformance.refusals import REFUSALS, Refusal
from vmi.conformance.rig import Called, Rig, fill
from vmi.x86 import Eflags

_MOST_BELOW = 32  # bytes below the stack pointer that a call may write
_CANARY = 0xC5
_NO_USE = FREE_SELECTOR + 8  # a data segment far from everything
_CHANGES_IF = {"EnableInterrupts", "DisableInterrupts", "SetInterruptMask", "IRET", "SYSEXIT", "Halt"}


def made() -> Iterator[Case]:
    """All generated cases, in the table's order."""
    for call in abi.CALLS:
        answer = _case(
            call, "relocation", ("VMI-GetReloc-01", "VMI-GetReloc-04"), partial(relocation, call=call)
        )
        yield replace(answer, alone=True)
        for number, example in enumerate(EXAMPLES.get(call.name, ())):
            for pattern in (0, 1):
                yield _case(
                    call,
                    f"convention {number}.{pattern}",
                    ("VMI-Call-01", "VMI-Call-02", "VMI-Call-03", "VMI-Call-05", "VMI-Call-06"),
                    partial(convention, call=call, example=example, pattern=pattern),
                    example,
                )
            yield _case(
                call, f"exits {number}", ("VMI-Call-08",), partial(exits, call=call, example=example), example
            )
            yield _case(
                call,
                f"segments {number}",
                ("VMI-Call-04",),
                partial(segments, call=call, example=example),
                example,
            )
            yield _case(
                call,
                f"held interrupt {number}",
                ("VMI-Call-07",),
                partial(held_interrupt, call=call, example=example),
                example,
            )
            if number in (0, len(EXAMPLES[call.name]) - 1):
                yield from _arrivals(call, number, example)
    for row in REFUSALS:
        yield from _faults(row)


def _arrivals(call: Call, number: int, example: Example) -> Iterator[Case]:
    """Interrupts at each instruction of the call; some calls have cases by hand instead."""
    for name, body, requirements, but in (
        ("interrupt in it", arriving.interrupted, arriving.INTERRUPTED, arriving.SWITCH_OFF),
        ("masked interrupt in it", arriving.masked, arriving.MASKED, arriving.SWITCH_ON),
        ("call in the handler", arriving.reentered, arriving.REENTERED, arriving.SWITCH_OFF | arriving.ONCE),
    ):
        if call.name not in but and not (body is arriving.reentered and number):
            yield _case(
                call, f"{name} {number}", requirements, partial(body, call=call, example=example), example
            )


def _faults(row: Refusal) -> Iterator[Case]:
    """One way in which a call is refused, and what is to be said of that."""
    call = abi.BY_NAME[row.call]
    own = tuple(f"VMI-{row.call}-{number:02}" for number in row.numbers)
    kinds: tuple[tuple[str, Callable[..., None], tuple[str, ...]], ...] = (
        ("fault", faulting.refused, (*own, *faulting.REFUSED)),
        ("fault at the site", faulting.at_site, faulting.PROMISED),
        ("fault cured", faulting.cured, faulting.CURED),
        ("fault and interrupt", faulting.with_interrupt, faulting.WITH_INTERRUPT),
    )
    if row.may:
        kinds = (("fault", faulting.done_or_refused, own),)
    for name, body, requirements in kinds:
        if body is not faulting.cured or row.cure is not None:
            given = f"{name}, {row.what}"
            yield _case(call, given, requirements, partial(body, row=row), paging=row.paging)


def _case(
    call: Call,
    name: str,
    requirements: tuple[str, ...],
    body: Body,
    example: Example | None = None,
    paging: frozenset[Paging] = ALL_PAGING,
) -> Case:
    where = paging if example is None else example.paging
    return Case(f"{call.name}/{name}", requirements, call.name, str(call.group), call.level, body, where)


def relocation(rig: Rig, found: Findings, *, call: Call) -> None:
    """GetRelocationInfo gives an answer that the table allows, the same each time, and keeps registers."""
    answers = [rig.relocation(call.number) for _ in range(2)]
    for answer in answers:
        kind, rest = answer["edx"] & 0xFF, answer["edx"] >> 8
        found.true(kind in call.relocations, f"the relocation type must be one of "
                   f"{', '.join(each.name for each in call.relocations)}, but it is {kind}")  # fmt: skip
        found.equal("the rest of EDX", rest, 0)
    first, second = (_shown(answer) for answer in answers)
    found.equal("the second answer", second, first)


def _shown(answer: dict[str, int]) -> str:
    kind = answer["edx"] & 0xFF
    return f"{Reloc(kind).name if kind in set(Reloc) else kind} to {answer['eax']:#x}"


def _called(rig: Rig, call: Call, example: Example, pattern: int) -> tuple[dict[str, int], Called]:
    example.before(rig)
    registers = {**fill(pattern), **example.registers}
    rig.write(STACK - 0x200, bytes([_CANARY]) * 0x200)
    return registers, rig.call(call.name, *example.stack, **registers)


def convention(rig: Rig, found: Findings, *, call: Call, example: Example, pattern: int) -> None:
    """Stack, preserved registers, direction flag and interrupt flag behind a call are as the table says."""
    registers, done = _called(rig, call, example, pattern)
    found.true(done.returned, f"the call must return, but {done.stop.reason or done.stop.end.value}")
    if not done.returned:
        return
    found.equal("what the call took off the stack", done.popped, 0)
    for name in call.preserves:
        found.equal(name.upper(), done.registers[name], registers[name])
    flags = done.registers["eflags"]
    if call.flags is not FlagsEffect.FROM_FRAME:
        found.equal("the direction flag", flags & Eflags.DF, 0)
    if call.name not in _CHANGES_IF:
        found.equal("the interrupt flag", flags & Eflags.IF, 0)
    own = 4 + 4 * len(example.stack)
    kept = rig.read(STACK - 0x200, 0x200 - own - _MOST_BELOW)
    found.true(kept == bytes([_CANARY]) * len(kept), "it must write at most 32 bytes below its stack pointer")
    found.equal("events meanwhile", len(done.frames), 0)


def exits(rig: Rig, found: Findings, *, call: Call, example: Example) -> None:
    """Made a second time, it leaves the guest once at most."""
    _called(rig, call, example, 0)
    _, done = _called(rig, call, example, 0)
    found.true(done.exits <= 1, f"it must take one exit at most, but it took {done.exits}")


def segments(rig: Rig, found: Findings, *, call: Call, example: Example) -> None:
    """It works with FS and GS on a segment of no use, and with null selectors in them."""
    rig.write(GDT + _NO_USE, descriptor(0x70000000, 0xFF, 0xF2, 0))
    rig.go("load_fs", eax=_NO_USE | 3)
    rig.go("load_gs", eax=_NO_USE | 3)
    for selectors in ("of no use", "null"):
        _, done = _called(rig, call, example, 0)
        found.true(
            done.returned and not done.frames,
            f"the call must return without an event with FS and GS {selectors}",
        )
        rig.go("null_segments")


def held_interrupt(rig: Rig, found: Findings, *, call: Call, example: Example) -> None:
    """An interrupt that comes before or in the call, with interrupts off, waits."""
    rig.go("open_irq1")
    rig.subject.interrupt(1)
    _, done = _called(rig, call, example, 0)
    lets_in = call.name == "EnableInterrupts" or (
        call.name == "SetInterruptMask" and bool(example.registers.get("eax", 0) & Eflags.IF)
    )
    vectors = done.vectors
    found.equal("vectors of the events meanwhile", vectors, [0x21] if lets_in else [])
    found.true(done.returned, "the call must return")
