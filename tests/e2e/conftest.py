# SPDX-License-Identifier: GPL-2.0-only
"""Software that somebody else built, for whole runs, and the two machines that run it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

from tests.e2e import fetch_debian, hosts, initramfs, needs

T = TypeVar("T")


def _obtained(get: Callable[[], T]) -> T:
    """What ``get`` gives, or the end of the test that says why it can't be had."""
    try:
        return get()
    except fetch_debian.Unavailable as error:
        needs.missing(str(error))


@pytest.fixture(scope="session")
def gnumach() -> Path:
    """Debian's GNU Mach (stripped ELF, no relocations)."""
    return _obtained(fetch_debian.gnumach)


@pytest.fixture(scope="session")
def linux() -> fetch_debian.Linux:
    """Debian's Linux for i386 without PAE."""
    return _obtained(fetch_debian.linux)


@pytest.fixture(scope="session")
def busybox() -> bytes:
    """Debian's statically linked busybox for i386."""
    return _obtained(fetch_debian.busybox).read_bytes()


@pytest.fixture(scope="session")
def initrd(linux: fetch_debian.Linux, busybox: bytes) -> bytes:
    """A RAM disk with a shell and the drivers for an IDE disk with ext2."""
    return initramfs.build(busybox, initramfs.modules_in_order(linux.modules, initramfs.DISK_MODULES))


@pytest.fixture(scope="session")
def memtest() -> Path:
    """Debian's memtest86+ for 32 bits."""
    return _obtained(fetch_debian.memtest)


@pytest.fixture(scope="session")
def seabios() -> Path:
    """The folder of Debian's SeaBIOS."""
    return _obtained(fetch_debian.seabios)


@pytest.fixture(scope="session")
def grub_modules() -> Path:
    """The folder of Debian's GRUB for BIOS machines."""
    return _obtained(fetch_debian.grub)


@pytest.fixture(scope="session")
def hvmloader() -> Path:
    """Xen's loader of fully virtualized machines: a stripped ELF file for 32 bits."""
    return _obtained(fetch_debian.hvmloader)


@pytest.fixture(scope="session")
def grub_coreboot_modules() -> Path:
    """The folder of Debian's GRUB for coreboot."""
    return _obtained(fetch_debian.grub_coreboot)


@pytest.fixture(params=sorted(hosts.HOSTS))
def host(request: pytest.FixtureRequest) -> str:
    """QEMU, then our machine: the name of a row of :data:`hosts.HOSTS`."""
    return str(request.param)
