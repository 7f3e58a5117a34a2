# SPDX-License-Identifier: GPL-2.0-only
"""A guest that speaks the interface by itself, for what no patched kernel does: lazy modes.

It changes page-table entries in batches of 64, each batch in a lazy mode of the MMU or not, and drops
translations behind each batch, as a kernel's fork does.
"""

from __future__ import annotations

import guests

UPDATES, BATCH = 10_000, 64
_PAGE = 0x200000

_SOURCE = f"""
 xor esi, esi
batch:
{{begin}}
again:
 mov edi, esi
 and edi, 1023
 lea edx, [{guests.TABLE} + edi*4]
 mov eax, {_PAGE + 7}
 mov ecx, 1
 call dword ptr [{{{{SetPxE}}}}]
 inc esi
 cmp esi, {UPDATES}
 je flushed
 test esi, {BATCH - 1}
 jnz again
flushed:
{{end}}
 mov eax, 1
 call dword ptr [{{{{FlushTLB}}}}]
 mov eax, [0x400000]
 cmp esi, {UPDATES}
 jb batch
"""
_LAZY = " mov eax, {mode}\n call dword ptr [{{SetLazyMode}}]"


def image(*, lazy: bool) -> bytes:
    """A multiboot image; it ends through the debug-exit port, with 10h if all went well."""
    begin, end = (_LAZY.format(mode=mode) if lazy else "" for mode in (1, 0))
    source = _SOURCE.format(begin=begin, end=end)
    return guests.client(("SetPxE", "SetLazyMode", "FlushTLB"), source)
