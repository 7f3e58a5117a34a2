# SPDX-License-Identifier: GPL-2.0-only
"""Compiles the accelerator when vmi is built or installed, if there is a C compiler.

Without one, or on another platform, the package is pure Python and does the same, slower. Which it became is
in the wheel's tag; for an editable installation the library is put beside its sources.
"""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_HOME = "vmi/native/accelerator"
_TAG = "py3-none-linux_x86_64"  # no part of it is made for one version of Python


class AcceleratorHook(BuildHookInterface[Any]):
    """See :mod:`vmi.native.accelerator.build`, which does the work."""

    PLUGIN_NAME = "custom"
    _made: Path | None = None

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile before anything is packed."""
        if self.target_name != "wheel":
            return
        folder = Path(self.root) / _HOME
        spec = importlib.util.spec_from_file_location("vmi_accelerator_build", folder / "build.py")
        assert spec is not None and spec.loader is not None
        builder = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(builder)
        if version == "editable":
            target = folder / builder.LIBRARY
        else:
            self._made = Path(tempfile.mkdtemp(prefix="vmi-accelerator-"))
            target = self._made / builder.LIBRARY
        try:
            builder.build(target, folder)
        except builder.Unfit as reason:
            self.app.display_warning(f"vmi is installed without its accelerator: {reason}")
            if self._made is not None:
                self._pack(builder.refuse(self._made, str(reason), folder), build_data)
            return
        if self._made is not None:
            self._pack(target, build_data)
            build_data["pure_python"] = False
            build_data["tag"] = _TAG

    @staticmethod
    def _pack(path: Path, build_data: dict[str, Any]) -> None:
        build_data["force_include"][str(path)] = f"{_HOME}/{path.name}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Clean up."""
        if self._made is not None:
            shutil.rmtree(self._made, ignore_errors=True)
