"""A run that was stopped and resumed ends in the same bits as one that was not, wherever it was stopped."""

from __future__ import annotations

import json
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from tiny_model import write_tiny_model
from tiny_runs import Cut, begin, course, cut_after, files_of, go_on, one_thread, outcome, recipe_values, write_rows

from luthier.errors import Interrupted, LuthierError, NotFound, RecipeError, RunMismatch
from luthier.recipe import load_recipe
from luthier.store.runs import read_run

Part = dict[str, Any]

# What else a run may do, beyond six steps of LoRA on one worker without held-out rows.
KINDS: dict[str, dict[str, Part]] = {
    "plain": {},
    "full": {"method": {"kind": "full", "rank": None}, "training": {"peak_lr": 0.001}},
    "adalora": {
        "method": {"kind": "adalora", "rank": None, "init_rank": 3, "target_rank": 2},
        "training": {"steps": 8},
    },
    "lets": {"method": {"kind": "lets", "rank": None, "width": 6, "search_share": 0.3}, "training": {"steps": 8}},
    "lets, best before it is pruned": {
        "data": {"validation": "held-out"},
        "method": {"kind": "lets", "rank": None, "width": 6, "prune_steps": 2},
        "training": {"steps": 12, "evaluate_every": 2, "early_stopping": {"patience": 2, "min_delta": 0.5}},
    },
    "pissa": {"method": {"kind": "pissa", "niter": 2}},
    "dropout": {"method": {"dropout": 0.4, "lr_ratio": 4}},
    "on from another": {"method": {"from": "plain", "rank": None}},
    "virtual tokens": {
        "method": {"kind": "p-tuning", "rank": None, "num_virtual_tokens": 4, "encoder": "LSTM", "hidden": 8},
        "training": {"workers": 2},
    },
    "changes of the stream": {"method": {"kind": "loreft", "first": 2, "last": 3}, "training": {"workers": 2}},
    "parts behind gates": {"method": {"kind": "unipelt", "rank": None, "lora": {"rank": 2, "dropout": 0.4}}},
    "two workers": {"training": {"workers": 2, "tokens_per_micro_batch": 96}, "data": {"max_length": 96}},
    "gradient checkpointing": {"training": {"gradient_checkpointing": True}, "method": {"dropout": 0.4}},
    "over four bits": {"quantization": {"kind": "nf4"}, "training": {"workers": 2}},
    "over four bits, recomputed": {
        "quantization": {"kind": "fp4", "block": 32, "compute": "bf16"},
        "training": {"gradient_checkpointing": True},
        "method": {"dropout": 0.4},
    },
    "lion": {"training": {"optimizer": {"kind": "lion"}, "peak_lr": 0.002, "workers": 2}},
    "all weights, paged in eight bits": {
        "method": {"kind": "full", "rank": None},
        "training": {"peak_lr": 0.001, "optimizer": {"kind": "paged-adamw-8bit", "full_below": 100}},
    },
    "all weights, projected": {
        "method": {"kind": "full", "rank": None},
        "training": {"peak_lr": 0.001, "optimizer": {"kind": "galore", "rank": 4, "refresh_every": 2}},
    },
    "all weights by muon": {
        "method": {"kind": "full", "rank": None},
        "training": {"peak_lr": 0.001, "optimizer": {"kind": "muon"}},
    },
    "tokens per step": {"training": {"rows_per_step": None, "tokens_per_step": 160}},
    "part of an epoch": {"training": {"steps": None, "epochs": 1.4, "checkpoint_every": 3}},
    "bf16": {"training": {"autocast": "bf16", "clip_norm": 0.1}},
    "best checkpoint": {"data": {"validation": "held-out"}, "training": {"evaluate_every": 1, "keep_last": 1}},
    "early stopping": {
        "data": {"validation": "held-out"},
        "training": {
            "steps": 12,
            "evaluate_every": 2,
            "checkpoint_every": 5,
            "keep_last": 1,
            "early_stopping": {"patience": 2, "min_delta": 0.5},
        },
    },
}


@dataclass(frozen=True)
class Workshop:
    """The model and the rows that every run here begins from, and the unbroken runs made so far."""

    folder: Path
    unbroken_runs: dict[str, Path]

    def values(self, kind: str = "plain") -> dict[str, Any]:
        parts = {name: dict(changes) for name, changes in KINDS[kind].items()}
        if parts.get("data", {}).get("validation") == "held-out":
            parts["data"]["validation"] = str(self.folder / "held-out.jsonl")
        if "from" in parts.get("method", {}):
            parts["method"]["from"] = str(self.unbroken(parts["method"]["from"]))
        return recipe_values(self.folder / "model", self.folder / "rows.jsonl", **parts)

    def unbroken(self, kind: str = "plain") -> Path:
        if kind not in self.unbroken_runs:
            self.unbroken_runs[kind] = self.folder / "unbroken" / kind
            begin(self.values(kind), self.unbroken_runs[kind])
        return self.unbroken_runs[kind]


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    """A model, 18 rows and 5 held-out ones."""
    folder = tmp_path_factory.mktemp("resume")
    write_tiny_model(folder / "model")
    write_rows(folder / "rows.jsonl", 18)
    write_rows(folder / "held-out.jsonl", 5, start=100)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(folder))
        with one_thread():
            yield Workshop(folder, {})


def asked_to_stop_in(step: int, number: int = signal.SIGTERM) -> Callable[[dict[str, Any]], None]:
    """A wish to stop that comes during a step."""

    def on_step(metrics: dict[str, Any]) -> None:
        if metrics["step"] == step:
            signal.raise_signal(number)

    return on_step


def broken_off(values: dict[str, Any], folder: Path, step: int, is_cut: bool = True) -> None:
    """Begin a run and break it off after a step."""
    on_step = cut_after(step) if is_cut else asked_to_stop_in(step)
    with pytest.raises(Cut if is_cut else Interrupted):
        begin(values, folder, on_step)


@pytest.mark.parametrize("is_cut", [True, False], ids=["cut off", "asked to stop"])
@pytest.mark.parametrize("step", range(1, 6))
def test_a_run_stopped_after_any_step_ends_in_the_same_bits(
    workshop: Workshop, tmp_path: Path, step: int, is_cut: bool
) -> None:
    broken_off(workshop.values(), tmp_path / "run", step, is_cut)
    result = go_on(tmp_path / "run")
    assert result.steps == 6
    assert outcome(tmp_path / "run") == outcome(workshop.unbroken())
    assert [line["step"] for line in course(tmp_path / "run")] == list(range(1, 7))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "plain"])
def test_a_run_stopped_again_and_again_ends_in_the_same_bits(workshop: Workshop, tmp_path: Path, kind: str) -> None:
    """Asked to stop after step 1, cut off after 2, asked to stop after 3 …: every state that a run can have is taken up."""
    unbroken = workshop.unbroken(kind)
    num_steps = len(course(unbroken))
    assert num_steps >= 4
    folder = tmp_path / "run"
    broken_off(workshop.values(kind), folder, 1, is_cut=False)
    for step in range(2, num_steps):
        is_cut = step % 2 == 0
        with pytest.raises((Cut, Interrupted)):
            go_on(folder, cut_after(step) if is_cut else asked_to_stop_in(step))
    go_on(folder)
    assert outcome(folder) == outcome(unbroken)


def test_the_kinds_of_runs_tried_here_are_different_runs(workshop: Workshop) -> None:
    results = [json.dumps(outcome(workshop.unbroken(kind))) for kind in KINDS if kind != "best checkpoint"]
    assert len(set(results)) == len(results)


def test_early_stopping_ends_before_the_last_step_and_keeps_the_best_weights(
    workshop: Workshop, tmp_path: Path
) -> None:
    """No evaluation comes 0.5 nats below the first, so patience ends with the third."""
    folder = tmp_path / "run"
    result = begin(workshop.values("early stopping"), folder)
    assert (result.stopped_early, result.steps, result.best_step) == (True, 6, 2)
    losses = {line["step"]: line["validation_loss"] for line in course(folder) if "validation_loss" in line}
    assert sorted(losses) == [2, 4, 6]
    assert result.best_validation_loss == losses[2]
    saved = load_file(folder / "checkpoints" / "step-2" / "trainables.safetensors")
    last = load_file(folder / "checkpoints" / "step-6" / "trainables.safetensors")
    written = load_file(folder / "adapter" / "adapter_model.safetensors")
    assert len(saved) == len(written)
    assert all(torch.equal(written[f"base_model.model.{name}"], tensor) for name, tensor in saved.items())
    assert any(not torch.equal(last[name], tensor) for name, tensor in saved.items())


def test_the_best_weights_may_be_those_of_a_step_before_the_pruning(workshop: Workshop) -> None:
    folder = workshop.unbroken("lets, best before it is pruned")
    saved, last = (load_file(folder / "checkpoints" / f"step-{n}" / "trainables.safetensors") for n in (2, 6))
    written = load_file(folder / "adapter" / "luthier_adapter.safetensors")
    assert torch.equal(written["project.weight"], saved["project.weight"])
    values = {name.removesuffix(".values"): tensor for name, tensor in written.items() if name.endswith(".values")}
    assert values
    for name, tensor in values.items():
        assert torch.equal(tensor, saved[name][saved[name] != 0])
        assert last[name].dim() == 1
        assert saved[name].dim() == 2


def test_a_stop_in_the_last_step_comes_too_late_to_stop_anything(workshop: Workshop, tmp_path: Path) -> None:
    begin(workshop.values(), tmp_path / "run", asked_to_stop_in(6))
    assert outcome(tmp_path / "run") == outcome(workshop.unbroken())


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_run_says_how_to_go_on(workshop: Workshop, tmp_path: Path, number: int, exit_code: int) -> None:
    with pytest.raises(Interrupted, match=r"after step 3 of 6; the state is saved") as stopped:
        begin(workshop.values(), tmp_path / "run", asked_to_stop_in(3, number))
    assert stopped.value.exit_code == exit_code
    assert f"luthier resume {tmp_path / 'run'}" in stopped.value.mend
    assert (tmp_path / "run" / "checkpoints" / "step-3").is_dir()


def test_after_a_run_the_signals_mean_what_they_meant_before(workshop: Workshop, tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    broken_off(workshop.values(), tmp_path / "run", 1, is_cut=False)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_a_second_ctrl_c_stops_at_once_and_loses_nothing(workshop: Workshop, tmp_path: Path) -> None:
    def twice(metrics: dict[str, Any]) -> None:
        if metrics["step"] == 3:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        begin(workshop.values(), tmp_path / "run", twice)
    assert not (tmp_path / "run" / "checkpoints" / "step-3").exists()
    go_on(tmp_path / "run")
    assert outcome(tmp_path / "run") == outcome(workshop.unbroken())


@pytest.mark.parametrize("kind", ["plain", "full", "early stopping"])
def test_resuming_a_finished_run_changes_nothing(workshop: Workshop, tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "run"
    result = begin(workshop.values(kind), folder)
    before = files_of(folder)
    said: list[str] = []
    assert go_on(folder, announce=said.append) == result
    assert files_of(folder) == before
    assert any("finished" in sentence for sentence in said)


def test_a_finished_run_without_its_checkpoints_is_still_finished(workshop: Workshop, tmp_path: Path) -> None:
    begin(workshop.values(), tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    before = files_of(tmp_path / "run")
    go_on(tmp_path / "run")
    assert files_of(tmp_path / "run") == before


def test_a_finished_run_whose_adapter_is_damaged_writes_it_again(workshop: Workshop, tmp_path: Path) -> None:
    begin(workshop.values(), tmp_path / "run")
    (tmp_path / "run" / "adapter" / "adapter_model.safetensors").write_bytes(b"")
    go_on(tmp_path / "run")
    assert outcome(tmp_path / "run") == outcome(workshop.unbroken())


# ── what a run must not go on with ──────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Own:
    """A model and rows that a test may change."""

    model: Path
    rows: Path
    held_out: Path
    run: Path

    def values(self) -> dict[str, Any]:
        return recipe_values(self.model, self.rows, data={"validation": str(self.held_out)})


@pytest.fixture
def own(workshop: Workshop, tmp_path: Path) -> Own:
    """Copies of the workshop's model and rows."""
    shutil.copytree(workshop.folder / "model", tmp_path / "model")
    shutil.copy(workshop.folder / "rows.jsonl", tmp_path / "rows.jsonl")
    shutil.copy(workshop.folder / "held-out.jsonl", tmp_path / "held-out.jsonl")
    return Own(tmp_path / "model", tmp_path / "rows.jsonl", tmp_path / "held-out.jsonl", tmp_path / "run")


def change_rows(own: Own) -> None:
    write_rows(own.rows, 18, start=1)


def change_order_of_rows(own: Own) -> None:
    lines = own.rows.read_text().splitlines(keepends=True)
    own.rows.write_text("".join(reversed(lines)))


def change_held_out_rows(own: Own) -> None:
    write_rows(own.held_out, 5, start=101)


def change_weights(own: Own) -> None:
    path = own.model / "model.safetensors"
    tensors = load_file(path)
    name = sorted(tensors)[0]
    tensors[name] = tensors[name] + 0.5
    save_file(tensors, path, metadata={"format": "pt"})


def change_template(own: Own) -> None:
    path = own.model / "chat_template.jinja"
    path.write_text(path.read_text().replace("<|im_end|>\n", "<|im_end|>"))


@pytest.mark.parametrize("step", [1, 3], ids=["before the first checkpoint", "after it"])
@pytest.mark.parametrize(
    ("change", "named"),
    [
        (change_rows, "data"),
        (change_order_of_rows, "data"),
        (change_held_out_rows, "data"),
        (change_template, "data"),
        (change_weights, "model"),
    ],
)
def test_a_run_does_not_go_on_with_something_else_than_it_began_with(
    own: Own, change: Callable[[Own], None], named: str, step: int
) -> None:
    broken_off(own.values(), own.run, step)
    before = files_of(own.run)
    change(own)
    with pytest.raises(RunMismatch) as refused:
        go_on(own.run)
    assert refused.value.found.lower().startswith(f"the {named} ")
    assert refused.value.field == f"provenance.{named}_sha256"
    assert refused.value.exit_code == 3
    changed = {name for name, content in files_of(own.run).items() if before.get(name) != content}
    assert changed <= {"status.json"}


def test_a_run_goes_on_when_what_was_changed_is_put_back(own: Own) -> None:
    begin(own.values(), own.run.with_name("unbroken"))
    broken_off(own.values(), own.run, 3)
    rows = own.rows.read_bytes()
    change_rows(own)
    with pytest.raises(RunMismatch):
        go_on(own.run)
    own.rows.write_bytes(rows)
    go_on(own.run)
    assert outcome(own.run) == outcome(own.run.with_name("unbroken"))


def test_a_run_does_not_go_on_with_another_shape_of_its_method(own: Own) -> None:
    broken_off(own.values(), own.run, 3)
    resolved = own.run / "recipe.resolved.yaml"
    resolved.write_text(resolved.read_text().replace("rank: 2\n", "rank: 3\n"))
    with pytest.raises(RunMismatch, match="not those that the recipe trains now") as refused:
        go_on(own.run)
    assert "recipe.resolved.yaml" in refused.value.mend


def test_a_run_whose_folder_and_rows_were_moved_goes_on_once_it_is_told_where_they_are(
    own: Own, tmp_path: Path
) -> None:
    begin(own.values(), tmp_path / "unbroken")
    broken_off(own.values(), own.run, 3)
    own.run.rename(tmp_path / "moved run")
    own.rows.rename(tmp_path / "moved rows.jsonl")
    with pytest.raises(NotFound) as refused:
        go_on(tmp_path / "moved run")
    resolved = tmp_path / "moved run" / "recipe.resolved.yaml"
    assert f"write its new path into {resolved}" in refused.value.mend
    resolved.write_text(resolved.read_text().replace(str(own.rows), str(tmp_path / "moved rows.jsonl")))
    go_on(tmp_path / "moved run")
    assert outcome(tmp_path / "moved run") == outcome(tmp_path / "unbroken")


def test_a_folder_without_a_recipe_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"no recipe\.yaml"):
        go_on(tmp_path)


# ── damage ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def flip_a_byte(checkpoint: Path) -> None:
    path = checkpoint / "optimizer.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


def lose_a_file(checkpoint: Path) -> None:
    (checkpoint / "trainables.safetensors").unlink()


def cut_the_manifest(checkpoint: Path) -> None:
    path = checkpoint / "manifest.json"
    path.write_bytes(path.read_bytes()[:20])


def lose_the_manifest(checkpoint: Path) -> None:
    (checkpoint / "manifest.json").unlink()


def empty_the_folder(checkpoint: Path) -> None:
    for path in checkpoint.iterdir():
        path.unlink()


DAMAGES = [flip_a_byte, lose_a_file, cut_the_manifest, lose_the_manifest, empty_the_folder]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_last_checkpoint_is_named_and_the_one_before_serves(
    workshop: Workshop, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    folder = tmp_path / "run"
    broken_off(workshop.values(), folder, 5)
    damage(folder / "checkpoints" / "step-4")
    said: list[str] = []
    go_on(folder, announce=said.append)
    assert any("step 4 is passed over" in sentence for sentence in said)
    assert "Going on from step 2." in said
    assert outcome(folder) == outcome(workshop.unbroken())


@pytest.mark.parametrize("damage", DAMAGES)
def test_without_a_whole_checkpoint_the_run_begins_again_and_says_so(
    workshop: Workshop, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    folder = tmp_path / "run"
    broken_off(workshop.values(), folder, 5)
    for step in (2, 4):
        damage(folder / "checkpoints" / f"step-{step}")
    said: list[str] = []
    go_on(folder, announce=said.append)
    assert any("beginning" in sentence for sentence in said)
    assert outcome(folder) == outcome(workshop.unbroken())


def test_a_damaged_checkpoint_does_not_push_out_the_next_one(workshop: Workshop, tmp_path: Path) -> None:
    """One checkpoint is kept; that of step 4 lies there damaged, and the run stops again after step 3."""
    folder = tmp_path / "run"
    values = workshop.values()
    values["training"]["keep_last"] = 1
    broken_off(values, folder, 5)
    flip_a_byte(folder / "checkpoints" / "step-4")
    with pytest.raises(Interrupted):
        go_on(folder, asked_to_stop_in(3))
    said: list[str] = []
    go_on(folder, announce=said.append)
    assert "Going on from step 3." in said
    assert outcome(folder) == outcome(workshop.unbroken())


@pytest.mark.parametrize("damage", DAMAGES)
def test_where_the_best_checkpoint_is_lost_the_last_weights_are_kept_and_that_is_said(
    workshop: Workshop, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    folder = tmp_path / "run"

    def lose(metrics: dict[str, Any]) -> None:
        if metrics["step"] == 6:
            damage(folder / "checkpoints" / "step-2")

    said: list[str] = []
    result = begin(workshop.values("early stopping"), folder, lose, said.append)
    assert (result.stopped_early, result.best_step) == (True, 2)
    (sentence,) = [sentence for sentence in said if "checkpoint is lost" in sentence]
    assert "weights of the last step, 6, are kept" in sentence
    last = load_file(folder / "checkpoints" / "step-6" / "trainables.safetensors")
    written = load_file(folder / "adapter" / "adapter_model.safetensors")
    assert all(torch.equal(written[f"base_model.model.{name}"], tensor) for name, tensor in last.items())


@pytest.mark.parametrize("tail", [b'{"step": 6, "lo', b"\x00\x00\x00\x00", b'{"step": 6}', b"\n"])
def test_a_torn_last_line_of_the_metrics_is_mended(workshop: Workshop, tmp_path: Path, tail: bytes) -> None:
    broken_off(workshop.values(), tmp_path / "run", 5)
    with (tmp_path / "run" / "metrics.jsonl").open("ab") as metrics:
        metrics.write(tail)
    go_on(tmp_path / "run")
    assert outcome(tmp_path / "run") == outcome(workshop.unbroken())


def test_a_run_that_failed_before_its_first_step_may_be_begun_again(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mended recipe goes to the same --out, whether the fault was found early or late."""
    wrong = workshop.values()
    wrong["method"]["targets"] = ["no_such_layer"]
    with pytest.raises(RecipeError) as early:
        begin(wrong, tmp_path / "run")
    wrong = workshop.values()
    wrong["training"]["trackers"] = ["wandb"]
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(RecipeError, match="not installed") as late:
        begin(wrong, tmp_path / "run")
    assert (tmp_path / "run" / "recipe.resolved.yaml").exists()
    assert "luthier resume" not in early.value.mend + late.value.mend
    begin(workshop.values(), tmp_path / "run")
    assert outcome(tmp_path / "run") == outcome(workshop.unbroken())


@pytest.mark.parametrize("name", ["notes.txt", "recipe.yaml"])
def test_a_folder_that_holds_something_is_not_begun_in(workshop: Workshop, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / name).write_text("mine")
    with pytest.raises(LuthierError, match="not empty") as refused:
        begin(workshop.values(), folder)
    assert refused.value.exit_code == 2
    assert files_of(folder) == {name: b"mine"}


def test_a_run_that_took_a_step_is_not_begun_again(workshop: Workshop, tmp_path: Path) -> None:
    broken_off(workshop.values(), tmp_path / "run", 1)
    with pytest.raises(LuthierError, match="not empty") as refused:
        begin(workshop.values(), tmp_path / "run")
    assert f"luthier resume {tmp_path / 'run'}" in refused.value.mend


# ── what a run says of itself ───────────────────────────────────────────────────────────────────────────────────────


def test_the_status_tells_how_a_run_ended(workshop: Workshop, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    wrong = workshop.values()
    wrong["method"]["targets"] = ["no_such_layer"]
    with pytest.raises(LuthierError):
        begin(wrong, folder)
    assert (read_run(folder).state, "no_such_layer" in read_run(folder).message) == ("failed", True)
    broken_off(workshop.values(), folder, 2)
    assert (read_run(folder).state, read_run(folder).step) == ("stopped", 2)
    with pytest.raises(Interrupted):
        go_on(folder, asked_to_stop_in(3))
    assert (read_run(folder).state, read_run(folder).step) == ("stopped", 3)
    states = []
    go_on(folder, lambda metrics: states.append(read_run(folder).state))
    assert states == ["running"] * 3
    assert (read_run(folder).state, read_run(folder).step, read_run(folder).total_steps) == ("finished", 6, 6)


def test_a_template_that_prints_the_date_prints_the_same_on_the_next_day(
    own: Own, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Tomorrow(date):
        @classmethod
        def today(cls) -> date:
            return date(2035, 7, 1)

    path = own.model / "chat_template.jinja"
    path.write_text("{{ strftime_now('%d %b %Y') }}" + path.read_text())
    said: list[str] = []
    begin(own.values(), tmp_path / "unbroken", announce=said.append)
    broken_off(own.values(), own.run, 3)
    monkeypatch.setattr("luthier.data.settings.date", Tomorrow)
    monkeypatch.setattr("luthier.data.template.date", Tomorrow)
    go_on(own.run)
    assert outcome(own.run) == outcome(tmp_path / "unbroken")
    today = date.today()
    assert any(f"{today} (data.today)" in sentence for sentence in said)
    assert load_recipe(own.run / "recipe.resolved.yaml").data.day == today
    assert load_recipe(own.run / "recipe.yaml").data.today is None


def test_going_on_from_an_adapter_of_another_base_is_announced(own: Own, tmp_path: Path) -> None:
    begin(own.values(), tmp_path / "first")
    (tmp_path / "model").rename(tmp_path / "other")
    values = own.values()
    values["model"] = str(tmp_path / "other")
    values["method"] = {"kind": "lora", "from": str(tmp_path / "first")}
    said: list[str] = []
    begin(values, own.run, announce=said.append)
    assert any(f"trained on {own.model}" in sentence and "other" in sentence for sentence in said)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_trackers_are_told_every_step_by_the_end_of_a_run_and_of_a_stop(workshop: Workshop, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def steps_in(folder: Path) -> list[int]:
        events = EventAccumulator(str(folder / "tensorboard"))
        events.Reload()
        return [event.step for event in events.Scalars("loss")]

    values = workshop.values()
    values["training"]["trackers"] = ["tensorboard"]
    with pytest.raises(Interrupted):
        begin(values, tmp_path / "run", asked_to_stop_in(3))
    assert steps_in(tmp_path / "run") == [1, 2, 3]
    go_on(tmp_path / "run")
    assert steps_in(tmp_path / "run") == [1, 2, 3, 4, 5, 6]


def test_a_recipe_taken_from_another_run_begins_a_run_of_its_own(workshop: Workshop, tmp_path: Path) -> None:
    """A resolved recipe holds the hashes of what that run was made from; they do not bind the new one."""
    values = yaml.safe_load((workshop.unbroken() / "recipe.resolved.yaml").read_text())
    values["provenance"]["data_sha256"] = "0" * 64
    begin(values, tmp_path / "run")
    assert outcome(tmp_path / "run") == outcome(workshop.unbroken())
    assert load_recipe(tmp_path / "run" / "recipe.yaml").provenance is None


def test_other_versions_than_a_run_was_begun_with_are_announced(workshop: Workshop, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    broken_off(workshop.values(), folder, 3)
    resolved = folder / "recipe.resolved.yaml"
    resolved.write_text(resolved.read_text().replace(f"torch: {torch.__version__}", "torch: 1.0.0"))
    said: list[str] = []
    go_on(folder, announce=said.append)
    assert any("begun with torch 1.0.0;" in sentence for sentence in said)


def test_a_run_that_another_process_carries_out_is_not_begun_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each step comes once in metrics.jsonl, so a second process must not go on with the same run."""
    from luthier.store import owners, runs

    run = tmp_path / "run"
    run.mkdir()
    runs.write_status(run, "running")
    assert not runs.is_busy(run)  # it is this very process
    monkeypatch.setattr(runs, "owner_tag", lambda: "elsewhere-1-1")
    assert owners.owner_is_alive(owners.owner_tag())
    assert runs.is_busy(run)
