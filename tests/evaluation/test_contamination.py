"""Rows that were learned are found again among those that a model is measured on."""

from __future__ import annotations

import random

from luthier.evaluation.contamination import contamination, text_of
from luthier.types import Completion, Conversation, Message, Preference, Prompt, Ranking, Similar, Verdict

WORDS = [
    "river",
    "stone",
    "lamp",
    "green",
    "walk",
    "table",
    "under",
    "often",
    "seven",
    "bird",
    "winter",
    "paper",
    "slow",
    "bright",
    "carry",
]


def text(number: int) -> str:
    return " ".join(random.Random(number).choices(WORDS, k=40))


def test_exact_and_near_copies_are_found_and_nothing_else() -> None:
    trained = [text(number) for number in range(1200)]  # several chunks
    near = trained[700].split()
    near[20] = "altogether"
    measured = [text(5000), trained[3].upper() + " ", " ".join(near), text(5001), trained[1199]]
    found = contamination(measured, iter(trained))
    assert (found.exact, found.near) == ((1, 4), (2,))
    assert found.num_trained == 1200
    assert found.note is not None
    assert found.note.startswith(
        "3 of 5 rows stand in the training rows, 2 word for word and 1 nearly (number 2, 5, 3)"
    )


def test_a_part_of_the_rows_is_told_as_if_it_had_been_measured_alone() -> None:
    trained = [text(number) for number in range(20)]
    near = trained[7].split()
    near[20] = "altogether"
    measured = [text(90), trained[3], trained[4], text(91), " ".join(near), trained[5]]
    whole = contamination(measured, trained)
    for rows in (range(2), range(2, 6), range(6)):
        assert whole.part(rows) == contamination(measured[rows.start : rows.stop], trained)


def test_rows_of_one_template_are_no_copies_of_each_other() -> None:
    trained = [
        f"Where is order {n}, the {WORDS[n % 15]}? It left the {WORDS[n % 7]} on day {n * 7}." for n in range(60)
    ]
    measured = [
        f"Where is order {n}, the {WORDS[n % 15]}? It left the {WORDS[n % 7]} on day {n * 7}." for n in (90, 91)
    ]
    found = contamination(measured, trained)
    assert (found.exact, found.near, found.note) == ((), (), None)


def test_texts_without_words_do_no_harm() -> None:
    assert contamination(["", "…"], ["", "text"]).exact == (0,)


def test_the_text_of_a_row_is_all_that_it_says() -> None:
    assert text_of(Completion("a?", "b.")) == "a?\nb."
    chat = Conversation((Message("user", "a?"), Message("assistant", "b.")))
    assert text_of(chat) == "a?\nb."
    assert text_of(Preference(chat, Completion("a?", "c."))) == "a?\nb.\na?\nc."
    assert text_of(Ranking((Completion("a?", "b."), chat), (1, 2))) == "a?\nb.\na?\nb."
    assert text_of(Verdict(chat, True)) == "a?\nb."
    assert text_of(Prompt(Conversation((Message("user", "a?"),)))) == text_of(Prompt("a?")) == "a?"
    assert text_of(Similar("a", "b", ("c",))) == "a\nb"
