#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Obtain Debian's GNU Mach kernel for i386 with apt's own tools, without touching the host's package state.

The kernel is not ours to ship, and a kernel that somebody else compiled is the best test there is. apt
brings the mirror, proxy and signature checks that the machine's owner has set up. Its state is redirected
to a throw-away folder through a private APT_CONFIG, so neither the host's package lists nor its foreign
architectures change, and no privilege is needed.

As a script: prints the path of the kernel (an uncompressed ELF file), or one sentence and exit status 1.
"""

from __future__ import annotations

import fcntl
import gzip
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PACKAGE = "gnumach-image-1.8-486"
MEMBER = "boot/gnumach-1.8-486.gz"
ARCHITECTURE = "i386"
TOOLS = ("apt-config", "apt-get", "dpkg-deb")

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
    """The kernel was obtained but is not what it must be."""


class Unavailable(FetchError):
    """The kernel can't be obtained on this machine: no apt, no network, or no such package."""


def cache_folder() -> Path:
    """Where fetched files stay: $VMI_TEST_CACHE, or .cache/debian beside the tests."""
    override = os.environ.get("VMI_TEST_CACHE")
    return Path(override) if override else Path(__file__).resolve().parents[2] / ".cache" / "debian"


def gnumach(folder: Path | None = None) -> Path:
    """Path of the uncompressed GNU Mach ELF file, downloaded (0.8 MB) on the first call.

    Several processes may call this at once: one downloads, the others wait for it. Raises Unavailable
    where the kernel can't be had, FetchError where what came is not a kernel.
    """
    folder = cache_folder() if folder is None else folder
    target = folder / "gnumach"
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder / ".lock"):
        if not target.exists():
            with tempfile.TemporaryDirectory(prefix="fetch-", dir=folder) as scratch:
                kernel = _fetch(Path(scratch))
                os.replace(kernel, target)  # same file system: the target is never half there
    return target


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file; the system drops it if this process dies."""
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _fetch(scratch: Path) -> Path:
    """Download and unpack into an empty folder; returns the kernel's path inside it."""
    for tool in TOOLS:
        if shutil.which(tool) is None:
            raise Unavailable(f"{PACKAGE} needs Debian's {tool}, which is not on this machine.")
    environment = {**os.environ, "APT_CONFIG": str(_private_apt(scratch)), "LC_ALL": "C.UTF-8"}

    # An index that fails is no reason to stop: the one with the package may have come.
    update = _run(["apt-get", "-q", "update"], scratch, environment, seconds=300)
    download = _run(["apt-get", "-q", "download", PACKAGE], scratch, environment, seconds=180)
    packages = sorted(scratch.glob("*.deb"))
    if download.returncode != 0 or not packages:
        complaint = _complaint(download) or _complaint(update) or "apt gave no reason"
        raise Unavailable(f"{PACKAGE}:{ARCHITECTURE} could not be downloaded: {complaint}")

    tree = scratch / "tree"
    unpack = _run(["dpkg-deb", "-x", str(packages[0]), str(tree)], scratch, environment, seconds=60)
    if unpack.returncode != 0:
        raise FetchError(f"{packages[0].name} could not be unpacked: {_complaint(unpack)}")
    return _unzip(tree / MEMBER, scratch / "kernel")


def _unzip(source: Path, target: Path) -> Path:
    """Write the kernel uncompressed, after a look at what it is."""
    try:
        image = gzip.decompress(source.read_bytes())
    except (OSError, EOFError) as error:
        raise FetchError(f"{PACKAGE} has no readable /{MEMBER}: {error}") from error
    if image[:5] != b"\x7fELF\x01":
        raise FetchError(f"/{MEMBER} of {PACKAGE} is not a 32-bit ELF file; it starts with {image[:5]!r}.")
    target.write_bytes(image)
    return target


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
    for folder in ("state/lists/partial", "cache/archives/partial", "parts"):
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
    lines = [*host, "#clear APT::Architectures;", f'APT::Architectures {{ "{ARCHITECTURE}"; }};']
    lines += [f'{name} "{value}";' for name, value in ours.items()]
    config = scratch / "apt.conf"
    config.write_text("\n".join(lines) + "\n")
    return config


def _run(
    command: list[str], cwd: Path, environment: dict[str, str], *, seconds: int
) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command,
            cwd=cwd,
            env=environment,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
            stdin=subprocess.DEVNULL,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"`{' '.join(command[:3])}` did not end within {seconds} s.") from error


def _complaint(done: subprocess.CompletedProcess[str]) -> str:
    """The first error line that a tool printed (later ones follow from it), without its tag."""
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("E:")] or lines
    return errors[0].removeprefix("E:").strip() if errors else ""


def main() -> int:
    try:
        print(gnumach())
    except FetchError as error:
        print(f"fetch_debian: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
