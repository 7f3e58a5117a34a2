# SPDX-License-Identifier: GPL-2.0-only
"""The Debian kernel is fetched once, whole or not at all, and without a trace on the host."""

from __future__ import annotations

import gzip
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.e2e import fetch_debian

needs_apt = pytest.mark.skipif(shutil.which("apt-get") is None, reason="apt-get is not on this machine")


def test_kernel_is_an_i386_elf_file(gnumach: Path) -> None:
    image = gnumach.read_bytes()
    assert image[:5] == b"\x7fELF\x01"
    assert image[18:20] == b"\x03\x00"  # EM_386
    assert b"\x02\xb0\xad\x1b" in image[:8192]  # multiboot header


@needs_apt
def test_fresh_download_leaves_the_host_and_the_folder_clean(tmp_path: Path, gnumach: Path) -> None:
    watched = (Path("/var/lib/apt/lists"), Path("/var/cache/apt"), Path("/var/lib/dpkg/status"))
    before = [path.stat().st_mtime_ns for path in watched if path.exists()]
    fetched = fetch_debian.gnumach(tmp_path / "cache")
    assert fetched.read_bytes() == gnumach.read_bytes()
    assert [path.stat().st_mtime_ns for path in watched if path.exists()] == before
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == [".lock", "gnumach"]


@needs_apt
def test_no_source_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch_debian, "_SOURCES", ())
    with pytest.raises(fetch_debian.Unavailable) as caught:
        fetch_debian.gnumach(tmp_path)
    assert str(caught.value) == (
        "gnumach-image-1.8-486:i386 could not be downloaded: Unable to locate package gnumach-image-1.8-486"
    )
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_no_apt_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(fetch_debian.Unavailable) as caught:
        fetch_debian.gnumach(tmp_path / "cache")
    assert str(caught.value) == (
        "gnumach-image-1.8-486 needs Debian's apt-config, which is not on this machine."
    )


def test_many_callers_one_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scratches: list[Path] = []

    def fetch(scratch: Path) -> Path:
        scratches.append(scratch)
        kernel = scratch / "kernel"
        kernel.write_bytes(b"kernel")
        return kernel

    monkeypatch.setattr(fetch_debian, "_fetch", fetch)
    with ThreadPoolExecutor(8) as pool:
        paths = set(pool.map(fetch_debian.gnumach, [tmp_path] * 16))
    assert paths == {tmp_path / "gnumach"}
    assert len(scratches) == 1
    assert not scratches[0].exists()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (
            b"not gzip",
            "gnumach-image-1.8-486 has no readable /boot/gnumach-1.8-486.gz: Not a gzipped file (b'no')",
        ),
        (
            gzip.compress(b"MZ\x90\x00\x03"),
            "/boot/gnumach-1.8-486.gz of gnumach-image-1.8-486 is not a 32-bit ELF file; "
            "it starts with b'MZ\\x90\\x00\\x03'.",
        ),
    ],
    ids=["no gzip file", "no ELF file"],
)
def test_wrong_content_is_refused(tmp_path: Path, content: bytes, sentence: str) -> None:
    (tmp_path / "file.gz").write_bytes(content)
    with pytest.raises(fetch_debian.FetchError) as caught:
        fetch_debian._unzip(tmp_path / "file.gz", tmp_path / "kernel")
    assert str(caught.value) == sentence
    assert not (tmp_path / "kernel").exists()


def test_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VMI_TEST_CACHE", "elsewhere")
    assert fetch_debian.cache_folder() == Path("elsewhere")
    monkeypatch.delenv("VMI_TEST_CACHE")
    assert fetch_debian.cache_folder().parts[-2:] == (".cache", "debian")
