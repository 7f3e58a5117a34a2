# SPDX-License-Identifier: GPL-2.0-only
"""Output files are whole or absent; what went wrong is one sentence."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from vmi import files
from vmi.errors import BadInput, OutputError

ROOT = Path(__file__).resolve().parents[1]


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_new_file_has_the_umask_s_permissions(tmp_path: Path) -> None:
    previous = os.umask(0o027)
    try:
        files.write_atomically(tmp_path / "out", b"data")
    finally:
        os.umask(previous)
    assert (tmp_path / "out").read_bytes() == b"data"
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o640
    assert leftovers(tmp_path) == ["out"]


def test_replaced_file_keeps_its_permissions(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.write_bytes(b"old and longer")
    out.chmod(0o751)
    files.write_atomically(out, b"new")
    assert out.read_bytes() == b"new"
    assert stat.S_IMODE(out.stat().st_mode) == 0o751


def test_link_is_followed_and_stays(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to("real")
    files.write_atomically(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"new"


def test_device_is_written_to_and_not_replaced() -> None:
    files.check_writable(os.devnull)
    files.write_atomically(os.devnull, b"data")
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)


def test_pipe_is_written_to(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append((tmp_path / "pipe").read_bytes()))
    reader.start()
    files.write_atomically(tmp_path / "pipe", b"data")
    reader.join(10)
    assert got == [b"data"]


@pytest.mark.parametrize("check", [files.check_writable, lambda path: files.write_atomically(path, b"")])
def test_folder_is_refused(tmp_path: Path, check: object) -> None:
    with pytest.raises(OutputError) as caught:
        check(tmp_path)  # type: ignore[operator]
    assert str(caught.value) == f"output {str(tmp_path)!r} can't be written: Is a directory"


def test_missing_folder_is_refused(tmp_path: Path) -> None:
    target = tmp_path / "no" / "out"
    with pytest.raises(OutputError) as caught:
        files.write_atomically(target, b"")
    assert str(caught.value) == f"output {str(target)!r} can't be written: No such file or directory"
    with pytest.raises(OutputError) as caught:
        files.check_writable(target)
    assert str(caught.value) == (
        f"output {str(target)!r} can't be written: there is no folder {str(target.parent)!r}"
    )


def test_name_that_no_system_takes_is_refused() -> None:
    with pytest.raises(
        OutputError, match=r"^output 'a\\x00b' can't be written: embedded null (byte|character)"
    ):
        files.write_atomically("a\0b", b"")


def test_forbidden_folder_is_refused(tmp_path: Path) -> None:
    """In a process that has given up root, if it was root: root may write anywhere."""
    tmp_path.chmod(0o777)
    folder = tmp_path / "theirs"
    folder.mkdir(mode=0o555)
    script = (
        "import os, sys\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "from vmi import errors, files\n"
        "if os.geteuid() == 0: os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "try: files._replace(files.Path('out'), b'', None)\n"
        "except OSError as error: print(files.reason(error))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(ROOT)], capture_output=True, text=True, cwd=folder, check=True
    )
    assert done.stdout == "Permission denied\n"
    assert leftovers(folder) == []


def test_dev_full_is_refused() -> None:
    with pytest.raises(OutputError) as caught:
        files.write_atomically("/dev/full", b"x")
    assert str(caught.value) == "output '/dev/full' can't be written: No space left on device"


def test_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    out.write_bytes(b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OutputError) as caught:
        files.write_atomically(out, b"new")
    assert str(caught.value) == f"output {str(out)!r} can't be written: No space left on device"
    assert out.read_bytes() == b"old"
    assert leftovers(tmp_path) == ["out"]


def test_interrupt_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(source: object, target: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        files.write_atomically(tmp_path / "out", b"new")
    assert leftovers(tmp_path) == []


def test_very_long_name(tmp_path: Path) -> None:
    out = tmp_path / ("n" * 255)
    files.write_atomically(out, b"data")
    assert out.read_bytes() == b"data"


def test_input(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"12345")
    assert files.read_input(tmp_path / "in", limit=5) == b"12345"
    with pytest.raises(BadInput) as caught:
        files.read_input(tmp_path / "in", "kernel", limit=4)
    assert str(caught.value) == f"kernel {str(tmp_path / 'in')!r} is larger than 4 bytes"


def test_endless_input_is_refused() -> None:
    with pytest.raises(BadInput, match=r"^input '/dev/zero' is larger than 4096 bytes$"):
        files.read_input("/dev/zero", limit=4096)


@pytest.mark.parametrize(
    ("name", "why"),
    [("missing", "No such file or directory"), (".", "Is a directory"), ("a\0b", "embedded null byte")],
)
def test_unreadable_input_is_a_sentence(name: str, why: str) -> None:
    with pytest.raises(BadInput) as caught:
        files.read_input(name)
    assert str(caught.value) == f"input {name!r} can't be read: {why}"
