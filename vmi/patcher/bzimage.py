# SPDX-License-Identifier: GPL-2.0-only
"""Linux's compressed image, bzImage: get the kernel out of it, put another one in its place.

From the front: the setup code with its header, the head of the 32-bit boot code, the compressed kernel
(the payload), and the rest of the boot code with its data. The boot code can't be linked again, so it
stays where it is, byte for byte, and a new payload has to fit into the old one's room. The payload's last
four bytes are the size it unpacks to, as Linux's build leaves it.

What has to follow the payload's new size: the fields payload_length and init_size of the setup header, the
two words in the boot code's data that hold the compressed and the unpacked size, the PE header of the EFI
stub, and the checksum at the end. Each is looked for and must be where it should; an image in which one is
not is refused.

The kernel is an ELF file. The boot code moves its segments to where they belong and then applies the list
of displaced words behind it. A new kernel must have its segments so that this still works, and brings an
empty list with it: it displaces itself.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from vmi.errors import BadInput, VerifyError
from vmi.patcher import compression, displaced, elf, peheader
from vmi.patcher.blocks import LEAST, Packing
from vmi.patcher.compression import Format
from vmi.patcher.model import Image
from vmi.patcher.peheader import PeHeader

MAGIC_AT, MAGIC = 0x202, b"HdrS"
_SECTOR = 512
_DEFAULT_SETUP_SECTORS = 4
_OLDEST = 0x20A
"""The boot protocol with init_size; of Linux 2.6.31."""
_LOADED_HIGH = 1
_PAGE = 0x1000

_SETUP_SECTS, _SYSSIZE, _VERSION, _LOADFLAGS = 0x1F1, 0x1F4, 0x206, 0x211
_XLOADFLAGS, _KERNEL_64 = 0x236, 1
_PAYLOAD_OFFSET, _PAYLOAD_LENGTH, _PREF_ADDRESS, _INIT_SIZE = 0x248, 0x24C, 0x258, 0x260
_HEADER_END = 0x264

_TAKES_INIT_SIZE = b"\x60\x02\x00\x00"
"""The offset of init_size in the zero page, as an instruction of the boot code's head has it."""

_ELF_CLASS_64 = 2
_FLAGS_64 = 0x20C
"""The boot protocol that tells whether the kernel has 64 bits."""
_ONLY_32 = "the kernel is a 64-bit Linux: only kernels for i386 can be patched"


def recognise(data: bytes) -> bool:
    """Whether the file has a Linux setup header."""
    return data[MAGIC_AT : MAGIC_AT + len(MAGIC)] == MAGIC


@dataclass(frozen=True, slots=True)
class Payload:
    """The compressed kernel: its place in the file with the size word, and what it unpacks to."""

    start: int
    end: int
    format: Format
    unpacked: bytes = field(repr=False)
    kernel_size: int
    words: tuple[int, ...] | None = field(repr=False)

    @property
    def kernel(self) -> bytes:
        """The ELF file alone."""
        return self.unpacked[: self.kernel_size]


@dataclass(frozen=True, slots=True)
class BzImage:
    """A bzImage whose parts all are where they should be.

    ``end`` is where the image ends; a signature may follow. ``input_at`` and ``output_at`` are the places
    of the boot code's words with the payload's size and the unpacked size. ``protocol`` is the version of the
    boot protocol (high byte major). ``checksum`` tells whether the
    image's last four bytes are its checksum.
    """

    data: bytes = field(repr=False)
    protocol: int
    payload: Payload
    end: int
    input_at: int
    output_at: int
    pe: PeHeader | None
    checksum: bool

    @property
    def signed(self) -> bool:
        return self.pe is not None and self.pe.certificates[1] > 0

    @property
    def room(self) -> int:
        """Bytes for the payload, the size word included."""
        return self.payload.end - self.payload.start

    def begin(self, kernel: Image) -> Packing | None:
        """Begin to pack a kernel that will be this one with changes; None if that gains nothing."""
        payload = self.payload
        base = next(compression.better(self.data[payload.start : payload.end], payload.format), None)
        if base is None or payload.format is not Format.XZ or payload.kernel_size < LEAST:
            return None
        return Packing(base, kernel)

    def pack(self, kernel: bytes, begun: Packing | None = None) -> bytes:
        """The image with another kernel in it; BadInput when that doesn't fit.

        It is checked that the new image unpacks to that.
        """
        unpacked = kernel
        if self.payload.words is not None:
            # The boot code looks for the list at the very end, in whole words.
            unpacked = kernel + bytes(-len(kernel) % displaced.WORD) + displaced.append(())
        self._check_segments(unpacked)
        old = self.data[self.payload.start : self.payload.end]
        packed = _squeeze(unpacked, old, self.payload.format, begun)
        image = self.assemble(packed, unpacked)
        if not read(image, unpacked).payload.kernel.startswith(kernel):
            raise VerifyError("the new image doesn't hold the kernel that was put into it")
        return image

    def assemble(self, packed: bytes, unpacked: bytes) -> bytes:
        """The image with this payload, which has its size word: everything that depends on it follows."""
        image = bytearray(self.data)
        payload = self.payload
        image[payload.start : payload.end] = packed.ljust(self.room, b"\0")
        _put(image, _PAYLOAD_LENGTH, len(packed))
        _put(image, self.input_at, len(packed))
        _put(image, self.output_at, len(unpacked))
        before = _u32(image, _INIT_SIZE)
        after = self._init_size(len(packed), unpacked)
        _put(image, _INIT_SIZE, after)
        if self.pe is not None:
            peheader.grow(image, self.pe, before, after)
            peheader.without_signatures(image, self.pe)
            if self.signed:
                del image[self.pe.certificates[0] :]
        if self.checksum:
            _put(image, self.end - 4, _checksum(image, self.end))
        return bytes(image)

    def _init_size(self, packed_size: int, unpacked: bytes) -> int:
        """The memory from where the kernel is unpacked to that it needs before it reads a memory map.

        It is the larger of two. One is what the kernel itself occupies. The other is for unpacking in
        place: the boot code moves the whole image to the *end* of this memory, so that what it has
        unpacked, growing from the front, never reaches what is still to be read. That takes the size of
        the boot code behind the payload, not known here with its zeroed data, plus

            unpacked size + unpacked size / 256 + 128 KiB - packed size

        (a constant of 64 KiB in older ones). The original's memory is enough for the original's sizes,
        whatever the unknown part is, so adding the growth of that sum is enough for the new ones.
        """

        def margin(packed: int, unpacked: int) -> int:
            return unpacked + (unpacked >> 8) - packed

        more = margin(packed_size, len(unpacked)) - margin(self.room, len(self.payload.unpacked))
        size = _u32(self.data, _INIT_SIZE) + max(more, 0)
        return -(-max(size, _highest(unpacked) - self._load_address) // _PAGE) * _PAGE

    @property
    def _load_address(self) -> int:
        return int.from_bytes(self.data[_PREF_ADDRESS : _PREF_ADDRESS + 8], "little")

    def _check_segments(self, unpacked: bytes) -> None:
        """Random placement reserves what is unpacked or what the original needed, so no more may be used."""
        most = max(len(unpacked), _highest(self.payload.kernel) - self._load_address)
        used = _highest(unpacked) - self._load_address
        if used > most:
            raise BadInput(
                f"the kernel needs {used:#x} bytes of memory, but its boot code only keeps {most:#x} free"
            )


def read(data: bytes, unpacked: bytes | None = None) -> BzImage:
    """Check an image, unpack its kernel and find everything that depends on it; raises BadInput.

    ``unpacked`` is for who knows what the payload unpacks to.
    """
    if not recognise(data):
        raise BadInput(f"the kernel has no Linux setup header: there is no 'HdrS' at byte {MAGIC_AT:#x}")
    if len(data) < _HEADER_END:
        raise BadInput(
            f"the kernel's setup header ends at byte {_HEADER_END:#x}, after the file's {len(data):#x}"
        )
    version = int.from_bytes(data[_VERSION : _VERSION + 2], "little")
    if version < _OLDEST:
        raise BadInput(
            f"the kernel's boot protocol must be {_dotted(_OLDEST)} or newer, but it is {_dotted(version)}"
        )
    if not data[_LOADFLAGS] & _LOADED_HIGH:
        raise BadInput(
            "the kernel is a zImage, made to be loaded below 640 KiB: only a bzImage can be patched"
        )
    if version >= _FLAGS_64 and data[_XLOADFLAGS] & _KERNEL_64:
        raise BadInput(_ONLY_32)
    code = ((data[_SETUP_SECTS] or _DEFAULT_SETUP_SECTORS) + 1) * _SECTOR
    end = code + _u32(data, _SYSSIZE) * 16
    if end > len(data):
        raise BadInput(f"the kernel's file must have {end} bytes at least, but it has {len(data)}")
    start = code + _u32(data, _PAYLOAD_OFFSET)
    stop = start + _u32(data, _PAYLOAD_LENGTH)
    if not code < start < stop <= end - 4 or stop - start < 16:
        raise BadInput(
            f"the kernel's payload must lie inside the boot code at {code:#x}-{end:#x}, "
            f"but its header says {start:#x}-{stop:#x}"
        )
    payload = _payload(data, start, stop, unpacked)
    if _TAKES_INIT_SIZE not in data[code:start]:
        raise BadInput(
            "the kernel's boot code must take its memory from init_size, as it does since Linux 4.7"
        )
    pe = peheader.read(data, code)
    _check_certificates(data, pe, end)
    return BzImage(
        data=data,
        protocol=version,
        payload=payload,
        end=end,
        input_at=_only(data, stop, end, stop - start, "compressed"),
        output_at=_only(data, stop, end, len(payload.unpacked), "unpacked"),
        pe=pe,
        checksum=_has_checksum(data, end, pe),
    )


def _payload(data: bytes, start: int, stop: int, unpacked: bytes | None) -> Payload:
    packed = data[start:stop]
    kind = compression.format_of(packed)
    if kind is None:
        raise BadInput(
            "the kernel's payload must be compressed with xz, gzip, lzma or bzip2, "
            f"but starts with {packed[:4].hex(' ')}"
        )
    if unpacked is None:
        unpacked, rest = compression.unpack(packed, kind)
    else:
        rest = b"" if kind is Format.GZIP else packed[-4:]
    size = int.from_bytes(packed[-4:], "little")
    # gzip ends in the size by itself; behind the others Linux's build puts it.
    if len(rest) != (0 if kind is Format.GZIP else 4) or size != len(unpacked):
        raise BadInput(
            f"the kernel's payload must end in the size it unpacks to, {len(unpacked)}, "
            f"but has {len(rest)} bytes behind its data and ends in {size}"
        )
    if unpacked[:4] != b"\x7fELF":
        raise BadInput("the kernel's payload must unpack to an ELF file")
    if unpacked[4:5] == bytes([_ELF_CLASS_64]):
        raise BadInput(_ONLY_32)
    kernel_size, words = _split(unpacked)
    return Payload(start, stop, kind, unpacked, kernel_size, words)


def _split(unpacked: bytes) -> tuple[int, tuple[int, ...] | None]:
    """The ELF file's size, and the list of displaced words behind it (None when there is nothing)."""
    tail = unpacked[elf_size(unpacked) :]
    if not tail:
        return len(unpacked), None
    # The boot code reads whole words from the end. Zeros in front only pad, and the last of them ends it.
    used = -(-len(tail.lstrip(b"\0")) // displaced.WORD) * displaced.WORD
    words = displaced.appended(tail[-used - displaced.WORD :], _loaded(unpacked))
    if words is None:
        raise BadInput("what follows the ELF file in the kernel's payload must be a list of displaced words")
    return len(unpacked) - used - displaced.WORD, words


def elf_size(data: bytes) -> int:
    """Bytes of an ELF file by what its headers say; anything behind them is not its own."""
    header = elf.read_header(data)
    end = header.shoff + header.shnum * elf.SECTION_HEADER.size if header.shnum else 0
    end = max(end, header.phoff + header.phnum * elf.PROGRAM_HEADER.size)
    for _kind, offset, _vaddr, _paddr, size, *_ in elf.program_headers(data, header):
        end = max(end, offset + size if size else 0)
    for _name, kind, _flags, _address, offset, size, *_ in elf.section_headers(data, header)[1:]:
        if kind != elf.SHT_NOBITS:
            end = max(end, offset + size)
    if end > len(data):
        raise BadInput(f"the kernel's ELF file must have {end} bytes, but it has {len(data)}")
    return end


def _loaded(data: bytes) -> Sequence[tuple[int, int]]:
    headers = elf.program_headers(data, elf.read_header(data))
    return sorted((vaddr, vaddr + size) for kind, _, vaddr, _, size, *_ in headers if kind == elf.PT_LOAD)


def _highest(data: bytes) -> int:
    """The physical address behind all segments."""
    headers = elf.program_headers(data, elf.read_header(data))
    return max(
        (paddr + memsz for kind, _, _, paddr, _, memsz, *_ in headers if kind == elf.PT_LOAD), default=0
    )


def _squeeze(unpacked: bytes, old: bytes, kind: Format, begun: Packing | None = None) -> bytes:
    """A payload that is no longer than the old one, with its size word, and unpacks to what it should."""
    size_word = b"" if kind is Format.GZIP else len(unpacked).to_bytes(4, "little")
    best: int | None = None
    for packed in _ways(unpacked, old, kind, begun):
        if len(packed + size_word) <= len(old):
            return packed + size_word
        best = len(packed + size_word) if best is None else min(best, len(packed + size_word))
    if best is None:
        raise BadInput(f"the kernel's {kind} data was made with settings that can't be used again")
    raise BadInput(
        f"the patched kernel must fit into the {len(old)} bytes of the original's {kind} data, "
        f"but takes {best - len(old)} more"
    )


def _ways(unpacked: bytes, old: bytes, kind: Format, begun: Packing | None) -> Iterator[bytes]:
    """What may take the place of ``old``, the quickest to make first."""
    if begun is not None:
        yield from begun.ways(unpacked)
    for recipe in compression.better(old, kind):
        yield compression.checked(recipe.compress(unpacked), unpacked, kind)


def _only(data: bytes, start: int, stop: int, value: int, what: str) -> int:
    """The one place in the boot code of a word with this value."""
    word = value.to_bytes(4, "little")
    at = data.find(word, start, stop)
    if at < 0 or data.find(word, at + 1, stop) >= 0:
        count = "never" if at < 0 else "more than once"
        raise BadInput(
            f"the kernel's boot code must hold the {what} size {value} once behind the payload, "
            f"but does {count}"
        )
    return at


def _check_certificates(data: bytes, pe: PeHeader | None, end: int) -> None:
    if pe is not None and pe.certificates[1]:
        start, size = pe.certificates
        if start < end or start + size != len(data):
            raise BadInput(
                f"the kernel's signature must lie behind the image, at {end:#x}-{len(data):#x}, "
                f"but its header says {start:#x}-{start + size:#x}"
            )


def _checksum(image: bytes | bytearray, end: int) -> int:
    """CRC-32 without its last step, over all but its own bytes: so one over the whole image is zero."""
    return zlib.crc32(image[: end - 4]) ^ 0xFFFFFFFF


def _has_checksum(data: bytes, end: int, pe: PeHeader | None) -> bool:
    """It is made before an image is signed, so the signature's traces are left out."""
    image = bytearray(data[:end])
    if pe is not None and pe.certificates[1]:
        peheader.without_signatures(image, pe)
    return _u32(image, end - 4) == _checksum(image, end)


def _dotted(version: int) -> str:
    return f"{version >> 8}.{version & 0xFF:02}"


def _u32(data: bytes | bytearray, at: int) -> int:
    return int.from_bytes(data[at : at + 4], "little")


def _put(image: bytearray, at: int, value: int) -> None:
    image[at : at + 4] = value.to_bytes(4, "little")
