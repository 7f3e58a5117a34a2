# SPDX-License-Identifier: GPL-2.0-only
"""Does a ROM, and the hypervisor behind it, keep the VMI ABI? See docs/conformance.md."""
