# SPDX-License-Identifier: GPL-2.0-only
"""What a flavour says about each call: code, a gate to the hypervisor, or why it is not offered.

A flavour is a table and nothing else; `vmi.rom.build` lays it out. In a template's source `@` stands
for the call's own name, so that `@next` is a label of that template only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from vmi import abi
from vmi.abi import Reloc
from vmi.errors import RomError
from vmi.rom.layout import NO_PROMISES, Promise


@dataclass(frozen=True, repr=False)
class Template:
    """One call in one flavour.

    `in_slot` says that the source fits the call's slot; else the slot jumps to it. `reason` says in one
    sentence why a call is not offered (relocation type NONE).
    """

    relocation: Reloc
    source: str = ""
    in_slot: bool = True
    is_gate: bool = False
    reason: str = ""

    @property
    def leaves(self) -> bool:
        """The call may go to its gate."""
        return "@gate" in self.source

    def __repr__(self) -> str:
        how = "gate" if self.is_gate else "code" if self.source else "absent"
        return f"<Template {how} {self.relocation.name}>"


def code(source: str) -> Template:
    """Code of at most one slot, reached by `call`."""
    return Template(Reloc.CALL_REL, source)


def body(source: str) -> Template:
    """Code of any length, reached by `call`."""
    return Template(Reloc.CALL_REL, source, in_slot=False)


def gate() -> Template:
    """The hypervisor does it all: the slot jumps to the call's gate."""
    return Template(Reloc.CALL_REL, "jmp @gate", is_gate=True)


def absent(reason: str) -> Template:
    """Not offered, so that the guest's native instruction stays."""
    return Template(Reloc.NONE, reason=reason)


@dataclass(frozen=True, repr=False)
class Flavour:
    """One implementation of the calls as a ROM.

    `init` is the source of VMI_Init (at most 8 bytes). `gate_interrupt` is the vector of the call-out
    gates, or None for a flavour without a hypervisor. `special_gates` follow the calls' gates. `words`
    are the dwords of the data page, name to offset in it; without any there is no data page. `promises`
    are the hypervisor's to keep.
    """

    name: str
    summary: str
    init: str
    templates: Mapping[str, Template]
    gate_interrupt: int | None = None
    special_gates: tuple[str, ...] = ()
    words: Mapping[str, int] = field(default_factory=dict)
    promises: Promise = NO_PROMISES

    def __repr__(self) -> str:
        return f"<Flavour {self.name}>"

    def template(self, call: abi.Call) -> Template:
        """The template of a call; raises RomError when the flavour forgot it."""
        try:
            return self.templates[call.name]
        except KeyError:
            raise RomError(f"flavour {self.name} says nothing about call {call.name}") from None

    def absent(self) -> dict[str, str]:
        """Calls that are not offered, each with its reason."""
        return {name: template.reason for name, template in self.templates.items() if template.reason}

    def check(self) -> None:
        """Hold the table against the ABI; raises RomError with the first thing that can't be."""
        if not (self.name.isascii() and self.name.isidentifier()):
            raise RomError(f"the flavour name {self.name!r} is not an ASCII identifier")
        for name in self.templates:
            if name not in abi.BY_NAME:
                raise RomError(f"flavour {self.name} has a template for {name}, which is not a call")
        for call in abi.CALLS:
            template = self.template(call)
            if template.relocation not in call.relocations:
                raise RomError(
                    f"flavour {self.name} answers {template.relocation.name} for {call.name}, which allows "
                    f"{', '.join(kind.name for kind in call.relocations)}"
                )
            if (template.relocation == Reloc.NONE) != bool(template.reason):
                raise RomError(f"flavour {self.name} must give a reason for {call.name} if it is not offered")
            if template.is_gate and self.gate_interrupt is None:
                raise RomError(f"flavour {self.name} sends {call.name} to a gate and has none")
