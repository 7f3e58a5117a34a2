# SPDX-License-Identifier: GPL-2.0-only
"""Patch unmodified i386 kernels so that any VMI ROM can take over their sensitive instructions.

Reading order: model, forms, scan, flow, plan (what to do); table, adaptors, trampoline, activation, emit
(the bytes); elf, elfwrite (the file); verify, report, rewrite (the whole run).

What is offered here is loaded when it is asked for: a part of the package doesn't take the time of all.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vmi.patcher.inspect import Inspection, inspect_file
    from vmi.patcher.report import Report
    from vmi.patcher.rewrite import Options, Patched, patch
    from vmi.sitetable import SiteTable

__all__ = ["Inspection", "Options", "Patched", "Report", "SiteTable", "inspect_file", "patch"]

_HOMES = {
    "Inspection": "vmi.patcher.inspect",
    "Options": "vmi.patcher.rewrite",
    "Patched": "vmi.patcher.rewrite",
    "Report": "vmi.patcher.report",
    "SiteTable": "vmi.sitetable",
    "inspect_file": "vmi.patcher.inspect",
    "patch": "vmi.patcher.rewrite",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'vmi.patcher' has no attribute {name!r}")
    globals()[name] = found = getattr(import_module(_HOMES[name]), name)
    return found
