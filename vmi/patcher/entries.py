# SPDX-License-Identifier: GPL-2.0-only
"""What may be done with the instructions of a listing: which may move, and which may stand side by side.

All window makers ask these questions, so the answers are in one place. An answer never depends on where a
trampoline will be; some depend on the windows made so far, because a copied instruction makes the address
behind it one that control comes to.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from vmi.patcher.decode import CALLS, MOVABLE, Kind
from vmi.patcher.flow import Code, Flow

_BEFORE_RETURN_ADDRESS = frozenset(range(0x58, 0x60))  # pop r


@dataclass(slots=True)
class Entries:
    """The entries of one listing. ``barriers`` are those that no window may touch (annotated slots).

    ``resumes``: addresses that trampolines come back to although no window ends there.
    """

    flow: Flow
    code: Code
    barriers: frozenset[int]
    resumes: set[int] = field(default_factory=set)
    _movable: dict[int, bool] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Entries({self.code!r})"

    def movable(self, index: int) -> bool:
        """True when entry ``index`` means the same in a trampoline and nothing needs it where it is."""
        known = self._movable.get(index)
        if known is None:
            known = self._movable[index] = self._compute_movable(index)
        return known

    def _compute_movable(self, index: int) -> bool:
        listing = self.code.listing
        kind = listing.kinds[index]
        if kind not in MOVABLE or not self.code.reached[index] or index in self.barriers:
            return False
        if self.code.pin(listing.starts[index], listing.stop(index)) is not None:
            return False
        return kind not in CALLS or self._call_may_move(index)

    def _call_may_move(self, index: int) -> bool:
        """A moved call pushes another return address: only when nobody seems to look at it."""
        listing = self.code.listing
        after = listing.stop(index)
        if after >= listing.end or self.code.is_value(after):
            return False
        if listing.kinds[index] == Kind.CALL_INDIRECT:
            return True
        target = listing.targets[listing.starts[index]]
        other = self.flow.code_at(target)
        at = other.listing.at(target) if other is not None else -1
        if other is None or at < 0:
            return False
        raw = other.listing.raw(at)
        # `pop r`, or `mov r,[esp]`: position-independent code and the like.
        return not (
            raw[0] in _BEFORE_RETURN_ADDRESS or (raw[0] == 0x8B and raw[1] & 0xC7 == 4 and raw[2] == 0x24)
        )

    def is_label(self, index: int) -> bool:
        """True when control may come to entry ``index`` from elsewhere."""
        address = self.code.listing.starts[index]
        return self.code.is_label(address) or address in self.resumes

    def continues(self, index: int, calls: bool) -> bool:
        """True when entry ``index`` may stand in a window behind entry ``index`` - 1, label or not."""
        listing = self.code.listing
        if index >= len(listing) or listing.kinds[index - 1] in CALLS:
            return False
        if not listing.joined(index - 1) and not self._resumes_behind(index):
            return False
        if not calls and listing.kinds[index] in CALLS:
            return False
        return self.movable(index)

    def _resumes_behind(self, index: int) -> bool:
        """True when only the fault table leads to entry ``index``, right behind what never falls through."""
        listing = self.code.listing
        address = listing.starts[index]
        return (
            address in self.flow.scan.hints.fixups
            and address == listing.stop(index - 1)
            and not self.code.is_hard(address)
        )

    def follows(self, index: int, calls: bool) -> bool:
        """As `continues`, and nothing comes to entry ``index`` but the entry before it."""
        return self.continues(index, calls) and not self.is_label(index)

    def precedes(self, first: int) -> bool:
        """True when a window may be widened from ``first`` to the entry before it."""
        return self.follows(first, False) and self.leads(first)

    def leads(self, first: int) -> bool:
        """True when the entry before ``first`` may move and is no call."""
        return self.movable(first - 1) and self.code.listing.kinds[first - 1] not in CALLS

    def copyable(self, index: int) -> bool:
        """True when entry ``index`` may be copied behind a window and also stay."""
        address = self.code.listing.starts[index]
        if address in self.flow.recovered:
            return False  # a copy would need an entry of its own in the fault table
        return self.movable(index) and not self.shadow(index) and address not in self.code.listing.forms

    def shadow(self, index: int) -> bool:
        """True when entry ``index`` holds interrupts off for the next one."""
        form = self.code.listing.forms.get(self.code.listing.starts[index])
        return form is not None and form.shadow

    def toggled(self, index: int) -> bool:
        """True when the kernel has only ever a NOP or a jump at entry ``index``."""
        listing = self.code.listing
        return index < len(listing) and listing.starts[index] in self.flow.scan.hints.toggled

    def size(self, first: int, stop: int) -> int:
        """Bytes of entries [first, stop)."""
        listing = self.code.listing
        return listing.stop(stop - 1) - listing.starts[first]
