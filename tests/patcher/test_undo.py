# SPDX-License-Identifier: GPL-2.0-only
"""Patches taken back: the original to the byte, or a sentence."""

from __future__ import annotations

import gzip
import hashlib
import lzma
import random
import struct
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.patcher.bzimages import COMPRESSIONS, Image, words
from tests.patcher.elfs import small_kernel
from vmi import samples
from vmi.errors import BadInput
from vmi.patcher import Options, blocks, compression, patch, undo
from vmi.patcher.container import in_gzip, open_container

ORIGINAL = samples.get("sched").path.read_bytes()
PATCHED = patch(ORIGINAL, Options(undo=False)).data
NONE = "the file has no record for taking a patch back"
CHANGED = "the file was changed after it was patched, so the patch can't be taken back"
DAMAGED = "the file's record for taking its patch back is damaged"
OTHERWISE = (
    "the original's compression can't be had again here, so the patch can't be taken back: another program "
    "made it, or the file's record is damaged"
)


def sealed(original: bytes, output: bytes) -> undo.Sealed:
    container = open_container(original)
    return undo.seal(container, output, undo.recipe(container))


SEALED = sealed(ORIGINAL, PATCHED).data


def test_elf() -> None:
    done = sealed(ORIGINAL, PATCHED)
    assert done.note == ""
    assert done.data.startswith(PATCHED)
    assert undo.restore(done.data) == ORIGINAL
    assert len(done.data) - len(PATCHED) < 1500
    assert sealed(ORIGINAL, PATCHED) == done


def test_gzip_that_can_be_made_again() -> None:
    done = sealed(in_gzip(ORIGINAL), PATCHED)
    assert done.note == ""
    assert undo.restore(done.data) == in_gzip(ORIGINAL)
    named = gzip.compress(ORIGINAL, 6, mtime=1234)
    named = named[:3] + b"\x08" + named[4:10] + b"kernel\0" + named[10:]
    assert undo.restore(sealed(named, PATCHED).data) == named


def test_gzip_of_another_program() -> None:
    original = gzip.compress(ORIGINAL, 0)
    assert undo.recipe(open_container(original)) is None
    done = sealed(original, PATCHED)
    assert done.note == ""
    assert undo.restore(done.data) == original


def test_a_patched_file_in_gzip() -> None:
    assert undo.restore(in_gzip(SEALED)) == ORIGINAL


def repacked(image: bytes) -> tuple[bytes, bytes]:
    """A bzImage, and what stands for its patch: other bytes at some places of the kernel."""
    container = open_container(image)
    new = bytearray(container.kernel)
    for at in range(0x1000, 0x1080, 32):
        new[at : at + 5] = b"\xe9\x12\x34\x56\x78"
    return image, container.pack(bytes(new))


@pytest.mark.parametrize("name", COMPRESSIONS)
@pytest.mark.parametrize("relocatable", [True, False])
def test_bzimage(name: str, relocatable: bool) -> None:
    image = Image(compression=name, words=words() if relocatable else None)
    original = image.make()
    container = open_container(original)
    new = bytearray(container.kernel)
    if not relocatable:  # then it is no smaller by its list, so something else has to go
        new[0x2000:0x6000] = bytes(0x4000)
    new[0x1080:0x1085] = b"\xe9\x12\x34\x56\x78"
    output = container.pack(bytes(new))
    assert output != original
    done = sealed(original, output)
    assert done.note == ""
    assert done.data.startswith(output)
    assert undo.restore(done.data) == original
    # Begun before the kernel is compressed, it comes out the same.
    settings = undo.recipe(container)
    begun = undo.ahead(container, bytes(new))
    assert begun is not None
    assert undo.seal(container, output, settings, begun) == done


def test_only_a_bzimage_is_begun_ahead() -> None:
    assert undo.ahead(open_container(ORIGINAL), PATCHED) is None
    assert undo.ahead(open_container(in_gzip(ORIGINAL)), PATCHED) is None


def test_signed_bzimage() -> None:
    original, output = repacked(Image(pe="stretched", signature=bytes(range(200))).make())
    assert undo.restore(sealed(original, output).data) == original


def test_bzimage_of_another_encoder() -> None:
    image = Image()
    filters: list[dict[str, int]] = [{"id": lzma.FILTER_LZMA2, "preset": 0, "nice_len": 5, "depth": 1}]
    packed = lzma.compress(image.unpacked, filters=filters) + struct.pack("<I", len(image.unpacked))
    original = Image(payload=packed).make()
    container = open_container(original)
    assert undo.recipe(container) is None
    output = container.pack(container.kernel)
    done = sealed(original, output)
    assert done.data == output
    assert done.note == (
        "the patch can't be taken back, since the settings of its compression can't be found out"
    )


def test_only_the_beginning_is_tried_unless_all_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second block of this kernel was made by another encoder."""
    monkeypatch.setattr(compression, "_STEP", 1 << 12)
    monkeypatch.setattr(undo, "PROOF", 1 << 14)
    chance = random.Random(3)
    image = Image()
    kernel = image.unpacked + chance.randbytes(1 << 18)
    made = [
        lzma.compress(part, preset=preset, check=lzma.CHECK_CRC32)
        for part, preset in ((kernel[: 1 << 18], 6), (kernel[1 << 18 :], 0))
    ]
    packed = blocks.joined(made)
    most = compression.find(kernel, packed, compression.Format.XZ, undo.PROOF)
    assert most is not None
    assert compression.find(kernel, packed, compression.Format.XZ) is None


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", NONE),
        (PATCHED, NONE),
        (ORIGINAL, NONE),
        (undo.MAGIC, CHANGED),
        (SEALED[len(PATCHED) :], CHANGED),
        (SEALED[:-1], NONE),
        (SEALED + b"signature", CHANGED),
        (SEALED[:100] + b"!" + SEALED[101:], CHANGED),
        (SEALED[1:], CHANGED),
        (in_gzip(PATCHED), NONE),
        (in_gzip(SEALED)[:-50], "the gzip data is damaged or ends early"),
    ],
)
def test_refused(data: bytes, sentence: str) -> None:
    with pytest.raises(BadInput, match=f"^{sentence}$"):
        undo.restore(data)


@settings(max_examples=60)
@given(st.integers(len(PATCHED), len(SEALED) - 1), st.integers(1, 255))
def test_any_damage_to_the_record_gives_a_sentence(at: int, flip: int) -> None:
    data = SEALED[:at] + bytes([SEALED[at] ^ flip]) + SEALED[at + 1 :]
    with pytest.raises(BadInput, match=f"^({NONE}|{CHANGED}|{DAMAGED})$"):
        undo.restore(data)


IMAGE, OUTPUT = repacked(Image().make())
BODY = lzma.decompress(
    sealed(IMAGE, OUTPUT).data[len(OUTPUT) : -76]
)  # what a record says can be anything, if someone makes it so


def forged(body: bytes) -> bytes:
    """A record that is whole, whatever it says."""
    packed = lzma.compress(body)
    sums = hashlib.sha256(OUTPUT).digest() + hashlib.sha256(IMAGE).digest()
    return OUTPUT + packed + sums + struct.pack("<I", len(packed)) + undo.MAGIC


def test_an_original_that_comes_out_otherwise_is_refused() -> None:
    container = open_container(IMAGE)
    settings = undo.recipe(container)
    assert settings is not None
    done = undo.seal(container, OUTPUT, replace(settings, literal=(0, 0, 0)))
    with pytest.raises(BadInput, match=f"^{OTHERWISE}$"):
        undo.restore(done.data)


def test_what_was_not_tried_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert undo.untried(open_container(ORIGINAL)) == undo.untried(open_container(IMAGE)) == ""
    monkeypatch.setattr(undo, "PROOF", 1 << 10)
    assert undo.untried(open_container(IMAGE)) == (
        "that the original's compression can be had again was tried on the first 0 MiB of its kernel (on all "
        "of it with --prove-undo)"
    )


def test_forged_as_it_was() -> None:
    assert undo.restore(forged(BODY)) == IMAGE


@settings(max_examples=100)
@given(st.integers(0, 60), st.integers(1, 255))
def test_forged_records(at: int, flip: int) -> None:
    """The front of the body holds all the numbers that could ask for too much."""
    body = BODY[:at] + bytes([BODY[at] ^ flip]) + BODY[at + 1 :]
    try:
        assert undo.restore(forged(body)) == IMAGE
    except BadInput as error:
        assert str(error) in (DAMAGED, OTHERWISE)


@pytest.mark.parametrize(
    "body", [b"", b"\4" + bytes(40), b"\3" + bytes(40), b"\2", BODY[:20], BODY[:-1], BODY + b"!"]
)
def test_forged(body: bytes) -> None:
    with pytest.raises(BadInput, match=f"^{DAMAGED}$"):
        undo.restore(forged(body))


def test_forged_bomb(monkeypatch: pytest.MonkeyPatch) -> None:
    data = forged(BODY + bytes(1 << 21))
    monkeypatch.setattr(compression, "LIMIT", 1 << 20)
    with pytest.raises(BadInput, match=f"^{DAMAGED}$"):
        undo.restore(data)


def test_a_record_of_another_kind_of_file() -> None:
    """An ELF file can't have been made of a bzImage."""
    with pytest.raises(BadInput, match=r"^the patched file must be a bzImage, as its original was$"):
        sealed(IMAGE, small_kernel())
