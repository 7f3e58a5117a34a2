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

from iced_x86 import Decoder, Instruction, OpKind, Register

from vmi.abi import Call
from vmi.patcher.adaptorcode import LOW_WORD, Adaptor, Refused, Writer, is_memory, reads, register_of, same
from vmi.patcher.adaptorinline import inline
from vmi.patcher.model import Site

_SAVED_ORDER = ("eax", "ecx", "edx", "ebx")  # EAX first, so that the flags can follow it

NOP_OK = frozenset(
    (
        "wrmsr", "lgdt m", "lldt rm", "lidt m", "ltr rm", "mov cr0,r", "mov cr2,r", "mov cr3,r", "mov cr4,r",
        "wbinvd", "mov dr,r", "clts", "sti", "cli", "invlpg m", "out eax", "out al", "out ax",
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
    return _make(site.raw, site.form, site.call, site.flags_live, tuple(sorted(site.dead)), hide_nx)


def refusal(site: Site) -> str:
    """Why no adaptor can be made for a site, as a sentence; empty when one can."""
    try:
        choose(site)
    except Refused as reason:
        return str(reason)
    return ""


@lru_cache(maxsize=4096)
def _make(
    raw: bytes, form: str, call: Call, flags_live: bool, dead: tuple[str, ...], hide_nx: bool
) -> Adaptor | None:
    if form == "cpuid" and hide_nx:
        return _cpuid_without_nx(flags_live)
    if form in _SPECIAL:
        return _SPECIAL[form](flags_live)
    insn = Decoder(32, raw).decode()
    shape = _shape(insn, form)
    saved = _must_save(insn, shape, call, dead)
    if not (saved or flags_live or shape.arguments or shape.destination is not None):
        return None
    return _standard(insn, shape, saved, flags_live)


# --- what each form needs -----------------------------------------------------------------------

# Sources of arguments besides numbers.
_ADDRESS = "address of the memory operand"
_VALUE = "value of the operand"
_WORD = "low 16 bits of the operand"


@dataclass(frozen=True, slots=True)
class _Shape:
    """How a form maps to its call, beyond operands that are already in the call's registers."""

    arguments: tuple[tuple[str, str | int], ...] = ()  # (register to set, source or number), in order
    operand: int = 0  # number of the operand that the sources speak of
    needs: tuple[str, ...] = ()  # registers that the call reads as the kernel left them
    gives: tuple[str, ...] = ()  # registers that the native instruction changes just as the call does
    destination: int | None = None  # number of the operand that gets the call's EAX
    selector: bool = False  # the result is 16 bits wide, zero-extended in a 32-bit register
    lends: tuple[str, ...] = ()  # registers that the call changes and the native instruction doesn't


_FIXED = {
    "cpuid": _Shape(needs=("eax", "ecx"), gives=("eax", "ebx", "ecx", "edx")),
    "wrmsr": _Shape(needs=("eax", "ecx", "edx")),
    "rdmsr": _Shape(needs=("ecx",), gives=("eax", "edx")),
    "rdpmc": _Shape(needs=("ecx",), gives=("eax", "edx")),
    "rdtsc": _Shape(gives=("eax", "edx")),
    "wbinvd": _Shape(),
    "clts": _Shape(),
    "cli": _Shape(),
    "sti": _Shape(),
    "sti;hlt": _Shape(),
}
_STRINGS = ("insb", "insw", "insd", "outsb", "outsw", "outsd")


def _shape(insn: Instruction, form: str) -> _Shape:
    name, _, operands = form.partition(" ")
    if form in _FIXED:
        return _FIXED[form]
    if name in _STRINGS:
        return _string_shape(insn, name)
    if name in ("in", "out"):
        return _port_shape(insn, name, operands)
    if is_memory(insn, 0):
        _check_memory(insn, by_address=operands == "m")
    if operands == "m":
        return _Shape(arguments=(("eax", _ADDRESS),))
    if name in ("lldt", "ltr"):
        return _Shape(arguments=(("eax", _WORD),))
    if name in ("sldt", "str"):
        return _result_shape(insn, selector=True)
    if form == "mov r,dr":
        number = int(insn.op1_register) - Register.DR0
        return _result_shape(insn, arguments=(("eax", number),))
    if form == "mov dr,r":
        number = int(insn.op0_register) - Register.DR0
        return _Shape(arguments=(("edx", _VALUE), ("eax", number)), operand=1)
    if form.startswith("mov r,cr"):
        return _result_shape(insn)
    if form.startswith("mov cr"):
        return _Shape(arguments=(("eax", _VALUE),), operand=1)
    raise Refused(f"No adaptor is known for the form {form!r}.")


def _port_shape(insn: Instruction, name: str, part: str) -> _Shape:
    immediate = [n for n in (0, 1) if same(insn.op_kind(n), OpKind.IMMEDIATE8)]
    arguments = tuple(("edx", insn.immediate(n)) for n in immediate)
    needs = () if immediate else ("edx",)
    if name == "out":
        return _Shape(arguments=arguments, needs=("eax", *needs))
    if part == "eax":
        return _Shape(arguments=arguments, needs=needs, gives=("eax",))
    return _Shape(arguments=arguments, needs=needs, destination=0)


def _string_shape(insn: Instruction, name: str) -> _Shape:
    index = "edi" if name.startswith("ins") else "esi"
    if index == "esi" and _unflat(insn):
        raise Refused("The buffer is addressed through FS or GS, and the call takes a flat address.")
    if insn.has_rep_prefix or insn.has_repne_prefix:
        return _Shape(needs=("edx", "ecx", index), gives=("ecx", index))
    return _Shape(arguments=(("ecx", 1),), needs=("edx", index), gives=(index,), lends=("ecx",))


def _unflat(insn: Instruction) -> bool:
    return insn.segment_prefix in (Register.FS, Register.GS)


def _check_memory(insn: Instruction, by_address: bool) -> None:
    if by_address and _unflat(insn):
        raise Refused("The operand is addressed through FS or GS, and the call takes a flat address.")
    short = LOW_WORD.values()
    if insn.memory_base in short or insn.memory_index in short or insn.memory_displ_size == 2:
        raise Refused("The operand has a 16-bit address.")
    if same(insn.memory_base, Register.ESP) and insn.memory_displacement & 0x80000000:
        raise Refused("The operand lies below the stack pointer, where the call's own frame goes.")


def _result_shape(
    insn: Instruction, arguments: tuple[tuple[str, str | int], ...] = (), selector: bool = False
) -> _Shape:
    """A call whose EAX goes to the instruction's first operand."""
    if is_memory(insn, 0):
        return _Shape(arguments, destination=0, selector=selector)
    name, size = register_of(insn, 0)
    if name == "esp":
        raise Refused("The result goes to the stack pointer.")
    return _Shape(arguments, gives=(name,) if size == 4 else (), destination=0, selector=selector)


def _must_save(insn: Instruction, shape: _Shape, call: Call, dead: tuple[str, ...]) -> tuple[str, ...]:
    """Registers that the call or our own code changes, the native instruction doesn't, the kernel needs."""
    changed = set(call.clobbers) | {place for result in call.results for place in result.places}
    changed |= {register for register, _ in shape.arguments} | set(shape.lends)
    if _to_memory(insn, shape):
        changed |= {"eax", "ecx"}  # ECX is scratch for the address of the result
    kept = changed - set(shape.gives) - set(dead)
    return tuple(register for register in _SAVED_ORDER if register in kept)


# --- the standard adaptor -----------------------------------------------------------------------


def _standard(insn: Instruction, shape: _Shape, saved: tuple[str, ...], flags_live: bool) -> Adaptor:
    writer = Writer()
    if flags_live and "eax" not in saved:
        saved = ("eax", *saved)  # the flags travel in EAX, so its value needs a place
    to_memory = _to_memory(insn, shape)
    for register in saved:
        writer.save(register)
        if register == "eax" and flags_live:
            writer.raw("9f 0f90c0")  # lahf; seto al
            writer.save("eax", "flags")
            if "eax" in shape.needs or _operand_reads_eax(insn, shape, to_memory):
                writer.load("eax", "eax")
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
        writer.deliver(name, size)
    elif "eax" in shape.gives:
        writer.deliver("eax", 4)
    for register in reversed(saved):
        if register == "eax" and flags_live:
            writer.restore("eax")
            writer.raw("047f 9e")  # add al,0x7f; sahf
        writer.restore(register)
    return writer.finish()


def _to_memory(insn: Instruction, shape: _Shape) -> bool:
    return shape.destination is not None and is_memory(insn, shape.destination)


def _operand_reads_eax(insn: Instruction, shape: _Shape, to_memory: bool) -> bool:
    if to_memory:
        return reads(insn, 0, "eax")
    spoken_of = any(isinstance(source, str) for _, source in shape.arguments)
    return spoken_of and reads(insn, shape.operand, "eax")


def _argument(writer: Writer, insn: Instruction, shape: _Shape, register: str, source: str | int) -> None:
    if isinstance(source, int):
        writer.constant(register, source)
    elif source == _ADDRESS:
        writer.address(register, insn)
    elif is_memory(insn, shape.operand):
        writer.load_word(register, insn)
    else:
        writer.move(register, register_of(insn, shape.operand)[0])
        if source == _WORD:
            writer.widen(register)


def _cpuid_without_nx(flags_live: bool) -> Adaptor:
    """CPUID whose leaf 80000001h doesn't promise NX: EDX loses bit 20 there."""
    writer = Writer()
    writer.raw("50")  # push eax               the leaf
    if flags_live:
        writer.raw("9f 0f90c0 50")  # lahf; seto al; push eax
        writer.raw("8b442404")  # mov eax, [esp+4]
    writer.call()
    leaf = "04" if flags_live else "00"
    writer.raw(f"817c24{leaf}01000080")  # cmp dword [leaf], 0x80000001
    writer.raw(f"894424{leaf}")  # mov [leaf], eax       the result
    writer.raw("0f94c0 0fb6c0")  # sete al; movzx eax, al
    writer.raw("c1e014 f7d0 21c2")  # shl eax, 20; not eax; and edx, eax
    if flags_live:
        writer.raw("58 047f 9e")  # pop eax; add al, 0x7f; sahf
    writer.raw("58")  # pop eax
    return writer.finish()


# --- instructions that work on the stack --------------------------------------------------------


def _pushf(flags_live: bool) -> Adaptor:
    """Push the real EFLAGS with IF replaced by the answer of GetInterruptMask.

    The image goes where the return address was, and the return address one word lower. The image's
    copy brings the flags back at the end; it can't change IF, which the call before it only read.
    """
    writer = Writer()
    writer.raw("ff3424")  # push dword [esp]      the return address again
    writer.raw("9c")  # pushfd
    writer.raw("50")  # push eax
    writer.call()  # eax = IF
    writer.raw("2500020000")  # and eax, 0x200
    writer.raw("8944240c")  # mov [esp+12], eax   where the image belongs
    writer.raw("8b442404")  # mov eax, [esp+4]    the real flags
    writer.raw("25fffdffff")  # and eax, ~0x200
    writer.raw("0944240c")  # or [esp+12], eax
    writer.raw("58")  # pop eax
    writer.raw("9d" if flags_live else "8d642404")  # popfd, or lea esp, [esp+4]
    return writer.finish()


def _popf(_flags_live: bool) -> Adaptor:
    """SetInterruptMask from the image on the stack, then a real popfd for all the other flags.

    At CPL 0 the real popfd sets IF to the same value again; at CPL 1 it can't touch IF.
    """
    writer = Writer()
    writer.raw("50")  # push eax
    writer.raw("8b442408")  # mov eax, [esp+8]    the image
    writer.call()
    writer.raw("58")  # pop eax
    writer.raw("ff742404")  # push dword [esp+4]
    writer.raw("9d")  # popfd
    return writer.finish("c20400")  # ret 4: the image goes too


def _direct(_flags_live: bool) -> None:
    """The call consumes the instruction's own frame or registers and doesn't come back."""
    return None


_SPECIAL: dict[str, Callable[[bool], Adaptor | None]] = {
    "pushf": _pushf,
    "popf": _popf,
    "iret": _direct,
    "sysexit": _direct,
}
