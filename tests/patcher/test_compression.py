# SPDX-License-Identifier: GPL-2.0-only
"""Compressed kernels: unpacked, their settings found out, and made again."""

from __future__ import annotations

import bz2
import gzip
import lzma
import re
from dataclasses import replace
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.patcher.bzimages import COMPRESSIONS
from vmi.errors import BadInput
from vmi.patcher import compression
from vmi.patcher.compression import Format, Recipe

DATA = b"".join(bytes([n * n % 251 & n, n % 7]) + b"%d kernels" % (n * n % 1009) for n in range(3000))

RECIPES = [
    Recipe(Format.XZ, 6, check=1, x86=True, dictionary=1 << 20),
    Recipe(Format.XZ, 6, extreme=True, check=1, x86=True, dictionary=1 << 16),
    Recipe(Format.XZ, 6, check=0, dictionary=3 << 15, literal=(4, 0, 1)),
    Recipe(Format.XZ, 3, check=4, x86=True, dictionary=4096),
    Recipe(Format.XZ, 1, check=10, dictionary=1 << 20, literal=(0, 2, 0)),
    Recipe(Format.LZMA, 6, dictionary=1 << 20),
    Recipe(Format.LZMA, 6, extreme=True, dictionary=1 << 16),
    *(Recipe(Format.GZIP, level, header=b"\x1f\x8b\x08\0abcd\x02\x03") for level in (1, 6, 9)),
    Recipe(Format.GZIP, 9, header=b"\x1f\x8b\x08\x1fabcd\x02\x03\x02\0xyname\0comment\0\x12\x34"),
    Recipe(Format.BZIP2, 9),
    Recipe(Format.BZIP2, 1),
]


@pytest.mark.parametrize("recipe", RECIPES, ids=repr)
def test_settings_are_found_out(recipe: Recipe) -> None:
    packed = recipe.compress(DATA)
    assert compression.format_of(packed) is recipe.format
    found = compression.find(DATA, packed, recipe.format)
    assert found is not None
    assert found.compress(DATA) == packed
    # Two presets may do the same to this data, but what is in the file is known for sure.
    assert replace(found, level=0, extreme=False) == replace(recipe, level=0, extreme=False)


@pytest.mark.parametrize("name", COMPRESSIONS)
@settings(max_examples=20)
@given(data=st.binary(min_size=1, max_size=300), rest=st.binary(max_size=5))
def test_unpack(name: str, data: bytes, rest: bytes) -> None:
    packed = COMPRESSIONS[name](data)
    assert compression.unpack(packed + rest, Format(name)) == (data, rest)
    found = compression.find(data, packed, Format(name))
    assert found is not None
    assert found.compress(data) == packed


@pytest.mark.parametrize("kind", Format)
@settings(max_examples=50)
@given(damage=st.binary(max_size=60))
def test_any_bytes_are_data_or_a_sentence(kind: Format, damage: bytes) -> None:
    magic = next(magic for magic, found in compression.MAGICS.items() if found is kind)
    packed = magic + damage
    with pytest.raises(BadInput, match=rf"^the kernel's {kind} data (is damaged|ends too early)$"):
        compression.unpack(packed, kind)
    try:
        with mock.patch.object(compression, "DICTIONARY", 1 << 16):  # makes encoders small, and quick
            assert compression.find(b"", packed, kind) is None
    except BadInput as error:
        assert str(error) == "the kernel's gzip data ends too early"


@pytest.mark.parametrize("name", COMPRESSIONS)
def test_a_bomb_is_not_unpacked(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compression, "LIMIT", 4 << 20)
    fits, bomb = (COMPRESSIONS[name](bytes((4 << 20) + more)) for more in (0, 1))
    assert len(compression.unpack(fits, Format(name))[0]) == 4 << 20
    with pytest.raises(BadInput, match=r"^the compressed kernel expands to more than 4 MiB$"):
        compression.unpack(bomb, Format(name))


@pytest.mark.parametrize(
    ("packed", "name"),
    [("28b52ffd00", "zstd"), ("894c5a4f00", "lzo"), ("02214c1800", "lz4"), ("04224d1800", "lz4")],
)
def test_formats_without_an_encoder_are_named(packed: str, name: str) -> None:
    sentence = f"the kernel is compressed with {name}, but only xz, gzip, lzma and bzip2 can be unpacked"
    with pytest.raises(BadInput, match=f"^{re.escape(sentence)}$"):
        compression.format_of(bytes.fromhex(packed))


def test_what_is_not_compressed() -> None:
    assert compression.format_of(b"\x7fELF") is None
    assert compression.format_of(b"") is None


def test_other_encoders_are_not_taken_for_these() -> None:
    stored = gzip.compress(DATA, 0, mtime=0)
    assert compression.find(DATA, stored, Format.GZIP) is None
    delta = [{"id": lzma.FILTER_DELTA, "dist": 4}, {"id": lzma.FILTER_LZMA2, "preset": 6}]
    assert compression.find(DATA, lzma.compress(DATA, filters=delta), Format.XZ) is None
    nice = [{"id": lzma.FILTER_LZMA2, "preset": 6, "nice_len": 9, "depth": 1}]
    assert compression.find(DATA, lzma.compress(DATA, filters=nice), Format.XZ) is None
    assert compression.find(DATA + b"!", bz2.compress(DATA), Format.BZIP2) is None
    assert compression.find(DATA, bz2.compress(DATA) + b"!", Format.BZIP2) is None


def test_no_encoder_gets_a_huge_dictionary() -> None:
    packed = lzma.compress(b"small", filters=[{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 1 << 26}])
    largest = packed[:16] + b"\x28" + packed[17:]
    recipes = [*compression.guesses(packed, Format.XZ), *compression.better(largest, Format.XZ)]
    assert {recipe.dictionary for recipe in recipes} == {compression.DICTIONARY}


def test_settings_that_no_encoder_takes() -> None:
    with pytest.raises(ValueError, match=r"^no encoder takes Recipe\(xz -6, lc/lp/pb \(4, 4, 0\)\)$"):
        Recipe(Format.XZ, 6, check=1, dictionary=1 << 16, literal=(4, 4, 0)).encoder()
