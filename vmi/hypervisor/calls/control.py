# SPDX-License-Identifier: GPL-2.0-only
"""Control and debug registers. Reading control registers is the ROM's own matter."""

from __future__ import annotations

from vmi.hypervisor.calls import CallContext, Handler, serves


def _setter(number: int) -> Handler:
    def handler(call: CallContext) -> None:
        call.vcpu.write_cr(number, call.cpu.eax)

    handler.__doc__ = f"CR{number} := EAX, as by the instruction."
    return handler


for _number in (0, 2, 3, 4):
    serves(f"SetCR{_number}")(_setter(_number))


@serves("CLTS")
def clear_task_switched(call: CallContext) -> None:
    """CR0.TS := 0; the ROM calls out only if it is 1."""
    call.vcpu.clear_task_switched()


@serves("SetDR")
def set_debug_register(call: CallContext) -> None:
    """DR[EAX] := EDX; numbers above 7 are ignored."""
    if call.cpu.eax < 8:
        call.vcpu.write_dr(call.cpu.eax, call.cpu.edx)


@serves("GetDR")
def get_debug_register(call: CallContext) -> None:
    """EAX := DR[EAX]; numbers above 7 read as 0."""
    call.cpu.eax = call.vcpu.read_dr(call.cpu.eax) if call.cpu.eax < 8 else 0
