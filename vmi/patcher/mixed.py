# SPDX-License-Identifier: GPL-2.0-only
"""Refuses images whose executable part is code and text mixed, where sites can't be told from data.

Some loaders put strings and other tables among their instructions. Swept as code, those give thousands of
`ins` and `outs` that are letters. Compilers and kernel authors never write the instructions of old that
letters decode to (`arpl`, `bound`, `aaa` and their kind), so their share tells such an image at once: it is
nil in every kernel looked at, and 1 in 50 in a boot loader's core image.

Code for 16-bit segments is refused likewise: all of its instructions mean something else in 32-bit ones.
Where compilers make it, they give every second instruction a prefix for 32-bit addresses, which no one
writes in 32-bit code.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from vmi.errors import BadInput
from vmi.patcher.flow import Code, Flow

MOST = 16
"""So many are let pass whatever their share: a kernel may hold some bytes of data that look reached."""

SHARE = 500
"""One in so many instructions at most."""

# arpl, bound, daa, das, aaa, aas, into, aam, aad, salc, les, lds: one byte each in 32-bit mode
_OF_OLD = frozenset((0x63, 0x62, 0x27, 0x2F, 0x37, 0x3F, 0xCE, 0xD4, 0xD5, 0xD6, 0xC4, 0xC5))
# and ins or outs with a buffer in FS or GS: those letters in a word
_STRING_IO = (b"\x6c", b"\x6d", b"\x6e", b"\x6f")
_SUSPECT = bytes(byte in _OF_OLD | {0x64, 0x65} for byte in range(256))
_ADDRESS_SIZE = bytes(byte == 0x67 for byte in range(256))
_MARKED = re.compile(b"\1")
_PADDED = (b"\xe3", b"\xe8", b"\xe9")  # jcxz; calls and jumps that linkers make longer by the prefix


def refuse_mixed(found: Flow) -> None:
    """Raise BadInput when too many instructions that seem to run are of a kind that nobody writes."""
    odd = [address for code in found.codes for address in _odd(code)]
    count = found.scan.instructions
    most = max(MOST, count // SHARE)
    if len(odd) > most:
        raise BadInput(
            f"text and code are mixed in the executable part of this file: {len(odd)} of its {count} "
            f"instructions are ones that no compiler makes, the first at {odd[0]:#x}, so sites can't be told "
            "from data"
        )
    short = [address for code in found.codes for address in _short(code)]
    if len(short) > most:
        raise BadInput(
            f"the executable part of this file holds 16-bit code: {len(short)} of its {count} instructions "
            f"have 16-bit addresses if taken for 32-bit code, the first at {short[0]:#x}, and only 32-bit "
            "code can be patched"
        )


def _odd(code: Code) -> Iterator[int]:
    for start, first, second in _starting(code, _SUSPECT):
        if first in _OF_OLD or second in _STRING_IO:
            yield start


def _short(code: Code) -> Iterator[int]:
    return (start for start, _first, second in _starting(code, _ADDRESS_SIZE) if second not in _PADDED)


def _starting(code: Code, wanted: bytes) -> Iterator[tuple[int, int, bytes]]:
    """(address, first byte, second byte) of the reached instructions whose first byte is 1 in ``wanted``."""
    listing, data = code.listing, code.listing.data
    for match in _MARKED.finditer(listing.at_starts(data.translate(wanted))):
        if code.reached[match.start()]:
            start = listing.starts[match.start()]
            at = start - listing.start
            yield start, data[at], data[at + 1 : at + 2]
