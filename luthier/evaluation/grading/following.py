"""Whether an answer keeps to instructions that a program can check: Zhou et al. 2023 (IFEval), https://arxiv.org/abs/2311.07911.

Each check has the name and the arguments that the paper's data gives it; the code is our own. Sentences end at . ! ? … or a
line's end. A language is told by its script where that is enough for it, else by its little words; one that is told by
neither gives no score.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from luthier.data.checks.languages import language_of

Check = Callable[[str, Mapping[str, Any]], bool]


class Unknown(Exception):
    """A check that cannot be made: it is not known, lacks an argument, or its language cannot be told."""


def follows(name: str, arguments: Mapping[str, Any], answer: str) -> bool:
    """Whether the answer keeps to the instruction. Raises: Unknown."""
    check = CHECKS.get(name)
    if check is None:
        raise Unknown(f"there is no check {name!r}; there are {', '.join(CHECKS)}")
    if not answer.strip():
        return False
    try:
        return check(answer, arguments)
    except KeyError as error:
        raise Unknown(f"{name} needs {error}") from None
    except (TypeError, ValueError, AttributeError) as error:
        raise Unknown(f"{name} cannot read its arguments ({error})") from None


def variants(answer: str) -> tuple[str, ...]:
    """The answer, and the same without its first line, its last, both, and without asterisks: the paper's loose reading."""
    lines = answer.split("\n")
    cut = [answer, "\n".join(lines[1:]), "\n".join(lines[:-1]), "\n".join(lines[1:-1])]
    texts = [text.strip() for text in cut]
    return tuple(dict.fromkeys([*texts, *(text.replace("*", "") for text in texts)]))


# ── counting ────────────────────────────────────────────────────────────────────────────────────────────────────────


def words_in(text: str) -> list[str]:
    """Runs of letters, digits and underscores."""
    return re.findall(r"\w+", text)


def sentences_in(text: str) -> list[str]:
    """Pieces that end at a full stop, an exclamation or question mark, or a line's end."""
    pieces = re.split(r"(?<=[.!?…])[\"')\]]*\s+|\n+", text)
    return [piece for piece in pieces if re.search(r"\w", piece)]


def _related(count: int, relation: str, bound: int) -> bool:
    if relation not in ("less than", "at least"):
        raise ValueError(f"the relation {relation!r} is neither 'less than' nor 'at least'")
    return count < bound if relation == "less than" else count >= bound


def _times(pattern: str, text: str) -> int:
    return len(re.findall(pattern, text, re.IGNORECASE))


def _paragraphs(text: str) -> list[str]:
    """Between *** marks; one that is empty at an end does not count, one in the middle makes the count wrong."""
    parts = re.split(r"\s?\*\*\*\s?", text)
    inner = [part for place, part in enumerate(parts) if part.strip() or 0 < place < len(parts) - 1]
    return [] if any(not part.strip() for part in inner) else inner


# ── checks ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _keywords(text: str, given: Mapping[str, Any]) -> bool:
    return all(_times(re.escape(word), text) for word in _texts(given["keywords"]))


def _keyword_frequency(text: str, given: Mapping[str, Any]) -> bool:
    return _related(_times(re.escape(given["keyword"].strip()), text), given["relation"], int(given["frequency"]))


def _forbidden(text: str, given: Mapping[str, Any]) -> bool:
    return not any(_times(rf"\b{re.escape(word)}\b", text) for word in _texts(given["forbidden_words"]))


def _letter_frequency(text: str, given: Mapping[str, Any]) -> bool:
    count = Counter(text.lower())[given["letter"].lower()]
    return _related(count, given["let_relation"], int(given["let_frequency"]))


def _num_sentences(text: str, given: Mapping[str, Any]) -> bool:
    return _related(len(sentences_in(text)), given["relation"], int(given["num_sentences"]))


def _num_words(text: str, given: Mapping[str, Any]) -> bool:
    return _related(len(words_in(text)), given["relation"], int(given["num_words"]))


def _num_paragraphs(text: str, given: Mapping[str, Any]) -> bool:
    return len(_paragraphs(text)) == int(given["num_paragraphs"])


def _first_word(text: str, given: Mapping[str, Any]) -> bool:
    paragraphs = [part for part in re.split(r"\n\n", text) if part.strip()]
    place = int(given["nth_paragraph"])
    if len(paragraphs) != int(given["num_paragraphs"]) or not 1 <= place <= len(paragraphs):
        return False
    first = paragraphs[place - 1].split()[0].lstrip("'\"")
    word = re.split(r"[.,?!'\"]", first)[0].lower()
    return word == str(given["first_word"]).lower()


def _placeholders(text: str, given: Mapping[str, Any]) -> bool:
    return len(re.findall(r"\[.*?\]", text)) >= int(given["num_placeholders"])


def _postscript(text: str, given: Mapping[str, Any]) -> bool:
    letters = [letter for letter in given["postscript_marker"].strip() if letter.isalnum()]
    pattern = r"\.?\s?".join(map(re.escape, letters)) + r"\b"
    return re.search(rf"\s*{pattern}.*$", text, re.IGNORECASE | re.MULTILINE) is not None


def _bullets(text: str, given: Mapping[str, Any]) -> bool:
    count = len(re.findall(r"^\s*(?:\*[^*].*|-.*)$", text, re.MULTILINE))
    return count == int(given["num_bullets"])


def _highlights(text: str, given: Mapping[str, Any]) -> bool:
    single = [part for part in re.findall(r"\*[^\n*]*\*", text) if part.strip("*").strip()]
    double = [part for part in re.findall(r"\*\*[^\n*]*\*\*", text) if part.strip("*").strip()]
    return len(single) + len(double) >= int(given["num_highlights"])


def _sections(text: str, given: Mapping[str, Any]) -> bool:
    pattern = rf"\s?{re.escape(given['section_spliter'].strip())}\s?\d+\s?"
    return len(re.split(pattern, text)) - 1 >= int(given["num_sections"])


def _json_format(text: str, given: Mapping[str, Any]) -> bool:
    body = re.sub(r"^```(?:json)?|```$", "", text.strip(), flags=re.IGNORECASE).strip()
    try:
        json.loads(body)
    except (ValueError, RecursionError):
        return False
    return True


def _title(text: str, given: Mapping[str, Any]) -> bool:
    return any(part.strip("<>").strip() for part in re.findall(r"<<[^\n]+>>", text))


_CONSTRAINED = ("My answer is yes.", "My answer is no.", "My answer is maybe.")


def _constrained(text: str, given: Mapping[str, Any]) -> bool:
    return any(answer in text for answer in _CONSTRAINED)


def _two_responses(text: str, given: Mapping[str, Any]) -> bool:
    parts = text.split("******")
    said = [part.strip() for place, part in enumerate(parts) if part.strip() or 0 < place < len(parts) - 1]
    return len(said) == 2 and all(said) and said[0] != said[1]


def _repeats(text: str, given: Mapping[str, Any]) -> bool:
    return text.strip().lower().startswith(given["prompt_to_repeat"].strip().lower())


def _ends_with(text: str, given: Mapping[str, Any]) -> bool:
    return text.strip().strip('"').lower().endswith(given["end_phrase"].strip().lower())


def _quoted(text: str, given: Mapping[str, Any]) -> bool:
    body = text.strip()
    return len(body) > 1 and body[0] == body[-1] == '"'


def _capital_words(text: str, given: Mapping[str, Any]) -> bool:
    count = sum(word.isupper() for word in re.findall(r"[^\W_]+(?:['’-][^\W_]+)*", text))
    return _related(count, given["capital_relation"], int(given["capital_frequency"]))


def _no_comma(text: str, given: Mapping[str, Any]) -> bool:
    return "," not in text


def _language(text: str, given: Mapping[str, Any]) -> bool:
    return is_in_language(text, given["language"])


_SCRIPTS = {
    "hi": "DEVANAGARI", "mr": "DEVANAGARI", "ne": "DEVANAGARI", "kn": "KANNADA", "ko": "HANGUL", "pa": "GURMUKHI",
    "fa": "ARABIC", "ar": "ARABIC", "ur": "ARABIC", "ru": "CYRILLIC", "bg": "CYRILLIC", "uk": "CYRILLIC",
    "gu": "GUJARATI", "te": "TELUGU", "ta": "TAMIL", "th": "THAI", "bn": "BENGALI", "el": "GREEK", "he": "HEBREW",
    "zh": "CJK", "ml": "MALAYALAM",
}  # fmt: skip
_LATIN = {
    "en": "English", "de": "German", "fr": "French", "es": "Spanish", "it": "Italian", "pt": "Portuguese",
    "nl": "Dutch", "sv": "Swedish", "pl": "Polish", "tr": "Turkish", "id": "Indonesian", "cs": "Czech", "ro": "Romanian",
}  # fmt: skip


def is_in_language(text: str, code: str) -> bool:
    """Whether most letters are of the language's script, or the words of the language. Raises: Unknown."""
    letters = [letter for letter in text if letter.isalpha()]
    if code in _SCRIPTS:
        own = sum(unicodedata.name(letter, "").startswith(_SCRIPTS[code]) for letter in letters)
        return 2 * own > len(letters)
    if code in _LATIN:
        return language_of(text)[0] == _LATIN[code]
    raise Unknown(f"the language {code!r} cannot be told here")


def _in_case(text: str, is_of_case: Callable[[str], bool]) -> bool:
    """Whether an English text is in one case; one in another script has none."""
    return is_of_case(text) and all(unicodedata.name(x, "").startswith("LATIN") for x in text if x.isalpha())


def _texts(values: Any) -> list[str]:
    if isinstance(values, str) or not all(isinstance(value, str) for value in values):
        raise ValueError("a list of words is wanted")
    return list(values)


CHECKS: Mapping[str, Check] = {
    "keywords:existence": _keywords,
    "keywords:frequency": _keyword_frequency,
    "keywords:forbidden_words": _forbidden,
    "keywords:letter_frequency": _letter_frequency,
    "language:response_language": _language,
    "length_constraints:number_sentences": _num_sentences,
    "length_constraints:number_paragraphs": _num_paragraphs,
    "length_constraints:number_words": _num_words,
    "length_constraints:nth_paragraph_first_word": _first_word,
    "detectable_content:number_placeholders": _placeholders,
    "detectable_content:postscript": _postscript,
    "detectable_format:number_bullet_lists": _bullets,
    "detectable_format:constrained_response": _constrained,
    "detectable_format:number_highlighted_sections": _highlights,
    "detectable_format:multiple_sections": _sections,
    "detectable_format:json_format": _json_format,
    "detectable_format:title": _title,
    "combination:two_responses": _two_responses,
    "combination:repeat_prompt": _repeats,
    "startend:end_checker": _ends_with,
    "startend:quotation": _quoted,
    "change_case:capital_word_frequency": _capital_words,
    "change_case:english_capital": lambda text, given: _in_case(text, str.isupper),
    "change_case:english_lowercase": lambda text, given: _in_case(text, str.islower),
    "punctuation:no_comma": _no_comma,
}
