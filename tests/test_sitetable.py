# SPDX-License-Identifier: GPL-2.0-only
"""Header and records survive packing; damaged ones are refused; the documented layout is the real one."""

from __future__ import annotations

import re
import struct
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmi import sitetable
from vmi.errors import BadInput
from vmi.sitetable import Header, LinkRecord, SiteFlag, SiteRecord, Tactic

BASE = 0xC0200000
WORD = st.integers(0, 0xFFFFFFFF)
HEADERS = st.builds(Header, **{f.name: WORD for f in fields(Header)})
SITES = st.builds(
    SiteRecord,
    slot=WORD,
    length=st.integers(0, 255),
    call=st.integers(0, 255),
    tactic=st.sampled_from(sitetable.TACTIC_CODES),
    flags=st.sampled_from([SiteFlag(n) for n in range(16)]),
    adaptor=WORD,
    site=WORD,
)
LINKS = st.builds(LinkRecord, address=WORD, call=st.integers(0, 255))


@given(HEADERS, st.lists(SITES, max_size=9), st.lists(LINKS, max_size=9))
def test_a_segment_reads_back_as_it_was_written(
    header: Header, sites: list[SiteRecord], links: list[LinkRecord]
) -> None:
    sites.sort(key=lambda record: record.slot)
    links.sort(key=lambda record: record.address)
    sites_at = BASE + 0x80
    links_at = sites_at + len(sites) * sitetable.SITE_SIZE
    header = replace(header, sites=sites_at, site_count=len(sites), links=links_at, link_count=len(links))
    segment = header.pack().ljust(0x80, b"\0") + sitetable.pack_sites(sites) + sitetable.pack_links(links)
    found = sitetable.parse(segment, BASE)
    assert found.header == header
    assert found.sites == tuple(sites)
    assert found.links == tuple(links)
    assert found.traps == tuple(record for record in sites if record.call == sitetable.NO_CALL)


def test_slots_that_were_not_connected_are_those_with_a_flag_of_the_header() -> None:
    flags = (SiteFlag.ISOLATED, SiteFlag.SILENT, SiteFlag.SILENT | SiteFlag.ISOLATED, SiteFlag(0))
    sites = [SiteRecord(BASE + 8 * n, 5, 7, Tactic.FORWARD, flag, 0, 8) for n, flag in enumerate(flags)]
    trap = SiteRecord(BASE + 0x40, 1, sitetable.NO_CALL, Tactic.TRAP, flags[2], 0, 8)
    for unconnected, expected in ((0, []), (SiteFlag.RECOVERED, []), (SiteFlag.ISOLATED, [sites[2]])):
        header = replace(good_header(), unconnected=unconnected)
        table = sitetable.SiteTable(header, (*sites, trap), ())
        assert list(table.unconnected) == expected
        assert table.traps == (trap,)


@given(st.binary(max_size=300))
def test_no_bytes_crash_the_reader(data: bytes) -> None:
    header = Header(*([0] * len(fields(Header)))).pack()
    for segment in (data, header[:8] + data):
        try:
            sitetable.parse(segment, BASE)
        except BadInput as error:
            assert str(error)


def good_header() -> Header:
    words = {f.name: 0 for f in fields(Header)} | {"sites": BASE + 0x80, "links": BASE + 0x80}
    return Header(**words)


@pytest.mark.parametrize(
    ("segment", "sentence"),
    [
        (b"ELF!" + bytes(96), r"expected a .vmi segment to start with b'VMIS', got b'ELF!'"),
        (b"VMIS\x01\0", "a .vmi header has 96 bytes, got 6"),
        (
            struct.pack("<4sHH", b"VMIS", 9, 68) + bytes(120),
            "expected a .vmi segment of version 2, got version 9",
        ),
        (
            struct.pack("<4sHH", b"VMIS", 2, 60) + bytes(120),
            "expected a .vmi header of at least 96 bytes, got 60",
        ),
        (
            replace(good_header(), site_count=1000).pack() + bytes(64),
            "the site table at 0xc0200080 with 1000 records lies outside the .vmi segment",
        ),
        (
            replace(good_header(), links=BASE - 8, link_count=1).pack() + bytes(64),
            "the link table at 0xc01ffff8 with 1 records lies outside the .vmi segment",
        ),
        (
            replace(good_header(), site_count=1).pack().ljust(0x80, b"\0") + b"\x77" * 16,
            "the site record for 0x77777777 has the unknown tactic 119",
        ),
    ],
)
def test_a_damaged_segment_gets_one_sentence(segment: bytes, sentence: str) -> None:
    with pytest.raises(BadInput) as caught:
        sitetable.parse(segment, BASE)
    assert str(caught.value) == sentence


def test_tactic_codes_never_change() -> None:
    """They are in files: new ones may only be added at the end."""
    assert [tactic.value for tactic in sitetable.TACTIC_CODES] == [
        "annotated", "in_place", "forward", "backward", "both", "merged", "springboard", "trap",
        "host", "edge",
    ]  # fmt: skip
    assert set(sitetable.TACTIC_CODES) | {Tactic.LEFT} == set(Tactic)


def test_the_page_about_the_format_tells_the_truth() -> None:
    """Offsets, names and sizes in docs/site-table.md are those of the code."""
    page = (Path(__file__).parents[1] / "docs" / "site-table.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (0x[0-9A-F]{2}) \| 4 \| `(\w+)` \|", page, re.MULTILINE)
    assert [(int(at, 16), name) for at, name in rows] == [
        (sitetable.header_offset(f.name), f.name) for f in fields(Header)
    ]
    assert f"{sitetable.HEADER_SIZE} bytes" in page
    assert f"{sitetable.SITE_SIZE} bytes" in page
    assert f"{sitetable.LINK_SIZE} bytes" in page
    for number, tactic in enumerate(sitetable.TACTIC_CODES):
        assert f"| {number} | `{tactic.value}` |" in page
    for kind in (sitetable.SiteFlag, sitetable.ImageFlag, sitetable.Status, sitetable.MapStatus):
        for member in kind:
            assert f"| {member.value} | `{member.name}` |" in page
