# SPDX-License-Identifier: GPL-2.0-only
"""The script of a session takes what a terminal may show, and nothing else. No guest is needed for that."""

from __future__ import annotations

import re

import pytest

from tests.e2e import linux_session
from tests.e2e.line import Line

_KEY = linux_session.SIGNALS[-2:]


class Played(Line):
    """Shows the next of some texts whenever something is typed."""

    def __init__(self, *texts: bytes) -> None:
        super().__init__("played")
        self.texts = list(texts)

    def send(self, data: bytes) -> None:
        self.log += self.texts.pop(0)

    def clock(self) -> float:
        return 0.0

    def listen(self, wanted: re.Pattern[bytes] | None, seconds: float) -> str:
        return "it has no more to say"


@pytest.mark.parametrize("key", [b"^C\r\n~ # ", b"\r\n^C~ # ", b"\r\n~ # ^C"])
def test_key_is_shown_at_once_or_late(key: bytes) -> None:
    line = Played(b"echo ready; sleep 1000\r\nready\r\n", key, b"echo $?\r\n130\r\n~ # ")
    assert [answer.output for answer in linux_session.hold(line, _KEY)][-1] == "130\n"


@pytest.mark.parametrize("key", [b"~ # ", b"^C~ # ", b"^C\r\n^C~ # ", b"\r\nmore\r\n~ # "])
def test_anything_else_is_wrong(key: bytes) -> None:
    line = Played(b"echo ready; sleep 1000\r\nready\r\n", key)
    with pytest.raises(AssertionError, match="should put out"):
        linux_session.hold(line, _KEY)
