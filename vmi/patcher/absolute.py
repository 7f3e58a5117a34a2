# SPDX-License-Identifier: GPL-2.0-only
"""Find the absolute addresses in code of our own, for a kernel that may run elsewhere than linked.

They are not looked for by decoding: the code is made a second time, for addresses that are all larger by
the same amount, and the two are compared. Whatever the code's maker does with an address, a word that
must move along shows itself so, and anything else that depends on an address is found out.
"""

from __future__ import annotations

from vmi.patcher.model import Site

WORD = 4
SHIFT = 0x01010101
"""What addresses are moved by for the comparison: it changes every byte of a word that it is added to."""


def differences(code: bytes, shifted: bytes) -> tuple[int, ...]:
    """Offsets of the words in ``code`` that are larger by SHIFT in ``shifted``.

    Raises ValueError when the two differ in any other way.
    """
    if len(code) != len(shifted):
        raise ValueError("code that is made for other addresses has another length")
    found = []
    at = 0
    while at < len(code):
        if code[at] == shifted[at]:
            at += 1
            continue
        if moved(code[at : at + WORD]) != shifted[at : at + WORD]:
            raise ValueError(f"byte {at} of the code depends on its address in an unknown way")
        found.append(at)
        at += WORD
    return tuple(found)


def moved(word: bytes) -> bytes:
    """The bytes of a word with SHIFT added."""
    return (int.from_bytes(word, "little") + SHIFT & 0xFFFFFFFF).to_bytes(WORD, "little")


def moved_site(site: Site, words: tuple[int, ...]) -> bytes:
    """The site's bytes with SHIFT added to the words at these offsets."""
    raw = site.raw
    for at in words:
        raw = raw[:at] + moved(raw[at : at + WORD]) + raw[at + WORD :]
    return raw
