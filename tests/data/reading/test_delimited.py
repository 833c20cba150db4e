"""Tables: separators, quotes, lines that name the columns, and lines that do not."""

from __future__ import annotations

import random

import pytest
from data_files import lines, read, silent, values, written

from luthier.data.reading import read_rows
from luthier.data.reading.header import judge
from luthier.errors import DataError

# ── with a header or without ────────────────────────────────────────────────────────────────────────────────────────

QUESTIONS = (
    "Could Genghis Khan have used a stirrup while riding his horse?",
    "Would a bee sting a statue of a flower that was painted blue?",
    "Is the Atlantic Ocean wider than the whole of Russia is?",
    "Do hamsters provide food for any animals in the wild?",
    "Did people in Brazil eat rice before the Portuguese came?",
    "Are months of the year named after colours of the rainbow?",
)
ANSWERS = ("yes", "no", "no", "yes", "yes", "no")
REASONS = tuple(f"It is known that {question.lower().rstrip('?')}, or that it is not." for question in QUESTIONS)

TABLES: dict[str, tuple[list[str], list[list[str]]]] = {
    # name: columns, rows
    "sentences and labels": (
        ["sentence", "polarity"],
        [[question, str(i % 2)] for i, question in enumerate(QUESTIONS)],
    ),
    "questions, answers and reasons": (
        ["input", "answer", "rationale"],
        [list(row) for row in zip(QUESTIONS, ANSWERS, REASONS, strict=True)],
    ),
    "a class, a title and a text": (
        ["class", "title", "description"],
        [[str(1 + i % 4), question[:25], REASONS[i]] for i, question in enumerate(QUESTIONS)],
    ),
    "slots and texts": (
        ["mr", "ref"],
        [[f"name[The {word}], area[city centre], food[French]", REASONS[0] + word] for word in "abcdef"],
    ),
    "pairs of sentences": (
        ["pair_ID", "sentence_A", "sentence_B", "relatedness_score", "entailment_judgment"],
        [[str(i), QUESTIONS[i], REASONS[i], f"{i / 2}", "NEUTRAL"] for i in range(6)],
    ),
    "texts alone": (["utterance"], [[question] for question in QUESTIONS]),
    "texts and names of classes": (["text", "category"], [[q, f"class_{i % 2}"] for i, q in enumerate(QUESTIONS)]),
    "names of unknown kinds": (["Zutat", "Menge"], [[f"Mehl {i}", str(i)] for i in range(6)]),
    "numbers alone": (["x", "y"], [[str(i), str(i * i)] for i in range(6)]),
    "amounts and dates": (["Posten", "am", "Preis"], [["Brot", f"2024-01-0{i}", f"€{i}.50"] for i in range(1, 7)]),
}


@pytest.mark.parametrize("name", TABLES)
def test_the_line_that_names_the_columns_is_told_from_a_row(name):
    columns, rows = TABLES[name]
    for seed in range(20):
        shuffled = random.Random(seed).sample(rows, len(rows))
        with_header, without = judge([columns, *shuffled]), judge(shuffled)
        assert with_header.is_header, with_header.reason
        assert not without.is_header, without.reason
        assert not with_header.is_doubtful, with_header.reason


def write_table(folder, ending: str, rows: list[list[str]]) -> str:
    separator = "," if ending == "csv" else "\t"
    cells = [[f'"{cell}"' if ending == "csv" else cell for cell in row] for row in rows]
    return written(folder, f"a.{ending}", "".join(separator.join(row) + "\n" for row in cells))


@pytest.mark.parametrize("ending", ["csv", "tsv", "txt"])
def test_without_a_header_the_first_row_stays_and_the_reason_is_said(ending, tmp_path):
    columns, rows = TABLES["questions, answers and reasons"]
    found = read_rows(path := write_table(tmp_path, ending, rows), silent)
    assert [list(row.values.values()) for row in found] == rows
    assert list(found[0].values) == ["column_1", "column_2", "column_3"]
    assert lines(found) == [1, 2, 3, 4, 5, 6]
    said = read(path)[1]
    assert "no line with the columns' names" in said
    assert "'yes' is among the values that repeat below it" in said
    assert "column_1, column_2, column_3" in said
    named = read_rows(write_table(tmp_path, ending, [columns, *rows]), silent)
    assert [list(row.values.values()) for row in named] == rows
    assert list(named[0].values) == columns


def test_a_plain_header_is_not_spoken_of_and_a_doubtful_one_is(tmp_path):
    assert read(written(tmp_path, "a.csv", "text,label\nIt is fine,good\nIt is not,bad\n"))[1] == ""
    rows, said = read(written(tmp_path, "b.csv", "Baum,tree\nHaus,house\nHund,dog\n"))
    assert len(rows) == 2
    assert "taken to name the columns (Baum, tree), which is doubtful" in said


def test_a_first_line_alone_is_a_row_if_it_holds_numbers(tmp_path):
    assert read(written(tmp_path, "a.csv", "7,8\n"))[0] == [{"column_1": "7", "column_2": "8"}]


def test_two_columns_of_one_name_are_refused_but_two_equal_cells_of_a_row_are_not(tmp_path):
    with pytest.raises(DataError, match="'text' twice"):
        read_rows(written(tmp_path, "a.csv", "text,text,n\nx,y,1\nu,v,2\n"), silent)
    assert len(read_rows(written(tmp_path, "b.csv", "1,1,0\n2,1,0\n3,1,1\n"), silent)) == 3


def test_a_column_that_the_header_leaves_without_a_name_gets_one(tmp_path):
    assert read(written(tmp_path, "a.csv", ",text\n0,Hi\n1,Ho\n"))[0][0] == {"column_1": "0", "text": "Hi"}


# ── separators, quotes and escapes ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_the_separator_is_what_every_line_has_outside_quotes(separator, tmp_path):
    text = f'"Hi, you"{separator}1\n"Ho, ho, ho"{separator}0\nNo{separator}1\n'
    rows, said = read(written(tmp_path, "a.csv", text))
    assert rows[0] == {"column_1": "Hi, you", "column_2": "1"}
    assert len(rows) == 3
    assert repr(separator) in said


def test_quotes_are_signs_like_others_where_they_do_not_wrap_cells(tmp_path):
    text = 'text\tlabel\n" I love it.\t1\n"The best" of all\t1\nHe said "no"\t0\n"whole"\t0\n'
    assert [row["text"] for row in read(written(tmp_path, "a.tsv", text))[0]] == [
        '" I love it.',
        '"The best" of all',
        'He said "no"',
        '"whole"',
    ]


def test_quotes_that_wrap_cells_are_taken_off(tmp_path):
    text = 'text\tlabel\n"He said ""no"""\t1\nplain\t0\n'
    assert [row["text"] for row in read(written(tmp_path, "a.tsv", text))[0]] == ['He said "no"', "plain"]


@pytest.mark.parametrize("num_before", [0, 3, 2000])
def test_a_quoted_cell_may_hold_tabs_and_line_breaks_wherever_it_stands(num_before, tmp_path):
    text = "text\tlabel\n" + "plain\t0\n" * num_before + '"one\ntwo\tthree"\t1\nlast\t0\n'
    rows = read_rows(written(tmp_path, "a.tsv", text), silent)
    assert values(rows[-2:]) == [{"text": "one\ntwo\tthree", "label": "1"}, {"text": "last", "label": "0"}]
    assert lines(rows[-2:]) == [num_before + 2, num_before + 4]


@pytest.mark.parametrize("num_before", [0, 3, 2000])
def test_a_quoted_cell_at_the_end_of_its_row_may_go_on_in_the_next_line(num_before, tmp_path):
    text = 'n\ttext\n0\t"whole"\n' + "1\tplain\n" * num_before + '2\t"one\ntwo"\n3\tlast\n'
    rows = read_rows(written(tmp_path, "a.tsv", text), silent)
    assert [row.values["text"] for row in rows[-2:]] == ["one\ntwo", "last"]
    assert rows[0].values["text"] == "whole"


@pytest.mark.parametrize("line", ["No tab here.", "Two\ttabs\there."])
def test_an_uneven_line_among_stray_quotes_is_the_one_that_is_named(line, tmp_path):
    text = '" I love it.\t1\nFine.\t1\n"The best" of all\t1\n' + "So it is.\t0\n" * 20 + f"{line}\nAwful.\t0\n"
    with pytest.raises(DataError, match="cells, but the first has 2") as caught:
        read_rows(written(tmp_path, "a.tsv", text), silent)
    assert caught.value.line == 24


def test_backslash_n_is_a_new_line_where_no_backslash_is_anything_else(tmp_path):
    rows, said = read(written(tmp_path, "a.tsv", "input\tn\nPick:\\n- yes\\n- no\t1\nC\\\\D\\tE\t2\n"))
    assert [row["input"] for row in rows] == ["Pick:\n- yes\n- no", "C\\D\tE"]
    assert "new line" in said


@pytest.mark.parametrize("text", [r"\frac{a}{b}\nabla", r"C:\new\data", r"no \$ at all\n"])
def test_backslashes_of_any_other_use_stay(text, tmp_path):
    rows, said = read(written(tmp_path, "a.tsv", f"input\tn\n{text}\t1\n"))
    assert (rows[0]["input"], said) == (text, "")


def test_backslashes_of_csv_stay(tmp_path):
    text = 'class,text\n1,"two\\nlines \\\\ and ""quotes"""\n2,b\n'
    assert read(written(tmp_path, "a.csv", text))[0][0]["text"] == 'two\\nlines \\\\ and "quotes"'


def test_lines_may_end_in_carriage_returns_alone(tmp_path):
    rows = read_rows(written(tmp_path, "a.csv", "text\r7\r8"), silent)
    assert (values(rows), lines(rows)) == ([{"text": "7"}, {"text": "8"}], [2, 3])


def test_rows_beyond_the_first_batch_have_their_lines(tmp_path):
    rows = read_rows(written(tmp_path, "a.csv", "text,n\n" + '"a\nb",1\n' * 1500), silent)
    assert lines(rows) == list(range(2, 3002, 2))


def test_an_uneven_row_without_a_header_is_refused_by_its_line(tmp_path):
    with pytest.raises(DataError, match="3 cells, but the first has 2") as caught:
        read_rows(written(tmp_path, "a.tsv", "So it is.\t1\nNot so.\t0\nWhat?\t1\t1\n"), silent)
    assert caught.value.line == 3


# ── tables in .txt ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_text_with_the_same_number_of_tabs_in_every_line_is_a_table_and_this_is_said(tmp_path):
    rows, said = read(written(tmp_path, "a.txt", "Wow, I loved it.  \t1\nNot good.\t0\nNever again.\t0\n"))
    assert rows[0] == {"column_1": "Wow, I loved it.  ", "column_2": "1"}
    assert "same number of tabs" in said


@pytest.mark.parametrize(
    "text",
    ["One line\twith a tab", "\tIndented.\n\tAll of it.\n", "Some\ttabs\n\nin some lines\nnot in all\n", "None.\n\n"],
)
def test_other_text_is_one_row(text, tmp_path):
    assert read(written(tmp_path, "a.txt", text)) == ([{"text": text}], "")


# ── names of classes ────────────────────────────────────────────────────────────────────────────────────────────────

NEWS = '"3","Oil is dear","Oil is dearer than it was, they say."\n"1","War","There is a war, they say."\n"2","Ball","They play."\n'


def test_a_file_of_class_names_beside_numbers_them_from_1(tmp_path):
    written(tmp_path, "classes.txt", "World\nSports\nBusiness\n")
    rows, said = read(written(tmp_path, "a.csv", NEWS))
    assert [row["column_1"] for row in rows] == ["Business", "World", "Sports"]
    assert "3 names in classes.txt, beside it, from 1" in said


def test_class_names_may_be_numbered_from_0(tmp_path):
    written(tmp_path, "classes.txt", "bad\ngood\n")
    rows = read(written(tmp_path, "a.tsv", "text\tlabel\nFine.\t1\nAwful.\t0\n"))[0]
    assert [row["label"] for row in rows] == ["good", "bad"]


@pytest.mark.parametrize("names", ["World\nSports\n", "World\nSports\nBusiness\nSci/Tech\n", "World\nWorld\nWorld\n"])
def test_class_names_that_do_not_fit_are_left_alone_and_this_is_said(names, tmp_path):
    written(tmp_path, "classes.txt", names)
    rows, said = read(written(tmp_path, "a.csv", NEWS))
    assert [row["column_1"] for row in rows] == ["3", "1", "2"]
    assert "classes.txt, beside it, is not read" in said


def test_a_number_without_a_name_later_on_is_refused_by_its_line(tmp_path):
    written(tmp_path, "classes.txt", "bad\ngood\n")
    text = "text\tlabel\n" + "Fine.\t1\nAwful.\t0\n" * 600 + "Odd.\t2\n"
    with pytest.raises(DataError, match="'2' is none of the numbers 0, 1") as caught:
        read_rows(written(tmp_path, "a.tsv", text), silent)
    assert (caught.value.line, caught.value.field) == (1202, "label")
