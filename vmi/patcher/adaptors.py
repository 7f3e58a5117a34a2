# SPDX-License-Identifier: GPL-2.0-only
"""Make the code between a slot and the ROM: one native instruction's operands become one VMI call.

A slot's `call` lands in an adaptor; the adaptor saves what the call may destroy and the kernel may
still need, puts the operands where the call wants them, calls the ROM, puts the result where the
native instruction would, restores, and returns. What a call destroys is read from the ABI table, and
what the kernel still needs from the plan (``Site.dead``, ``Site.flags_live``), so an adaptor holds no
more than its site needs, and sites with the same needs share one. Where nothing at all is left to do,
there is no adaptor and the slot calls the ROM itself.

Rules that all adaptors keep:

* The arithmetic flags are kept in EAX by ``lahf; seto al`` and come back by ``add al,0x7f; sahf``. A
  saved copy of the whole EFLAGS would take the interrupt flag back with it, and undo a `sti`.
* Only ``push``, ``pop``, ``mov``, ``lea`` and ``movzx`` are used besides: none of them changes a flag.
* Operands relative to ESP are corrected by what is on the stack: the return address and the saved
  registers. The guest's segments are flat as the ABI demands, FS and GS excepted.
* The high part of EAX is kept when the native instruction gives AL or AX only: the ABI doesn't say
  that a call does it.

The 32 bits after an adaptor's E8 are zero in the file. Activation fills them (see links in sitetable.py); an
adaptor of a call that the ROM doesn't offer is never reached.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from iced_x86 import Decoder, Instruction

from vmi.abi import Call
from vmi.patcher import adaptorstack
from vmi.patcher.adaptorcode import Adaptor, Refused, Saved, Writer, is_memory, reads, register_of
from vmi.patcher.adaptorinline import inline
from vmi.patcher.adaptorshapes import ADDRESS, WORD, Shape, shape_of
from vmi.patcher.adaptorstores import ENTRY, LONG_ENTRY, report_entry, set_entry
from vmi.patcher.model import Site

NOP_OK = frozenset(
    (
        "wrmsr", "lgdt m", "lldt rm", "lidt m", "ltr rm", "mov cr0,r", "mov cr2,r", "mov cr3,r", "mov cr4,r",
        "wbinvd", "wbnoinvd", "mov dr,r", "clts", "sti", "cli", "invlpg m", "out eax", "out al", "out ax",
    )
)  # fmt: skip
"""Forms whose slot may become NOPs: no result in a register, in memory or on the stack."""

JUMP_OK = frozenset(("iret", "sysexit"))
"""Forms whose slot may become a jump: they don't come back."""


def choose(site: Site, hide_nx: bool = False) -> Adaptor | None:
    """The adaptor for a site with a call or an inline one; None when its slot may call the ROM directly.

    ``hide_nx``: CPUID is to show no NX (bit 20 of EDX for leaf 80000001h). Raises Refused for operands
    that nothing can stand for; such a site keeps its native instruction.
    """
    if site.inline:
        return inline(site.raw, tuple(sorted(site.dead)))
    if site.call is None:
        raise Refused("No VMI call stands for this instruction.")
    need = _Need(site.flags_live, site.direction, tuple(sorted(site.dead)), hide_nx)
    return _make(site.raw, site.form, site.call, need)


def refusal(site: Site) -> str:
    """Why no adaptor can be made for a site, as a sentence; empty when one can."""
    try:
        choose(site)
    except Refused as reason:
        return str(reason)
    return ""


def saves(site: Site) -> tuple[str, ...]:
    """Registers that the adaptor for a site with a call brings back when nothing is dead; EAX first.

    Raises Refused as `choose`.
    """
    if site.call is None or site.form in JUMP_OK:
        return ()
    if site.form in _ON_THE_STACK:
        return ("eax",)
    insn = Decoder(32, site.raw).decode()
    changed = set(site.call.clobbers)
    if site.form not in _STORES:
        changed = _spoiled(insn, shape_of(insn, site.form), site.call)
    return Saved.what(changed, False, False).registers


@dataclass(frozen=True, slots=True)
class _Need:
    """What a site's surroundings ask of its adaptor."""

    flags: bool
    direction: bool
    dead: tuple[str, ...]
    hide_nx: bool


@lru_cache(maxsize=4096)
def _make(raw: bytes, form: str, call: Call, need: _Need) -> Adaptor | None:
    if form in JUMP_OK:
        return None  # the call takes the instruction's own frame or registers, and doesn't come back
    if form in _ON_THE_STACK:
        return _ON_THE_STACK[form](need.flags, need.direction)
    if form == "cpuid" and need.hide_nx:
        return _cpuid_without_nx(Saved.what({"eax"}, need.flags, need.direction))
    insn = Decoder(32, raw).decode()
    if form in _STORES:
        saved = Saved.what(set(call.clobbers) - set(need.dead), need.flags, need.direction)
        return _STORES[form](insn, raw, saved)
    shape = shape_of(insn, form)
    if shape.upwards and need.direction:
        raise Refused("The direction flag may be set, and the call goes upwards only.")
    saved = Saved.what(_spoiled(insn, shape, call) - set(need.dead), need.flags, need.direction)
    if not (saved or shape.arguments or shape.destination is not None):
        return None
    return _standard(insn, shape, saved)


_ON_THE_STACK: dict[str, Callable[[bool, bool], Adaptor]] = {
    "pushf": adaptorstack.push_flags,
    "popf": adaptorstack.pop_flags,
    "pushfw": adaptorstack.push_flags_word,
    "popfw": adaptorstack.pop_flags_word,
}
_STORES: dict[str, Callable[[Instruction, bytes, Saved], Adaptor]] = {
    "set pte": lambda insn, _raw, saved: set_entry(insn, saved),
    "update pte": lambda insn, raw, saved: report_entry(insn, raw, saved, ENTRY),
    "update pte long": lambda insn, raw, saved: report_entry(insn, raw, saved, LONG_ENTRY),
}


def _spoiled(insn: Instruction, shape: Shape, call: Call) -> set[str]:
    """Registers that the call or our own code changes and the native instruction doesn't."""
    changed = set(call.clobbers) | {place for result in call.results for place in result.places}
    changed |= {register for register, _ in shape.arguments} | set(shape.lends)
    if _to_memory(insn, shape):
        changed |= {"eax", "ecx"}  # ECX is scratch for the address of the result
    return changed - set(shape.gives)


def _standard(insn: Instruction, shape: Shape, saved: Saved) -> Adaptor:
    writer = Writer()
    to_memory = _to_memory(insn, shape)
    saved.enter(writer, "eax" in shape.needs or _operand_reads_eax(insn, shape, to_memory))
    if to_memory:
        writer.address("eax", insn)
        writer.save("eax", "address")
    for register, source in shape.arguments:
        _argument(writer, insn, shape, register, source)
    writer.call()
    if to_memory:
        writer.restore("ecx")
        writer.store_word("ecx", insn)
    elif shape.destination is not None:
        name, size = register_of(insn, shape.destination)
        if shape.selector and size == 4:
            writer.widen("eax")
        writer.deliver(name, 2 if shape.word else size)
    elif "eax" in shape.gives:
        writer.deliver("eax", 4)
    saved.leave(writer)
    return writer.finish()


def _to_memory(insn: Instruction, shape: Shape) -> bool:
    return shape.destination is not None and is_memory(insn, shape.destination)


def _operand_reads_eax(insn: Instruction, shape: Shape, to_memory: bool) -> bool:
    if to_memory:
        return reads(insn, 0, "eax")
    spoken_of = any(isinstance(source, str) for _, source in shape.arguments)
    return spoken_of and reads(insn, shape.operand, "eax")


def _argument(writer: Writer, insn: Instruction, shape: Shape, register: str, source: str | int) -> None:
    if isinstance(source, int):
        writer.constant(register, source)
    elif source == ADDRESS:
        writer.address(register, insn)
    elif is_memory(insn, shape.operand):
        writer.load_word(register, insn)
    else:
        writer.move(register, register_of(insn, shape.operand)[0])
        if source == WORD:
            writer.widen(register)


def _cpuid_without_nx(saved: Saved) -> Adaptor:
    """CPUID whose leaf 80000001h doesn't promise NX: EDX loses bit 20 there.

    The leaf is in the place of EAX, which is saved in any case, and the result goes there after it.
    """
    writer = Writer()
    saved.enter(writer, needs_eax=True)
    writer.call()
    place = f"{writer.depth - writer.places['eax']:02x}"
    writer.raw(f"817c24{place}01000080")  # cmp dword [leaf], 0x80000001
    writer.raw(f"894424{place}")  # mov [leaf], eax
    writer.raw("0f94c0 0fb6c0")  # sete al; movzx eax, al
    writer.raw("c1e014 f7d0 21c2")  # shl eax, 20; not eax; and edx, eax
    saved.leave(writer)
    return writer.finish()
