# SPDX-License-Identifier: GPL-2.0-only
"""Assemble small pieces of 32-bit code whose every byte has been decoded back and compared.

ROM code and patch trampolines are written as text and become bytes in other people's kernels, where
a wrong operand size is a crash a long way off. So branches, labels and data are encoded here, single
instructions by `vmi.rom.encode`, and a line that can't be proven right is an error naming it.

One statement per line: `label:`, an instruction in Intel syntax, or a directive
(`.byte .word .long .ascii .zero .align .org .code16 .code32`). `;` starts a comment; `{expr}` is
replaced by the value of an expression over labels, symbols and numbers with `+ - *`.
Branches to a label or address are rel32 (rel16 in 16-bit code); `short` makes them rel8.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from vmi.errors import AssembleError
from vmi.rom.encode import MNEMONICS, PREFIXES, EncodeError, Written, encode
from vmi.rom.operands import REGISTERS, SEGMENTS, OperandError, parse_number, parse_operand

MAX_PASSES = 16
MAX_SIZE = 1 << 20

_NAME = re.compile(r"[A-Za-z_]\w*", re.ASCII)
_LABEL = re.compile(r"([A-Za-z_]\w*)\s*:(?!:)\s*", re.ASCII)
_STRING = re.compile(r'"((?:[^"\\]|\\.)*)"')
_ESCAPES = {"0": "\0", "n": "\n", "t": "\t", "\\": "\\", '"': '"'}
_CONDITIONS = {
    "o": 0, "no": 1, "b": 2, "c": 2, "nae": 2, "ae": 3, "nb": 3, "nc": 3, "e": 4, "z": 4, "ne": 5, "nz": 5,
    "be": 6, "na": 6, "a": 7, "nbe": 7, "s": 8, "ns": 9, "p": 10, "pe": 10, "np": 11, "po": 11,
    "l": 12, "nge": 12, "ge": 13, "nl": 13, "le": 14, "ng": 14, "g": 15, "nle": 15,
}  # fmt: skip
_SHORT = {
    "loopne": 0xE0, "loopnz": 0xE0, "loope": 0xE1, "loopz": 0xE1, "loop": 0xE2, "jecxz": 0xE3, "jcxz": 0xE3,
}  # fmt: skip
_WIDTHS = {".byte": 1, ".word": 2, ".long": 4}
_NO_SYMBOLS: Mapping[str, int] = MappingProxyType({})


@dataclass(frozen=True, repr=False)
class Assembled:
    """Code that runs at `origin`, with the address of each label."""

    code: bytes
    labels: dict[str, int]
    origin: int

    def __repr__(self) -> str:
        return f"<Assembled {len(self.code)} bytes at {self.origin:#x}, {len(self.labels)} labels>"


def assemble(source: str, origin: int = 0, symbols: Mapping[str, int] = _NO_SYMBOLS) -> Assembled:
    """Assemble `source` to run at address `origin`; `symbols` are names known besides its labels.

    Raises AssembleError with line number, line and reason.
    """
    lines = _split(source)
    _check_labels(lines, symbols)
    known: dict[str, int] = {}
    for number in range(MAX_PASSES):
        attempt = _Pass(origin, symbols, known, final=number > 0)
        for line in lines:
            attempt.line(line)
        if number > 0 and attempt.labels == known:
            return Assembled(bytes(attempt.code), attempt.labels, origin)
        known = attempt.labels
    raise AssembleError(f"the code does not settle: label addresses still move after {MAX_PASSES} passes")


@dataclass(frozen=True, slots=True)
class _Line:
    number: int
    text: str
    label: str | None
    statement: str

    def error(self, reason: str) -> AssembleError:
        return AssembleError(f"assembly line {self.number} '{self.text}' is refused: {reason}")


def _split(source: str) -> list[_Line]:
    lines: list[_Line] = []
    for number, raw in enumerate(source.split("\n"), 1):
        text = _strip_comment(raw).strip()
        statement = text
        while match := _LABEL.match(statement):
            if match[1] in SEGMENTS:
                break
            lines.append(_Line(number, text, match[1], ""))
            statement = statement[match.end() :]
        if statement:
            lines.append(_Line(number, text, None, statement))
    return lines


def _strip_comment(text: str) -> str:
    quoted = False
    previous = ""
    for position, char in enumerate(text):
        if char == '"' and previous != "\\":
            quoted = not quoted
        elif char == ";" and not quoted:
            return text[:position]
        previous = "" if previous == "\\" else char
    return text


def _check_labels(lines: list[_Line], symbols: Mapping[str, int]) -> None:
    seen: set[str] = set()
    for line in lines:
        if line.label is None:
            continue
        if line.label in seen:
            raise line.error(f"label '{line.label}' is defined twice")
        if line.label in symbols:
            raise line.error(f"label '{line.label}' is a symbol already")
        if line.label.lower() in REGISTERS or line.label.lower() == "short":
            raise line.error(f"'{line.label}' can't be a label")
        seen.add(line.label)


@dataclass
class _Pass:
    """One walk over the lines; label addresses of the walk before stand in for later ones."""

    origin: int
    symbols: Mapping[str, int]
    known: Mapping[str, int]
    final: bool
    bits: int = 32
    code: bytearray = field(default_factory=bytearray)
    labels: dict[str, int] = field(default_factory=dict)
    guessed: bool = False

    @property
    def here(self) -> int:
        return self.origin + len(self.code)

    def line(self, line: _Line) -> None:
        self.guessed = False
        if line.label is not None:
            self.labels[line.label] = self.here
            return
        try:
            self.statement(line.statement)
        except (EncodeError, OperandError) as error:
            # A forward reference has only a guessed value in the first walk: reserve some room.
            if not (self.guessed and not self.final):
                raise line.error(str(error)) from None
            self.code += bytes(6)
        if len(self.code) > MAX_SIZE:
            raise line.error(f"the code is larger than {MAX_SIZE} bytes")

    def statement(self, text: str) -> None:
        if text.startswith("."):
            self.directive(text)
            return
        text = re.sub(r"\{([^{}]*)\}", lambda match: str(self.value(match[1])), text)
        head, _, rest = text.partition(" ")
        prefix = ""
        if head.lower() in PREFIXES:
            prefix = head.lower()
            head, _, rest = rest.strip().partition(" ")
        name, rest = head.lower(), rest.strip()
        target = None if prefix else self.branch_target(name, rest)
        if target is not None:
            self.code += self.branch(name, *target)
            return
        if name not in MNEMONICS:
            raise EncodeError(f"'{name}' is not an instruction or directive")
        operands = tuple(parse_operand(part) for part in rest.split(",")) if rest else ()
        self.code += encode(Written(prefix, name, operands), self.bits)

    def branch_target(self, name: str, rest: str) -> tuple[int, bool] | None:
        """(address, short) when this is a direct near branch, else None."""
        if name not in ("jmp", "call") and name not in _SHORT and name[1:] not in _CONDITIONS:
            return None
        if name[0] != "j" and name != "call" and name not in _SHORT:
            return None
        short = rest.lower().startswith("short ")
        bare = rest[6:].strip() if short else rest
        if parse_number(bare) is None and (not _NAME.fullmatch(bare) or bare.lower() in REGISTERS):
            if name in ("jmp", "call") and not short:
                return None
            raise EncodeError(f"'{rest}' is not a label, symbol or address")
        return self.value(bare), short or name in _SHORT

    def branch(self, name: str, target: int, short: bool) -> bytes:
        condition = _CONDITIONS.get(name[1:]) if name[0] == "j" else None
        if name in _SHORT:
            if (name == "jecxz" and self.bits != 32) or (name == "jcxz" and self.bits != 16):
                raise EncodeError(f"'{name}' is not available in {self.bits}-bit code")
            opcode = bytes([_SHORT[name]])
        elif name == "jmp":
            opcode = b"\xeb" if short else b"\xe9"
        elif name == "call":
            if short:
                raise EncodeError("there is no short call")
            opcode = b"\xe8"
        elif condition is not None:
            opcode = bytes([0x70 | condition]) if short else bytes([0x0F, 0x80 | condition])
        else:
            raise EncodeError(f"'{name}' is not a branch")
        size = 1 if short else self.bits // 8
        modulus = 1 << self.bits
        distance = (target - self.here - len(opcode) - size + modulus // 2) % modulus - modulus // 2
        if short and not -128 <= distance < 128:
            if self.final or not self.guessed:
                raise EncodeError(f"the target is {distance} bytes away, a short branch reaches -128 to 127")
            distance = 0
        return opcode + distance.to_bytes(size, "little", signed=True)

    def directive(self, text: str) -> None:
        name, _, rest = text.partition(" ")
        handlers: dict[str, Callable[[str], None]] = {
            ".ascii": self._ascii,
            ".zero": lambda rest: self._fill(self.value(rest), 0),
            ".align": self._align,
            ".org": self._org,
        }
        if name in _WIDTHS:
            for item in rest.split(","):
                self._number(self.value(item), _WIDTHS[name])
        elif name in handlers:
            handlers[name](rest.strip())
        elif name in (".code16", ".code32") and not rest.strip():
            self.bits = int(name[5:])
        else:
            raise EncodeError(f"'{name}' is not a directive")

    def _number(self, value: int, width: int) -> None:
        bits = 8 * width
        if not -(1 << (bits - 1)) <= value < 1 << bits:
            if self.final or not self.guessed:
                raise EncodeError(f"{value:#x} does not fit {width} bytes")
            value = 0
        self.code += (value % (1 << bits)).to_bytes(width, "little")

    def _ascii(self, rest: str) -> None:
        match = _STRING.fullmatch(rest)
        if match is None:
            raise EncodeError("expected one string in double quotes")
        text = re.sub(r"\\(.)", lambda escape: _ESCAPES.get(escape[1], "\uffff"), match[1])
        if not text.isascii():
            raise EncodeError('a string holds ASCII and the escapes \\0 \\n \\t \\\\ \\" only')
        self.code += text.encode("ascii")

    def _fill(self, count: int, value: int) -> None:
        if not 0 <= count <= MAX_SIZE or not 0 <= value <= 0xFF:
            if self.final or not self.guessed:
                raise EncodeError(f"can't place {count} bytes of {value:#x}")
            count, value = 0, 0
        self.code += bytes([value]) * count

    def _with_fill(self, rest: str) -> tuple[int, int]:
        first, comma, second = rest.partition(",")
        return self.value(first), self.value(second) if comma else 0

    def _align(self, rest: str) -> None:
        step, value = self._with_fill(rest)
        if step < 1 or step & (step - 1):
            raise EncodeError(f"{step} is not a power of two")
        self._fill(-self.here % step, value)

    def _org(self, rest: str) -> None:
        target, value = self._with_fill(rest)
        if target < self.here and (self.final or not self.guessed):
            raise EncodeError(f"address {target:#x} is already behind, the code has reached {self.here:#x}")
        self._fill(target - self.here, value)

    def value(self, expression: str) -> int:
        """Value of an expression of numbers, labels and symbols with + - * and parentheses."""
        bare = expression.replace("{", "(").replace("}", ")").strip()
        if len(bare) > 400:
            raise EncodeError("the expression is longer than 400 characters")
        try:
            tree = ast.parse(bare, mode="eval")
            return self._evaluate(tree.body)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            if isinstance(error, EncodeError):
                raise
            raise EncodeError(f"'{bare}' is not an expression") from None

    def _evaluate(self, node: ast.expr) -> int:
        match node:
            case ast.Constant(value=int() as value) if not isinstance(value, bool):
                result = value
            case ast.Name(id=name):
                result = self._name(name)
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                result = -self._evaluate(operand)
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                result = self._evaluate(left) + self._evaluate(right)
            case ast.BinOp(left=left, op=ast.Sub(), right=right):
                result = self._evaluate(left) - self._evaluate(right)
            case ast.BinOp(left=left, op=ast.Mult(), right=right):
                result = self._evaluate(left) * self._evaluate(right)
            case _:
                raise EncodeError("an expression holds numbers, labels, symbols and + - * only")
        if abs(result) >= 1 << 64:
            raise EncodeError("an expression's value does not fit 64 bits")
        return result

    def _name(self, name: str) -> int:
        for table in (self.labels, self.known, self.symbols):
            if name in table:
                return table[name]
        if self.final:
            raise EncodeError(f"'{name}' is neither a label nor a symbol")
        self.guessed = True
        return self.here
