# SPDX-License-Identifier: GPL-2.0-only
"""What may still be read after a site: the arithmetic flags, and EAX, ECX, EDX.

A VMI call leaves the arithmetic flags undefined, the native instruction keeps them, so an adaptor saves
them unless they are dead. The search follows control forward and takes everything it can't follow as a
reader. The one assumption is the i386 calling convention: flags don't survive a return or an indirect call.
It is checked against the kernel itself: where code after a call reads flags before writing them, the called
function's returns count as readers.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from iced_x86 import (
    Decoder,
    Instruction,
    InstructionInfoFactory,
    Mnemonic,
    OpAccess,
    OpKind,
    Register,
    RegisterExt,
    RflagsBits,
)

from vmi.patcher.decode import BITS, CALLS, DIRECT, Kind
from vmi.patcher.flow import Code, Flow

FLAGS = RflagsBits.CF | RflagsBits.PF | RflagsBits.AF | RflagsBits.ZF | RflagsBits.SF | RflagsBits.OF
"""The arithmetic flags, in the decoder's bit numbering."""

MAX_VISITS = 96
MAX_RETURN_LOOK = 12

_REGISTERS = (("eax", 1 << 16), ("ecx", 1 << 17), ("edx", 1 << 18))
_REGISTER_BIT: dict[int, int] = {Register.EAX: 1 << 16, Register.ECX: 1 << 17, Register.EDX: 1 << 18}
_ALL_REGISTERS = (1 << 16) | (1 << 17) | (1 << 18)
_ALL = FLAGS | _ALL_REGISTERS
_READS = (OpAccess.READ, OpAccess.COND_READ, OpAccess.READ_WRITE, OpAccess.READ_COND_WRITE)
_COUNTED = frozenset(
    (
        Mnemonic.SHL,
        Mnemonic.SHR,
        Mnemonic.SAR,
        Mnemonic.SAL,
        Mnemonic.ROL,
        Mnemonic.ROR,
        Mnemonic.RCL,
        Mnemonic.RCR,
        Mnemonic.SHLD,
        Mnemonic.SHRD,
    )
)

_INDIRECT_CALLS = re.compile(re.escape(bytes((Kind.CALL_INDIRECT,))))
_CALL_BYTE = 0xE8
_PREFIXES = frozenset(bytes.fromhex("26 2e 36 3e 64 65 66 67 f0 f2 f3"))
_FLAGLESS = CALLS | frozenset(map(int, (Kind.JMP, Kind.JMP_INDIRECT, Kind.RET)))
_PLAIN = int(Kind.PLAIN)
# Prefixes, the second opcode map (VEX too), and shifts by a number.
_MORE_BYTES = frozenset(bytes.fromhex("0f 26 2e 36 3e 64 65 66 67 f0 f2 f3 c0 c1 c4 c5 62"))


@dataclass(frozen=True, slots=True)
class Liveness:
    """What is live after one instruction: any arithmetic flag, and which of EAX ECX EDX surely are not."""

    flags: bool
    dead: tuple[str, ...]


UNKNOWN = Liveness(True, ())

_Step = tuple[int, int, int, list[tuple["Code", int]]]
"""Of one instruction: bits read, bits surely overwritten, bits to be taken as read after it, what follows."""


class LivenessFinder:
    """Answers `after` for one image; keeps what it learns about instructions between questions."""

    def __init__(self, flow: Flow) -> None:
        self._flow = flow
        self._info = InstructionInfoFactory()
        self._steps: dict[int, _Step] = {}
        self._effects: dict[bytes, tuple[int, int]] = {}
        self._flag_effects: dict[bytes, tuple[int, int]] = {}
        self._callers = [_callers(code) for code in flow.codes]
        self._functions = sorted(set().union(*self._callers))
        self._indirect: bool | None = None
        self._returning: dict[int, bool] = {}

    def after(self, address: int) -> Liveness:
        """Liveness right after the instruction (or the last of a pair) at ``address``."""
        code = self._flow.code_at(address)
        index = code.listing.at(address) if code is not None else -1
        if code is None or index < 0 or not code.listing.joined(index):
            return UNKNOWN
        live = self._search(code, index + 1)
        return Liveness(bool(live & FLAGS), tuple(name for name, bit in _REGISTERS if not live & bit))

    def _search(self, code: Code, index: int) -> int:
        """The bits of _ALL that may be read before they are overwritten, from entry ``index`` on."""
        live = 0
        seen: dict[int, int] = {}
        work = [(code, index, _ALL)]
        visits = 0
        while work:
            code, index, mask = work.pop()
            address = code.listing.starts[index]
            mask &= ~(live | seen.get(address, 0))
            if not mask:
                continue
            visits += 1
            if visits > MAX_VISITS:
                return _ALL
            seen[address] = seen.get(address, 0) | mask
            step = self._steps.get(address)
            if step is None:
                effect = self._effect(code, index)
                step = self._steps[address] = (*effect, *self._successors(code, index))
            read, kill, unknown, following = step
            live |= mask & read
            mask &= ~(kill | live)
            if mask:
                live |= mask & unknown
                for other, at in following:
                    work.append((other, at, mask))
        return live

    def _successors(self, code: Code, index: int) -> tuple[int, list[tuple[Code, int]]]:
        """The bits that must be taken as read after entry ``index``, and the entries control goes on to."""
        listing = code.listing
        kind = listing.kinds[index]
        if self._flow.is_rewritten(listing.starts[index]):
            return _ALL, []
        if kind == Kind.RET:
            return _ALL_REGISTERS | (FLAGS if self._return_reads(listing.starts[index]) else 0), []
        if kind == Kind.CALL_INDIRECT:
            return _ALL_REGISTERS, []
        following: list[tuple[Code, int]] = []
        if kind in (Kind.PLAIN, Kind.JCC, Kind.LOOP):
            if not listing.joined(index):
                return _ALL, []
            following.append((code, index + 1))
        if kind in DIRECT:
            target = listing.targets[listing.starts[index]]
            other = self._flow.code_at(target)
            at = other.listing.at(target) if other is not None else -1
            if other is None or at < 0:
                return _ALL, []
            following.append((other, at))
        return (0, following) if following else (_ALL, [])

    def _return_reads(self, address: int) -> bool:
        at = bisect_right(self._functions, address) - 1
        function = self._functions[at] if at >= 0 else -1
        reads = self._returning.get(function)
        if reads is None:
            reads = self._returning[function] = self._returns_flags(function)
        return reads

    def _returns_flags(self, function: int) -> bool:
        """Look behind every call of a function for code that reads flags before it writes them.

        Any indirect call may be one of it.
        """
        if self._indirect is None:
            self._indirect = any(
                self._reads_soon(code, match.start() + 1)
                for code in self._flow.codes
                for match in _INDIRECT_CALLS.finditer(code.listing.kinds)
                if code.reached[match.start()]
            )
        return self._indirect or any(
            code.reached[index := code.listing.at(caller)] and self._reads_soon(code, index + 1)
            for code, callers in zip(self._flow.codes, self._callers, strict=True)
            for caller in callers.get(function, ())
        )

    def _reads_soon(self, code: Code, index: int) -> bool:
        """True when a flag is surely read before being written, on the straight way from entry ``index``.

        Never when control doesn't come there from the entry before.
        """
        mask = FLAGS
        listing = code.listing
        if not listing.joined(index - 1):
            return False
        kinds, known = listing.kinds, self._flag_effects
        for at in range(index, min(index + MAX_RETURN_LOOK, len(kinds))):
            if kinds[at] in _FLAGLESS:
                return False
            raw = listing.raw(at)
            # Most opcodes say all with their first two bytes; the rest are kept as they are.
            key = raw if raw[0] in _MORE_BYTES else raw[:2]
            read, kill = known[key] if key in known else self._flags_of(key, raw)
            # Saving all flags (pushf) reads them, but no caller expects a result there.
            if read & mask and read != FLAGS:
                return True
            mask &= ~kill
            if not mask or kinds[at] != _PLAIN or not listing.joined(at):
                return False
        return False

    def _flags_of(self, key: bytes, raw: bytes) -> tuple[int, int]:
        """(flags read, flags surely overwritten) by an instruction that is no direct branch but a jcc."""
        found = self._flag_effects[key] = _flag_effect(Decoder(BITS, raw).decode())
        return found

    def _effect(self, code: Code, index: int) -> tuple[int, int]:
        """(bits read, bits surely overwritten) by entry ``index``."""
        raw = code.listing.raw(index)
        found = self._effects.get(raw)
        if found is None:
            found = self._effects[raw] = self._compute_effect(code, index)
        return found

    def _compute_effect(self, code: Code, index: int) -> tuple[int, int]:
        insn = code.listing.decoded(index)
        read, kill = _flag_effect(insn)
        repeated = insn.has_rep_prefix or insn.has_repne_prefix
        for full, register, access in self._registers(insn):
            bit = _REGISTER_BIT.get(full, 0)
            if not bit:
                continue
            if access in _READS:
                read |= bit
            elif access == OpAccess.WRITE and register in _REGISTER_BIT and not repeated:
                kill |= bit
        return read, kill

    def _registers(self, insn: Instruction) -> Iterator[tuple[int, int, int]]:
        for used in self._info.info(insn).used_registers():
            yield RegisterExt.full_register32(used.register), used.register, used.access


def _callers(code: Code) -> dict[int, list[int]]:
    """The addresses of a listing's direct calls, by their targets."""
    found: dict[int, list[int]] = defaultdict(list)
    listing = code.listing
    data, start = listing.data, listing.start
    for source, target in listing.targets.pairs():
        first = data[source - start]
        if first == _CALL_BYTE or (first in _PREFIXES and listing.kinds[listing.at(source)] == Kind.CALL):
            found[target].append(source)
    return found


def _flag_effect(insn: Instruction) -> tuple[int, int]:
    """(flags read, flags surely overwritten)."""
    read: int = insn.rflags_read & FLAGS
    kill: int = insn.rflags_modified & FLAGS
    # A count of zero changes no flags: shifts by CL or by 0, and repeated string instructions.
    counted = insn.mnemonic in _COUNTED and (
        insn.op_kind(insn.op_count - 1) == OpKind.REGISTER or insn.immediate8 & 31 == 0
    )
    return read, 0 if counted or insn.has_rep_prefix or insn.has_repne_prefix else kill
