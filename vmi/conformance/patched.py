# SPDX-License-Identifier: GPL-2.0-only
"""A small kernel, patched, and what its activation finds: for the cases about patched binaries.

The kernel runs a few sensitive instructions of each kind without paging and writes down what they gave, so
that a patched one can be held against the one that it was made from. Its ROM may be the subject's, damaged or
elsewhere, or one that is made here and answers what a case wants.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache

from vmi import abi
from vmi.abi import Reloc
from vmi.conformance import layout
from vmi.conformance.rig import Broken, Rig, Unfit
from vmi.conformance.subject import End, Stop
from vmi.patcher import elf
from vmi.patcher.inspect import site_table
from vmi.patcher.marks import SECTION
from vmi.patcher.rewrite import Options, Patched, patch
from vmi.rom.assemble import assemble
from vmi.sitetable import SiteTable, header_offset

VADDR, PADDR = 0xC0100000, 0x100000
BIAS = VADDR - PADDR
RESULTS, STACK, TABLE = 0x9000, 0xA000, 0x8000
_PAGE = 0x1000
ENTRY = {
    "eax": 0x2BADB002 ^ 0xFFFF0000, "ebx": 0x22222222, "ecx": 0x33333333, "edx": 0x44444444,
    "esi": 0x55555555, "edi": 0x66666666, "ebp": 0x77777777,
}  # fmt: skip
#: Dwords that the kernel writes down, in order.
NAMES = (
    *ENTRY, "esp", "flags", "IF behind CLI", "IF behind STI", "CR0", "GDT limit", "GDT base", "carry",
    "port", "registers", "CR2", "CR3", "loop", "IF behind POPF", "IRET", "LDT", "end",
)  # fmt: skip
_LIMIT_NS = 20_000_000

_SOURCE = """
    mov [{R}], eax
    mov [{R + 4}], ebx
    mov [{R + 8}], ecx
    mov [{R + 12}], edx
    mov [{R + 16}], esi
    mov [{R + 20}], edi
    mov [{R + 24}], ebp
    mov [{R + 28}], esp
    mov esp, {STACK}
    SLOT pushfd
    pop dword ptr [{R + 32}]
    SLOT cli
    SLOT pushfd
    pop eax
    and eax, 0x200
    mov [{R + 36}], eax
    SLOT sti
    nop
    SLOT pushfd
    pop eax
    and eax, 0x200
    mov [{R + 40}], eax
    SLOT cli
    SLOT mov eax, cr0
    mov [{R + 44}], eax
    SLOT lgdt [{TABLE}]
    mov eax, 0
    mov [{R + 52}], eax
    SLOT sgdt [{R + 50}]
    movzx eax, word ptr [{R + 50}]
    mov [{R + 48}], eax
    xor eax, eax
    stc
    SLOT cli
    adc eax, 0
    mov [{R + 56}], eax
    mov eax, 0x11223344
    mov ebx, 1
    mov ecx, 2
    mov edx, 0xe4
    mov esi, 3
    mov edi, 4
    mov ebp, 5
    SLOT in al, dx
    mov [{R + 60}], eax
    add ebx, ecx
    add ebx, edx
    add ebx, esi
    add ebx, edi
    add ebx, ebp
    mov [{R + 64}], ebx
    SLOT mov cr2, ebx
    SLOT mov ecx, cr2
    mov [{R + 68}], ecx
    SLOT mov edx, cr3
    mov [{R + 72}], edx
    mov ecx, 3
    xor ebx, ebx
again:
    SLOT cli
    inc ebx
    dec ecx
    jnz again
    mov [{R + 76}], ebx
    push 0x202
    SLOT popfd
    SLOT pushfd
    pop eax
    and eax, 0x200
    mov [{R + 80}], eax
    SLOT cli
    SLOT pushfd
    push dword ptr [{CS}]
    push {target - bias}
    SLOT iretd
    int3
target:
    mov dword ptr [{R + 84}], 0x1234
    xor eax, eax
    SLOT lldt ax
    SLOT sldt ecx
    movzx ecx, cx
    mov [{R + 88}], ecx
    mov dword ptr [{R + 92}], 1
ending:
    SLOT out 0xf4, al
    jmp ending
"""
_LOAD_CS = RESULTS + 0x100


def _assembled() -> str:
    return _SOURCE.replace("SLOT ", "")


@cache
def code() -> bytes:
    """The kernel's code; it runs at physical addresses."""
    return assemble(_assembled(), VADDR, _symbols()).code


def _symbols() -> dict[str, int]:
    return {"R": RESULTS, "STACK": STACK, "TABLE": TABLE, "CS": _LOAD_CS, "bias": BIAS}


@cache
def annotated() -> tuple[bytes, bytes]:
    """The kernel with a slot around each sensitive instruction, and the records that say so."""
    lines, number = [], 0
    for line in _SOURCE.splitlines():
        if "SLOT " in line:
            lines += [f"slot{number}:", "    nop\n" * 4 + line.replace("SLOT ", ""), f"slot{number}_end:"]
            number += 1
        else:
            lines.append(line)
    done = assemble("\n".join(lines), VADDR, _symbols())
    records = b""
    for each in range(number):
        start, end = done.labels[f"slot{each}"], done.labels[f"slot{each}_end"]
        records += struct.pack("<IHBB", start, end - start, 1, 0)
    return done.code, records


def kernel(text: bytes, records: bytes = b"") -> bytes:
    """An ELF file of one page of code, with a section of annotations if there are any."""
    names = b"\0.text\0" + SECTION.encode() + b"\0.shstrtab\0"
    body = text.ljust(_PAGE, b"\0") + records + names
    at = _PAGE + len(text.ljust(_PAGE, b"\0"))
    sections = [bytes(40), struct.pack("<10I", 1, 1, 6, VADDR, _PAGE, len(text), 0, 0, 16, 0)]
    if records:
        sections.append(struct.pack("<10I", 7, 1, 0, 0, at, len(records), 0, 0, 4, 0))
    sections.append(
        struct.pack("<10I", names.index(b".shstrtab"), 3, 0, 0, at + len(records), len(names), 0, 0, 1, 0)
    )
    ident = b"\x7fELF\x01\x01\x01".ljust(16, b"\0")
    head = elf.ELF_HEADER.pack(
        ident, 2, 3, 1, VADDR, 52, _PAGE + len(body), 0, 52, 32, 1, 40, len(sections), len(sections) - 1
    )
    head += elf.PROGRAM_HEADER.pack(1, _PAGE, VADDR, PADDR, _PAGE, _PAGE, 5, _PAGE)
    return head.ljust(_PAGE, b"\0") + body + b"".join(sections)


@cache
def patched(*, marked: bool = False) -> Patched:
    """The patched kernel."""
    return patch(kernel(*annotated()) if marked else kernel(code()), Options(undo=False))


@dataclass(frozen=True, repr=False)
class Image:
    """A kernel file as a boot loader sees it.

    :ivar pieces: physical address and bytes.
    """

    entry: int
    pieces: tuple[tuple[int, bytes], ...]
    segment: int = 0  # virtual address of the `.vmi` segment
    tables: SiteTable | None = None


@cache
def image(*, marked: bool = False) -> Image:
    """The patched kernel as it is loaded."""
    found = elf.load(patched(marked=marked).data, patched=True)
    home = elf.vmi_segment(found)
    assert home is not None
    pieces = tuple((segment.paddr, segment.data) for segment in found.segments)
    return Image(found.entry - BIAS, pieces, home.vaddr, site_table(home))


@cache
def original() -> Image:
    """The kernel that was patched."""
    return Image(PADDR, ((PADDR, code().ljust(_PAGE, b"\0")),))


@dataclass(frozen=True)
class Run:
    """What a kernel left."""

    results: dict[str, int]
    before: bytes
    after: bytes
    rig: Rig
    image: Image

    def word(self, name: str) -> int:
        """A word of the segment's header."""
        return self.rig.word(self.image.segment - BIAS + header_offset(name))

    def slot(self, vaddr: int, size: int) -> tuple[bytes, bytes]:
        """Bytes of the loaded kernel, before and after."""
        at = vaddr - VADDR
        return self.before[at : at + size], self.after[at : at + size]


def span(loaded: Image) -> int:
    """Bytes from the kernel's first to its segment's last."""
    return max(at + len(data) for at, data in loaded.pieces) - PADDR


def load(rig: Rig, loaded: Image) -> None:
    """Put a kernel into memory as a boot loader does, and its GDT."""
    for at, data in loaded.pieces:
        rig.write(at, data)
    for at, data in layout.tables(rig.labels):
        rig.write(at, data)
    rig.write(RESULTS, bytes(4 * len(NAMES)))
    rig.put(_LOAD_CS, layout.CODE0)
    rig.write(TABLE, (0x7FF).to_bytes(2, "little") + layout.GDT.to_bytes(4, "little"))


def start(rig: Rig, loaded: Image, doing: str = "running a patched kernel") -> Run:
    """Run a loaded kernel from its entry point to its end. :raises Broken: it does not come to that."""
    before = rig.read(PADDR, span(loaded))
    rig.subject.set_registers({**ENTRY, "esp": 0, "eip": loaded.entry, "eflags": 2})
    stop = rig.subject.run(_LIMIT_NS)
    values = struct.unpack(f"<{len(NAMES)}I", rig.read(RESULTS, 4 * len(NAMES)))
    results = dict(zip(NAMES, values, strict=True))
    if stop.end is not End.DONE or not results["end"]:
        raise Broken(stop if stop.end is not End.DONE else Stop(End.CRASHED, "it ended early"), doing)
    return Run(results, before, rig.read(PADDR, span(loaded)), rig, loaded)


# -- ROMs


def rom_image(rig: Rig) -> bytes:
    """The subject's ROM as it is plugged in. :raises Unfit: there is none."""
    rig.power_on()
    if not rig.rom:
        raise Unfit("there is no ROM")
    return rig.image()


def plug(rig: Rig, *images: tuple[int, bytes]) -> None:
    """Have these ROMs and no other. :raises Unfit: the subject's ROM area can't be written."""
    rig.write(rig.rom, bytes(2))
    for at, data in images:
        rig.write(at, data)
    wrong = [at for at, data in ((rig.rom, bytes(2)), *images) if rig.read(at, len(data)) != data]
    if [at for at in wrong if at != rig.rom or not images]:
        raise Unfit("the ROM's memory can't be written")


def checked(data: bytes | bytearray) -> bytes:
    """A ROM image whose last byte makes all of them add up to 0."""
    return bytes(data[:-1]) + bytes([-sum(data[:-1]) & 0xFF])


def answering(
    answers: Mapping[str, tuple[Reloc, int]], init: str = "xor eax, eax", size: int = 4096
) -> bytes:
    """A ROM of ours that gives these answers, type and offset of the entry, and NONE to the rest.

    There is nothing at 330h, so that a record of promises can be put there.
    """
    rows: Iterable[str] = (
        f".word {offset}\n.word {int(kind)}"
        for kind, offset in (answers.get(call.name, (Reloc.NONE, 0)) for call in abi.CALLS)
    )
    source = """
        .byte 0x55, 0xaa, {size}
        .zero 5
        .ascii "cVmi"
        .byte 0, 3
        .zero 8
        .word {licence}
        .word 0x60
        .zero 102
        jmp init
        .zero 3
        jmp get_reloc
        .zero 3
licence:
        .ascii "GPL v2\\0"
init:
        INIT
        ret
get_reloc:
        call here
here:   pop ecx
        lea ecx, [ecx-{here}]
        movzx edx, word ptr [ecx+eax*4+{table}+2]
        movzx eax, word ptr [ecx+eax*4+{table}]
        add eax, ecx
        ret
        .org 0x400
table:
""".replace("INIT", init)
    image = assemble(source + "\n".join(rows), symbols={"size": size // abi.ROM_UNIT}).code
    return checked(image.ljust(size, b"\0"))


def ready(rig: Rig, loaded: Image, *images: tuple[int, bytes]) -> None:
    """Power on with these ROMs instead of the subject's, if any are given, and a kernel in memory."""
    rig.subject.reset()
    if images:
        plug(rig, *images)
    load(rig, loaded)


NO_ROM = (0xC0000, bytes(2))  # nothing that anybody takes for a ROM
