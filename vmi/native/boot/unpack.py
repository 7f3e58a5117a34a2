# SPDX-License-Identifier: GPL-2.0-only
"""Undo the compression that kernel files often have.

A kernel is unpacked once, before its kind is found out: a compressed file shows no headers.
"""

from __future__ import annotations

import zlib

from vmi.errors import BadInput

_GZIP = b"\x1f\x8b"
UNPACKED_LIMIT = 256 << 20  # bytes; more is no kernel, but would take all of this computer's memory


def unpack(image: bytes) -> bytes:
    """Undo gzip compression if there is any. BadInput if it is damaged or expands to over 256 MiB."""
    if not image.startswith(_GZIP):
        return image
    stream = zlib.decompressobj(wbits=31)
    try:
        data = stream.decompress(image, UNPACKED_LIMIT)
    except zlib.error:
        raise BadInput("the kernel's gzip data is damaged") from None
    if stream.unconsumed_tail:
        raise BadInput(f"the compressed kernel expands to more than {UNPACKED_LIMIT >> 20} MiB")
    if not stream.eof:
        raise BadInput("the kernel's gzip data ends too early")
    return data
