# SPDX-License-Identifier: GPL-2.0-only
"""Adaptors for stores to page-table entries: SetPxE instead of the store, or a report after it.

A plain store of a whole 4-byte entry becomes SetPxE. Whatever else changes an entry (XCHG, LOCK BTR,
half of an 8-byte entry) is executed as it is, then UpdatePxE or UpdatePxELong says where.

The flags argument says PT: a level is only a hint there, every ROM has to take PT for an entry of any
level, and which one it is can't be seen in a store. CURRENT_AS and DEFER would be promises, and nobody
here knows whether they hold.
"""

from __future__ import annotations

from iced_x86 import (
    Instruction,
    InstructionInfoFactory,
    MemorySizeExt,
    Mnemonic,
    OpAccess,
    OpKind,
    Register,
    RegisterExt,
)

from vmi.abi import UpdateFlag
from vmi.patcher.adaptorcode import (
    Adaptor,
    Refused,
    Saved,
    Writer,
    check_operand,
    is_memory,
    reads,
    register_of,
    same,
)
from vmi.patcher.adaptorshapes import check_flat
from vmi.patcher.forms import PLAIN_STORES

FLAGS = int(UpdateFlag.PT)
ENTRY, LONG_ENTRY = 4, 8  # bytes
_WRITES = (OpAccess.WRITE, OpAccess.READ_WRITE, OpAccess.COND_WRITE, OpAccess.READ_COND_WRITE)
_BIT_STRINGS = (Mnemonic.BTS, Mnemonic.BTR, Mnemonic.BTC)


def set_entry(insn: Instruction, saved: Saved) -> Adaptor:
    """SetPxE(EAX value, EDX address, ECX flags) instead of a plain 32-bit store."""
    _check(insn, ENTRY)
    if insn.code not in PLAIN_STORES:
        raise Refused("It is no plain 32-bit store, so a report after it is the call to use.")
    value = register_of(insn, 1)[0] if same(insn.op1_kind, OpKind.REGISTER) else ""
    crossed = reads(insn, 0, "eax")  # the address needs what the value's place is
    writer = Writer()
    saved.enter(writer, needs_eax=crossed or value == "eax")
    if value == "edx" and crossed:
        writer.address("eax", insn)
        writer.raw("92")  # xchg eax, edx
    elif value == "edx":
        writer.move("eax", "edx")
        writer.address("edx", insn)
    else:
        writer.address("edx", insn)
        if value:
            writer.move("eax", value)
        else:
            writer.constant("eax", insn.immediate32)
    writer.constant("ecx", FLAGS)
    writer.call()
    saved.leave(writer)
    return writer.finish()


def report_entry(insn: Instruction, raw: bytes, saved: Saved, entry: int) -> Adaptor:
    """The store itself, then UpdatePxE or UpdatePxELong(EAX address, EDX flags).

    ``entry``: size of an entry in bytes, 4 or 8.
    """
    size = _check(insn, entry)
    if any(_is_esp(insn, n) for n in range(1, insn.op_count)):
        raise Refused("The value is the stack pointer, which is another one in an adaptor.")
    writer = Writer()
    early = _changes_its_address(insn)
    if early:
        writer.raw("50")  # push eax    a place for the address
        writer.depth += 4
        writer.places["address"] = writer.depth
        writer.save("eax")
        writer.address("eax", insn)
        writer.keep("eax", "address")
        writer.restore("eax")
    if same(insn.memory_base, Register.ESP):
        writer.put(_lowered(insn, writer.depth))
    else:
        writer.code += raw
    saved.enter(writer, needs_eax=not early and reads(insn, 0, "eax"))
    if early:
        writer.load("eax", "address")
    else:
        writer.address("eax", insn)
    if size < entry:
        writer.raw(f"24{-entry & 0xFF:02x}")  # and al, -entry      the entry that holds the bytes
    writer.constant("edx", FLAGS)
    writer.call()
    saved.leave(writer)
    if early:
        writer.raw("8d642404")  # lea esp, [esp+4]
    return writer.finish()


def _check(insn: Instruction, entry: int) -> int:
    """The number of bytes stored; raises Refused when it isn't one store to one entry."""
    if insn.op_count == 0 or not is_memory(insn, 0):
        raise Refused("It stores through no operand whose address can be given to the call.")
    check_flat(insn)
    check_operand(insn)
    if insn.stack_pointer_increment:
        raise Refused("It moves the stack pointer.")
    if insn.mnemonic in _BIT_STRINGS and same(insn.op1_kind, OpKind.REGISTER):
        raise Refused("The number of the bit is in a register, so it may be in another entry.")
    size = MemorySizeExt.size(insn.memory_size)
    if not 0 < size <= entry:
        raise Refused(f"It stores {size} bytes, and an entry has {entry}.")
    return size


def _is_esp(insn: Instruction, operand: int) -> bool:
    if not same(insn.op_kind(operand), OpKind.REGISTER):
        return False
    return same(RegisterExt.full_register32(insn.op_register(operand)), Register.ESP)


def _changes_its_address(insn: Instruction) -> bool:
    """True when the instruction writes a register that its memory operand is addressed with."""
    address = {RegisterExt.full_register32(r) for r in (insn.memory_base, insn.memory_index)}
    return any(
        RegisterExt.full_register32(used.register) in address and used.access in _WRITES
        for used in InstructionInfoFactory().info(insn).used_registers()
    )


def _lowered(insn: Instruction, depth: int) -> Instruction:
    """The instruction with its operand relative to an ESP that is ``depth`` lower."""
    copy = insn.copy()
    copy.memory_displacement = insn.memory_displacement + depth
    copy.memory_displ_size = 1 if copy.memory_displacement < 128 else 4
    return copy
