# SPDX-License-Identifier: GPL-2.0-only
"""Time: counters, alarms and the time of day (see :mod:`vmi.hypervisor.timer`)."""

from __future__ import annotations

from vmi.abi import ALARM_COUNTER_MASK, AlarmFlag
from vmi.hypervisor.calls import CallContext, serves


@serves("GetCycleFrequency")
def get_cycle_frequency(call: CallContext) -> None:
    """EDX:EAX := cycles per second."""
    call.answer(call.timer.frequency)


@serves("GetCycleCounter")
def get_cycle_counter(call: CallContext) -> None:
    """EDX:EAX := the counter that EAX names."""
    call.answer(call.timer.count(call.cpu.eax))


@serves("SetAlarm")
def set_alarm(call: CallContext) -> None:
    """Alarm of the counter in AL at ECX:EDX, with a period on the stack if it is periodic."""
    flags, period = call.cpu.eax, call.stack_argument_long(0)
    if flags & AlarmFlag.WIRED_LVTT:
        return  # there is no local APIC to wire it to
    expiry = call.cpu.edx | call.cpu.ecx << 32
    call.timer.arm(flags & ALARM_COUNTER_MASK, expiry, period if flags & AlarmFlag.PERIODIC else 0)


@serves("CancelAlarm")
def cancel_alarm(call: CallContext) -> None:
    """EAX := whether the alarm of the counter in AL was armed; it is not any more."""
    call.cpu.eax = int(call.timer.cancel(call.cpu.eax & ALARM_COUNTER_MASK))


@serves("GetWallclockTime")
def get_wallclock_time(call: CallContext) -> None:
    """EDX:EAX := nanoseconds since 1970."""
    call.answer(call.timer.wall_clock())


@serves("WallclockUpdated")
def wallclock_updated(call: CallContext) -> None:
    """EAX := 0: virtual time only ever passes, and nobody sets it."""
    call.cpu.eax = 0
