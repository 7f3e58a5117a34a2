# SPDX-License-Identifier: GPL-2.0-only
"""The library as its users import it: a few names, each loaded when it is first used."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import vmi
from tests.cli.conftest import surroundings
from vmi import samples
from vmi.native.cpuid import MODELS
from vmi.native.disk import Disk, open_image
from vmi.native.machine import Machine
from vmi.native.screen import Screen
from vmi.patcher import patch
from vmi.rom.build import build
from vmi.run import Setup, compare, prepare, run_kernel
from vmi.version import __version__

NAMES = {
    "MODELS": MODELS, "Disk": Disk, "Machine": Machine, "Screen": Screen, "Setup": Setup,
    "__version__": __version__, "build_rom": build, "compare": compare, "open_image": open_image,
    "patch": patch, "prepare": prepare, "run_kernel": run_kernel,
}  # fmt: skip


def test_names() -> None:
    assert sorted(vmi.__all__) == sorted(NAMES)
    for name, thing in NAMES.items():
        assert getattr(vmi, name) is thing


def test_unknown_name() -> None:
    with pytest.raises(AttributeError) as caught:
        vmi.nonsense  # noqa: B018
    assert str(caught.value) == "module 'vmi' has no attribute 'nonsense'"


def test_importing_it_loads_nothing_heavy() -> None:
    code = "import sys, vmi; sys.exit(bool({'unicorn', 'lief', 'keystone', 'PIL'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], env=surroundings(), check=False).returncode == 0


def test_a_conversation_with_a_guest() -> None:
    """Each method that a script needs, on one machine."""
    image = patch(samples.get("hello").path.read_bytes()).data
    machine = vmi.Machine(ram=16 << 20, model=vmi.MODELS["pentium3"])
    assert machine.plug(vmi.build_rom("native").image) == 0xC0000
    machine.load(image)
    assert machine.console.expect(b"multiboot ").startswith(b"hello: an i386 kernel")
    assert machine.console.expect(b"\n") == b"ok\n"
    end = machine.run(10**9)
    assert (end.outcome, end.value) == ("debug_exit", 0x10)
    assert machine.console.text().splitlines()[-1] == "hello: goodbye"
    assert vmi.Screen.capture(machine.memory, machine.board.vga).text() == "\n" * 24


def test_disks(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(bytes(1024))
    disks = [vmi.open_image(tmp_path / "image"), vmi.Disk.from_bytes(bytes(512))]
    assert [disk.sectors for disk in disks] == [2, 1]
    assert vmi.Machine(ram=1 << 20, disks=disks).board.disks == (*disks, None, None)
