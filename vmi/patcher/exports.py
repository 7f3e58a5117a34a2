# SPDX-License-Identifier: GPL-2.0-only
"""What a Linux kernel offers to its modules: functions that nothing in the kernel itself may lead to.

A module can call each of them, so they are code even where no branch, pointer or unwind entry says so, and
what is sensitive in them must be dealt with. The table holds a word for each function, and others that name
strings; the words are distances from themselves, in older kernels addresses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from vmi.patcher.model import Image

PREFIX, STRINGS = "__ksymtab", "__ksymtab_strings"
_WORD = 4


def functions(image: Image, is_code: Callable[[int], bool]) -> Iterator[int]:
    """The addresses of exported functions; ``is_code`` tells whether an address lies in executable bytes.

    The records' size doesn't matter: no other word of theirs names code.
    """
    for section in image.sections:
        if not section.name.startswith(PREFIX) or section.name == STRINGS:
            continue
        data = image.read(section.vaddr, section.size)
        for at in range(0, len(data) - _WORD + 1, _WORD):
            word = int.from_bytes(data[at : at + _WORD], "little")
            for address in (word, word + section.vaddr + at & 0xFFFFFFFF):
                if is_code(address):
                    yield address
