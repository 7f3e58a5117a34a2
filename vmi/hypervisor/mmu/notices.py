# SPDX-License-Identifier: GPL-2.0-only
"""What a ROM tells the hypervisor of page-table entries without leaving the guest: a list of addresses.

The list is in the guest's memory and so says what the guest wants it to say. It is only ever a hint where
to look: each address is looked up in the guest's own tables, as everything that a guest points at.
"""

from __future__ import annotations

from typing import Protocol


class Notices(Protocol):
    """The ROM's side of page-table updates."""

    def want(self, wanted: bool) -> None:
        """Have the ROM tell of changed entries from now on, or not."""

    def take(self) -> list[int]:
        """Linear addresses of entries that changed since the last look, oldest first; bounded."""

    def linear_maps(self) -> list[tuple[int, int, int]]:
        """Where entries are: first linear address, number of pages, first frame of each linear mapping."""

    def show_uncached(self, page: int | None) -> None:
        """The processor has cached nothing of this page, by its address in the kernel's segments.

        None: of none we know.
        """


class NoNotices:
    """For a guest without a ROM, which tells nothing."""

    def want(self, wanted: bool) -> None:
        """See :class:`Notices`."""

    def take(self) -> list[int]:
        """See :class:`Notices`."""
        return []

    def linear_maps(self) -> list[tuple[int, int, int]]:
        """See :class:`Notices`."""
        return []

    def show_uncached(self, page: int | None) -> None:
        """See :class:`Notices`."""
