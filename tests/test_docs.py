"""What the documentation and the shipped recipes say is so: commands parse, recipes load, links lead somewhere."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from bench.methods import KEPT, kept_page
from luthier.cli.main import app
from luthier.data.hub import is_hub_name
from luthier.objectives import kind_of
from luthier.recipe import Recipe, load_recipe
from luthier.recipe.known_objectives import KNOWN_OBJECTIVES
from luthier.recipe.method_table import methods_page
from luthier.recipe.reference import recipe_page
from luthier.recipe.yaml_text import parse_yaml

REPOSITORY = Path(__file__).resolve().parents[1]
PAGES = sorted([*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").glob("**/*.md"), *(REPOSITORY / "bench").glob("*.md")])
RECIPES = sorted((REPOSITORY / "recipes").glob("*.yaml"))
PARSER: Any = typer.main.get_command(app)


def named(page: Path) -> str:
    """What a page is called in tests."""
    return page.relative_to(REPOSITORY).as_posix()


def blocks(language: str) -> list[Any]:
    """Every fenced block of a language in the pages, with where it stands as its test's name."""
    found = []
    for page in PAGES:
        for match in re.finditer(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE):
            line = page.read_text()[: match.start()].count("\n") + 1
            found.append(pytest.param(match[1], id=f"{named(page)}:{line}"))
    return found


def parse_command(words: list[str]) -> None:
    """Let the program's parser read a command line, without carrying it out. Raises its usage errors."""
    command, name = PARSER, "luthier"
    while True:
        commands = vars(command).get("commands")
        if not commands:
            command.make_context(name, words)
            return
        assert words, f"{name} wants a command"
        assert words[0] in commands, f"there is no command {words[0]}"
        name, command, words = words[0], commands[words[0]], words[1:]


def recipe_in(folder: Path, text: str) -> Recipe:
    """A recipe loaded with the files that it names made for it; sets of the hub are not looked for."""
    data = parse_yaml(text, "recipe.yaml").values["data"]
    named = data["train"] if isinstance(data["train"], list) else [data["train"]]
    names = [each["path"] if isinstance(each, dict) else each for each in named]
    for name in [*names, data.get("validation", "auto")]:
        if name not in ("auto", "none") and not is_hub_name(name):
            (folder / name).write_text("{}")
    path = folder / "recipe.yaml"
    path.write_text(text)
    return load_recipe(path)


@pytest.mark.parametrize("text", blocks("sh"))
def test_the_commands_of_the_pages_are_commands(text: str):
    targets = set(re.findall(r"^([\w-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    for line in text.splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["luthier"]:
            parse_command(words[1:])
        elif words[:1] == ["make"]:
            assert words[1] in targets


@pytest.mark.parametrize("text", blocks("yaml"))
def test_the_recipes_of_the_pages_load(text: str, tmp_path: Path):
    assert recipe_in(tmp_path, text).model.name


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_the_shipped_recipes_load(path: Path, tmp_path: Path):
    recipe = recipe_in(tmp_path, path.read_text())
    assert recipe.data.max_length <= recipe.training.tokens_per_micro_batch


@pytest.mark.parametrize("text", blocks("python"))
def test_the_python_of_the_pages_runs(text: str, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"Where is parcel {number}?", "completion": "On its way."} for number in range(20)]
    (tmp_path / "tickets.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    exec(text.replace("smollm2-135m", str(tiny_model)), {})


def test_the_page_of_all_fields_is_that_of_the_settings():
    assert (REPOSITORY / "docs" / "recipe.md").read_text() == recipe_page() + "\n", "run: make docs"


def test_the_page_of_all_methods_is_that_of_the_code_and_of_the_kept_figures():
    page = f"{methods_page()}\n{kept_page(KEPT)}"
    assert (REPOSITORY / "docs" / "methods.md").read_text() == page, "run: make docs"


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_the_links_of_a_page_lead_somewhere(page: Path):
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]+))?\)", page.read_text()):
        if target.startswith("https://"):
            continue
        there = page.parent / target if target else page
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), f"{target}#{anchor}"


def anchors(page: Path) -> set[str]:
    """What links into a page may name: its headings, as sites that show Markdown write them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("kind", [kind_of(objective) for objective in KNOWN_OBJECTIVES])
def test_the_page_of_an_objective_shows_a_recipe_the_command_and_what_it_printed(kind: str):
    overview = (REPOSITORY / "docs" / "objectives.md").read_text()
    pages = {
        name: page
        for names, page in re.findall(r"^\| \[([^]]*)\]\(([^)]*)\)", overview, re.M)
        for name in names.split(", ")
    }
    text = (REPOSITORY / "docs" / pages[kind]).read_text()
    assert re.search(rf"^ *objective:\s*\{{?\s*kind: {re.escape(kind)}\b|`{re.escape(kind)}`", text, re.M), (
        "it is not named"
    )
    assert re.search(r"^luthier train [\w-]+\.yaml\n```\n+```text\n.*?^step \d", text, re.M | re.S)
    assert re.search(r"^luthier evaluate runs/[\w-]+.*\n```\n+```text\n", text, re.M)


def test_the_readme_names_every_command_and_begins_with_the_two_that_matter():
    text = (REPOSITORY / "README.md").read_text()
    assert set(re.findall(r"`luthier ([\w-]+)", text)) >= set(PARSER.commands)
    assert text.split("```sh\n")[1].startswith("make quickstart")
    assert text.split("```sh\n")[1].splitlines()[1].startswith("make test")


def test_the_tree_of_contributing_is_the_tree_of_the_package():
    text = (REPOSITORY / "CONTRIBUTING.md").read_text()
    told = set(re.findall(r"^  (\w+(?:\.py|/)) +\w", text, re.MULTILINE))
    there = {
        path.name + ("/" if path.is_dir() else "")
        for path in (REPOSITORY / "luthier").iterdir()
        if not path.name.startswith(("_", ".")) and (path.is_dir() or path.suffix == ".py")
    }
    assert told == there - {"version.py"}


@pytest.mark.parametrize("wanted", ["luthier frobnicate", "luthier train", "luthier train r.yaml --nonsense 3"])
def test_a_wrong_command_in_a_page_would_be_found(wanted: str):
    with pytest.raises(Exception, match=r"no command|[Mm]issing|[Nn]o such option"):
        parse_command(shlex.split(wanted)[1:])
