# SPDX-License-Identifier: GPL-2.0-only
"""The PE/COFF header in front of a Linux image, by which EFI firmware starts it.

It must go on being true when the image changes. Three of its fields depend on the rest: the memory that
the image wants, where the boot code asks for more; the checksum; and the table of signatures, none of
which is valid for a changed file. Firmware does not read the checksum, and Linux's build leaves it zero,
so zero is what it becomes.
"""

from __future__ import annotations

from dataclasses import dataclass

from vmi.errors import BadInput

_POINTER_AT = 0x3C
_SIGNATURE = b"PE\0\0"
_COFF = 24  # bytes: signature and file header
_SECTIONS_AT, _OPTIONAL_SIZE_AT = 6, 20  # behind the signature's start, like the rest of these
_SECTION = 40  # bytes

# In the optional header, which is the same up to here in its 32-bit form (10B) and its 64-bit form (20B).
_SIZE_OF_CODE, _SIZE_OF_BSS, _SIZE_OF_IMAGE, _CHECKSUM = 4, 12, 56, 64
_DIRECTORIES = {0x10B: 96, 0x20B: 112}
_CERTIFICATES = 4
_CODE, _BSS = 0x20, 0x80  # what a section holds


@dataclass(frozen=True, slots=True)
class PeHeader:
    """Where the fields of the header are in the file, and the signatures it names as (offset, size)."""

    optional: int
    sections: tuple[int, ...]
    directory: int | None
    certificates: tuple[int, int] = (0, 0)


def read(image: bytes, limit: int) -> PeHeader | None:
    """The header, which must end before ``limit``; None when there is none, BadInput when it is broken."""
    at = int.from_bytes(image[_POINTER_AT : _POINTER_AT + 4], "little")
    if image[:2] != b"MZ" or image[at : at + 4] != _SIGNATURE:
        return None
    count = int.from_bytes(image[at + _SECTIONS_AT : at + _SECTIONS_AT + 2], "little")
    size = int.from_bytes(image[at + _OPTIONAL_SIZE_AT : at + _OPTIONAL_SIZE_AT + 2], "little")
    optional = at + _COFF
    end = optional + size + count * _SECTION
    directories = _DIRECTORIES.get(int.from_bytes(image[optional : optional + 2], "little"))
    if directories is None or size < directories or end > min(limit, len(image)):
        raise BadInput("the kernel's PE header is damaged")
    sections = tuple(range(optional + size, end, _SECTION))
    directory = optional + directories + _CERTIFICATES * 8
    if directory + 8 > optional + size or _u32(image, optional + directories - 4) <= _CERTIFICATES:
        return PeHeader(optional, sections, None)
    certificates = _u32(image, directory), _u32(image, directory + 4)
    return PeHeader(optional, sections, directory, certificates)


def without_signatures(image: bytearray, header: PeHeader) -> None:
    """Take checksum and signatures out of the header, as it was before the file was signed."""
    _put(image, header.optional + _CHECKSUM, 0)
    if header.directory is not None:
        image[header.directory : header.directory + 8] = bytes(8)


def grow(image: bytearray, header: PeHeader, before: int, after: int) -> None:
    """Let the image have ``after`` bytes of memory instead of ``before``, if that is what it has now.

    Linux's build either sets its size to that (init_size) and stretches the last section to it, or lets
    the boot code find memory for itself. In the second case nothing changes.
    """
    if _u32(image, header.optional + _SIZE_OF_IMAGE) != before or not header.sections:
        return

    def end(section: int) -> int:
        return _u32(image, section + 8) + _u32(image, section + 12)

    more = after - before
    last = max(header.sections, key=end)
    _add(image, last + 8, more)
    _add(image, header.optional + _SIZE_OF_IMAGE, more)
    kind = _u32(image, last + 36)
    if kind & _CODE:
        _add(image, header.optional + _SIZE_OF_CODE, more)
    elif kind & _BSS:
        _add(image, header.optional + _SIZE_OF_BSS, more)


def _u32(image: bytes | bytearray, at: int) -> int:
    return int.from_bytes(image[at : at + 4], "little")


def _put(image: bytearray, at: int, value: int) -> None:
    image[at : at + 4] = value.to_bytes(4, "little")


def _add(image: bytearray, at: int, more: int) -> None:
    _put(image, at, (_u32(image, at) + more) & 0xFFFFFFFF)
