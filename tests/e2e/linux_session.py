# SPDX-License-Identifier: GPL-2.0-only
"""A session at Linux' serial console, as data: what is typed at the prompt, and what must be answered.

The same steps are held with QEMU, which shows that the script is right, and with our machine. Each block
says what it is there to exercise. Commands are shorter than the terminal is wide: the shell wraps longer
ones, and the echo could not be told from the answer.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tests.e2e.disk_image import Disk
from tests.e2e.line import Line

PROMPT = rb"~ # "
_ESCAPES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")  # the shell asks the terminal where its cursor is

#: On the kernel's command line. All are its documented options, and none changes what is tested.
CONSOLE = "console=ttyS0"
#: The kernel otherwise proves its ciphers, of which nothing here uses any, for 3,200 million instructions.
QUICK = "cryptomgr.notests"
#: The kernel otherwise checks one clock by the timer, which it has set to a single shot: that goes wrong, and
#: is complained of in the middle of the session, when another shot happens to be due just then.
STEADY = "tsc=nowatchdog"


@dataclass(frozen=True)
class Step:
    """A command, and a regular expression that its whole output must match.

    ``keys`` are typed while the command runs, as soon as ``when`` (an expression) has come.
    """

    command: str
    output: str
    keys: bytes = b""
    when: str = ""
    seconds: float = 60

    def __post_init__(self) -> None:
        if len(self.command) > 72:
            raise ValueError(f"a command longer than the line would be wrapped: {self.command}")


@dataclass(frozen=True)
class Answer:
    """What a step put out, line ends as `\\n`, without the echo of the command."""

    step: Step
    output: str


def _md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


#: What is on the disk that the session mounts.
FILES = {
    "hello.txt": b"hello from the disk\n",
    "folder/numbers.txt": b"".join(b"%d\n" % number for number in range(20_000)),
}
DISK = Disk(FILES)
WRITTEN = "written.txt"  # the file that the session leaves on the disk

SYSTEM = (
    # what the kernel has just said, or says from now on, is no command's output
    Step("dmesg -n 1", r"(\[.*\n)*"),
    Step("uname -a", r"Linux \(none\) [\w.-]+-686(-pae)? #1 SMP .* i686 GNU/Linux\n"),
    Step("grep ^flags /proc/cpuinfo", r"flags\s*: fpu .*\bcx8\b.*\bcmov\b.*\n"),
    Step("cat /proc/interrupts", r"\s+CPU0.*\btimer\n.*\bi8042\n.*\bttyS0\n.*"),
    Step("dmesg | wc -l", r"[1-9]\d\d\n"),
    Step("awk '/MemTotal/ {print ($2 > 20000)}' /proc/meminfo", r"1\n"),
)

PIPES = (
    Step("seq 1 100 | sort -rn | head -1", r"100\n"),
    Step("seq 1 1000 | awk '{s += $1} END {print s}'", r"500500\n"),
    Step("head -c 65536 /dev/zero | md5sum", rf"{_md5(bytes(65536))}  -\n"),
    Step("yes | head -2000 | uniq -c", r"\s+2000 y\n"),
    Step("mkfifo /run/p; (echo through > /run/p &); cat /run/p", r"through\n"),
    # the FPU, kept over task switches
    Step("awk 'BEGIN {x = 1; while (i++ < 9) x = x / 2 + 1 / x; print x}'", r"1\.41421\n"),
)

PROCESSES = (
    Step("for i in $(seq 20); do /bin/true; done; echo $i", r"20\n"),
    Step("(exit 7); echo $?", r"7\n"),
    Step("sh -c 'sh -c \"exit 3\"; echo $?'", r"3\n"),
    Step("ps | grep -c '[k]worker'", r"[1-9]\d*\n"),
    Step("a=$(date +%s); sleep 2; echo $(($(date +%s) - a))", r"[23]\n"),
    Step("/bin/nothing; echo $?", r"sh: /bin/nothing: not found\n127\n"),
)

SIGNALS = (
    Step(
        "sleep 100 & sleep 1; kill $!; wait $!; echo status $?",
        # the shell may hear of it before it is asked to wait, or while it waits
        r"(Terminated\n)?status 143\n\[1\]\+  Terminated +sleep 100\n",
    ),
    Step("sh -c 'trap \"echo caught\" USR1; kill -USR1 $$; echo after'", r"caught\nafter\n"),
    Step("sh -c 'kill -SEGV $$'; echo $?", r".*\n?139\n"),
    # The terminal signals first and shows the key then. With two processors the shell's new line may come
    # between, and the prompt, too: the key then stands before the next command's echo, where it does no harm.
    Step("echo ready; sleep 1000", r"ready\n(\^C\n|\n(\^C)?)", keys=b"\x03", when="ready\r\n"),
    Step("echo $?", r"130\n"),
)

MOUNT = "mount -t ext2 /dev/sda1 /mnt"

STORAGE = (
    Step(f"{MOUNT}; ls /mnt", r"folder\s+hello\.txt\s+lost\+found\n"),
    Step("cat /mnt/hello.txt", r"hello from the disk\n"),
    Step("md5sum < /mnt/folder/numbers.txt", rf"{_md5(FILES['folder/numbers.txt'])}  -\n"),
    Step(f"(uname -s; seq 1 5000) > /mnt/{WRITTEN}; cp /mnt/{WRITTEN} /run", ""),
    Step("cp /mnt/folder/numbers.txt /mnt/copy && rm /mnt/hello.txt; sync", ""),
    Step(f"umount /mnt && {MOUNT} && ls /mnt", r"copy\s+folder\s+lost\+found\s+written\.txt\n"),
    Step(f"cmp /mnt/{WRITTEN} /run/{WRITTEN} && echo same", r"same\n"),
    Step("cmp /mnt/copy /mnt/folder/numbers.txt && echo same", r"same\n"),
    Step("df -k /mnt | tail -1", r"/dev/sda1\s+\d+\s+\d+\s+\d+\s+\d+% /mnt\n"),
    Step("umount /mnt; grep -c sda1 /proc/mounts", r"0\n"),
)


def steps(processors: int = 1) -> tuple[Step, ...]:
    """The whole session on a machine with so many processors."""
    count = Step("grep -c ^processor /proc/cpuinfo", rf"{processors}\n")
    return (*SYSTEM, count, *PIPES, *PROCESSES, *SIGNALS, *STORAGE)


ALL = steps()

#: How the guest ends itself, and how the kernel says so.
REBOOT = "reboot -f"
RESTARTING = rb"reboot: Restarting system"


def wait_for_shell(line: Line, seconds: float) -> str:
    """Wait for the first prompt; gives what came before it."""
    return _text(line.expect(PROMPT, seconds))


def hold(line: Line, steps: Iterable[Step] = ALL) -> list[Answer]:
    """Type each command at the prompt and check the output. Raises AssertionError at the first wrong one."""
    answers = []
    for step in steps:
        line.send(step.command.encode() + b"\n")
        shown = b""
        if step.keys:
            shown = line.expect(step.when.encode(), step.seconds)
            line.send(step.keys)
        answers.append(_checked(step, _text(shown + line.expect(PROMPT, step.seconds))))
    return answers


def end(line: Line, seconds: float) -> str:
    """Restart the guest, which ends its run; gives the reason."""
    line.send(REBOOT.encode() + b"\n")
    line.expect(RESTARTING, seconds)
    return line.expect_end(seconds)


def written(answers: Sequence[Answer]) -> bytes:
    """What the session's file on the disk must hold."""
    assert any(answer.step.command.endswith(f"cp /mnt/{WRITTEN} /run") for answer in answers)
    return b"Linux\n" + b"".join(b"%d\n" % number for number in range(1, 5001))


def _checked(step: Step, text: str) -> Answer:
    echo, _, output = text.partition("\n")
    output = output.removesuffix("~ # ")
    assert echo.strip().endswith(step.command), f"the echo of {step.command!r} was {echo!r}"
    assert re.fullmatch(step.output, output, re.DOTALL), (
        f"{step.command!r} should put out {step.output!r}, not {output!r}"
    )
    return Answer(step, output)


def _text(data: bytes) -> str:
    return _ESCAPES.sub("", data.decode("utf-8", "backslashreplace")).replace("\r", "")
