"""Texts that are empty, that break off, that go round in circles, or that only repeat what was asked."""

from __future__ import annotations

import re
from random import Random

from bench.planted_faults.faults import Change, Draw, Plant, Way, all_texts, answer_texts, edited
from bench.planted_faults.sources import (
    ALPACA,
    AMAZON,
    BANKING,
    BITEXT,
    C4,
    COT,
    DPO,
    DUMMY,
    GLAIVE,
    GSM8K,
    KTO,
    SCITLDR,
    SICK,
    XQUAD,
    with_value,
)  # fmt: skip

# ── empty ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _emptied(*, prompt: bool, with_: tuple[str, ...]) -> Plant:
    def plant(draw: Draw) -> Change | None:
        texts = [pair for pair in draw.source.prompt_texts(draw.values)[:1] if prompt] or answer_texts(draw)[-1:]
        if not texts:
            return None
        nothing = draw.rng.choice(with_)
        return Change(texts[0][0], f"the text is {nothing!r}", with_value(draw.values, texts[0][0], nothing))

    return plant


def _unlabelled(draw: Draw) -> Change:
    label = draw.source.label
    assert label is not None
    nothing = draw.rng.choice(("", " ", "nan", "None", "N/A"))
    return Change(label, f"the label is {nothing!r}", with_value(draw.values, label, nothing))


_BLANK = ("", "   ", "\u00a0", "\t ")
_SAID = ("nan", "None", "N/A", "null", "NaN")
_SIGNS = ("...", "-", ".", "…")
_ANSWERED = (ALPACA, GSM8K, SCITLDR, COT, C4, DPO, KTO, GLAIVE, DUMMY)
_ASKED = (GSM8K, ALPACA, COT, XQUAD, DUMMY, GLAIVE)

EMPTY = (
    Way(_emptied(prompt=False, with_=("",)), _ANSWERED),
    Way(_emptied(prompt=True, with_=("",)), (BANKING, SICK, AMAZON, *_ASKED)),
    Way(_emptied(prompt=False, with_=(*_BLANK[1:], "\n\n")), _ANSWERED),
    Way(_unlabelled, (BANKING, BITEXT, SICK, AMAZON)),
    Way(_emptied(prompt=False, with_=_SAID), _ANSWERED),
    Way(_emptied(prompt=True, with_=(*_SAID, "   ")), (BANKING, SICK, *_ASKED)),
    Way(_emptied(prompt=False, with_=_SIGNS), _ANSWERED),
)


# ── broken off ──────────────────────────────────────────────────────────────────────────────────────────────────────

_ENDS = (".", "!", "?", '."', ".)", "```")


def _whole(text: str) -> bool:
    return len(text) >= 120 and text.rstrip().endswith(_ENDS)


def _cut_in_word(text: str, rng: Random) -> str | None:
    """Ended within a word, somewhere between a third and nine tenths of the way."""
    if not (_whole(text) or "####" in text):
        return None
    words = [
        match
        for match in re.finditer(r"\b[a-z]{6,}\b", text)
        if 0.33 * len(text) < match.start() < 0.9 * len(text) - 6
    ]  # fmt: skip
    if not words:
        return None
    word = rng.choice(words)
    return text[: word.start() + rng.randint(3, len(word.group()) - 2)]


def _cut_after(text: str, rng: Random) -> str | None:
    """Ended after a word that must go on."""
    if not (_whole(text) or "####" in text):
        return None
    places = [
        match.end() for match in re.finditer(r" (the|of|and|with|to|a|for|because)(?= )", text) if match.end() > 60
    ]  # fmt: skip
    return text[: rng.choice(places)] if places else None


def _open_code(text: str, rng: Random) -> str | None:
    """Ended within a block of code."""
    fences = [match.start() for match in re.finditer("```", text)]
    if len(fences) < 2 or fences[1] - fences[0] < 40:
        return None
    return text[: (fences[0] + fences[1] * 2) // 3].rstrip()


def _after_comma(text: str, rng: Random) -> str | None:
    places = [match.end() for match in re.finditer(r"\w,(?= )", text) if match.end() > 60]
    return text[: rng.choice(places)] if _whole(text) and places else None


_WRITTEN = (ALPACA, GSM8K, SCITLDR, DPO, KTO, GLAIVE)

CUT_ANSWER = (
    Way(edited("broken off within a word", _cut_in_word, answer_texts, 120), _WRITTEN),
    Way(edited("broken off after a word that must go on", _cut_after, answer_texts, 120), _WRITTEN),
    Way(edited("broken off within a word", _cut_in_word, answer_texts, 120), _WRITTEN),
    Way(edited("broken off within a block of code", _open_code, answer_texts, 120), (ALPACA, DPO, KTO)),
    Way(edited("broken off within a word", _cut_in_word, answer_texts, 400), (ALPACA, DPO, KTO, C4)),
    Way(edited("broken off after a comma", _after_comma, answer_texts, 120), _WRITTEN),
)


# ── going round in circles ──────────────────────────────────────────────────────────────────────────────────────────


def _sentence_again(text: str, rng: Random) -> str | None:
    sentences = re.findall(r"[^.!?\n]{20,200}[.!?]", text)
    return f"{text} {' '.join([sentences[-1].strip()] * rng.randint(6, 20))}" if sentences else None


def _word_again(text: str, rng: Random) -> str | None:
    words = re.findall(r"\b[a-z]{3,}\b", text)
    return f"{text} {' '.join([rng.choice(words)] * rng.randint(30, 80))}" if words else None


def _phrase_again(text: str, rng: Random) -> str | None:
    words = text.split(" ")
    if len(words) < 20:
        return None
    start = rng.randrange(4, len(words) - 6)
    phrase = " ".join(words[start : start + rng.randint(3, 6)])
    return " ".join(words[:start]) + f" {phrase}" * rng.randint(10, 30)


def _sign_again(text: str, rng: Random) -> str | None:
    return text.rstrip(".!?") + rng.choice("!?aho") * rng.randint(60, 200)


def _all_again(text: str, rng: Random) -> str | None:
    return "\n".join([text] * rng.randint(4, 6))


_LOOPING = (ALPACA, SCITLDR, C4, DPO, KTO, GLAIVE, DUMMY, COT)

REPETITION = (
    Way(edited("the last sentence over and over", _sentence_again, answer_texts, 60), _LOOPING),
    Way(edited("a word over and over", _word_again, answer_texts, 40), _LOOPING),
    Way(edited("a phrase over and over, to the end", _phrase_again, answer_texts, 80), _LOOPING),
    Way(edited("a sign over and over", _sign_again, all_texts), (AMAZON, BANKING, *_LOOPING)),
    Way(edited("the whole answer several times", _all_again, answer_texts, 40), _LOOPING),
)


# ── only what was asked ─────────────────────────────────────────────────────────────────────────────────────────────


def _same_pair(draw: Draw) -> Change:
    row = with_value(draw.values, "rejected.value", draw.values["chosen"]["value"])
    return Change("rejected", "chosen and rejected are the same", row, also=("chosen",))


def _echoed(prompt: str, answer: str) -> Plant:
    def plant(draw: Draw) -> Change | None:
        text = dict(draw.source.prompt_texts(draw.values)).get(prompt, "")
        if len(text) < 20:
            return None
        return Change(answer, "the answer is the prompt again", with_value(draw.values, answer, text), also=(prompt,))

    return plant


def _parroted(draw: Draw) -> Change | None:
    chat = draw.source.chat
    assert chat is not None
    turns = draw.values[chat.turns]
    if [turn[chat.role] for turn in turns[-2:]] != [chat.user, chat.assistant] or len(turns[-2][chat.text]) < 12:
        return None
    path = f"{chat.turns}[{len(turns) - 1}].{chat.text}"
    return Change(path, "the assistant says what the user said", with_value(draw.values, path, turns[-2][chat.text]))


ECHO = (
    Way(_same_pair, (DPO,)),
    Way(_echoed("instruction", "output"), (ALPACA,)),
    Way(_parroted, (DUMMY, KTO, GLAIVE)),
    Way(_echoed("question", "answer"), (GSM8K,)),
    Way(_same_pair, (DPO,)),
    Way(_parroted, (KTO, GLAIVE)),
)

WAYS = {"empty": EMPTY, "cut_answer": CUT_ANSWER, "repetition": REPETITION, "echo": ECHO}
