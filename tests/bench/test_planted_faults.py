"""Faults are planted where the manifest says and nowhere else, and the scorer counts what a check says of them."""

from __future__ import annotations

import json
import shlex
import sys
from collections import Counter, defaultdict
from dataclasses import asdict
from pathlib import Path

import pytest

from bench.planted_faults.__main__ import main
from bench.planted_faults.encoding import misread
from bench.planted_faults.forms import JSON_LINES, SENTENCES, Form, Values, document, read_clean, separated
from bench.planted_faults.known import differ_in_a_word, known_faults, known_leaks
from bench.planted_faults.plant import (
    FAULTS_PER_KIND,
    KINDS,
    MANIFEST,
    Fault,
    Place,
    Planted,
    Survey,
    plant,
    read_manifest,
    survey,
    write_planted,
)
from bench.planted_faults.private import iban, luhn_digit
from bench.planted_faults.score import is_right_field, measured, report
from bench.planted_faults.sources import GSM8K, SOURCES, steps_of, value_at, with_value
from bench.processes import ROOT

DATA = ROOT.parent / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="../shared/data is not there")

# ── files taken apart ───────────────────────────────────────────────────────────────────────────────────────────────

ROWS = document(1, escaped=False)
SQUAD = {
    "data": [{"paragraphs": [{"context": "c", "qas": [{"id": "1", "question": "ä"}, {"id": "2", "question": "q"}]}]}]
}
FILES: dict[str, tuple[Form, bytes, list[tuple[int, int]]]] = {
    "lines": (JSON_LINES, '{"a": "ä"}\n\n{"a": "b"}'.encode(), [(1, 1), (3, 3)]),
    "quoted": (separated(",", quotes=True), b'a,b\r\n"x\ny, z",1\r\nw,2\r\n', [(2, 3), (4, 4)]),
    "tabs": (separated("\t", ("a", "b")), b'x "\t1\ny\t0\n', [(1, 1), (2, 2)]),
    "sentences": (SENTENCES, b"a\tO\nb\tB-x\n\t\nc\tO\n\n", [(1, 2), (4, 4)]),
    "array": (
        ROWS,
        (json.dumps([{"a": "ä"}, {"a": "b"}], indent=2, ensure_ascii=False) + "\n").encode(),
        [(1, 1), (2, 2)],
    ),
    "squad": (document(6, escaped=True), json.dumps(SQUAD, indent=2).encode(), [(1, 1), (2, 2)]),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_taken_apart_and_joined_is_the_same_and_a_changed_record_changes_no_other_byte(
    name: str, tmp_path: Path
) -> None:
    form, data, lines = FILES[name]
    (tmp_path / "file").write_bytes(data)
    clean = read_clean(tmp_path / "file", form)
    assert clean.changed({}) == data
    assert [(record.number, record.last) for record in clean.records] == lines
    assert all(form.write(record.values, record.data) == record.data for record in clean.records)
    before, after = data.split(clean.records[1].data)
    assert clean.changed({1: b"<here>"}) == before + b"<here>" + after
    assert clean.index_at()[clean.records[0].last] == 0


def test_a_value_is_put_where_its_path_leads_and_the_row_itself_is_left_alone() -> None:
    row = {"answers": [{"text": "a", "start": 3}]}
    assert with_value(row, "answers[0].text", "b") == {"answers": [{"text": "b", "start": 3}]}
    assert value_at(row, "answers[0].text") == "a"


# ── what is made up is well formed ──────────────────────────────────────────────────────────────────────────────────


def test_check_digits_are_those_of_published_examples() -> None:
    assert luhn_digit("411111111111111") == 1
    assert luhn_digit("37828224631000") == 5
    assert iban("DE", "370400440532013000") == "DE89370400440532013000"
    assert iban("GB", "NWBK60161331926819") == "GB29NWBK60161331926819"


@pytest.mark.parametrize("table", ["cp1252", "latin-1", "mac_roman"])
def test_text_read_with_another_table_is_whole_again_when_that_is_undone(table: str) -> None:
    once, twice = misread(table)("a café"), misread(table, 2)("a café")
    assert once is not None
    assert twice is not None
    assert once.encode(table).decode() == "a café"
    assert twice.encode(table).decode() == once


# ── what is known of the clean files ────────────────────────────────────────────────────────────────────────────────


def test_texts_that_differ_in_one_word_are_told_from_those_that_differ_in_two() -> None:
    one = ["a", "b", "c", "d", "e"]
    for other in ("a b x d e", "a b d e", "a b c d e f", "x b c d e", "a b c d e"):
        assert differ_in_a_word(one, other.split()), other
    for other in ("a x c y e", "b a c d e", "a b c", "a b c d e f g"):
        assert not differ_in_a_word(one, other.split()), other


def asked(*questions: str) -> bytes:
    return "".join(json.dumps({"question": text, "answer": "1"}) + "\n" for text in questions).encode()


def test_rows_that_stand_twice_or_in_both_files_are_known(tmp_path: Path) -> None:
    (tmp_path / "train").write_bytes(
        asked("Who is it?", "What?", "who is IT", "Write to ann@host.org now", "Why\u200b?")
    )
    (tmp_path / "validation").write_bytes(asked("When?", "what"))
    train, validation = (read_clean(tmp_path / name, JSON_LINES) for name in ("train", "validation"))
    assert sorted(known_faults(GSM8K, train)) == [0, 2, 3, 4]
    of_train, of_validation = known_leaks(GSM8K, train, validation)
    assert (list(of_train), list(of_validation)) == ([1], [1])


# ── the planter ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def ground() -> Survey:
    return survey(DATA)


@pytest.fixture(scope="module")
def planted(ground: Survey) -> Planted:
    return plant(ground, 1)


@needs_data
def test_every_kind_is_planted_twelve_times_in_two_files_at_least_and_every_row_once(planted: Planted) -> None:
    assert len(KINDS) == 25
    assert Counter(fault.kind for fault in planted.faults) == dict.fromkeys(KINDS, FAULTS_PER_KIND)
    files = defaultdict(set)
    for fault in planted.faults:
        files[fault.kind].add(fault.file)
    assert all(len(found) >= 2 for found in files.values())
    rows = [(fault.file, fault.line) for fault in planted.faults]
    rows += [
        (fault.partner.file, fault.partner.line)
        for fault in planted.faults
        if fault.partner and fault.kind != "leakage"
    ]
    assert len(set(rows)) == len(rows)


@needs_data
def test_the_seed_alone_decides(ground: Survey, planted: Planted) -> None:
    assert plant(ground, 1) == planted
    other = plant(ground, 2)
    assert {(fault.file, fault.line) for fault in other.faults} != {
        (fault.file, fault.line) for fault in planted.faults
    }


@needs_data
def test_all_other_rows_are_the_same_byte_for_byte(ground: Survey, planted: Planted) -> None:
    for place, file in ground.files.items():
        own = [fault for fault in planted.faults if fault.file == place]
        touched = {line for fault in own for line in range(fault.line, fault.last_line + 1)}
        assert planted.clean[place] == (DATA / place).read_bytes()
        if file.form.has_lines:
            pairs = zip(planted.clean[place].split(b"\n"), planted.copies[place].split(b"\n"), strict=True)
        else:
            records, between = file.form.read(planted.copies[place])
            assert tuple(between) == file.between
            pairs = zip((record.data for record in file.records), (record.data for record in records), strict=True)
        changed = {number for number, (was, now) in enumerate(pairs, start=1) if was != now}
        assert changed <= touched, place
        assert {fault.line for fault in own} <= {line for line in touched if changed & set(_lines_with(own, line))}


def _lines_with(faults: list[Fault], line: int) -> range:
    """All lines of the row that the line belongs to."""
    fault = next(fault for fault in faults if fault.line <= line <= fault.last_line)
    return range(fault.line, fault.last_line + 1)


@needs_data
def test_a_row_differs_in_the_field_that_the_manifest_names_and_in_no_other(ground: Survey, planted: Planted) -> None:
    seen = 0
    for fault in planted.faults:
        if fault.kind in UNREADABLE or fault.partner is not None:
            continue
        was, now = _values_of(ground, planted, fault)
        named = {steps_of(field)[0] for field in (fault.field, *fault.also)}
        changed = {key for key in {*was, *now} if was.get(key, ...) != now.get(key, ...)}
        assert changed, fault
        assert changed <= named, fault
        if fault.kind in IN_ONE_TEXT:
            assert with_value(was, fault.field, value_at(now, fault.field)) == now, fault
        seen += 1
    assert seen > 200


UNREADABLE = ("broken_row", "invalid_utf8")
IN_ONE_TEXT = (
    "mojibake",
    "control_characters",
    "cut_answer",
    "repetition",
    "markup",
    "secret",
    "personal_data",
    "empty",
)


def _values_of(ground: Survey, planted: Planted, fault: Fault) -> tuple[Values, Values]:
    """The row's values in the clean file and in the copy, which is read anew."""
    file = ground.files[fault.file]
    record = file.records[file.index_at()[fault.line]]
    if not file.form.has_lines:
        rows = json.loads(planted.copies[fault.file])
        if isinstance(rows, dict):
            rows = [row for article in rows["data"] for part in article["paragraphs"] for row in part["qas"]]
        return record.values, rows[fault.line - 1]
    row = b"\n".join(planted.copies[fault.file].split(b"\n")[fault.line - 1 : fault.last_line]).rstrip(b"\r") + b"\n"
    head = b"" if file.records[0].number == 1 else planted.clean[fault.file].split(b"\n")[0].rstrip(b"\r") + b"\n"
    return record.values, file.form.read(head + row + b"\n" * fault.file.endswith(".conll"))[0][0].values


@needs_data
def test_rows_that_are_planted_unreadable_are_so_and_all_others_can_be_read(ground: Survey, planted: Planted) -> None:
    kinds = {(fault.file, fault.line): fault.kind for fault in planted.faults}
    for place, file in ground.files.items():
        copy = planted.copies[place]
        if not file.form.has_lines:
            json.loads(copy)
            continue
        for number, line in enumerate(copy.split(b"\n"), start=1):
            kind = kinds.get((place, number))
            if kind == "invalid_utf8":
                with pytest.raises(UnicodeDecodeError):
                    line.decode()
            else:
                line.decode()
            if file.form.is_json_lines and line and kind not in UNREADABLE:
                assert isinstance(json.loads(line), dict)
            if file.form.is_json_lines and kind == "broken_row":
                assert not _is_object(line)


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


@needs_data
def test_a_copy_says_what_its_partner_says(ground: Survey, planted: Planted) -> None:
    exact = [fault for fault in planted.faults if fault.kind == "exact_duplicate"]
    for fault in exact:
        assert fault.partner is not None
        file = ground.files[fault.file]
        keys = next(source.keys for source in SOURCES if source.place == fault.file)
        partner = file.records[file.index_at()[fault.partner.line]].values
        _, now = _values_of(ground, planted, fault)
        assert {k: v for k, v in now.items() if k not in keys} == {k: v for k, v in partner.items() if k not in keys}


@needs_data
def test_what_is_written_is_read_back_and_nothing_is_written_over(planted: Planted, tmp_path: Path) -> None:
    write_planted(planted, tmp_path / "out")
    assert read_manifest(tmp_path / "out") == planted.faults
    place = planted.faults[0].file
    assert (tmp_path / "out" / "planted" / place).read_bytes() == planted.copies[place]
    assert main(["plant", str(tmp_path / "out"), "--data", str(DATA)]) == 1


def test_data_that_are_not_there_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plant", str(tmp_path / "out"), "--data", str(tmp_path)]) == 1
    assert "--data" in capsys.readouterr().err
    assert main(["score", str(tmp_path / "nowhere")]) == 1
    assert "plant first" in capsys.readouterr().err


# ── the scorer ──────────────────────────────────────────────────────────────────────────────────────────────────────

TRAIN, VALIDATION = "gsm8k/train_1500.jsonl", "gsm8k/test.jsonl"
QUESTIONS = [f"How many are {number} and one?" for number in ("two", "three", "four", "five", "six", "two")]
FAULTS = (
    Fault(TRAIN, 2, 2, "answer", "empty", "the text is ''"),
    Fault(TRAIN, 3, 3, "", "exact_duplicate", "a copy", partner=Place(TRAIN, 5, 5)),
    Fault(TRAIN, 4, 4, "question", "empty", "the text is ''"),
    Fault(VALIDATION, 1, 1, "", "leakage", "a training row", partner=Place(TRAIN, 2, 2)),
)


def check_that_says(folder: Path, said: dict[str, list[tuple[str, int, str]]]) -> str:
    """A command that prints, for the copy and for the clean file, findings of (file, line, field)."""
    findings = {
        name: [
            {"kind": "odd", "severity": "fault", "file": file, "line": line, "field": field}
            for file, line, field in told
        ]
        for name, told in said.items()
    }
    script = folder / "check.py"
    script.write_text(
        "import json, sys\n"
        "from pathlib import Path\n"
        f"said = json.loads({json.dumps(findings)!r})[Path(sys.argv[1]).parents[1].name]\n"
        "assert sys.argv[2] == '--validation' and sys.argv[4] == '--json'\n"
        "print(json.dumps({'findings': said}))\n"
        "sys.exit(3 if said else 0)\n",
        "utf-8",
    )
    return shlex.join([sys.executable, str(script)])


@pytest.fixture
def out(tmp_path: Path) -> Path:
    for folder in ("clean", "planted"):
        (tmp_path / folder / "gsm8k").mkdir(parents=True)
        (tmp_path / folder / TRAIN).write_bytes(asked(*QUESTIONS))
        (tmp_path / folder / VALIDATION).write_bytes(asked("How?", "Where?"))
    (tmp_path / MANIFEST).write_text("".join(json.dumps(asdict(fault)) + "\n" for fault in FAULTS), "utf-8")
    return tmp_path


def test_a_fault_is_found_at_its_row_or_at_its_partner_and_only_by_what_was_not_said_before(out: Path) -> None:
    said = [(TRAIN, 2, "answer"), (TRAIN, 5, "question"), (TRAIN, 4, "question"), (VALIDATION, 2, "question")]
    command = check_that_says(out, {"planted": said, "clean": [(TRAIN, 4, "question")]})
    scored = measured(out, command)
    kinds = {score.kind: score for score in scored.kinds}
    assert (kinds["empty"].planted, kinds["empty"].found, kinds["empty"].right_field) == (2, 1, 1)
    assert kinds["empty"].missed == (FAULTS[2],)  # what is said there was said of the clean row too
    assert (kinds["exact_duplicate"].found, kinds["exact_duplicate"].named) == (1, {"odd": 1})
    assert kinds["leakage"].found == 1  # said at the training row, for which another fault stands
    files = {score.file: score for score in scored.files}
    assert (files[TRAIN].false, files[TRAIN].beside) == (1, 0)
    assert (files[VALIDATION].rows, files[VALIDATION].false, files[VALIDATION].beside) == (2, 0, 1)
    assert "empty: gsm8k/train_1500.jsonl, 4, question" in report(scored)


def test_another_field_is_found_but_not_right(out: Path) -> None:
    scored = measured(out, check_that_says(out, {"planted": [(TRAIN, 2, "question")], "clean": []}))
    empty = scored.kinds[0]
    assert (empty.found, empty.right_field, empty.misplaced) == (1, 0, (FAULTS[0],))


def test_rows_of_clean_files_that_are_at_fault_by_themselves_are_no_false_alarms(out: Path) -> None:
    told = [(TRAIN, 1, "question"), (TRAIN, 6, ""), (TRAIN, 5, "answer"), (TRAIN, 99, ""), (TRAIN, 5, "question")]
    scored = measured(out, check_that_says(out, {"planted": [], "clean": told}))
    train = next(score for score in scored.files if score.file == TRAIN)
    assert (train.rows, train.true, train.false) == (6, 2, 1)  # rows 1 and 6 are the same
    assert train.false_kinds == {"odd (fault)": 1}


def test_a_check_that_fails_is_told_and_finds_nothing(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = shlex.join([sys.executable, "-c", "import sys; sys.exit('no such format')"])
    scored = measured(out, command)
    assert [score.found for score in scored.kinds] == [0, 0, 0]
    assert len(scored.failures) == 2
    assert "no such format" in scored.failures[0]
    assert main(["score", str(out), "--check", str(out / "nothing")]) == 1
    assert "--check" in capsys.readouterr().err


def test_the_figures_come_as_one_document(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = check_that_says(out, {"planted": [(TRAIN, 2, "answer")], "clean": []})
    assert main(["score", str(out), "--check", command, "--json"]) == 0
    totals = json.loads(capsys.readouterr().out)["totals"]
    assert (totals["planted"], totals["found"], totals["rows"], totals["false_alarms"]) == (4, 2, 6, 0)


@pytest.mark.parametrize(
    ("said", "field", "is_right"),
    [
        ("messages[2].content", "conversations[2].value", True),
        ("messages", "conversations[2].value", True),
        ("messages[1].content", "conversations[2].value", False),
        ("data[0].paragraphs[3].qas[1].answers[0].answer_start", "answers[0].answer_start", True),
        ("answers.0", "answers[0].text", True),
        ("answer", "answers[0].text", False),
        ("", "question", False),
        ("anything", "", True),
        ("text", "label", True),
    ],
)
def test_fields_are_compared_by_the_way_that_leads_to_them(said: str, field: str, is_right: bool) -> None:
    fault = Fault("file", 1, 1, field, "kind", "what", also=("text",) if field == "label" else ())
    assert is_right_field(said, fault) is is_right
