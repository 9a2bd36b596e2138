"""Write the lab as one HTML file that holds everything, so it opens without a network."""

from __future__ import annotations

import os
from dataclasses import dataclass
from html import escape
from pathlib import Path

from lab.chapter import Chapter, Expectation, Outcome, quantity
from lab.svg import figure
from lab.terminal import comparison


@dataclass
class Section:
    """Hold one chapter as it ran; `reason` says why, if it didn't."""

    chapter: Chapter
    expectations: list[Expectation]
    outcome: Outcome
    seconds: float = 0.0
    reason: str = ""


STYLE = """
:root{--ink:#1c2430;--quiet:#667080;--paper:#fbfbf9;--card:#fff;--edge:#e2e4e8;--empty:#d9dce1;
--accent:#2566b8;color-scheme:light dark}
@media(prefers-color-scheme:dark){:root{--ink:#e6e9ee;--quiet:#98a2b0;--paper:#14171c;--card:#1b1f26;
--edge:#2c323c;--empty:#39404b;--accent:#7db4f5}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:900px;padding:32px 20px 80px;background:var(--paper);color:var(--ink);
font:16px/1.55 system-ui,sans-serif;overflow-wrap:anywhere}
h1{font-size:2rem;margin:0 0 4px}h2{font-size:1.35rem;margin:0 0 8px}
h2 span{color:var(--quiet);font-weight:400;margin-right:.5em}
header p,.quiet,footer{color:var(--quiet)}
nav ol{columns:2;padding-left:1.4em}a{color:var(--accent)}
section{background:var(--card);border:1px solid var(--edge);border-radius:12px;padding:24px 28px;
margin:22px 0}
table{border-collapse:collapse;width:100%;margin:16px 0;font-size:.93rem}
th{font-weight:500;color:var(--quiet);text-align:left;border-bottom:1px solid var(--edge)}
th,td{padding:6px 10px 6px 0;vertical-align:top}
td+td,th+th{text-align:right;white-space:nowrap}td small{display:block;font-weight:400;
color:var(--quiet)}.whisker{stroke:var(--ink);stroke-width:1.4;fill:none}
td.why,th.why{text-align:left;white-space:normal;
color:var(--quiet)}td.measured{font-weight:650}
figure{margin:22px 0 6px}figcaption{font-weight:600;margin-bottom:8px}
svg{width:100%;height:auto;display:block}svg text{fill:var(--ink);font:13px system-ui,sans-serif}
svg text.quiet{fill:var(--quiet);font-size:12px}
.grid{stroke:var(--edge)}.line{fill:none;stroke-width:2.2;stroke-linejoin:round}
.legend{color:var(--quiet);font-size:.87rem;margin-top:6px}.legend span{margin-right:1.4em}
.legend i{display:inline-block;width:11px;height:11px;border-radius:2px;margin-right:6px}
.pieces p{margin:6px 0;display:flex;gap:12px}.pieces span{color:var(--quiet);flex:0 0 70px}
.pieces code{flex:1;font:14px/1.7 ui-monospace,monospace;white-space:pre-wrap}
.pieces b{font-weight:400;padding:1px 0;border-radius:3px;
background:color-mix(in srgb,var(--tint) 30%,transparent)}
.pieces em{color:var(--quiet);font-style:normal}
.missing{border-left:3px solid #b8952a;padding-left:12px}
nav li{min-height:24px}.wide{overflow-x:auto}.wide table{overflow-wrap:normal}
@media(max-width:640px){figure{overflow-x:auto}figure svg{min-width:560px}
body{padding:20px 12px 60px}section{padding:18px 14px}nav ol{columns:1}
.pieces p{flex-wrap:wrap}.pieces code{flex-basis:100%;order:1}th,td{padding-right:8px}
thead{display:none}
tr{display:grid;grid-template-columns:auto auto 1fr;gap:0 18px;padding:8px 0;
border-bottom:1px solid var(--edge)}
td{padding:0}td+td{text-align:left;white-space:normal}td:first-child,td.why{grid-column:1/-1}
td:nth-child(n+2)::before{content:attr(data-is);display:block;font-weight:400;font-size:.8rem;
color:var(--quiet)}}
"""


# On a narrow screen a table scrolls by itself, also with the keys.
TABLE = '<div class="wide" tabindex="0" role="group" aria-label="figures"><table>'


ROOT = Path(__file__).resolve().parents[1]


def report(title: list[str], sections: list[Section], folder: Path = ROOT) -> str:
    """Write the report. `title`: lines about the run; `folder`: where the report will lie."""
    links = "".join(
        f'<li><a href="#{s.chapter.name}">{escape(s.chapter.title)}</a></li>' for s in sections
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Glasshouse: the lab</title><style>{STYLE}</style></head><body>"
        f"<header><h1>The lab</h1><p>{'<br>'.join(map(escape, title))}</p></header>"
        f"<nav><ol>{links}</ol></nav>"
        + "\n".join(_section(number, s, folder) for number, s in enumerate(sections, 1))
        + "<footer>Every figure here was measured while this report was made.</footer>"
        "</body></html>\n"
    )


def _section(number: int, section: Section, folder: Path) -> str:
    chapter, outcome = section.chapter, section.outcome
    parts = [
        f'<section id="{chapter.name}"><h2><span>{number}</span>{escape(chapter.title)}</h2>',
        f"<p>{escape(chapter.idea)}</p>",
    ]
    missing = [section.reason] if section.reason else outcome.not_shown
    if section.expectations:
        parts.append(_figures(section.expectations, outcome))
    if outcome.findings:
        parts.append(f"<ul>{''.join(f'<li>{escape(text)}</li>' for text in outcome.findings)}</ul>")
    parts += [f'<p class="missing">Not shown here: {escape(text)}</p>' for text in missing]
    parts += [figure(drawing) for drawing in outcome.drawings]
    source = Path(os.path.relpath(ROOT / chapter.read_next, folder)).as_posix()
    parts.append(
        f'<p class="quiet">Read next: <a href="{escape(source)}">{escape(chapter.read_next)}</a>,'
        f" {escape(chapter.read_for)} ({quantity(section.seconds, 's')})</p></section>"
    )
    return "\n".join(parts)


def _figures(expectations: list[Expectation], outcome: Outcome) -> str:
    """Write one table: what was expected, beside what was measured, and why it was expected."""
    rows = ""
    for item in expectations:
        cells = ["–", ""]
        if item.key in outcome.measured:
            ((_what, _expected, measured, ratio, tries),) = comparison([item], outcome)
            cells = [escape(measured), ratio]
            cells[0] += f"<small>{escape(tries)}</small>" if tries else ""
        rows += (
            f"<tr><td>{escape(item.what)}</td>"
            f'<td data-is="expected">{escape(quantity(item.value, item.unit))}</td>'
            f'<td data-is="measured" class="measured">{cells[0]}</td>'
            f'<td data-is="÷">{cells[1]}</td>'
            f'<td data-is="because" class="why">{escape(item.why)}</td></tr>'
        )
    return (
        f"{TABLE}<thead><tr><th>Predicted, then measured</th><th>expected</th><th>measured</th>"
        f'<th>÷</th><th class="why">expected because</th></tr></thead><tbody>{rows}</tbody></table>'
        "</div>"
    )
