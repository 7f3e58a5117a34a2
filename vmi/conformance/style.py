# SPDX-License-Identifier: GPL-2.0-only
"""The style sheet of the report's page: for wide and narrow windows, light and dark, and paper.

Colours are variables, each with a contrast of at least 4.5 to what is behind it. The matrix scrolls by
itself, so that its first row and column can stay where they are.
"""

from __future__ import annotations

STYLE = """
:root{color-scheme:light dark;--ink:#1b1f24;--paper:#fff;--soft:#57606a;--line:#d0d7de;--band:#f0f3f6;
--good:#116329;--waived:#7d4e00;--error:#6f2fd0;--bad:#a40e26;--badpaper:#ffe3e0}
@media(prefers-color-scheme:dark){:root{--ink:#e6edf3;--paper:#0d1117;--soft:#9aa4af;--line:#3d444d;--band:#1c232b;
--good:#56d364;--waived:#e3b341;--error:#d2a8ff;--bad:#ff9e97;--badpaper:#471a1d}}
*{box-sizing:border-box}
body{font:15px/1.45 system-ui,sans-serif;margin:1.5rem auto;max-width:80rem;padding:0 1rem;
color:var(--ink);background:var(--paper);overflow-wrap:anywhere}
h1{font-size:1.5rem;margin:.2rem 0}h2{font-size:1.15rem;margin:1.8rem 0 .5rem}
.sum{font-size:1.1rem;margin:.3rem 0}.sum b{padding:.1rem .5rem;border:1px solid;border-radius:.3rem}
table{border-collapse:collapse}th,td{text-align:left;padding:.25rem .5rem;border-bottom:1px solid var(--line);
vertical-align:top}thead th,tr:first-child>th{font-weight:600}.n{text-align:right;white-space:nowrap}
.facts th{font-weight:600;color:var(--soft);white-space:nowrap}.facts{width:100%}.facts td{width:100%}
code,pre{font:.9em/1.4 ui-monospace,monospace}
.command{display:inline-block;max-width:100%;background:var(--band);padding:.15rem .4rem;border-radius:.3rem;
user-select:all;-webkit-user-select:all;overflow-wrap:anywhere}
details{margin:.5rem 0;border:1px solid var(--line);border-radius:.3rem;padding:0 .8rem}
summary{cursor:pointer;padding:.4rem 0;font-weight:600}details[open]{padding-bottom:.7rem}
details p{margin:.4rem 0 .2rem}ul{margin:.2rem 0 .4rem;padding-left:1.2rem}
dt{margin-top:.5rem;font-weight:600}dd{margin:0;color:var(--soft)}
pre{overflow-x:auto;margin:.2rem 0 .6rem 1rem}
small{color:var(--soft);font-weight:400;font-size:.87em}.ids{display:block;padding-left:1.1rem}
.wide{overflow-x:auto}.wide td,.wide th{white-space:nowrap}
.PASS{color:var(--good)}.SKIP{color:var(--soft)}.WAIVED{color:var(--waived)}.ERROR{color:var(--error)}
.FAIL,.TIMEOUT,.CRASH{color:var(--bad);background:var(--badpaper)}
.bad .v{padding:0 .3rem;border-radius:.2rem}
input{margin:0 .2rem 0 0;vertical-align:-.1em}label{margin-right:1rem;white-space:nowrap;cursor:pointer}
.matrix{overflow:auto;max-height:92vh;border:1px solid var(--line);margin-top:.5rem;overflow-wrap:normal}
.matrix table{border-collapse:separate;border-spacing:0;width:100%}
.matrix thead th{position:sticky;top:0;z-index:2;background:var(--band);vertical-align:bottom}
.matrix thead th+th{text-align:center;font-size:.8em;line-height:1.2;padding:.3rem;min-width:3.6rem;
white-space:nowrap}
.matrix th:first-child{position:sticky;left:0;z-index:1;background:var(--paper);font-weight:400;
min-width:20rem;border-right:1px solid var(--line)}
.matrix thead th:first-child{z-index:3;background:var(--band);font-weight:600}
.matrix tbody .group th{background:var(--band);font-weight:600;border-right:0}
.group span{position:sticky;left:.5rem}
.matrix tbody b{display:inline-block;white-space:nowrap}
.matrix td{text-align:center;padding:.25rem .2rem;font-size:.85em}
.matrix .FAIL,.matrix .TIMEOUT,.matrix .CRASH,.matrix .ERROR,.matrix .WAIVED{font-weight:700;font-size:.75em}
@media(max-width:40rem){body{margin:.5rem auto;padding:0 .6rem;font-size:14px}
.facts,.facts tr,.facts th,.facts td{display:block;width:100%}.facts th{border:0;padding-bottom:0}
.matrix th:first-child{min-width:11.5rem;max-width:11.5rem;font-size:.88em}
.matrix tbody .group th{max-width:none}
.matrix thead th+th{min-width:3.2rem}label{display:inline-block;padding:.3rem 0}}
@media print{.matrix{max-height:none;overflow:visible}input,label{display:none}}
"""
