# SPDX-License-Identifier: GPL-2.0-only
"""Time: alarms and the time of day (see :mod:`vmi.hypervisor.timer`); the ROM reads the counters itself."""

from __future__ import annotations

from vmi.abi import ALARM_COUNTER_MASK, AlarmFlag
from vmi.hypervisor.calls import CallContext, serves


@serves("SetAlarm")
def set_alarm(call: CallContext) -> None:
    """Alarm of the counter in AL at ECX:EDX, with a period on the stack if it is periodic."""
    flags, period = call.cpu.eax, call.stack_argument_long(0)
    call.timer.arm(
        flags & ALARM_COUNTER_MASK,
        call.cpu.edx | call.cpu.ecx << 32,
        period if flags & AlarmFlag.PERIODIC else 0,
        lvtt=bool(flags & AlarmFlag.WIRED_LVTT),
    )


@serves("CancelAlarm")
def cancel_alarm(call: CallContext) -> None:
    """EAX := whether the alarm of the counter in AL was armed; it is not any more."""
    call.cpu.eax = int(call.timer.cancel(call.cpu.eax & ALARM_COUNTER_MASK))


@serves("GetWallclockTime")
def get_wallclock_time(call: CallContext) -> None:
    """EDX:EAX := nanoseconds since 1970."""
    call.answer(call.timer.wall.now())


@serves("WallclockUpdated")
def wallclock_updated(call: CallContext) -> None:
    """EAX := whether the host has set the time of day since the last such call."""
    call.cpu.eax = int(call.timer.wall.was_set())
