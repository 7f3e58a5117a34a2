# SPDX-License-Identifier: GPL-2.0-only
"""Every error the toolkit raises on purpose, under one base class, each with its process exit code.

Our own exit codes are even; a guest that ends itself through the debug-exit port gives an odd
status, ``(value << 1) | 1``, as QEMU's ``isa-debug-exit`` does. A script can tell the two apart.
"""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """Process exit codes of the ``vmi`` command (stable; all even)."""

    OK = 0
    USAGE = 2
    BAD_INPUT = 4
    OUTPUT = 6
    NO_SITES = 8
    ROM = 10
    GUEST_CRASH = 12
    TIMEOUT = 14
    CALL_NOT_SERVED = 16
    DIFFERENT = 18
    ENGINE = 20
    NOT_CONFORMING = 22
    CONFORMANCE_UNKNOWN = 24


class VmiError(Exception):
    """Base of all deliberate errors: the message is one sentence for the user."""

    exit_code: ExitCode = ExitCode.USAGE


class UsageError(VmiError):
    """The request itself makes no sense (unknown name, conflicting options)."""

    exit_code = ExitCode.USAGE


class BadInput(VmiError):
    """An input file is not what it must be (not an ELF, truncated, wrong machine)."""

    exit_code = ExitCode.BAD_INPUT


class OutputError(VmiError):
    """An output file could not be written; nothing was left half-written."""

    exit_code = ExitCode.OUTPUT


class VerifyError(OutputError):
    """A patched file did not pass the check against its plan; it is not given out."""


class NoSites(VmiError):
    """The kernel holds no sensitive instruction, so there is nothing to patch."""

    exit_code = ExitCode.NO_SITES


class RomError(VmiError):
    """A ROM image breaks the contract, or a flavour can't be built."""

    exit_code = ExitCode.ROM


class AssembleError(RomError):
    """An assembly line was refused, or did not decode back to what was written."""


class GuestTimeout(VmiError):
    """The guest was still running when its virtual time was used up."""

    exit_code = ExitCode.TIMEOUT


class EngineError(VmiError):
    """The CPU emulator library is not the one this code was proven on."""

    exit_code = ExitCode.ENGINE


class BackendError(VmiError):
    """A backend of somebody's own does what it must not: it raises, gives nonsense, or doesn't come back."""

    exit_code = ExitCode.CONFORMANCE_UNKNOWN


class Notice(UserWarning):
    """Something that the user should know, and that nothing fails by; the message is one sentence."""
