"""Scores: a text, or a pair of texts, and a number that it should be given.

    {"sentence1": "A man sleeps.", "sentence2": "A man is asleep.", "score": 4.8}

The form of STS-B (Cer et al. 2017, https://arxiv.org/abs/1708.00055), of SICK's relatedness (Marelli et al. 2014,
https://aclanthology.org/L14-1314) and of rated reviews. The texts are found as for classes.
"""

from __future__ import annotations

from luthier.data.formats.classification import text_columns, texts_of
from luthier.data.formats.table import Recognition, Table, as_number, is_number, one, required
from luthier.data.reading import Row
from luthier.data.settings import FormatName
from luthier.types import Gives, Scored

NAME: FormatName = "scores"
GIVES: Gives = "scores"
COLUMNS = "text and score (or text, text_pair and score; or names such as sentence1, sentence2 and similarity)"

SCORES = ("score", "relatedness_score", "similarity_score", "similarity", "rating", "stars", "label")


def recognise(table: Table) -> Recognition | None:
    """Rows with a column of numbers, and one text or a pair that the columns' names tell."""
    score = next((column for column in table.columns(SCORES) if table.mostly(column, is_number)), None)
    texts = None if score is None else text_columns(table, score)
    if score is None or texts is None:
        return None
    reason = f"{score} is the number of {' and '.join(texts)}"
    return Recognition(reason, frozenset({*texts, score}), one(to_record, texts=texts, score=score))


def to_record(row: Row, texts: tuple[str, ...] = ("text",), score: str = "score") -> Scored:
    """The row's text or texts, and their number."""
    filled = texts_of(row, texts)
    number = as_number(row, score, required(row, row.values, score, score))
    return Scored(filled[0], filled[1] if len(filled) == 2 else None, number)
