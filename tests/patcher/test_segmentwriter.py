# SPDX-License-Identifier: GPL-2.0-only
"""The ELF library beside: the same bytes as here, and no harm when it can't be there."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import lief  # noqa: F401  (it is loaded here, whatever a test pretends)
import pytest

from tests.patcher.elfs import small_kernel
from vmi.patcher import segmentwriter
from vmi.patcher.elf import PROGRAM_HEADER, program_headers, read_header
from vmi.patcher.elfwrite import PT_GNU_STACK, with_placeholder
from vmi.patcher.segmentwriter import Request, Writer, writer

DATA = with_placeholder(small_kernel())
NUMBER = [fields[0] for fields in program_headers(DATA, read_header(DATA))].index(PT_GNU_STACK)
REQUEST = Request(DATA, NUMBER, b"\x90" * 0x1000, 0xC0200000, 0x200000, 0xC0100000)


@pytest.fixture
def unloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the library had not been loaded yet, on a computer with two processors."""
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(segmentwriter.sys, "modules", {k: v for k, v in sys.modules.items() if k != "lief"})


def test_written_here() -> None:
    data = REQUEST.written()
    assert data is not None
    fields = PROGRAM_HEADER.unpack_from(data, read_header(data).phoff + NUMBER * PROGRAM_HEADER.size)
    kind, offset, *rest = fields
    assert (kind, *rest) == (1, 0xC0200000, 0x200000, 0x1000, 0x1000, 7, 0x1000)
    assert data[offset : offset + 0x1000] == REQUEST.content
    assert read_header(data).entry == 0xC0100000


def test_requests_are_read_back() -> None:
    assert segmentwriter._unpack(REQUEST.pack()) == REQUEST
    with pytest.raises(ValueError, match=r"^the request is cut off$"):
        segmentwriter._unpack(REQUEST.pack()[:-1])


@pytest.mark.usefixtures("unloaded")
def test_written_beside() -> None:
    with writer(soon=True) as made:
        assert repr(made) == "Writer(beside)"
        assert made.write(REQUEST) == REQUEST.written()
        assert repr(made) == "Writer(here)"
        assert made.write(REQUEST) == REQUEST.written()


@pytest.mark.usefixtures("unloaded")
def test_a_process_that_is_not_needed_after_all_ends() -> None:
    with writer(soon=True) as made:
        process = made._process
        assert process is not None
        assert process.poll() is None
    assert process.returncode != 0


@pytest.mark.usefixtures("unloaded")
@pytest.mark.parametrize("program", ["/bin/false", "/bin/cat", "/no/such/program", ""])
def test_without_the_process_it_is_written_here(program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", program)
    with writer(soon=True) as made:
        assert made.write(REQUEST) == REQUEST.written()


def test_no_process_where_none_is_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with writer(soon=True) as made:
        assert repr(made) == "Writer(here)"  # the library is loaded already
    monkeypatch.setattr(segmentwriter.sys, "modules", {})
    with writer(soon=False) as made:
        assert repr(made) == "Writer(here)"
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    with writer(soon=True) as made:
        assert repr(made) == "Writer(here)"


def test_the_other_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    answer = io.TextIOWrapper(io.BytesIO())
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(REQUEST.pack())))
    monkeypatch.setattr(sys, "stdout", answer)
    segmentwriter.main()
    assert answer.buffer.getvalue() == REQUEST.written()  # type: ignore[attr-defined]


def test_what_the_library_cannot_read() -> None:
    assert Writer().write(Request(b"no ELF file", 0, b"", 0, 0, 0)) is None
