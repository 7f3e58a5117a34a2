# SPDX-License-Identifier: GPL-2.0-only
"""`vmi prove`: agreement, a mistake that is found, and what is no pair of kernels."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Vmi, sentence
from vmi import samples, sitetable
from vmi.errors import ExitCode
from vmi.patcher import Options, elf, patch
from vmi.patcher.inspect import inspect_file

ORIGINAL = samples.get("hello").path.read_bytes()


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """A kernel and what became of it."""
    files = tmp_path / "original", tmp_path / "patched"
    for file, data in zip(files, (ORIGINAL, patch(ORIGINAL, Options(undo=False)).data), strict=True):
        file.write_bytes(data)
    return files


def test_a_patched_kernel_agrees(vmi: Vmi, pair: tuple[Path, Path]) -> None:
    result = vmi("prove", *pair, "--trials", "2", "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    facts = json.loads(result.stdout)
    assert facts["windows"] > 0
    assert facts["disagreements"] == []


def test_a_lost_instruction_is_found(vmi: Vmi, pair: tuple[Path, Path]) -> None:
    """The first slot's native instruction becomes a NOP."""
    data = bytearray(pair[1].read_bytes())
    table = inspect_file(bytes(data)).table
    assert table is not None
    slot = next(site for site in table.sites if site.has_call and site.flags & sitetable.SiteFlag.MOVED)
    image = elf.load(bytes(data), patched=True)
    segment = image.segment_at(slot.slot)
    assert segment is not None
    end = segment.file_offset + slot.slot + slot.length - segment.vaddr
    data[end - 1] = 0x90
    pair[1].write_bytes(data)
    result = vmi("prove", *pair, "-q")
    assert result.exit_code == ExitCode.DIFFERENT


def test_no_trials_is_a_usage_error(vmi: Vmi, pair: tuple[Path, Path]) -> None:
    result = vmi("prove", *pair, "--trials", "0")
    assert result.exit_code == ExitCode.USAGE
    assert "expected at least one trial, got 0" in sentence(result)


def test_an_unpatched_kernel_is_refused(vmi: Vmi, pair: tuple[Path, Path]) -> None:
    result = vmi("prove", pair[0], pair[0])
    assert result.exit_code == ExitCode.BAD_INPUT
    assert sentence(result)
