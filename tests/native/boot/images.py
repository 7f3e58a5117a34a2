# SPDX-License-Identifier: GPL-2.0-only
"""Small kernel images of each kind, made of bytes, for the tests of the loaders."""

from __future__ import annotations

import re
import struct

import pytest

from vmi.errors import BadInput, UsageError

RAM = 4 << 20
MULTIBOOT_MAGIC = 0x1BADB002
BODY = b"KERNEL"


def refused(sentence, kind=BadInput):
    """The whole sentence of a refusal."""
    return pytest.raises(kind, match=f"^{re.escape(sentence)}$")


def misused(sentence):
    """The whole sentence about a request that makes no sense."""
    return refused(sentence, UsageError)


def header(flags=3, *addresses):
    """A multiboot header, with addresses if there are any."""
    words = (MULTIBOOT_MAGIC, flags, -(MULTIBOOT_MAGIC + flags) & 0xFFFFFFFF, *addresses)
    return struct.pack(f"<{len(words)}I", *words)


def note(owner=b"Xen\0", kind=18, data=b"\x00\x00\x10\x00", align=4):
    """An ELF note."""
    raw = struct.pack("<3I", len(owner), len(data), kind) + owner
    raw += bytes(-len(raw) % align) + data
    return raw + bytes(-len(raw) % align)


def elf_kernel(*segments, entry=0x100000, text=BODY, notes=b"", bits=1):
    """An ELF kernel: segments are (paddr, memsz), each starts with the file's text."""
    segments = segments or ((0x100000, 0x100),)
    count = len(segments) + bool(notes)
    offset = 52 + 32 * count
    ident = b"\x7fELF" + bytes([bits, 1, 1])
    ehdr = struct.pack("<16sHHIIIIIHHHHHH", ident, 2, 3, 1, entry, 52, 0, 0, 52, 32, count, 0, 0, 0)
    phdrs = b"".join(
        struct.pack("<8I", 1, offset, paddr, paddr, min(len(text), memsz), memsz, 7, 4)
        for paddr, memsz in segments
    )
    if notes:
        phdrs += struct.pack("<8I", 4, offset + len(text), 0, 0, len(notes), len(notes), 4, 4)
    return ehdr + phdrs + text + notes


#: What a bzImage of protocol 2.15 has in its setup header, as offset: (bytes, value).
SETUP = {
    0x1F1: (1, 1), 0x1F4: (4, 4), 0x1FA: (2, 0xFFFF), 0x1FE: (2, 0xAA55), 0x200: (2, 0x6AEB),
    0x202: (4, 0x53726448), 0x206: (2, 0x20F), 0x211: (1, 1), 0x214: (4, 0x100000),
    0x22C: (4, 0x7FFFFFFF), 0x230: (4, 0x1000), 0x234: (1, 1), 0x235: (1, 12), 0x238: (4, 2047),
    0x258: (8, 0x100000), 0x260: (4, 0x10000),
}  # fmt: skip


def bzimage(changes=None, code=b"\xf4" * 64, sectors=2):
    """A bzImage of one setup sector after the first; ``changes`` replace header fields: offset to value."""
    image = bytearray(512 * sectors)
    for offset, (size, value) in SETUP.items():
        value = (changes or {}).get(offset, value)
        image[offset : offset + size] = value.to_bytes(size, "little")
    for offset, value in (changes or {}).items():
        if offset not in SETUP:
            image[offset : offset + len(value)] = value
    return bytes(image) + code
