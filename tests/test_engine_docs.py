# SPDX-License-Identifier: GPL-2.0-only
"""docs/engine.md says what the engine and its accelerator say of themselves."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

from vmi.native import accelerator, fitness
from vmi.native.accelerator import build, core, finding

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "engine.md").read_text(encoding="utf-8")


def test_names() -> None:
    assert f"{finding.SWITCH}=0 vmi run" in PAGE
    assert f"`{(build.FOLDER / build.LIBRARY).relative_to(ROOT)}`" in PAGE
    assert all(f"`{compiler}`" in PAGE for compiler in build._COMPILERS)


def test_sentences() -> None:
    code = "".join(map(inspect.getsource, (accelerator, build, fitness)))
    said = re.findall(r"`… ([^`…]+?)(?: …)?`", PAGE) + re.findall(r"`(it failed[^`]+)`", PAGE)
    assert len(said) == 6
    assert not [sentence for sentence in said if sentence not in code]
    assert "running without the accelerator, so slower:" in PAGE
    assert "running without the accelerator, so slower:" in code
    assert "`the CPU emulator should be build …`" in PAGE
    assert "the CPU emulator should be build " in inspect.getsource(core)


def test_files() -> None:
    named = set(re.findall(r"`(\w+\.c)`", PAGE))
    assert named | {"stamp.c"} == {path.name for path in build.sources() if path.suffix == ".c"}
    paths = re.findall(r"`((?:vmi|tests)/[\w/.]+\.py)`", PAGE)
    assert len(paths) > 4
    assert not [path for path in paths if not (ROOT / path).exists()]
