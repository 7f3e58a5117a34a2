# SPDX-License-Identifier: GPL-2.0-only
"""Control registers."""

from __future__ import annotations

from vmi.hypervisor.calls import CallContext, Handler, serves


def _setter(number: int) -> Handler:
    def handler(call: CallContext) -> None:
        call.vcpu.write_cr(number, call.cpu.eax)

    return handler


def _getter(number: int) -> Handler:
    def handler(call: CallContext) -> None:
        call.cpu.eax = call.vcpu.read_cr(number)

    return handler


for _number in (0, 2, 3, 4):
    serves(f"SetCR{_number}")(_setter(_number))
    serves(f"GetCR{_number}")(_getter(_number))


@serves("CLTS")
def clear_task_switched(call: CallContext) -> None:
    """CR0.TS := 0."""
    call.vcpu.clear_task_switched()
