# SPDX-License-Identifier: GPL-2.0-only
"""Renders the tables of processor models and of model-specific registers as the page docs/cpu.md.

The page is written by this module alone, so it can't promise what the machine doesn't. A test compares the
file with the output; ``python -m vmi.native.cpu_docs > docs/cpu.md`` brings it up to date.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence

from vmi.native.cpuid import I686, MODELS, CpuModel
from vmi.native.msr import Msr, registers

_INTRODUCTION = """\
# Processor models

Generated from `vmi/native/cpuid.py` and `vmi/native/msr.py` by `python -m vmi.native.cpu_docs`; edit the
tables there, not this page.

`vmi run --cpu MODEL` chooses what CPUID tells a guest. It tells only of what works: an instruction of a
feature that is not promised is an invalid opcode where the emulator knows the difference, and a
model-specific register that is not in the list below is a general protection fault, as is a bit of CR4 whose
feature is not promised (QEMU's translator takes those).

Without `--cpu` a guest gets {usual}. A kernel that a hypervisor runs gets {served}; `--cpu` may name another
model then if hypervisors here serve all that it promises: {served}-apic has an APIC, {served}-pae PAE and NX.

Each model but these two is the one that QEMU 7.2 has under the same name, leaf by leaf, less the features
under *Withheld*. Bit 31 of leaf 1 ECX and leaf 40000000h tell, as there, that the code runs on QEMU's
translator, which is true: the emulator library is made of it."""

_WITHHELD = """\
## Withheld

Features that QEMU's model has and the one here has not."""

_REGISTERS = """\
## Model-specific registers

For RDMSR and WRMSR; the 486 and {served} have neither. *Firmware* is what a kernel finds that is loaded
without any. A write of a value that is not valid is a general protection fault (#GP); writes that are
*dropped* do nothing. Memory types and machine-check registers are kept and shown, and have no
effect: there is no cache, and no error of memory."""

_DIGITS = (
    (re.compile(r"^MC\d+_"), "MCn_"),
    (re.compile(r"(PHYSBASE|PHYSMASK|PERFCTR|EVNTSEL)\d$"), r"\1n"),
    (re.compile(r"^MTRR_FIX.*"), "MTRR_FIXn"),
)
_ALL = (1 << 64) - 1


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    cells = [head, ["---"] * len(head), *rows]
    return ["", *("| " + " | ".join(row) + " |" for row in cells), ""]


def _model(model: CpuModel) -> Sequence[str]:
    stepping, number, family = (model.signature >> shift & 15 for shift in (0, 4, 8))
    highest = f"{model.max_leaf}" + (f", {model.max_extended:X}h" if model.max_extended else "")
    identity = f"{model.vendor} {family}.{number}.{stepping}"
    return (model.name, identity, highest, " ".join(sorted(model.features)))


def _names(models: Iterable[CpuModel]) -> str:
    return ", ".join(model.name for model in models)


def _withheld(model: CpuModel) -> Iterable[Sequence[str]]:
    """One row for each reason."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in model.withheld.items():
        by_reason.setdefault(reason, []).append(name)
    return ((" ".join(names), reason) for reason, names in by_reason.items())


def _registers() -> Iterable[Sequence[str]]:
    """One row for registers of one kind that the same models have."""
    owners: dict[tuple[int, str], list[CpuModel]] = {}
    found: dict[tuple[int, str], Msr] = {}
    for model in MODELS.values():
        for index, msr in registers(model).items():
            owners.setdefault((index, msr.name), []).append(model)
            found[index, msr.name] = msr
    groups: dict[tuple[str, str], list[Msr]] = {}
    for key, msr in sorted(found.items(), key=lambda item: item[0]):
        groups.setdefault((_kind(msr.name), _names(owners[key])), []).append(msr)
    for (name, models), group in groups.items():
        yield (
            _numbers([msr.index for msr in group]),
            name,
            _values(msr.reset for msr in group),
            _values(msr.reset if msr.firmware is None else msr.firmware for msr in group),
            _writes(group[0]),
            models,
        )


def _kind(name: str) -> str:
    for pattern, kind in _DIGITS:
        name = pattern.sub(kind, name)
    return name


def _numbers(indices: Sequence[int]) -> str:
    """``C1h-C2h``, ``200h-20Eh by 2``, or one after the other."""
    if len(indices) == 1:
        return f"{indices[0]:X}h"
    steps = {after - before for before, after in itertools.pairwise(indices)}
    if len(steps) > 1:
        return ", ".join(f"{index:X}h" for index in indices)
    step = steps.pop()
    return f"{indices[0]:X}h-{indices[-1]:X}h" + (f" by {step}" if step > 1 else "")


def _values(numbers: Iterable[int]) -> str:
    return ", ".join(f"{number:X}h" if number > 9 else str(number) for number in dict.fromkeys(numbers))


def _writes(msr: Msr) -> str:
    if not msr.accepts(msr.reset):
        return "#GP"
    if not msr.keeps:
        return "dropped"
    if not any(msr.accepts(1 << bit) for bit in range(64)):
        return "0 only"
    return "kept" if msr.accepts(_ALL) else "kept if valid"


def render() -> str:
    """Return the whole page, Markdown, ending in one newline; the same text every time."""
    # not imported above: the machine is large, and the page needs one name of it
    from vmi.native.machine import DEFAULT_MODEL

    lines = [_INTRODUCTION.format(usual=DEFAULT_MODEL.name, served=I686.name)]
    models = ("model", "vendor, family.model.stepping", "highest leaves", "features")
    lines += _table(models, map(_model, MODELS.values()))
    lines += [_WITHHELD, ""]
    for model in MODELS.values():
        if model.withheld:
            lines += [f"### {model.name}", *_table(("features", "reason"), _withheld(model))]
    msrs = ("number", "name", "after reset", "firmware", "writes", "models")
    lines += [_REGISTERS.format(served=I686.name), *_table(msrs, _registers())]
    return "\n".join(lines).rstrip("\n") + "\n"


if __name__ == "__main__":
    print(render(), end="")
