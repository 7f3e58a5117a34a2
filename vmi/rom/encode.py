# SPDX-License-Identifier: GPL-2.0-only
"""Encode one instruction, and prove that the bytes mean what was written.

Keystone gives the bytes, except for forms it is known to encode at the wrong size; those are encoded
here. Either way the bytes are decoded with iced-x86 and compared with the text: mnemonic, prefixes,
operands, operand size, one instruction, full length. What differs is refused, never passed on.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache

import keystone
from iced_x86 import Code, Decoder, Encoder, Instruction, MemoryOperand, Mnemonic, OpCodeInfo, Register

from vmi.rom.operands import (
    GPR16,
    REGISTERS,
    SEGMENTS,
    Far,
    Imm,
    Mem,
    Operand,
    Reg,
    decoded_operands,
    same_immediate,
    same_memory,
)
from vmi.x86 import GPR32

MNEMONICS = {name.lower(): value for name, value in vars(Mnemonic).items() if isinstance(value, int)}
PREFIXES = ("lock", "rep", "repe", "repz", "repne", "repnz")

# Names that mean another name's code; the text may use either.
_SAME_NAME = {
    "sal": "shl", "setz": "sete", "setnz": "setne", "cmovz": "cmove", "cmovnz": "cmovne",
    "setc": "setb", "setnc": "setae", "cmovc": "cmovb", "cmovnc": "cmovae", "xlat": "xlatb", "retn": "ret",
}  # fmt: skip
# Size-less names stand for the mode's own size.
_NATURAL = {"iret": "iretd", "pushf": "pushfd", "popf": "popfd"}
_WORD_NAMES = frozenset({"insw", "outsw", "movsw", "stosw", "lodsw", "cmpsw", "scasw", "cbw", "cwd"})
_DWORD_NAMES = frozenset(
    {"insd", "outsd", "movsd", "stosd", "lodsd", "cmpsd", "scasd", "cwde", "cdq"}
    | {"pushad", "popad", "pushfd", "popfd", "iretd"}
)
# Their memory operand has one size only, or none, so the text need not give it.
_SIZELESS = frozenset(
    {"lea", "lgdt", "lidt", "sgdt", "sidt", "invlpg", "lldt", "ltr", "sldt", "str", "verr", "verw"}
    | {"smsw", "lmsw", "bound", "cmpxchg8b", "fxsave", "fxrstor", "clflush"}
)
# A register operand of these does not tell the size of the memory operand.
_MIXED_SIZE = frozenset({"movzx", "movsx", "shl", "shr", "sar", "rol", "ror", "rcl", "rcr"})
# They read the low 16 bits of a register of either width, and the width is not encoded.
_LOW_WORD = frozenset({"lldt", "ltr", "verr", "verw", "lmsw"})
_COMMUTATIVE = frozenset(("xchg", "test"))
_PLAIN_BYTES = {
    32: {"iretd": "cf", "pushfd": "9c", "popfd": "9d", "retf": "cb", "ret": "c3"},
    16: {"iret": "cf", "pushf": "9c", "popf": "9d", "retf": "cb", "ret": "c3", "nop": "90"},
}
_PUSH_SEGMENT = {"es": "06", "cs": "0e", "ss": "16", "ds": "1e", "fs": "0fa0", "gs": "0fa8"}
_POP_SEGMENT = {"es": "07", "ss": "17", "ds": "1f", "fs": "0fa1", "gs": "0fa9"}
_MEMORY_CODES = {
    ("jmp", 32): Code.JMP_M1632,
    ("call", 32): Code.CALL_M1632,
    ("lgdt", 32): Code.LGDT_M1632,
    ("lidt", 32): Code.LIDT_M1632,
    ("sgdt", 32): Code.SGDT_M1632,
    ("sidt", 32): Code.SIDT_M1632,
    ("lgdt", 16): Code.LGDT_M1632_16,
    ("lidt", 16): Code.LIDT_M1632_16,
    ("sgdt", 16): Code.SGDT_M1632_16,
    ("sidt", 16): Code.SIDT_M1632_16,
}


class EncodeError(ValueError):
    """The instruction can't be encoded, or the bytes don't say what the text says."""


@dataclass(frozen=True, slots=True)
class Written:
    """One instruction as written: prefix or "", mnemonic, operands."""

    prefix: str
    mnemonic: str
    operands: tuple[Operand, ...] = ()

    def __str__(self) -> str:
        return f"{self.prefix} {self.mnemonic} {', '.join(map(str, self.operands))}".strip()


@lru_cache(maxsize=4096)
def encode(written: Written, bits: int = 32) -> bytes:
    """Bytes of one instruction in 16- or 32-bit code; raises EncodeError."""
    name = _SAME_NAME.get(written.mnemonic, written.mnemonic)
    if bits == 32:
        name = _NATURAL.get(name, name)
    written = Written(written.prefix, name, written.operands)
    if name not in MNEMONICS:
        raise EncodeError(f"'{name}' is not an instruction")
    code = _own_encoding(written, bits)
    if code is None:
        code = _keystone(written, bits)
    fault = mismatch(written, code, bits)
    if fault:
        raise EncodeError(f"encoded as {code.hex()}, which is wrong: {fault}")
    return code


def _own_encoding(written: Written, bits: int) -> bytes | None:
    if written.prefix:
        return None
    match written.mnemonic, written.operands:
        case name, () if name in _PLAIN_BYTES[bits]:
            return bytes.fromhex(_PLAIN_BYTES[bits][name])
        case "push", (Reg(name),) if name in SEGMENTS:
            return bytes.fromhex(_PUSH_SEGMENT[name])
        case "pop", (Reg(name),) if name in _POP_SEGMENT:
            return bytes.fromhex(_POP_SEGMENT[name])
        case "push", (Imm(value),):
            signed = (value + (1 << bits - 1)) % (1 << bits) - (1 << bits - 1)
            if -128 <= signed < 128:
                return b"\x6a" + signed.to_bytes(1, "little", signed=True)
            return b"\x68" + signed.to_bytes(bits // 8, "little", signed=True)
        case ("jmp" | "call") as name, (Far(selector, offset),) if offset < 1 << bits:
            opcode = b"\xea" if name == "jmp" else b"\x9a"
            return opcode + offset.to_bytes(bits // 8, "little") + selector.to_bytes(2, "little")
        case ("jmp" | "call") as name, (Mem(size=size) as memory,):
            return _encode_memory(name, memory, bits) if size == 6 and bits == 32 else None
        case name, (Mem() as memory,) if (name, bits) in _MEMORY_CODES:
            return _encode_memory(name, memory, bits)
    return None


def _encode_memory(name: str, memory: Mem, bits: int) -> bytes:
    none = Register.NONE
    operand = MemoryOperand(
        REGISTERS.get(memory.base or "", none),
        REGISTERS.get(memory.index or "", none),
        memory.scale,
        memory.displacement if memory.address_bits else memory.displacement & 0xFFFF_FFFF,
        (1 if memory.displacement else 0) if memory.address_bits else bits // 8,
        False,
        REGISTERS.get(memory.segment or "", none),
    )
    encoder = Encoder(bits)
    try:
        encoder.encode(Instruction.create_mem(_MEMORY_CODES[name, bits], operand), 0)
    except ValueError as error:
        raise EncodeError(f"no such address form: {error}") from None
    return encoder.take_buffer()


@cache
def _engine(bits: int) -> keystone.Ks:
    return keystone.Ks(keystone.KS_ARCH_X86, keystone.KS_MODE_32 if bits == 32 else keystone.KS_MODE_16)


def _keystone(written: Written, bits: int) -> bytes:
    try:
        code, _ = _engine(bits).asm(str(written), as_bytes=True)
    except keystone.KsError as error:
        raise EncodeError(f"no encoding known: {error}") from None
    if not code:
        raise EncodeError("no encoding known: Keystone gave no bytes and no error")
    return bytes(code)


def mismatch(written: Written, code: bytes, bits: int) -> str | None:
    """What of the decoded bytes differs from the text, or None when they agree."""
    decoded = Decoder(bits, code).decode()
    if decoded.code == Code.INVALID or len(decoded) != len(code):
        return "the bytes are not one instruction"
    if decoded.mnemonic != MNEMONICS[written.mnemonic]:
        return "they decode to another mnemonic"
    if not _same_prefix(written.prefix, decoded):
        return "the prefix differs"
    fault = _operand_mismatch(written, decoded)
    if fault:
        return fault
    size = OpCodeInfo(decoded.code).operand_size
    if size and size != bits and not _asks_for(written, size):
        return f"they work on {size} bits where nothing written asks for it"
    return None


def _same_prefix(prefix: str, decoded: Instruction) -> bool:
    rep = prefix in ("rep", "repe", "repz")
    repne = prefix in ("repne", "repnz")
    flags = (decoded.has_lock_prefix, decoded.has_rep_prefix, decoded.has_repne_prefix)
    return flags == (prefix == "lock", rep, repne)


def _operand_mismatch(written: Written, decoded: Instruction) -> str | None:
    if not written.operands and (decoded.op_count == 0 or decoded.is_string_instruction):
        return None
    found = decoded_operands(decoded)
    if found is None or len(found) != len(written.operands):
        return "the number or kind of operands differs"
    if written.mnemonic in _LOW_WORD and len(found) == 1 and isinstance(found[0], Reg):
        found = (_low_word(found[0]),)
        written = Written(written.prefix, written.mnemonic, tuple(map(_low_word, written.operands)))
    orders = [written.operands]
    if written.mnemonic in _COMMUTATIVE:
        orders.append(written.operands[::-1])
    for order in orders:
        pairs = list(zip(order, found, strict=True))
        if all(_same_operand(one, other) for one, other in pairs):
            return _size_mismatch(written, pairs)
    return "an operand differs"


def _low_word(operand: Operand) -> Operand:
    if isinstance(operand, Reg) and operand.name in GPR32:
        return Reg(GPR16[GPR32.index(operand.name)])
    return operand


def _same_operand(one: Operand, other: Operand) -> bool:
    if isinstance(one, Mem) and isinstance(other, Mem):
        return same_memory(one, other)
    if isinstance(one, Imm) and isinstance(other, Imm):
        return same_immediate(one, other)
    return one == other


def _size_mismatch(written: Written, pairs: list[tuple[Operand, Operand]]) -> str | None:
    for one, other in pairs:
        if not isinstance(one, Mem) or not isinstance(other, Mem) or not other.size:
            continue
        expected = one.size
        if expected is None:
            if written.mnemonic in _SIZELESS:
                continue
            registers = [operand.size for operand in written.operands if isinstance(operand, Reg)]
            if not registers or written.mnemonic in _MIXED_SIZE:
                return "the memory operand needs a size such as 'dword ptr'"
            expected = registers[0]
        if other.size != expected:
            return f"the memory operand is {other.size} bytes, not {expected}"
    return None


def _asks_for(written: Written, size: int) -> bool:
    if written.mnemonic in (_WORD_NAMES if size == 16 else _DWORD_NAMES):
        return True
    registers = GPR16 if size == 16 else GPR32
    for operand in written.operands:
        if isinstance(operand, Reg) and operand.name in registers:
            return True
        if isinstance(operand, Reg) and operand.name in SEGMENTS and written.mnemonic == "mov" and size == 16:
            return True
        if isinstance(operand, Mem) and operand.size == size // 8:
            return True
    return False
