# SPDX-License-Identifier: GPL-2.0-only
"""The file that a kernel comes in: an ELF file, one in gzip, or Linux's bzImage.

The patcher proper sees ELF files only. A container gives it the one inside, and makes the file to hand
out of the patched one. What is special about a kind of file stays in here and below.
"""

from __future__ import annotations

import gzip
import io
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from enum import StrEnum

from vmi.patcher import bzimage, elf
from vmi.patcher.blocks import Packing
from vmi.patcher.model import Image

_GZIP_LEVEL = 9


class Kind(StrEnum):
    ELF = "elf"
    GZIP = "gzip"
    BZIMAGE = "bzimage"


@dataclass(frozen=True)
class Container(ABC):
    """An opened file: ``kernel`` is the ELF file in it, not yet checked further.

    ``displaced`` are the addresses, in order, of the words that the boot code moves along with the kernel
    (only in bzImages). ``notes`` are sentences for the report on what becomes of the file around the
    kernel when it is packed again.
    """

    data: bytes = field(repr=False)
    kernel: bytes = field(repr=False)
    displaced: tuple[int, ...] = field(default=(), repr=False)
    notes: tuple[str, ...] = ()

    @property
    @abstractmethod
    def kind(self) -> Kind: ...

    def begin(self, kernel: Image) -> Packing | None:
        """Do what can be done of :meth:`pack` while the kernel, as given, is still to be changed; None for
        nothing. Takes a second for a bzImage, without the interpreter's lock."""
        return None

    @abstractmethod
    def pack(self, kernel: bytes, begun: Packing | None = None) -> bytes:
        """The whole file with another kernel in it, the same bytes for the same kernel; BadInput when it
        can't be. Takes seconds for a bzImage, most of them without the interpreter's lock.

        ``begun`` is what :meth:`begin` gave. The bytes depend on whether it was asked.
        """


@dataclass(frozen=True)
class Plain(Container):
    """An ELF file."""

    @property
    def kind(self) -> Kind:
        return Kind.ELF

    def pack(self, kernel: bytes, begun: Packing | None = None) -> bytes:
        return kernel


@dataclass(frozen=True)
class Gzip(Container):
    """An ELF file in gzip, as boot loaders accept it. It is given out unpacked; whoever names the file that
    it goes into decides on :func:`in_gzip`."""

    @property
    def kind(self) -> Kind:
        return Kind.GZIP

    def pack(self, kernel: bytes, begun: Packing | None = None) -> bytes:
        return kernel


@dataclass(frozen=True)
class Linux(Container):
    """A bzImage. ``relocatable``: its boot code displaces the kernel by the list that was behind it."""

    image: bzimage.BzImage = field(kw_only=True)

    @property
    def kind(self) -> Kind:
        return Kind.BZIMAGE

    @property
    def relocatable(self) -> bool:
        return self.image.payload.words is not None

    def begin(self, kernel: Image) -> Packing | None:
        return self.image.begin(kernel)

    def pack(self, kernel: bytes, begun: Packing | None = None) -> bytes:
        return self.image.pack(kernel, begun)


def open_container(data: bytes) -> Container:
    """Find out what a file is and get the kernel out of it; raises BadInput.

    What is neither gzip nor a bzImage is taken for an ELF file, and whoever reads that says what is wrong.
    """
    if data[:2] == elf.GZIP_MAGIC:
        return Gzip(data, elf.gunzip(data))
    if not bzimage.recognise(data):
        return Plain(data, data)
    image = bzimage.read(data)
    notes = []
    if image.signed:
        notes.append("the signature was removed, since it is not valid for a changed file")
    return Linux(data, image.payload.kernel, image.payload.words or (), tuple(notes), image=image)


def in_gzip(data: bytes) -> bytes:
    """A file in gzip, without a name and time: the same bytes for the same file."""
    target = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", compresslevel=_GZIP_LEVEL, fileobj=target, mtime=0) as stream:
        stream.write(data)
    return target.getvalue()
