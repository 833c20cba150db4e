"""What was said of two answers, kept as lines of JSON: one judgment a line, on the disk before the next is asked for.

    {"id": "…", "prompt": "…", "responses": [{"id": "1", "text": "…", "model": "base"}, {"id": "2", …}], "kind": "pairwise",
     "choice": "2", "tie": false, "both_bad": false, "skipped": false, "strength": 1, "shown_order": ["2", "1"],
     "seconds": 8.1, "annotator": "ada", "guideline": "…"}

`choice` is the id of the better answer, null for a tie and for what was skipped. `strength` is 1 for better and 2 for much
better. What was taken back is not in the file. Where a model judged, `judge` says which and how it was asked, `said` its words,
`scores` a reward model's two numbers in the order shown, and `refused` that it would not say; what it said without a verdict that
can be read is `skipped`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from luthier.data.reading import Row
from luthier.data.reading.content import content_of
from luthier.data.reading.jsonl import read_jsonl
from luthier.errors import DataError, RunMismatch
from luthier.evaluation.judged.blind import Pair, Response
from luthier.store.files import append_line, write_bytes, write_text

KIND = "pairwise"
STRENGTHS = (1, 2)


@dataclass(frozen=True)
class Record:
    """One judgment. shown: the pair's answers, the one shown first before the other. seconds: from showing to choice.

    choice: the id of the better answer; None where they are as good (tie), both too bad to choose (both_bad, a tie too), or
    where it was skipped. judge: how the model was asked that judged; None for a person.
    """

    pair: Pair
    shown: tuple[Response, Response]
    choice: str | None
    seconds: float
    annotator: str
    tie: bool = False
    both_bad: bool = False
    skipped: bool = False
    strength: int | None = None
    guideline: str | None = None
    judge: Mapping[str, Any] | None = None
    said: str | None = None
    scores: tuple[float, float] | None = None
    refused: bool = False

    @property
    def outcome(self) -> float | None:
        """1 if the answer shown first is better, 0 if the second is, 0.5 for a tie; None where it was skipped."""
        if self.skipped:
            return None
        return 0.5 if self.choice is None else float(self.choice == self.shown[0].id)

    def line(self) -> str:
        """The judgment as one line of JSON; `record_of` gives the same again."""
        values: dict[str, Any] = {
            "id": self.pair.id,
            "prompt": self.pair.prompt,
            "responses": [each.as_json() for each in self.pair.responses],
            "kind": KIND,
            "choice": self.choice,
            "tie": self.tie,
            "both_bad": self.both_bad,
            "skipped": self.skipped,
            "strength": self.strength,
            "shown_order": [each.id for each in self.shown],
            "seconds": self.seconds,
            "annotator": self.annotator,
            "guideline": self.guideline,
        }
        if self.judge is not None:
            values |= {"judge": self.judge, "said": self.said, "scores": self.scores, "refused": self.refused}
        return json.dumps(values, ensure_ascii=False)


def is_record(values: Mapping[str, Any]) -> bool:
    """Whether a row is such a judgment, right or wrong."""
    return "responses" in values and "shown_order" in values


def record_of(row: Row) -> Record:
    """The judgment in a row. Raises: DataError, with the field, for one that is not whole or does not fit together."""
    values = row.values
    prompt = _value(row, "prompt", (str, list))
    responses = [_response(row, each) for each in _value(row, "responses", (list,))]
    by_id = {each.id: each for each in responses}
    if len(responses) != 2 or len(by_id) != 2:
        raise _fault(row, "responses", "two answers with ids of their own are needed.")
    pair = Pair(prompt, (responses[0], responses[1]))
    if _value(row, "id", (str,)) != pair.id:
        raise _fault(row, "id", "it is not that of this prompt and these answers: the line was changed by hand.")
    order = _value(row, "shown_order", (list,))
    if sorted(map(str, order)) != sorted(by_id):
        raise _fault(row, "shown_order", f"it does not name the two answers {' and '.join(by_id)}.")
    record = Record(
        pair,
        (by_id[str(order[0])], by_id[str(order[1])]),
        choice=values.get("choice"),
        seconds=float(_value(row, "seconds", (int, float))),
        annotator=_value(row, "annotator", (str,)),
        tie=_value(row, "tie", (bool,)),
        both_bad=bool(values.get("both_bad")),
        skipped=bool(values.get("skipped")),
        strength=values.get("strength"),
        guideline=values.get("guideline"),
        judge=_judge(row),
        said=values.get("said"),
        scores=_scores(row),
        refused=bool(values.get("refused")),
    )
    if record.strength not in (None, *STRENGTHS):
        raise _fault(row, "strength", f"{record.strength!r} is none of {STRENGTHS}.")
    if record.choice is not None and record.choice not in list(by_id):
        raise _fault(row, "choice", f"{record.choice!r} is none of the answers {' and '.join(by_id)}.")
    if (record.choice is not None) + record.tie + record.skipped != 1:
        raise _fault(row, "choice", "a judgment is one of three: a choice, a tie, or skipped.")
    return record


def _judge(row: Row) -> Mapping[str, Any] | None:
    if row.values.get("judge") is None:
        return None
    judge: Mapping[str, Any] = _value(row, "judge", (dict,))
    if judge.get("orders") not in (1, 2):
        raise _fault(row, "judge", "it does not say in how many orders answers were shown to it.")
    return judge


def _scores(row: Row) -> tuple[float, float] | None:
    if row.values.get("scores") is None:
        return None
    scores = _value(row, "scores", (list,))
    if len(scores) != 2 or not all(isinstance(each, int | float) for each in scores):
        raise _fault(row, "scores", "two numbers are needed, in the order shown.")
    return scores[0], scores[1]


def _response(row: Row, value: Any) -> Response:
    if not isinstance(value, dict) or not all(isinstance(value.get(name), str) for name in ("id", "text", "model")):
        raise _fault(row, "responses", "each answer needs an id, a text and a model, all of them texts.")
    reward = value.get("reward")
    if reward is not None and (isinstance(reward, bool) or not isinstance(reward, int | float)):
        raise _fault(row, "responses", f"the reward {reward!r} is no number.")
    return Response(value["id"], value["text"], value["model"], reward)


def _value(row: Row, name: str, kinds: tuple[type, ...]) -> Any:
    value = row.values.get(name)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise _fault(row, name, f"{value!r:.60} is not what a judgment holds there.")
    return value


def _fault(row: Row, name: str, found: str) -> DataError:
    mend = "Judgments are as 'luthier judge' writes them: restore the line, or remove it to be asked again."
    return DataError(found, mend, file=row.origin.file, line=row.origin.line, field=name)


# ── the file ────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class JudgmentFile:
    """The judgments in a file, which holds each of them from the moment that it is added."""

    path: Path
    records: list[Record] = field(default_factory=list)

    @classmethod
    def opened(cls, path: Path, announce: Callable[[str], None]) -> JudgmentFile:
        """The file with what it holds; none is there yet, or it is empty: no judgments.

        A last line that a dying process left half written is removed, aloud: that pair is asked for again.

        Raises: DataError, with the line, for anything that is no judgment.
        """
        if not path.exists() or not path.stat().st_size:
            return cls(path)
        _cut_torn_line(path, announce)
        return cls(path, [record_of(row) for row in read_jsonl(content_of(path, str(path)), announce)])

    def of(self, annotator: str) -> dict[str, Record]:
        """What one person said, by the ids of pairs, the last of them at the end."""
        return {each.pair.id: each for each in self.records if each.annotator == annotator}

    def add(self, record: Record) -> None:
        """Append a judgment, flushed to the disk. Raises: DiskFull, ResourceError; the file is then as before."""
        append_line(self.path, record.line())
        self.records.append(record)

    def take_back(self, annotator: str) -> Record | None:
        """Remove a person's last judgment and return it; None where there is none."""
        place = next((i for i in reversed(range(len(self.records))) if self.records[i].annotator == annotator), None)
        if place is None:
            return None
        kept = [each for index, each in enumerate(self.records) if index != place]
        write_text(self.path, "".join(each.line() + "\n" for each in kept))
        taken, self.records = self.records[place], kept
        return taken

    def check(self, pairs: Sequence[Pair], annotator: str, seed: int) -> None:
        """Raise RunMismatch, if the file holds judgments of other pairs, or this person saw the answers in other orders."""
        self.check_pairs(pairs)
        if any(each.judge is not None for each in self.of(annotator).values()):
            raise RunMismatch(
                f"{annotator} is the name of a model that judged here.",
                "Give another name with --annotator.",
                file=str(self.path),
            )
        if any(each.shown != each.pair.shown(seed) for each in self.of(annotator).values()):
            raise RunMismatch(
                f"{annotator} was shown the answers in other orders than this seed gives.",
                "Go on with the --order-seed that it began with.",
                file=str(self.path),
            )

    def check_pairs(self, pairs: Sequence[Pair]) -> None:
        """Raise RunMismatch, if the file holds judgments of other pairs."""
        known = {pair.id for pair in pairs}
        strange = [each for each in self.records if each.pair.id not in known]
        if strange:
            raise RunMismatch(
                f"{len(strange):,} of its {len(self.records):,} judgments are of other pairs than these {len(pairs):,}.",
                "Go on with the answers and options that it began with, or choose another file with --out.",
                file=str(self.path),
            )


def _cut_torn_line(path: Path, announce: Callable[[str], None]) -> None:
    """Remove what a process that died left of a judgment, if that is what the file ends in, and all before it are whole."""
    whole, newline, last = path.read_bytes().rpartition(b"\n")
    if not last.startswith(b'{"id"') or _is_json(last):
        return
    faults: list[DataError] = []
    for row in read_jsonl(content_of(path, str(path), faults.append), announce):
        record_of(row)  # a file of anything else is not ours to mend
    if len(faults) == 1:
        write_bytes(path, whole + newline)
        announce(f"{path}: its last line was cut off as it was written, and is removed; that pair is asked for again.")


def _is_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True
