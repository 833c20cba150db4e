"""What a user does, through the installed program and from Python, on a tiny model; the names that scripts rely on."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import yaml
from near import assert_near
from processes import luthier
from program import within
from tiny_model import write_tiny_model
from tiny_runs import nothing, recipe_values, write_rows
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

import luthier as package

METRICS = ["step", "loss", "learned_tokens", "real_tokens", "seconds", "tokens_per_second", "lr", "grad_norm"]
METRICS += ["memory_bytes", "peak_memory_bytes"]
PROMPT = "Where is order 3, the radio?"
SHORT = ["--max-new-tokens", "4"]


@dataclass(frozen=True)
class Ended:
    """A command that ended well: what it printed for programs, and what for people."""

    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        """Standard out, which must be one JSON document and nothing else."""
        document = json.loads(self.out)
        assert isinstance(document, dict)
        return document


def ended_well(*words: str | Path, folder: Path, given: str = "") -> Ended:
    return well(*luthier(*words, folder=folder, given=given))


def ended_well_within(*words: str | Path, folder: Path, given: str = "") -> Ended:
    """In this process: for a command that another test takes through the program."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(folder))
        ended = within(*words, folder=folder, given=given)
    return well(ended.code, ended.out, ended.err)


def well(code: int, out: str, err: str) -> Ended:
    assert code == 0, err
    assert "Traceback" not in err
    assert "Warning" not in err
    return Ended(out, err)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with model/, rows.jsonl, recipe.yaml (LoRA) and full.yaml."""
    desk = tmp_path_factory.mktemp("desk")
    write_tiny_model(desk / "model")
    write_rows(desk / "rows.jsonl", 60)
    values = recipe_values(
        Path("model"),
        Path("rows.jsonl"),
        data={"validation": None},
        training={"steps": 9, "evaluate_every": 2, "trackers": ["tensorboard"]},
    )
    (desk / "recipe.yaml").write_text(yaml.safe_dump(values))
    full = {**values, "method": {"kind": "full"}, "training": {**values["training"], "peak_lr": 0.001}}
    (desk / "full.yaml").write_text(yaml.safe_dump(full))
    return desk


@pytest.fixture(scope="module")
def trained(desk: Path) -> Ended:
    """`luthier train` with LoRA into lora/, as JSON."""
    words = ["train", "recipe.yaml", "--out", "lora", "--set", "training.steps=4", "--set", "method.alpha=8"]
    return ended_well(*words, "--json", folder=desk)


@pytest.fixture(scope="module")
def lora(desk: Path, trained: Ended) -> Path:
    """The run folder of `trained`."""
    return desk / "lora"


@pytest.fixture(scope="module")
def full(desk: Path) -> Ended:
    """`luthier train` with full tuning into the folder that it chooses, for people to read."""
    return ended_well_within("train", "full.yaml", "--plain-allocator", "--set", "training.steps=2", folder=desk)


# ── a run and what it leaves ────────────────────────────────────────────────────────────────────────────────────────


def test_train_prints_its_result_on_standard_out_and_its_progress_on_standard_error(trained: Ended) -> None:
    result = trained.document
    assert (result["folder"], result["steps"], result["stopped_early"]) == ("lora", 4, False)
    assert result["final_loss"] > 0
    assert result["best_validation_loss"] > 0
    assert result["best_step"] in (2, 4)
    assert "step 4/4" in trained.err
    assert "60 rows, read as completion" in trained.err
    assert "12 held out" in trained.err


def test_a_run_leaves_the_files_that_scripts_rely_on(lora: Path) -> None:
    names = {"recipe.yaml", "recipe.resolved.yaml", "metrics.jsonl", "report.md", "loss.png", "environment.json"}
    names |= {"report.html", "report.json"}
    assert names | {"checkpoints", "adapter"} <= {path.name for path in lora.iterdir()}
    assert {path.name for path in (lora / "checkpoints").iterdir()} == {"step-2", "step-4"}
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {path.name for path in (lora / "adapter").iterdir()}
    assert (lora / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert "| Steps | 4 |" in (lora / "report.md").read_text()
    assert any((lora / "tensorboard").iterdir())


def test_the_metrics_have_a_line_a_step_with_the_keys_that_scripts_rely_on(lora: Path) -> None:
    lines = [json.loads(line) for line in (lora / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    for line in lines:
        is_evaluated = line["step"] in (2, 4)
        assert set(line) == {*METRICS, "epoch"} | ({"validation_loss"} if is_evaluated else set())
        assert all(isinstance(value, int | float) and value >= 0 for value in line.values())
        assert 0 < line["learned_tokens"] < line["real_tokens"] <= 4 * 192
        assert line["tokens_per_second"] == pytest.approx(line["real_tokens"] / line["seconds"])
        assert line["peak_memory_bytes"] > 2**20


def test_the_resolved_recipe_tells_all_that_a_run_was_made_with(lora: Path) -> None:
    resolved = yaml.safe_load((lora / "recipe.resolved.yaml").read_text())
    assert resolved["seed"] == 7
    assert (resolved["training"]["steps"], resolved["method"]["alpha"]) == (4, 8.0)
    facts = {"luthier", "torch", "transformers", "model_sha256", "data_sha256", "companions"}
    assert set(resolved["provenance"]) == facts
    assert resolved["provenance"]["companions"] == {}
    assert resolved["provenance"]["luthier"] == package.__version__
    assert json.loads((lora / "environment.json").read_text())["torch"] == torch.__version__
    assert yaml.safe_load((lora / "recipe.yaml").read_text())["training"]["steps"] == 4


def test_without_out_a_run_gets_a_numbered_folder_and_prints_it_alone(desk: Path, full: Ended) -> None:
    assert full.out == "runs/full-1\n"
    assert {"recipe.yaml", "metrics.jsonl", "model", "report.md"} <= {p.name for p in (desk / "runs/full-1").iterdir()}
    assert not (desk / "runs" / "full-1" / "adapter").exists()
    assert "luthier chat runs/full-1 --compare" in full.err


# ── every command's --json ──────────────────────────────────────────────────────────────────────────────────────────


def test_resuming_a_finished_run_gives_its_result_again(desk: Path, lora: Path, trained: Ended) -> None:
    assert ended_well("resume", "lora", "--json", folder=desk).document == trained.document


def test_check_takes_a_file_of_rows_or_a_recipe(desk: Path) -> None:
    of_rows = ended_well(
        "check", "rows.jsonl", "--model", "model", "--set", "data.max_length=192", "--json", folder=desk
    ).document
    of_recipe = ended_well_within("check", "recipe.yaml", "--json", folder=desk).document
    assert of_rows["ok"] is True
    assert of_rows["gate"]["rows"] + of_rows["gate"]["held_out_rows"] == of_rows["rows"] == 60
    learned = {piece["text"] for row in of_rows["gate"]["shown"] for piece in row["pieces"] if piece["learned"]}
    assert any(text.startswith("Order ") for text in learned)
    assert not any("Where is" in text for text in learned)
    assert of_recipe == of_rows


def test_a_dry_run_ends_with_what_the_gate_says(desk: Path) -> None:
    document = ended_well_within(
        "train", "recipe.yaml", "--out", "dry", "--dry-run", "--plain-allocator", "--json", folder=desk
    ).document
    assert (document["ok"], document["rows"]) == (True, 48)
    assert not (desk / "dry").exists()


def test_evaluate_sets_base_and_tuned_side_by_side(desk: Path, lora: Path) -> None:
    words = ["evaluate", "lora", "--data", "rows.jsonl", "--limit", "5", *SHORT, "--json"]
    document = ended_well(*words, folder=desk).document
    assert (document["run"], document["candidates"], document["rows"]) == ("lora", ["base", "tuned"], 5)
    measures = {measure["name"]: measure["estimates"] for measure in document["measures"]}
    assert list(measures) == ["loss", "perplexity", "exact match", "token F1", "ROUGE-L"]
    assert measures["loss"]["tuned"]["value"] < measures["loss"]["base"]["value"]


def test_generate_answers_a_prompt_from_a_pipe(desk: Path, lora: Path) -> None:
    document = ended_well("generate", "lora", *SHORT, "--json", folder=desk, given=f"{PROMPT}\n").document
    (answer,) = document["answers"]
    assert (document["model"], document["adapter"]) == ("lora", "default")
    assert (answer["prompt"], answer["finish_reason"], answer["tokens"]) == (PROMPT, "length", 4)


def test_chat_reads_lines_from_a_pipe_and_compares(desk: Path, lora: Path) -> None:
    said = f"{PROMPT}\nAnd the lamp?\n"
    document = ended_well("chat", "lora", "--compare", *SHORT, "--json", folder=desk, given=said).document
    assert [turn["user"] for turn in document["turns"]] == said.splitlines()
    assert all(set(turn) == {"user", "base", "tuned"} and None not in turn.values() for turn in document["turns"])


def test_chat_prints_answers_alone_on_standard_out(desk: Path, lora: Path) -> None:
    plain = ended_well_within("chat", "lora", "--max-new-tokens", "1", folder=desk, given=PROMPT)
    assert plain.out
    assert "weights" not in plain.out
    assert "weights" in plain.err


def test_new_writes_a_recipe_that_a_dry_run_takes(desk: Path) -> None:
    words = ["new", "rows.jsonl", "--model", "model", "--out", "mine.yaml", "--json"]
    document = ended_well(*words, folder=desk).document
    assert (document["recipe"], document["format"], document["rows"]) == ("mine.yaml", "completion", 60)
    assert (
        ended_well_within("train", "mine.yaml", "--dry-run", "--plain-allocator", "--json", folder=desk).document["ok"]
        is True
    )


def test_runs_lists_the_runs(desk: Path, full: Ended) -> None:
    (run,) = ended_well("runs", "--json", folder=desk).document["runs"]
    assert (run["name"], run["state"], run["step"], run["total_steps"]) == ("full-1", "finished", 2, 2)
    assert (run["method"], run["model"].rpartition("/")[2]) == ("full", "model")


def test_schema_doctor_and_cache_each_print_one_document(desk: Path) -> None:
    schema = ended_well("schema", "--json", folder=desk).document
    assert {"model", "data", "method", "objective", "training", "quantization", "seed"} <= set(schema["properties"])
    assert ended_well("doctor", "--json", folder=desk).document
    cache = ended_well("cache", "list", "--json", folder=desk).document
    assert Path(cache["folder"]) == desk / ".cache" / "luthier"


# ── the files in other tools, and Python ────────────────────────────────────────────────────────────────────────────


def logits_of(run: str, texts: list[str]) -> list[Tensor]:
    """What Luthier computes after each text."""
    model = package.load(run)
    logits = []
    for text in texts:
        tokens_BT = torch.tensor([model.language_model.tokenizer(text)["input_ids"]])
        positions_BT = torch.arange(tokens_BT.shape[1])[None]
        with torch.no_grad():
            logits_BV = model.language_model.decode(
                tokens_BT, positions_BT, torch.ones_like(tokens_BT), DynamicCache(), model.adapter
            )
        logits.append(logits_BV[0])
    return logits


def plain_logits(hf: torch.nn.Module, folder: Path, texts: list[str]) -> list[Tensor]:
    """What another library's model computes after each text."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        return [hf(torch.tensor([tokenizer(text)["input_ids"]])).logits[0, -1] for text in texts]


TEXTS = [PROMPT, "Order 3 is", "The total"]


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_an_adapter_gives_the_same_logits_in_peft(desk: Path, lora: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(desk)
    base = AutoModelForCausalLM.from_pretrained(desk / "model")
    before = plain_logits(base, desk / "model", TEXTS)
    tuned = peft.PeftModel.from_pretrained(base, lora / "adapter").eval()
    ours = logits_of("lora", TEXTS)
    for own, theirs, untuned in zip(ours, plain_logits(tuned, desk / "model", TEXTS), before, strict=True):
        assert_near(own, theirs)
        assert float((own - untuned).abs().max()) > 1e-3


def test_a_fully_tuned_model_gives_the_same_logits_in_transformers(
    desk: Path, full: Ended, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(desk)
    folder = desk / "runs" / "full-1" / "model"
    before = plain_logits(AutoModelForCausalLM.from_pretrained(desk / "model"), desk / "model", TEXTS)
    theirs = plain_logits(AutoModelForCausalLM.from_pretrained(folder), folder, TEXTS)
    for own, other, untuned in zip(logits_of("full-1", TEXTS), theirs, before, strict=True):
        assert_near(own, other)
        assert float((own - untuned).abs().max()) > 1e-3


def test_python_trains_from_a_dictionary_and_asks_the_result(
    desk: Path, lora: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same recipe from Python, on the same threads, gives the bytes that the program gave."""
    monkeypatch.chdir(desk)
    values = yaml.safe_load((lora / "recipe.yaml").read_text())
    steps: list[int] = []
    result = package.train(values, out="python", on_step=lambda metrics: steps.append(metrics["step"]))
    assert (result.folder, result.steps, steps) == (Path("python"), 4, [1, 2, 3, 4])
    weights = [Path(run) / "adapter" / "adapter_model.safetensors" for run in ("python", "lora")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    model = package.load("python", nothing)
    assert model.generate(PROMPT, max_new_tokens=4) == package.load("lora").generate(PROMPT, max_new_tokens=4)
    assert "".join(model.stream(PROMPT, max_new_tokens=4)) == model.generate(PROMPT, max_new_tokens=4)
