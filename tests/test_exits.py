# SPDX-License-Identifier: GPL-2.0-only
"""Each reason that the machine and the hypervisor count has its cause."""

from __future__ import annotations

import pytest

from vmi.exits import Cause, by_cause, cause, price


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("VMI call", Cause.HYPERCALL),
        ("VMI call: SetCR3", Cause.HYPERCALL),
        ("privileged instruction: mov", Cause.TRAP),
        ("breakpoint: pushfd", Cause.TRAP),
        ("user instruction: cli", Cause.TRAP),
        ("call gate: call", Cause.TRAP),
        ("task switch", Cause.TRAP),
        ("software interrupt", Cause.SYSTEM_CALL),
        ("#PF", Cause.FAULT),
        ("exception 20", Cause.FAULT),
        ("refused access", Cause.FAULT),
        ("interrupt", Cause.INTERRUPT),
        ("port read", Cause.PORT),
        ("port write", Cause.PORT),
        ("device memory write", Cause.DEVICE),
        ("ROM write", Cause.DEVICE),
        ("MSR read", Cause.DEVICE),
        ("halt", Cause.HALT),
        ("processor switch", Cause.PROCESSOR),
    ],
)
def test_reason_has_its_cause(reason: str, expected: Cause) -> None:
    assert cause(reason) is expected


def test_price_is_what_bare_hardware_does_not_have() -> None:
    exits = {"VMI call": 3, "breakpoint: iretd": 4, "port read": 50, "#PF": 6, "software interrupt": 7}
    assert price(exits) == 7
    assert by_cause(exits) == {
        Cause.HYPERCALL: 3, Cause.TRAP: 4, Cause.SYSTEM_CALL: 7, Cause.FAULT: 6, Cause.PORT: 50,
    }  # fmt: skip
    assert list(by_cause(exits)) == [cause for cause in Cause if cause in by_cause(exits)]
