# SPDX-License-Identifier: GPL-2.0-only
"""docs/profile.md names exactly the keys and values that the code writes and reads."""

from __future__ import annotations

import json
from pathlib import Path

from vmi.patcher import pagetables, profile
from vmi.patcher.profile import Profile, Writer

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "profile.md").read_text(encoding="utf-8")


def keys(part: str) -> list[str]:
    """The first cells of the table of keys in one part of the page."""
    rows = [line for line in part.splitlines() if line.startswith("| `")]
    return [row.split("`")[1] for row in rows]


def test_the_tables_name_the_keys() -> None:
    whole, _, one = PAGE.partition("## The file")[2].partition("One object of `writers`")
    content = json.loads(Profile("00" * 32, (Writer(1, "table", 4, 4, 1, b"\x90"),)).to_json())
    assert keys(whole) == list(content)
    assert keys(one) == list(content["writers"][0])


def test_the_values_are_those_of_the_code() -> None:
    assert f'`"{profile.FORMAT}"`' in PAGE
    assert f"| `version` | {profile.VERSION} |" in PAGE
    assert f"1 to {profile.LONGEST_CODE} |" in PAGE
    assert all(f"`{level}`" in PAGE for level in profile.LEVELS)
    assert all(f"`{header}`" in PAGE for header in pagetables.HEADERS)
    assert all(f"| {source.value}" in PAGE for source in pagetables.Source)
