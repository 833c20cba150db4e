"""A method that another installed package brings: the one of CONTRIBUTING.md, in a package beside this one."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from processes import PATIENCE_SECONDS, environment
from program import within
from tiny_runs import recipe_values, write_rows

from luthier.errors import UsageError
from luthier.recipe.known_methods import GROUP, brought

CONTRIBUTING = Path(__file__).resolve().parents[1] / "CONTRIBUTING.md"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of installed packages with one in it, `scaling`, whose entry point is the page's."""
    folder = tmp_path_factory.mktemp("site")
    text = CONTRIBUTING.read_text()
    entry_point = re.search(r"^```toml\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    example = re.search(r"^```python\n(.*?)^from luthier\.models\.loading", text, re.DOTALL | re.MULTILINE)
    assert entry_point
    assert example
    (folder / "scaling.py").write_text(example[1])
    about = folder / "scaling-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: scaling\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(
        entry_point[1].replace('[project.entry-points."luthier.methods"]', f"[{GROUP}]").replace('"', "")
    )
    return folder


# Methods of other packages are looked for as Luthier is imported; one process takes all commands, for that takes seconds.
SCRIPT = """
import contextlib, io, json, sys
from luthier.cli.main import main

ended = []
for words in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        code = main(words)
    ended.append((code, out.getvalue(), err.getvalue()))
print(json.dumps(ended))
"""


def commands(site: Path, folder: Path, *commands: tuple[str, ...]) -> list[tuple[int, str, str]]:
    """How `luthier WORDS` ends for each of some commands, with the packages of a site: code, standard out, standard error."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(commands)],
        cwd=folder,
        env={**environment(folder), "PYTHONPATH": os.pathsep.join([str(site), str(CONTRIBUTING.parent)])},
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=True,
    )
    return [tuple(ended) for ended in json.loads(done.stdout)]


def test_a_package_brings_a_method_that_trains_and_answers(site: Path, tmp_path: Path, tiny_model: Path) -> None:
    values = recipe_values(tiny_model, write_rows(tmp_path / "rows.jsonl", 24))
    stack = {"kind": "stack", "parts": [{"kind": "scale", "targets": ["q_proj"]}, {"kind": "prompt-tuning"}]}
    for name, method in (("scale", {"kind": "scale", "targets": ["q_proj"]}), ("both", stack)):
        (tmp_path / f"{name}.yaml").write_text(json.dumps({**values, "method": method}))
    scale, both, answered, told = commands(
        site,
        tmp_path,
        ("train", "scale.yaml", "--out", "scale"),
        ("train", "both.yaml", "--out", "both"),
        ("generate", "scale", "--prompt", "Where is order 3?", "--json"),
        ("methods", "scale", "--json"),
    )
    assert (scale[0], both[0]) == (0, 0), scale[2] + both[2]
    assert answered[0] == 0, answered[2]
    assert json.loads(answered[1])
    assert told[0] == 0
    assert json.loads(told[1])["count"] == "Σ O over the adapted layers"


def test_without_that_package_the_kind_is_unknown(tmp_path: Path) -> None:
    ended = within("methods", "scale", folder=tmp_path)
    assert ended.code == 2
    assert "no method 'scale'" in ended.err


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("scale", "no_such_module:Scale", "cannot be imported"),
        ("scale", "json:Scale", "cannot be imported"),
        ("scale", "json:dumps", "no subclass"),
        ("rank", "luthier.methods.lora:LoRA", "its kind is 'lora'"),
        ("lora", "luthier.methods.lora:LoRA", "already"),
    ],
)
def test_an_entry_point_that_is_no_good_is_named(name: str, value: str, words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        brought([EntryPoint(name, value, GROUP)])
    assert repr(name) in caught.value.found
    assert "uninstall" in caught.value.mend
