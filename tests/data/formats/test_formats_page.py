"""Every example of the pages of forms becomes what its page says."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any, NamedTuple, get_args

import pytest

import luthier.prepared
from luthier.cli.main import main
from luthier.data.formats import recognise_any, to_records
from luthier.data.formats.message_trees import iter_whole_rows
from luthier.data.settings import NO_WISHES, DataSettings, FormatName, Wishes
from luthier.errors import NetworkError
from luthier.recipe import make_recipe
from luthier.recipe.yaml_text import parse_yaml
from luthier.types import (
    Choice,
    Completion,
    Conversation,
    Gives,
    Labelled,
    PlainText,
    Preference,
    Prompt,
    Ranking,
    Record,
    Scored,
    Similar,
    Tagged,
    Verdict,
)

DOCS = Path(__file__).resolve().parents[3] / "docs"
PAGES = sorted((DOCS / "formats").glob("*.md"))


class Claim(NamedTuple):
    """What the page says: rows of a form, under a recipe's wishes, become these records for an objective."""

    form: str
    rows: list[dict[str, Any]]
    wishes: Wishes
    takes: Gives
    shown: str
    is_first: bool


def claims() -> list[Any]:
    """What the pages say, with the form and the line as each test's name."""
    return [claim for page in PAGES for claim in claims_of(page)]


def claims_of(page: Path) -> list[Any]:
    found: list[Any] = []
    text, form = page.read_text(encoding="utf-8"), page.stem
    rows, wishes, is_first = list[dict[str, Any]](), NO_WISHES, True
    for match in re.finditer(r"^```(\w+)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        if match[1] == "jsonl":
            rows, wishes, is_first = [json.loads(line) for line in match[2].splitlines()], NO_WISHES, True
        elif match[1] == "yaml":
            wishes = DataSettings.model_validate(parse_yaml(match[2], "recipe.yaml").values["data"]).wishes
        elif match[1] == "text":
            head, _, shown = match[2].partition("\n")
            takes: Any = head.removeprefix("# ")
            line = text[: match.start()].count("\n") + 1
            found.append(
                pytest.param(Claim(form, rows, wishes, takes, shown.rstrip("\n"), is_first), id=f"{form}:{line}")
            )
            is_first = False
    return found


@pytest.mark.parametrize("claim", claims())
def test_the_examples_of_the_page_become_what_it_says(claim: Claim, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in claim.rows), encoding="utf-8")
    rows = list(iter_whole_rows(str(file), lambda _: None, wishes=claim.wishes))
    found = to_records(rows, "auto", claim.takes, claim.wishes)
    assert "\n\n".join(shown(record) for record, _ in found.records) == claim.shown
    if claim.is_first and claim.takes != "prompts":  # what rows are taken for without an objective
        natural = recognise_any(rows, "auto", claim.wishes)
        assert natural.gives == claim.takes
        assert found.name == natural.name
        assert claim.form == natural.name or (claim.form, natural.name) == ("qa", "classification")


def checks() -> list[Any]:
    """Each form's first example, the command that checks it, and what the page says it prints first."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        rows = re.search(r"^```jsonl\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
        shown = re.search(r"^```sh\n(luthier check .*)\n```\n```console\n(.*)\n```$", text, re.MULTILINE)
        if rows is not None and shown is not None:
            found.append(pytest.param(rows[1], shown[1], shown[2], id=page.stem))
    return found


@pytest.mark.parametrize(("rows", "command", "shown"), checks())
def test_the_check_of_an_example_says_what_the_page_says(
    rows: str,
    command: str,
    shown: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def unreachable(*_: Any) -> Any:
        raise NetworkError("There is no model within reach.", "Connect to the network.")

    monkeypatch.setattr(luthier.prepared, "check_recipe", unreachable)
    (tmp_path / "rows.jsonl").write_text(rows, encoding="utf-8")
    _, check, _, *options = shlex.split(command)
    main([check, str(tmp_path / "rows.jsonl"), *options])
    assert capsys.readouterr().out.splitlines()[0] == shown


FORMS = set(get_args(FormatName)) - {"auto"}


def test_the_pages_show_the_check_of_every_form() -> None:
    assert {param.id for param in checks()} == FORMS


def test_every_form_has_a_page_and_the_overview_names_it() -> None:
    assert {page.stem for page in PAGES} == FORMS == {param.values[0].form for param in claims()}
    overview = (DOCS / "formats.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| \[([\w-]+)\]\(formats/\1\.md\)", overview, re.MULTILINE)) == FORMS


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_recipe_of_a_page_learns_from_the_form_and_is_trained(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    form, recipes = page.stem, re.findall(r"^```yaml\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert recipes
    for values in (parse_yaml(each, "recipe.yaml").values for each in recipes):
        data = {name: value for name, value in values["data"].items() if name != "train"}
        own = {} if form == "template" else {"format": form}
        assert make_recipe({**values, "data": {"train": "owner/rows", **data, **own}}).objective
    assert "\nluthier train recipe.yaml\n" in text


# ── records as the page shows them ──────────────────────────────────────────────────────────────────────────────────


def shown(record: Record) -> str:
    """A record with what is learned in ⟦ and ⟧."""
    match record:
        case Conversation(messages):
            return "\n".join(
                f"{turn.role}: ⟦{turn.content}⟧"
                if turn.role == "assistant" and turn.learn is not False
                else f"{turn.role}: {turn.content}"
                for turn in messages
            )
        case Completion(prompt, completion):
            return f"{prompt}⟦{completion}⟧"
        case PlainText(text):
            return f"⟦{text}⟧"
        case Labelled(text, pair, told) | Scored(text, pair, told):
            return f"{text} → ⟦{told}⟧" if pair is None else f"{text} | {pair} → ⟦{told}⟧"
        case Tagged(words, tags):
            return " ".join(f"{word} ⟦{tag}⟧" for word, tag in zip(words, tags, strict=True))
        case Choice(question, options, answer):
            return "\n".join(
                [question, *(f"- ⟦{option}⟧" if i == answer else f"- {option}" for i, option in enumerate(options))]
            )
        case Similar(anchor, positive, negatives):
            return "\n".join([f"{anchor} = ⟦{positive}⟧", *(f"{anchor} ≠ {negative}" for negative in negatives)])
        case Preference(chosen, rejected):
            return f"better:\n{shown(chosen)}\nworse:\n{shown(rejected)}"
        case Ranking(answers, places):
            return "\n".join(f"{place}. {shown(answer)}" for answer, place in zip(answers, places, strict=True))
        case Prompt(asked):
            return asked if isinstance(asked, str) else shown(asked)
        case Verdict(answered, is_good):
            return f"{'good' if is_good else 'bad'}:\n{shown(answered)}"
