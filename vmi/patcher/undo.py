# SPDX-License-Identifier: GPL-2.0-only
"""Take a patch back: a record behind the patched file, from which the original is made again.

Nothing that loads kernels looks behind an ELF file's or a bzImage's end, so the record needs no place of
its own. It holds what the patched file does not: mostly the bytes that were overwritten. For a bzImage it
also holds the settings of the compression, because a kernel that is compressed anew in the same way comes
out as it was, byte for byte; that is tried when the record is made, and where it does not hold there is no
record. A file in gzip whose compression can't be had again (gzip's own program and zlib differ) is in the
record whole.

Trying all of a bzImage's kernel takes longer than making the patch, and an encoder that makes the same of
the first PROOF bytes, with a hundred thousand choices among near matches, is the same encoder with the same
settings. So that much is tried, unless all is asked for. Whatever was tried, an original is only given out if
its SHA-256 is the one in the record; what can't be made again is refused.

Behind the patched file stand the body, compressed with xz, and the end, which is found from the file's end:

=====  ===============================================================================================
bytes  the end of a record
=====  ===============================================================================================
32     SHA-256 of the patched file, which is all that is before the record
32     SHA-256 of what is restored
4      bytes of the body (little-endian, as all numbers)
8      ``VMIUNDO2``
=====  ===============================================================================================

The body starts with a byte: 0 for a file that is restored from the patched one by a difference alone, 1 for
one that then goes into gzip, 2 for a bzImage, 3 for one that follows as it is. In 1 and 2 the settings of
the compression follow. In 2 come three numbers of 4 bytes, all of the original: where its compressed kernel
is, its size with the size word, and the bytes of its ELF file or 0 when no list of displaced words is behind
that. Then, in 2, 4 bytes with the size of the first difference; it is between the unpacked kernels, the list
being in its packed form. The last or only difference is between the rest of the files, for a bzImage without
its payload.
"""

from __future__ import annotations

import hashlib
import lzma
import struct
from dataclasses import dataclass, field

from vmi.errors import BadInput
from vmi.patcher import compression, delta, displaced, elf
from vmi.patcher.compression import Format, Recipe
from vmi.patcher.container import Container, Gzip, Linux, open_container

MAGIC = b"VMIUNDO2"

_END = struct.Struct("<32s32sI8s")
_RECIPE = struct.Struct("<8BIH")
_IMAGE = struct.Struct("<III")
_SIZE = struct.Struct("<I")
_ELF, _GZIP, _BZIMAGE, _WHOLE = 0, 1, 2, 3
_FORMATS = tuple(Format)

PROOF = 4 << 20
"""Bytes of a kernel whose compression is tried when a record is made: as long as planning its patch takes."""

_DAMAGED = "the file's record for taking its patch back is damaged"
_OTHERWISE = (
    "the original's compression can't be had again here, so the patch can't be taken back: another program "
    "made it, or the file's record is damaged"
)
_NO_SETTINGS = "the settings of its compression can't be found out"


@dataclass(frozen=True, slots=True)
class Sealed:
    """A patched file with its record; ``note`` is a sentence on what can't be restored, else empty."""

    data: bytes = field(repr=False)
    note: str = ""


def recipe(original: Container, whole: bool = False) -> Recipe | None:
    """The settings that compress the kernel of a file to what it has in it, None when there are none.

    ``whole``: all of a bzImage's kernel is compressed to see that, which takes some 10 s, most of them
    without the interpreter's lock; else its first PROOF bytes are.
    """
    if isinstance(original, Gzip):
        return compression.find(original.kernel, original.data, Format.GZIP)
    if isinstance(original, Linux):
        payload = original.image.payload
        packed = original.data[payload.start : payload.end - len(_size_word(payload.format, b""))]
        most = compression.LIMIT if whole else PROOF
        return compression.find(payload.unpacked, packed, payload.format, most)
    return None


def untried(original: Container) -> str:
    """A sentence on what :func:`recipe` does not try unless it is to try the whole; empty for nothing."""
    if not isinstance(original, Linux) or len(original.image.payload.unpacked) <= PROOF:
        return ""
    return (
        f"that the original's compression can be had again was tried on the first {PROOF >> 20} MiB of its "
        "kernel (on all of it with --prove-undo)"
    )


@dataclass(frozen=True, slots=True)
class Ahead:
    """What of a bzImage's record is known before its kernel is compressed: the difference of the kernels."""

    difference: bytes = field(repr=False)


def ahead(original: Container, kernel: bytes) -> Ahead | None:
    """Begin the record of a file that will have the patched ``kernel`` in it; None if that gains nothing."""
    if not isinstance(original, Linux):
        return None
    if original.relocatable:
        kernel += bytes(-len(kernel) % displaced.WORD)  # as the bzImage will have it
    return Ahead(delta.encode(kernel, _original_kernel(original)))


def seal(original: Container, output: bytes, settings: Recipe | None, begun: Ahead | None = None) -> Sealed:
    """Put a record behind the patched file ``output``.

    ``settings`` are what :func:`recipe` gives, ``begun`` what :func:`ahead` gave for the kernel
    that is in ``output``, if it was asked.
    """
    if isinstance(original, Linux):
        if settings is None:
            return Sealed(output, f"the patch can't be taken back, since {_NO_SETTINGS}")
        body = _image_body(original, output, settings, begun)
    elif isinstance(original, Gzip) and settings is None:
        body = bytes([_WHOLE]) + original.data
    elif isinstance(original, Gzip) and settings is not None:
        body = bytes([_GZIP]) + _recipe_bytes(settings) + delta.encode(output, original.kernel)
    else:
        body = bytes([_ELF]) + delta.encode(output, original.kernel)
    return _sealed(output, body, original.data)


def restore(data: bytes) -> bytes:
    """The original of a patched file, which may be in gzip itself; raises BadInput.

    Every byte is checked: what is returned is what was patched. Takes as long as compressing it does.
    """
    if data[:2] == elf.GZIP_MAGIC:
        data = elf.gunzip(data)
    at = data.rfind(MAGIC)
    if at < 0:
        raise BadInput("the file has no record for taking a patch back")
    start = at + len(MAGIC) - _END.size
    changed = BadInput("the file was changed after it was patched, so the patch can't be taken back")
    if at + len(MAGIC) != len(data) or start < 0:
        raise changed
    patched_sum, original_sum, size, _magic = _END.unpack_from(data, start)
    if size > start or hashlib.sha256(data[: start - size]).digest() != patched_sum:
        raise changed
    try:
        body = _unpacked(data[start - size : start])
        original = _restored(data[: start - size], body)
    except (BadInput, ValueError, struct.error, IndexError) as error:
        raise BadInput(_DAMAGED) from error
    if hashlib.sha256(original).digest() != original_sum:
        raise BadInput(_OTHERWISE if body[0] in (_GZIP, _BZIMAGE) else _DAMAGED)
    return original


def _sealed(output: bytes, body: bytes, original: bytes) -> Sealed:
    packed = lzma.compress(body, lzma.FORMAT_XZ, lzma.CHECK_CRC32, preset=6 | lzma.PRESET_EXTREME)
    sums = hashlib.sha256(output).digest(), hashlib.sha256(original).digest()
    return Sealed(output + packed + _END.pack(*sums, len(packed), MAGIC))


def _unpacked(packed: bytes) -> bytes:
    data, rest = compression.unpack(packed, Format.XZ)
    if rest:
        raise BadInput("there is more behind the record's body")
    return data


def _restored(output: bytes, body: bytes) -> bytes:
    kind = body[0]
    if kind == _ELF:
        return delta.decode(output, body[1:])
    if kind == _WHOLE:
        return body[1:]
    settings, at = _recipe_from(body, 1)
    if kind == _GZIP:
        return settings.compress(delta.decode(output, body[at:]))
    if kind != _BZIMAGE:
        raise BadInput(f"a record of kind {kind} is not known")
    start, room, kernel_size = _IMAGE.unpack_from(body, at)
    (size,) = _SIZE.unpack_from(body, at + _IMAGE.size)
    at += _IMAGE.size + _SIZE.size
    kernel = delta.decode(_patched_kernel(output), body[at : at + size])
    if kernel_size:
        kernel = kernel[:kernel_size] + displaced.append(displaced.unpack(kernel[kernel_size:]))
    payload = settings.compress(kernel) + _size_word(settings.format, kernel)
    frame = delta.decode(_without(output, start, room), body[at + size :])
    return frame[:start] + payload + frame[start:]


def _image_body(original: Linux, output: bytes, settings: Recipe, begun: Ahead | None) -> bytes:
    payload = original.image.payload
    room = payload.end - payload.start
    if begun is None:
        begun = Ahead(delta.encode(_patched_kernel(output), _original_kernel(original)))
    kernels = begun.difference
    frames = delta.encode(_without(output, payload.start, room), _without(original.data, payload.start, room))
    kernel_size = 0 if payload.words is None else payload.kernel_size
    numbers = _IMAGE.pack(payload.start, room, kernel_size) + _SIZE.pack(len(kernels))
    return bytes([_BZIMAGE]) + _recipe_bytes(settings) + numbers + kernels + frames


def _original_kernel(original: Linux) -> bytes:
    """What a bzImage unpacks to, its list in the form that the patched kernel has it in, somewhere.

    Then the difference is only what was changed.
    """
    payload = original.image.payload
    if payload.words is None:
        return payload.unpacked
    return payload.kernel + displaced.pack(payload.words)


def _patched_kernel(output: bytes) -> bytes:
    container = open_container(output)
    if not isinstance(container, Linux):
        raise BadInput("the patched file must be a bzImage, as its original was")
    return container.kernel


def _without(data: bytes, start: int, size: int) -> bytes:
    return data[:start] + data[start + size :]


def _size_word(kind: Format, kernel: bytes) -> bytes:
    """What Linux's build puts behind compressed data; gzip has it already."""
    return b"" if kind is Format.GZIP else _SIZE.pack(len(kernel))


def _recipe_bytes(settings: Recipe) -> bytes:
    one = (_FORMATS.index(settings.format), settings.level, settings.extreme, settings.check, settings.x86)
    header = settings.header
    return _RECIPE.pack(*one, *settings.literal, settings.dictionary, len(header)) + header


def _recipe_from(body: bytes, at: int) -> tuple[Recipe, int]:
    """The settings at a place of the body, and the place behind them."""
    kind, level, extreme, check, x86, lc, lp, pb, dictionary, size = _RECIPE.unpack_from(body, at)
    at += _RECIPE.size
    if dictionary > compression.DICTIONARY or level > 9:
        raise BadInput("the record's settings are out of range")
    header = body[at : at + size]
    settings = Recipe(
        _FORMATS[kind], level, bool(extreme), check, bool(x86), dictionary, (lc, lp, pb), header
    )
    return settings, at + size
