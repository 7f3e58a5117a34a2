# SPDX-License-Identifier: GPL-2.0-only
"""A copy of the package as an installation leaves it, and the command that is run from there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from vmi.native.accelerator import build
from vmi.native.accelerator.finding import SWITCH

ROOT = Path(__file__).resolve().parents[3]


@dataclass(frozen=True)
class Installed:
    """The package in a folder of its own.

    :ivar root: what a Python's path must have.
    """

    root: Path

    @property
    def folder(self) -> Path:
        """Where the accelerator's library belongs."""
        return self.root / "vmi" / "native" / "accelerator"

    @property
    def library(self) -> Path:
        """The accelerator's library."""
        return self.folder / build.LIBRARY

    def vmi(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run the command."""
        return self.python("-m", "vmi", *arguments, **environment)

    def python(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run Python with this package. Nothing of the caller's own choice of engine is passed on."""
        kept = {
            name: value for name, value in os.environ.items() if name not in (SWITCH, "CC", "VMI_TRACEBACK")
        }
        return subprocess.run(
            [sys.executable, "-P", *arguments],
            env=kept | {"PYTHONPATH": str(self.root)} | environment,
            cwd=self.root,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def engine(self, **environment: str) -> tuple[str, list[str]]:
        """What `vmi version` says of the engine, and the lines on stderr."""
        done = self.vmi("version", **environment)
        assert done.returncode == 0, done.stderr
        (line,) = [line for line in done.stdout.splitlines() if line.startswith("engine ")]
        return line.split(maxsplit=1)[1], done.stderr.splitlines()


def install(root: Path) -> Installed:
    """Copy the package to a folder, with no library and nothing of a checkout around it."""
    left_out = shutil.ignore_patterns("__pycache__", "*.so", build.REFUSAL)
    shutil.copytree(ROOT / "vmi", root / "vmi", ignore=left_out)
    (root / "vmi" / "_sample_kernels").symlink_to(ROOT / "sample_kernels")
    return Installed(root)
