# SPDX-License-Identifier: GPL-2.0-only
"""`vmi rom`: what it writes is what the library builds, what it refuses is a sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Vmi, sentence
from vmi.rom.build import FLAVOURS, build
from vmi.rom.inspect import inspect


@pytest.mark.parametrize("flavour", sorted(FLAVOURS))
def test_build_writes_the_image(vmi: Vmi, tmp_path: Path, flavour: str) -> None:
    out = tmp_path / "rom.bin"
    result = vmi("rom", "build", flavour, "-o", out)
    image = build(flavour).image
    assert result.exit_code == 0
    assert out.read_bytes() == image
    assert sentence(result) == f"vmi: {flavour} ROM, {len(image)} bytes, written to {out}"
    assert result.stdout == ""


def test_build_quiet_and_json(vmi: Vmi, tmp_path: Path) -> None:
    out = tmp_path / "rom.bin"
    result = vmi("rom", "build", "native", "-o", out, "-q", "--json")
    size = len(build("native").image)
    assert json.loads(result.stdout) == {"flavour": "native", "output": str(out), "size": size}
    assert result.stderr == ""


def test_build_with_a_hole(vmi: Vmi, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert vmi("rom", "build", "vmware", "--virtual-top", "F8000000", "-o", out).exit_code == 0
    assert out.read_bytes() == build("vmware", 0xF8000000).image != build("vmware").image
    assert "\nvirtual top   0xf8000000\n" in vmi("rom", "inspect", out).stdout
    result = vmi("rom", "build", "vmware", "--virtual-top", "10", "-o", tmp_path / "none")
    assert result.exit_code == 10
    assert result.stderr == (
        "vmi: virtual_top must be 0 or a whole page from 0xf0000000 to 0xfffff000, but it is 0x10\n"
    )
    assert not (tmp_path / "none").exists()


def test_build_of_no_flavour(vmi: Vmi, tmp_path: Path) -> None:
    result = vmi("rom", "build", "nonsense", "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert sentence(result) == (
        f"vmi: there is no ROM flavour 'nonsense'; there are {', '.join(sorted(FLAVOURS))}"
    )
    assert not (tmp_path / "out").exists()


def test_build_needs_an_output(vmi: Vmi) -> None:
    result = vmi("rom", "build", "native")
    assert result.exit_code == 2
    assert "--output" in result.stderr


def test_build_into_a_folder_is_refused(vmi: Vmi, tmp_path: Path) -> None:
    result = vmi("rom", "build", "native", "-o", tmp_path)
    assert result.exit_code == 6
    assert sentence(result) == f"vmi: output {str(tmp_path)!r} can't be written: Is a directory"


def test_list(vmi: Vmi) -> None:
    rows = json.loads(vmi("rom", "list", "--json").stdout)
    assert [row["flavour"] for row in rows] == sorted(FLAVOURS)
    assert {"native", "vmware"} <= FLAVOURS.keys()
    for row in rows:
        assert row["size"] == len(build(row["flavour"]).image)
        assert row["summary"] == FLAVOURS[row["flavour"]].summary
    lines = vmi("rom", "list").stdout.splitlines()[1:]
    assert [line.split()[:2] for line in lines] == [[row["flavour"], str(row["size"])] for row in rows]


@pytest.mark.parametrize("flavour", sorted(FLAVOURS))
def test_inspect_finds_no_fault_in_our_own(vmi: Vmi, tmp_path: Path, flavour: str) -> None:
    (tmp_path / "rom.bin").write_bytes(build(flavour).image)
    by_name, by_file = vmi("rom", "inspect", flavour), vmi("rom", "inspect", tmp_path / "rom.bin")
    assert (by_name.exit_code, by_name.stderr) == (0, "")
    assert by_name.stdout == by_file.stdout
    assert by_name.stdout.strip() == inspect(build(flavour).image).to_text().strip()
    value = json.loads(vmi("rom", "inspect", flavour, "--json").stdout)
    assert value == json.loads(json.dumps(inspect(build(flavour).image).to_json()))


def test_inspect_ends_with_10_at_a_fault(vmi: Vmi, tmp_path: Path) -> None:
    image = bytearray(build("native").image)
    image[-1] ^= 1  # the checksum
    (tmp_path / "rom.bin").write_bytes(image)
    result = vmi("rom", "inspect", tmp_path / "rom.bin")
    assert result.exit_code == 10
    for fault in inspect(bytes(image)).faults:
        assert fault in result.stdout


@pytest.mark.parametrize(
    "content",
    [b"", b"\x55\xaa", b"\0" * 65536, b"\x55\xaa\xff" + b"\xff" * 5000],
    ids=["empty", "signature", "zeros", "ones"],
)
def test_inspect_of_rubbish(vmi: Vmi, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "rom.bin").write_bytes(content)
    result = vmi("rom", "inspect", tmp_path / "rom.bin")
    assert result.exit_code == 10
    assert "internal error" not in result.stderr


def test_inspect_shows_no_control_characters(vmi: Vmi, tmp_path: Path) -> None:
    image = build("native").image.replace(b"VMI ROM", b"\x1b[2J\x07\r\n")
    (tmp_path / "rom.bin").write_bytes(image)
    text = vmi("rom", "inspect", tmp_path / "rom.bin").stdout
    assert all(char.isprintable() or char == "\n" for char in text)


def test_inspect_of_nothing(vmi: Vmi) -> None:
    result = vmi("rom", "inspect", "nonsense")
    assert result.exit_code == 2
    assert sentence(result) == (
        f"vmi: ROM 'nonsense' is neither a flavour ({', '.join(sorted(FLAVOURS))}) nor the name of a file"
    )
