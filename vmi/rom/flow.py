# SPDX-License-Identifier: GPL-2.0-only
"""The code of a ROM that an entry leads to, followed without running it.

Jumps, both ways of a branch, and what is called are followed inside of the image. Where code leaves by an
address that it computes, only running it would tell more.
"""

from __future__ import annotations

from iced_x86 import Decoder, FlowControl, Formatter, FormatterSyntax, Instruction, Mnemonic

_ENDS = (
    FlowControl.RETURN,
    FlowControl.UNCONDITIONAL_BRANCH,
    FlowControl.INDIRECT_BRANCH,
    FlowControl.EXCEPTION,
)


def decode(image: bytes, offset: int, bits: int = 32) -> Instruction:
    """The instruction at an offset of the image, which counts as its address; it may be invalid."""
    decoder = Decoder(bits, image, ip=offset)
    decoder.position = offset
    decoder.ip = offset
    return decoder.decode()


def successors(instruction: Instruction, size: int) -> list[int]:
    """Offsets where the guest goes on behind an instruction, those inside of an image of ``size`` bytes."""
    following = []
    if instruction.flow_control not in _ENDS and instruction.mnemonic != Mnemonic.INT3:
        following.append(instruction.next_ip32)
    target = branch_target(instruction)
    if target is not None:
        following.append(target)
    return [offset for offset in following if 0 <= offset < size]


def branch_target(instruction: Instruction) -> int | None:
    """Where a near jump, branch or call leads to, from the ROM's start; None for other instructions."""
    near = (
        instruction.is_jmp_short_or_near
        or instruction.is_jcc_short_or_near
        or instruction.is_call_near
        or instruction.is_loop
        or instruction.is_loopcc
        or instruction.is_jcx_short
    )
    return instruction.near_branch_target & 0xFFFF_FFFF if near else None


def reachable(image: bytes, entry: int, bits: int = 32) -> dict[int, Instruction]:
    """All instructions that an entry leads to, by offset, in the order of their offsets; no invalid ones."""
    found: dict[int, Instruction] = {}
    waiting = [entry]
    while waiting:
        offset = waiting.pop()
        if offset in found or not 0 <= offset < len(image):
            continue
        instruction = decode(image, offset, bits)
        if instruction.is_invalid:
            continue
        found[offset] = instruction
        waiting += successors(instruction, len(image))
    return dict(sorted(found.items()))


def text(instruction: Instruction) -> str:
    """An instruction in NASM's words."""
    formatter = Formatter(FormatterSyntax.NASM)
    formatter.hex_prefix, formatter.hex_suffix, formatter.uppercase_hex = "0x", "", False
    formatter.branch_leading_zeros = False
    return formatter.format(instruction)
