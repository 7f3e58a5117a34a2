# SPDX-License-Identifier: GPL-2.0-only
"""The wheel holds everything the installed command needs, and works away from the sources.

It holds the accelerator if there was a C compiler when it was made, and is pure Python otherwise.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.e2e


NATIVE, PURE = "py3-none-linux_x86_64", "py3-none-any"
HOME = "vmi/native/accelerator"


def build(root: Path, folder: Path, target: str = "wheel", **environment: str) -> tuple[Path, str]:
    """Build from a folder of sources; gives what was built, and what was said."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(folder)]
    surroundings = {name: value for name, value in os.environ.items() if name != "CC"} | environment
    done = subprocess.run(
        command, cwd=root, env=surroundings, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    (path,) = (path for path in folder.iterdir() if path.is_file())
    return path, done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(ROOT, tmp_path_factory.mktemp("wheel"))[0]


@pytest.fixture(scope="module")
def pure(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The wheel that is built without a working compiler, and what was said."""
    return build(ROOT, tmp_path_factory.mktemp("pure"), CC="false")


def names(wheel: Path) -> set[str]:
    return set(zipfile.ZipFile(wheel).namelist())


def text(wheel: Path, end: str) -> str:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(end))
        return archive.read(name).decode()


def engine(folder: Path) -> str:
    """What the command in an unpacked wheel says of its engine."""
    command = [sys.executable, "-P", "-m", "vmi", "version"]
    surroundings = {name: value for name, value in os.environ.items() if name != "VMI_ACCELERATOR"}
    surroundings["PYTHONPATH"] = str(folder)
    done = subprocess.run(
        command, cwd=folder, env=surroundings, capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()[-1].split(maxsplit=1)[1]


def test_wheel_holds_code_samples_headers_and_licence(wheel: Path) -> None:
    held = names(wheel)
    expected = {f"vmi/{path.relative_to(ROOT / 'vmi')}" for path in (ROOT / "vmi").rglob("*.py")}
    expected |= {f"vmi/patcher/include/{path.name}" for path in (ROOT / "vmi/patcher/include").glob("*.h")}
    expected |= {
        f"vmi/_sample_kernels/{path.parent.name}/{path.name}"
        for pattern in ("*/kernel.toml", "*/*.elf", "*/*.txt")
        for path in (ROOT / "sample_kernels").glob(pattern)
    }
    expected |= {"vmi/py.typed", f"{HOME}/_core.so"}
    expected |= {f"{HOME}/{path.name}" for path in (ROOT / HOME).glob("*.[ch]")}
    assert expected <= held
    assert {"vmi_guest.h", "hello.elf", "core.c"} <= {name.rsplit("/", 1)[-1] for name in held}
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in held)
    strays = [name for name in held if not name.startswith("vmi/") and ".dist-info/" not in name]
    assert not strays
    assert not [name for name in held if "_cache" in name or "__pycache__" in name]
    assert [name for name in held if name.endswith(".so")] == [f"{HOME}/_core.so"]


def test_wheel_is_for_the_platform_it_was_compiled_on(wheel: Path, tmp_path: Path) -> None:
    assert wheel.name.endswith(f"-{NATIVE}.whl")
    lines = text(wheel, ".dist-info/WHEEL").splitlines()
    assert {"Root-Is-Purelib: false", f"Tag: {NATIVE}"} <= set(lines)
    zipfile.ZipFile(wheel).extractall(tmp_path)
    assert engine(tmp_path) == "accelerated"


def test_wheel_without_a_compiler_is_pure(pure: tuple[Path, str], wheel: Path, tmp_path: Path) -> None:
    path, said = pure
    reason = "the C compiler false failed (status 1): no reason given"
    assert [line for line in said.splitlines() if "accelerator" in line] == [
        f"vmi is installed without its accelerator: {reason}"
    ]
    assert path.name.endswith(f"-{PURE}.whl")
    assert {"Root-Is-Purelib: true", f"Tag: {PURE}"} <= set(text(path, ".dist-info/WHEEL").splitlines())
    assert names(path) ^ names(wheel) == {f"{HOME}/_core.so", f"{HOME}/not-built.txt"}
    assert text(path, "/not-built.txt").splitlines()[1] == reason
    zipfile.ZipFile(path).extractall(tmp_path)
    assert engine(tmp_path) == f"pure Python: {reason}"


def test_sources_hold_what_the_wheel_is_made_of(wheel: Path, tmp_path: Path) -> None:
    """A wheel from the published sources is the one from the checkout."""
    archive, _ = build(ROOT, tmp_path / "sdist", "sdist")
    with tarfile.open(archive) as sources:
        sources.extractall(tmp_path, filter="data")
    (root,) = (path for path in tmp_path.iterdir() if path.name != "sdist")
    assert not list(root.rglob("*.so"))
    again, _ = build(root, tmp_path / "wheel")
    assert again.read_bytes() == wheel.read_bytes()


def test_editable_installation_has_it_beside_the_sources(tmp_path: Path) -> None:
    """As `pip install -e` asks the build backend for it."""
    copy = tmp_path / "checkout"
    left_out = shutil.ignore_patterns("__pycache__", "*.so", "not-built.txt", ".*")
    for name in ("vmi", "sample_kernels"):
        shutil.copytree(ROOT / name, copy / name, ignore=left_out)
    for name in ("pyproject.toml", "hatch_build.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    code = "import sys; from hatchling.build import build_editable; print(build_editable(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=copy, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (copy / HOME / "_core.so").exists()
    made = tmp_path / done.stdout.splitlines()[-1]
    assert made.name.endswith(f"-{PURE}.whl")
    assert not [name for name in names(made) if "accelerator" in name]
    assert engine(copy) == "accelerated"


def test_wheel_is_the_same_bytes_each_time(wheel: Path, tmp_path: Path) -> None:
    again, _ = build(ROOT, tmp_path)
    assert again.name == wheel.name
    assert again.read_bytes() == wheel.read_bytes()


def test_unpacked_wheel_finds_its_samples(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import vmi; assert vmi.__file__.startswith(sys.argv[1])\n"
        "from vmi import samples; print(samples.get('hello').path.read_bytes()[:4])"
    )
    command = [sys.executable, "-P", "-c", code, str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "b'\\x7fELF'\n", "")
