"""A method that another installed package brings: the one of CONTRIBUTING.md, in a package beside this one."""

from __future__ import annotations

import json
import re
import subprocess
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from processes import PATIENCE_SECONDS, PROGRAM, environment
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


def luthier(site: Path, folder: Path, *words: str | Path) -> tuple[int, str, str]:
    done = subprocess.run(
        [str(PROGRAM), *map(str, words)],
        cwd=folder,
        env={**environment(folder), "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def test_a_package_brings_a_method_that_trains_and_answers(site: Path, tmp_path: Path, tiny_model: Path) -> None:
    values = recipe_values(tiny_model, write_rows(tmp_path / "rows.jsonl", 24))
    stack = {"kind": "stack", "parts": [{"kind": "scale", "targets": ["q_proj"]}, {"kind": "prompt-tuning"}]}
    for name, method in (("scale", {"kind": "scale", "targets": ["q_proj"]}), ("both", stack)):
        (tmp_path / f"{name}.yaml").write_text(json.dumps({**values, "method": method}))
        code, _, said = luthier(site, tmp_path, "train", f"{name}.yaml", "--out", name)
        assert code == 0, said
    code, found, _ = luthier(site, tmp_path, "generate", "scale", "--prompt", "Where is order 3?", "--json")
    assert code == 0
    assert json.loads(found)
    code, found, _ = luthier(site, tmp_path, "methods", "scale", "--json")
    assert code == 0
    assert json.loads(found)["count"] == "Σ O over the adapted layers"


def test_without_that_package_the_kind_is_unknown(tmp_path: Path, tiny_model: Path) -> None:
    (tmp_path / "nowhere").mkdir()
    code, _, said = luthier(tmp_path / "nowhere", tmp_path, "methods", "scale")
    assert code == 2
    assert "no method 'scale'" in said


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
