"""A run in one file: what the file holds, that it is whole or refused, and that the run in it comes out the same again."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_model import write_tiny_model
from tiny_runs import Cut, begin, course, cut_after, nothing, one_thread, recipe_values, trained_files, write_rows

from luthier import run
from luthier.cli import main as program
from luthier.errors import DataError, NotFound, RunMismatch, UsageError
from luthier.evaluation.run_report import write_evaluation
from luthier.evaluation.verdict import Answered, Evaluation
from luthier.objectives import SFT
from luthier.recipe import load_recipe
from luthier.recipe.model_card import CARD
from luthier.studies.bundles import Bundle, read_bundle, unpack_data, write_bundle
from luthier.studies.replay import Replay, differences_of, farthest_apart, replay
from luthier.types import Origin


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with model/, rows.jsonl, held-out.jsonl, and a finished run of two workers with dropout and held-out rows."""
    desk = tmp_path_factory.mktemp("desk")
    write_tiny_model(desk / "model")
    write_rows(desk / "rows.jsonl", 18)
    write_rows(desk / "held-out.jsonl", 5, start=100)
    values = recipe_values(
        desk / "model",
        desk / "rows.jsonl",
        data={"validation": str(desk / "held-out.jsonl")},
        method={"dropout": 0.2},
        training={"workers": 2, "evaluate_every": 3, "tokens_per_micro_batch": 192},
    )
    with pytest.MonkeyPatch.context() as patch, one_thread():
        patch.setattr(run, "write_loss_plot", nothing_drawn)  # it takes longer than the training
        begin(values, desk / "run")
        yield desk


def nothing_drawn(metrics: object, path: Path, objective: object = None) -> None:
    """Stand in for the plot."""


@pytest.fixture
def bundle(desk: Path, tmp_path: Path) -> Bundle:
    write_bundle(desk / "run", tmp_path / "run.zip", nothing)
    return read_bundle(tmp_path / "run.zip")


def again(bundle: Bundle, out: Path, said: list[str] | None = None, **options: Any) -> Replay:
    return replay(bundle, out, nothing if said is None else said.append, nothing, **options)


# ── what is in it ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_bundle_holds_the_recipe_versions_hashes_seed_machine_and_numbers(bundle: Bundle, desk: Path):
    manifest = bundle.manifest
    assert manifest.result.keys() == {*trained_files(desk / "run"), CARD}
    assert trained_files(desk / "run").items() <= manifest.result.items()
    assert manifest.environment["torch"] == torch.__version__
    assert manifest.environment["cpu_capability"]
    assert manifest.steps == len(bundle.metrics) == 6
    assert "seed: 7" in bundle.recipe
    assert "model_sha256" in bundle.recipe
    assert [Path(named.name).name for named in manifest.data] == ["rows.jsonl", "held-out.jsonl"]
    assert all(len(sha256) == 64 for named in manifest.data for sha256 in named.sha256.values())
    assert zipfile.ZipFile(bundle.path).namelist() == ["manifest.json", "recipe.resolved.yaml", "metrics.jsonl"]


def test_the_same_run_gives_the_same_bundle_byte_for_byte(bundle: Bundle, desk: Path, tmp_path: Path):
    write_bundle(desk / "run", tmp_path / "again.zip", nothing)
    assert (tmp_path / "again.zip").read_bytes() == bundle.path.read_bytes()


def test_an_evaluated_runs_bundle_holds_what_was_found_and_answers_only_beside_the_rows(desk: Path, tmp_path: Path):
    evaluated = elsewhere(desk, tmp_path)
    found = Evaluation(("base", "tuned"), 1, (), (), (Answered(Origin("r", 1), "secret?", "yes", ("no", "yes")),))
    write_evaluation(evaluated, found, SFT, "luthier evaluate")
    for with_data in (False, True):
        path = tmp_path / f"{with_data}.zip"
        write_bundle(evaluated, path, nothing, with_data=with_data)
        kept = read_bundle(path).evaluation
        assert kept is not None
        assert (kept["verdict"], kept["command"]) == ("unclear", "luthier evaluate")
        assert ("answers" in kept) == with_data
        assert (b"secret?" in zipfile.ZipFile(path).read("evaluation.json")) == with_data


def test_a_bundle_of_a_run_that_was_not_evaluated_says_nothing_of_that(bundle: Bundle):
    assert bundle.evaluation is None


def test_with_data_the_rows_are_in_it_and_come_out_whole(desk: Path, tmp_path: Path):
    write_bundle(desk / "run", tmp_path / "run.zip", nothing, with_data=True)
    places = unpack_data(read_bundle(tmp_path / "run.zip"), tmp_path / "data")
    for name in ("rows.jsonl", "held-out.jsonl"):
        assert Path(places[str(desk / name)]).name == name
        assert Path(places[str(desk / name)]).read_bytes() == (desk / name).read_bytes()


def test_a_run_that_is_not_finished_is_refused(desk: Path, tmp_path: Path):
    values = recipe_values(desk / "model", desk / "rows.jsonl")
    with pytest.raises(Cut):
        begin(values, tmp_path / "cut", on_step=cut_after(3))
    with pytest.raises(UsageError, match="not finished"):
        write_bundle(tmp_path / "cut", tmp_path / "cut.zip", nothing)
    assert not (tmp_path / "cut.zip").exists()


def test_data_that_changed_since_the_run_are_not_bundled(desk: Path, tmp_path: Path):
    moved = elsewhere(desk, tmp_path)
    write_rows(tmp_path / "desk" / "rows.jsonl", 17)
    with pytest.raises(RunMismatch, match="no longer what this run learned from"):
        write_bundle(moved, tmp_path / "run.zip", nothing)
    assert not (tmp_path / "run.zip").exists()


def test_a_file_that_is_there_is_not_overwritten(desk: Path, bundle: Bundle):
    before = bundle.path.read_bytes()
    with pytest.raises(UsageError, match="there already"):
        write_bundle(desk / "run", bundle.path, nothing)
    assert bundle.path.read_bytes() == before


def elsewhere(desk: Path, tmp_path: Path) -> Path:
    """A copy of the run that names copies of the rows."""
    (tmp_path / "desk").mkdir()
    for name in ("rows.jsonl", "held-out.jsonl"):
        shutil.copy(desk / name, tmp_path / "desk" / name)
    moved = tmp_path / "desk" / "run"
    shutil.copytree(desk / "run", moved)
    for name in ("recipe.yaml", "recipe.resolved.yaml"):
        text = (moved / name).read_text()
        for rows in ("rows.jsonl", "held-out.jsonl"):
            text = text.replace(str(desk / rows), str(tmp_path / "desk" / rows))
        (moved / name).write_text(text)
    return moved


# ── the run again ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_replay_on_the_same_machine_gives_the_same_bits(bundle: Bundle, desk: Path, tmp_path: Path):
    said: list[str] = []
    found = again(bundle, tmp_path / "again", said)
    assert found.verdict == "same bits"
    assert (found.differences, found.other_files) == ((), ())
    assert trained_files(tmp_path / "again") == trained_files(desk / "run")
    assert course(tmp_path / "again") == course(desk / "run")
    assert not any("Otherwise" in sentence for sentence in said)
    assert "same bits" in found.sentence


def test_a_replay_needs_no_files_beside_a_bundle_with_data(desk: Path, tmp_path: Path):
    moved = elsewhere(desk, tmp_path)
    write_bundle(moved, tmp_path / "run.zip", nothing, with_data=True)
    shutil.rmtree(tmp_path / "desk")
    found = again(read_bundle(tmp_path / "run.zip"), tmp_path / "again")
    assert found.verdict == "same bits"
    assert Path(str(load_recipe(tmp_path / "again" / "recipe.resolved.yaml").data.train)).is_relative_to(
        tmp_path / "again"
    )


def test_threads_are_as_many_as_then(bundle: Bundle, tmp_path: Path):
    said: list[str] = []
    torch.set_num_threads(2)
    try:
        found = again(bundle, tmp_path / "again", said)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert found.verdict == "same bits"
    assert "Computing with 1 thread, as then." in said


def test_other_numbers_are_told_with_what_is_otherwise_first(bundle: Bundle, tmp_path: Path):
    said: list[str] = []
    found = again(bundle, tmp_path / "again", said, overrides=["training.peak_lr=0.02"])
    assert found.verdict == "other numbers"
    assert said[0].startswith("Otherwise than then: recipe is training.peak_lr=0.02")
    assert found.farthest is not None
    assert found.farthest.share > 0.01
    assert "adapter_model.safetensors" in found.other_files


def test_numbers_within_the_tolerance_are_the_same_numbers(bundle: Bundle, tmp_path: Path):
    found = again(bundle, tmp_path / "again", overrides=["training.peak_lr=0.0100001"])
    assert found.verdict == "same numbers"
    assert found.farthest is not None
    assert 0 < found.farthest.share < 0.01
    assert "within the tolerance" in found.sentence


def test_fewer_steps_are_other_numbers(bundle: Bundle, tmp_path: Path):
    found = again(bundle, tmp_path / "again", overrides=["training.steps=3"])
    assert (found.verdict, found.steps) == ("other numbers", (6, 3))
    assert "3 steps were made, and 6" in found.sentence


def test_what_is_otherwise_is_found_by_name():
    then = {"torch": "2.6", "threads": 4, "cpu": "A"}
    assert differences_of(then, dict(then)) == ()
    (torch_, gpu) = differences_of(then, {"torch": "2.7", "threads": 2, "cpu": "A", "gpu": "H100"})
    assert (torch_.what, torch_.then, torch_.now) == ("torch", "2.6", "2.7")
    assert (gpu.what, gpu.then, gpu.now) == ("gpu", "not noted", "H100")


def test_the_farthest_loss_is_found_over_steps_that_both_have():
    then = [{"step": 1, "loss": 4.0}, {"step": 2, "loss": 2.0, "validation_loss": 1.0}, {"step": 3, "loss": 1.0}]
    now = [{"step": 1, "loss": 4.1}, {"step": 2, "loss": 2.0, "validation_loss": 1.1}]
    found = farthest_apart(then, now)
    assert found is not None
    assert (found.measure, found.step, found.share) == ("validation_loss", 2, pytest.approx(0.1))
    assert farthest_apart(then, []) is None


# ── what is no replay ───────────────────────────────────────────────────────────────────────────────────────────────


def test_data_that_changed_since_are_named_before_anything_is_computed(desk: Path, tmp_path: Path):
    write_bundle(elsewhere(desk, tmp_path), tmp_path / "run.zip", nothing)
    write_rows(tmp_path / "desk" / "held-out.jsonl", 4)
    with pytest.raises(RunMismatch, match=r"held-out\.jsonl is not what the run learned from"):
        again(read_bundle(tmp_path / "run.zip"), tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_data_that_are_gone_are_not_found(desk: Path, tmp_path: Path):
    write_bundle(elsewhere(desk, tmp_path), tmp_path / "run.zip", nothing)
    (tmp_path / "desk" / "rows.jsonl").unlink()
    with pytest.raises(NotFound, match=r"rows\.jsonl"):
        again(read_bundle(tmp_path / "run.zip"), tmp_path / "again")


def test_another_data_file_that_is_named_must_hold_the_same_rows(bundle: Bundle, desk: Path, tmp_path: Path):
    shutil.copy(desk / "rows.jsonl", tmp_path / "copy.jsonl")
    found = again(bundle, tmp_path / "again", overrides=[f"data.train={tmp_path / 'copy.jsonl'}"])
    assert found.verdict == "same bits"
    write_rows(tmp_path / "other.jsonl", 17)
    with pytest.raises(RunMismatch, match="The data"):
        again(bundle, tmp_path / "other", overrides=[f"data.train={tmp_path / 'other.jsonl'}"])


def test_another_model_is_named(bundle: Bundle, desk: Path, tmp_path: Path):
    write_tiny_model(tmp_path / "other", hidden_size=16)
    with pytest.raises(RunMismatch, match="The model"):
        again(bundle, tmp_path / "again", overrides=[f"model.name={tmp_path / 'other'}"])


def test_a_model_that_is_gone_is_not_found(bundle: Bundle, tmp_path: Path):
    with pytest.raises(NotFound, match="nowhere"):
        again(bundle, tmp_path / "again", overrides=[f"model.name={tmp_path / 'nowhere'}"])


def test_a_folder_in_use_is_refused(bundle: Bundle, desk: Path):
    with pytest.raises(UsageError, match="not empty"):
        again(bundle, desk / "run")


# ── what is no bundle ───────────────────────────────────────────────────────────────────────────────────────────────

Change = Callable[[dict[str, bytes]], None]


def manifest_with(**changes: Any) -> Change:
    def change(members: dict[str, bytes]) -> None:
        members["manifest.json"] = json.dumps({**json.loads(members["manifest.json"]), **changes}).encode()

    return change


def without(name: str) -> Change:
    return lambda members: members.__delitem__(name)


def other_metrics(members: dict[str, bytes]) -> None:
    members["metrics.jsonl"] = members["metrics.jsonl"].replace(b'"step": 1', b'"step": 9', 1)


FAULTY: dict[str, tuple[Change, str]] = {
    "no manifest": (without("manifest.json"), "holds no manifest.json"),
    "no metrics": (without("metrics.jsonl"), "holds no metrics.jsonl"),
    "changed metrics": (other_metrics, "metrics.jsonl has other contents"),
    "a newer format": (manifest_with(format=99), "format 99"),
    "no format": (manifest_with(format="x"), "format"),
    "no result": (manifest_with(result=3), "result"),
    "a way out": (manifest_with(members={"../x": "0" * 64}), r"\.\./x"),
    "no members": (manifest_with(members={}), "lacks"),
    "a manifest that is a list": (lambda members: members.update({"manifest.json": b"[]"}), "not that of a bundle"),
}


@pytest.mark.parametrize("fault", FAULTY)
def test_a_faulty_bundle_is_refused_by_name(fault: str, bundle: Bundle, tmp_path: Path):
    change, match = FAULTY[fault]
    with zipfile.ZipFile(bundle.path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    with zipfile.ZipFile(tmp_path / "faulty.zip", "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    with pytest.raises(DataError, match=match) as caught:
        read_bundle(tmp_path / "faulty.zip")
    assert caught.value.file == str(tmp_path / "faulty.zip")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_bundle_that_was_cut_off_is_refused(share: float, bundle: Bundle, tmp_path: Path):
    whole = bundle.path.read_bytes()
    (tmp_path / "cut.zip").write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(DataError, match="no whole bundle"):
        read_bundle(tmp_path / "cut.zip")


def test_a_byte_that_flipped_is_found(bundle: Bundle, tmp_path: Path):
    whole = bytearray(bundle.path.read_bytes())
    for place in range(60, len(whole) - 200, 97):
        flipped = bytearray(whole)
        flipped[place] ^= 0x10
        (tmp_path / "flipped.zip").write_bytes(flipped)
        try:
            read = read_bundle(tmp_path / "flipped.zip")
        except DataError:
            continue
        assert (read.manifest, read.recipe, read.metrics) == (bundle.manifest, bundle.recipe, bundle.metrics), place


def test_a_bundle_that_is_not_there_is_not_found(tmp_path: Path):
    with pytest.raises(NotFound, match="no such bundle"):
        read_bundle(tmp_path / "none.zip")


# ── the commands ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_commands_write_a_bundle_and_replay_it(
    desk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    assert program.main(["bundle", str(desk / "run")]) == 0
    said = capsys.readouterr()
    assert said.out == "run.bundle.zip\n"
    assert "Not in it, but by their hashes" in said.err
    assert program.main(["replay", "run.bundle.zip", "--plain-allocator", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["verdict"], document["run"]) == ("same bits", "runs/run-replay-1")
    words = ["replay", "run.bundle.zip", "--out", "other", "--set", "training.peak_lr=0.1", "--plain-allocator"]
    assert program.main(words) == 1
    assert "Other numbers" in capsys.readouterr().out
