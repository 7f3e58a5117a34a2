# SPDX-License-Identifier: GPL-2.0-only
"""Choosing the protocol, and what holds for all of them: a refused kernel leaves no trace."""

from __future__ import annotations

import gzip
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.native.boot.images import BODY, RAM, bzimage, elf_kernel, header, misused, note, refused
from vmi.errors import BadInput
from vmi.memory import PhysicalMemory
from vmi.native.boot import loader
from vmi.native.boot.loader import PROTOCOLS, Module, identify, load
from vmi.native.boot.memory_map import LOW_RAM_END
from vmi.native.boot.state import BootState, Plan, Request, Write

MULTIBOOT = elf_kernel(text=header() + BODY)
PVH = elf_kernel(notes=note())
ELF = elf_kernel()
BLANK = bytes(RAM)
IMAGES = {"linux": bzimage(), "multiboot": MULTIBOOT, "pvh": PVH, "elf": ELF, "flat": b"\xfa\xf4" * 30}


@pytest.fixture
def memory():
    return PhysicalMemory(RAM)


def test_names_in_the_order_in_which_they_are_tried():
    assert list(PROTOCOLS) == ["linux", "multiboot", "pvh", "elf", "flat"]
    assert all(name == row.name and row.title for name, row in PROTOCOLS.items())


@pytest.mark.parametrize("name", ["linux", "multiboot", "pvh", "elf"])
def test_each_kind_is_identified_and_loaded(memory, name):
    assert identify(IMAGES[name]) == name
    assert identify(gzip.compress(IMAGES[name], mtime=0)) == name
    plain = load(IMAGES[name], memory)
    assert plain.eip == 0x100000
    other = PhysicalMemory(RAM)
    assert load(gzip.compress(IMAGES[name], mtime=0), other) == plain
    assert other.sha256() == memory.sha256()
    assert load(IMAGES[name], PhysicalMemory(RAM), protocol=name) == plain


def test_precedence_is_that_of_qemu():
    """A Linux header wins over a multiboot one, and that over a PVH note."""
    both = bzimage({0x300: header()})
    assert PROTOCOLS["multiboot"].recognise(both)
    assert identify(both) == "linux"
    both = elf_kernel(text=header() + BODY, notes=note())
    assert PROTOCOLS["pvh"].recognise(both)
    assert identify(both) == "multiboot"


def test_an_elf_file_of_another_kind_is_refused_for_what_it_is(memory):
    image = elf_kernel(bits=2, notes=note())
    assert identify(image) == "elf"
    with refused("the kernel must be a 32-bit ELF file, but it is 64-bit"):
        load(image, memory)


@pytest.mark.parametrize("image", [b"", b"MZ", b"\xfa\xf4" * 3000, bytes(0x202) + b"Hdr"])
def test_what_is_none_of_them(memory, image):
    sentence = "the kernel has no Linux or multiboot header and is no ELF file"
    with refused(f"{sentence}: if it is a flat binary, ask for protocol 'flat'"):
        load(image, memory)


def test_version_2_of_multiboot_is_named():
    sentence = (
        "the kernel has no Linux or multiboot header and is no ELF file "
        "(it has a header of multiboot version 2, which can't be loaded): "
        "if it is a flat binary, ask for protocol 'flat'"
    )
    with refused(sentence):
        identify(bytes(64) + struct.pack("<I", 0xE85250D6) + bytes(64))


def test_unknown_protocol(memory):
    with misused("boot protocol 'xen' is not one of linux, multiboot, pvh, elf, flat"):
        load(ELF, memory, protocol="xen")


@pytest.mark.parametrize("name", ["linux", "multiboot", "pvh", "elf"])
def test_address_is_for_flat_images(memory, name):
    with misused(f"only a flat binary takes a load address, but the kernel's protocol is {name}"):
        load(IMAGES[name], memory, address=0x200000)


def test_another_protocol_may_be_asked_for(memory):
    assert load(MULTIBOOT, memory, protocol="elf").eax == 0
    assert load(MULTIBOOT, memory, protocol="flat").kernel == range(0x100000, 0x100000 + len(MULTIBOOT))
    with refused("the kernel has no multiboot header in its first 8192 bytes"):
        load(PVH, memory, protocol="multiboot")


def test_flat_images_are_taken_as_they_are(memory):
    image = gzip.compress(b"packed", mtime=0)
    load(image, memory, protocol="flat", address=0x7C00)
    assert memory.read(0x7C00, len(image)) == image


def test_multiboot_command_line_begins_with_the_name(memory):
    state = load(MULTIBOOT, memory, name="mach", append="a=b")
    line = memory.u32(state.ebx + 16)
    assert memory.read(line, 9) == b"mach a=b\0"


def test_reprs():
    state = BootState(eip=1, kernel=range(16, 32), end=64)
    assert repr(state) == "BootState(eip 0x1, kernel 0x10-0x1f)"
    assert repr(Plan(state, (Write(16, b"a"),))) == f"Plan({state!r}, 1 writes)"
    assert repr(Request(b"abc", "k")) == "Request('k', 3 bytes, 0 modules)"


def test_zeros_of_a_write_are_zeroed(memory):
    memory.write(0, b"\xcc" * RAM)
    size = (2 << 20) + 5
    Plan(BootState(eip=0, kernel=range(0), end=0), (Write(0x1000, b"abc", size),)).store(memory)
    assert memory.read(0x1000, size + 4) == b"abc" + bytes(size) + b"\xcc"


@pytest.mark.parametrize("name", sorted(IMAGES))
def test_memory_where_devices_are_is_not_used(name):
    """RAM of the highest size there is, and a module or kernel that would go to its end."""
    size = (1 << 32) - 4096
    if name in ("linux", "pvh"):
        plan = PROTOCOLS[name].plan(Request(IMAGES[name], modules=(Module(b"m", "m"),)), size)
        assert plan.state.end <= 0xE0000000
        return
    image = {
        "multiboot": elf_kernel((0xDFFFFFF8, 0x10), entry=0xDFFFFFF8, text=header() + BODY),
        "elf": elf_kernel((0xDFFFFFF8, 0x10), entry=0xDFFFFFF8),
        "flat": bytes(16),
    }[name]
    address = 0xDFFFFFF8 if name == "flat" else None
    with refused("the kernel needs memory up to 0xe0000008, but RAM ends at 0xe0000000"):
        PROTOCOLS[name].plan(Request(image, address=address), size)


@given(
    st.sampled_from(sorted(IMAGES)),
    st.lists(st.tuples(st.integers(0, 0x2FF), st.integers(0, 7), st.integers(0, 255)), max_size=8),
    st.integers(0, 80),
    st.sampled_from([None, b"", b"initrd" * 1000]),
)
def test_damaged_images_are_loaded_whole_or_refused_without_a_trace(name, damage, cut, module):
    image = bytearray(IMAGES[name])
    for at, kind, byte in damage:
        # low numbers and all ones reach further than noise does
        image[at % len(image)] = (0, 255, 1, byte, byte, byte & 15, 0x80, byte)[kind]
    image = bytes(image[: len(image) - cut])
    memory = PhysicalMemory(RAM)
    modules = [] if module is None or name in ("elf", "flat") else [Module(module, "m")]
    try:
        state = load(image, memory, protocol=name, modules=modules)
    except BadInput as error:
        assert "\n" not in str(error)
        assert memory.ram.tobytes() == BLANK
        return
    assert state.eip in state.kernel
    assert state.kernel.stop <= RAM
    assert state.end <= RAM
    assert 0x1000 <= state.esp <= LOW_RAM_END
    assert state.esi % 4096 == 0


@given(st.binary(max_size=600))
def test_noise_is_never_taken_for_a_kernel_nor_crashed_on(noise):
    for row in loader.PROTOCOLS.values():
        if row.name != "flat":
            with pytest.raises(BadInput):
                row.plan(Request(noise), RAM)
