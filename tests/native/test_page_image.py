# SPDX-License-Identifier: GPL-2.0-only
"""Images of memory: what was written goes back, whoever wrote it, and the system is asked for no more."""

from __future__ import annotations

import ctypes
import gc
import mmap
import os
import random

import pytest

from vmi.errors import OutputError
from vmi.memory import PAGE_SIZE, PhysicalMemory
from vmi.native import page_image
from vmi.native.page_image import PageImage

RAM = 4 << 20
PAGES = RAM // PAGE_SIZE


@pytest.fixture(params=["asked for copies", "read page by page", "not told"])
def told(request, monkeypatch):
    """The three ways in which the system may tell which pages were written."""
    if request.param == "read page by page":
        monkeypatch.setattr(page_image, "_SCAN", 0)
    if request.param == "not told":
        monkeypatch.setattr(page_image._Pagemap, "copies", lambda self: None)
    return request.param


@pytest.fixture
def memory():
    made = PhysicalMemory(RAM)
    for page in range(0, PAGES, 7):
        made.write(page * PAGE_SIZE, bytes([page % 251 + 1]) * 100)
    return made


def image(memory: PhysicalMemory) -> PageImage:
    return PageImage(memory.ram, memory.host_address)


def numbers(written) -> list[int] | None:
    return None if written is None else [page for pages in written for page in pages]


def test_what_was_written_goes_back(told, memory):
    before, chance = memory.sha256(), random.Random(told)
    kept = image(memory)
    assert memory.sha256() == before
    ever: set[int] = set()
    for count in (0, 1, 5, 200, 0, 3):
        pages = {chance.randrange(PAGES) for _ in range(count)}
        for page in pages:
            memory.write(page * PAGE_SIZE + chance.randrange(PAGE_SIZE), b"\xee")
        ever |= pages
        written = kept.written()
        if told == "not told":
            assert written is None
        else:
            assert numbers(written) == sorted(ever)
        assert kept.changed(range(PAGES)) == sorted(pages)
        kept.put_back(written)
        assert memory.sha256() == before


def test_pages_that_are_only_read_are_not_written(memory):
    kept = image(memory)
    assert memory.read(0, RAM)
    assert numbers(kept.written()) == []


def test_whoever_writes(memory):
    """Another part of the program has its own way to the memory: by its address."""
    kept = image(memory)
    at = memory.host_address
    ctypes.memset(at + 5 * PAGE_SIZE - 1, 0xAB, 2)
    memory.dwords[PAGE_SIZE // 4 * 9] = 1
    written = kept.written()
    assert numbers(written) == [4, 5, 9]
    kept.put_back(written)
    assert memory.host_address == at
    assert kept.changed(range(PAGES)) == []


def test_many_ranges(memory, monkeypatch):
    """More of them than one request gives."""
    monkeypatch.setattr(page_image, "_ROWS", 16)
    kept = image(memory)
    for page in range(0, PAGES, 3):
        memory.write(page * PAGE_SIZE, b"\xee")
    assert numbers(kept.written()) == list(range(0, PAGES, 3))


def test_many_copies_are_dropped(memory, monkeypatch):
    monkeypatch.setattr(page_image, "MOST_COPIES", 20)
    before, kept = memory.sha256(), image(memory)
    for count, left in ((20, 20), (21, 0)):
        memory.write(0, b"\xee" * PAGE_SIZE * count)
        kept.put_back(kept.written())
        assert len(numbers(kept.written())) == left
        assert memory.sha256() == before


def test_several_images_of_the_same_memory(told, memory):
    first, before = image(memory), memory.sha256()
    memory.write(10 * PAGE_SIZE, b"second")
    second, after = image(memory), memory.sha256()
    memory.write(20 * PAGE_SIZE, b"third")
    for kept, wanted, other in ((first, before, second), (second, after, first), (first, before, second)):
        assert kept.written() is None
        kept.put_back(None)
        assert memory.sha256() == wanted
        assert other.written() is None
        memory.write(30 * PAGE_SIZE, b"fourth")
        kept.put_back(kept.written())
        assert memory.sha256() == wanted


def test_it_leaves_nothing_open(memory):
    def opened() -> int:
        return len(os.listdir("/proc/self/fd"))

    image(memory)
    gc.collect()
    before, kept = opened(), image(memory)
    assert opened() > before
    memory.write(0, b"x")
    del kept
    gc.collect()
    assert opened() == before
    assert memory.read(0, 1) == b"x"


def test_no_memory_to_be_had(memory, monkeypatch):
    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "memfd_create", refuse)
    with pytest.raises(OutputError) as caught:
        image(memory)
    assert str(caught.value) == "4 MiB of memory can't be kept for a checkpoint: No space left on device"


def test_memory_that_can_not_be_mapped():
    view = memoryview(mmap.mmap(-1, PAGE_SIZE))
    with pytest.raises(OutputError) as caught:
        PageImage(view, 8)
    assert str(caught.value) == "0 MiB of memory can't be mapped for a checkpoint: Invalid argument"


def test_a_system_without_a_page_map(memory, monkeypatch):
    def refuse(*_):
        raise FileNotFoundError

    monkeypatch.setattr(os, "open", refuse)
    kept, before = image(memory), memory.sha256()
    memory.write(0, b"x" * 5000)
    assert kept.written() is None
    kept.put_back(None)
    assert memory.sha256() == before
