#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Obtain i386 software from Debian with apt's own tools, without touching the host's package state.

These files are not ours to ship, and what somebody else compiled is the best test there is. apt brings the
mirror, proxy and signature checks that the machine's owner has set up. Its state is redirected to a
throw-away folder through a private APT_CONFIG, so neither the host's package lists nor its foreign
architectures change, and no privilege is needed. One update of the lists serves all packages.

As a script: `fetch_debian.py [PACKAGE...]` prints the folder of each package (without a name: of all that
are fetched unasked), or one sentence and exit status 1.
"""

from __future__ import annotations

import fcntl
import gzip
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

ARCHITECTURE = "i386"
TOOLS = ("apt-config", "apt-get", "apt-cache", "dpkg-deb")

#: What of /etc/apt says where packages come from and whom to trust. Left out on purpose: apt.conf.d, whose
#: hooks may clean the host's caches (its download settings are taken through `apt-config` instead), and
#: preferences, whose pins speak of installing.
_SOURCES = (
    "sources.list",
    "sources.list.d",
    "trusted.gpg",
    "trusted.gpg.d",
    "keyrings",
    "auth.conf",
    "auth.conf.d",
)


class FetchError(Exception):
    """Something was obtained but is not what it must be."""


class Unavailable(FetchError):
    """Something can't be obtained on this machine: no apt, no network, or no such package."""


@dataclass(frozen=True)
class Package:
    """A package and what is kept of it.

    ``keep`` are patterns of members (`*` crosses folders). ``stands_for``: the package is empty, and the
    first of its dependencies that this expression matches is meant. ``finish`` gets the unpacked tree and
    raises FetchError if it is not what it must be. An ``optional`` package is fetched only when asked for.
    ``architecture``: of the package, whatever the code in it is for.
    """

    name: str
    keep: tuple[str, ...]
    stands_for: str = ""
    finish: Callable[[Path], None] | None = None
    optional: bool = False
    architecture: str = ARCHITECTURE


@dataclass(frozen=True)
class Linux:
    """A kernel as its package has it: the bzImage, the folder of its modules, and what uname -r says."""

    kernel: Path
    modules: Path
    release: str


def _unzip_kernel(tree: Path) -> None:
    """Put the uncompressed ELF file beside GNU Mach's compressed one, after a look at what it is."""
    source = tree / _MACH
    try:
        image = gzip.decompress(source.read_bytes())
    except (OSError, EOFError) as error:
        raise FetchError(f"gnumach has no readable /{_MACH}: {error}") from error
    if image[:5] != b"\x7fELF\x01":
        raise FetchError(f"/{_MACH} is not a 32-bit ELF file; it starts with {image[:5]!r}.")
    source.with_suffix("").write_bytes(image)


def _check_bzimage(tree: Path) -> None:
    kernels = sorted(tree.glob("boot/vmlinuz-*"))
    if len(kernels) != 1:
        raise FetchError(f"a Linux package should hold one boot/vmlinuz-*, this one holds {len(kernels)}.")
    with kernels[0].open("rb") as handle:
        head = handle.read(0x206)
    if head[0x202:] != b"HdrS":
        raise FetchError(f"{kernels[0].name} is no Linux bzImage: it has no HdrS at offset 0x202.")


_MACH = "boot/gnumach-1.8-486.gz"

#: Of all modules those that a disk, a CD and the usual file systems need, with what they depend on.
_LINUX = (
    "boot/vmlinuz-*",
    "boot/config-*",
    "lib/modules/*/kernel/arch/x86/crypto/*.ko",
    "lib/modules/*/kernel/block/*.ko",
    "lib/modules/*/kernel/crypto/*.ko",
    "lib/modules/*/kernel/drivers/ata/*.ko",
    "lib/modules/*/kernel/drivers/cdrom/*.ko",
    "lib/modules/*/kernel/drivers/scsi/s[cdr]*_*.ko",
    "lib/modules/*/kernel/fs/mbcache.ko",
    *(f"lib/modules/*/kernel/fs/{name}/*.ko" for name in ("ext4", "fat", "isofs", "jbd2", "minix", "nls")),
    "lib/modules/*/kernel/lib/*.ko",
)

_XEN = "usr/lib/xen-*/boot/hvmloader"

PACKAGES = {
    package.name: package
    for package in (
        Package("gnumach-image-1.8-486", (_MACH,), finish=_unzip_kernel),
        Package("linux-image-686", _LINUX, r"linux-image-\d\S*-686", _check_bzimage),
        Package("linux-image-686-pae", _LINUX, r"linux-image-\d\S*-686-pae", _check_bzimage, optional=True),
        Package("busybox-static", ("bin/busybox", "usr/bin/busybox")),
        Package("memtest86+", ("boot/memtest86+ia32.bin",)),
        Package("seabios", ("usr/share/seabios/*.bin",)),
        Package("grub-pc-bin", ("usr/lib/grub/i386-pc/*",)),
        Package("grub-coreboot-bin", ("usr/lib/grub/i386-coreboot/*",)),
        Package("xen-system-amd64", (_XEN,), r"xen-utils-\d\S*", architecture="amd64"),
    )
}


# -- what the tests ask for ---------------------------------------------------------------------------


def cache_folder() -> Path:
    """Where fetched files stay: $VMI_TEST_CACHE, or .cache/debian beside the tests."""
    override = os.environ.get("VMI_TEST_CACHE")
    return Path(override) if override else Path(__file__).resolve().parents[2] / ".cache" / "debian"


def gnumach(folder: Path | None = None) -> Path:
    """Path of GNU Mach's uncompressed ELF file."""
    return fetch("gnumach-image-1.8-486", folder) / Path(_MACH).with_suffix("")


def linux(flavour: str = "686", folder: Path | None = None) -> Linux:
    """Debian's present Linux kernel for i386; the flavour is `686` or `686-pae`."""
    tree = fetch(f"linux-image-{flavour}", folder)
    kernel = next(tree.glob("boot/vmlinuz-*"))
    release = kernel.name.removeprefix("vmlinuz-")
    return Linux(kernel, tree / "lib/modules" / release, release)


def busybox(folder: Path | None = None) -> Path:
    """Path of the statically linked busybox."""
    return next(fetch("busybox-static", folder).rglob("busybox"))


def memtest(folder: Path | None = None) -> Path:
    """Path of memtest86+ for 32 bits, which boots as a Linux bzImage does."""
    return fetch("memtest86+", folder) / "boot/memtest86+ia32.bin"


def seabios(folder: Path | None = None) -> Path:
    """Folder of SeaBIOS: bios.bin (128 KiB), bios-256k.bin, vgabios-*.bin."""
    return fetch("seabios", folder) / "usr/share/seabios"


def grub(folder: Path | None = None) -> Path:
    """Folder of GRUB's modules and images for BIOS machines."""
    return fetch("grub-pc-bin", folder) / "usr/lib/grub/i386-pc"


def grub_coreboot(folder: Path | None = None) -> Path:
    """Folder of GRUB's modules for coreboot, whose images are ELF files."""
    return fetch("grub-coreboot-bin", folder) / "usr/lib/grub/i386-coreboot"


def hvmloader(folder: Path | None = None) -> Path:
    """Path of the 32-bit ELF file that Xen starts its machines with."""
    return next(fetch("xen-system-amd64", folder).glob(_XEN))


# -- how they get it ----------------------------------------------------------------------------------


_failed: dict[Path, FetchError] = {}  # asked for once in a process: without a network each try takes long


def fetch(name: str, folder: Path | None = None) -> Path:
    """Folder with the kept members of a package, downloaded on the first call.

    The first call that has to download brings all packages that are not optional (some 60 MB), since
    apt's lists are the slow part. Several processes may call this at once: one downloads, the others wait
    for it. Raises Unavailable where the package can't be had, FetchError where what came is unusable.
    """
    folder = cache_folder() if folder is None else folder
    target = folder / name
    if target.exists():
        return target
    if target in _failed:
        raise _failed[target]
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder / ".lock"):
        missing = [
            package
            for package in PACKAGES.values()
            if (package.name == name or not package.optional) and not (folder / package.name).exists()
        ]
        if not target.exists():
            with tempfile.TemporaryDirectory(prefix="fetch-", dir=folder) as scratch:
                _fetch(missing, Path(scratch), folder)
    if target in _failed:
        raise _failed[target]
    return target


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file; the system drops it if this process dies."""
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _fetch(packages: list[Package], scratch: Path, folder: Path) -> None:
    """Bring packages into ``folder``, each as a tree of its name; what went wrong is left in _failed."""
    try:
        apt = Apt(scratch)
    except Unavailable as error:
        _failed.update({folder / package.name: error for package in packages})
        return
    for package in packages:
        try:
            tree = apt.unpacked(package)
            if package.finish is not None:
                package.finish(tree)
            os.replace(tree, folder / package.name)  # same file system: never half there
        except FetchError as error:
            _failed[folder / package.name] = error


class Apt:
    """apt with the host's sources and a state of its own in an empty folder."""

    def __init__(self, scratch: Path) -> None:
        for tool in TOOLS:
            if shutil.which(tool) is None:
                raise Unavailable(f"Debian's {tool} is needed to fetch packages and not on this machine.")
        self.scratch = scratch
        self.environment = {**os.environ, "APT_CONFIG": str(_private_apt(scratch)), "LC_ALL": "C.UTF-8"}
        # An index that fails is no reason to stop: the one with the package may have come.
        self._update = self._run(["apt-get", "-q", "update"], seconds=300)

    def unpacked(self, package: Package) -> Path:
        """Download a package and unpack what is kept of it; gives the folder."""
        name = self._dependency(package) if package.stands_for else package.name
        full = f"{name}:{package.architecture}"
        folder = self.scratch / package.name
        folder.mkdir()
        download = self._run(["apt-get", "-q", "download", full], seconds=300, cwd=folder)
        archives = sorted(folder.glob("*.deb"))
        if download.returncode != 0 or not archives:
            complaint = _complaint(download) or _complaint(self._update) or "apt gave no reason"
            raise Unavailable(f"{full} could not be downloaded: {complaint}")
        tree = folder / "tree"
        _unpack(archives[0], package.keep, tree)
        return tree

    def _dependency(self, package: Package) -> str:
        """The package that an empty one stands for in this release."""
        full = f"{package.name}:{package.architecture}"
        shown = self._run(["apt-cache", "show", "--no-all-versions", full], seconds=60)
        depends = " ".join(re.findall(r"^(?:Pre-)?Depends: (.*)$", shown.stdout, re.MULTILINE))
        for name in re.split(r"[\s,|()]+", depends):
            if re.fullmatch(package.stands_for, name):
                return name
        complaint = _complaint(shown) or _complaint(self._update) or f"it depends on {depends or 'nothing'}"
        raise Unavailable(f"{full} names no package to download: {complaint}")

    def _run(
        self, command: list[str], *, seconds: int, cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        try:
            return subprocess.run(
                command,
                cwd=cwd or self.scratch,
                env=self.environment,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=seconds,
                stdin=subprocess.DEVNULL,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise Unavailable(f"`{' '.join(command[:3])}` did not end within {seconds} s.") from error


def _unpack(archive: Path, keep: tuple[str, ...], tree: Path) -> None:
    """Write the regular files of a package whose names match; FetchError if there are none."""
    tree.mkdir()
    with subprocess.Popen(
        ["dpkg-deb", "--fsys-tarfile", str(archive)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as unpacker:
        try:
            with tarfile.open(fileobj=unpacker.stdout, mode="r|") as members:
                for member in members:
                    name = member.name.removeprefix("./")
                    if not any(fnmatchcase(name, pattern) for pattern in keep):
                        continue
                    content = members.extractfile(member) if member.isfile() else None
                    if content is None or ".." in PurePosixPath(name).parts:
                        continue
                    (tree / name).parent.mkdir(parents=True, exist_ok=True)
                    (tree / name).write_bytes(content.read())
        except (tarfile.TarError, EOFError) as error:
            raise FetchError(f"{archive.name} could not be unpacked: {error}") from error
    if not any(tree.iterdir()):
        raise FetchError(f"{archive.name} has none of {', '.join(keep)}.")


def _private_apt(scratch: Path) -> Path:
    """An apt configuration with the host's sources and download settings, and a state of its own."""
    etc = scratch / "etc"
    etc.mkdir()
    for name in _SOURCES:
        source = Path("/etc/apt") / name
        if source.is_dir():
            shutil.copytree(source, etc / name)
        elif source.is_file():
            shutil.copy(source, etc / name)
    for folder in ("state/lists/partial", "cache/archives/partial", "parts", "etc/preferences.d"):
        (scratch / folder).mkdir(parents=True)
    (scratch / "status").touch()  # no package is installed here

    dump = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=False).stdout
    host = [line for line in dump.splitlines() if line.startswith("Acquire::")]
    ours = {
        "Dir::Etc": etc,
        "Dir::Etc::main": "/dev/null",
        "Dir::Etc::parts": scratch / "parts",
        "Dir::State": scratch / "state",
        "Dir::State::status": scratch / "status",
        "Dir::Cache": scratch / "cache",
        "APT::Architecture": ARCHITECTURE,
        "APT::Sandbox::User": "",  # the scratch folder may lie where the user _apt can't look
        "Acquire::Languages": "none",
        "Acquire::Retries": "2",
        "Acquire::http::Timeout": "30",
        "Acquire::https::Timeout": "30",
    }
    architectures = " ".join(f'"{name}";' for name in sorted({p.architecture for p in PACKAGES.values()}))
    lines = [*host, "#clear APT::Architectures;", f"APT::Architectures {{ {architectures} }};"]
    lines += [f'{name} "{value}";' for name, value in ours.items()]
    config = scratch / "apt.conf"
    config.write_text("\n".join(lines) + "\n")
    return config


def _complaint(done: subprocess.CompletedProcess[str]) -> str:
    """The first error line that a tool printed (later ones follow from it), without its tag."""
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("E:")] or lines
    return errors[0].removeprefix("E:").strip() if errors else ""


def main(names: list[str]) -> int:
    unknown = [name for name in names if name not in PACKAGES]
    if unknown:
        print(f"fetch_debian: {unknown[0]} is none of {', '.join(PACKAGES)}", file=sys.stderr)
        return 1
    try:
        for name in names or [package.name for package in PACKAGES.values() if not package.optional]:
            print(fetch(name))
    except FetchError as error:
        print(f"fetch_debian: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
