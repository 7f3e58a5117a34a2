# SPDX-License-Identifier: GPL-2.0-only
"""Adaptors for PUSHF and POPF, which work on the stack that the adaptor itself runs on.

The processor's own instruction does all flags but the interrupt flag; that one is the call's. A whole
image may be loaded at the end: the only flag that it could get wrong is IF, which is as the image says,
or can't be changed by POPF where the kernel runs.
"""

from __future__ import annotations

from vmi.patcher.adaptorcode import Adaptor, Writer


def push_flags(keep: bool, direction: bool) -> Adaptor:
    """Push the real EFLAGS with IF replaced by the answer of GetInterruptMask.

    The image goes where the return address was, and the return address one word lower. ``keep``: the
    image brings the flags back at the end.
    """
    writer = Writer()
    writer.raw("ff3424")  # push dword [esp]      the return address again
    _ask(writer, direction)
    writer.raw("8944240c")  # mov [esp+12], eax   where the image belongs
    writer.raw("8b442404")  # mov eax, [esp+4]    the real flags
    writer.raw("25fffdffff")  # and eax, ~0x200
    writer.raw("0944240c")  # or [esp+12], eax
    return _pushed(writer, keep or direction)


def push_flags_word(keep: bool, direction: bool) -> Adaptor:
    """The same for the low 16 bits of EFLAGS; the return address moves by two bytes."""
    writer = Writer()
    writer.raw("66ff3424")  # push word [esp]       the return address's low half again
    writer.raw("50")  # push eax
    writer.raw("668b442408 6689442406")  # mov ax, [esp+8]; mov [esp+6], ax    and its high half
    writer.raw("58")  # pop eax
    _ask(writer, direction)
    writer.raw("668944240c")  # mov [esp+12], ax   where the image belongs
    writer.raw("8b442404")  # mov eax, [esp+4]     the real flags
    writer.raw("25fffdffff")  # and eax, ~0x200
    writer.raw("660944240c")  # or [esp+12], ax
    return _pushed(writer, keep or direction)


def _ask(writer: Writer, direction: bool) -> None:
    """Push the real flags and EAX; then EAX is the interrupt flag."""
    writer.raw("9c 50")  # pushfd; push eax
    if direction:
        writer.raw("fc")  # cld
    writer.call()
    writer.raw("2500020000")  # and eax, 0x200


def _pushed(writer: Writer, keep: bool) -> Adaptor:
    writer.raw("58")  # pop eax
    writer.raw("9d" if keep else "8d642404")  # popfd, or lea esp, [esp+4]
    return writer.finish()


def pop_flags(_keep: bool, direction: bool) -> Adaptor:
    """SetInterruptMask from the image on the stack, then a real popfd for all the other flags."""
    writer = Writer()
    writer.raw("50")  # push eax
    writer.raw("8b442408")  # mov eax, [esp+8]    the image
    if direction:
        writer.raw("fc")  # cld
    writer.call()
    writer.raw("58")  # pop eax
    writer.raw("ff742404")  # push dword [esp+4]
    writer.raw("9d")  # popfd
    return writer.finish("c20400")  # ret 4: the image goes too


def pop_flags_word(_keep: bool, direction: bool) -> Adaptor:
    """The same from an image of 16 bits."""
    writer = Writer()
    writer.raw("50")  # push eax
    writer.raw("0fb7442408")  # movzx eax, word [esp+8]
    if direction:
        writer.raw("fc")  # cld
    writer.call()
    writer.raw("58")  # pop eax
    writer.raw("66ff742404")  # push word [esp+4]
    writer.raw("669d")  # popfw
    return writer.finish("c20200")  # ret 2
