"""A few rows in another script or language than the rest.

The script is that of most letters. Languages in Latin letters are told by the little words that every sentence of them has.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from operator import itemgetter

from luthier.data.checks.findings import Finding, Notes, Severity, excerpt
from luthier.data.checks.view import Layout, RowView

KINDS: Mapping[str, Severity] = {"other-script": "error", "other-language": "error"}

_SCRIPTS = {
    "Latin": "A-Za-zÀ-ɏḀ-ỿ",
    "Cyrillic": "Ѐ-ԯ",
    "Greek": "Ͱ-Ͽἀ-῿",
    "Hebrew": "֐-׿",
    "Arabic": "؀-ۿݐ-ݿࢠ-ࣿ",
    "Devanagari": "ऀ-ॿ",
    "Bengali": "ঀ-৿",
    "Tamil": "஀-௿",
    "Thai": "฀-๿",
    "Georgian": "Ⴀ-ჿ",
    "Armenian": "԰-֏",
    "Kana": "぀-ヿ",
    "Hangul": "ᄀ-ᇿ가-힣",
    "Han": "㐀-鿿",
}
_SIGNS = {name: re.compile(f"[{signs}]") for name, signs in _SCRIPTS.items()}
_OTHER = re.compile("[^\x00-\u024f\u2000-\u2bff\ufe0f\U0001f000-\U0001faff]")

_LITTLE_WORDS = {
    "English": "the and of to is in that it for you with was are this have not be on at your what how which from by an as can",
    "German": "der die das und ist nicht ein eine einen mit für auf den dem von zu sich wie auch es ich sie werden oder wird kann sind im zum bei nach haben wir aus dass",
    "French": "le la les des et est une un dans que pour pas vous nous avec sur du qui au ce il elle plus sont par mais être cette je votre ou aux ont peut",
    "Spanish": "el la los las de que y en un una es por con para no se del al lo como más su sus pero este son está puede si ha hay mi usted o esta",
    "Italian": "il la che di e un una per non è con del della sono le gli nel dei si come più anche al questo da alla ha puoi delle lo essere o mi",
    "Portuguese": "o a os as de que e em um uma para não com por do da se mais como é mas ao dos das foi na no você seu sua ou são pode está isso",
    "Dutch": "de het een en van is niet dat in op te voor met zijn aan er die ook als maar om bij je dit wordt naar kan ik of deze hebben worden uit heeft",
    "Swedish": "och att det som en är på för av med inte den till ett har de jag om du vi kan från så men eller var ska när hur",
    "Polish": "nie się na jest że jak co od za po czy ale dla tak jego może przez oraz są być ten tym które gdzie mam moja mojej",
    "Turkish": "bir ve bu için ile da de çok ne olarak daha gibi var olan kadar ben sen değil ama nasıl mı en her sonra neden benim",
    "Indonesian": "yang dan di untuk dengan ini itu tidak dari adalah pada dalam saya anda akan ke atau bisa juga apa telah oleh karena bagaimana",
    "Czech": "je se na že jak co pro ale tak by jsem jsou nebo také když které která být může není jako",
    "Romanian": "și este în nu că la cu pe de un o mai să pentru din sunt ce care dar fi au acest sau prin am cum",
}
_LANGUAGES = {name: frozenset(word for word in words.split() if len(word) > 1) for name, words in _LITTLE_WORDS.items()}
_OF_WORD: dict[str, tuple[str, ...]] = {
    word: tuple(name for name, words in _LANGUAGES.items() if word in words)
    for word in frozenset().union(*_LANGUAGES.values())
}
_WORD = re.compile(r"[^\W\d_]+")
_ABOUT_LANGUAGE = re.compile(
    r"(?i)\b(?:translat\w*|spanish|french|german|italian|portuguese|dutch|russian|chinese|japanese|korean|arabic|hindi|latin|"
    r"greek|hebrew|turkish|polish|swedish|languages?|word for)\b|翻译|英文|英语|拼音|法语|西班牙|语言"
)
_WORDS_READ = 60


def learn(views: Sequence[RowView], layout: Layout) -> Mapping[str, tuple[str, str]]:
    """The usual script and language of each peer that has them."""
    scripts: dict[str, Counter[str]] = defaultdict(Counter)
    languages: dict[str, Counter[str]] = defaultdict(Counter)
    for view in views:
        for cell in view.cells:
            if script := script_of(cell.text):
                scripts[cell.peer][script] += 1
            if language := language_of(cell.text)[0]:
                languages[cell.peer][language] += 1
    return {peer: (_usual(found), _usual(languages[peer])) for peer, found in scripts.items()}


def _usual(found: Counter[str]) -> str:
    most = found.most_common(1)
    return most[0][0] if most and found.total() >= 20 and most[0][1] >= 0.9 * found.total() else ""


def look(view: RowView, usual: Mapping[str, tuple[str, str]], layout: Layout, notes: Notes) -> None:
    """Note texts of another script or language than their peers'."""
    suspects = []
    for cell in view.cells:
        if cell.part in ("id", "label") or cell.peer not in usual:
            continue
        script, language = usual[cell.peer]
        for kind in KINDS:
            notes.looked(kind, cell.peer)
        own = script_of(cell.text) if script else ""
        if own and own != script and not {own, script} <= {"Han", "Kana"} and _is_long(cell.text, own):
            suspects.append((cell, "other-script", f"most letters are {own}, where others are {script}"))
        elif not own or own == "Latin":
            spoken, margin = language_of(cell.text) if language else ("", 0.0)
            if not spoken and language:
                spoken, margin = _without_usual_words(cell.text, language)
            if spoken and spoken != language and margin >= 0.12:
                suspects.append((cell, "other-language", f"the text is {spoken}, where others are {language}"))
        if script and own == script and (mixed := _mixed_in(cell.text, script)):
            suspects.append((cell, "other-script", f"{excerpt(mixed, 0, 30)} is of another script than the rest"))
    is_about = bool(suspects) and any(_ABOUT_LANGUAGE.search(cell.text) for cell in view.cells)
    for cell, kind, found in () if is_about else suspects:
        mend = "Leave this row out, unless the model is to learn that language too."
        said = f"{found}: {excerpt(cell.text, 0, 30)}."
        finding = Finding(kind, KINDS[kind], view.origin.file, view.origin.line, cell.field, said, mend)
        notes.suspect(cell.peer, finding, 0.015)


def _without_usual_words(text: str, language: str) -> tuple[str, float]:
    """The likeliest language of a sentence with accents and without a little word of the usual language; then it is sure."""
    words = _WORD.findall(text[:600].lower())[:_WORDS_READ]
    if len(words) < 6 or text.isascii() or any(word in _LANGUAGES[language] for word in words):
        return "", 0.0
    counts = Counter(name for word in words for name in _OF_WORD.get(word, ()))
    most = counts.most_common(1)
    return (most[0][0], 1.0) if most and most[0][1] >= 2 else ("", 0.0)


def _is_long(text: str, script: str) -> bool:
    """Whether it is more than a name of another script."""
    return len(_SIGNS[script].findall(text[:600])) >= (20 if script == "Latin" else 6)


def _mixed_in(text: str, script: str) -> str:
    """A run of at least a few letters of another script in a text of this one; none for Latin words in other texts."""
    if script != "Latin" or text.isascii() or not _OTHER.search(text):
        return ""
    run = _OTHER_RUN.search(text)
    return run[0] if run and len(run[0]) >= 15 else ""


_OTHER_RUN = re.compile(
    "(?:["
    + "".join(signs for name, signs in _SCRIPTS.items() if name not in ("Latin", "Greek"))
    + "]+[ ,،、。]?){1,40}"
)


_EIGHT_LETTERS = re.compile("[A-Za-zÀ-ɏ](?:[^A-Za-zÀ-ɏ]*[A-Za-zÀ-ɏ]){7}")


def script_of(text: str) -> str:
    """The script of most letters; nothing for a text of less than 8."""
    head = text[:600]
    if head.isascii() or not _OTHER.search(head):
        return "Latin" if _EIGHT_LETTERS.search(head) else ""
    counts = {name: len(signs.findall(head)) for name, signs in _SIGNS.items()}
    for name in ("Han", "Kana", "Hangul"):
        counts[name] *= 3  # one sign says as much as several letters
    name = max(counts, key=counts.__getitem__)
    return name if counts[name] >= 8 and counts[name] >= 0.5 * sum(counts.values()) else ""


def language_of(text: str) -> tuple[str, float]:
    """The language of a text in Latin letters, and by how much of its words it is ahead of the next; nothing if unsure."""
    words = _WORD.findall(text[:600].lower())[:_WORDS_READ]
    if len(words) < 5:
        return "", 0.0
    held = [word for word in words if word in _OF_WORD]
    counts = Counter(name for word in held for name in _OF_WORD[word])
    if not counts:
        return "", 0.0
    name, most = max(counts.items(), key=itemgetter(1))
    ahead = (most - max((count for other, count in counts.items() if other != name), default=0)) / len(words)
    distinct = len({word for word in held if name in _OF_WORD[word]})
    return (name, ahead) if distinct >= 3 and most >= 0.18 * len(words) and ahead > 0.04 else ("", 0.0)
