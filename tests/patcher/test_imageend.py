# SPDX-License-Identifier: GPL-2.0-only
"""What a kernel does with the address of its own end: takes memory from there, or knows it as a limit."""

from __future__ import annotations

import pytest

from tests.patcher.elfs import VADDR, Piece, Plan, make
from vmi import samples
from vmi.patcher import elf, imageend
from vmi.patcher.imageend import Use
from vmi.patcher.model import Image
from vmi.rom.assemble import assemble

BSS_END = VADDR + 0x2234
BEFORE = "xor eax, eax\nnop\n"  # 3 bytes


def kernel(source: str, data: bytes = b"", end: int = BSS_END, **changes: object) -> Image:
    code = assemble(BEFORE + source, VADDR, {"end": end}).code
    size = end - VADDR - 0x1000
    plan = Plan([Piece(VADDR, code), Piece(VADDR + 0x1000, data, memsz=size, flags=6)])
    for name, value in changes.items():
        setattr(plan, name, value)
    return elf.load(make(plan))


TAKEN = {
    "pushed as an argument": "push {end}\ncall next\nnext:\nret",
    "stored": "mov dword ptr [0xc0101000], {end}\nret",
    "stored on the stack": "mov dword ptr [esp+4], {end}\nret",
    "rounded up": "mov eax, {end}\nadd eax, 4095\nand eax, 0xfffff000\nret",
    "returned": "mov eax, {end}\nret",
    "kept for long": "mov esi, {end}\n" + "nop\n" * 20 + "ret",
    "loaded by lea": "lea ebx, [{end}]\nmov dword ptr [ebx], 0\nret",
}
LIMITS = {
    "a stack's top": "mov esp, {end}\nret",
    "a stack's top by lea": "lea esp, [{end}]\nret",
    "compared": "cmp ebx, {end}\nret",
    "compared in a register": "mov eax, {end}\ncmp ebx, eax\nret",
    "length of the bss": "mov edi, 0xc0101040\nmov ecx, {end}\nsub ecx, edi\nrep stosb\nret",
    "length, with another register in between": "mov edx, {end}\nmov eax, 0xc0101040\nsub edx, eax\nret",
    "the stack of an interrupt's return": "push 0x23\npush {end}\npush eax\npush 0x1b\npush edx\niretd",
    "added": "add eax, {end}\nret",
}


@pytest.mark.parametrize("what", TAKEN)
def test_an_address_of_something(what: str) -> None:
    assert imageend.uses(kernel(TAKEN[what])) == (Use(VADDR + 3, True),)


@pytest.mark.parametrize("what", LIMITS)
def test_a_limit(what: str) -> None:
    (use,) = imageend.uses(kernel(LIMITS[what]))
    assert not use.taken


def test_the_next_page_counts_too() -> None:
    image = kernel(f"push {VADDR + 0x3000}\ncall next\nnext:\npush {VADDR + 0x3004}\nret")
    assert imageend.uses(image) == (Use(VADDR + 3, True),)


def test_a_linker_symbol_close_by_counts_too() -> None:
    source = f"push {VADDR + 0x2240}\ncall next\nnext:\nret"
    assert imageend.uses(kernel(source)) == ()
    symbols = [("_end", VADDR + 0x2240, 0), ("far_end", VADDR + 0x2240, 0), ("end", VADDR + 0x9000, 0)]
    image = kernel(source, symbols=symbols)
    assert imageend.uses(image) == (Use(VADDR + 3, True),)
    assert imageend.names(image) == ["_end"]


def test_the_physical_address_is_for_others() -> None:
    assert imageend.uses(kernel("push 0x102234\ncall next\nnext:\nret")) == ()


def test_a_variable() -> None:
    """Words of data are on multiples of 4."""
    word = BSS_END.to_bytes(4, "little")
    image = kernel("ret", b"\0" * 4 + word + b"\0" * 5 + word)
    assert imageend.uses(image) == (Use(VADDR + 0x1004, True), Use(VADDR + 0x100D, False))


def test_half_an_instruction_is_no_use() -> None:
    """A number that an instruction holds in another place than its end, or that lies across two."""
    assert [use.taken for use in imageend.uses(kernel("mov dword ptr [{end}], 5\nret"))] == [False]
    word = BSS_END.to_bytes(4, "little")
    code = (
        ".byte 0xb8, 0, 0, 0, " + ", ".join(map(str, word[:1])) + "\n.byte " + ", ".join(map(str, word[1:]))
    )
    assert [use.taken for use in imageend.uses(kernel(code + "\nret"))] == [False]


def test_a_file_full_of_the_number_takes_no_time() -> None:
    image = kernel("ret", BSS_END.to_bytes(4, "little") * (1 << 16), end=BSS_END)
    assert len(imageend.uses(image)) == 0  # its end is another one now
    end = imageend.image_end(image)
    image = kernel("ret", end.to_bytes(4, "little") * (1 << 16))
    assert len(imageend.uses(image)) == imageend.MOST


@pytest.mark.parametrize("name", samples.names())
def test_the_sample_kernels_take_nothing(name: str) -> None:
    image = elf.load(samples.get(name).path.read_bytes())
    assert not any(use.taken for use in imageend.uses(image))
