# SPDX-License-Identifier: GPL-2.0-only
"""Build the sample kernels: ``python build.py [NAME ...]`` writes ``<name>/<name>.elf``.

The images are kept beside their sources, so nobody needs a cross compiler to run them; this script makes
them again. The same compiler gives the same bytes: no build id, no paths, no debug information.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
# vmi_guest.h: in a checkout the package lies beside this directory, once installed around it.
INCLUDES = (HERE / "lib", HERE.parent / "vmi" / "patcher" / "include", HERE.parent / "patcher" / "include")

CFLAGS = (
    *("-m32", "-march=i686", "-O2", "-std=gnu11", "-Wall", "-Wextra", "-Werror"),
    *("-ffreestanding", "-nostdlib", "-fno-pic", "-no-pie", "-fno-stack-protector", "-fcf-protection=none"),
    *("-mno-sse", "-mno-mmx", "-fno-asynchronous-unwind-tables", "-fno-ident"),
)
# -z noexecstack leaves a PT_GNU_STACK header, which takes no memory and which a patcher can make its own.
LDFLAGS = (
    *("-m", "elf_i386", "-S", "--build-id=none", "-z", "noexecstack", "-z", "max-page-size=0x1000"),
    "--fatal-warnings",
)


@dataclass(frozen=True)
class Recipe:
    """The ``[build]`` table of a kernel.toml. Paths are relative to the sample_kernels directory."""

    name: str
    script: str
    sources: tuple[str, ...]
    defines: tuple[str, ...] = ()
    program: tuple[str, ...] = ()
    """Sources of a ring-3 program. Built first, as a flat image, found by ``.incbin "program.bin"``."""


def recipe(name: str) -> Recipe:
    """Read one kernel's recipe; KeyError or FileNotFoundError if there is none."""
    table = tomllib.loads((HERE / name / "kernel.toml").read_text(encoding="utf-8"))["build"]
    return Recipe(
        name=name,
        script=table["script"],
        sources=tuple(table["sources"]),
        defines=tuple(table.get("defines", ())),
        program=tuple(table.get("program", ())),
    )


def names() -> list[str]:
    """All kernels that have a kernel.toml, sorted."""
    return sorted(path.parent.name for path in HERE.glob("*/kernel.toml"))


def compiler_version() -> str:
    """First line of ``gcc --version`` and ``ld --version``: what the image's bytes depend on."""
    lines = (_output([tool, "--version"]).splitlines()[0] for tool in ("gcc", "ld"))
    return " / ".join(lines)


def build(name: str, output: Path) -> Path:
    """Build kernel `name` to `output`; CalledProcessError (its stderr already shown) if a tool fails."""
    todo = recipe(name)
    with tempfile.TemporaryDirectory(prefix="sample-kernel-") as temporary:
        work = Path(temporary)
        if todo.program:
            flat = ["--oformat=binary", "-T", str(HERE / "lib" / "user.ld")]
            _run(["ld", *LDFLAGS, *flat, "-o", str(work / "program.bin"), *_objects(todo.program, (), work)])
        objects = _objects(todo.sources, todo.defines, work)
        script = ["-L", str(HERE / "lib"), "-T", str(HERE / todo.script)]
        _run(["ld", *LDFLAGS, *script, "-o", str(output), *objects])
    return output


def _objects(sources: Sequence[str], defines: Sequence[str], work: Path) -> list[str]:
    flags = [*CFLAGS, f"-ffile-prefix-map={HERE.parent}=.", f"-Wa,-I,{work}"]
    flags += [f"-I{path}" for path in INCLUDES] + [f"-D{define}" for define in defines]
    objects = []
    for source in sources:
        target = work / (source.replace("/", "_") + ".o")
        _run(["gcc", *flags, "-c", str(HERE / source), "-o", str(target)])
        objects.append(str(target))
    return objects


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True)


def _output(command: list[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def main(arguments: Sequence[str] | None = None) -> int:
    """Build the named kernels, or all of them."""
    parser = argparse.ArgumentParser(description="Build the sample kernels with gcc and ld.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of: {', '.join(names())}; default: all")
    chosen = parser.parse_args(arguments).names
    if unknown := sorted(set(chosen) - set(names())):
        parser.error(f"no sample kernel is called {unknown[0]!r}; there are {', '.join(names())}")
    for name in chosen or names():
        try:
            output = build(name, HERE / name / f"{name}.elf")
        except FileNotFoundError as error:
            print(f"{name}: the tool {error.filename} is not installed", file=sys.stderr)
            return 1
        except subprocess.CalledProcessError as error:
            print(f"{name}: {error.cmd[0]} failed with status {error.returncode}", file=sys.stderr)
            return 1
        print(f"{output.relative_to(HERE)}: {output.stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
