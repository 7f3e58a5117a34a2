# SPDX-License-Identifier: GPL-2.0-only
"""Profiles: made in the kernel's own terms, wherever it ran; read with every claim checked."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.patcher.elfs import small_kernel
from tests.patcher.images import BASE, OFFSET, code_image
from vmi.errors import BadInput
from vmi.patcher import profile
from vmi.patcher.pagetables import Candidate, Source
from vmi.patcher.profile import Profile, Writer

STORE = bytes.fromhex("8910")
HERE = BASE + 0x100
TEXT = bytearray((n * 7 + n // 256 * 3) & 0xFF for n in range(0x3000))
TEXT[0x100:0x102] = STORE
TEXT[0x200:0x20A] = bytes.fromhex("c705") + (BASE + 0x2000).to_bytes(4, "little") + bytes(4)
IMAGE = code_image(bytes(TEXT))
MOVABLE = replace(IMAGE, displaced=(BASE + 0x202,))
PHYSICAL = BASE - OFFSET


def made(seen: list[Writer], image: Any = IMAGE, ram: bytes = b"") -> Profile:
    return profile.make(image, seen, memoryview(ram), 1000)


def wrote(address: int, code: bytes = STORE, **more: Any) -> Writer:
    return replace(Writer(address, "table", 4, 4, 1, code), **more)


# ---------------------------------------------------------------- making one


def test_a_profile_counts_each_instruction_of_the_kernel() -> None:
    tail = bytes(TEXT[0x102:0x10F])
    found = made([wrote(HERE, STORE + tail, count=5), wrote(HERE, STORE + tail, level="directory")])
    assert found.writers == (
        Writer(HERE, "directory", 4, 4, 1, STORE),
        Writer(HERE, "table", 4, 4, 5, STORE),
    )
    assert (found.total, found.outside, found.displacement, found.instructions) == (6, 0, 0, 1000)
    assert repr(found) == "Profile(1 instructions, 6 writes)"


def test_code_that_ran_at_its_physical_address_counts_too() -> None:
    found = made([wrote(HERE - OFFSET, count=2), wrote(HERE, count=3)])
    assert found.writers == (Writer(HERE, "table", 4, 4, 5, STORE),)


def test_what_is_not_the_kernels_own_is_only_counted() -> None:
    seen = [wrote(0x5000, count=7), wrote(HERE, b"\x89\x11"), wrote(HERE, b"")]
    found = made(seen)
    assert (found.writers, found.outside) == ((), 9)


@pytest.mark.parametrize("moved", [0, 0x2000, 0x100000, -0x80000])
def test_a_kernel_that_ran_elsewhere_is_put_back(moved: int) -> None:
    running = bytearray(TEXT)
    word = (BASE + 0x2000 + moved) & 0xFFFFFFFF
    running[0x202:0x206] = word.to_bytes(4, "little")
    ram = bytearray(4 << 20)
    ram[PHYSICAL + moved : PHYSICAL + moved + len(running)] = running
    seen = [wrote(HERE + moved), wrote(BASE + 0x200 + moved, bytes(running[0x200:0x20F]))]
    found = made(seen, MOVABLE, bytes(ram))
    assert found.displacement == moved
    assert found.outside == 0
    assert found.writers == (
        Writer(HERE, "table", 4, 4, 1, STORE),
        Writer(BASE + 0x200, "table", 4, 4, 1, bytes(TEXT[0x200:0x20A])),
    )


def test_a_kernel_that_is_nowhere_in_memory_is_taken_to_be_where_it_belongs() -> None:
    assert profile.displacements(MOVABLE, memoryview(bytes(4 << 20))) == [0]


def test_of_several_copies_in_memory_the_one_that_ran_counts() -> None:
    ram = bytearray(4 << 20)
    for moved in (0x1000, 0x100000):
        ram[PHYSICAL + moved : PHYSICAL + moved + len(TEXT)] = TEXT
    ram[PHYSICAL + 0x100000 + 0x800 :][:0x1000] = bytes(0x1000)
    assert profile.displacements(MOVABLE, memoryview(ram)) == [0x1000, 0x100000]
    found = made([wrote(HERE + 0x100000)], MOVABLE, bytes(ram))
    assert (found.displacement, found.outside) == (0x100000, 0)


def test_a_kernel_is_known_by_its_elf_file_however_packed() -> None:
    plain = small_kernel()
    ours = profile.identity(profile.image_of(plain))
    assert profile.identity(profile.image_of(gzip.compress(plain))) == ours
    assert profile.identity(profile.image_of(small_kernel(symbols=[]))) != ours


def test_a_profile_of_another_kernel_is_refused() -> None:
    image = profile.image_of(small_kernel())
    profile.check_kernel(Profile(profile.identity(image), ()), image)
    with pytest.raises(BadInput) as caught:
        profile.check_kernel(Profile("ab" * 32, ()), image)
    assert str(caught.value) == (
        "the profile is of another kernel: one whose sha256 begins with abababababab, and this one's begins"
        f" with {profile.identity(image)[:12]}"
    )


def test_each_instruction_is_one_candidate() -> None:
    rows = (wrote(HERE, level="directory"), wrote(HERE), wrote(HERE + 4, entry=8))
    assert profile.candidates(Profile("00" * 32, rows)) == (
        Candidate(HERE, Source.PROFILE, False, STORE),
        Candidate(HERE + 4, Source.PROFILE, True, STORE),
    )


# ---------------------------------------------------------------- reading one

GOOD = json.loads(Profile("ab" * 32, (wrote(HERE),), 0x1000, 3, 99).to_json())


def changed(**changes: Any) -> bytes:
    return json.dumps(GOOD | changes).encode()


def row(**changes: Any) -> bytes:
    return changed(writers=[GOOD["writers"][0] | changes])


def refusal(data: bytes) -> str:
    with pytest.raises(BadInput) as caught:
        profile.load(data)
    return str(caught.value)


writers = st.builds(
    Writer,
    address=st.integers(0, 2**32 - 1),
    level=st.sampled_from(profile.LEVELS),
    entry=st.just(4),
    size=st.integers(1, 64),
    count=st.integers(1, 2**63 - 1),
    code=st.just(STORE),
)


@given(
    st.lists(writers, unique_by=lambda w: (w.address, w.level, w.entry, w.size)),
    st.integers(-(2**32) + 1, 2**32 - 1),
)
def test_what_is_written_reads_back(rows: list[Writer], moved: int) -> None:
    whole = Profile("0f" * 32, tuple(sorted(rows)), moved, 5, 6)
    assert profile.load(whole.to_json().encode()) == whole


WRITER = "writer 1 of the profile"


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"{", "the profile is not JSON text"),
        (b"[" * 100_000, "the profile is not JSON text"),
        (b"\xff", "the profile is not JSON text"),
        (b"[]", "the profile must be a JSON object with the format 'vmi page-table profile'"),
        (changed(format="x"), "the profile must be a JSON object with the format 'vmi page-table profile'"),
        (changed(version=2), "the profile has version 2, expected 1"),
        (changed(colour=1), "the profile has missing or unknown keys: colour"),
        (changed(kernel="x"), "the profile's kernel must be a sha256 in hexadecimal, got 'x'"),
        (changed(outside=-1), "the profile's outside must be a number from 0, got -1"),
        (changed(instructions="1"), "the profile's instructions must be a number from 0, got '1'"),
        (
            changed(displacement=1 << 33),
            "the profile's displacement must be a number of 32 bits, got 8589934592",
        ),
        (changed(writers={}), "the profile's writers must be a list of at most 100000"),
        (changed(writers=[1]), f"{WRITER} must be a JSON object, got 1"),
        (
            changed(writers=[{}]),
            f"{WRITER} has missing or unknown keys: address, code, count, entry, level, size",
        ),
        (row(level="page"), f"{WRITER} has level 'page', expected one of table, directory, pointers"),
        (row(address=True), f"{WRITER}: its address must be a number from 0, got True"),
        (row(entry=5), f"{WRITER} has entries of 5 bytes, expected 4 or 8"),
        (row(count=0), f"{WRITER} must have a 32-bit address, a size of 1 to 64 and a count above 0"),
        (row(code="zz"), f"{WRITER} must have 1 to 15 bytes of code in hexadecimal"),
        (row(code=5), f"{WRITER} must have 1 to 15 bytes of code in hexadecimal"),
        (
            changed(writers=[GOOD["writers"][0]] * 2),
            f"the profile counts the same writes at {HERE:#x} twice",
        ),
        (
            changed(writers=[GOOD["writers"][0], GOOD["writers"][0] | {"size": 2, "entry": 8}]),
            f"the profile contradicts itself about the instruction at {HERE:#x}",
        ),
        (
            changed(writers=[GOOD["writers"][0], GOOD["writers"][0] | {"size": 2, "code": "90"}]),
            f"the profile contradicts itself about the instruction at {HERE:#x}",
        ),
    ],
)
def test_what_is_no_profile_is_refused(data: bytes, sentence: str) -> None:
    assert refusal(data) == sentence


@given(st.binary(max_size=200))
def test_no_bytes_end_in_anything_but_a_sentence(data: bytes) -> None:
    assert "\n" not in refusal(data)
