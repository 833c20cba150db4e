"""Broken recipes, data and models: each ends with exit code 3 or 4 and a message that names the place and the mend."""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from luthier.cli.main import main

ROW = json.dumps({"prompt": "Where is my parcel?", "completion": "On its way."})
CHAT = {"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Good day."}]}


def chat(*turns: tuple[str, str]) -> str:
    return json.dumps({"messages": [{"role": role, "content": content} for role, content in turns]})


def rows(*lines: str) -> str:
    """Twenty good rows and then these."""
    return "\n".join([ROW] * 20 + list(lines)) + "\n"


@dataclass(frozen=True)
class Broken:
    """What is wrong, in words; the files it takes; where the message must say it is; and what the mend must hold.

    `recipe` stands for `model` and `data.train` unless it gives its own; a file's content may be text or bytes.
    """

    what: str
    place: str
    mend: str
    code: int = 3
    recipe: str = ""
    whole_recipe: str | None = None
    files: Mapping[str, str | bytes] = field(default_factory=dict)
    model: str = "{model}"


TABLE = [
    # recipes
    Broken("a recipe that is not YAML", "recipe.yaml, line 4", "Check the indentation", recipe="method: {kind: lora"),
    Broken("an unknown key", "line 3, field 'methd'", "Did you mean method?", recipe="methd: {kind: lora}"),
    Broken(
        "an unknown key deep inside", "field 'training.epoch'", "Did you mean epochs?", recipe="training: {epoch: 1}"
    ),
    Broken("a key given twice", "line 4, field 'seed'", "Keep one", recipe="seed: 1\nseed: 2"),
    Broken("an unknown method", "field 'method.kind'", "Did you mean lora?", recipe="method: {kind: lorra}"),
    Broken("an impossible value", "field 'method.rank'", "at least 1", recipe="method: {rank: 0}"),
    Broken("a value of another type", "field 'training.epochs'", "Give a number", recipe="training: {epochs: many}"),
    Broken("blocks of another size", "field 'quantization.block'", "one of 32, 64", recipe="quantization: {block: 48}"),
    Broken(
        "two batch sizes", "field 'training'", "keep one", recipe="training: {rows_per_step: 8, tokens_per_step: 512}"
    ),
    Broken(
        "rows longer than a micro-batch",
        "field 'data.max_length'",
        "tokens_per_micro_batch",
        recipe="training: {tokens_per_micro_batch: 64}",
    ),
    Broken("an empty recipe", "recipe.yaml", "model: smollm2-135m", whole_recipe=""),
    Broken("a recipe without a model", "field 'model'", "Add it", whole_recipe="data: {train: rows.jsonl}\n"),
    Broken("a recipe without data", "field 'data'", "Add it", whole_recipe="model: smollm2-135m\n"),
    Broken(
        "a target that the model does not have",
        "field 'method.targets'",
        "q_proj",
        recipe="method: {targets: [qproj]}",
    ),
    # files and models that are not there
    Broken(
        "rows that are not there",
        "field 'data.train'",
        "rows.jsonl",
        code=4,
        whole_recipe="model: '{model}'\ndata: {train: row.jsonl}\n",
    ),
    Broken("a model that does not exist", "field 'model'", "hub", code=4, model="no-such-model"),
    Broken("an adapter that is not there", "no-such-run", "", code=4, recipe="method: {from: no-such-run}"),
    # models that cannot be used
    Broken(
        "a model whose weights are a pickle",
        "pickle",
        "save_pretrained",
        model="pickled",
        files={
            "pickled/config.json": json.dumps({"model_type": "llama"}),
            "pickled/pytorch_model.bin": pickle.dumps({"weights": [1]}),
        },
    ),
    # rows
    Broken("bad JSON on a line", "rows.jsonl, line 21", "JSON object", files={"rows.jsonl": rows('{"prompt": "a"')}),
    Broken("a missing key", "line 21, field 'completion'", "Add", files={"rows.jsonl": rows('{"prompt": "a"}')}),
    Broken(
        "an empty answer",
        "line 21, field 'completion'",
        "Fill",
        files={"rows.jsonl": rows('{"prompt": "a", "completion": ""}')},
    ),
    Broken(
        "a wrong role",
        "line 2, field 'messages[1].role'",
        "'assistant'",
        files={
            "rows.jsonl": "\n".join([chat(("user", "a"), ("assistant", "b")), chat(("user", "a"), ("asistant", "b"))])
        },
    ),
    Broken(
        "chats without an answer",
        "line 1",
        "answer",
        files={"rows.jsonl": "\n".join([chat(("user", f"question {i}")) for i in range(20)])},
    ),
    Broken("columns that fit no form", "rows.jsonl", "", files={"rows.jsonl": '{"a": 1, "b": [2]}\n' * 20}),
    Broken("an empty file", "rows.jsonl", "at least one row", files={"rows.jsonl": ""}),
    Broken(
        "bytes that are not UTF-8",
        "rows.jsonl",
        "UTF-8",
        files={"rows.jsonl": b'{"prompt": "\xff\xfe", "completion": "b"}\n'},
    ),
    Broken(
        "rows that are a pickle",
        "rows.pkl",
        "never read",
        whole_recipe="model: '{model}'\ndata: {train: rows.pkl}\n",
        files={"rows.pkl": pickle.dumps([1, 2, 3])},
    ),
    Broken(
        "a pickle under another name",
        "rows.jsonl",
        "never read",
        files={"rows.jsonl": pickle.dumps({"prompt": "a"})},
    ),
    Broken(
        "rows that are too long",
        "line 21",
        "too_long",
        files={"rows.jsonl": rows(json.dumps({"prompt": "a " * 200, "completion": "b"}))},
    ),
    Broken(
        "a folder without data",
        "holds no file whose name says that it is data. It holds README.md",
        "data file itself",
        whole_recipe="model: '{model}'\ndata: {train: folder}\n",
        files={"folder/README.md": ROW},
    ),
    # templates
    Broken(
        "a template without answers",
        "field 'data.chat_template'",
        "data.chat_template",
        whole_recipe=(
            "model: '{model}'\ndata:\n  train: rows.jsonl\n"
            "  chat_template: \"{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}\"\n"
        ),
        files={"rows.jsonl": "\n".join([json.dumps(CHAT)] * 20)},
    ),
    Broken(
        "a template that is not Jinja",
        "field 'data.chat_template'",
        "",
        whole_recipe="model: '{model}'\ndata: {train: rows.jsonl, chat_template: '{% for m in %}'}\n",
        files={"rows.jsonl": "\n".join([json.dumps(CHAT)] * 20)},
    ),
]


@pytest.mark.parametrize("broken", TABLE, ids=lambda broken: broken.what.replace(" ", "-"))
def test_what_is_broken_is_told_with_its_place_and_its_mend(
    broken: Broken,
    tmp_path: Path,
    tiny_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    (tmp_path / "rows.jsonl").write_text(rows())
    for name, content in broken.files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    short = f"model: '{broken.model}'\ndata: {{train: rows.jsonl, max_length: 128}}\n{broken.recipe}\n"
    recipe = short if broken.whole_recipe is None else broken.whole_recipe
    (tmp_path / "recipe.yaml").write_text(recipe.replace("{model}", str(tiny_model)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.StringIO())

    assert main(["train", "recipe.yaml", "--plain-allocator", "--json"]) == broken.code
    out, err = capsys.readouterr()
    error = json.loads(out)["error"]
    assert "Traceback" not in err
    assert error["exit_code"] == broken.code
    assert broken.place in error["message"]
    assert error["mend"]
    assert broken.mend.lower() in error["mend"].lower()


def test_the_table_is_long_enough():
    assert len({broken.what for broken in TABLE}) >= 25
