# SPDX-License-Identifier: GPL-2.0-only
"""The folder of a snapshot: whole or not there when it is written, and checked when it is read."""

from __future__ import annotations

import errno
import json
import os

import pytest

from vmi.errors import BadInput, OutputError
from vmi.native import page_file, snapshot_folder
from vmi.native.snapshot_folder import FORMAT, MANIFEST, VERSION, check_target, reading, writing

PAGES = [(0, b"a" * 4096), (300, b"b" * 4096)]


def write(folder, text="one", pages=PAGES):
    with writing(folder) as files:
        files.write("console.log", [b"some ", b"text"])
        files.write("ram.pages", page_file.encode(pages))
        files.write_json("state.json", {"text": text, "numbers": [1, 2]})


def everything(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "snapshot"
    write(made)
    return made


def refused(folder, sentence, read=lambda files: files.read_json("state.json")):
    """Reading the folder must end in this sentence."""
    with pytest.raises(BadInput) as caught, reading(folder) as files:
        read(files)
    assert str(caught.value) == sentence


def test_what_was_written_is_read(folder):
    with reading(folder) as files:
        assert files.read("console.log") == b"some text"
        assert list(files.pages("ram.pages")) == PAGES
        assert files.read_json("state.json") == {"text": "one", "numbers": [1, 2]}
        assert "console.log" in files
        assert "disk.pages" not in files


def test_the_manifest_names_all_files(folder):
    manifest = json.loads((folder / MANIFEST).read_bytes())
    assert (manifest["format"], manifest["version"]) == (FORMAT, VERSION)
    assert {name: each["size"] for name, each in manifest["files"].items()} == {
        path.name: path.stat().st_size for path in folder.iterdir() if path.name != MANIFEST
    }


def test_the_same_content_gives_the_same_bytes(tmp_path, folder):
    write(tmp_path / "again")
    assert everything(tmp_path / "again") == everything(folder)


# -- writing ------------------------------------------------------------------------------------


def test_an_older_snapshot_is_replaced(folder):
    with writing(folder) as files:
        files.write_json("state.json", {"text": "two"})
    assert everything(folder).keys() == {MANIFEST, "state.json"}
    assert [path.name for path in folder.parent.iterdir()] == ["snapshot"]


def test_an_empty_folder_and_a_link_are_taken(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "target")
    write(tmp_path / "empty")
    write(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert everything(tmp_path / "target") == everything(tmp_path / "empty")


def in_the_way(tmp_path, kind):
    """Something that must not be overwritten."""
    target = tmp_path / "target"
    if kind == "file":
        target.write_bytes(b"precious")
    else:
        target.mkdir()
        (target / "thesis.tex").write_bytes(b"precious")
        if kind == "snapshot with more in it":
            (target / MANIFEST).write_bytes(b"{}")
    return target


@pytest.mark.parametrize("check", [check_target, write])
@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("file", "there is a file of that name"),
        ("folder", "the folder holds something else"),
        ("snapshot with more in it", "the folder holds something else"),
    ],
)
def test_what_is_no_snapshot_is_left_alone(tmp_path, kind, why, check):
    target = in_the_way(tmp_path, kind)
    with pytest.raises(OutputError) as caught:
        check(target)
    assert str(caught.value) == f"snapshot {str(target)!r} can't be written: {why}"
    assert list(tmp_path.iterdir()) == [target]
    assert target.is_file() or (target / "thesis.tex").read_bytes() == b"precious"


def test_places_that_cant_be_written(tmp_path, monkeypatch):
    absent = tmp_path / "absent" / "snapshot"
    why = f"there is no folder {str(tmp_path / 'absent')!r}"
    with pytest.raises(OutputError) as caught:
        check_target(absent)
    assert str(caught.value) == f"snapshot {str(absent)!r} can't be written: {why}"
    with pytest.raises(OutputError) as caught:
        write(absent)
    assert str(caught.value) == f"snapshot {str(absent)!r} can't be written: No such file or directory"
    with pytest.raises(OutputError) as caught:
        check_target("a\0b")
    assert str(caught.value) == "snapshot 'a\\x00b' can't be written: embedded null byte"
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(OutputError) as caught:
        check_target(tmp_path / "snapshot")
    why = f"no permission to create files in {str(tmp_path)!r}"
    assert str(caught.value) == f"snapshot {str(tmp_path / 'snapshot')!r} can't be written: {why}"


def test_places_that_can(tmp_path, folder):
    check_target(folder)
    check_target(tmp_path / "new")
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize("call", range(4))
def test_a_full_disk_leaves_what_was_there(folder, monkeypatch, call):
    """It may become full with any of the files; the system tells when they are forced to the disk."""
    before, calls, real = everything(folder), [], os.fsync

    def fsync(descriptor):
        calls.append(descriptor)
        if len(calls) == call + 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(snapshot_folder.os, "fsync", fsync)
    with pytest.raises(OutputError) as caught:
        write(folder, "two")
    assert str(caught.value) == f"snapshot {str(folder)!r} can't be written: No space left on device"
    assert everything(folder) == before
    assert list(folder.parent.iterdir()) == [folder]


def test_an_error_of_the_writer_leaves_what_was_there(folder):
    before = everything(folder)
    with pytest.raises(KeyError), writing(folder) as files:
        files.write("console.log", [b"x"])
        raise KeyError
    assert everything(folder) == before
    assert list(folder.parent.iterdir()) == [folder]


def test_an_older_snapshot_comes_back_if_the_new_one_cant_get_its_name(folder, monkeypatch):
    before, real = everything(folder), type(folder).rename

    def rename(self, target):
        if (self / MANIFEST).exists() and b"two" in (self / "state.json").read_bytes():
            raise OSError(errno.EIO, "Input/output error")
        return real(self, target)

    monkeypatch.setattr(type(folder), "rename", rename)
    with pytest.raises(OutputError) as caught:
        write(folder, "two")
    assert str(caught.value) == f"snapshot {str(folder)!r} can't be written: Input/output error"
    assert everything(folder) == before
    assert list(folder.parent.iterdir()) == [folder]


# -- reading ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["absent", "file", "empty"])
def test_no_snapshot(tmp_path, name):
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "empty").mkdir()
    place = tmp_path / name
    refused(place, f"snapshot {str(place)!r} can't be restored: it has no manifest.json")


@pytest.mark.parametrize(
    ("manifest", "why"),
    [
        (b"\xff", "its manifest.json is not JSON"),
        (b"{", "its manifest.json is not JSON"),
        (b"[" * 100_000, "its manifest.json is not JSON"),
        (b"[]", "its manifest.json is that of something else"),
        (b"{}", "its manifest.json is that of something else"),
        (b'{"format":"machine snapshot","version":2}', "its version must be 1, but it is 2"),
        (b'{"format":"machine snapshot"}', "its state is not of this version"),
        (
            b'{"format":"machine snapshot","version":1,"program":"x","files":[]}',
            "its state is not of this version",
        ),
    ],
)
def test_other_manifests(folder, manifest, why):
    (folder / MANIFEST).write_bytes(manifest)
    refused(folder, f"snapshot {str(folder)!r} can't be restored: {why}")


def test_a_missing_file(folder):
    (folder / "state.json").unlink()
    name = str(folder / "state.json")
    why = f"file {name!r} can't be read: No such file or directory"
    refused(folder, f"snapshot {str(folder)!r} can't be restored: {why}")
    (folder / "ram.pages").unlink()
    sentence = f"snapshot {str(folder)!r} can't be read: No such file or directory"
    refused(folder, sentence, lambda files: list(files.pages("ram.pages")))


def test_a_file_that_the_manifest_does_not_name(folder):
    sentence = f"snapshot {str(folder)!r} can't be restored: its state is not of this version"
    refused(folder, sentence, lambda files: files.read("other.log"))


@pytest.mark.parametrize(
    ("name", "change", "why"),
    [
        ("state.json", lambda data: data.replace(b"one", b"two"), "its bytes are not those that were saved"),
        ("state.json", lambda data: data[:-1], "it has {size} bytes and not {wanted}"),
        ("ram.pages", lambda data: data + data, "group 0 follows group 1"),
        ("ram.pages", lambda data: data[: 8 + data[4]], "it has {size} bytes and not {wanted}"),
        ("ram.pages", lambda data: data[:-1], "it ends in the middle of a group"),
        ("ram.pages", lambda data: b"", "it has 0 bytes and not {wanted}"),
    ],
)
def test_damage(folder, name, change, why):
    path = folder / name
    data = path.read_bytes()
    changed = change(data)
    path.write_bytes(changed)
    why = why.format(size=len(changed), wanted=len(data))

    def read(files):
        files.read_json(name) if name == "state.json" else list(files.pages(name))

    refused(folder, f"snapshot {str(folder)!r} can't be restored: {name} is damaged: {why}", read)


def test_pages_that_are_not_those_that_were_saved(folder):
    changed = [(0, b"a" * 4096), (300, b"c" * 4096)]
    packed = b"".join(page_file.encode(changed))
    assert len(packed) == (folder / "ram.pages").stat().st_size
    (folder / "ram.pages").write_bytes(packed)
    why = "ram.pages is damaged: its bytes are not those that were saved"
    sentence = f"snapshot {str(folder)!r} can't be restored: {why}"
    refused(folder, sentence, lambda files: list(files.pages("ram.pages")))


def test_a_file_that_has_grown_is_not_read_whole(folder):
    with (folder / "state.json").open("ab") as file:
        file.truncate(1 << 30)
    size = len(json.dumps({"text": "one", "numbers": [1, 2]}, indent=1)) + 1
    why = f"file {str(folder / 'state.json')!r} is larger than {size} bytes"
    refused(folder, f"snapshot {str(folder)!r} can't be restored: {why}")
