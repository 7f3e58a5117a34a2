# SPDX-License-Identifier: GPL-2.0-only
"""For pytest: conformance tests of one's own, beside those of the suite.

Installed with the toolkit, it is there in any run of pytest. ``--vmi-rom`` names the ROM under test, a
flavour or a file; ``vmi_machine`` is a guest that has been activated on it, ``vmi_kernel`` runs whole
kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from vmi.conformance.rig import Rig
    from vmi.run import RunResult

    Runner = Callable[..., RunResult]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option."""
    parser.getgroup("vmi").addoption(
        "--vmi-rom", default="vmware", metavar="FLAVOUR|FILE", help="The option ROM under test."
    )


@pytest.fixture(scope="session")
def vmi_rom(request: pytest.FixtureRequest) -> bytes:
    """The image of the ROM under test."""
    from vmi.rom.build import FLAVOURS, build

    named = str(request.config.getoption("--vmi-rom"))
    return build(named).image if named in FLAVOURS else Path(named).read_bytes()


@pytest.fixture
def vmi_machine(vmi_rom: bytes) -> Rig:
    """A guest on the ROM, activated: see :class:`vmi.conformance.rig.Rig` for what it can do."""
    from vmi.conformance.machine_subject import MachineSubject
    from vmi.conformance.rig import Rig
    from vmi.conformance.subject import Environment

    environment = Environment()
    rig = Rig(MachineSubject("vmi-rom", vmi_rom, environment), environment)
    rig.begin()
    return rig


@pytest.fixture
def vmi_kernel(vmi_rom: bytes) -> Runner:
    """A function that patches a kernel and runs it on the ROM: an image, and fields of ``vmi.Setup``."""
    from vmi.patcher import patch
    from vmi.run import run_kernel

    def run(image: bytes, **options: Any) -> RunResult:
        return run_kernel(patch(image).data, rom=vmi_rom, **options)

    return run
