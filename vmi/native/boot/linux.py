# SPDX-License-Identifier: GPL-2.0-only
"""Linux bzImages by the 32-bit boot protocol: the kernel starts in its own 32-bit code.

Follows Linux's documents on the x86 boot protocol and the zero page. The image's 16-bit setup code, which
asks the firmware for what the zero page tells, does not run: it is all filled in here, as that code finds
it on ``qemu-system-i386 -M isapc -kernel``. The code goes to 1 MiB, the initrd where QEMU puts it: as
high in RAM as the kernel allows.
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct
from typing import NamedTuple

from vmi.errors import BadInput, UsageError
from vmi.native.boot import placement
from vmi.native.boot.memory_map import HIGH_RAM, LOW_RAM_END, memory_map, ram_end, upper_kib
from vmi.native.boot.state import BootState, Module, Plan, Request, Write
from vmi.native.registers import TableRegister

LOAD_AT = HIGH_RAM
ZERO_PAGE_AT = 0x10000
GDT_AT = 0x11000
COMMAND_LINE_AT = 0x20000
CODE, DATA = 0x10, 0x18  # the protocol's selectors

_SECTOR = 512
_MAGIC_AT, _MAGIC = 0x202, b"HdrS"
_JUMP_AT = 0x201  # the header ends where the jump over it goes
_HEADER_START, _HEADER_END = 0x1F1, 0x290  # the room that the zero page has for it
_OLDEST = 0x202  # older kernels take their command line in another way
_DEFAULT_SETUP_SECTORS = 4
_LOADED_HIGH, _KERNEL_64 = 1, 1
_UNKNOWN_LOADER = 0xFF

_FLAT_CODE, _FLAT_DATA = 0x00CF9B000000FFFF, 0x00CF93000000FFFF
_GDT = Struct("<4Q").pack(0, 0, _FLAT_CODE, _FLAT_DATA)


class _Field(NamedTuple):
    """A field of the setup header: where, how many bytes, since which version, its value before that."""

    offset: int
    size: int
    since: int = 0x200
    before: int = 0


_FIELDS = {
    "setup_sects": _Field(0x1F1, 1),
    "syssize": _Field(0x1F4, 4, 0x204),
    "version": _Field(0x206, 2),
    "type_of_loader": _Field(0x210, 1),
    "loadflags": _Field(0x211, 1),
    "code32_start": _Field(0x214, 4),
    "ramdisk_image": _Field(0x218, 4),
    "ramdisk_size": _Field(0x21C, 4),
    "cmd_line_ptr": _Field(0x228, 4, 0x202),
    "initrd_addr_max": _Field(0x22C, 4, 0x203, 0x37FFFFFF),
    "kernel_alignment": _Field(0x230, 4, 0x205, 1),
    "relocatable_kernel": _Field(0x234, 1, 0x205),
    "xloadflags": _Field(0x236, 2, 0x20C),
    "cmdline_size": _Field(0x238, 4, 0x206, 255),
    "setup_data": _Field(0x250, 8, 0x209),
    "pref_address": _Field(0x258, 8, 0x20A, LOAD_AT),
    "init_size": _Field(0x260, 4, 0x20A),
}

#: What the setup code finds out on a PC with a VGA in text mode, 80 columns by 25 lines of 16 pixels, the
#: cursor in the corner, as (offset in the zero page, bytes, value).
_SCREEN = ((0x06, 1, 3), (0x07, 1, 80), (0x0A, 2, 3), (0x0E, 1, 25), (0x0F, 1, 1), (0x10, 2, 16))
_EXT_MEM_K, _ALT_MEM_K, _MAP_LENGTH, _MAP = 0x02, 0x1E0, 0x1E8, 0x2D0
_MOST_EXT_MEM_K = 0xFC00  # what the firmware's oldest call for it goes up to
_MAP_ENTRY = Struct("<QQI")
_PAGE = 4096


@dataclass(frozen=True, repr=False)
class _Kernel:
    """An image's setup header: raw from 1F1h on, its fields by name, and where the 32-bit code begins."""

    header: bytes
    fields: dict[str, int]
    code_at: int

    def __getitem__(self, name: str) -> int:
        return self.fields[name]

    @property
    def unpacks_to(self) -> range:
        """The memory that the kernel uses before it looks at the memory map."""
        start = self["pref_address"]
        if self["relocatable_kernel"]:
            alignment = self["kernel_alignment"]
            start = -(-max(LOAD_AT, start) // alignment) * alignment
        return range(start, start + self["init_size"])


def recognise(image: bytes) -> bool:
    """Whether the image has a Linux setup header."""
    return image[_MAGIC_AT : _MAGIC_AT + len(_MAGIC)] == _MAGIC


def plan(request: Request, ram_size: int) -> Plan:
    """What to load for a kernel: its command line is its options alone, its one module the initrd."""
    if len(request.modules) > 1:
        raise UsageError(f"Linux takes one initrd, but {len(request.modules)} modules are given")
    image = request.image
    kernel = _read(image)
    top = ram_end(ram_size)
    code = image[kernel.code_at :]
    span = range(LOAD_AT, LOAD_AT + len(code))
    unpacks_to = kernel.unpacks_to
    if span.stop > top:
        raise BadInput(f"the kernel needs memory up to {span.stop:#x}, but RAM ends at {top:#x}")
    if unpacks_to.stop > top:
        raise BadInput(
            f"the kernel needs memory up to {unpacks_to.stop:#x} to unpack itself, but RAM ends at {top:#x}"
        )
    if kernel["code32_start"] not in span:
        raise BadInput(
            f"the kernel's 32-bit entry point {kernel['code32_start']:#x} is not inside its code "
            f"at {span.start:#x}-{span.stop - 1:#x}"
        )
    command_line = _command_line(request.append, kernel["cmdline_size"])
    busy = max(span.stop, unpacks_to.stop)
    initrd = [_initrd(m, busy, min(kernel["initrd_addr_max"], top)) for m in request.modules]
    page = _zero_page(kernel, initrd[0] if initrd else Write(0, b""), ram_size)
    state = BootState(
        eip=kernel["code32_start"],
        esi=ZERO_PAGE_AT,
        kernel=span,
        end=initrd[0].address + len(initrd[0].data) if initrd else span.stop,
        code=CODE,
        data=DATA,
        gdt=TableRegister(GDT_AT, len(_GDT) - 1),
    )
    low = Write(ZERO_PAGE_AT, page), Write(GDT_AT, _GDT), Write(COMMAND_LINE_AT, command_line)
    return Plan(state, (*low, Write(LOAD_AT, code), *initrd))


def _read(image: bytes) -> _Kernel:
    """The setup header, checked as far as it does not depend on the machine."""
    if not recognise(image):
        raise BadInput(f"the kernel has no Linux setup header: there is no 'HdrS' at byte {_MAGIC_AT:#x}")
    end = min(_MAGIC_AT + image[_JUMP_AT], _HEADER_END)
    if len(image) < end:
        raise BadInput(f"the kernel's setup header ends at byte {end:#x}, after the file's {len(image):#x}")
    version = int.from_bytes(image[0x206:0x208], "little")
    if version < _OLDEST:
        raise BadInput(
            f"the kernel's boot protocol must be {_dotted(_OLDEST)} or newer, but it is {_dotted(version)}"
        )
    fields = {}
    for name, field in _FIELDS.items():
        fields[name] = field.before
        if version >= field.since:
            if field.offset + field.size > end:
                raise BadInput(
                    f"the kernel's boot protocol {_dotted(version)} has a field {name}, "
                    f"but its setup header ends before it at byte {end:#x}"
                )
            fields[name] = int.from_bytes(image[field.offset : field.offset + field.size], "little")
    code_at = ((fields["setup_sects"] or _DEFAULT_SETUP_SECTORS) + 1) * _SECTOR
    kernel = _Kernel(image[_HEADER_START:end], fields, code_at)
    _check(kernel, len(image))
    return kernel


def _check(kernel: _Kernel, file_size: int) -> None:
    if not kernel["loadflags"] & _LOADED_HIGH:
        raise BadInput(
            "the kernel is a zImage, made to be loaded below 640 KiB: only a bzImage can be loaded"
        )
    if kernel["xloadflags"] & _KERNEL_64:
        raise BadInput("the kernel is a 64-bit Linux, but the machine's processor has only 32 bits")
    # the size is in paragraphs, the last of which need not be whole
    wanted = kernel.code_at + max(kernel["syssize"] * 16 - 15, 1)
    if file_size < wanted:
        raise BadInput(f"the kernel's file must have {wanted} bytes at least, but it has {file_size}")
    alignment = kernel["kernel_alignment"]
    if kernel["relocatable_kernel"] and alignment.bit_count() != 1:
        raise BadInput(f"the kernel's alignment must be a power of two, but it is {alignment:#x}")


def _dotted(version: int) -> str:
    return f"{version >> 8}.{version & 0xFF:02}"


def _command_line(text: str, most: int) -> bytes:
    data = placement.encode(text, "the command line")
    most = min(most, LOW_RAM_END - COMMAND_LINE_AT - 1)
    if len(data) - 1 > most:
        raise BadInput(f"the command line has {len(data) - 1} bytes, but the kernel takes {most} at most")
    return data


def _initrd(module: Module, floor: int, limit: int) -> Write:
    # The kernel's limit is the last address allowed, but QEMU takes it for the end: so whole pages go one
    # lower than they could.
    start = placement.below(limit, len(module.data))
    if start < floor:
        raise BadInput(
            f"the initrd of {len(module.data)} bytes does not fit "
            f"between the kernel's end {floor:#x} and {limit:#x}"
        )
    return Write(start, module.data)


def _zero_page(kernel: _Kernel, initrd: Write, ram_size: int) -> bytes:
    """``struct boot_params``. Heap and video mode in the header are the setup code's own: left alone."""
    page = bytearray(_PAGE)
    page[_HEADER_START : _HEADER_START + len(kernel.header)] = kernel.header
    areas = memory_map(ram_size)
    values = [
        *_SCREEN,
        (_EXT_MEM_K, 2, min(upper_kib(ram_size), _MOST_EXT_MEM_K)),
        (_ALT_MEM_K, 4, upper_kib(ram_size)),
        (_MAP_LENGTH, 1, len(areas)),
    ]
    ours = {
        "type_of_loader": _UNKNOWN_LOADER,
        "ramdisk_image": initrd.address,
        "ramdisk_size": len(initrd.data),
        "cmd_line_ptr": COMMAND_LINE_AT,
        "setup_data": 0,
    }
    for name, value in ours.items():
        if kernel["version"] >= _FIELDS[name].since:
            values.append((_FIELDS[name].offset, _FIELDS[name].size, value))
    for offset, size, value in values:
        page[offset : offset + size] = value.to_bytes(size, "little")
    for number, area in enumerate(areas):
        _MAP_ENTRY.pack_into(
            page, _MAP + number * _MAP_ENTRY.size, area.start, area.stop - area.start, area.kind
        )
    return bytes(page)
