"""The frame of an HTML report: style, numbers in one format, images inside the file."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Sequence
from html import escape

from PIL import Image

from lavit.charts import THIN

MISSING = "–"


def integer(value: float) -> str:
    """12345 -> 12 345."""
    return f"{value:,.0f}".replace(",", THIN) if math.isfinite(value) else MISSING


def decimal(value: float, places: int = 3) -> str:
    return f"{value:.{places}f}".replace("-", "\u2212") if math.isfinite(value) else MISSING


def percent(share: float) -> str:
    """0.967 -> 96.7 %."""
    return f"{100 * share:.1f}{THIN}%" if math.isfinite(share) else MISSING


def duration(seconds: float) -> str:
    """4.25 -> 4.2 s, 292 -> 4 min 52 s, 7380 -> 2 h 3 min."""
    if not math.isfinite(seconds):
        return MISSING
    if seconds < 59.95:
        return f"{seconds:.1f}{THIN}s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60}{THIN}min {whole % 60}{THIN}s"
    return f"{whole // 3600}{THIN}h {whole % 3600 // 60}{THIN}min"


def image_tag(image: Image.Image, alt: str, css: str = "", photograph: bool = False) -> str:
    """An ``<img>`` that holds its pixels: PNG, or JPEG for a photograph (a tenth of the size, no visible loss)."""
    buffer = io.BytesIO()
    if photograph:
        image.convert("RGB").save(buffer, "JPEG", quality=90, subsampling=0, optimize=True)
    else:
        image.save(buffer, "PNG", optimize=True)
    kind = "jpeg" if photograph else "png"
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    size = f'width="{image.width}" height="{image.height}"'
    return f'<img class="{css}" {size} alt="{escape(alt)}" src="data:image/{kind};base64,{data}">'


def table(
    head: Sequence[str], rows: Iterable[Sequence[str]], name: str, numbers: Sequence[int] = (), stacked: bool = False
) -> str:
    """A table whose first column names the row. Cells are HTML, the rest is text.

    numbers: columns of numbers. stacked: on a phone a row becomes two lines, its last cell below the others.
    """
    css = [' class="number"' if i in numbers else "" for i in range(len(head))]
    # A row that is laid out as a grid is a row to a screen reader only if it says so.
    table_role, row_role, head_role, name_role, cell_role = (
        (f' role="{role}"' if stacked else "") for role in ("table", "row", "columnheader", "rowheader", "cell")
    )
    titles = [f'<th scope="col"{head_role}{c}>{escape(h)}</th>' for h, c in zip(head, css, strict=True)]
    body = []
    for first, *rest in rows:
        cells = [f"<td{cell_role}{c}>{cell}</td>" for cell, c in zip(rest, css[1:], strict=True)]
        body.append(f'<tr{row_role}><th scope="row"{name_role}>{first}</th>{"".join(cells)}</tr>')
    # The focusable region lets a keyboard scroll a table that is wider than a phone.
    return (
        f'<div class="scroll" role="region" aria-label="{escape(name)}" tabindex="0">'
        f"<table{table_role}{' class=stacked' if stacked else ''}>"
        f"<thead><tr{row_role}>{''.join(titles)}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def section(anchor: str, title: str, lead: str, body: str) -> str:
    """A part of the page; ``lead`` and ``body`` are HTML."""
    return f'<section id="{anchor}"><h2>{escape(title)}</h2><p class="lead">{lead}</p>{body}</section>'


def document(title: str, body: str) -> str:
    """The whole page. The policy in its head forbids every request, so that the file stays what it was when written."""
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f'<link rel="icon" href="data:,"><title>{escape(title)}</title><style>{STYLE}</style></head>'
        f"<body>{body}</body></html>\n"
    )


STYLE = """
:root {
  color-scheme: light dark;
  --page: #f7f6f2; --card: #ffffff; --ink: #1c1e22; --soft: #565c66; --rule: #dfddd6; --hair: #eceae4;
  --blue: #2457c5; --wash: #2457c51c; --amber: #a34c00; --green: #126b3a; --red: #b3261e; --band: #1c1e220a;
}
@media (prefers-color-scheme: dark) { :root {
  --page: #121316; --card: #1b1d21; --ink: #eceae5; --soft: #a9aeb8; --rule: #353840; --hair: #282b31;
  --blue: #86adff; --wash: #86adff26; --amber: #f2ab63; --green: #73d39a; --red: #ff9a90; --band: #ffffff0c;
} }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; scroll-behavior: smooth; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI",
  Roboto, "Helvetica Neue", "Liberation Sans", Arial, sans-serif; font-variant-numeric: tabular-nums; }
header, main, footer { max-width: 1120px; margin: 0 auto; padding: 0 20px; }
header { padding-top: 56px; }
footer { padding-top: 40px; padding-bottom: 56px; color: var(--soft); font-size: 14px; }
a { color: inherit; }
:focus-visible { outline: 3px solid var(--blue); outline-offset: 2px; }
.eyebrow { margin: 0; color: var(--blue); font-size: 13px; font-weight: 650; letter-spacing: .09em;
  text-transform: uppercase; }
h1 { margin: 8px 0 14px; font-size: clamp(30px, 5.2vw, 50px); line-height: 1.08; letter-spacing: -.025em;
  font-weight: 720; text-wrap: balance; }
h2 { margin: 0 0 6px; font-size: 24px; line-height: 1.2; letter-spacing: -.015em; }
h3 { margin: 0 0 2px; font-size: 15px; line-height: 1.35; }
header .lead { max-width: 47em; font-size: 18px; }
.lead { margin: 0 0 18px; max-width: 46em; color: var(--soft); text-wrap: pretty; }
section { margin-top: 60px; scroll-margin-top: 20px; min-width: 0; }
.numbers { display: grid; grid-template-columns: repeat(3, 1fr); gap: 1px; margin: 30px 0 0; padding: 0;
  overflow: hidden;
  list-style: none; background: var(--card); border: 1px solid var(--rule); border-radius: 14px; }
.numbers li { box-shadow: 1px 1px 0 var(--rule); }
.numbers a { display: block; height: 100%; padding: 18px 20px; text-decoration: none; }
.numbers a:hover b { text-decoration: underline; text-decoration-thickness: 2px; text-underline-offset: 4px; }
.numbers a:focus-visible { outline-offset: -3px; }
.numbers b { display: block; font-size: clamp(23px, 3vw, 33px); line-height: 1.15; letter-spacing: -.02em;
  font-weight: 680; }
.numbers span { display: block; margin-top: 4px; color: var(--soft); font-size: 14px; line-height: 1.4; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(320px, 100%), 1fr)); gap: 18px; }
.photos { grid-template-columns: repeat(auto-fill, minmax(min(440px, 100%), 1fr)); }
.card { margin: 0; padding: 14px; background: var(--card); border: 1px solid var(--rule); border-radius: 14px;
  min-width: 0; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 8px; align-items: start; }
.pair img { display: block; width: 100%; height: auto; border-radius: 6px; }
.scene .pair { grid-template-columns: 5fr 11fr; gap: 12px; }
.scene .count { display: block; line-height: 1.35; }
.scene .count b { display: block; margin: 0 0 3px; font-size: 34px; }
.scene .count .end { display: block; margin-top: 6px; }
.scene .pixels { image-rendering: pixelated; }
.count { display: flex; align-items: baseline; gap: 7px; margin: 12px 0 5px; font-size: 14px; color: var(--soft); }
.count b { color: var(--ink); font-size: 21px; line-height: 1; letter-spacing: -.01em; }
.count .end { margin-left: auto; white-space: nowrap; }
.meter { height: 6px; border-radius: 3px; background: var(--hair); overflow: hidden; }
.meter i { display: block; height: 100%; background: var(--blue); border-radius: 3px; }
.card dl { display: grid; grid-template-columns: auto 1fr; gap: 3px 10px; margin: 12px 0 0; font-size: 14px;
  line-height: 1.45; }
.card dt { color: var(--soft); }
.card dd { margin: 0; overflow-wrap: anywhere; }
mark { background: none; color: inherit; font-weight: 650; text-decoration: underline wavy 1.5px;
  text-underline-offset: 3px; }
.card dl.asked { grid-template-columns: 3fr 2fr; }
.scene .pair dl { margin: 0; }
.read mark { color: var(--red); }
.verdict { display: inline-block; font-weight: 650; white-space: nowrap; }
.right { color: var(--green); } .wrong { color: var(--red); }
.two { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(420px, 100%), 1fr)); gap: 0 36px;
  align-items: start; }
.small { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(310px, 100%), 1fr)); gap: 16px; }
.small .card p { margin: 0 0 8px; color: var(--soft); font-size: 13.5px; line-height: 1.4; }
.phases { margin: 0 0 18px; padding: 0; list-style: none; display: flex; flex-wrap: wrap; gap: 6px 22px;
  font-size: 14px; }
.phases b { display: inline-grid; place-items: center; min-width: 22px; height: 22px; margin-right: 7px;
  border-radius: 11px;
  background: var(--wash); color: var(--blue); font-size: 13px; }
.phases span { color: var(--soft); }
h3.group { margin: 26px 0 12px; font-size: 18px; }
.chart { display: block; width: 100%; height: auto; max-width: 560px; }
.chart text { font-size: 12px; fill: var(--soft); font-family: inherit; }
.chart .name { font-size: 12px; }
.chart .strong { fill: var(--ink); font-weight: 650; }
.chart .phase { fill: var(--blue); font-weight: 650; }
.axis { stroke: var(--soft); } .grid { stroke: var(--hair); } .band { fill: var(--band); }
.chart .line { fill: none; stroke: var(--blue); stroke-width: 2; stroke-linejoin: round; }
.chart .mark, .chart .bar { fill: var(--blue); }
.chart .area { fill: var(--wash); }
.chart .dots { stroke: var(--blue); stroke-width: 4.4; stroke-linecap: round; stroke-opacity: .62; }
.chart .box { fill: var(--wash); }
.chart .mean { fill: none; stroke: var(--amber); stroke-width: 2.5; }
.chart .switch { fill: none; stroke: var(--soft); stroke-width: 1.3; stroke-dasharray: 4 4; }
.scroll { position: relative; overflow-x: auto; background: var(--card);
  border: 1px solid var(--rule); border-radius: 14px; }
table { width: 100%; border-collapse: collapse; font-size: 14.5px; line-height: 1.45; }
th, td { padding: 9px 14px; text-align: left; vertical-align: top; border-top: 1px solid var(--hair); }
thead th { border-top: 0; color: var(--soft); font-size: 13px; font-weight: 600; white-space: nowrap; }
tbody th { font-weight: 600; }
tbody tr:first-child > * { border-top-color: var(--rule); }
.number { text-align: right; white-space: nowrap; }
td.bars { width: 56%; }
.probe th, .probe td { border-top: 0; padding-top: 2px; padding-bottom: 2px; vertical-align: middle; }
.probe tbody tr:first-child > * { border-top: 1px solid var(--hair); padding-top: 12px; }
.probe tbody tr:last-child > * { padding-bottom: 12px; }
.probe tbody tr > th:first-child[rowspan] { padding-bottom: 12px; }
.probe tbody tr > th:first-child[rowspan] { vertical-align: top; padding-top: 12px; }
.probe .from { font-weight: 400; color: var(--soft); white-space: nowrap; }
.track { display: flex; align-items: center; gap: 8px; white-space: nowrap; }
.track i { display: block; height: 13px; min-width: 2px; border-radius: 0 3px 3px 0; border: 1.5px solid var(--soft); }
.track .tokens { background: var(--blue); border-color: var(--blue); }
.track .encoder { background: repeating-linear-gradient(115deg, var(--amber) 0 2px, transparent 2px 6px);
  border-color: var(--amber); }
.share { height: 9px; margin: 5px 0 3px; min-width: 2px; border-radius: 0 3px 3px 0; background: var(--blue); }
code, pre { font-family: ui-monospace, "SF Mono", Menlo, Consolas, "Liberation Mono", monospace; font-size: 13.5px; }
pre { margin: 0 0 18px; padding: 14px 16px; overflow-x: auto; background: var(--card); border: 1px solid var(--rule);
  border-radius: 14px; }
td code { overflow-wrap: anywhere; }
.empty { margin: 0; padding: 14px 16px; border: 1px dashed var(--rule); border-radius: 14px; color: var(--soft); }
@media (max-width: 620px) {
  header { padding-top: 32px; } section { margin-top: 44px; } header .lead { font-size: 16.5px; }
  header, main, footer { padding-left: 16px; padding-right: 16px; }
  .numbers { grid-template-columns: 1fr 1fr; } .numbers a { padding: 14px; } .numbers span { font-size: 13px; }
  th, td { padding-left: 10px; padding-right: 10px; }
  .stacked, .stacked tbody { display: block; }
  .stacked thead { position: absolute; clip-path: inset(50%); height: 1px; overflow: hidden; }
  .stacked tr { display: grid; grid-template-columns: 1fr auto auto; gap: 0 12px; padding: 9px 12px;
    border-top: 1px solid var(--hair); }
  .stacked tbody tr:first-child { border-top: 0; }
  .stacked tbody tr > * { padding: 0; border: 0; }
  .stacked td:last-child { grid-column: 1 / -1; color: var(--soft); font-size: 13.5px; }
}
@media (prefers-reduced-motion: reduce) { html { scroll-behavior: auto; } }
@media print { .card, .chart, tr { break-inside: avoid; } section { margin-top: 32px; } }
"""
