# SPDX-License-Identifier: GPL-2.0-only
"""`vmi unpatch`: the original back, and nothing written when that can't be."""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path

import pytest

from tests.cli.conftest import Vmi, sentence
from vmi import samples
from vmi.patcher import patch, undo
from vmi.patcher.container import open_container

ORIGINAL = samples.get("hello").path.read_bytes()


def sealed(original: bytes) -> bytes:
    container = open_container(original)
    return undo.seal(container, patch(original).data, undo.recipe(container)).data


@pytest.fixture
def patched(tmp_path: Path) -> Path:
    path = tmp_path / "patched"
    path.write_bytes(sealed(ORIGINAL))
    return path


def test_restores(vmi: Vmi, patched: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = vmi("unpatch", patched, "-o", out)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == f"{out}: {len(ORIGINAL)} bytes\n"
    assert out.read_bytes() == ORIGINAL


def test_quiet(vmi: Vmi, patched: Path, tmp_path: Path) -> None:
    result = vmi("unpatch", patched, "-o", tmp_path / "out", "-q")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")


def test_json(vmi: Vmi, patched: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert json.loads(vmi("unpatch", patched, "-o", out, "--json").stdout) == {
        "output": str(out),
        "size": len(ORIGINAL),
        "sha256": hashlib.sha256(ORIGINAL).hexdigest(),
    }


def test_what_was_in_gzip_comes_back_in_it(vmi: Vmi, tmp_path: Path) -> None:
    original = gzip.compress(ORIGINAL, 0)
    (tmp_path / "patched").write_bytes(sealed(original))
    assert vmi("unpatch", tmp_path / "patched", "-o", tmp_path / "out").exit_code == 0
    assert (tmp_path / "out").read_bytes() == original


def test_no_record(vmi: Vmi, tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(ORIGINAL)
    result = vmi("unpatch", tmp_path / "plain", "-o", tmp_path / "out")
    assert result.exit_code == 4
    assert sentence(result) == "vmi: the file has no record for taking a patch back"
    assert not (tmp_path / "out").exists()


def test_input_is_kept(vmi: Vmi, patched: Path) -> None:
    before = patched.read_bytes()
    result = vmi("unpatch", patched, "-o", patched)
    assert result.exit_code == 2
    assert sentence(result) == f"vmi: '{patched}' is the input; the output needs a name of its own"
    assert patched.read_bytes() == before


def test_folder_that_is_not_there(vmi: Vmi, patched: Path, tmp_path: Path) -> None:
    out = tmp_path / "nowhere" / "out"
    result = vmi("unpatch", patched, "-o", out)
    assert result.exit_code == 6
    assert sentence(result) == (
        f"vmi: output '{out}' can't be written: there is no folder '{tmp_path / 'nowhere'}'"
    )
