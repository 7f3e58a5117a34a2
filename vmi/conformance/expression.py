# SPDX-License-Identifier: GPL-2.0-only
"""Expressions that choose cases where they run, such as ``SetCR3 and not paging=pae``.

The grammar, with ``{}`` for any number of times::

    expression = all {"or" all}
    all        = one {"and" one}
    one        = "not" one | "(" expression ")" | word
    word       = a run of characters other than blanks, quotes and parentheses, or anything within ' or "

Case never matters. A word of the form ``kind=value`` asks for one thing exactly; the kinds are those of
:data:`KINDS`. A word with ``*`` or ``?`` is a pattern for the case's whole name. Any other word holds where
it is a part of the case's name or of the id of one of its requirements, or is one of the environment's
words. One that would hold nowhere is a mistake, and is said to be one.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from vmi.conformance.case import Case
from vmi.conformance.layout import Paging
from vmi.conformance.subject import ENGINES, Environment
from vmi.errors import UsageError
from vmi.hypervisor.mmu import STRATEGIES

LONGEST = 2000  # characters
_DEEPEST = 50  # parentheses and nots within each other
_MOST_CPUS = 2

#: What ``kind=value`` can ask for, each with the values that a case in an environment has.
KINDS: dict[str, Callable[[Case, Environment], Iterable[str]]] = {
    "call": lambda case, where: (case.subject,),
    "name": lambda case, where: (case.name,),
    "group": lambda case, where: (case.group,),
    "level": lambda case, where: (str(case.level),),
    "requirement": lambda case, where: case.requirements,
    "paging": lambda case, where: (where.paging.value,),
    "mmu": lambda case, where: (where.mmu,),
    "cpus": lambda case, where: (str(where.cpus),),
    "engine": lambda case, where: (where.engine,),
}
_OF_ENVIRONMENTS = {
    "paging": [paging.value for paging in Paging],
    "mmu": ["", *STRATEGIES],
    "cpus": [str(count + 1) for count in range(_MOST_CPUS)],
    "engine": ["", *ENGINES],
}
_ENVIRONMENT_WORDS = {word for kind in ("paging", "mmu", "engine") for word in _OF_ENVIRONMENTS[kind]}
_TOKEN = re.compile(r"""\s*(?:([()])|([^\s()'"]+=|)(?:'([^']*)'|"([^"]*)")|([^\s()'"]+)|(.))""", re.DOTALL)

Holds = Callable[[Case, Environment], bool]


@dataclass(frozen=True)
class Expression:
    """An expression that has been understood.

    :raises UsageError: the text is none; the sentence says what is missing, and where.
    """

    text: str

    def __post_init__(self) -> None:
        _ = self._holds

    def holds(self, case: Case, environment: Environment) -> bool:
        """It chooses this case in this environment."""
        return self._holds(case, environment)

    def check(self, cases: Sequence[Case]) -> None:
        """See that no word of it is a slip. :raises UsageError: one holds for no case and no environment."""
        for word in self._parsed.words:
            if not _is_known(word, cases):
                raise UsageError(
                    f"{word!r} in the expression fits no case and no environment; "
                    "`vmi conform --list` shows all"
                )

    @cached_property
    def _parsed(self) -> _Parser:
        return _Parser(self.text)

    @cached_property
    def _holds(self) -> Holds:
        return self._parsed.made


class _Parser:
    """Descends once through the tokens; what it makes is a function."""

    def __init__(self, text: str) -> None:
        if len(text) > LONGEST:
            raise UsageError(f"an expression may have {LONGEST} characters, but this one has {len(text)}")
        self.words: list[str] = []
        self._tokens = list(_tokens(text))
        self._at = self._depth = 0
        self.made = self._any()
        if self._at < len(self._tokens):
            raise self._wrong("'and', 'or' or the end")

    def _any(self) -> Holds:
        return self._chain("or", self._all, any)

    def _all(self) -> Holds:
        return self._chain("and", self._one, all)

    def _chain(self, word: str, part: Callable[[], Holds], join: Callable[[Iterable[bool]], bool]) -> Holds:
        parts = [part()]
        while self._take(word):
            parts.append(part())
        return parts[0] if len(parts) == 1 else lambda c, e: join(each(c, e) for each in parts)

    def _one(self) -> Holds:
        self._depth += 1
        if self._depth > _DEEPEST:
            raise UsageError(f"an expression may be nested {_DEEPEST} deep, but this one goes deeper")
        if self._take("not"):
            inner = self._one()
            made: Holds = lambda c, e: not inner(c, e)  # noqa: E731
        elif self._take("("):
            made = self._any()
            if not self._take(")"):
                raise self._wrong("')'")
        else:
            made = self._word()
        self._depth -= 1
        return made

    def _word(self) -> Holds:
        if self._at == len(self._tokens):
            raise self._wrong("a word, 'not' or '('")
        place, token, quoted = self._tokens[self._at]
        if not token:
            raise UsageError(f"the word at character {place + 1} of the expression has nothing in it")
        if not quoted and (token in "()" or token.lower() in ("and", "or")):
            raise self._wrong("a word, 'not' or '('")
        self._at += 1
        self.words.append(token)
        kind, equals, _ = token.partition("=")
        if equals and kind.lower() not in KINDS:
            raise UsageError(f"an expression can ask for {', '.join(KINDS)}, but not for {kind!r}")
        return _word(token.lower())

    def _take(self, word: str) -> bool:
        if self._at < len(self._tokens):
            _, token, quoted = self._tokens[self._at]
            if not quoted and token.lower() == word:
                self._at += 1
                return True
        return False

    def _wrong(self, expected: str) -> UsageError:
        if self._at == len(self._tokens):
            return UsageError(f"the expression must go on with {expected}, but it ends")
        place, token, _ = self._tokens[self._at]
        return UsageError(
            f"the expression must go on with {expected} at character {place + 1}, but there is {token!r}"
        )


def _tokens(text: str) -> Iterator[tuple[int, str, bool]]:
    """(place, text, whether it is quoted) of each; what is behind ``kind=`` may be quoted alone."""
    text, at = text.rstrip(), 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        assert match is not None
        bracket, kind, single, double, bare, other = match.groups()
        place, at = match.end() - len(match.group().lstrip()), match.end()
        if other is not None:
            raise UsageError(f"the quote at character {place + 1} of the expression is never closed")
        if kind is None:
            yield place, bracket or bare, False
        else:
            yield place, kind + (double if single is None else single), True


def _word(word: str) -> Holds:
    kind, equals, value = word.partition("=")
    if equals:
        values = KINDS[kind]
        return lambda c, e: any(fnmatch.fnmatchcase(each.lower(), value) for each in values(c, e))
    return lambda c, e: _in_case(c, word) or word in (e.paging.value, e.mmu, e.engine)


def _in_case(case: Case, word: str) -> bool:
    if "*" in word or "?" in word:
        return fnmatch.fnmatchcase(case.name.lower(), word)
    return word in case.name.lower() or any(word in each.lower() for each in case.requirements)


def _is_known(word: str, cases: Sequence[Case]) -> bool:
    word = word.lower()
    kind, equals, value = word.partition("=")
    if equals and kind in _OF_ENVIRONMENTS:
        return any(fnmatch.fnmatchcase(each, value) for each in _OF_ENVIRONMENTS[kind])
    anywhere, holds = Environment(), _word(word)
    return bool(word and word in _ENVIRONMENT_WORDS) or any(holds(case, anywhere) for case in cases)
