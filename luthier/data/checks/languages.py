"""A few rows in another script or language than the rest.

The script is that of most letters. Languages in Latin letters are told by the little words that every sentence of them has.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter

from luthier.data.checks.findings import Finding, Notes, Severity, excerpt
from luthier.data.checks.view import Cell, Layout, RowView

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
    "German": "der die das und ist nicht ein eine einen mit für auf den dem von zu sich wie auch es ich sie werden oder wird kann sind im zum bei nach haben wir aus dass mein meine war hat noch immer bitte warum ihr ihre uns vor sehr haben wurde",
    "French": "le la les des et est une un dans que pour pas vous nous avec sur du qui au ce il elle plus sont par mais être cette je votre ou aux ont peut mon ma mes été ai était très bien fait où quand deux leur nos tout",
    "Spanish": "el la los las de que y en un una es por con para no se del al lo como más su sus pero este son está puede si ha hay mi usted o esta mis muy todavía también hace fue han yo ella cuando donde dos todo hoy",
    "Italian": "il la che di e un una per non è con del della sono le gli nel dei si come più anche al questo da alla ha puoi delle lo essere o mi mia mio ancora ho abbiamo molto perché dove quando stato era lei lui mi ti alle",
    "Portuguese": "o a os as de que e em um uma para não com por do da se mais como é mas ao dos das foi na no você seu sua ou são pode está isso ele ela meu minha ainda há já também muito quando onde dois isto este esta pela pelo",
    "Dutch": "de het een en van is niet dat in op te voor met zijn aan er die ook als maar om bij je dit wordt naar kan ik of deze hebben worden uit heeft mijn nog niet was waarom heb zo hun haar zou",
    "Swedish": "och att det som en är på för av med inte den till ett har de jag om du vi kan från så men eller var ska när hur min mitt hon han hade mycket här var",
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
_FEWEST_WORDS = 6
_SURE = 0.12
"""By how much of its words a text must be ahead in one language to be of it whatever its words are."""

_UNCOMMON = 0.4
_STRANGE = 0.1
_FAMILIAR = 0.5
"""Shares of a text's words that several rows have."""


@dataclass(frozen=True)
class Tongues:
    """The usual script and language of each peer that has them; the words that several rows have; and the peers whose texts
    nearly all are mostly made of those words."""

    usual: Mapping[str, tuple[str, str]]
    common: frozenset[str]
    familiar: frozenset[str]


@dataclass
class Spoken:
    """How many texts of each peer are of each language, or of a script where the language is not told; and how many characters
    there are of each script."""

    texts: Counter[tuple[str, str]] = field(default_factory=Counter)
    characters: Counter[str] = field(default_factory=Counter)

    def see(self, cell: Cell, script: str, language: str) -> None:
        """Count a text."""
        self.texts[cell.peer, language or (script and f"{script} letters") or UNTOLD] += 1
        self.characters[script or UNTOLD] += len(cell.text)

    def take(self, other: Spoken) -> None:
        """Add the texts of other rows."""
        self.texts.update(other.texts)
        self.characters.update(other.characters)

    @property
    def by_peer(self) -> dict[str, dict[str, int]]:
        """The counts of each peer, the most frequent first."""
        found: dict[str, dict[str, int]] = defaultdict(dict)
        for (peer, name), count in self.texts.most_common():
            found[peer][name] = count
        return dict(found)


UNTOLD = "too few letters"


def learn(views: Sequence[RowView], layout: Layout) -> Tongues:
    """The usual language of the first rows, and their words."""
    scripts: dict[str, Counter[str]] = defaultdict(Counter)
    languages: dict[str, Counter[str]] = defaultdict(Counter)
    rows_with: Counter[str] = Counter()
    for view in views:
        rows_with.update({word for cell in view.cells for word in _words_read(cell.text)})
        for cell in view.cells:
            if script := script_of(cell.text):
                scripts[cell.peer][script] += 1
            if language := language_of(cell.text)[0]:
                languages[cell.peer][language] += 1
    common = frozenset(word for word, rows in rows_with.items() if rows > max(2, len(views) // 500))
    usual = {peer: (_usual(found), _usual(languages[peer])) for peer, found in scripts.items()}
    return Tongues(usual, common, _familiar(views, common))


def _familiar(views: Sequence[RowView], common: frozenset[str]) -> frozenset[str]:
    """The peers of whose texts 98 of 100 have at least half of their words in common with others."""
    shares: dict[str, list[float]] = defaultdict(list)
    for view in views:
        for cell in view.cells:
            if len(words := _words_read(cell.text)) >= _FEWEST_WORDS:
                shares[cell.peer].append(_share_of(words, common))
    return frozenset(
        peer for peer, held in shares.items() if len(held) >= 20 and sorted(held)[len(held) // 50] >= _FAMILIAR
    )


def _words_read(text: str) -> list[str]:
    return _WORD.findall(text[:600].lower())[:_WORDS_READ]


def _share_of(words: Sequence[str], common: frozenset[str]) -> float:
    return sum(word in common for word in words) / len(words)


def _usual(found: Counter[str]) -> str:
    most = found.most_common(1)
    return most[0][0] if most and found.total() >= 20 and most[0][1] >= 0.9 * found.total() else ""


def look(view: RowView, tongues: Tongues, layout: Layout, notes: Notes, spoken_by: Spoken) -> None:
    """Count the languages of a row's texts, and note those of another script or language than their peers'."""
    suspects = []
    for cell in view.cells:
        if cell.part in ("id", "label"):
            continue
        letters = script_of(cell.text)
        told = language_of(cell.text) if letters in ("", "Latin") else ("", 0.0)
        if cell.peer not in layout.closed:
            spoken_by.see(cell, letters, told[0])
        script, language = tongues.usual.get(cell.peer, ("", ""))
        own = letters if script else ""
        if own and own != script and not {own, script} <= {"Han", "Kana"} and _is_long(cell.text, own):
            suspects.append((cell, "other-script", f"most letters are {own}, where others are {script}"))
        elif language and (not own or own == "Latin"):
            spoken, margin = told
            is_other = bool(spoken) and spoken != language and margin >= _SURE
            if not is_other and (not spoken or spoken != language):
                spoken = foreign(cell.text, language, tongues.common, is_familiar=cell.peer in tongues.familiar)
                is_other = bool(spoken)
            if is_other:
                suspects.append((cell, "other-language", f"the text is {spoken}, where others are {language}"))
        if script and own == script and (mixed := _mixed_in(cell.text, script)):
            suspects.append((cell, "other-script", f"{excerpt(mixed, 0, 30)} is of another script than the rest"))
    for cell, kind, found in suspects:
        if _is_about_language(view, found):
            continue
        mend = "Leave this row out, unless the model is to learn that language too."
        said = f"{found}: {excerpt(cell.text, 0, 30)}."
        finding = Finding(kind, KINDS[kind], view.origin.file, view.origin.line, cell.field, said, mend)
        notes.suspect(cell.peer, finding, 0.015)


def _is_about_language(view: RowView, found: str) -> bool:
    """Whether a row asks for a translation, or names the language that was found; a long text that it is about does not count."""
    asked = [cell.text for cell in view.cells if len(cell.text) <= _LONGEST_ASKED]
    name = next((name for name in _LANGUAGES if f"is {name}" in found), None)
    return any(
        _TRANSLATES.search(text) or (_ABOUT_LANGUAGE.search(text) if name is None else name in text) for text in asked
    )


_TRANSLATES = re.compile(r"(?i)\btranslat(?:e|ed|es|ing|ion)\b|翻译")
_LONGEST_ASKED = 600


def foreign(text: str, language: str, common: frozenset[str], *, is_familiar: bool) -> str:
    """The other language of a text most of whose words no other row has, and that lacks the little words of the usual one.

    It is told by its own little words; where the peers' texts are made of common words, a text of hardly any is of another
    language even if it is none of those known here. Nothing for a text of the usual one.
    """
    words = _words_read(text)
    if len(words) < _FEWEST_WORDS or sum(word in _LANGUAGES[language] for word in words) > len(words) // 8:
        return ""
    share = _share_of(words, common)
    names = Counter(name for word in set(words) for name in _OF_WORD.get(word, ()) if name != language)
    name, many = next(iter(names.most_common(1)), ("", 0))
    if many >= 3 and share < _UNCOMMON:
        return name
    is_strange = share < _STRANGE and len(set(words)) >= 8
    return "of another language" if (is_familiar or (many >= 2 and not text.isascii())) and is_strange else ""


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
