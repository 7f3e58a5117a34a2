# SPDX-License-Identifier: GPL-2.0-only
"""How the operands of each form become the arguments and the result of its call.

Only what differs from the call's own convention is said here: an operand that is in the right register
already needs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from iced_x86 import Instruction, OpKind, Register

from vmi.patcher.adaptorcode import Refused, check_operand, is_memory, register_of, same

# Sources of arguments besides numbers.
ADDRESS = "address of the memory operand"
VALUE = "value of the operand"
WORD = "low 16 bits of the operand"

UNFLAT = "The operand is addressed through FS or GS, and the call takes a flat address."


@dataclass(frozen=True, slots=True)
class Shape:
    """How a form maps to its call, beyond operands that are already in the call's registers."""

    arguments: tuple[tuple[str, str | int], ...] = ()  # (register to set, source or number), in order
    operand: int = 0  # number of the operand that the sources speak of
    needs: tuple[str, ...] = ()  # registers that the call reads as the kernel left them
    gives: tuple[str, ...] = ()  # registers that the native instruction changes just as the call does
    destination: int | None = None  # number of the operand that gets the call's EAX
    selector: bool = False  # the result is 16 bits wide, zero-extended in a 32-bit register
    word: bool = False  # the result is 16 bits wide, and the rest of a register stays
    lends: tuple[str, ...] = ()  # registers that the call changes and the native instruction doesn't
    upwards: bool = False  # the call takes the direction flag as clear, the native instruction as it is


_FIXED = {
    "cpuid": Shape(needs=("eax", "ecx"), gives=("eax", "ebx", "ecx", "edx")),
    "wrmsr": Shape(needs=("eax", "ecx", "edx")),
    "rdmsr": Shape(needs=("ecx",), gives=("eax", "edx")),
    "rdpmc": Shape(needs=("ecx",), gives=("eax", "edx")),
    "rdtsc": Shape(gives=("eax", "edx")),
    "wbinvd": Shape(),
    "wbnoinvd": Shape(),
    "clts": Shape(),
    "cli": Shape(),
    "sti": Shape(),
    "sti;hlt": Shape(),
}
_STRINGS = ("insb", "insw", "insd", "outsb", "outsw", "outsd")


def shape_of(insn: Instruction, form: str) -> Shape:
    """The shape of a site's instruction; raises Refused for operands that no call can stand for."""
    name, _, operands = form.partition(" ")
    if form in _FIXED:
        return _FIXED[form]
    if name in _STRINGS:
        return _string_shape(insn, name)
    if name in ("in", "out"):
        return _port_shape(insn, name)
    if is_memory(insn, 0):
        if operands == "m":
            check_flat(insn)
        check_operand(insn)
    if operands == "m":
        return Shape(arguments=(("eax", ADDRESS),))
    if name in ("lldt", "ltr"):
        return Shape(arguments=(("eax", WORD),))
    if name in ("sldt", "str"):
        return _result_shape(insn, selector=True)
    if form == "mov r,dr":
        number = int(insn.op1_register) - Register.DR0
        return _result_shape(insn, arguments=(("eax", number),))
    if form == "mov dr,r":
        number = int(insn.op0_register) - Register.DR0
        return Shape(arguments=(("edx", VALUE), ("eax", number)), operand=1)
    if form.startswith("mov r,cr"):
        return _result_shape(insn)
    if form == "smsw rm":
        return replace(_result_shape(insn), gives=(), word=True)  # what it does to a high half is undefined
    if form.startswith("mov cr"):
        return Shape(arguments=(("eax", VALUE),), operand=1)
    raise Refused(f"No adaptor is known for the form {form!r}.")


def check_flat(insn: Instruction) -> None:
    """Raise Refused for an operand whose offset isn't its linear address."""
    if insn.segment_prefix in (Register.FS, Register.GS):
        raise Refused(UNFLAT)


def _port_shape(insn: Instruction, name: str) -> Shape:
    """IN keeps the part of EAX that it doesn't read into, and so do the calls."""
    immediate = [n for n in (0, 1) if same(insn.op_kind(n), OpKind.IMMEDIATE8)]
    arguments = tuple(("edx", insn.immediate(n)) for n in immediate)
    needs = ("eax",) if immediate else ("eax", "edx")
    return Shape(arguments=arguments, needs=needs, gives=("eax",) if name == "in" else ())


def _string_shape(insn: Instruction, name: str) -> Shape:
    index = "edi" if name.startswith("ins") else "esi"
    if index == "esi" and insn.segment_prefix in (Register.FS, Register.GS):
        raise Refused("The buffer is addressed through FS or GS, and the call takes a flat address.")
    if insn.has_rep_prefix or insn.has_repne_prefix:
        return Shape(needs=("edx", "ecx", index), gives=("ecx", index), upwards=True)
    return Shape(arguments=(("ecx", 1),), needs=("edx", index), gives=(index,), lends=("ecx",), upwards=True)


def _result_shape(
    insn: Instruction, arguments: tuple[tuple[str, str | int], ...] = (), selector: bool = False
) -> Shape:
    """A call whose EAX goes to the instruction's first operand."""
    if is_memory(insn, 0):
        return Shape(arguments, destination=0, selector=selector)
    name, size = register_of(insn, 0)
    if name == "esp":
        raise Refused("The result goes to the stack pointer.")
    return Shape(arguments, gives=(name,) if size == 4 else (), destination=0, selector=selector)
