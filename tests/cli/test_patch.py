# SPDX-License-Identifier: GPL-2.0-only
"""`vmi patch` and `vmi inspect`: files in, files out, nothing half done, every refusal a sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Vmi, sentence
from tests.patcher.elfs import VADDR, Piece, Plan, make
from vmi import samples
from vmi.patcher import inspect_file, patch, rewrite
from vmi.rom.assemble import assemble


@pytest.fixture
def hello(tmp_path: Path) -> Path:
    path = tmp_path / "hello"
    path.write_bytes(samples.get("hello").path.read_bytes())
    return path


def test_output_and_report(vmi: Vmi, hello: Path, tmp_path: Path) -> None:
    done = patch(hello.read_bytes())
    result = vmi("patch", hello, "-o", tmp_path / "out", "--report", tmp_path / "report.json")
    assert (result.exit_code, result.stderr) == (0, "")
    assert (tmp_path / "out").read_bytes() == done.data
    assert (tmp_path / "report.json").read_text() == done.report.to_json()
    assert result.stdout == done.report.to_text()


def test_sample_by_name(vmi: Vmi, hello: Path, tmp_path: Path) -> None:
    assert vmi("patch", "sample:hello", "-o", tmp_path / "out").exit_code == 0
    assert (tmp_path / "out").read_bytes() == patch(hello.read_bytes()).data


def test_quiet(vmi: Vmi, hello: Path, tmp_path: Path) -> None:
    result = vmi("patch", hello, "-o", tmp_path / "out", "-q")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")


def test_json(vmi: Vmi, hello: Path, tmp_path: Path) -> None:
    result = vmi("patch", hello, "-o", tmp_path / "out", "--json")
    assert json.loads(result.stdout) == json.loads(patch(hello.read_bytes()).report.to_json())


def test_verbose_lists_every_miss(vmi: Vmi, hello: Path, tmp_path: Path) -> None:
    report = patch(hello.read_bytes()).report
    text = vmi("patch", hello, "-o", tmp_path / "out", "-v").stderr
    assert "sites without a slot" in text
    for site in report.sites:
        assert (f"{site.address:08x}" in text) is bool(site.reason)


def test_explain(vmi: Vmi, hello: Path) -> None:
    report = patch(hello.read_bytes()).report
    site = report.sites[0]
    result = vmi("patch", hello, "--explain", f"{site.address:x}")
    assert (result.exit_code, result.stdout) == (0, report.explain(site.address))
    value = json.loads(vmi("patch", hello, "--explain", f"{site.address:x}", "--json").stdout)
    assert value == {"address": site.address, "explanation": report.explain(site.address).splitlines()}


def test_explain_elsewhere(vmi: Vmi, hello: Path) -> None:
    result = vmi("patch", hello, "--explain", "0xdeadbeef")
    assert result.stdout == "0xdeadbeef is neither a sensitive instruction nor in a window\n"


def test_nothing_to_do(vmi: Vmi, hello: Path) -> None:
    result = vmi("patch", hello)
    assert result.exit_code == 2
    assert sentence(result) == (
        "vmi: nothing to do: name an output with -o, or ask with --report or --explain"
    )


@pytest.mark.parametrize("option", ["-o", "--report"])
def test_input_is_never_overwritten(vmi: Vmi, hello: Path, tmp_path: Path, option: str) -> None:
    (tmp_path / "link").symlink_to(hello)
    before = hello.read_bytes()
    for name in (hello, tmp_path / "link"):
        result = vmi("patch", hello, option, name)
        assert result.exit_code == 2
        assert sentence(result) == f"vmi: {str(name)!r} is the input; the output needs a name of its own"
    assert hello.read_bytes() == before


def test_unwritable_output_is_known_before_the_work(
    vmi: Vmi, hello: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rewrite, "make_plan", None)
    target = tmp_path / "no" / "out"
    result = vmi("patch", hello, "-o", target)
    assert result.exit_code == 6
    assert sentence(result) == (
        f"vmi: output {str(target)!r} can't be written: there is no folder {str(target.parent)!r}"
    )


def test_patched_kernel_is_refused(vmi: Vmi, hello: Path, tmp_path: Path) -> None:
    vmi("patch", hello, "-o", tmp_path / "once")
    result = vmi("patch", tmp_path / "once", "-o", tmp_path / "twice")
    assert result.exit_code == 4
    assert "patched" in sentence(result)
    assert not (tmp_path / "twice").exists()


@pytest.mark.parametrize("verb", [("patch", "-o", "OUT"), ("inspect",)])
@pytest.mark.parametrize(
    "content",
    [b"", b"text\n", b"\x7fELF", b"\x7fELF" + bytes(100), b"\x1f\x8b", b"\x7fELF\1\1\1" + b"\xff" * 99],
    ids=["empty", "text", "magic", "zeros", "gzip", "ones"],
)
def test_what_is_no_kernel_is_refused(
    vmi: Vmi, tmp_path: Path, verb: tuple[str, ...], content: bytes
) -> None:
    (tmp_path / "in").write_bytes(content)
    name, *options = verb
    result = vmi(name, tmp_path / "in", *(tmp_path / "out" if one == "OUT" else one for one in options))
    assert result.exit_code == 4
    assert "internal error" not in sentence(result)
    assert not (tmp_path / "out").exists()


def test_kernel_without_sites(vmi: Vmi, tmp_path: Path) -> None:
    code = assemble("again:\n nop\n jmp short again", VADDR).code
    (tmp_path / "idle").write_bytes(make(Plan([Piece(VADDR, code)])))
    result = vmi("patch", tmp_path / "idle", "-o", tmp_path / "out")
    assert result.exit_code == 8
    assert sentence(result) == "vmi: there is no sensitive instruction among the 2 of this kernel"
    assert not (tmp_path / "out").exists()
    assert vmi("patch", tmp_path / "idle", "-o", tmp_path / "out", "--allow-empty").exit_code == 0
    assert inspect_file((tmp_path / "out").read_bytes()).patched


def test_inspect(vmi: Vmi, hello: Path, tmp_path: Path) -> None:
    vmi("patch", hello, "-o", tmp_path / "out", "-q")
    for path in (hello, tmp_path / "out"):
        found = inspect_file(path.read_bytes())
        assert vmi("inspect", path).stdout == found.to_text()
        assert vmi("inspect", path, "-v").stdout == found.to_text(sites=True)
        assert json.loads(vmi("inspect", path, "--json").stdout) == json.loads(found.to_json())
    assert json.loads(vmi("inspect", tmp_path / "out", "--json").stdout)["patched"] is True


def test_inspect_of_nothing(vmi: Vmi) -> None:
    result = vmi("inspect", "missing")
    assert (result.exit_code, sentence(result)) == (
        4,
        "vmi: kernel 'missing' can't be read: No such file or directory",
    )
