# SPDX-License-Identifier: GPL-2.0-only
"""The accelerator's library: compiled where that is possible, refused as a file where it does not fit."""

from __future__ import annotations

import platform
import shutil
import struct
import sys
from pathlib import Path

import pytest

from vmi.native.accelerator import build
from vmi.native.accelerator.build import Unfit


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library, as any compiler here makes it."""
    path = tmp_path_factory.mktemp("made") / build.LIBRARY
    build.build(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The sources, somewhere else."""
    copy = tmp_path / "sources"
    copy.mkdir()
    for path in build.sources():
        shutil.copy(path, copy)
    return copy


def refused(path: Path) -> str:
    with pytest.raises(Unfit) as caught:
        build.check(path, build.stamp())
    return str(caught.value)


def test_what_is_compiled_fits(made: Path) -> None:
    build.check(made, build.stamp())
    assert not made.stat().st_mode & 0o022
    assert sorted(path.name for path in made.parent.iterdir()) == [build.LIBRARY]


def test_no_warning_of_the_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "gcc -Werror -Wshadow")
    build.build(tmp_path / build.LIBRARY)


def test_the_same_bytes_wherever_it_is_compiled(made: Path, folder: Path, tmp_path: Path) -> None:
    build.build(tmp_path / "other.so", folder)
    assert (tmp_path / "other.so").read_bytes() == made.read_bytes()


@pytest.mark.parametrize("change", ["byte", "name", "new"])
def test_any_change_of_the_sources_shows(folder: Path, change: str) -> None:
    assert build.stamp(folder) == build.stamp()
    path = folder / "core.c"
    if change == "byte":
        path.write_bytes(path.read_bytes() + b"\n")
    elif change == "name":
        path.rename(folder / "heart.c")
    else:
        (folder / "more.h").touch()
    assert build.stamp(folder) != build.stamp()


def test_a_library_of_other_sources_is_stale(folder: Path, tmp_path: Path) -> None:
    with (folder / "core.c").open("a") as file:
        file.write("\n")
    path = tmp_path / build.LIBRARY
    build.build(path, folder)
    build.check(path, build.stamp(folder))
    assert refused(path) == f"{path} was compiled from other sources"


@pytest.mark.parametrize("left", [64, 1000, 5000, -1])
def test_a_library_that_is_cut_off(made: Path, tmp_path: Path, left: int) -> None:
    data = made.read_bytes()
    path = tmp_path / build.LIBRARY
    path.write_bytes(data[:left])
    size = len(data[:left])
    assert refused(path) == f"{path} is cut off: it has {size} bytes of {len(data)}"


@pytest.mark.parametrize("data", [b"", b"\x7fELF", b"MZ" + bytes(100), b"\x7fELF\x01\x01" + bytes(100)])
def test_a_file_of_another_kind(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / build.LIBRARY
    path.write_bytes(data)
    assert refused(path) == f"{path} is no shared library of 64 bits"


@pytest.mark.parametrize(("at", "value"), [(16, 2), (18, 183)])
def test_a_program_and_a_library_for_another_processor(
    made: Path, tmp_path: Path, at: int, value: int
) -> None:
    data = bytearray(made.read_bytes())
    struct.pack_into("<H", data, at, value)
    path = tmp_path / build.LIBRARY
    path.write_bytes(data)
    assert refused(path) == f"{path} is no shared library for x86_64"


def test_a_library_of_something_else(made: Path, tmp_path: Path) -> None:
    path = tmp_path / build.LIBRARY
    path.write_bytes(made.read_bytes().replace(build.MARK, bytes(len(build.MARK))))
    assert refused(path) == f"{path} is a library of something else"


def test_a_folder_is_no_library(tmp_path: Path) -> None:
    assert refused(tmp_path) == f"{tmp_path} can't be read: Is a directory"


@pytest.mark.parametrize(
    ("compiler", "reason"),
    [
        ("false", "the C compiler false failed (status 1): no reason given"),
        ("no-such-compiler -m64", "there is no C compiler no-such-compiler, which CC names"),
        ('"', 'there is no C compiler ", which CC names'),
    ],
)
def test_compilers_that_compile_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiler: str, reason: str
) -> None:
    monkeypatch.setenv("CC", compiler)
    with pytest.raises(Unfit) as caught:
        build.build(tmp_path / build.LIBRARY)
    assert str(caught.value) == reason
    assert not list(tmp_path.iterdir())


def test_a_compiler_that_makes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "true")
    with pytest.raises(
        Unfit, match=r"^the C compiler true made something else: .* is no shared library of 64 bits$"
    ):
        build.build(tmp_path / build.LIBRARY)
    assert not list(tmp_path.iterdir())


def test_a_compiler_that_can_not_be_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "compiler"
    path.write_bytes(b"\x7fELF no program")
    path.chmod(0o755)
    monkeypatch.setenv("CC", str(path))
    with pytest.raises(Unfit) as caught:
        build.build(tmp_path / build.LIBRARY)
    assert str(caught.value) == f"the C compiler {path} can't be started: Exec format error"


def test_sources_that_do_not_compile(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "core.c").write_text("int x = ;\n")
    monkeypatch.setenv("CC", "gcc")
    with pytest.raises(Unfit) as caught:
        build.build(tmp_path / build.LIBRARY, folder)
    expected = "the C compiler gcc failed (status 1): core.c:1:9: error: expected expression before ';' token"
    assert str(caught.value) == expected


def test_no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unfit) as caught:
        build.build(tmp_path / build.LIBRARY)
    assert str(caught.value) == "there is no C compiler (cc, gcc or clang)"


def test_a_target_that_can_not_be_written(tmp_path: Path) -> None:
    with pytest.raises(Unfit) as caught:
        build.build(tmp_path / "absent" / build.LIBRARY)
    assert str(caught.value) == "its folder can't be written to: No such file or directory"
    (tmp_path / build.LIBRARY).mkdir()
    with pytest.raises(Unfit) as caught:
        build.build(tmp_path / build.LIBRARY)
    assert str(caught.value) == f"{build.LIBRARY} can't be written: Is a directory"


@pytest.mark.parametrize(
    ("system", "machine", "size", "here"),
    [
        ("Darwin", "x86_64", sys.maxsize, "64-bit Python for Darwin on x86_64"),
        ("Linux", "aarch64", sys.maxsize, "64-bit Python for Linux on aarch64"),
        ("Linux", "x86_64", (1 << 31) - 1, "32-bit Python for Linux on x86_64"),
    ],
)
def test_other_platforms(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, system: str, machine: str, size: int, here: str
) -> None:
    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(sys, "platform", system.lower())
    monkeypatch.setattr(sys, "maxsize", size)
    with pytest.raises(Unfit) as caught:
        build.build(tmp_path / build.LIBRARY)
    assert str(caught.value) == f"it is for 64-bit Python for Linux on x86_64, and this is {here}"


def test_a_reason_is_left_and_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "false")
    assert build.refusal(folder) == ""
    build.refuse(folder, "it rains", folder)
    assert build.refusal(folder) == build.refusal(folder, same=True) == "it rains"
    monkeypatch.setenv("CC", "gcc")
    assert build.refusal(folder, same=True) == ""
    assert build.refusal(folder) == "it rains"
    build.build(folder / build.LIBRARY, folder)
    assert build.refusal(folder) == ""
