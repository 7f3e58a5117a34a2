# SPDX-License-Identifier: GPL-2.0-only
"""Choose where the `.vmi` segment goes, and how its parts lie in it.

The segment must be somewhere no one else uses: not in any segment, in memory that the boot loader sets
aside, at an address that the kernel's own page tables will map later. Four strategies know such places:

* ``after-image``: right after the image, with the same distance between virtual and physical address as
  the text. Kernels with a direct map of memory keep it mapped, boot loaders put modules after the last
  segment, and activation takes it out of the multiboot memory map;
* ``low-memory``: loaded there too, but linked for memory below 640 KiB. Activation, which runs first, moves
  it down. For a kernel that takes memory from its own end (:mod:`vmi.patcher.imageend`);
* ``linux``: there too, in a kernel that its own decompressor loads (a bzImage). The decompressed file
  reserves the room, and activation links a setup_data node that tells the kernel to leave it alone;
* ``address``: where the user says, checked against the image only.

The first three are found without being asked for. The last is a user's decision: whether a kernel leaves
such memory alone can't be read off its file.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from enum import StrEnum

from vmi import abi
from vmi.errors import BadInput, UsageError
from vmi.patcher import elf, imageend, lowmemory
from vmi.patcher.model import Access, Image
from vmi.sitetable import HEADER_SIZE

PAGE = elf.PAGE
ROM_RESERVE = 0x4000  # bytes kept for a copy of the ROM
ACTIVATION_SIZE, LIFTED_SIZE = 0x600, 0x800  # bytes for its code, and where it moves the segment as well
RELOC_SIZE = 8  # bytes kept per call: entry address, type
STACK_SIZE = 0x1000  # also the guest's first stack, until it sets its own
COMMAND_LINE_SIZE = 0x400  # bytes at the segment's very end for a copy of the command line
MAP_ENTRY_SIZE = 24  # bytes of a multiboot 1 memory map entry, its size word included
LEAST = 0x10000  # bytes: a place that has fewer isn't worth trying
MAX_SIZE = 0x400000  # bytes of the whole segment; far more than the largest kernels need
INFO_SIZE = 0x80  # bytes for a copy of the multiboot information, which itself has 116
HOLE_START, HOLE_END = 0xA0000, 0x100000  # screen memory and ROMs of a PC
LINUX_PROTOCOL = 0x0209
"""The first version of Linux's boot protocol that knows setup_data."""
EFER = struct.pack("<I", 0xC0000080)
"""Number of the register with which a kernel turns execute-disable on."""
WRMSR = b"\x0f\x30"


class Strategy(StrEnum):
    """How the segment's place is found."""

    AFTER_IMAGE = "after-image"
    LINUX = "linux"
    LOW_MEMORY = "low-memory"
    ADDRESS = "address"


@dataclass(frozen=True, slots=True)
class Choice:
    """What the caller knows and wants.

    ``strategy`` None: find one. ``address`` goes with ADDRESS only, and is virtual. ``protocol`` is the
    boot protocol version of the bzImage that the kernel is the payload of, 0 for any other file.
    ``text_padding`` overrules what the image looks like, see :class:`Place`.
    """

    strategy: Strategy | None = None
    address: int = 0
    protocol: int = 0
    text_padding: bool | None = None


def choice(text: str, protocol: int = 0) -> Choice:
    """The choice that ``text`` names: ``auto``, a strategy, or an address; raises UsageError."""
    if text == "auto":
        return Choice(protocol=protocol)
    if text in (Strategy.AFTER_IMAGE, Strategy.LINUX, Strategy.LOW_MEMORY):
        return Choice(Strategy(text), protocol=protocol)
    try:
        address = int(text, 0)
    except ValueError:
        raise UsageError(
            "expected auto, after-image, linux, low-memory or an address as the segment's place, "
            f"got {text!r}"
        ) from None
    return Choice(Strategy.ADDRESS, address, protocol=protocol)


@dataclass(frozen=True, slots=True)
class Layout:
    """Virtual addresses of the segment's parts; ``bias`` is virtual minus physical address.

    ``node`` is a page right before the segment and not part of it: there activation makes the setup_data
    node that covers both. 0: there is none. ``lift`` is by how many bytes a boot loader puts the segment
    above where it belongs; activation moves it down.
    """

    base: int
    bias: int
    rom_reserve: int
    activation: int
    relocations: int
    info: int
    map_buffer: int
    map_buffer_size: int
    stack_top: int
    tables: int
    node: int = 0
    lift: int = 0

    def physical(self, vaddr: int) -> int:
        """Physical address of a virtual one while the kernel runs."""
        return vaddr - self.bias & 0xFFFFFFFF

    def loaded(self, vaddr: int) -> int:
        """Physical address where a boot loader puts the segment's byte for a virtual one."""
        return self.physical(vaddr) + self.lift

    def __repr__(self) -> str:
        return f"Layout({self.base:#x}, bias {self.bias:#x})"


@dataclass(frozen=True, slots=True)
class Place:
    """Where the segment goes: its layout, and for the report why it may and what speaks against it.

    ``limit`` is the most bytes that it may have there. ``file_offset`` is where its bytes must lie in the
    file, None for anywhere. ``text_padding``: the kernel may come to forbid the execution of this segment,
    or to run without it being mapped, so trampolines belong into the padding of the text. ``hide_nx``: with
    a ROM the kernel must not see that the processor can forbid execution, since ROM and adaptors lie in the
    segment. ``top``: the segment ends at this virtual address, so that it begins where depends on its size
    (:meth:`ending`); None: it begins at ``layout.base``.
    """

    layout: Layout
    reasons: tuple[str, ...]
    warnings: tuple[str, ...]
    strategy: Strategy = Strategy.AFTER_IMAGE
    limit: int = MAX_SIZE
    file_offset: int | None = None
    text_padding: bool = False
    hide_nx: bool = False
    top: int | None = None

    def ending(self, size: int) -> Place:
        """The same place for a segment that has ``size`` bytes."""
        if self.top is None:
            return self
        old = self.layout
        base = self.top - size
        layout = _layout(base, old.bias, lift=old.lift + old.base - base)
        return replace(self, layout=layout)

    @property
    def linux(self) -> bool:
        """The kernel is started by Linux's boot protocol, with its boot_params in ESI."""
        return self.strategy is Strategy.LINUX

    def __repr__(self) -> str:
        return f"Place({self.layout.base:#x}, {self.strategy}, {len(self.warnings)} warnings)"


AUTOMATIC = Choice()


def place(image: Image, wanted: Choice = AUTOMATIC) -> Place:
    """Choose the segment's address; raises BadInput when there is none or the image can't have one."""
    strategy = wanted.strategy
    if strategy is None:
        strategy = Strategy.LINUX if wanted.protocol else _found(image)
    if (strategy is Strategy.LINUX) != bool(wanted.protocol):
        raise BadInput(
            "a kernel inside a bzImage has to be placed with the strategy linux, and no other kernel can be"
        )
    elf.check_kludge(image)
    padding = _may_forbid_execution(image) if wanted.text_padding is None else wanted.text_padding
    spot = _STRATEGIES[strategy](image, wanted)
    if image.displaced and strategy is not Strategy.LINUX:
        raise BadInput("a kernel that moves itself when it starts can be patched inside its bzImage only")
    reasons, warnings = list(spot.reasons), list(spot.warnings)
    start = elf.entry_segment(image)
    if not start.flags & Access.X:
        warnings.append(
            f"the segment at {start.vaddr:#x} holds the entry point and is not executable: it is left alone, "
            "and no sensitive instruction is looked for in it"
        )
    if padding:
        reasons.append(
            "the kernel may turn execute-disable on (it names the register EFER and has WRMSR), so without a "
            "ROM it executes nothing in the segment but what runs before it starts"
        )
    return Place(
        layout=_layout(spot.base, elf.main_text(image).offset, spot.node, spot.lift),
        reasons=tuple(reasons),
        warnings=tuple(warnings),
        strategy=strategy,
        limit=min(MAX_SIZE, spot.limit),
        file_offset=spot.file_offset,
        text_padding=padding,
        hide_nx=padding,
        top=spot.top,
    )


def _found(image: Image) -> Strategy:
    """The strategy for a kernel that isn't in a bzImage, when none is asked for."""
    if elf.multiboot(image.data) is None or not any(use.taken for use in imageend.uses(image)):
        return Strategy.AFTER_IMAGE
    try:
        _low_memory(image, AUTOMATIC)
    except BadInput:
        return Strategy.AFTER_IMAGE
    return Strategy.LOW_MEMORY


def _may_forbid_execution(image: Image) -> bool:
    """True if the code holds the number of EFER and WRMSR: without these there is no execute-disable.

    Page-table isolation hides memory that holds no kernel text from the entry code too, but a kernel that
    has it names EFER as well. Numbers that only look the same cost the sites that padding has no room for.
    """
    code = [segment.data for segment in image.segments if segment.flags & Access.X]
    return all(any(wanted in data for data in code) for wanted in (EFER, WRMSR))


# --- strategies ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Spot:
    """What a strategy found; ``base`` is virtual."""

    base: int
    reasons: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    limit: int = MAX_SIZE
    file_offset: int | None = None
    node: int = 0
    lift: int = 0
    top: int | None = None


CARVED = "activation marks the segment as reserved in the multiboot memory map"
KLUDGED = (
    "the multiboot header gives the range of the file that is loaded (flag bit 16), and it is made to reach "
    "to the segment's end"
)
NO_HEADER = "there is no multiboot 1 header, so the segment can't be taken out of a memory map"


def _after_image(image: Image, _wanted: Choice) -> _Spot:
    text = elf.main_text(image)
    end = imageend.image_end(image)
    base = _page_up(_free_from(image))
    _check_room(base, text.offset, end)
    reasons = [
        f"it starts at {base:#x}, after the last byte of every segment (the image ends at {end:#x})",
        f"its distance between virtual and physical addresses is that of the text ({text.offset:#x}), so a "
        "kernel that maps memory directly maps it too",
    ]
    warnings = _end_warnings(image, end)
    header = elf.multiboot(image.data)
    offset = None
    if header is not None:
        reasons.append(f"boot loaders place modules after the last segment, and {CARVED}")
        reasons.append(
            "activation moves the command line to the segment's end, so a kernel that looks for free memory "
            "between the things its boot loader gave it, without the map, finds none in between"
        )
    else:
        warnings.append(
            "there is no multiboot 1 header, so the segment can't be taken out of a memory map: the kernel "
            f"must leave the memory from {base:#x} on alone"
        )
    if header is not None and header.kludge:
        offset = elf.kludge(image.data, header).offset_of(base - text.offset)
        reasons.append(KLUDGED)
    return _Spot(base, tuple(reasons), tuple(warnings), file_offset=offset)


def _linux(image: Image, wanted: Choice) -> _Spot:
    text = elf.entry_segment(image)
    first = min(image.segments, key=lambda segment: segment.paddr)
    if wanted.protocol < LINUX_PROTOCOL:
        raise BadInput(
            f"expected a bzImage of boot protocol 2.{LINUX_PROTOCOL & 0xFF} or later, which can be told of "
            f"memory to leave alone, got {wanted.protocol >> 8}.{wanted.protocol & 0xFF}"
        )
    if any(segment.offset != first.offset for segment in image.segments):
        raise BadInput("the kernel's segments lie at different distances from their physical addresses")
    if text is not first or image.entry not in (first.vaddr, first.paddr):
        raise BadInput(
            f"expected the kernel to start with its first byte at {first.vaddr:#x}, as its decompressor "
            f"does, got the entry point {image.entry:#x}"
        )
    end = imageend.image_end(image)
    node = _page_up(end)
    base = node + PAGE
    _check_room(base, text.offset, end)
    reasons = (
        f"it starts at {base:#x}, after the last byte of every segment (the image ends at {end:#x}) and one "
        "page for a setup_data node",
        "its bytes lie in the file as they do in memory, so the room that the kernel's boot code reserves "
        "for the decompressed file holds it too, wherever the kernel is moved to",
        "activation links a setup_data node that covers it, and for which the kernel reserves that memory "
        "and keeps it in its direct map",
    )
    return _Spot(base, reasons, file_offset=base - text.offset - first.paddr, node=node)


def _low_memory(image: Image, _wanted: Choice) -> _Spot:
    bias = elf.main_text(image).offset
    first = min(segment.paddr for segment in image.segments)
    if first < lowmemory.ONE_MEGABYTE:
        raise BadInput(
            f"the segment can't be moved below 640 KiB: the image itself is loaded at {first:#x}, below 1 MiB"
        )
    top = lowmemory.top(image)
    limit = top - lowmemory.LOW_START
    base = lowmemory.LOW_START + bias
    if limit < LEAST:
        raise BadInput("the segment can't be moved below 640 KiB: the kernel has its stack there")
    _check_free(image, base, limit)
    load = _page_up(_free_from(image)) - bias
    end = imageend.image_end(image)
    _check_room(load + bias, bias, end)
    reasons = [
        f"it is loaded at the physical address {load:#x}, behind the image like any other segment, and the "
        f"first that runs, activation, moves it down to where it ends at {top:#x}, away from the image's end"
    ]
    taken = [use.address for use in imageend.uses(image) if use.taken]
    if taken:
        reasons.append(
            f"the kernel takes memory from its own end: {', '.join(map(hex, taken[:4]))} "
            f"{'uses' if len(taken) == 1 else 'use'} {end:#x} as the address of something"
        )
    warnings = [
        "the kernel must leave memory below 640 KiB alone where the boot loader's map doesn't show it as "
        "usable"
    ]
    names = lowmemory.named(image)
    if names:
        reasons.append(
            f"the kernel maps memory below 1 MiB at {bias:#x}, where the segment is then: it names "
            f"{', '.join(map(hex, names))}"
        )
    elif bias:
        warnings.append(
            f"the kernel must map memory below 1 MiB at {bias:#x}, where the segment is then, and nothing in "
            "it shows that it does"
        )
    header = elf.multiboot(image.data)
    offset = None
    if header is None:
        warnings.append(NO_HEADER)
    else:
        reasons.append(f"{CARVED}, and the size of memory below 640 KiB ends before it")
    if header is not None and header.kludge:
        offset = elf.kludge(image.data, header).offset_of(load)
        reasons.append(KLUDGED)
    return _Spot(
        base, tuple(reasons), tuple(warnings), limit, offset, lift=load + bias - base, top=top + bias
    )


def _address(image: Image, wanted: Choice) -> _Spot:
    text = elf.main_text(image)
    base = wanted.address
    header = elf.multiboot(image.data)
    if header is not None and header.kludge:
        raise BadInput(
            "the segment must follow the image: the multiboot header gives one range of the file that is "
            "loaded (flag bit 16)"
        )
    if base % PAGE or not 0 < base < elf.ADDRESS_SPACE:
        raise BadInput(f"expected the address of a page below 4 GiB for the segment, got {base:#x}")
    physical = base - text.offset
    if not 0 < physical < elf.ADDRESS_SPACE:
        raise BadInput(f"there is no physical memory for a segment at {base:#x}")
    limit = _check_free(image, base, PAGE * 16)
    warnings = [
        f"the address {base:#x} was given, not found: that the kernel leaves this memory alone and keeps it "
        "mapped is not known"
    ]
    if header is None:
        warnings.append(NO_HEADER)
    reasons = (f"it starts at {base:#x} as asked for, where no segment is",)
    return _Spot(base, reasons, tuple(warnings), limit=limit)


_STRATEGIES = {
    Strategy.AFTER_IMAGE: _after_image,
    Strategy.LINUX: _linux,
    Strategy.LOW_MEMORY: _low_memory,
    Strategy.ADDRESS: _address,
}


def _free_from(image: Image) -> int:
    """The first virtual address that lies behind everything, virtual and physical."""
    offset = elf.main_text(image).offset
    physical = max(segment.paddr + segment.memsz for segment in image.segments)
    header = elf.multiboot(image.data)
    if header is not None and header.kludge:
        physical = max(physical, elf.kludge(image.data, header).end)
    return max(imageend.image_end(image), physical + offset)


def _check_room(base: int, offset: int, end: int) -> None:
    if max(base, base - offset) + MAX_SIZE > elf.ADDRESS_SPACE:
        raise BadInput(f"there is no room for a .vmi segment between the image's end {end:#x} and 4 GiB")


def _check_free(image: Image, base: int, least: int) -> int:
    """The bytes from ``base`` up to what is in the way next, virtually or physically, at least ``least``."""
    physical = base - elf.main_text(image).offset
    used = [(base - segment.vaddr, segment.vaddr, segment.memsz) for segment in image.segments]
    used += [(physical - segment.paddr, segment.vaddr, segment.memsz) for segment in image.segments]
    limit = elf.ADDRESS_SPACE - max(base, physical)
    for ahead, vaddr, size in used:
        if -least < ahead < size:
            raise BadInput(f"a segment at {base:#x} would overlap the image's segment at {vaddr:#x}")
        if ahead < 0:
            limit = min(limit, -ahead)
    if HOLE_START - least < physical < HOLE_END:
        raise BadInput(f"the segment at {base:#x} would lie in the screen memory and ROMs of a PC")
    return min(limit, HOLE_START - physical) if physical < HOLE_START else limit


# --- inside -------------------------------------------------------------------------------------


def _page_up(address: int) -> int:
    return (address + PAGE - 1) & -PAGE


def _layout(base: int, bias: int, node: int = 0, lift: int = 0) -> Layout:
    assert HEADER_SIZE <= PAGE
    rom_reserve = base + PAGE
    activation = rom_reserve + ROM_RESERVE
    relocations = activation + (LIFTED_SIZE if lift else ACTIVATION_SIZE)
    info = relocations + len(abi.CALLS) * RELOC_SIZE
    map_buffer = info + (INFO_SIZE if lift else 0)
    stack = _page_up(map_buffer + 16 * MAP_ENTRY_SIZE)
    return Layout(
        base=base,
        bias=bias,
        rom_reserve=rom_reserve,
        activation=activation,
        relocations=relocations,
        info=info,
        map_buffer=map_buffer,
        map_buffer_size=stack - map_buffer,
        stack_top=stack + STACK_SIZE,
        tables=stack + STACK_SIZE,
        node=node,
        lift=lift,
    )


def _end_warnings(image: Image, end: int) -> list[str]:
    """Signs that the kernel uses the memory after its image without asking anyone."""
    uses = imageend.uses(image)
    if not uses:
        return []
    names = imageend.names(image)
    known = f" (symbol {', '.join(names)})" if names else ""
    return [
        f"the address of the image's end {end:#x}{known} occurs {len(uses)} times in the image: a kernel "
        "that takes memory from there without reading the boot loader's memory map overwrites the .vmi "
        "segment (it can be placed elsewhere: low-memory, or an address)"
    ]
