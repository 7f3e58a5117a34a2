# SPDX-License-Identifier: GPL-2.0-only
"""Transparent paravirtualization of i386 kernels: patch once, run natively or under any VMI hypervisor.

The library in five names; each is loaded when it is first used:

* ``patch(data)`` patches a kernel's bytes (:func:`vmi.patcher.patch`);
* ``build_rom(flavour)`` builds an interface ROM (:func:`vmi.rom.build.build`);
* ``run_kernel(image, rom=...)`` and ``compare(image, modes, rom=...)`` run kernels (:mod:`vmi.run`);
* ``Machine(...)`` is the PC itself (:class:`vmi.native.machine.Machine`).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from vmi.version import __version__

if TYPE_CHECKING:
    from vmi.native.machine import Machine
    from vmi.patcher import patch
    from vmi.rom.build import build as build_rom
    from vmi.run import compare, run_kernel

__all__ = ["Machine", "__version__", "build_rom", "compare", "patch", "run_kernel"]

_HOMES = {
    "Machine": ("vmi.native.machine", "Machine"),
    "build_rom": ("vmi.rom.build", "build"),
    "compare": ("vmi.run", "compare"),
    "patch": ("vmi.patcher", "patch"),
    "run_kernel": ("vmi.run", "run_kernel"),
}


def __getattr__(name: str) -> Any:
    try:
        module, attribute = _HOMES[name]
    except KeyError:
        raise AttributeError(f"module 'vmi' has no attribute {name!r}") from None
    return getattr(import_module(module), attribute)
