# SPDX-License-Identifier: GPL-2.0-only
"""The tools of the whole runs: a tool that finds nothing wrong must be able to find something wrong."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pytest

from tests.e2e import disk_image, dmesg, linux_session, memtest, needs, qemu
from tests.e2e.dmesg import Difference
from tests.e2e.line import Line, Silence
from tests.e2e.linux_session import Step

pytestmark = pytest.mark.e2e


class Script(Line):
    """A guest that says prepared pieces, one after each thing typed, and then ends."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        super().__init__("the guest")
        self.pieces = list(pieces)
        self.typed = b""
        self.now = 0.0

    def send(self, data: bytes) -> None:
        self.typed += data

    def clock(self) -> float:
        return self.now

    def listen(self, wanted: re.Pattern[bytes] | None, seconds: float) -> str:
        self.now += 1
        if not self.pieces:
            return "it has ended"
        self.log += self.pieces.pop(0)
        return ""


def test_line_gives_what_it_waited_for_and_keeps_the_rest() -> None:
    line = Script([b"one tw", b"o three"])
    assert line.expect(b"t.o", 10) == b"one two"
    assert line.expect(b"three", 10) == b" three"


def test_line_says_what_came_instead() -> None:
    with pytest.raises(Silence) as caught:
        Script([b"on", b"e"]).expect(b"two", 10)
    assert str(caught.value) == "the guest did not show b'two', but it has ended; it showed b'one'"
    with pytest.raises(Silence) as caught:
        Script([b"-"] * 9).expect(b"two", 3)
    assert str(caught.value) == "the guest did not show b'two', but 3 s have passed; it showed b'---'"


def test_end_is_waited_for() -> None:
    assert Script([b"a", b"b"]).expect_end(10) == "it has ended"
    with pytest.raises(Silence) as caught:
        Script([b"-"] * 9).expect_end(2)
    assert str(caught.value) == "the guest has not ended within 2 s; it showed bytearray(b'--')"


def test_session_checks_the_whole_output() -> None:
    step = Step("echo a", r"a\n")
    line = Script([b"\x1b[6necho a\r\na\r\n~ # "])
    assert linux_session.hold(line, [step])[0].output == "a\n"
    assert line.typed == b"echo a\n"
    with pytest.raises(AssertionError, match="'echo a' should put out "):
        linux_session.hold(Script([b"echo a\r\na\r\nb\r\n~ # "]), [step])
    with pytest.raises(AssertionError, match="the echo of 'echo a' was 'something else'"):
        linux_session.hold(Script([b"something else\r\na\r\n~ # "]), [step])


def test_session_types_keys_when_it_is_time() -> None:
    line = Script([b"sleep\r\nready\r\n", b"^C\r\n~ # "])
    linux_session.hold(line, [Step("sleep", r"ready\n\^C\n", keys=b"\x03", when="ready\r\n")])
    assert line.typed == b"sleep\n\x03"


def test_step_refuses_a_command_that_would_be_wrapped() -> None:
    with pytest.raises(ValueError, match=r"^a command longer than the line would be wrapped: x{73}$"):
        Step("x" * 73, "")


LOGS = {
    "a": b"""loader\r
[    0.000000] same\r
[    0.500000] tsc: Detected 999.961 MHz processor\r
[    1.000000] twice\r
[    1.100000] twice\r
[    2.000000] only here\r
userland is up\r
[    9.000000] session\r
""",
    "b": b"""[    0.100000] twice
[    0.200000] same
[    0.500000] tsc: Detected 100.004 MHz processor
userland is up
""",
}


def test_logs_are_compared_without_order_and_time() -> None:
    verdict = dmesg.compare(LOGS, [Difference("^only", "it is only there", only="a")])
    assert verdict.common == 3
    assert verdict.explained == (("a", "only here", "it is only there"),)
    assert verdict.unexplained == (("a", "twice"),)
    assert str(verdict) == "only in a: twice"


def test_a_difference_counts_for_its_log_only() -> None:
    verdict = dmesg.compare(LOGS, [Difference("", "anything", only="b")])
    assert [line for _, line in verdict.unexplained] == ["twice", "only here"]
    assert not dmesg.compare(LOGS, [Difference("", "anything")]).unexplained


@pytest.mark.parametrize(
    ("line", "masked"),
    [
        ("8.0 BogoMIPS (lpj=16)", "N BogoMIPS (lpj=N)"),
        ("1 processors activated (8.0 BogoMIPS)", "1 processors activated (N BogoMIPS)"),
        ("Memory: 1K/9K available (2K code, 3K reserved", "Memory: NK/9K available (2K code, NK reserved"),
        ("nothing of the kind 12", "nothing of the kind 12"),
    ],
)
def test_numbers_of_speed_and_place_are_masked(line: str, masked: str) -> None:
    assert dmesg.lines(f"[    0.000000] {line}\n".encode()) == [masked]


def test_disk_image_can_be_read_back_and_checked() -> None:
    files = {"top": b"1", "a/b/deep": bytes(range(256)) * 9}
    image = disk_image.Disk(files, 2, boot_code=b"code", gap=b"gap").image()
    assert image == disk_image.Disk(files, 2, boot_code=b"code", gap=b"gap").image()
    assert {name: disk_image.read_file(image, name) for name in files} == files
    assert (image[:4], image[512:515], image[510:512]) == (b"code", b"gap", b"\x55\xaa")
    assert len(image) == 3 << 20
    assert disk_image.complaints(image) == ""
    with pytest.raises(FileNotFoundError):
        disk_image.read_file(image, "none")
    with pytest.raises(ValueError, match=r"^boot code has 440 bytes"):
        disk_image.Disk(files, 2, boot_code=bytes(441)).image()


def test_damaged_file_system_is_complained_about() -> None:
    image = bytearray(disk_image.Disk({"top": b"1"}, 2).image())
    state = disk_image.START * disk_image.SECTOR + 1024 + 58  # in the superblock: clean, or mounted
    image[state] = 0
    assert "not clean" in disk_image.complaints(bytes(image))


SCREEN = """\
L2 Cache:    4MB            │ Test #10 [Bit fade test, 2 patterns]
Memory  :    6MB            │ Pattern: 0x00000000
Using: All Cores                          │ Pass:  1        Errors: 12
"""


def test_progress_of_memtest_is_read() -> None:
    assert memtest.progress(SCREEN) == memtest.Progress(10, 1, 12, 6)
    assert memtest.progress(SCREEN.replace("#10", "#")) is None


def test_screen_is_characters_without_attributes() -> None:
    memory = b"A\x07\xb3\x07" + b"\x00\x07" * 78 + b"B\x70" + bytes(4000 - 162)
    assert qemu.text_screen(memory) == "A│\nB" + "\n" * 23


def test_missing_things_skip_or_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(needs, "ALL", False)
    with pytest.raises(pytest.skip.Exception) as skipped:
        needs.tool("no-such-tool", "no-package")
    assert str(skipped.value) == "no-such-tool is not installed (Debian's package no-package has it)."
    monkeypatch.setattr(needs, "ALL", True)
    with pytest.raises(pytest.fail.Exception) as failed:
        needs.tool("no-such-tool", "no-package")
    assert str(failed.value) == str(skipped.value)
