"""Constrained answers of a model that says anything: they match, and end when nothing more may come."""

from __future__ import annotations

import json
import re
import sys

import pytest

from luthier.errors import UsageError
from luthier.generation.engine import Request, generate
from luthier.generation.settings import Sampling

pytest.importorskip("llguidance", reason="llguidance is not installed")

SCHEMA = {
    "type": "object",
    "properties": {"label": {"enum": ["bug", "wish"]}, "urgent": {"type": "boolean"}},
    "required": ["label", "urgent"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_answer_matches_the_regular_expression(tiny_decoder: type, temperature: float) -> None:
    model = tiny_decoder()
    for seed in range(4):
        sampling = Sampling(regex="(yes|no), [0-9]{2,3}!", temperature=temperature, seed=seed)
        (answer,) = generate(model, [Request((1, 2), sampling)])
        assert re.fullmatch("(yes|no), [0-9]{2,3}!", answer.text)
        assert answer.finish_reason == "stop"


def test_the_answer_is_json_of_the_schema_and_other_rows_are_free(tiny_decoder: type) -> None:
    model = tiny_decoder()
    free = Request((1, 2), Sampling(temperature=1.0, max_new_tokens=9))
    bound = Request((1, 2), Sampling(json_schema=SCHEMA, temperature=1.0, max_new_tokens=90))
    answers = generate(model, [free, bound])
    assert answers[0] == generate(model, [free])[0]
    said = json.loads(answers[1].text)
    assert said.keys() == {"label", "urgent"}
    assert said["label"] in ("bug", "wish")


@pytest.mark.parametrize("setting", [{"regex": "(a"}, {"json_schema": "[1"}, {"json_schema": '{"type": "nothing"}'}])
def test_what_is_no_grammar_is_refused_before_anything_is_computed(tiny_decoder: type, setting: dict[str, str]) -> None:
    model = tiny_decoder()
    with pytest.raises(UsageError, match=next(iter(setting))):
        generate(model, [Request((1,), Sampling(**setting))])
    assert model.shapes == []


def test_without_the_library_the_mend_is_named(tiny_decoder: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(UsageError, match="llguidance") as caught:
        generate(tiny_decoder(), [Request((1,), Sampling(regex="a"))])
    assert "luthier[constraints]" in caught.value.mend
