# SPDX-License-Identifier: GPL-2.0-only
"""For pytest: conformance tests of one's own, beside those of the suite.

Installed with the toolkit, it is there in any run of pytest. ``--vmi-rom`` names the ROM under test, a
flavour or a file; ``vmi_machine`` is a guest that has been activated on it, ``vmi_kernel`` runs whole
kernels. A run that names no ROM, and a ROM on which no guest can begin, are told in a sentence; a test that
makes a call that the ROM has no code for is skipped.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from vmi.conformance.rig import Rig
    from vmi.run import RunResult

    Runner = Callable[..., RunResult]


_DEFAULT = "vmware"
_LIMIT_NS = 10 * 10**9


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option."""
    parser.getgroup("vmi").addoption(
        "--vmi-rom", default=_DEFAULT, metavar="FLAVOUR|FILE", help="The option ROM under test."
    )


def pytest_configure(config: pytest.Config) -> None:
    """Refuse a ROM that there is not before any test runs, once, where the user sees it."""
    if not hasattr(config, "workerinput") and config.getoption("--vmi-rom") != _DEFAULT:
        _image(config)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, object, object]:
    """A call that the ROM has no code for makes no sense to test there."""
    try:
        return (yield)
    except Exception as error:
        rig = sys.modules.get("vmi.conformance.rig")  # who has not used it need not load it
        if rig is not None and isinstance(error, rig.Unfit):
            pytest.skip(str(error))
        raise


@pytest.fixture(scope="session")
def vmi_rom(pytestconfig: pytest.Config) -> bytes:
    """The image of the ROM under test."""
    return _image(pytestconfig)


def _image(config: pytest.Config) -> bytes:
    from vmi.errors import VmiError
    from vmi.rom.build import named

    try:
        return named(str(config.getoption("--vmi-rom")))
    except VmiError as error:
        raise pytest.UsageError(f"--vmi-rom: {error}") from None


@pytest.fixture
def vmi_machine(vmi_rom: bytes) -> Rig:
    """A guest on the ROM, activated: see :class:`vmi.conformance.rig.Rig` for what it can do."""
    from vmi.conformance.machine_subject import MachineSubject
    from vmi.conformance.rig import Broken, Rig
    from vmi.conformance.subject import Environment
    from vmi.errors import VmiError

    environment = Environment()
    try:
        rig = Rig(MachineSubject("vmi-rom", vmi_rom, environment), environment)
        rig.begin()
    except (Broken, VmiError) as error:
        pytest.fail(f"the guest on this ROM can't begin: {error}", pytrace=False)
    return rig


@pytest.fixture
def vmi_kernel(vmi_rom: bytes) -> Runner:
    """A function that patches a kernel and runs it on the ROM: an image, and options of ``vmi.run_kernel``.

    Without ``timeout_ns`` it ends after 10 s of the guest's time: a lost ROM must not hold up all tests.
    """
    from vmi.patcher import patch
    from vmi.run import run_kernel

    def run(image: bytes, **options: Any) -> RunResult:
        return run_kernel(patch(image).data, rom=vmi_rom, **{"timeout_ns": _LIMIT_NS, **options})

    return run
