# SPDX-License-Identifier: GPL-2.0-only
"""Small bzImages for the tests, made field by field around the small ELF kernels."""

from __future__ import annotations

import bz2
import lzma
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tests.patcher.elfs import PADDR, VADDR, Piece, Plan, kernel_code, make
from vmi.patcher import displaced

CODE_AT = 0x400
HEAD = bytes.fromhex("fcfa 8d86e8010000 039e60020000 81eb00100000").ljust(64, b"\x90")
PAYLOAD_AT = CODE_AT + len(HEAD)
INIT_SIZE = 0x40000
PE_AT = 0x40
WORDS = 1200
"""Words in the list: enough that a kernel with the list packed takes less room than the original."""


def xz(data: bytes) -> bytes:
    filters: list[dict[str, int]] = [
        {"id": lzma.FILTER_X86},
        {"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": 1 << 20},
    ]
    return lzma.compress(data, lzma.FORMAT_XZ, lzma.CHECK_CRC32, filters=filters)


def gzip(data: bytes) -> bytes:
    encoder = zlib.compressobj(9, zlib.DEFLATED, -15)
    header = bytes.fromhex("1f8b08000000000002 03")
    return header + encoder.compress(data) + encoder.flush() + struct.pack("<II", zlib.crc32(data), len(data))


def lzma_alone(data: bytes) -> bytes:
    filters = [{"id": lzma.FILTER_LZMA1, "preset": 6, "dict_size": 1 << 20}]
    return lzma.compress(data, lzma.FORMAT_ALONE, filters=filters)


COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "xz": xz,
    "gzip": gzip,
    "lzma": lzma_alone,
    "bzip2": bz2.compress,
}


def words(count: int = WORDS) -> list[int]:
    """Addresses in the data of :func:`kernel`, at uneven distances."""
    found, address = [], VADDR + 0x1000
    for number in range(count):
        address += 4 + (number * number * 7 + number * 13) % 11
        found.append(address)
    return found


def kernel(data_size: int = 0x4000) -> bytes:
    """A kernel whose data has room for the words."""
    data = struct.pack(f"<{data_size // 4}I", *(VADDR + n % 64 for n in range(data_size // 4)))
    return make(
        Plan(
            [
                Piece(VADDR, kernel_code(), section=".text"),
                Piece(VADDR + 0x1000, data, memsz=data_size + 0x234, flags=6, section=".data"),
            ]
        )
    )


@dataclass
class Image:
    """Everything about a bzImage to be made; a change of one of these breaks what its name says."""

    elf: bytes = field(default_factory=kernel)
    words: Sequence[int] | None = field(default_factory=words)
    compression: str = "xz"
    head: bytes = HEAD
    version: int = 0x20F
    loadflags: int = 1
    xloadflags: int = 0
    payload: bytes | None = None  # in place of all that is above, the size word included
    size_word: int | None = None
    input_words: int = 1  # how often the boot code holds it
    output_words: int = 1
    checksum: bool = True
    pe: str = ""  # "fixed", "stretched" (its size is init_size)
    signature: bytes = b""

    @property
    def unpacked(self) -> bytes:
        return self.elf if self.words is None else self.elf + displaced.append(self.words)

    def packed(self) -> bytes:
        """The payload with its size word."""
        if self.payload is not None:
            return self.payload
        size = len(self.unpacked) if self.size_word is None else self.size_word
        compressed = COMPRESSIONS[self.compression](self.unpacked)
        return compressed if self.compression == "gzip" else compressed + struct.pack("<I", size)

    def make(self) -> bytes:
        payload = self.packed()
        unpacked = len(self.unpacked) if self.size_word is None else self.size_word
        code = bytearray(self.head + payload)
        code += b"\x90" * 31
        code += struct.pack("<I", len(payload)) * self.input_words
        code += struct.pack("<I", unpacked) * self.output_words
        code += b"rest of the boot code" + bytes(4)
        code = code.ljust(-(-len(code) // 16) * 16, b"\0")
        image = bytearray(CODE_AT) + code
        self._header(image, len(code), len(payload))
        if self.pe:
            self._pe(image)
        if self.checksum:
            image[-4:] = struct.pack("<I", zlib.crc32(image[:-4]) ^ 0xFFFFFFFF)
        if self.signature:
            at = PE_AT + 24
            struct.pack_into("<I", image, at + 64, 0x12345678)
            struct.pack_into("<II", image, at + 96 + 32, len(image), len(self.signature))
            image += self.signature
        return bytes(image)

    def _header(self, image: bytearray, code_size: int, payload_size: int) -> None:
        image[0x1F1] = CODE_AT // 512 - 1
        struct.pack_into("<I", image, 0x1F4, code_size // 16)
        image[0x1FE:0x202] = b"\x55\xaa\xeb\x6a"
        struct.pack_into("<4sH", image, 0x202, b"HdrS", self.version)
        image[0x211] = self.loadflags
        struct.pack_into("<H", image, 0x236, self.xloadflags)
        struct.pack_into("<II", image, 0x248, len(self.head), payload_size)
        struct.pack_into("<QI", image, 0x258, PADDR, INIT_SIZE)

    def _pe(self, image: bytearray) -> None:
        image[:2] = b"MZ"
        struct.pack_into("<I", image, 0x3C, PE_AT)
        sections, optional = 2, 96 + 6 * 8
        struct.pack_into("<4sHHIIIHH", image, PE_AT, b"PE\0\0", 0x14C, sections, 0, 0, 0, optional, 0x306)
        at = PE_AT + 24
        code = len(image) - CODE_AT
        memory = INIT_SIZE - CODE_AT if self.pe == "stretched" else code
        struct.pack_into("<HHI", image, at, 0x10B, 0x214, memory)
        struct.pack_into("<I", image, at + 56, CODE_AT + memory)
        struct.pack_into("<I", image, at + 92, 6)
        table = at + optional
        setup = (b".setup", 0x200, 0x200, 0x200, 0x200, 0, 0, 0, 0, 0x42000040)
        struct.pack_into("<8s6I2HI", image, table, *setup)
        text = (b".text", memory, CODE_AT, code, CODE_AT, 0, 0, 0, 0, 0x60000020)
        struct.pack_into("<8s6I2HI", image, table + 40, *text)
