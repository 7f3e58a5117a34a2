# SPDX-License-Identifier: GPL-2.0-only
"""What a whole run needs and a computer may lack: a skip with the reason, or a failure.

A check of a commit must not be green because a tool was not there, so it sets VMI_TEST_ALL, as
.ci/run does, and every such skip becomes a failure. On a developer's computer the other tests should run.
"""

from __future__ import annotations

import os
import shutil
from typing import NoReturn

import pytest

#: Administrators' tools are not on everybody's path.
_PATH = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))


#: Nothing may be missing.
ALL = bool(os.environ.get("VMI_TEST_ALL"))
#: Takes a minute or so, or a download that nothing else needs. All of them together take 11 minutes of one
#: processor: a check of a commit has them, a developer's run has not unless VMI_TEST_SLOW is set.
slow = pytest.mark.skipif(
    not (ALL or os.environ.get("VMI_TEST_SLOW")), reason="takes long: set VMI_TEST_SLOW for it"
)


def missing(reason: str) -> NoReturn:
    """End the test: something it needs can't be had, for this reason (one sentence)."""
    if ALL:
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def tool(name: str, package: str) -> str:
    """Path of a program; ``package`` is the Debian package that brings it."""
    found = shutil.which(name, path=_PATH)
    if found is None:
        missing(f"{name} is not installed (Debian's package {package} has it).")
    return found
