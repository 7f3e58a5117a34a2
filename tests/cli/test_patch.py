# SPDX-License-Identifier: GPL-2.0-only
"""`vmi patch` and `vmi inspect`: files in, files out, nothing half done, every refusal a sentence."""

from __future__ import annotations

import gzip
import io
import json
import sys
import time
from pathlib import Path

import pytest

from tests.cli.conftest import Vmi, sentence
from tests.patcher.elfs import VADDR, Piece, Plan, make
from tests.patcher.schemas import breaches
from vmi import samples
from vmi.cli.common import PIPE_WIDTH, Ui
from vmi.cli.patch import _PHASES
from vmi.errors import VerifyError
from vmi.patcher import Options, inspect_file, patch, rewrite
from vmi.patcher.elf import load
from vmi.patcher.explain import of_patch
from vmi.patcher.report import schema
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


def test_output_in_gzip(vmi: Vmi, hello: Path, tmp_path: Path) -> None:
    out, back = tmp_path / "out.gz", tmp_path / "back"
    assert vmi("patch", hello, "-o", out).exit_code == 0
    assert gzip.decompress(out.read_bytes()) == patch(hello.read_bytes()).data
    assert vmi("inspect", out).exit_code == 0
    assert vmi("unpatch", out, "-o", back).exit_code == 0
    assert back.read_bytes() == hello.read_bytes()


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
    done = patch(hello.read_bytes())
    site = done.report.sites[0]
    expected = of_patch(hello.read_bytes(), done.data, done.report).explain(site.address)
    result = vmi("patch", hello, "--explain", f"{site.address:x}")
    assert (result.exit_code, result.stdout) == (0, expected.to_text(PIPE_WIDTH))
    value = json.loads(vmi("patch", hello, "--explain", f"{site.address:x}", "--json").stdout)
    assert value == expected.to_json()


def test_explain_by_name(vmi: Vmi, hello: Path) -> None:
    image = load(hello.read_bytes())
    start = next(symbol.address for symbol in image.symbols if symbol.name == "putchar")
    by_name = vmi("patch", hello, "--explain", "putchar+2").stdout
    assert by_name == vmi("patch", hello, "--explain", f"{start + 2:#x}").stdout
    assert by_name.startswith(f"{start + 2:#x} (putchar+0x2)")
    result = vmi("patch", hello, "--explain", "nowhere+2")
    assert result.exit_code == 2
    assert sentence(result) == (
        "vmi: address 'nowhere+2' is not understood: expected up to 8 hexadecimal digits, like c0100000, or "
        "a symbol of the kernel, like start+0x10"
    )


def test_explain_elsewhere(vmi: Vmi, hello: Path) -> None:
    result = vmi("patch", hello, "--explain", "0xdeadbeef")
    assert result.stdout == "0xdeadbeef is neither a sensitive instruction nor in a window\n"


def test_nothing_to_do(vmi: Vmi, hello: Path) -> None:
    result = vmi("patch", hello)
    assert result.exit_code == 2
    assert sentence(result) == (
        "vmi: nothing to do: name an output with -o, or ask with --report, --explain or --dry-run"
    )


def test_a_dry_run_does_all_but_write(vmi: Vmi, hello: Path, tmp_path: Path) -> None:
    result = vmi("patch", hello, "-o", tmp_path / "out", "--dry-run")
    assert (result.exit_code, result.stderr) == (0, "vmi: nothing was written\n")
    assert not (tmp_path / "out").exists()
    assert result.stdout == vmi("patch", hello, "-o", tmp_path / "out").stdout
    assert (tmp_path / "out").exists()


def test_a_dry_run_checks_what_it_would_write(
    vmi: Vmi, hello: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise VerifyError("the output doesn't match the plan: not today")

    monkeypatch.setattr(rewrite, "verify", refuse)
    for options in (("--dry-run",), ("-o", tmp_path / "out")):
        result = vmi("patch", hello, *options)
        assert (result.exit_code, result.stdout) == (6, "")
        assert sentence(result) == "vmi: the output doesn't match the plan: not today"
    assert not (tmp_path / "out").exists()


def test_a_dry_run_has_no_report_file(vmi: Vmi, hello: Path, tmp_path: Path) -> None:
    result = vmi("patch", hello, "--dry-run", "--report", tmp_path / "report")
    assert result.exit_code == 2
    assert sentence(result) == (
        "vmi: --dry-run writes nothing: instead of --report FILE, --json prints the report"
    )
    content = json.loads(vmi("patch", hello, "--dry-run", "--json").stdout)
    assert list(breaches(content, schema(), schema())) == []


def test_every_phase_has_a_name_for_people(hello: Path) -> None:
    told: list[str] = []
    done = patch(hello.read_bytes(), progress=told.append)
    assert told == list(done.seconds)
    assert set(told) == set(_PHASES)


def test_a_terminal_sees_what_is_done_now(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    with Ui().phases("patching k\x1b[31m") as phase:
        phase("checking")
        time.sleep(0.3)  # the line is drawn some ten times a second
    assert "patching k^[[31m: checking" in stream.getvalue()
    quiet = io.StringIO()
    monkeypatch.setattr(sys, "stderr", quiet)
    for ui in (Ui(), Ui(quiet=True)):
        with ui.phases("patching") as phase:
            phase("checking")
    assert quiet.getvalue() == ""


def test_place(vmi: Vmi, hello: Path, tmp_path: Path) -> None:
    assert vmi("patch", hello, "-o", tmp_path / "out", "--place", "low-memory").exit_code == 0
    done = patch(hello.read_bytes(), Options(place="low-memory"))
    assert (tmp_path / "out").read_bytes() == done.data
    assert done.report.strategy == "low-memory"
    result = vmi("patch", hello, "-o", tmp_path / "out", "--place", "somewhere")
    assert result.exit_code == 2
    assert sentence(result) == (
        "vmi: expected auto, after-image, linux, low-memory or an address as the segment's place, "
        "got 'somewhere'"
    )


def test_no_undo(vmi: Vmi, hello: Path, tmp_path: Path) -> None:
    vmi("patch", hello, "-o", tmp_path / "out", "--no-undo")
    assert (tmp_path / "out").read_bytes() == patch(hello.read_bytes(), Options(undo=False)).data
    assert vmi("unpatch", tmp_path / "out", "-o", tmp_path / "again").exit_code == 4
    vmi("patch", hello, "-o", tmp_path / "out")
    assert vmi("unpatch", tmp_path / "out", "-o", tmp_path / "again").exit_code == 0
    assert (tmp_path / "again").read_bytes() == hello.read_bytes()


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


@pytest.mark.parametrize("options", [("--tactics",), ("--calls",), ("--tactics", "--calls", "--sites")])
def test_inspect_tables(vmi: Vmi, hello: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    vmi("patch", hello, "-o", tmp_path / "out", "-q")
    for path in (hello, tmp_path / "out"):
        found = inspect_file(path.read_bytes())
        result = vmi("inspect", path, *options)
        assert (result.exit_code, result.stderr) == (0, "")
        rows = [line.split() for line in result.stdout.splitlines()]
        if "--tactics" in options:
            for name, count in found.counts.items():
                assert any(row[:2] == [name, str(count)] for row in rows)
            assert all(f"    1  {reason}" in result.stdout for reason in found.reasons)
        if "--calls" in options:
            for name, count in found.forms.items():
                assert any(row[: len(name.split()) + 1] == [*name.split(), str(count)] for row in rows)
        if "--sites" in options:
            lines = found.site_lines() or ["there are no records: the file isn't patched"]
            assert result.stdout.endswith("\n".join(lines) + "\n")


def test_inspect_explains(vmi: Vmi, hello: Path, tmp_path: Path) -> None:
    vmi("patch", hello, "-o", tmp_path / "out", "-q")
    found = inspect_file((tmp_path / "out").read_bytes())
    assert found.table is not None
    slot = found.table.sites[0].slot
    answer = found.explainer().explain(slot)
    assert vmi("inspect", tmp_path / "out", "--explain", f"{slot:x}").stdout == answer.to_text(PIPE_WIDTH)
    value = json.loads(vmi("inspect", tmp_path / "out", "--explain", f"{slot:x}", "--json").stdout)
    assert value == answer.to_json()
    result = vmi("inspect", hello, "--explain", f"{slot:x}")
    assert result.exit_code == 4
    assert sentence(result) == (
        "vmi: the file isn't patched: `vmi patch --explain` says what would become of it"
    )


def test_inspect_of_nothing(vmi: Vmi) -> None:
    result = vmi("inspect", "missing")
    assert (result.exit_code, sentence(result)) == (
        4,
        "vmi: kernel 'missing' can't be read: No such file or directory",
    )
