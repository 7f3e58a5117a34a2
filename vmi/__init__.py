# SPDX-License-Identifier: GPL-2.0-only
"""Transparent paravirtualization of i386 kernels: patch once, run natively or under any VMI hypervisor.

The library in a few names; each is loaded when it is first used:

* ``patch(data)`` patches a kernel's bytes (:func:`vmi.patcher.patch`);
* ``build_rom(flavour)`` builds an interface ROM (:func:`vmi.rom.build.build`);
* ``run_kernel(image, rom=...)`` and ``compare(image, modes, rom=...)`` run kernels to their end;
* ``prepare(Setup(...))`` makes a machine, with a hypervisor where one is wanted, that is then to be
  ``run`` (all of these are in :mod:`vmi.run`);
* ``Machine(...)`` is the PC itself (:class:`vmi.native.machine.Machine`), with a processor of ``MODELS``
  and disks by ``open_image(path)`` or ``Disk.from_bytes(data)``; ``Screen.capture`` gives what it displays.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmi.lazy import loader
from vmi.version import __version__

if TYPE_CHECKING:
    from vmi.native.cpuid import MODELS
    from vmi.native.disk import Disk, open_image
    from vmi.native.machine import Machine
    from vmi.native.screen import Screen
    from vmi.patcher import patch
    from vmi.rom.build import build as build_rom
    from vmi.run import Setup, compare, prepare, run_kernel

__all__ = [
    "MODELS", "Disk", "Machine", "Screen", "Setup", "__version__",
    "build_rom", "compare", "open_image", "patch", "prepare", "run_kernel",
]  # fmt: skip

_HOMES = {
    "MODELS": ("vmi.native.cpuid", "MODELS"),
    "Disk": ("vmi.native.disk", "Disk"),
    "Machine": ("vmi.native.machine", "Machine"),
    "Screen": ("vmi.native.screen", "Screen"),
    "Setup": ("vmi.run", "Setup"),
    "build_rom": ("vmi.rom.build", "build"),
    "compare": ("vmi.run", "compare"),
    "open_image": ("vmi.native.disk", "open_image"),
    "patch": ("vmi.patcher", "patch"),
    "prepare": ("vmi.run", "prepare"),
    "run_kernel": ("vmi.run", "run_kernel"),
}

__getattr__ = loader(__name__, _HOMES)
