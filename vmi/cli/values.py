# SPDX-License-Identifier: GPL-2.0-only
"""Words of the command line turned into values: sizes, times, addresses, kernels, ROMs, boot modules.

Sizes and module syntax follow qemu-system. Everything that is not understood raises a UsageError that says
what would have been.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vmi.errors import BadInput, UsageError
from vmi.files import read_input
from vmi.native import keyboard
from vmi.native.boot.firmware import can_be_mapped
from vmi.native.boot.memory_map import RAM_LIMIT

if TYPE_CHECKING:
    from vmi.native.boot.state import Module
    from vmi.native.cpuid import CpuModel
    from vmi.native.disk import Disk
    from vmi.native.keyboard import KeyEvent

_UNITS = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
_TIMES = {"ns": 1, "us": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}
_PAUSE = re.compile(r"<([0-9.]+(?:ns|us|ms|s|m|h))>")
_PAGE = 4096
_LEAST = 1 << 20  # bytes of RAM
_SECTOR, _LARGEST_ROM = 512, 1 << 20  # bytes of an option ROM
_ROM_SIGNATURE = b"\x55\xaa"

_WRITABLE = ",rw"

SAMPLE = "sample:"


def memory_size(text: str) -> int:
    """Bytes of RAM from ``64`` (MiB), ``64M``, ``65536K`` or ``1G``: 1 MiB to 3.5 GiB, whole pages."""
    match = re.fullmatch(r"(\d{1,12})([kmg]?)", text.strip().lower(), re.ASCII)
    size = int(match[1]) * _UNITS[match[2] or "m"] if match else 0
    if not _LEAST <= size <= RAM_LIMIT or size % _PAGE:
        raise UsageError(
            f"memory size {text!r} is not understood: expected a number of MiB or one with K, M or G, "
            f"from 1M to {RAM_LIMIT >> 20}M, in whole pages of 4K"
        )
    return size


def duration(text: str) -> int | None:
    """Nanoseconds from ``60s``, ``1.5m``, ``200ms``, a bare number of seconds, or None for ``none``."""
    word = text.strip().lower()
    if word == "none":
        return None
    match = re.fullmatch(r"(\d{1,12})(?:\.(\d{1,9}))?(ns|us|ms|s|m|h)?", word, re.ASCII)
    if match is None or not (nanoseconds := _nanoseconds(*match.groups())):
        raise UsageError(
            f"time {text!r} is not understood: expected 'none', or a number above 0 in ns, us, ms, s, m or h"
        )
    return nanoseconds


def typed(text: str) -> list[tuple[int, list[KeyEvent]]]:
    """Pauses in ns of guest time, each with what is typed after it: ``<2s><Esc>ls\\n``.

    Keys are those of :func:`vmi.native.keyboard.keys`. Here a backslash and an n are Enter, since a line end
    is hard to write on a command line.
    """
    pieces = _PAUSE.split(text.replace("\\n", "\n"))
    waits = [0, *(duration(word) or 0 for word in pieces[1::2])]
    return list(zip(waits, map(keyboard.keys, pieces[0::2]), strict=True))


def _nanoseconds(whole: str, fraction: str | None, unit: str | None) -> int:
    # In integers, so that 0.1s is the same number everywhere.
    scale, billionths = _TIMES[unit or "s"], int((fraction or "").ljust(9, "0"))
    return int(whole) * scale + billionths * scale // 10**9


def text(word: str | None) -> bytes | None:
    """The bytes of a word of the command line; None for none. UsageError if it is empty."""
    if word == "":
        raise UsageError("the text to wait for must not be empty")
    return None if word is None else word.encode(errors="surrogateescape")


def address(text: str) -> int:
    """A 32-bit guest address: hexadecimal with or without 0x, as disassemblers print it."""
    match = re.fullmatch(r"(?:0x)?([0-9a-f]{1,8})", text.strip().lower(), re.ASCII)
    if match is None:
        raise UsageError(
            f"address {text!r} is not understood: expected up to 8 hexadecimal digits, like c0100000"
        )
    return int(match[1], 16)


@dataclass(frozen=True)
class Kernel:
    """A kernel image and the name the user gave it."""

    name: str
    data: bytes
    path: Path | None = None

    @property
    def patched(self) -> bool:
        """Whether it has a `.vmi` segment; raises BadInput for what is no i386 kernel."""
        from vmi.patcher import elf

        return elf.vmi_segment(elf.load(self.data, patched=True)) is not None

    def __repr__(self) -> str:
        return f"Kernel({self.name}, {len(self.data)} bytes)"


def kernel(text: str) -> Kernel:
    """A kernel by file name, or one of the samples that come with the toolkit by ``sample:NAME``."""
    if text.startswith(SAMPLE):
        from vmi import samples

        return Kernel(text, read_input(samples.get(text.removeprefix(SAMPLE)).path, "sample kernel"))
    return Kernel(text, read_input(text, "kernel"), Path(text))


def rom(text: str) -> bytes:
    """A ROM image by the name of a flavour, or by file name."""
    from vmi.rom.build import named

    return named(text)


def firmware(text: str) -> bytes:
    """Firmware by file name: up to 8 MiB in whole 64 KiB, as QEMU wants it too."""
    data = read_input(text, "firmware")
    if not can_be_mapped(data):
        raise BadInput(
            f"firmware {text!r} must have a multiple of 64 KiB up to 8 MiB, but it has {len(data)} bytes"
        )
    return data


def video_bios(text: str) -> bytes:
    """The VGA's option ROM by file name: 512 bytes to 1 MiB, with the signature that firmware looks for."""
    data = read_input(text, "video BIOS")
    if not _SECTOR <= len(data) <= _LARGEST_ROM:
        raise BadInput(f"video BIOS {text!r} must have 512 bytes to 1 MiB, but it has {len(data)} bytes")
    if data[:2] != _ROM_SIGNATURE:
        raise BadInput(f"video BIOS {text!r} must start with 55 aa, but it starts with {data[:2].hex(' ')}")
    return data


def cpu(text: str | None) -> CpuModel | None:
    """A processor model by name; None for the mode's own choice."""
    from vmi.native.cpuid import MODELS

    if text is None:
        return None
    if text not in MODELS:
        raise UsageError(f"processor {text!r} is not understood: expected one of {', '.join(MODELS)}")
    return MODELS[text]


def disks(texts: Sequence[str]) -> list[Disk]:
    """Disk images from ``FILE`` or ``FILE,rw``, up to 4."""
    from vmi.native.disk import MOST_DISKS, open_image

    if len(texts) > MOST_DISKS:
        raise UsageError(f"there can be up to {MOST_DISKS} disks, but {len(texts)} were given")
    words = [(text.removesuffix(_WRITABLE), text.endswith(_WRITABLE)) for text in texts]
    _check_once(words)
    return [open_image(name, writable=writable) for name, writable in words]


def _check_once(words: Sequence[tuple[str, bool]]) -> None:
    """Two disks over one image that one of them changes would each see half of what is written."""
    seen: dict[tuple[int, int], bool] = {}
    for name, writable in words:
        with contextlib.suppress(OSError, ValueError):  # whoever opens it says why it can't be opened
            found = os.stat(name)
            file = (found.st_dev, found.st_ino)
            if file in seen and (writable or seen[file]):
                raise UsageError(f"disk image {name!r} can't be given twice if one of the two is rw")
            seen[file] = writable


def module(text: str) -> Module:
    """A multiboot module from ``FILE`` or ``FILE,ARGUMENTS``; its string is both, as with QEMU."""
    from vmi.native.boot.state import Module

    name, _, _arguments = text.partition(",")
    if not name:
        raise UsageError(f"module {text!r} is not understood: expected FILE or FILE,ARGUMENTS")
    return Module(read_input(name, "module"), text.replace(",", " ", 1))


@dataclass(frozen=True)
class Serial:
    """Where the guest's first serial port goes: this terminal, one of our own, a file, or nowhere."""

    terminal: bool
    file: Path | None = None
    pty: bool = False


def serial(text: str) -> Serial:
    """``stdio``, ``pty``, ``file:PATH`` or ``none``."""
    if text in ("stdio", "none", "pty"):
        return Serial(terminal=text == "stdio", pty=text == "pty")
    kind, _, path = text.partition(":")
    if kind == "file" and path:
        return Serial(terminal=False, file=Path(path))
    raise UsageError(f"serial port {text!r} is not understood: expected stdio, pty, file:PATH or none")
