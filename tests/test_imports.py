"""Imports point down the list of folders, and importing the package starts nothing heavy."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "luthier"

# From the top to the bottom. Folders of one row do not import each other.
ROWS = (
    ("cli", "web"),
    ("api",),
    ("serving",),
    ("jobs",),
    ("studies",),
    ("run",),
    ("planner",),
    ("courses",),
    ("companions", "rewarded"),
    ("prepared", "tuned"),
    ("recipe",),
    ("rlhf",),
    ("evaluation", "export"),
    ("prediction",),
    ("training", "generation"),
    ("methods", "objectives", "data"),
    ("models",),
    ("quantization",),
    ("ops", "store", "corruption"),
    ("sizes", "faults"),
    ("types", "errors", "version"),
)
ROW_OF = {name: row for row, names in enumerate(ROWS) for name in names}


def imports_of(source: str, package: tuple[str, ...]) -> set[str]:
    """The first parts under `luthier` that a file's text imports; `package` is the folder that it is in."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*above, *([node.module] if node.module else [])])
            names = [module] if module != "luthier" else [f"luthier.{alias.name}" for alias in node.names]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("luthier.")}
    return found


def part_of(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0].removesuffix(".py")


DOORS = {"__init__.py", "__main__.py"}  # these open onto the top of the list
FILES = sorted(path for path in PACKAGE.rglob("*.py") if str(path.relative_to(PACKAGE)) not in DOORS)


def test_every_part_of_the_package_has_its_place_in_the_order():
    assert {part_of(path) for path in FILES} <= set(ROW_OF)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_imports_from_its_own_folder_and_from_lower_rows_only(path: Path):
    part = part_of(path)
    package = ("luthier", *path.relative_to(PACKAGE).parts[:-1])
    for other in imports_of(path.read_text(), package) - {part}:
        assert other in ROW_OF, f"{other} has no place in the order"
        assert ROW_OF[other] > ROW_OF[part] or {part, other} == {"types", "errors"}, f"{part} imports {other}"


def test_the_check_of_imports_sees_every_form_of_import():
    source = "import luthier.cli.main\nfrom luthier import run\nfrom luthier.data.split import x\nfrom ..ops import y\n"
    assert imports_of(source, ("luthier", "data")) == {"cli", "run", "data", "ops"}


def loaded_by(statement: str) -> set[str]:
    """The modules that are loaded after a statement in a fresh interpreter."""
    code = f"import json, sys\n{statement}\nprint(json.dumps(list(sys.modules)), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True, check=True)
    return set(json.loads(done.stderr.strip().splitlines()[-1]))


HEAVY = {"torch", "transformers", "numpy", "pydantic", "tokenizers", "matplotlib", "pyarrow", "datasets"}


def test_importing_the_package_loads_nothing_heavy():
    assert not loaded_by("import luthier") & HEAVY


@pytest.mark.parametrize("flag", ["--help", "--version", "train --help"])
def test_asking_for_help_loads_nothing_heavy(flag: str):
    loaded = loaded_by(f"from luthier.cli.main import main; main({flag.split()!r})")
    assert not loaded & (HEAVY - {"pydantic"})  # typer itself uses pydantic


@pytest.mark.parametrize("words", ["luthier tr", "luthier train --dr"])
def test_completing_a_word_loads_nothing_heavy(words: str):
    asked = {"_LUTHIER_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
    loaded = loaded_by(
        f"import os; os.environ.update({asked!r})\nfrom luthier.cli.main import app\n"
        "try: app([], prog_name='luthier')\nexcept SystemExit: pass"
    )
    assert "luthier.cli.train" in loaded
    assert not loaded & (HEAVY - {"pydantic"})


def test_exported_names_are_there_and_match_their_list():
    import luthier

    assert sorted(dir(luthier)) == sorted(luthier.__all__)
    for name in luthier.__all__:
        assert vars(luthier).get(name, None) is not None or luthier.__getattr__(name) is not None


def test_an_unknown_name_is_an_attribute_error():
    import luthier

    with pytest.raises(AttributeError, match="no attribute 'tune'"):
        luthier.tune  # noqa: B018
