"""CoNLL: a word and its tag a line."""

from __future__ import annotations

import pytest
from data_files import lines, read, silent, values, written

from luthier.data.reading import read_rows
from luthier.errors import DataError

SENTENCES = [
    {"tokens": ["Ada", "lives", "in", "London"], "tags": ["B-person", "O", "O", "B-place"]},
    {"tokens": ["Yes"], "tags": ["O"]},
]
TABS = "Ada\tB-person\nlives\tO\nin\tO\nLondon\tB-place\n\nYes\tO\n"


@pytest.mark.parametrize("ending", ["conll", "iob", "iob2", "bio", "txt", "train"])
def test_a_sentence_is_a_row_with_the_line_of_its_first_word(ending, tmp_path):
    rows = read_rows(written(tmp_path, f"a.{ending}", TABS), silent)
    assert values(rows) == SENTENCES
    assert lines(rows) == [1, 6]


def test_conll_told_by_content_is_said(tmp_path):
    assert "read as CoNLL" in read(written(tmp_path, "a.txt", TABS))[1]
    assert read(written(tmp_path, "a.conll", TABS))[1] == ""


@pytest.mark.parametrize("separator", ["\n", "\t\n", "  \n", "\n\n\t\n", "\r\n"])
def test_any_blank_lines_part_sentences_and_none_is_needed_at_the_end(separator, tmp_path):
    text = separator + TABS.replace("\n\n", "\n" + separator).rstrip("\n")
    assert values(read_rows(written(tmp_path, "a.conll", text), silent)) == SENTENCES


def test_of_several_columns_the_first_and_last_are_taken_and_marks_and_comments_passed_over(tmp_path):
    text = "-DOCSTART- -X- O O\n\n# sentence 1 of 3, for example\nEU NNP B-NP B-ORG\nrejects VBZ B-VP O\n\n-DOCSTART- -X- O O\n"
    rows, said = read(written(tmp_path, "a.conll", text))
    assert rows == [{"tokens": ["EU", "rejects"], "tags": ["B-ORG", "O"]}]
    assert "4 columns" in said


def test_words_that_look_like_comments_or_blanks_are_words(tmp_path):
    text = '#\tO\n#tag\tB-x\n"\tO\n\u200b\tO\n\ufeff\tO\n'
    assert values(read_rows(written(tmp_path, "a.conll", text), silent)) == [
        {"tokens": ["#", "#tag", '"', "\u200b", "\ufeff"], "tags": ["O", "B-x", "O", "O", "O"]}
    ]


def test_conllu_gives_words_and_parts_of_speech_without_its_double_lines(tmp_path):
    row = "{}\t{}\tlemma\t{}\t_\t_\t0\troot\t_\t_\n"
    text = "# text = vámonos\n" + row.format("1-2", "vámonos", "_")
    text += row.format(1, "vamos", "VERB") + row.format(2, "nos", "PRON") + row.format("2.1", "x", "X")
    rows, said = read(written(tmp_path, "a.conllu", text))
    assert rows == [{"tokens": ["vamos", "nos"], "tags": ["VERB", "PRON"]}]
    assert "parts of speech" in said


@pytest.mark.parametrize(
    ("text", "line", "found"),
    [
        ("Ada\tO\nlives\n", 2, "1 columns, but the first has 2"),
        ("Ada\tO\nlives\tO\tO\n", 2, "3 columns, but the first has 2"),
        ("Ada\tO\n#lost\n", 2, "1 columns"),
        ("Ada\tO\nin\t \n", 2, "is blank"),
        ("Ada\n\nBo\n", 1, "one column"),
    ],
)
def test_a_line_with_other_columns_is_refused_by_its_number(text, line, found, tmp_path):
    with pytest.raises(DataError, match=found) as caught:
        read_rows(written(tmp_path, "a.conll", text), silent)
    assert caught.value.line == line
    assert "a word and its tag a line" in caught.value.mend


def test_prose_is_no_conll(tmp_path):
    text = "She had group\nO O\nthat Shakespeherian Rag\nIt's so elegant\n"
    assert values(read_rows(written(tmp_path, "a.txt", text), silent)) == [{"text": text}]
