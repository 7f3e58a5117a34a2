# SPDX-License-Identifier: GPL-2.0-only
"""What memtest86+ shows on its text screen, read as a person would."""

from __future__ import annotations

import re
from dataclasses import dataclass

#: MiB. It needs some of the memory above 4 MiB to move itself to, and each MiB more takes longer to test.
MEGABYTES = 6
#: No measuring of the memory's speed, which is this computer's, and no second processor.
OPTIONS = "nobench nosmp"

WAITING = "<Enter> to start testing"


@dataclass(frozen=True)
class Progress:
    """The number of the test that runs, passes and errors so far, and the memory in MiB."""

    test: int
    passes: int
    errors: int
    megabytes: int


def progress(screen: str) -> Progress | None:
    """What the screen says; None as long as no test has begun."""
    found = [
        re.search(pattern, screen)
        for pattern in (r"Test #(\d+) ", r"Pass: +(\d+) ", r"Errors: (\d+)", r"Memory *: +(\d+)MB")
    ]
    numbers = [int(one[1]) for one in found if one is not None]
    return Progress(*numbers) if len(numbers) == 4 else None
