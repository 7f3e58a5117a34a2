# SPDX-License-Identifier: GPL-2.0-only
"""What a ROM's code does to registers and stack, on every way from an entry to a return, without running it.

Only certainties are kept: a register is *changed* where it got a value of the code's own, as it was where it
was never touched or came back from where the code had saved it, and unknown otherwise, as behind a load from
memory or a call-out. Branches may go both ways, whatever was asked before. Routines that are called are
gone through each time; where an address is computed, a way ends undecided.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from iced_x86 import (
    FlowControl,
    Instruction,
    InstructionInfoFactory,
    Mnemonic,
    OpAccess,
    OpKind,
    Register,
    RegisterExt,
)

from vmi.rom import flow
from vmi.rom.operands import SEGMENTS
from vmi.x86 import GPR32

_MOST, _DEEPEST = 1000, 64  # states of one entry, words of its stack; code that has more is left undecided
_WRITES = (OpAccess.WRITE, OpAccess.READ_WRITE, OpAccess.COND_WRITE, OpAccess.READ_COND_WRITE)
_BY_NUMBER: dict[int, str] = {getattr(Register, name.upper()): name for name in (*GPR32, *SEGMENTS)}
_AGAIN = "by an instruction that can be undone by another"
_UNDONE = {
    *(Mnemonic.ADD, Mnemonic.SUB, Mnemonic.INC, Mnemonic.DEC, Mnemonic.NEG, Mnemonic.NOT, Mnemonic.XOR),
    *(Mnemonic.ROL, Mnemonic.ROR, Mnemonic.BSWAP, Mnemonic.XCHG, Mnemonic.LEA, Mnemonic.XADD),
}
#: They may load what was put aside.
_LOADS = {
    *(Mnemonic.POP, Mnemonic.MOVD, Mnemonic.MOVQ, Mnemonic.CMPXCHG, Mnemonic.LODSB, Mnemonic.LODSW),
    *(Mnemonic.LODSD, Mnemonic.LDS, Mnemonic.LES, Mnemonic.LSS, Mnemonic.LFS, Mnemonic.LGS),
    *(Mnemonic.CMOVE, Mnemonic.CMOVNE, Mnemonic.CMOVA, Mnemonic.CMOVAE, Mnemonic.CMOVB, Mnemonic.CMOVBE),
    *(Mnemonic.CMOVG, Mnemonic.CMOVGE, Mnemonic.CMOVL, Mnemonic.CMOVLE, Mnemonic.CMOVS, Mnemonic.CMOVNS),
}
_FACTORY = InstructionInfoFactory()


@dataclass(frozen=True)
class Value:
    """What is known of a register or a word of the stack.

    :ivar kind: ``was`` at the entry in the register ``name``; ``changed`` by the instruction at ``number``;
        ``stack``, ``number`` bytes above ESP at the entry; ``rom``, an address that was made from where the
        code runs; ``back``, where a routine of the code's own returns to, ``number``; ``return``, where the
        entry returns to; or ``unknown``.
    """

    kind: str
    name: str = ""
    number: int = 0


UNKNOWN = Value("unknown")
_RETURN = Value("return")


@dataclass(frozen=True)
class Return:
    """A way's return.

    :ivar at: offset of the instruction.
    :ivar registers: general and segment registers, by name; ``df`` is the direction flag.
    :ivar off: bytes that ESP is off the return address; None if nobody knows.
    :ivar pops: bytes of arguments that the return takes off.
    """

    at: int
    registers: dict[str, Value]
    off: int | None
    pops: int


@dataclass(frozen=True)
class Ways:
    """All ways from one entry.

    :ivar ends: ways that end otherwise than by a return: for user code, at an address that is computed, in
        the middle of nowhere.
    :ivar stores: offsets of instructions that store to where the code itself lies.
    :ivar whole: every way was gone.
    """

    returns: tuple[Return, ...]
    ends: int
    stores: tuple[int, ...]
    whole: bool


@dataclass(frozen=True)
class _State:
    at: int
    registers: tuple[tuple[str, Value], ...]
    stack: tuple[tuple[int, Value], ...]

    def __getitem__(self, name: str) -> Value:
        return dict(self.registers)[name]

    def having(self, **values: Value) -> _State:
        """With other values of registers."""
        return replace(self, registers=tuple({**dict(self.registers), **values}.items()))

    def word(self, place: int) -> Value:
        """A word of the stack; what the caller has put there nobody knows."""
        return dict(self.stack).get(place, UNKNOWN)

    def storing(self, place: int, value: Value | None) -> _State:
        """With another word of the stack; None leaves it out."""
        words = {at: old for at, old in self.stack if abs(at - place) >= 4}
        if value is not None:
            words[place] = value
        return replace(self, stack=tuple(sorted(words.items())))

    @property
    def depth(self) -> int | None:
        """ESP, from what it was at the entry."""
        esp = self["esp"]
        return esp.number if esp.kind == "stack" else None


def go(image: bytes, entry: int) -> Ways:
    """All ways from an offset of the image on, which is entered by a call."""
    registers = {name: Value("was", name) for name in (*GPR32, *SEGMENTS, "df")}
    first = _State(entry, tuple({**registers, "esp": Value("stack")}.items()), ((0, _RETURN),))
    waiting = [first]
    seen: set[_State] = set()
    returns: list[Return] = []
    stores: set[int] = set()
    ends = 0
    while waiting and len(seen) < _MOST and len(waiting[-1].stack) <= _DEEPEST:
        state = waiting.pop()
        if state in seen:
            continue
        seen.add(state)
        instruction = flow.decode(image, state.at) if 0 <= state.at < len(image) else Instruction()
        if instruction.is_invalid or instruction.mnemonic == Mnemonic.INT3:
            ends += 1
            continue
        if _stores_here(state, instruction):
            stores.add(state.at)
        if instruction.mnemonic == Mnemonic.RET:
            after = _return(state, instruction)
            if isinstance(after, Return):
                returns.append(after)
            elif after is None:
                ends += 1
            else:
                waiting.append(after)
            continue
        after = _step(state, instruction)
        following = [replace(after, at=at) for at in flow.successors(instruction, len(image))]
        if instruction.is_call_near:
            following = [replace(after, at=flow.branch_target(instruction) or 0)]
        waiting += following
        ends += not following
    return Ways(tuple(returns), ends, tuple(sorted(stores)), not waiting)


def _return(state: _State, instruction: Instruction) -> Return | _State | None:
    """The end of the way, or where a routine of the code's own goes back to; None: nobody knows."""
    depth = state.depth
    pops = instruction.immediate16 if instruction.op_count else 0
    target = UNKNOWN if depth is None else state.word(depth)
    if depth is not None and target.kind == "back":
        return replace(state.having(esp=Value("stack", number=depth + 4 + pops)), at=target.number)
    if depth is not None and dict(state.stack).get(depth, _RETURN) != _RETURN:
        return None  # a jump to what was pushed
    return Return(state.at, dict(state.registers), depth, pops)


def _stores_here(state: _State, instruction: Instruction) -> bool:
    """It stores to an address that was made from where the code runs."""
    return any(
        used.access in _WRITES
        and any(
            _BY_NUMBER.get(register) and state[_BY_NUMBER[register]].kind == "rom"
            for register in (used.base, used.index)
        )
        for used in _FACTORY.info(instruction).used_memory()
    )


def _step(state: _State, i: Instruction) -> _State:
    """The state behind an instruction, wherever it goes on."""
    if _does_nothing(i):
        return state
    special = _STEPS.get(i.mnemonic)
    if special is not None:
        done = special(state, i)
        if done is not None:
            return done
    if i.flow_control == FlowControl.INTERRUPT:  # a call-out; what it saves is the hypervisor's to keep
        return state.having(eax=UNKNOWN, ecx=UNKNOWN, edx=UNKNOWN)
    values = {
        name: _written(state[name], i, used.access)
        for used in _FACTORY.info(i).used_registers()
        if used.access in _WRITES and (name := _whole(used.register))
    }
    depth = state.depth
    if "esp" in values:
        increment = i.stack_pointer_increment
        known = depth is not None and i.is_stack_instruction
        values["esp"] = Value("stack", number=(depth or 0) + increment) if known else UNKNOWN
        if known and increment < 0:
            words = [(at, word) for at, word in state.stack if not increment <= at - (depth or 0) < 0]
            state = replace(state, stack=tuple(words))
    return _stored(state.having(**values), i)


def _does_nothing(i: Instruction) -> bool:
    """What compilers and assemblers fill up with."""
    if i.mnemonic == Mnemonic.LEA:
        base: Any = i.memory_base
        index: Any = i.memory_index
        alone = base == i.op0_register and index == Register.NONE
        once = base == Register.NONE and index == i.op0_register and i.memory_index_scale == 1
        return i.memory_displacement == 0 and (alone or once)
    if i.mnemonic in (Mnemonic.OR, Mnemonic.AND) and i.op0_kind == i.op1_kind == OpKind.REGISTER:
        return i.op0_register == i.op1_register
    if (
        i.mnemonic in (Mnemonic.ADD, Mnemonic.SUB, Mnemonic.OR, Mnemonic.XOR)
        and i.op0_kind == OpKind.REGISTER
    ):
        return i.op1_kind not in (OpKind.REGISTER, OpKind.MEMORY) and i.immediate(1) == 0
    return False


def _written(old: Value, i: Instruction, access: int) -> Value:
    """What an instruction with no step of its own leaves in a register."""
    copies = i.mnemonic == Mnemonic.MOV and not OpKind.IMMEDIATE8 <= i.op1_kind <= OpKind.IMMEDIATE32TO64
    if copies or i.mnemonic in _LOADS:
        return UNKNOWN  # it may bring back what was put aside
    again = access == OpAccess.READ_WRITE and i.mnemonic in _UNDONE
    if again and old.kind == "changed" and old.name == _AGAIN:
        return UNKNOWN  # the second time it may undo the first
    return Value("changed", _AGAIN if again else "", i.ip32)


def _stored(state: _State, i: Instruction) -> _State:
    """Behind a store, words of the stack that it may have been to are unknown."""
    for used in _FACTORY.info(i).used_memory():
        if used.access in _WRITES and not i.is_stack_instruction:
            place = _place(state, used.base, used.index, used.displacement)
            if place is not None:
                state = state.storing(place, UNKNOWN)
    return state


def _whole(register: Any) -> str:
    """The general or segment register that a register is part of; "" if it is of none."""
    return _BY_NUMBER.get(RegisterExt.full_register32(register), "")


def _place(state: _State, base: int, index: int, displacement: int) -> int | None:
    """Where on the stack an operand is, from ESP at the entry; None if nobody knows."""
    name = _BY_NUMBER.get(base)
    if not name or index != Register.NONE or state[name].kind != "stack":
        return None
    displacement &= 0xFFFF_FFFF
    return state[name].number + (displacement - (displacement >> 31 << 32))


def _operand(state: _State, i: Instruction, number: int) -> Value | None:
    """The value of a 32-bit register, a segment register or a word of the stack; None of anything else."""
    kind = i.op_kind(number)
    if kind == OpKind.REGISTER:
        name = _BY_NUMBER.get(i.op_register(number))
        return state[name] if name else None
    if kind == OpKind.MEMORY:
        place = _place(state, i.memory_base, i.memory_index, i.memory_displacement)
        return UNKNOWN if place is None else state.word(place)
    return None


def _push(state: _State, i: Instruction) -> _State | None:
    depth = state.depth
    if depth is None or i.stack_pointer_increment != -4:
        return None
    value = _operand(state, i, 0) or Value("changed", number=i.ip32)
    return state.having(esp=Value("stack", number=depth - 4)).storing(depth - 4, value)


def _pop(state: _State, i: Instruction) -> _State | None:
    depth = state.depth
    if depth is None or i.stack_pointer_increment != 4:
        return None
    value, state = state.word(depth), state.having(esp=Value("stack", number=depth + 4))
    if value.kind == "back":
        value = Value("rom")
    return _put(state, i, value)


def _put(state: _State, i: Instruction, value: Value) -> _State | None:
    """With the first operand another value."""
    if i.op0_kind == OpKind.REGISTER:
        name = _BY_NUMBER.get(i.op0_register)
        if not name and value.kind == "was" and value.name in SEGMENTS:
            name = _whole(i.op0_register)  # the lower half of a register holds all of a selector
        return state.having(**{name: value}) if name else None
    place = _place(state, i.memory_base, i.memory_index, i.memory_displacement)
    return state if place is None else state.storing(place, value)


def _mov(state: _State, i: Instruction) -> _State | None:
    value = _operand(state, i, 1)
    if value is None and i.op1_kind == OpKind.REGISTER and _BY_NUMBER.get(i.op0_register) in SEGMENTS:
        value = state[_whole(i.op1_register)]
    if value is not None and value.kind == "changed":
        value = Value("changed", value.name, i.ip32)
    if value is None and i.op0_kind == OpKind.MEMORY:
        value = UNKNOWN
    return None if value is None else _put(state, i, value)


def _add(state: _State, i: Instruction) -> _State | None:
    """ADD and SUB of a number, to addresses."""
    value = _operand(state, i, 0) if i.op0_kind == OpKind.REGISTER else None
    if value is None or value.kind not in ("stack", "rom"):
        return None
    if value.kind == "rom":
        return state
    if i.op1_kind not in (OpKind.IMMEDIATE8TO32, OpKind.IMMEDIATE32):
        return None
    amount = i.immediate(1) & 0xFFFF_FFFF
    amount -= amount >> 31 << 32
    return _put(
        state, i, Value("stack", number=value.number + (amount if i.mnemonic == Mnemonic.ADD else -amount))
    )


def _lea(state: _State, i: Instruction) -> _State | None:
    place = _place(state, i.memory_base, i.memory_index, i.memory_displacement)
    if place is not None:
        return _put(state, i, Value("stack", number=place))
    bases = [_BY_NUMBER.get(register) for register in (i.memory_base, i.memory_index)]
    return _put(state, i, Value("rom")) if any(b and state[b].kind == "rom" for b in bases) else None


def _xchg(state: _State, i: Instruction) -> _State | None:
    one, other = _operand(state, i, 0), _operand(state, i, 1)
    if one is None or other is None or i.op1_kind != OpKind.REGISTER:
        return None
    done = _put(state, i, other)
    name = _BY_NUMBER.get(i.op1_register)
    return done.having(**{name: one}) if done is not None and name else None


def _call(state: _State, i: Instruction) -> _State | None:
    depth = state.depth
    if depth is None or not i.is_call_near:
        return None
    back = Value("back", number=i.next_ip32)
    return state.having(esp=Value("stack", number=depth - 4)).storing(depth - 4, back)


def _leave(state: _State, i: Instruction) -> _State | None:
    frame = state["ebp"]
    if frame.kind != "stack":
        return None
    return state.having(esp=Value("stack", number=frame.number + 4), ebp=state.word(frame.number))


def _pushad(state: _State, i: Instruction) -> _State | None:
    depth = state.depth
    if depth is None:
        return None
    for number, name in enumerate(GPR32):
        state = state.storing(depth - 4 * (number + 1), state[name])
    return state.having(esp=Value("stack", number=depth - 32))


def _popad(state: _State, i: Instruction) -> _State | None:
    depth = state.depth
    if depth is None:
        return None
    places = {name: depth + 28 - 4 * number for number, name in enumerate(GPR32)}
    values = {name: state.word(place) for name, place in places.items() if name != "esp"}
    return state.having(esp=Value("stack", number=depth + 32), **values)


def _pushfd(state: _State, i: Instruction) -> _State | None:
    depth = state.depth
    if depth is None:
        return None
    return state.having(esp=Value("stack", number=depth - 4)).storing(depth - 4, state["df"])


def _popfd(state: _State, i: Instruction) -> _State | None:
    depth = state.depth
    if depth is None:
        return None
    value = state.word(depth)
    known = value.kind in ("was", "changed") and value.name == "df"
    return state.having(esp=Value("stack", number=depth + 4), df=value if known else UNKNOWN)


_STEPS: dict[int, Callable[[_State, Instruction], _State | None]] = {
    Mnemonic.PUSH: _push,
    Mnemonic.POP: _pop,
    Mnemonic.MOV: _mov,
    Mnemonic.ADD: _add,
    Mnemonic.SUB: _add,
    Mnemonic.LEA: _lea,
    Mnemonic.XCHG: _xchg,
    Mnemonic.CALL: _call,
    Mnemonic.LEAVE: _leave,
    Mnemonic.PUSHAD: _pushad,
    Mnemonic.POPAD: _popad,
    Mnemonic.PUSHFD: _pushfd,
    Mnemonic.POPFD: _popfd,
    Mnemonic.STD: lambda state, i: state.having(df=Value("changed", "df", i.ip32)),
    Mnemonic.CLD: lambda state, i: state.having(df=Value("was", "df")),
}
