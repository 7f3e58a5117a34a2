# SPDX-License-Identifier: GPL-2.0-only
"""Page-table calls in a ROM whose hypervisor wants to know of changed entries sometimes, and sometimes not.

Memory holds an entry when its call returns, whoever wants to know. What is told is the entry's address, on
a list in the data page. Words of the data page that the sources name: WANTED, not 0 if the hypervisor wants
to know; QUEUED, the number of addresses on the list; UNCACHED, see :func:`flush_page`. Flavours that need
none of this have plain stores instead.
"""

from __future__ import annotations

from vmi import abi
from vmi.memory import PAGE_SIZE
from vmi.rom.template import Template, body, code


def gate_if(word: str) -> Template:
    """A call that is the hypervisor's if a word of the data page is not 0, and else has nothing to do."""
    return code(f"""
        push ecx
        call @here
@here:  pop ecx
        cmp dword ptr ss:[ecx + {{{word} - @here}}], 0
        pop ecx
        jne @gate
        ret
""")


def noting(store: str, *, entry: str, free: tuple[str, str], queue: int, size: int) -> Template:
    """A change of a page-table entry: memory holds it at once, and its address is queued if that is wanted.

    A full queue is the one case that leaves the ROM at once.

    :param store: what changes memory, if the guest hasn't.
    :param entry: the register with the address.
    :param free: two other registers.
    :param queue: bytes from QUEUED to the list, ``size``: addresses that it has room for.
    """
    base, count = free
    return body(
        f"""
        {store}
        push {base}
        call @here
@here:  pop {base}
        cmp dword ptr ss:[{base} + {{WANTED - @here}}], 0
        jne short @note
        pop {base}
        ret
@note:  push {count}
        mov {count}, ss:[{base} + {{QUEUED - @here}}]
        cmp {count}, {size}
        jae short @full
        mov ss:[{base} + 4*{count} + {{QUEUED + {queue} - @here}}], {entry}
        inc dword ptr ss:[{base} + {{QUEUED - @here}}]
        pop {count}
        pop {base}
        ret
@full:  pop {count}
        pop {base}
        jmp @gate
"""
    )


def flush_page(known: int) -> Template:
    """InvalPage: nothing to do for the page in UNCACHED, of which nothing is cached.

    :param known: the bit of UNCACHED that is set if there is one.
    """
    return body(f"""
        push ecx
        push edx
        call @here
@here:  pop ecx
        mov edx, eax
        and edx, {-PAGE_SIZE}
        or edx, {known}
        cmp edx, ss:[ecx + {{UNCACHED - @here}}]
        pop edx
        pop ecx
        jne @gate
        ret
""")


def linear_mapping(slots: int) -> Template:
    """SetLinearMapping: keep it, three dwords a slot; ``slots``: bytes from QUEUED to them."""
    return body(f"""
        cmp eax, {abi.LINEAR_SLOTS}
        jae short @end
        push ebx
        call @here
@here:  pop ebx
        lea eax, [eax + 2*eax]
        lea ebx, [ebx + 4*eax + {{QUEUED + {slots} - @here}}]
        mov ss:[ebx], edx
        mov ss:[ebx + 4], ecx
        mov ecx, [esp + 8]
        mov ss:[ebx + 8], ecx
        pop ebx
@end:   ret
""")
