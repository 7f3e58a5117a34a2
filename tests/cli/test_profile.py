# SPDX-License-Identifier: GPL-2.0-only
"""`vmi run --profile` writes what a run showed; `vmi header` gives out the header for guests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import Vmi, sentence
from vmi import samples
from vmi.patcher import marks, pagetables, profile
from vmi.patcher.plan import make_plan

PAGING = samples.get("paging-annotated")


def test_a_run_gives_a_profile_of_its_kernel(vmi: Vmi, tmp_path: Path) -> None:
    target = tmp_path / "run.json"
    plain = vmi("run", PAGING.path)
    result = vmi("run", PAGING.path, "--profile", target)
    assert (result.exit_code, result.stdout) == (plain.exit_code, plain.stdout) == (33, PAGING.expected)

    found, image = profile.load(target.read_bytes()), profile.image_of(PAGING.path.read_bytes())
    profile.check_kernel(found, image)
    assert (found.displacement, found.outside) == (0, 0)
    assert found.total > 200
    assert found.instructions > 70_000
    sites = pagetables.choose(image, profile.candidates(found))
    assert sites.refused == ()
    marked = [r for r in marks.slots(image) if r.kind is marks.Kind.ENTRY]
    assert all(any(r.start <= address < r.end for r in marked) for address in sites.forms)
    assert len(make_plan(image, extra=sites.forms).placements) == len(make_plan(image).placements)


def test_profiles_of_two_runs_are_the_same(vmi: Vmi, tmp_path: Path) -> None:
    for name in ("a", "b"):
        vmi("run", "sample:paging", "--profile", tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--rom", "native"), "--profile needs a native run, so it can't be combined with --rom or --full"),
        (("--full",), "--profile needs a native run, so it can't be combined with --rom or --full"),
    ],
)
def test_only_a_native_run_has_a_profile(
    vmi: Vmi, tmp_path: Path, options: tuple[str, ...], expected: str
) -> None:
    result = vmi("run", PAGING.path, "--profile", tmp_path / "run.json", *options)
    assert result.exit_code == 2
    assert sentence(result) == f"vmi: {expected}"
    assert not (tmp_path / "run.json").exists()


def test_a_profile_is_of_a_kernel(vmi: Vmi, tmp_path: Path) -> None:
    result = vmi("run", "--bios", tmp_path / "bios", "--profile", tmp_path / "run.json")
    assert sentence(result) == "vmi: --profile is for a KERNEL, so it can't be combined with --bios"


def test_a_kernel_that_can_not_be_patched_has_no_profile(vmi: Vmi, tmp_path: Path) -> None:
    (tmp_path / "flat").write_bytes(b"\xf4")
    result = vmi("run", tmp_path / "flat", "--protocol", "flat", "--profile", tmp_path / "run.json")
    assert result.exit_code == 4
    assert sentence(result) == "vmi: not an ELF file: expected it to start with 7f 45 4c 46, got f4"


def test_the_profile_must_have_a_place(vmi: Vmi, tmp_path: Path) -> None:
    result = vmi("run", PAGING.path, "--profile", tmp_path / "none" / "run.json")
    assert result.exit_code == 6
    assert "can't be written" in sentence(result)


def test_the_header_is_the_one_that_the_samples_are_built_with(vmi: Vmi, tmp_path: Path) -> None:
    result = vmi("header")
    assert result.exit_code == 0
    assert "#define VMI_GUEST_H" in result.stdout
    assert vmi("header", "-o", tmp_path / "vmi_guest.h").stdout == ""
    assert (tmp_path / "vmi_guest.h").read_text() == result.stdout
