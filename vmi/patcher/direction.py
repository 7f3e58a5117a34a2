# SPDX-License-Identifier: GPL-2.0-only
"""Which instructions may run with the direction flag set: those that control reaches from an STD.

A VMI call is entered and left with the flag clear. Almost all of a kernel runs like that, since it is the
calling convention, so only code between an STD and the next CLD pays for keeping the flag. Where control
comes from unknown places (a call, a return, an interrupt) the flag is taken to be clear: the convention
says so for calls, and a kernel that is interrupted with the flag set clears it before it relies on it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from vmi.patcher.decode import DIRECT, FALLS_THROUGH
from vmi.patcher.flow import Code, Flow

_STD, _CLD, _PUSHF, _POPF = b"\xfd", b"\xfc", b"\x9c", b"\x9d"


def set_direction(flow: Flow) -> frozenset[int]:
    """Addresses of instructions at whose start the direction flag may be set."""
    found = _reached(flow, _all(flow, _STD))
    if any(_raw(flow, address) == _PUSHF for address in found):
        # An image with the flag set was saved, and any popf may be the one that loads it.
        found = _reached(flow, [*_all(flow, _STD), *_all(flow, _POPF)])
    return frozenset(found)


def _all(flow: Flow, raw: bytes) -> Iterator[tuple[Code, int]]:
    """The reached entries that are this one-byte instruction."""
    for code in flow.codes:
        listing = code.listing
        at = listing.data.find(raw)
        while at >= 0:
            index = listing.at(listing.start + at)
            if index >= 0 and listing.lengths[index] == 1 and code.reached[index]:
                yield code, index
            at = listing.data.find(raw, at + 1)


def _raw(flow: Flow, address: int) -> bytes:
    code = flow.code_at(address)
    return code.listing.raw(code.listing.at(address)) if code is not None else b""


def _reached(flow: Flow, sources: Iterable[tuple[Code, int]]) -> set[int]:
    """Entries that run after the sources with nothing in between that loads the flag."""
    found: set[int] = set()
    work = [entry for code, index in sources for entry in _after(flow, code, index)]
    while work:
        code, index = work.pop()
        address = code.listing.starts[index]
        if address in found:
            continue
        found.add(address)
        if code.listing.raw(index) not in (_CLD, _POPF):
            work.extend(_after(flow, code, index))
    return found


def _after(flow: Flow, code: Code, index: int) -> Iterator[tuple[Code, int]]:
    listing = code.listing
    kind = listing.kinds[index]
    if kind in FALLS_THROUGH and listing.joined(index):
        yield code, index + 1
    if kind in DIRECT:
        target = listing.targets[listing.starts[index]]
        other = flow.code_at(target)
        at = other.listing.at(target) if other is not None else -1
        if other is not None and at >= 0:
            yield other, at
