# SPDX-License-Identifier: GPL-2.0-only
"""Real i386 files that no machine here can start: what becomes of them must hold by looking alone."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.e2e import needs
from vmi.errors import BadInput
from vmi.patcher import inspect_file, patch

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]


def test_xens_loader(hvmloader: Path) -> None:
    """Stripped, one segment that may be written and run, linked where it is loaded."""
    original = hvmloader.read_bytes()
    patched = patch(original)
    assert patch(original).data == patched.data
    report = patched.report
    assert len(report.sites) >= 35
    assert all(site.reason for site in report.sites if site.tactic in ("trap", "left"))
    table = inspect_file(patched.data).table
    assert table is not None
    assert sum(site.has_call for site in table.sites) == report.slotted >= 30


def test_image_of_code_and_strings_is_refused(grub_coreboot_modules: Path, tmp_path: Path) -> None:
    """GRUB's tool puts the text of its messages among its instructions."""
    tool = needs.tool("grub-mkimage", "grub-common")
    image = tmp_path / "grub.elf"
    command = [tool, "-O", "i386-coreboot", "-d", str(grub_coreboot_modules), "-p", "/boot"]
    subprocess.run([*command, "-o", str(image), "serial", "multiboot", "ls"], check=True, timeout=60)
    with pytest.raises(BadInput, match=r"^text and code are mixed in the executable part of this file: "):
        patch(image.read_bytes())
