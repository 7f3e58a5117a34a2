# SPDX-License-Identifier: GPL-2.0-only
"""Debian's packages are fetched once, whole or not at all, and without a trace on the host."""

from __future__ import annotations

import gzip
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.e2e import fetch_debian
from tests.e2e.fetch_debian import PACKAGES, FetchError, Package, Unavailable

needs_apt = pytest.mark.skipif(shutil.which("apt-get") is None, reason="apt-get is not on this machine")

MACH = "boot/gnumach-1.8-486.gz"


@pytest.fixture(autouse=True)
def forget_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch_debian, "_failed", {})


@pytest.fixture
def only_mach(monkeypatch: pytest.MonkeyPatch) -> None:
    """A table with one small package."""
    monkeypatch.setattr(
        fetch_debian, "PACKAGES", {"gnumach-image-1.8-486": PACKAGES["gnumach-image-1.8-486"]}
    )


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# -- what comes ---------------------------------------------------------------------------------------


def test_gnumach_is_an_i386_elf_file(gnumach: Path) -> None:
    image = gnumach.read_bytes()
    assert image[:5] == b"\x7fELF\x01"
    assert image[18:20] == b"\x03\x00"  # EM_386
    assert b"\x02\xb0\xad\x1b" in image[:8192]  # multiboot header


def test_linux_is_a_bzimage_with_its_modules(linux: fetch_debian.Linux) -> None:
    assert linux.release.endswith("-686")
    assert linux.kernel.read_bytes()[0x202:0x206] == b"HdrS"
    assert (linux.modules / "kernel/drivers/ata/ata_piix.ko").read_bytes()[:5] == b"\x7fELF\x01"


def test_busybox_is_a_static_i386_program(busybox: bytes) -> None:
    assert busybox[:5] == b"\x7fELF\x01"
    assert b"/lib/ld-linux" not in busybox


def test_memtest_boots_as_linux_does(memtest: Path) -> None:
    assert memtest.read_bytes()[0x202:0x206] == b"HdrS"


def test_seabios_has_a_bios_and_roms_for_the_vga(seabios: Path) -> None:
    assert (seabios / "bios.bin").stat().st_size == 128 << 10
    assert (seabios / "bios-256k.bin").stat().st_size == 256 << 10
    assert (seabios / "vgabios-stdvga.bin").read_bytes()[:2] == b"\x55\xaa"


def test_grub_has_its_images_and_modules(grub_modules: Path) -> None:
    assert (grub_modules / "boot.img").stat().st_size == 512
    assert (grub_modules / "multiboot.mod").read_bytes()[:4] == b"\x7fELF"


# -- how it comes -------------------------------------------------------------------------------------


@needs_apt
@pytest.mark.usefixtures("only_mach")
def test_fresh_download_leaves_the_host_and_the_folder_clean(tmp_path: Path, gnumach: Path) -> None:
    watched = (Path("/var/lib/apt/lists"), Path("/var/cache/apt"), Path("/var/lib/dpkg/status"))
    before = [path.stat().st_mtime_ns for path in watched if path.exists()]
    fetched = fetch_debian.gnumach(tmp_path / "cache")
    assert fetched.read_bytes() == gnumach.read_bytes()
    assert [path.stat().st_mtime_ns for path in watched if path.exists()] == before
    assert names(tmp_path / "cache") == [".lock", "gnumach-image-1.8-486"]


@needs_apt
@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        (
            "busybox-static",
            "busybox-static:i386 could not be downloaded: Unable to locate package busybox-static:i386",
        ),
        ("linux-image-686", "linux-image-686:i386 names no package to download: No packages found"),
    ],
)
def test_no_source_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, sentence: str
) -> None:
    monkeypatch.setattr(fetch_debian, "_SOURCES", ())
    with pytest.raises(Unavailable) as caught:
        fetch_debian.fetch(name, tmp_path)
    assert str(caught.value) == sentence
    assert names(tmp_path) == [".lock"]


def test_no_apt_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unavailable) as caught:
        fetch_debian.gnumach(tmp_path / "cache")
    assert str(caught.value) == "Debian's apt-config is needed to fetch packages and not on this machine."


class FakeApt:
    """Makes trees without a network; says which packages were asked for, and fails for those in ``bad``."""

    asked: list[str]
    bad: dict[str, FetchError]

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch

    def unpacked(self, package: Package) -> Path:
        self.asked.append(package.name)
        if package.name in self.bad:
            raise self.bad[package.name]
        tree = self.scratch / package.name / "tree"
        (tree / "boot").mkdir(parents=True)
        (tree / MACH).write_bytes(gzip.compress(b"\x7fELF\x01 and so on"))
        (tree / "boot/vmlinuz-1").write_bytes(bytes(0x202) + b"HdrS")
        return tree


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeApt]:
    FakeApt.asked, FakeApt.bad = [], {}
    monkeypatch.setattr(fetch_debian, "Apt", FakeApt)
    return FakeApt


def test_many_callers_one_download(tmp_path: Path, fake: type[FakeApt]) -> None:
    with ThreadPoolExecutor(8) as pool:
        paths = set(pool.map(fetch_debian.gnumach, [tmp_path] * 16))
    assert [path.read_bytes() for path in paths] == [b"\x7fELF\x01 and so on"]
    assert fake.asked.count("gnumach-image-1.8-486") == 1


def test_one_update_brings_all_but_the_optional_ones(tmp_path: Path, fake: type[FakeApt]) -> None:
    fetch_debian.fetch("seabios", tmp_path)
    optional = {package.name for package in PACKAGES.values() if package.optional}
    assert optional == {"linux-image-686-pae"}
    assert set(names(tmp_path)) == PACKAGES.keys() - optional | {".lock"}
    fetch_debian.fetch("linux-image-686-pae", tmp_path)
    assert len(fake.asked) == len(set(fake.asked)) == len(PACKAGES)


def test_one_bad_package_does_not_keep_the_others_away(tmp_path: Path, fake: type[FakeApt]) -> None:
    fake.bad = {"memtest86+": Unavailable("memtest86+ is gone.")}
    fetch_debian.fetch("seabios", tmp_path)
    for _ in range(2):  # and it is not asked for again
        with pytest.raises(Unavailable) as caught:
            fetch_debian.memtest(tmp_path)
        assert str(caught.value) == "memtest86+ is gone."
    assert fake.asked.count("memtest86+") == 1


# -- what is refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"not gzip", f"gnumach has no readable /{MACH}: Not a gzipped file (b'no')"),
        (
            gzip.compress(b"MZ\x90\x00\x03"),
            f"/{MACH} is not a 32-bit ELF file; it starts with b'MZ\\x90\\x00\\x03'.",
        ),
    ],
    ids=["no gzip file", "no ELF file"],
)
def test_wrong_mach_is_refused(tmp_path: Path, content: bytes, sentence: str) -> None:
    (tmp_path / "boot").mkdir()
    (tmp_path / MACH).write_bytes(content)
    with pytest.raises(FetchError) as caught:
        fetch_debian._unzip_kernel(tmp_path)
    assert str(caught.value) == sentence
    assert names(tmp_path / "boot") == ["gnumach-1.8-486.gz"]


def test_wrong_linux_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FetchError) as caught:
        fetch_debian._check_bzimage(tmp_path)
    assert str(caught.value) == "a Linux package should hold one boot/vmlinuz-*, this one holds 0."
    (tmp_path / "boot").mkdir()
    (tmp_path / "boot/vmlinuz-1").write_bytes(b"short")
    with pytest.raises(FetchError) as caught:
        fetch_debian._check_bzimage(tmp_path)
    assert str(caught.value) == "vmlinuz-1 is no Linux bzImage: it has no HdrS at offset 0x202."


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """A package with two files, one link and one folder."""
    tree = tmp_path / "package"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN/control").write_text(
        "Package: small\nVersion: 1\nArchitecture: all\nMaintainer: nobody <nobody@example.org>\n"
        "Description: none\n"
    )
    (tree / "a/b").mkdir(parents=True)
    (tree / "a/file").write_bytes(b"one")
    (tree / "a/b/file").write_bytes(b"two")
    (tree / "a/link").symlink_to("/etc/passwd")
    if shutil.which("dpkg-deb") is None:
        pytest.skip("dpkg-deb is not on this machine")
    command = ["dpkg-deb", "--root-owner-group", "-b", str(tree), str(tmp_path / "small.deb")]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    return tmp_path / "small.deb"


def test_unpacking_keeps_what_matches_and_no_links(archive: Path, tmp_path: Path) -> None:
    fetch_debian._unpack(archive, ("a/*",), tmp_path / "all")
    found = {path.relative_to(tmp_path / "all").as_posix(): path for path in (tmp_path / "all").rglob("*")}
    assert sorted(found) == ["a", "a/b", "a/b/file", "a/file"]
    assert found["a/b/file"].read_bytes() == b"two"
    fetch_debian._unpack(archive, ("*/b/file",), tmp_path / "one")
    assert [path.name for path in (tmp_path / "one").rglob("*") if path.is_file()] == ["file"]


def test_unpacking_nothing_or_a_damaged_package_is_a_sentence(archive: Path, tmp_path: Path) -> None:
    with pytest.raises(FetchError) as caught:
        fetch_debian._unpack(archive, ("c/*", "d"), tmp_path / "none")
    assert str(caught.value) == "small.deb has none of c/*, d."
    archive.write_bytes(archive.read_bytes()[:100])
    with pytest.raises(FetchError) as caught:
        fetch_debian._unpack(archive, ("a/*",), tmp_path / "damaged")
    assert str(caught.value).startswith("small.deb could not be unpacked: ")


def test_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VMI_TEST_CACHE", "elsewhere")
    assert fetch_debian.cache_folder() == Path("elsewhere")
    monkeypatch.delenv("VMI_TEST_CACHE")
    assert fetch_debian.cache_folder().parts[-2:] == (".cache", "debian")


def test_unknown_name_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert fetch_debian.main(["nothing"]) == 1
    assert capsys.readouterr().err == f"fetch_debian: nothing is none of {', '.join(PACKAGES)}\n"
