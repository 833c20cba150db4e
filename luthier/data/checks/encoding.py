"""Text that came through the wrong encoding, and signs that nobody sees.

Mojibake is UTF-8 that was read as Windows-1252 or Latin-1: written back as bytes and read as UTF-8, it is whole again, which
text that was right in the first place practically never is.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Iterator, Mapping

from luthier.data.checks.findings import Finding, Notes, Severity, excerpt
from luthier.data.checks.view import Cell, Layout, RowView

KINDS: Mapping[str, Severity] = {
    "not-utf8": "error",
    "lone-surrogate": "error",
    "mojibake": "error",
    "replacement-character": "error",
    "control-character": "error",
    "byte-order-mark": "error",
    "invisible-character": "error",
    "unusual-space": "warning",
    "html-entity": "error",
    "html-tag": "warning",
    "escaped-text": "error",
    "mixed-alphabets": "warning",
}

_CP1252 = "€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ"
_HIGH_RUN = re.compile(f"[\u0080-\u00ff{_CP1252}]{{2,}}")
_QUOTES_OF_MAC = re.compile("‚Ä[ìîôòúùêë¶]")
_SHREDS = re.compile(r"â€(?=[^\w\s]|$|\s)|[a-zß-ÿ]Ã(?=\s|$|[,.;:!?])|[ÃÂ](?=[\u00a0-\u00bf])|ï»¿|ï¿½")
_GBK_RUN = re.compile("[\u4e00-\u9fff\u3400-\u4dbf€]{4,}")
_CYRILLIC_RUN = re.compile("[\u0400-\u045f\u0490\u0491\u0080-\u00bf‚„…†‡€‰‹‘’“”•–—™›№]{4,}")
_ENTITY = re.compile(r"&(#\d{2,6}|#[xX][0-9a-fA-F]{2,5}|[A-Za-z][A-Za-z0-9]{1,30});")
_TAG = re.compile(
    r"</?(?:p|br|div|span|b|i|u|em|strong|li|ul|ol|a|td|tr|th|table|tbody|h[1-6]|hr|font|img|small|sup|sub|pre|blockquote|center|"
    r"nav|section|header|footer|article|form|input|button|label|html|head|body|meta|link|script|style|iframe|noscript|svg|video)"
    r"(?:\s[^<>]{0,400})?/?>|<!--|"
    r"\[(?P<mark>b|i|u|url|quote|img|code|color|size|list|center)(?:=[^\[\]]{1,80})?\][^\[\]]*\[/(?P=mark)\]",
    re.I,
)
_ABOUT_MARKUP = re.compile(r"```|\b(?:x?html5?|xml|css|svg|markup|jsx|bbcode)\b|=\s*[\"']<", re.I)
_TAGS = re.compile(r"<!?[-/]{0,2}[A-Za-z!][^<>]*>")
_IN_ADDRESS = re.compile(r"https?://\S+")
_PERCENT = re.compile(r"(?:[A-Za-z]+%20){2}|(?:%[0-9A-F]{2}){2}")
_ESCAPES = re.compile(r"\\u[0-9a-fA-F]{4}|\\x[0-9a-fA-F]{2}\\x[0-9a-fA-F]{2}|\\U000[0-9a-fA-F]{5}")
_LITERAL_BREAK = re.compile(r"(?<![\\A-Za-z:])\\n(?![a-z]{2}\w*[\\/])|(?<=[a-z.!?,:;])\\n(?=[A-Z\\\s\d*-]|$)")
_CONTROL = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f\u2400]|[\x80-\x84\x86-\x9f]|[\ue000-\uf8ff]")
_INVISIBLE = re.compile(
    "[\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\u00ad\ufff9-\ufffb\u180e\U000e0000-\U000e007f]|[\u200c\u200d]"
)
_SPACE = re.compile("[\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000\x0b\x0c\x85]")
_BREAKS = "\x0b\x0c\x85\u2028\u2029"
_MIXED = re.compile(
    "[A-Za-z]+[\u0400-\u04ff]+[A-Za-z]*|[\u0400-\u04ff]+[A-Za-z]+[\u0400-\u04ff]*|[A-Za-z]{2,}[\u0391\u0392\u0395-\u0397\u0399\u039a\u039c\u039d\u039f\u03a1\u03a4\u03a5\u03a7\u03bf\u03bd]+[A-Za-z]+"
)
_SURROGATE = re.compile("[\ud800-\udfff]")
_UNUSUAL = re.compile("[^\t\n\r\x20-\x7e]")

_SAVE_UTF8 = "Read the source with its own encoding and save it as UTF-8."


def look(view: RowView, layout: Layout, notes: Notes) -> None:
    """Note what is wrong with the letters of a row's texts."""
    is_about_markup: bool | None = None
    for cell in view.cells:
        text = cell.text
        if "\\" in text or "%" in text:
            _escapes(view, cell, notes)
        if "&" in text or "<" in text or "[/" in text:
            if is_about_markup is None:
                is_about_markup = any(_ABOUT_MARKUP.search(_TAGS.sub(" ", each.text)) for each in view.cells)
            if not is_about_markup:
                _markup(view, cell, notes)
        if not (text.isascii() and (text.isprintable() or not _UNUSUAL.search(text))):
            _unusual(view, cell, notes)


def _unusual(view: RowView, cell: Cell, notes: Notes) -> None:
    text, origin, place = cell.text, view.origin, cell.field
    if match := _SURROGATE.search(text):
        if 0xDC80 <= ord(match[0]) <= 0xDCFF:
            found = f"the byte 0x{ord(match[0]) - 0xDC00:02X} in {excerpt(text, match.start())} is not UTF-8."
            notes.tell("not-utf8", "error", origin, place, found, _SAVE_UTF8)
        else:
            found = f"half of a character (\\u{ord(match[0]):04x}, a surrogate without its other half) stands in it."
            notes.tell("lone-surrogate", "error", origin, place, found, "Remove it, or write the whole character.")
        return
    repaired = repaired_mojibake(text)
    if repaired != text:
        at = next((i for i, (a, b) in enumerate(zip(text, repaired, strict=False)) if a != b), 0)
        found = f"the text came through a wrong encoding: {excerpt(text, at)} should be {excerpt(repaired, at)}."
        notes.tell("mojibake", "error", origin, place, found, _SAVE_UTF8)
    elif match := _SHREDS.search(text):
        found = f"the text came through a wrong encoding: {excerpt(text, match.start(), match.end())}."
        notes.tell("mojibake", "error", origin, place, found, _SAVE_UTF8)
    for pattern, kind, what in _SIGNS:
        if match := pattern.search(text):
            found = f"{what} stands in it: {excerpt(text, match.start(), match.end())}."
            notes.tell(kind, "error", origin, place, found, "Take it out, or read the source with its own encoding.")
    _unseen(view, cell, notes)
    if match := _MIXED.search(text):
        found = f"the word {match[0]!r} mixes letters of two alphabets that look alike."
        _suspect(view, cell, notes, "mixed-alphabets", found, "Write it in one alphabet.", 0.005)


_SIGNS = (
    (re.compile("\ufffd"), "replacement-character", "a sign that replaced an unreadable one"),
    (_CONTROL, "control-character", "a control character, or one that no standard names,"),
    (re.compile("\ufeff"), "byte-order-mark", "a byte order mark (U+FEFF)"),
)


def _unseen(view: RowView, cell: Cell, notes: Notes) -> None:
    text = cell.text
    for match in _INVISIBLE.finditer(text):
        if match[0] in "\u200c\u200d" and joins(text, match.start()):
            continue
        name = unicodedata.name(match[0], "a sign that is not seen").lower()
        found = f"{name} (U+{ord(match[0]):04X}) stands in it: {excerpt(text, match.start(), match.end())}."
        _suspect(view, cell, notes, "invisible-character", found, "Take it out.", 0.02)
        break
    spaces = [match for match in _SPACE.finditer(text) if not _is_usual(text, match)]
    unusual = next((match for match in spaces if match[0] in _BREAKS), spaces[0] if spaces else None)
    if unusual is not None:
        match = unusual
        name = unicodedata.name(match[0], "a page break or line separator").lower()
        found = f"{name} (U+{ord(match[0]):04X}) stands for a space: {excerpt(text, match.start(), match.end())}."
        limit, level = (0.02, 0) if match[0] in _BREAKS else (0.005, 1)
        _suspect(view, cell, notes, "unusual-space", found, "Write a common space.", limit, level)


def joins(text: str, at: int) -> bool:
    """Whether a joiner is at its place: in an emoji, or in a script that is written with it."""
    around = text[max(0, at - 1) : at] + text[at + 1 : at + 2]
    return any(sign > "\u05ff" and not "\u1e00" <= sign <= "\u1fff" and not sign.isspace() for sign in around)


def _is_usual(text: str, match: re.Match[str]) -> bool:
    """The wide space of Chinese and Japanese, and the narrow ones that French and numbers are set with."""
    at = match.start()
    around = text[max(0, at - 1) : at] + text[at + 1 : at + 2]
    if match[0] == "\u3000":
        return any(sign > "\u2e7f" for sign in around) or at in (0, len(text) - 1)
    if any(sign in "–—" for sign in around):
        return match[0] in "\u2009\u200a\u202f"  # how dashes are set
    return match[0] in "\u00a0\u202f\u2009" and any(sign in "«»;:!?%€$£°" or sign.isdigit() for sign in around)


def _markup(view: RowView, cell: Cell, notes: Notes) -> None:
    text = cell.text
    entity = next((match for match in _ENTITY.finditer(text) if html.unescape(match[0]) != match[0]), None)
    if entity is not None:
        found = f"{entity[0]} was left of a web page: {excerpt(text, entity.start(), entity.end())}."
        _suspect(view, cell, notes, "html-entity", found, f"Write {html.unescape(entity[0])!r}.", 0.02)
    if tag := _TAG.search(text):
        found = f"{tag[0][:40]} was left of a web page: {excerpt(text, tag.start(), tag.end())}."
        _suspect(view, cell, notes, "html-tag", found, "Take the tag out.", 0.01)


def _escapes(view: RowView, cell: Cell, notes: Notes) -> None:
    text = cell.text
    if text[:1] in "{[" and text[-1:] in "}]":
        return  # JSON in a string has escapes of its own
    match = _ESCAPES.search(text) or _PERCENT.search(_IN_ADDRESS.sub("", text))
    if match is None and "\n" not in text and "`" not in text and ";" not in text:
        match = _LITERAL_BREAK.search(text)
    if match is not None:
        found = f"{match[0]} stands in it as letters: {excerpt(text, match.start(), match.end())}."
        mend = "Write the sign itself: the text was escaped once too often."
        _suspect(view, cell, notes, "escaped-text", found, mend, 0.01)


def _suspect(
    view: RowView, cell: Cell, notes: Notes, kind: str, found: str, mend: str, limit: float, level: int = 0
) -> None:
    origin = view.origin
    notes.suspect(
        cell.peer, Finding(kind, KINDS[kind], origin.file, origin.line, cell.field, found, mend), limit, level
    )


# ── mojibake undone ─────────────────────────────────────────────────────────────────────────────────────────────────


def repaired_mojibake(text: str) -> str:
    """The text with every run that reads as UTF-8 when written back as bytes read so; the text itself if none does."""
    for _ in range(3):  # text may have gone through the wrong encoding more than once
        better = _HIGH_RUN.sub(lambda match: _reread(match[0], "windows-1252"), _QUOTES_OF_MAC.sub(_from_mac, text))
        better = _GBK_RUN.sub(lambda match: _reread(match[0], "gbk"), better)
        better = _CYRILLIC_RUN.sub(lambda match: _reread(match[0], "windows-1251"), better)
        if better == text:
            return text
        text = better
    return text


def _from_mac(match: re.Match[str]) -> str:
    """A quote or dash whose three bytes were read with the table of old Macintoshes."""
    return match[0].encode("mac-roman").decode("utf-8", "replace")


def _reread(run: str, encoding: str) -> str:
    """The run read again as UTF-8, as long parts of it as allow it."""
    data = b"".join(_bytes_of(run, encoding))
    try:
        return _if_letters(data.decode("utf-8"), run)
    except UnicodeDecodeError:
        if encoding != "windows-1252":
            return run
    for start in range(len(run)):
        for end in range(len(run), start + 1, -1):
            try:
                part = b"".join(_bytes_of(run[start:end], encoding)).decode("utf-8")
            except UnicodeDecodeError:
                continue
            if _if_letters(part, run[start:end]) == part:
                return run[:start] + part + _reread(run[end:], encoding)
    return run


def _bytes_of(run: str, encoding: str) -> Iterator[bytes]:
    for sign in run:
        try:
            yield sign.encode(encoding)
        except UnicodeEncodeError:
            yield bytes([ord(sign)]) if ord(sign) < 256 else b"\xff"


def _if_letters(read: str, run: str) -> str:
    """What was read, if it is letters and signs that people write; else the run."""
    good = all(unicodedata.category(sign)[0] in "LMPSNZ" or sign in "\u200d\ufe0f\ufeff" for sign in read)
    return read if good and len(read) < len(run) else run
