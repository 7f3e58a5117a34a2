# SPDX-License-Identifier: GPL-2.0-only
"""Patch unmodified i386 kernels so that any VMI ROM can take over their sensitive instructions.

Reading order: model, forms, scan, flow, plan (what to do); table, adaptors, trampoline, activation, emit
(the bytes); elf, elfwrite (the file); verify, report, rewrite (the whole run).

What is offered here is loaded when it is asked for: a part of the package doesn't take the time of all.
"""

from typing import TYPE_CHECKING

from vmi.lazy import loader

if TYPE_CHECKING:
    from vmi.patcher.inspect import Inspection, inspect_file
    from vmi.patcher.report import Report
    from vmi.patcher.rewrite import Options, Patched, patch
    from vmi.sitetable import SiteTable

__all__ = ["Inspection", "Options", "Patched", "Report", "SiteTable", "inspect_file", "patch"]

_HOMES = {
    "Inspection": ("vmi.patcher.inspect", "Inspection"),
    "Options": ("vmi.patcher.rewrite", "Options"),
    "Patched": ("vmi.patcher.rewrite", "Patched"),
    "Report": ("vmi.patcher.report", "Report"),
    "SiteTable": ("vmi.sitetable", "SiteTable"),
    "inspect_file": ("vmi.patcher.inspect", "inspect_file"),
    "patch": ("vmi.patcher.rewrite", "patch"),
}

__getattr__ = loader(__name__, _HOMES)
