# SPDX-License-Identifier: GPL-2.0-only
"""Small mistakes, made one at a time: in Python by its syntax tree, in the code of ROMs by its lines.

A mutant is named by where it is and what was done, so that a name means the same in each run over the same
source. Left alone are what Python would refuse at once, such as a name that is never set, since finding that
says nothing about who looks; and what is said and not done: docstrings, annotations, texts.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

_COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
_OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.BitXor: ast.BitOr,
    ast.LShift: ast.RShift, ast.RShift: ast.LShift, ast.Mult: ast.FloorDiv, ast.FloorDiv: ast.Mult,
}  # fmt: skip
_SAID = frozenset({"annotation", "returns"})


@dataclass(frozen=True, order=True)
class Mutant:
    """One mistake.

    :ivar place: file within the package ``vmi``, or ``flavour:call`` for the code of a ROM.
    :ivar line: in that file, or of that code, from 1 on; the statement's own lines are ``first`` to ``last``.
    :ivar number: which of the place's mutants it is, in the order in which they are made.
    :ivar was: the line's or the expression's text before; ``becomes``: after.
    :ivar early: it is in what is executed while the module is imported.
    """

    place: str
    line: int
    kind: str
    number: int
    was: str
    becomes: str
    first: int = 0
    last: int = 0
    early: bool = False

    def __str__(self) -> str:
        return f"{self.place}:{self.line} {self.kind}: {self.was} -> {self.becomes}"

    @property
    def name(self) -> str:
        """What it can be asked for by."""
        return f"{self.place}#{self.number}"


# -- Python ---------------------------------------------------------------------------------------


class _Python(ast.NodeTransformer):
    """Goes through a tree; makes the mutant with a number, or lists all of them."""

    def __init__(self, place: str, wanted: int = -1) -> None:
        self.place, self.wanted = place, wanted
        self.found: list[Mutant] = []
        self._results: list[str] = []  # of the functions that it is in, as they are annotated
        self._lines = 0, 0

    def _offer(self, kind: str, node: ast.expr | ast.stmt, changed: ast.AST) -> bool:
        """Note a mutant of a node; True if it is the one that is wanted."""
        number, texts = len(self.found), (_short(node), _short(changed))
        early = not self._results
        self.found.append(Mutant(self.place, node.lineno, kind, number, *texts, *self._lines, early))
        return number == self.wanted

    def visit(self, node: ast.AST) -> Any:
        if not isinstance(node, ast.stmt):
            return super().visit(node)
        before, inside = self._lines, getattr(node, "body", ())
        self._lines = node.lineno, inside[0].lineno - 1 if inside else node.end_lineno or node.lineno
        changed = super().visit(node)
        self._lines = before
        return changed

    def generic_visit(self, node: ast.AST) -> ast.AST:
        for name, value in ast.iter_fields(node):
            if name in _SAID:
                continue
            if isinstance(value, list):
                value[:] = [self.visit(each) if isinstance(each, ast.AST) else each for each in value]
            elif isinstance(value, ast.AST):
                setattr(node, name, self.visit(value))
        return node

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.AST:
        return node  # a sentence

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        if self._offer("dropped", node, ast.Pass()):
            return ast.Pass()
        return self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        if node.name == "__repr__":
            return node
        node.args = self.visit(node.args)
        node.decorator_list = [self.visit(each) for each in node.decorator_list]
        self._results.append("" if node.returns is None else ast.unparse(node.returns))
        node.body = [self.visit(each) for each in node.body]
        self._results.pop()
        return node

    def visit_If(self, node: ast.If) -> ast.AST:
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return node
        return self._condition(node)

    def visit_While(self, node: ast.While) -> ast.AST:
        return self._condition(node)

    def visit_IfExp(self, node: ast.IfExp) -> ast.AST:
        return self._condition(node)

    def _condition(self, node: ast.If | ast.While | ast.IfExp) -> ast.AST:
        if not isinstance(node.test, ast.Compare | ast.UnaryOp):  # those have mutants of their own
            negated = ast.UnaryOp(ast.Not(), node.test)
            if self._offer("negated", node.test, negated):
                node.test = negated
                return ast.fix_missing_locations(node)
        return self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        for n, operator in enumerate(node.ops):
            other = _COMPARISONS[type(operator)]
            changed = ast.Compare(node.left, [*node.ops[:n], other(), *node.ops[n + 1 :]], node.comparators)
            if self._offer("comparison", node, changed):
                return changed
        return self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.AST:
        changed = ast.BoolOp(ast.Or() if isinstance(node.op, ast.And) else ast.And(), node.values)
        if self._offer("and/or", node, changed):
            return changed
        return self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.AST:
        if isinstance(node.op, ast.Not | ast.Invert) and self._offer("not", node, node.operand):
            return node.operand
        return self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        other = _OPERATORS.get(type(node.op))
        if other is not None:
            changed = ast.BinOp(node.left, other(), node.right)
            if self._offer("operator", node, changed):
                return changed
        return self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> ast.AST:
        other = _OPERATORS.get(type(node.op))
        if other is not None:
            changed = ast.AugAssign(node.target, other(), node.value)
            if self._offer("operator", node, changed):
                return changed
        if self._offer("dropped", node, ast.Pass()):
            return ast.Pass()
        return self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> ast.AST:
        kept = all(isinstance(each, ast.Attribute | ast.Subscript) for each in node.targets)
        if kept and self._offer("dropped", node, ast.Pass()):
            return ast.Pass()
        return self.generic_visit(node)

    def visit_Expr(self, node: ast.Expr) -> ast.AST:
        if isinstance(node.value, ast.Constant):
            return node  # a docstring
        if isinstance(node.value, ast.Call) and self._offer("dropped", node, ast.Pass()):
            return ast.Pass()
        return self.generic_visit(node)

    def visit_Return(self, node: ast.Return) -> ast.AST:
        if node.value is None or isinstance(node.value, ast.Constant):
            return self.generic_visit(node)
        result = self._results[-1]
        other: ast.expr | None = None
        if result == "bool":
            other = ast.UnaryOp(ast.Not(), node.value)
        elif result == "int":
            other = ast.BinOp(node.value, ast.Add(), ast.Constant(1))
        elif result.endswith("| None"):
            other = ast.Constant(None)
        if other is not None and self._offer("result", node, ast.Return(other)):
            return ast.Return(other)
        return self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        value = node.value
        changed: list[int] = []
        if isinstance(value, bool):
            changed = [not value]
        elif isinstance(value, int):
            lowest = value & -value
            changed = [value + 1, value - 1, *([value ^ lowest] if lowest > 1 else [])]
        for each in changed:
            if self._offer("constant", node, ast.Constant(each)):
                return ast.copy_location(ast.Constant(each), node)
        return node


def _short(node: ast.AST) -> str:
    text = " ".join(ast.unparse(node).split())
    return text if len(text) < 100 else text[:97] + "..."


def in_python(place: str, source: str) -> list[Mutant]:
    """All mutants of a module's source."""
    made = _Python(place)
    made.visit(ast.parse(source))
    return made.found


def python(mutant: Mutant, source: str) -> ast.Module:
    """The module with the mistake in it."""
    tree = ast.parse(source)
    _Python(mutant.place, mutant.number).visit(tree)
    return ast.fix_missing_locations(tree)


# -- the code of ROMs -----------------------------------------------------------------------------

_LINE = re.compile(r"(?P<label>\s*@?\w+:)?\s*(?P<mnemonic>[a-z]\w*)(?P<operands>[^;]*)(?P<comment>;.*)?$")
_JUMPS = ("jz jnz", "je jne", "jb jae", "ja jbe", "jc jnc")
_PAIRS = (
    "add sub",
    "adc sbb",
    "and or",
    "xor or",
    "inc dec",
    "movzx movsx",
    "shl shr",
    "rol ror",
    "test cmp",
)
_SWAPS = {
    word: other
    for pair in (*_JUMPS, *_PAIRS)
    for word, other in (pair.split(), pair.split()[::-1])
    if (word, other) != ("or", "xor")
}
_REGISTERS = ("eax", "ecx", "edx", "ebx")
_NUMBER = re.compile(r"(?<![\w@])(0x[0-9a-fA-F]+|\d+)\b")


def _line_mutants(line: str) -> Iterator[tuple[str, str]]:
    """What a line of assembly could be instead, and of what kind that is."""
    match = _LINE.match(line)
    if match is None or not match["mnemonic"]:
        return
    label, mnemonic, operands = match["label"] or "", match["mnemonic"], match["operands"].rstrip()
    yield "dropped", label
    if mnemonic in _SWAPS:
        kind = "negated" if mnemonic.startswith("j") else "operator"
        yield kind, f"{label} {_SWAPS[mnemonic]}{operands}"
    for number in _NUMBER.finditer(operands):
        before, after, value = operands[: number.start()], operands[number.end() :], int(number[0], 0)
        for other in (value + 1, value - 1, value ^ 4):
            if other >= 0:
                yield "constant", f"{label} {mnemonic}{before}{other}{after}"
    for register in re.finditer(r"\b(eax|ecx|edx|ebx)\b", operands):
        next_one = _REGISTERS[(_REGISTERS.index(register[0]) + 1) % 4]
        yield (
            "register",
            f"{label} {mnemonic}{operands[: register.start()]}{next_one}{operands[register.end() :]}",
        )


def _in_lines(place: str, source: str) -> Iterator[Mutant]:
    number = 0
    for n, line in enumerate(source.split("\n"), 1):
        for kind, becomes in _line_mutants(line):
            was, now = (" ".join(each.partition(";")[0].split()) for each in (line, becomes))
            yield Mutant(place, n, kind, number, was, now)
            number += 1


def in_assembly(place: str, source: str) -> list[Mutant]:
    """All mutants of a call's code."""
    return list(_in_lines(place, source))


def assembly(mutant: Mutant, source: str) -> str:
    """The code with the mistake in it."""
    lines = source.split("\n")
    lines[mutant.line - 1] = mutant.becomes
    return "\n".join(lines)
