# SPDX-License-Identifier: GPL-2.0-only
"""Whatever is wrong with the accelerator's library, the tool works, and says in one line what it is."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.native.accelerator.installed import ROOT, Installed, install
from vmi.native.accelerator import build
from vmi.native.accelerator.finding import in_checkout

NOTE = "vmi: running without the accelerator, so slower: "


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return install(tmp_path_factory.mktemp("installed"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("made") / build.LIBRARY
    build.build(path)
    return path


@pytest.fixture
def installed(package: Installed) -> Installed:
    """The package without a library."""
    for name in (build.LIBRARY, build.REFUSAL):
        (package.folder / name).unlink(missing_ok=True)
    return package


def works(installed: Installed) -> list[str]:
    """A guest runs as it must; gives the lines on stderr but for how it ended."""
    *lines, end = ran(installed.vmi("run", "sample:hello")).stderr.splitlines()
    assert end.startswith("vmi: native: the guest ended itself with debug-exit value 0x10 ")
    return lines


def ran(done: subprocess.CompletedProcess[str]) -> subprocess.CompletedProcess[str]:
    assert (done.returncode, "hello: goodbye" in done.stdout) == (33, True), done.stderr
    return done


def test_a_library_that_fits_is_used(installed: Installed, made: Path) -> None:
    shutil.copy(made, installed.library)
    assert works(installed) == []
    done = installed.vmi("version", "--json")
    assert (json.loads(done.stdout)["engine"], done.stderr) == ("accelerated", "")


def test_it_can_be_switched_off(installed: Installed, made: Path) -> None:
    shutil.copy(made, installed.library)
    why = "pure Python: VMI_ACCELERATOR=0 switches it off"
    assert installed.engine(VMI_ACCELERATOR="0") == (why, [])


def test_an_installation_without_one_is_quiet(installed: Installed) -> None:
    assert installed.engine() == ("pure Python: none was made at installation", [])
    assert works(installed) == []
    build.refuse(installed.folder, "there is no C compiler (cc, gcc or clang)")
    assert installed.engine() == ("pure Python: there is no C compiler (cc, gcc or clang)", [])
    assert not installed.library.exists()


def cut(data: bytes) -> bytes:
    return data[:5000]


def foreign(_: bytes) -> bytes:
    return b"\x7fELF\x01\x01" + bytes(100)


def stale(data: bytes) -> bytes:
    stamp = build.stamp().encode()
    assert data.count(stamp) == 1
    return data.replace(stamp, bytes(reversed(stamp)))


def without_symbols(data: bytes) -> bytes:
    assert b"\0vmi_core_run\0" in data
    return data.replace(b"\0vmi_core_run\0", b"\0vmi_core_not\0")


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (cut, "{path} is cut off: it has 5000 bytes of {size}"),
        (foreign, "{path} is no shared library of 64 bits"),
        (stale, "{path} was compiled from other sources"),
        (without_symbols, "{path} can't be loaded: {path}: undefined symbol: vmi_core_run"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_library_that_is_no_good(installed: Installed, made: Path, damage: object, why: str) -> None:
    data = made.read_bytes()
    assert callable(damage)
    installed.library.write_bytes(damage(data))
    why = why.format(path=installed.library, size=len(data))
    assert works(installed) == [NOTE + why]


def test_quiet_is_quiet(installed: Installed) -> None:
    installed.library.write_bytes(b"")
    done = installed.vmi("version", "-q")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith(f"pure Python: {installed.library} is no shared library of 64 bits\n")


def test_users_of_the_package_get_a_warning(installed: Installed) -> None:
    installed.library.write_bytes(b"")
    code = (
        "import warnings\n"
        "from vmi.errors import Notice\n"
        "from vmi.native.machine import Machine\n"
        "with warnings.catch_warnings(record=True) as seen:\n"
        "    Machine(ram=1 << 20), Machine(ram=1 << 20)\n"
        "print([(w.category is Notice, str(w.message)) for w in seen])"
    )
    done = installed.python("-W", "always", "-c", code)
    why = f"running without the accelerator, so slower: {installed.library} is no shared library of 64 bits"
    assert (done.stdout, done.stderr) == (f"{[(True, why)]}\n", "")


def test_one_that_fails_its_proof(installed: Installed, made: Path) -> None:
    """The proof decides, and the same process goes on without it."""
    shutil.copy(made, installed.library)
    code = (
        "from vmi.cli import main\n"
        "from vmi.native import accelerator, selftest\n"
        "from vmi.native.layout import unsuitable\n"
        "def differ(probe):\n"
        "    if accelerator.load() is not None:\n"
        "        raise unsuitable('everything', 'right', 'wrong')\n"
        "selftest._CHECKS += (differ,)\n"
        "main()"
    )
    differs = "the CPU emulator is not as expected: everything should be right, but it is wrong"
    why = f"it failed its self-test: {differs}"
    assert ran(installed.python("-c", code, "run", "sample:hello")).stderr.splitlines()[:-1] == [NOTE + why]


def test_another_version_of_the_emulator(installed: Installed, made: Path) -> None:
    """There is no engine at all then, and what needs none goes on."""
    shutil.copy(made, installed.library)
    code = "import unicorn; unicorn.__version__ = '2.2.0'\nfrom vmi.cli import main; main()"
    why = "the CPU emulator must be unicorn 2.1.4, but it is 2.2.0"
    version = installed.python("-c", code, "version")
    assert version.stdout.splitlines()[-1].split(maxsplit=1)[1] == f"unusable: {why}"
    assert (version.returncode, version.stderr) == (0, "")
    run = installed.python("-c", code, "run", "sample:hello")
    assert (run.returncode, run.stdout, run.stderr) == (20, "", f"vmi: {why}\n")
    assert installed.python("-c", code, "inspect", "sample:hello").returncode == 0


# --- a checkout ---


@pytest.fixture
def checkout(tmp_path: Path) -> Installed:
    """The package beside a build hook, as its developers have it."""
    made = install(tmp_path)
    shutil.copy(ROOT / "hatch_build.py", tmp_path)
    return made


def test_where_a_checkout_is(checkout: Installed, installed: Installed) -> None:
    assert in_checkout(build.FOLDER)
    assert in_checkout(checkout.folder)
    assert not in_checkout(installed.folder)


def test_a_checkout_makes_its_own(checkout: Installed) -> None:
    assert checkout.engine() == ("accelerated", [])
    first = checkout.library.read_bytes()
    with (checkout.folder / "core.c").open("a") as file:
        file.write("\n")
    assert checkout.engine() == ("accelerated", [])
    assert checkout.library.read_bytes() != first
    build.check(checkout.library, build.stamp(checkout.folder))


def test_a_checkout_without_a_compiler(checkout: Installed) -> None:
    why = "pure Python: there is no C compiler no-such, which CC names"
    assert checkout.engine(CC="no-such") == (why, [])
    failed = "the C compiler false failed (status 1): no reason given"
    assert checkout.engine(CC="false") == (f"pure Python: {failed}", [])
    assert (checkout.folder / build.REFUSAL).read_text().splitlines()[1] == failed
    assert checkout.engine(CC="false") == (f"pure Python: {failed}", [])
    assert works(checkout) == []  # with the compiler there is
    assert checkout.engine(CC="false") == ("accelerated", [])
    with (checkout.folder / "core.c").open("a") as file:
        file.write("\n")
    why = f"{checkout.library} was compiled from other sources, and no other can be made: {failed}"
    assert checkout.engine(CC="false") == (f"pure Python: {why}", [NOTE + why])


def test_a_checkout_that_can_not_be_written_to(checkout: Installed, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root writes anywhere, so the folder is one that nobody can make a file in."""
    code = (
        "import tempfile\n"
        "def refuse(*_, **__): raise OSError(30, 'Read-only file system')\n"
        "tempfile.mkstemp = refuse\n"
        "from vmi.cli import main; main()"
    )
    version = checkout.python("-c", code, "version")
    why = "pure Python: its folder can't be written to: Read-only file system"
    assert version.stdout.splitlines()[-1].split(maxsplit=1)[1] == why
    assert (version.returncode, version.stderr) == (0, "")
