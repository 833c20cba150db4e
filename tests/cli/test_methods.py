"""`luthier methods`: the table, one method, and what is not one."""

from __future__ import annotations

import json
from typing import Any

import pytest

from luthier.cli import main as program
from luthier.methods import METHODS, Method, kind_of
from luthier.recipe.fields import fields_of
from luthier.recipe.method_table import methods_page, rate_text


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What `luthier methods WORDS` prints."""
    assert program.main(["methods", *words]) == 0
    out: str = capsys.readouterr().out
    return out


def test_the_table_has_a_line_for_every_method_with_what_its_code_says(capsys: pytest.CaptureFixture[str]):
    lines = printed(capsys).splitlines()[1:]
    assert sorted(line.split()[0] for line in lines) == sorted(map(kind_of, METHODS))
    rows: list[dict[str, Any]] = json.loads(printed(capsys, "--json"))["methods"]
    for row in rows:
        method = next(method for method in METHODS if kind_of(method) == row["kind"])
        assert row["merges"] == method.traits.merges
        assert row["deep_backward"] == method.traits.deep_backward
        assert row["over_4bit"] == method.traits.over_4bit
        assert row["identity_at_start"] == method.traits.identity_at_start
        assert (row["default_lr"], row["count"], row["paper"]) == (method.default_lr, method.count, method.paper)
    families = [row["family"] for row in rows]
    assert len(set(families)) == sum(one != other for one, other in zip(families, ["", *families], strict=False))


@pytest.mark.parametrize("method", METHODS, ids=kind_of)
def test_one_method_is_shown_with_every_setting_its_formula_rate_and_paper(
    method: type[Method], capsys: pytest.CaptureFixture[str]
):
    text, document = printed(capsys, kind_of(method)), json.loads(printed(capsys, kind_of(method), "--json"))
    shown = {setting["name"]: setting for setting in document["settings"]}
    assert set(shown) == {place.name for place in fields_of(method)} - {"kind"}
    for name, setting in shown.items():
        assert setting["type"]
        assert setting["description"]
        assert (
            f"{name}: {setting['type']}; left out: {setting['default']}\n    {setting['description']}\n" in text + "\n"
        )
    for fact in (method.count, method.paper, rate_text(method.default_lr)):
        assert fact in text
    assert document["count"] == method.count


@pytest.mark.parametrize(("word", "meant"), [("bit-fit", "bitfit"), ("LN_tuning", "ln-tuning"), ("lora+", "lora")])
def test_what_is_not_a_method_is_refused_with_the_nearest_one(
    word: str, meant: str, capsys: pytest.CaptureFixture[str]
):
    assert program.main(["methods", word]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert f"Did you mean {meant}?" in err
    assert program.main(["methods", word, "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["kind"] == "UsageError"


def test_a_word_like_no_method_is_answered_with_all_of_them(capsys: pytest.CaptureFixture[str]):
    assert program.main(["methods", "xyzzy"]) == 2
    err = capsys.readouterr().err
    assert "Did you mean" not in err
    assert all(kind_of(method) in err for method in METHODS)


def test_the_page_of_the_documentation_is_printed_on_request(capsys: pytest.CaptureFixture[str]):
    assert printed(capsys, "--markdown") == methods_page() + "\n"
    assert json.loads(printed(capsys, "--markdown", "--json")) == {"markdown": methods_page()}


@pytest.mark.parametrize(
    ("rate", "text"), [(2e-4, "2e-4"), (0.001, "1e-3"), (5e-5, "5e-5"), (0.3, "3e-1"), (1.5e-3, "1.5e-3")]
)
def test_learning_rates_are_written_as_people_write_them(rate: float, text: str):
    assert rate_text(rate) == text
