"""The finer points of each command, within this process; `test_end_to_end.py` takes each through the program itself."""

from __future__ import annotations

import io
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from program import luthier, within

import luthier as package
from luthier.cli import chat as chat_command
from luthier.cli.main import main

Run = Any


@pytest.fixture
def run() -> Run:
    """Run a command in this process, in a folder, with text on standard in."""
    return within


# ── train, resume, runs ─────────────────────────────────────────────────────────────────────────────────────────────


def test_train_prints_the_run_folder_and_leaves_what_it_should(trained: Path):
    folder = trained / "runs" / "recipe-1"
    names = {path.name for path in folder.iterdir()}
    assert names >= {"recipe.yaml", "recipe.resolved.yaml", "metrics.jsonl", "checkpoints", "adapter", "report.md"}
    assert names >= {"loss.png", "environment.json"}
    steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4]


def test_train_keeps_standard_out_for_its_result(desk: Path):
    ended = luthier("train", "recipe.yaml", "--out", "here", "--set", "training.steps=1", folder=desk)
    assert (ended.code, ended.out) == (0, "here\n")
    assert "step 1/1" in ended.err
    assert "Allocator" in ended.err


def test_commands_to_copy_are_quoted_and_a_tilde_is_the_home_folder(
    desk: Path, tiny_model: Path, run: Run, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HOME", str(desk))
    words = ("--out", "~/my run", "--set", "training.steps=1", "--plain-allocator")
    ended = run("train", "recipe.yaml", *words, folder=desk)
    assert (ended.code, ended.out) == (0, f"{desk}/my run\n"), ended.err
    assert f"luthier chat '{desk}/my run' --compare" in ended.err
    again = run("train", "recipe.yaml", *words, folder=desk)
    assert f"luthier resume '{desk}/my run'" in again.err
    (desk / "rows.jsonl").rename(desk / "my rows.jsonl")
    written = run("new", "my rows.jsonl", folder=desk)
    assert "luthier check 'my rows.yaml'" in written.err
    assert "luthier train 'my rows.yaml'" in (desk / "my rows.yaml").read_text()


def test_a_second_run_gets_the_next_number(desk: Path, run: Run):
    (desk / "runs" / "recipe-1").mkdir(parents=True)
    ended = run("train", "recipe.yaml", "--set", "training.steps=1", "--plain-allocator", "--json", folder=desk)
    assert ended.code == 0, ended.err
    document = ended.document
    assert document["folder"] == "runs/recipe-2"
    assert document["steps"] == 1
    assert "Allocator" not in ended.err


def test_a_dry_run_stops_after_the_gate(desk: Path, run: Run):
    ended = run("train", "recipe.yaml", "--dry-run", "--plain-allocator", folder=desk)
    assert ended.code == 0
    assert "⟦Parcel 0 is on its way.<|im_end|>⟧" in ended.out
    assert not (desk / "runs").exists()


def test_train_does_not_write_over_another_run(trained: Path, run: Run):
    ended = run("train", "recipe.yaml", "--out", "runs/recipe-1", "--plain-allocator", folder=trained)
    assert ended.code == 2
    assert "luthier resume" in ended.err


def test_an_unbroken_and_a_resumed_run_end_in_the_same_bits(trained: Path, tmp_path: Path):
    folder = tmp_path / "copy"
    shutil.copytree(trained, folder)
    went = folder / "runs" / "recipe-1"
    shutil.rmtree(went / "checkpoints" / "step-4")
    shutil.rmtree(went / "adapter")
    ended = within("resume", "latest", "--plain-allocator", "--json", folder=folder)
    assert ended.code == 0, ended.err
    assert ended.document["steps"] == 4
    name = "runs/recipe-1/adapter/adapter_model.safetensors"
    assert (folder / name).read_bytes() == (trained / name).read_bytes()
    assert len((went / "metrics.jsonl").read_text().splitlines()) == 4


def test_runs_lists_what_there_is(trained: Path, run: Run):
    listed = run("runs", "--json", folder=trained).document["runs"]
    assert [(each["name"], each["state"], each["step"], each["method"]) for each in listed] == [
        ("recipe-1", "finished", 4, "lora")
    ]
    assert "recipe-1  finished  4/4" in run("runs", folder=trained).out


def test_runs_says_how_to_begin_where_there_is_none(tmp_path: Path, run: Run):
    ended = run("runs", folder=tmp_path)
    assert ended.code == 0
    assert "luthier train" in ended.out
    assert run("runs", "--json", folder=tmp_path).document == {"runs": []}


# ── check, new, schema ──────────────────────────────────────────────────────────────────────────────────────────────


def test_check_takes_a_file_of_rows_alone(desk: Path, tiny_model: Path):
    ended = within("check", "rows.jsonl", "--model", tiny_model, "--json", folder=desk)
    assert ended.code == 0, ended.err
    document = ended.document
    assert (document["ok"], document["rows"], document["form"], document["findings"]) == (True, 40, "completion", [])
    gate = document["gate"]
    assert (gate["rows"], gate["held_out_rows"]) == (32, 8)
    learned = [piece["text"] for piece in gate["shown"][0]["pieces"] if piece["learned"]]
    assert learned == ["Parcel 0 is on its way.<|im_end|>"]


def test_check_tells_every_fault(desk: Path, run: Run):
    rows = (desk / "rows.jsonl").read_text().splitlines()
    rows[1], rows[3] = json.dumps({"prompt": "a"}), json.dumps({"prompt": "a", "completion": ""})
    (desk / "rows.jsonl").write_text("\n".join(rows))
    ended = run("check", "recipe.yaml", "--json", folder=desk)
    assert ended.code == 3
    assert ended.document["ok"] is False
    assert ended.document["error"]["line"] == 2
    found = [(each["severity"], each["line"], each["field"]) for each in ended.document["findings"]]
    assert found == [("error", 2, "completion"), ("error", 4, "completion")]
    assert all(
        each["found"] and each["mend"] and each["file"].endswith("rows.jsonl") for each in ended.document["findings"]
    )
    told = run("check", "recipe.yaml", folder=desk)
    assert told.code == 3
    assert "line 4, field 'completion'" in told.err


def test_check_tells_twenty_faults_and_how_many_more(desk: Path, run: Run):
    rows = [*(desk / "rows.jsonl").read_text().splitlines(), *[json.dumps({"prompt": f"a {i}"}) for i in range(25)]]
    (desk / "rows.jsonl").write_text("\n".join(rows))
    ended = run("check", "recipe.yaml", folder=desk)
    assert ended.err.count("field 'completion': unreadable-row") == 20
    assert "5 more" in ended.err


def test_check_counts_what_a_limit_would_cut_of_rows_that_it_refuses(desk: Path, run: Run):
    long = json.dumps({"prompt": "Where is it?", "completion": "The parcel is here. " * 50})
    (desk / "rows.jsonl").write_text((desk / "rows.jsonl").read_text() + long)
    ended = run("check", "recipe.yaml", "--json", "--report", "page", folder=desk)
    assert ended.code == 3
    assert ended.document["error"]["line"] == 41
    lost, tokens = ended.document["statistics"]["truncation"], ended.document["statistics"]["tokens_are"]
    assert (lost["max_length"], lost["rows"], lost["longer_rows"], tokens) == (128, 41, 1, "counted")
    assert lost["tokens_beyond"] == lost["longest_row"] - 128
    assert lost["learned_tokens_beyond"] == lost["tokens_beyond"] - 1  # the line break after the end of the turn
    said = "1 of 41 rows is longer than data.max_length (128 tokens)"
    assert said in (desk / "page" / "report.md").read_text()
    assert said in run("check", "recipe.yaml", folder=desk).out
    cut = run("check", "recipe.yaml", "--set", "data.too_long=truncate", "--json", folder=desk)
    assert (cut.document["gate"]["ok"], cut.document["statistics"]["truncation"]) == (True, lost)


def test_check_refuses_rows_that_the_models_positions_do_not_reach(desk: Path, run: Run):
    long = json.dumps({"prompt": "a", "completion": "word " * 1100})
    (desk / "rows.jsonl").write_text((desk / "rows.jsonl").read_text() + long)
    words = ("--set", "data.max_length=8000", "--set", "training.tokens_per_micro_batch=8000")
    error = run("check", "recipe.yaml", *words, "--json", folder=desk).document["error"]
    assert (error["kind"], error["line"]) == ("GateRefusal", 41)
    assert "positions serve 1024" in error["found"]


def test_new_writes_a_recipe_that_train_takes(desk: Path, tiny_model: Path, run: Run):
    ended = within("new", "rows.jsonl", "--model", tiny_model, "--out", "mine.yaml", folder=desk)
    assert (ended.code, ended.out) == (0, "mine.yaml\n")
    text = (desk / "mine.yaml").read_text()
    assert "# 40 completion rows from rows.jsonl" in text
    again = run("new", "rows.jsonl", "--out", "mine.yaml", "--json", folder=desk)
    assert again.code == 2
    assert "--force" in again.document["error"]["mend"]
    assert run("train", "mine.yaml", "--dry-run", "--plain-allocator", folder=desk).code == 0


@pytest.mark.parametrize(
    ("row", "options", "kind"),
    [
        ({"text": "Once.", "label": "a"}, (), "classification"),
        ({"text": "Once upon a time."}, (), "clm"),
        ({"text": "Once upon a time."}, ("--objective", "mlm"), "mlm"),
        ({"tokens": ["Anna", "saw"], "tags": ["B-p", "O"]}, (), "token-classification"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, (), "dpo"),
        ({"prompt": "a", "completion": "b"}, ("--objective", "distillation"), "distillation"),
        ({"prompt": "a", "completion": "b", "label": True}, (), "kto"),
    ],
)
def test_new_writes_the_objective_that_rows_are_made_for_or_the_one_asked_for(
    tmp_path: Path, row: dict[str, Any], options: tuple[str, ...], kind: str
) -> None:
    (tmp_path / "mine.jsonl").write_text((json.dumps(row) + "\n") * 5)
    document = within("new", "mine.jsonl", *options, "--json", folder=tmp_path).document
    assert (document["objective"], document["rows"]) == (kind, 5)
    assert f"kind: {kind}" in (tmp_path / "mine.yaml").read_text()


def test_new_tells_objectives_that_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n' * 5)
    ended = within("new", "pairs.jsonl", "--objective", "magic", folder=tmp_path)
    assert (ended.code, "no objective 'magic'" in ended.err) == (2, True)


def test_new_names_the_recipe_after_the_rows_wherever_they_are(desk: Path, run: Run):
    (desk / "deep").mkdir()
    (desk / "rows.jsonl").rename(desk / "deep" / "rows.jsonl")
    document = run("new", "deep/rows.jsonl", "--json", folder=desk).document
    said = {"recipe": "rows.yaml", "format": "completion", "rows": 40, "objective": "sft"}
    assert document == {**said, "reason": document["reason"]}
    assert "train: deep/rows.jsonl" in (desk / "rows.yaml").read_text()


def test_schema_is_a_json_schema(tmp_path: Path, run: Run):
    ended = run("schema", folder=tmp_path)
    assert (ended.code, ended.err) == (0, "")
    assert ended.document["$schema"].startswith("https://json-schema.org/")
    assert set(ended.document["required"]) == {"model", "data"}


# ── evaluate, generate, chat ────────────────────────────────────────────────────────────────────────────────────────


def test_evaluate_compares_base_and_tuned(trained: Path):
    words = ("evaluate", "recipe-1", "--data", "rows.jsonl", "--limit", "12", "--max-new-tokens", "4", "--json")
    ended = within(*words, folder=trained)
    assert ended.code == 0, ended.err
    document = ended.document
    assert document["candidates"] == ["base", "tuned"]
    assert document["rows"] == 12
    names = [measure["name"] for measure in document["measures"]]
    assert names == ["loss", "perplexity", "exact match", "token F1", "ROUGE-L"]
    loss = document["measures"][0]["estimates"]
    assert loss["tuned"]["value"] < loss["base"]["value"]


def test_evaluate_without_data_takes_what_the_run_held_out(trained: Path, run: Run):
    ended = run("evaluate", "latest", "--max-new-tokens", "2", folder=trained)
    assert ended.code == 0, ended.err
    assert "on 8 rows" in ended.out
    assert "reference: Parcel" in ended.out


def test_generate_prints_the_answer_and_nothing_else(trained: Path, run: Run):
    ended = within("generate", "recipe-1", "--prompt", "Where is parcel 3?", "--max-new-tokens", "3", folder=trained)
    assert ended.code == 0, ended.err
    piped = run("generate", "recipe-1", "--max-new-tokens", "3", folder=trained, given="Where is parcel 3?\n")
    assert piped.out == ended.out
    assert ended.out.endswith("\n")


def test_generate_answers_several_prompts_with_the_same_seed_in_the_same_way(trained: Path, run: Run):
    words = ("generate", "latest", "--prompt", "a", "--prompt", "b", "--temperature", "1", "--seed", "5")
    first, again = (run(*words, "--max-new-tokens", "8", "--json", folder=trained).document for _ in range(2))
    assert first == again
    assert [answer["prompt"] for answer in first["answers"]] == ["a", "b"]
    assert first["sampling"]["seed"] == 5
    other = run(*words[:-1], "6", "--max-new-tokens", "8", "--json", folder=trained).document
    assert other["answers"] != first["answers"]


def test_generate_asks_the_base_or_a_plain_model_too(trained: Path, tiny_model: Path, run: Run):
    words = ("--prompt", "a", "--max-new-tokens", "3", "--json")
    base = run("generate", "latest", "--base", *words, folder=trained).document
    plain = run("generate", tiny_model, *words, folder=trained).document
    assert base["adapter"] is None
    assert base["answers"] == plain["answers"]
    assert run("generate", "latest", *words, folder=trained).document["adapter"] == "default"


def test_bytes_that_are_no_text_are_refused_wherever_they_come_in(trained: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"Where\xff\n"), encoding="utf-8"))
    monkeypatch.chdir(trained)
    for command in ("generate", "chat"):
        sys.stdin.seek(0)
        assert main([command, "latest"]) == 2
    assert main(["generate", "latest", "--prompt", "Where\udcff"]) == 3
    with pytest.raises(package.LuthierError, match="no whole character"):
        package.load("latest").generate([{"role": "user", "content": "\ud83d"}])


def test_generate_names_the_setting_that_is_wrong(trained: Path, run: Run):
    ended = run("generate", "latest", "--prompt", "a", "--top-p", "2", "--json", folder=trained)
    assert (ended.code, ended.document["error"]["field"]) == (2, "top_p")
    assert run("generate", "latest", folder=trained).code == 2  # nothing on standard in


def test_generate_gives_several_answers_with_their_log_probabilities(trained: Path, run: Run):
    words = ("generate", "latest", "--prompt", "a", "--prompt", "b", "--temperature", "1", "--max-new-tokens", "6")
    answers = run(*words, "--answers", "3", "--logprobs", "2", "--json", folder=trained).document["answers"]
    assert [answer["prompt"] for answer in answers] == ["a"] * 3 + ["b"] * 3
    assert len({answer["text"] for answer in answers[:3]}) > 1
    for answer in answers:
        assert len(answer["logprobs"]) == answer["tokens"]
        for token in answer["logprobs"]:
            assert token["likeliest"][0]["logprob"] >= token["logprob"] - 1e-6
    first = run(*words, "--json", folder=trained).document["answers"]
    assert [answer["text"] for answer in first] == [answers[0]["text"], answers[3]["text"]]
    assert run(*words, "--logprobs", "2", folder=trained).code == 2


def test_generate_keeps_to_biases_and_constraints(trained: Path, tmp_path: Path, run: Run):
    words = ("generate", "latest", "--prompt", "a", "--json")
    biased = run(*words, "--logit-bias", "7=1e4", "--max-new-tokens", "4", "--logprobs", "0", folder=trained)
    assert [token["token"] for token in biased.document["answers"][0]["logprobs"]] == [7] * 4
    assert run(*words, "--logit-bias", "seven", folder=trained).code == 2
    assert run(*words, "--json-schema", tmp_path / "none.json", folder=trained).code == 4
    pytest.importorskip("llguidance", reason="llguidance is not installed")
    matched = run(*words, "--regex", "[0-9]{3}", folder=trained).document["answers"][0]
    assert re.fullmatch("[0-9]{3}", matched["text"])
    (tmp_path / "schema.json").write_text('{"enum": ["bug", "wish"]}', "utf-8")
    answer = run(*words, "--json-schema", tmp_path / "schema.json", folder=trained).document["answers"][0]
    assert json.loads(answer["text"]) in ("bug", "wish")


def test_answers_keep_to_a_size_of_the_cache_or_are_refused(trained: Path, run: Run):
    size = ("--max-new-tokens", "3", "--cache-gb")
    asked = ("generate", "latest", "--prompt", "Where?")
    assert run(*asked, *size, "0.001", folder=trained).out == run(*asked, *size[:2], folder=trained).out
    for words in (asked, (*asked, "--prompt", "When?"), ("evaluate", "latest", "--no-forgetting")):
        refused = run(*words, *size, "0.000001", folder=trained)
        assert refused.code == 6
        assert "cache_gb" in refused.err
    chat = run("chat", "latest", *size, "0.000001", folder=trained, given="Where?\n")
    assert "of the cache" in chat.err
    assert "/reset" in chat.err


def test_chat_answers_line_by_line_and_remembers(trained: Path, run: Run):
    lines = "hello\n\n/reset\nhello\n/nonsense\nand now\n/quit\nnever\n"
    words = ("chat", "latest", "--compare", "--max-new-tokens", "3")
    ended = run(*words, folder=trained, given=lines)
    assert ended.code == 0, ended.err
    assert ended.out.count("[base] ") == ended.out.count("[tuned] ") == 3
    assert "There is no command /nonsense" in ended.err
    turns = run(*words, "--json", folder=trained, given=lines).document["turns"]
    assert [turn["user"] for turn in turns] == ["hello", "hello", "and now"]
    assert turns[0] == turns[1]
    assert set(turns[0]) == {"user", "base", "tuned"}


def test_a_model_without_a_chat_template_goes_on_from_each_line_alone(
    trained: Path, tiny_model: Path, tmp_path: Path, run: Run
):
    shutil.copytree(tiny_model, tmp_path / "base")
    (tmp_path / "base" / "chat_template.jinja").unlink()
    words = ("--max-new-tokens", "4", "--json")
    told = run("chat", "base", *words, folder=tmp_path, given="Where is\nand\nWhere is\n")
    assert told.code == 0, told.err
    assert "no chat template" in told.err
    first, _, third = [turn["model"] for turn in told.document["turns"]]
    plain = run("generate", "base", "--prompt", "Where is", *words, folder=tmp_path).document["answers"][0]["text"]
    assert first == third == plain
    refused = run("chat", "base", "--system", "Be brief.", *words, folder=tmp_path, given="Where is\n")
    assert (refused.code, refused.document["error"]["field"]) == (3, "data.chat_template")


def test_a_mistyped_run_is_told_with_the_runs_near_it(trained: Path, run: Run):
    for words in (("generate", "recipe", "--prompt", "a"), ("chat", "recipe-2")):
        ended = run(*words, "--json", folder=trained)
        assert ended.code == 4
        assert "did you mean recipe-1?" in ended.document["error"]["mend"]


def test_chat_through_the_program_ends_with_its_input(trained: Path):
    ended = within("chat", "latest", "--max-new-tokens", "2", folder=trained, given="hello\n")
    assert ended.code == 0, ended.err
    assert ended.out.endswith("\n")


def test_a_conversation_that_no_longer_fits_is_told_with_a_way_on(trained: Path, run: Run):
    ended = run("chat", "latest", "--max-new-tokens", "1", folder=trained, given="word " * 1200 + "\nhello\n")
    assert ended.code == 0
    assert "/reset" in ended.err


def test_ctrl_c_breaks_off_an_answer_but_not_a_terminal_chat(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    class Broken:
        def stream(self, text: str) -> Any:
            yield "half an ans"
            raise KeyboardInterrupt

    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    assert chat_command._answer("model", {"model": Broken()}, "hello", as_json=False) is None  # type: ignore[dict-item]
    assert capsys.readouterr().out == "half an ans\n"


@pytest.mark.parametrize("command", ["resume", "evaluate", "chat"])
def test_a_run_that_is_not_there_is_not_found(trained: Path, run: Run, command: str):
    extra = ("--compare",) if command == "chat" else ()
    ended = run(command, "recipe-7", *extra, "--json", folder=trained)
    assert ended.code == 4
    assert "recipe-1" in ended.document["error"]["mend"]


# ── doctor, cache ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_doctor_finds_this_environment_well(tmp_path: Path):
    ended = within("doctor", "--json", folder=tmp_path)
    assert ended.code == 0, ended.out
    report = ended.document
    assert report["problems"] == []
    assert report["cores"] >= 1
    assert report["memory_bytes"] > report["memory_available_bytes"] > 0
    assert report["packages"]["torch"]["installed"].startswith(report["packages"]["torch"]["tested"])


def test_cache_lists_and_clears_what_is_in_the_users_cache(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    entry = tmp_path / ".cache" / "luthier" / "models" / "tiny"
    entry.mkdir(parents=True)
    (entry / "weights").write_bytes(b"x" * 1500)
    assert "models/tiny" in run("cache", "list", folder=tmp_path).out
    assert run("cache", "list", "--json", folder=tmp_path).document["bytes"] == 1500
    assert run("cache", "clear", "tini", folder=tmp_path).code == 4
    assert entry.exists()
    assert run("cache", "clear", "tiny", "--json", folder=tmp_path).document["bytes"] == 1500
    assert not entry.exists()


# ── from Python ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_python_trains_loads_and_asks(desk: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(desk)
    steps: list[int] = []
    values = {
        "model": str(tiny_model),
        "data": {"train": "rows.jsonl", "max_length": 64},
        "training": {"steps": 2, "workers": 1},
    }
    result = package.train(values, out="runs/first", on_step=lambda record: steps.append(record["step"]))
    assert steps == [1, 2]
    model = package.load(result.folder)
    prompt = "Where is parcel 3?"
    text = model.generate(prompt, max_new_tokens=4)
    assert text == model.generate([{"role": "user", "content": prompt}], max_new_tokens=4)
    assert text == "".join(model.stream(prompt, max_new_tokens=4))
    chat = model.chat(system="Be brief.", max_new_tokens=2)
    chat.say("hello")
    assert [message.role for message in chat.messages] == ["system", "user", "assistant"]
    chat.reset()
    assert [message.role for message in chat.messages] == ["system"]


def test_a_broken_off_answer_is_forgotten(trained: Path):
    chat = package.load(trained / "runs" / "recipe-1").chat(max_new_tokens=8)
    next(iter(chat.stream("hello")))
    assert chat.messages == []


def test_python_names_wrong_sampling_and_wrong_messages(trained: Path):
    model = package.load(trained / "runs" / "recipe-1")
    with pytest.raises(package.LuthierError, match="temperature"):
        model.generate("a", temperature=-1)
    with pytest.raises(package.LuthierError, match=r"stop: a stop text is empty, .*leave it out\. Sampling takes"):
        model.generate("a", stop="")
    with pytest.raises(package.LuthierError, match="content"):
        model.generate([{"role": "user"}])


# ── quickstart ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_quickstart_runs_on_any_model_and_names_the_next_commands(tmp_path: Path, tiny_model: Path, run: Run):
    words = ("quickstart", "--model", tiny_model, "--train", "8", "--held-out", "2")
    ended = luthier(*words, "--json", folder=tmp_path)
    assert ended.code == 0, ended.err
    document = ended.document
    assert (document["num_train"], document["num_held_out"]) == (8, 2)
    assert document["run"] == "runs/quickstart-1"
    assert any(command.startswith("luthier chat runs/quickstart-1") for command in document["next_commands"])
    assert (tmp_path / "runs" / "quickstart-1-tickets" / "train.jsonl").is_file()
    assert run("chat", "latest", "--max-new-tokens", "1", folder=tmp_path, given="hello\n").code == 0
