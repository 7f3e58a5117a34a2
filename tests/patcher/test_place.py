# SPDX-License-Identifier: GPL-2.0-only
"""Where the segment goes: what each strategy finds, what it refuses, and the files that come of it."""

from __future__ import annotations

import io
import struct
from dataclasses import replace

import pytest
from elftools.elf.elffile import ELFFile

from tests.patcher import loaded
from tests.patcher.elfs import PADDR, VADDR, Piece, Plan, make, small_kernel
from vmi.errors import BadInput, UsageError
from vmi.patcher import adaptors, elf
from vmi.patcher.emit import Emission, emit
from vmi.patcher.model import Access, Image
from vmi.patcher.place import AUTOMATIC, Choice, Place, Strategy, choice, place
from vmi.patcher.plan import make_plan
from vmi.patcher.rewrite import write
from vmi.patcher.verify import verify
from vmi.rom.assemble import assemble

LINUX = Choice(protocol=0x20F)
LINUX_ENTRY = "mov ecx, dword ptr [0x101000]\ncli\nhlt\nnop\nnop\nnop\nnop\n"


def refusal(data: bytes, wanted: Choice = AUTOMATIC) -> str:
    with pytest.raises(BadInput) as caught:
        place(elf.load(data), wanted)
    return str(caught.value)


def patched(image: Image, wanted: Choice = AUTOMATIC) -> tuple[Emission, bytes]:
    emission = emit(make_plan(image, adaptors.refusal), place(image, wanted))
    output = write(emission)
    verify(emission, output)
    return emission, output


def linux_kernel(source: str = LINUX_ENTRY, **changes: object) -> bytes:
    code = assemble(source, VADDR).code.ljust(0x40, b"\x90")
    pieces = [Piece(VADDR, code, section=".text"), Piece(VADDR + 0x1000, bytes(64), 0x1234, 6)]
    plan = Plan(pieces, PADDR, stack_header=False)
    for name, value in changes.items():
        setattr(plan, name, value)
    return make(plan)


# --- choosing -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("auto", Choice()),
        ("after-image", Choice(Strategy.AFTER_IMAGE)),
        ("linux", Choice(Strategy.LINUX)),
        ("low-memory", Choice(Strategy.LOW_MEMORY)),
        ("0xc0400000", Choice(Strategy.ADDRESS, 0xC0400000)),
        ("4096", Choice(Strategy.ADDRESS, 4096)),
    ],
)
def test_a_choice_has_a_name(text: str, wanted: Choice) -> None:
    assert choice(text) == wanted
    assert choice(text, 0x20F) == replace(wanted, protocol=0x20F)


@pytest.mark.parametrize("text", ["", "address", "after", "0xfoo"])
def test_another_name_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        choice(text)
    assert str(caught.value) == (
        f"expected auto, after-image, linux, low-memory or an address as the segment's place, got {text!r}"
    )


def test_the_usual_place_is_after_the_image() -> None:
    found = place(elf.load(small_kernel()))
    assert found == place(elf.load(small_kernel()), choice("after-image"))
    assert (found.strategy, found.layout.base, found.file_offset) == (
        Strategy.AFTER_IMAGE,
        VADDR + 0x3000,
        None,
    )
    assert not found.linux
    assert repr(found) == "Place(0xc0103000, after-image, 0 warnings)"


def test_linux_gets_a_page_for_the_node_and_its_place_in_the_file() -> None:
    found = place(elf.load(linux_kernel()), LINUX)
    assert (found.layout.node, found.layout.base) == (VADDR + 0x3000, VADDR + 0x4000)
    assert found.file_offset == 0x4000
    assert found.linux
    assert found.warnings == ()


MISMATCH = "a kernel inside a bzImage has to be placed with the strategy linux, and no other kernel can be"


def test_linux_is_for_bzimages_only() -> None:
    assert refusal(linux_kernel(), choice("linux")) == MISMATCH
    assert refusal(linux_kernel(), choice("after-image", 0x20F)) == MISMATCH


def test_an_old_boot_protocol_is_refused() -> None:
    assert refusal(linux_kernel(), Choice(protocol=0x208)) == (
        "expected a bzImage of boot protocol 2.9 or later, which can be told of memory to leave alone, "
        "got 2.8"
    )


def test_a_linux_that_starts_elsewhere_is_refused() -> None:
    assert refusal(linux_kernel(entry=PADDR + 8), LINUX) == (
        "expected the kernel to start with its first byte at 0xc0100000, as its decompressor does, got the "
        "entry point 0x100008"
    )


def test_a_kernel_that_moves_itself_needs_its_bzimage() -> None:
    image = replace(elf.load(linux_kernel()), displaced=(VADDR + 2,))
    with pytest.raises(BadInput) as caught:
        place(image)
    assert str(caught.value) == (
        "a kernel that moves itself when it starts can be patched inside its bzImage only"
    )


# --- an address ---------------------------------------------------------------------


def test_an_address() -> None:
    found = place(elf.load(small_kernel()), choice("0xc0200000"))
    assert (found.layout.base, found.strategy) == (0xC0200000, Strategy.ADDRESS)
    assert found.warnings == (
        "the address 0xc0200000 was given, not found: that the kernel leaves this memory alone and keeps it "
        "mapped is not known",
    )
    assert patched(elf.load(small_kernel()), choice("0xc0200000"))[1]


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        (0xC0200010, "expected the address of a page below 4 GiB for the segment, got 0xc0200010"),
        (1 << 32, "expected the address of a page below 4 GiB for the segment, got 0x100000000"),
        (0x1000, "there is no physical memory for a segment at 0x1000"),
        (0xC0102000, "a segment at 0xc0102000 would overlap the image's segment at 0xc0101000"),
        (0xC00FA000, "a segment at 0xc00fa000 would overlap the image's segment at 0xc0100000"),
        (0xC00E0000, "the segment at 0xc00e0000 would lie in the screen memory and ROMs of a PC"),
    ],
)
def test_a_bad_address_is_refused(address: int, sentence: str) -> None:
    assert refusal(small_kernel(), Choice(Strategy.ADDRESS, address)) == sentence


def test_an_address_before_the_image_limits_the_size() -> None:
    kernel = make(Plan([Piece(VADDR + 0x100000, assemble("cli\nhlt\nret", VADDR).code)], VADDR + 0x100000))
    found = place(elf.load(kernel), Choice(Strategy.ADDRESS, VADDR + 0x80000))
    assert found.limit == 0x80000


# --- execute-disable ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("mov ecx, 0xc0000080\nwrmsr\nret", True),
        ("mov ecx, 0xc0000081\nwrmsr\nret", False),
        ("mov dword ptr [0xc0000080], 1\nret", False),
    ],
)
def test_a_kernel_that_may_forbid_execution_is_known_by_its_register(code: str, expected: bool) -> None:
    image = elf.load(make(Plan([Piece(VADDR, assemble(code, VADDR).code)])))
    found = place(image)
    assert (found.text_padding, found.hide_nx) == (expected, expected)
    assert any("EFER" in reason for reason in found.reasons) == expected
    assert place(image, Choice(text_padding=not expected)).text_padding is not expected


# --- kernels that start in a small segment of their own -----------------------------------------

BOOT = "mov eax, 1\ncli\nmov ecx, 0xc0101000\njmp ecx\nnop\nnop\nnop\nnop\n"


@pytest.mark.parametrize("flags", [4, 5])
def test_the_segment_goes_where_the_main_text_will_find_it(flags: int) -> None:
    """The segment of the entry point lies where it is loaded, and the text 3 GiB higher."""
    boot = Piece(PADDR, assemble(BOOT, PADDR).code, flags=flags, paddr=PADDR)
    text = Piece(
        VADDR + 0x1000, assemble("mov ecx, dword ptr [esp+4]\ncli\nmov eax, 1\nret\n" * 4, VADDR).code
    )
    image = elf.load(make(Plan([boot, text], PADDR)))
    emission, output = patched(image)
    layout = emission.place.layout
    assert (layout.base, layout.bias) == (VADDR + 0x2000, VADDR - PADDR)
    assert layout.physical(emission.header.original_entry) == PADDR
    assert emission.entry == layout.activation
    (window,) = emission.plan.windows
    assert window.start > VADDR
    assert elf.load(output, patched=True).read(PADDR, 0x40) == image.read(PADDR, 0x40)
    warned = [text for text in emission.place.warnings if "is not executable" in text]
    assert warned == [
        "the segment at 0x100000 holds the entry point and is not executable: it is left alone, and no "
        "sensitive instruction is looked for in it"
    ] * (flags == 4)


def test_a_kernel_without_an_executable_segment_is_refused() -> None:
    with pytest.raises(BadInput) as caught:
        elf.load(make(Plan([Piece(VADDR, b"\xfa\xc3", flags=4)])))
    assert str(caught.value) == "the file has no executable segment"


# --- load addresses in the multiboot header -----------------------------------------------------


def header(data: bytes) -> tuple[int, ...]:
    found = elf.multiboot(data)
    assert found is not None
    return elf.KLUDGE_FIELDS.unpack_from(data, found.offset + elf.KLUDGE_AT)


KLUDGES = [
    ("an end", {}),
    ("all of the file", {"names_end": False}),
    ("no room", {"stack_header": False, "first_offset": 0x74}),
]


@pytest.mark.parametrize(("_what", "changes"), KLUDGES, ids=[what for what, _ in KLUDGES])
def test_load_addresses_reach_to_the_segments_end(_what: str, changes: dict[str, object]) -> None:
    """What a boot loader does by these addresses gives the same memory as the program headers."""
    data = loaded.kernel(**changes)  # type: ignore[arg-type]
    emission, output = patched(elf.load(data))
    at, start, load_end, bss_end, entry = header(output)
    assert (at, start) == header(data)[:2]
    assert load_end == bss_end == emission.place.layout.physical(emission.base + emission.header.size)
    assert entry == emission.place.layout.physical(emission.header.activation_entry)
    found = elf.multiboot(output)
    assert found is not None
    offset = found.offset - (at - start)
    memory = output[offset : offset + load_end - start]
    assert len(memory) == load_end - start
    for segment in elf.load(output, patched=True).segments:
        content = segment.data.ljust(segment.memsz, b"\0")
        low = segment.paddr - start
        assert memory[low : low + segment.memsz] == content
    elf.check_kludge(elf.load(output.replace(b"VMIS", b"XXXX")))


def test_symbols_move_behind_the_segment() -> None:
    _, output = patched(elf.load(loaded.kernel()))
    file = ELFFile(io.BytesIO(output))
    table = file.get_section_by_name(".symtab")
    assert table is not None
    assert [symbol.name for symbol in table.iter_symbols()] == ["", "start"]  # type: ignore[attr-defined]
    assert table["sh_offset"] > elf.load(output, patched=True).segments[-1].file_offset


def test_load_addresses_in_place_of_another_place_are_refused() -> None:
    assert refusal(loaded.kernel(), choice("0xc0800000")) == (
        "the segment must follow the image: the multiboot header gives one range of the file that is loaded "
        "(flag bit 16)"
    )


CONTRADICTION = "the load addresses in the multiboot header contradict each other"


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        (0, PADDR - 4, CONTRADICTION),
        (1, PADDR + 0x20, CONTRADICTION),
        (2, PADDR, CONTRADICTION),
        (3, PADDR, CONTRADICTION),
        (
            2,
            PADDR + 0x8000,
            "the file is truncated: the load addresses in its multiboot header go beyond its end",
        ),
        (
            2,
            PADDR + 0x800,
            "the load addresses in the multiboot header (flag bit 16) don't load the segment at 0xc0100000 "
            "as its program header does",
        ),
        (
            4,
            PADDR + 0x40,
            "the multiboot header's entry point 0x100040 is not that of the ELF header, 0x100030",
        ),
    ],
)
def test_load_addresses_that_lie_are_refused(field: int, value: int, sentence: str) -> None:
    data = bytearray(loaded.kernel())
    found = elf.multiboot(data)
    assert found is not None
    struct.pack_into("<I", data, found.offset + elf.KLUDGE_AT + 4 * field, value)
    if field == 2:
        struct.pack_into("<I", data, found.offset + elf.KLUDGE_AT + 12, 0)
    assert refusal(bytes(data)) == sentence


# --- the entry of a Linux kernel ----------------------------------------------------------------


def test_a_linux_kernel_jumps_to_activation_from_its_first_byte() -> None:
    image = replace(elf.load(linux_kernel()), displaced=(VADDR + 2,))
    emission, output = patched(image, LINUX)
    again = elf.load(output, patched=True)
    assert again.entry == PADDR
    jump = again.read(VADDR, 6)
    target = VADDR + 5 + int.from_bytes(jump[1:5], "little", signed=True)
    assert (jump[0], jump[5], target) == (0xE9, 0xCC, emission.header.activation_entry)
    assert emission.first is not None
    assert again.read(emission.first.start, 6) == image.read(VADDR, 6)
    assert VADDR + 2 not in emission.displaced
    assert emission.first.start + 2 in emission.displaced
    home = elf.vmi_segment(again)
    assert home is not None
    assert home.file_offset == home.paddr - PADDR


ENTRIES = [
    ("cli\n.zero 8", "the jump to the activation code at 0xc0100000 would cover the window or sensitive"),
    ("jmp short next\nnext:\nnop\nret", "the instruction at 0xc0100000, which starts the kernel, can't be"),
    (
        "nop\nnop\nagain:\nnop\nnop\nnop\njmp short again",
        "the jump to the activation code would cover 0xc0100002",
    ),
]


@pytest.mark.parametrize(("source", "sentence"), ENTRIES)
def test_an_entry_that_cannot_be_moved_is_refused(source: str, sentence: str) -> None:
    image = elf.load(linux_kernel(source))
    with pytest.raises(BadInput) as caught:
        patched(image, LINUX)
    assert str(caught.value).startswith(sentence)


def test_a_place_shows_what_matters() -> None:
    found: Place = place(elf.load(linux_kernel()), LINUX)
    assert repr(found.layout) == "Layout(0xc0104000, bias 0xc0000000)"


def entered(jump: bytes, at: int) -> bytes:
    """The kernel with a jump as its first bytes, at which the ELF header has its entry point."""
    data = bytearray(loaded.kernel(entry=VADDR))
    data[0x1000 : 0x1000 + len(jump)] = jump
    found = elf.multiboot(data)
    assert found is not None
    struct.pack_into("<I", data, found.offset + elf.KLUDGE_AT + 16, at)
    return bytes(data)


@pytest.mark.parametrize("jump", [b"\xeb\x2e", b"\xe9\x2b\0\0"])
def test_both_entry_points_may_lead_to_the_same_code(jump: bytes) -> None:
    emission, output = patched(elf.load(entered(jump, PADDR + 0x30)))
    assert emission.header.original_entry == VADDR
    assert header(output)[4] == emission.place.layout.physical(emission.header.activation_entry)
    assert refusal(entered(jump, PADDR + 0x34)) == (
        "the multiboot header's entry point 0x100034 is not that of the ELF header, 0x100000"
    )


def test_load_addresses_may_leave_out_the_elf_header() -> None:
    """Linkers like to give it a page of its own before the text, which no boot loader needs."""
    image = elf.load(loaded.kernel())
    first = replace(image.segments[0], vaddr=VADDR - 0x1000, paddr=PADDR - 0x1000, flags=Access.R)
    elf.check_kludge(replace(image, segments=(first, *image.segments)))
    for flags in (Access.R | Access.X, Access.R | Access.W):
        with pytest.raises(BadInput, match="don't load the segment at 0xc00ff000"):
            elf.check_kludge(replace(image, segments=(replace(first, flags=flags), *image.segments)))
