# SPDX-License-Identifier: GPL-2.0-only
"""The house's rules that a machine can check: who imports whom, how long files are, what is in them.

The unit of the import rule is a top-level name of the package (a module, or a folder with all that is in it).
``MAY_IMPORT`` is the whole truth: a unit that is not a row of it fails, so the map can't fall behind.
"""

from __future__ import annotations

import ast
import re
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "vmi"

BOTTOM = frozenset({"errors", "version", "lazy", "memory", "x86", "exits", "files"})
MACHINE = BOTTOM | {"native"}
TABLE = BOTTOM | {"abi", "sitetable"}
HYPERVISOR = TABLE | {"rom", "native", "hypervisor"}
PATCHER = TABLE | {"rom", "patcher"}
LIBRARY = HYPERVISOR | PATCHER | {"abi_docs", "samples", "run", "plot", "proof", "conformance"}

#: Unit -> units it may import, besides itself. Hardware (native) knows nothing of the interface, and the
#: patcher needs no emulator.
MAY_IMPORT: dict[str, frozenset[str]] = {
    "errors": frozenset(),
    "version": frozenset(),
    "lazy": frozenset(),
    "memory": frozenset({"errors"}),
    "x86": frozenset({"errors", "memory"}),
    "exits": frozenset(),
    "files": frozenset({"errors"}),
    "abi": frozenset(),
    "sitetable": frozenset({"errors"}),
    "abi_docs": TABLE,
    "rom": TABLE,
    "native": BOTTOM,
    "patcher": PATCHER,
    "samples": BOTTOM,
    "hypervisor": HYPERVISOR,
    "run": HYPERVISOR | PATCHER,
    "plot": BOTTOM | {"run"},
    "proof": MACHINE | PATCHER,
    "conformance": HYPERVISOR | PATCHER | {"run", "samples"},
    "cli": LIBRARY,
    "__init__": LIBRARY,
    "__main__": frozenset({"cli"}),
}

#: Library -> where it may be imported. Each of them has traps that one place knows.
HOMES = {
    "unicorn": ("native/engine.py",),
    "keystone": ("rom/",),
    "lief": ("patcher/",),
    "typer": ("cli/",),
    "rich": ("cli/",),
    "PIL": ("native/screen.py", "plot.py"),
}

LONGEST = 500  # lines
TABLES = {"vmi/abi.py"}

SOURCE_SUFFIXES = {".py", ".c", ".h", ".S", ".ld", ".toml", ".sh"}
LICENCE = "SPDX-License-Identifier: GPL-2.0-only"


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def sources() -> list[Path]:
    """Every text that somebody wrote."""
    found = [ROOT / "Makefile", ROOT / "pyproject.toml", ROOT / ".ci" / "run"]
    for folder in ("vmi", "tests", "sample_kernels"):
        found += [path for path in (ROOT / folder).rglob("*") if path.suffix in SOURCE_SUFFIXES]
    return sorted(path for path in found if not any(part.endswith("_cache") for part in path.parts))


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def unit(path: Path) -> str:
    """The top-level unit a file belongs to."""
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, absolute dotted name) of all that a file imports, inside functions and for type checking too."""
    package = ("vmi", *path.relative_to(PACKAGE).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            prefix = ".".join((*base, *([node.module] if node.module else [])))
            if prefix == "vmi":  # `from vmi import abi`: the names are the units
                yield from ((node.lineno, f"vmi.{alias.name}") for alias in node.names)
            else:
                yield node.lineno, prefix


@pytest.mark.parametrize("path", modules(), ids=name)
def test_imports_point_down(path: Path) -> None:
    own = unit(path)
    assert own in MAY_IMPORT, f"vmi/{own} is new: give it a row in MAY_IMPORT"
    allowed = MAY_IMPORT[own] | {own}
    wrong = [
        f"line {line}: {target}"
        for line, target in imports(path)
        if target.startswith("vmi.") and target.split(".")[1] not in allowed
    ]
    assert not wrong, f"{name(path)} may not import {'; '.join(wrong)}"


def test_the_map_has_no_circle() -> None:
    order: list[str] = []
    left = dict(MAY_IMPORT)
    while left:
        ready = [one for one, below in left.items() if not (below - {one}) & left.keys()]
        assert ready, f"these units may import each other in a circle: {sorted(left)}"
        order += ready
        for one in ready:
            del left[one]
    assert set(order) == MAY_IMPORT.keys()


@pytest.mark.parametrize("path", modules(), ids=name)
def test_libraries_stay_at_home(path: Path) -> None:
    inside = path.relative_to(PACKAGE).as_posix()
    wrong = [
        f"line {line}: {target} belongs to vmi/{' or '.join(home)}"
        for line, target in imports(path)
        if (home := HOMES.get(target.split(".")[0])) and not inside.startswith(home)
    ]
    assert not wrong, f"{name(path)}: {'; '.join(wrong)}"


def test_the_table_needs_the_standard_library_only() -> None:
    foreign = {target for _, target in imports(PACKAGE / "abi.py")} - {"__future__"}
    assert {target.split(".")[0] for target in foreign} <= sys.stdlib_module_names


@pytest.mark.parametrize("path", sources(), ids=name)
def test_file_is_licensed_and_short(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    first = lines[1] if lines and lines[0].startswith("#!") else (lines or [""])[0]
    assert LICENCE in first, f"{name(path)} must start with {LICENCE}"
    assert len(lines) <= LONGEST or name(path) in TABLES, f"{name(path)} has {len(lines)} lines"


@pytest.mark.parametrize("path", [*sources(), ROOT / "README.md"], ids=name)
def test_file_is_of_no_place(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    strangers = [
        f"line {number}: {match[0]}" for number, line in enumerate(lines, 1) for match in PLACE.finditer(line)
    ]
    assert not strangers, f"{name(path)} speaks of the machine it was written on: {'; '.join(strangers)}"


def _place() -> re.Pattern[str]:
    """Absolute paths that mean something on one machine only, its name, and where the project lies there."""
    folders = "|".join(("work", "tmp", "home", "root"))
    words = [rf"(?<![\w.~*$/}}])/(?:{folders})\b", re.escape(str(ROOT)), re.escape("fact" + " sheet")]
    host = socket.gethostname()
    if len(host) >= 6 and host != "localhost":
        words.append(rf"\b{re.escape(host)}\b")
    return re.compile("|".join(words))


PLACE = _place()


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("see /" + "tmp/x", True),
        ("'/" + "work/main'", True),
        ("a/" + "tmp/x", False),
        ("$HOME/" + "work", False),
        ("/" + "tmpfs", False),
        ("fact" + " sheet", True),
    ],
)
def test_the_search_for_places_finds_them(line: str, found: bool) -> None:
    assert bool(PLACE.search(line)) is found


def test_every_folder_is_a_package() -> None:
    """A folder without __init__.py would be missing from `import vmi` checks and from type checking."""
    bare = {path.parent for path in modules()} - {
        path.parent for path in modules() if path.name == "__init__.py"
    }
    assert not [name(folder) for folder in bare]


def test_the_package_is_typed() -> None:
    assert (PACKAGE / "py.typed").exists()
