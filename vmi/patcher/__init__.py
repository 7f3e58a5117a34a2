# SPDX-License-Identifier: GPL-2.0-only
"""Patch unmodified i386 kernels so that any VMI ROM can take over their sensitive instructions.

Reading order: model, forms, scan, flow, plan (what to do); table, adaptors, trampoline, activation, emit
(the bytes); elf, elfwrite (the file); verify, report, rewrite (the whole run).
"""

from vmi.patcher.inspect import Inspection, inspect_file
from vmi.patcher.report import Report
from vmi.patcher.rewrite import Options, Patched, patch
from vmi.sitetable import SiteTable

__all__ = ["Inspection", "Options", "Patched", "Report", "SiteTable", "inspect_file", "patch"]
