# SPDX-License-Identifier: GPL-2.0-only
"""The wheel holds everything the installed command needs, and works away from the sources."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob("*.whl")
    return path


def test_wheel_holds_code_samples_headers_and_licence(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = {f"vmi/{path.relative_to(ROOT / 'vmi')}" for path in (ROOT / "vmi").rglob("*.py")}
    expected |= {f"vmi/patcher/include/{path.name}" for path in (ROOT / "vmi/patcher/include").glob("*.h")}
    expected |= {
        f"vmi/_sample_kernels/{path.parent.name}/{path.name}"
        for pattern in ("*/kernel.toml", "*/*.elf", "*/*.txt")
        for path in (ROOT / "sample_kernels").glob(pattern)
    }
    expected |= {"vmi/py.typed"}
    assert expected <= names
    assert {"vmi_guest.h", "hello.elf"} <= {name.rsplit("/", 1)[-1] for name in names}
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    strays = [name for name in names if not name.startswith("vmi/") and ".dist-info/" not in name]
    assert not strays
    assert not [name for name in names if "_cache" in name or "__pycache__" in name]


def test_wheel_is_the_same_bytes_each_time(wheel: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, capture_output=True, check=True, timeout=120)
    assert (tmp_path / wheel.name).read_bytes() == wheel.read_bytes()


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
