"""What a web page leaves behind when its text is taken out badly."""

from __future__ import annotations

import html
import re
from random import Random
from urllib.parse import quote

from bench.planted_faults.faults import Way, edited, inserted
from bench.planted_faults.sources import AMAZON, BANKING, BITEXT, C4, COT, DUMMY, GSM8K, SCITLDR, SICK, XQUAD


def _paragraph(text: str, rng: Random) -> str:
    return f"<p>{text}</p>"


def _breaks(text: str, rng: Random) -> str | None:
    new = re.sub(r"\n|(?<=[.?!]) ", lambda match: rng.choice(("<br>", "<br/>", "<br />")), text)
    return new if new != text else text + "<br><br>"


def _escaped(text: str, rng: Random) -> str | None:
    new = html.escape(text, quote=True)
    return new if new != text else None


def _hard_spaces(text: str, rng: Random) -> str:
    return inserted(text, "&nbsp;&nbsp;", rng)


def _escaped_twice(text: str, rng: Random) -> str | None:
    new = html.escape(html.escape(text, quote=True))
    return new if new != text else None


def _styled(text: str, rng: Random) -> str:
    words = text.split(" ")
    place = rng.randrange(len(words))
    words[place] = f'<span style="color:#333;font-weight:bold" class="hl">{words[place]}</span>'
    return " ".join(words)


def _script(text: str, rng: Random) -> str:
    return text + " <script>window.dataLayer=window.dataLayer||[];function gtag(){dataLayer.push(arguments);}</script>"


def _link(text: str, rng: Random) -> str:
    return inserted(text, '<a href="/help/topics?id=42" target="_blank">read more</a>', rng)


def _percent(text: str, rng: Random) -> str:
    return quote(text)


def _numbered(text: str, rng: Random) -> str | None:
    new = text.replace("'", "&#39;").replace('"', "&#34;")
    return new if new != text else None


def _comment(text: str, rng: Random) -> str:
    return f"<div class='content'><!-- start of article -->{text}</div>"


def _bulletin(text: str, rng: Random) -> str:
    return f"[quote][b]{text}[/b][/quote]"


_PAGES = (GSM8K, SCITLDR, COT, DUMMY, BANKING, BITEXT, SICK, AMAZON, XQUAD)
_ALL = (*_PAGES, C4)

WAYS = {
    "markup": tuple(
        Way(edited(what, edit), sources)
        for what, edit, sources in (
            ("a paragraph's tags", _paragraph, _ALL),
            ("breaks as tags", _breaks, _ALL),
            ("quotes escaped for HTML", _escaped, _ALL),
            ("hard spaces as HTML writes them", _hard_spaces, _ALL),
            ("escaped for HTML twice", _escaped_twice, _ALL),
            ("a styled span", _styled, _ALL),
            ("a script", _script, _ALL),
            ("a link as a tag", _link, _ALL),
            ("escaped as an address", _percent, (GSM8K, BANKING, SICK, XQUAD)),
            ("quotes as numbered entities", _numbered, _ALL),
            ("a comment and a box", _comment, _ALL),
            ("marks of a bulletin board", _bulletin, _PAGES),
        )
    )
}
