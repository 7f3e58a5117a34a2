# SPDX-License-Identifier: GPL-2.0-only
"""The personalities: for each ROM flavour that calls out, what answers it.

A personality is a module here with a class named in ``PERSONALITY``; it says itself which ROM images it
answers. A new one is a new file.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import Protocol

from vmi.hypervisor.domain import Domain
from vmi.hypervisor.mmu import DEFAULT
from vmi.hypervisor.personality import Personality
from vmi.memory import PhysicalMemory
from vmi.native.machine import Machine


class PersonalityClass(Protocol):
    """A personality, made for one guest."""

    name: str

    @classmethod
    def for_rom(cls, image: bytes, memory: PhysicalMemory) -> Personality | None:
        """The personality for a ROM image, or None if it is not one of its own."""


def _find() -> tuple[PersonalityClass, ...]:
    modules = sorted(found.name for found in pkgutil.iter_modules(__path__))
    return tuple(importlib.import_module(f"{__name__}.{name}").PERSONALITY for name in modules)


PERSONALITIES: tuple[PersonalityClass, ...] = _find()


def attach(machine: Machine, rom: bytes, mmu: str = DEFAULT) -> Domain | None:
    """Put a hypervisor behind a ROM that is plugged into a machine; None if the ROM needs none.

    :param mmu: who decides about translation, see :mod:`vmi.hypervisor.mmu`.
    """
    for personality in PERSONALITIES:
        found = personality.for_rom(rom, machine.memory)
        if found is not None:
            return Domain(machine, found, mmu)
    return None
