"""Run folders: `runs/NAME-N`, what state each is in, and its lines of metrics.

`status.json` says how far a run is and which process carries it out:
`{"state", "owner", "started", "updated", "step", "total_steps", "message"}`, times in ISO 8601 with zone, `owner` the tag
of `luthier.store.owners`. A run whose process is gone without a last word counts as stopped.
"""

from __future__ import annotations

import difflib
import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any, Literal

import yaml

from luthier.errors import DataError, LuthierError, NotFound, UsageError
from luthier.store.files import append_line, make_folder, read_json, write_json, write_text
from luthier.store.owners import owner_is_alive, owner_tag
from luthier.store.places import expanded

RunState = Literal["finished", "stopped", "running", "failed"]

RECIPE = "recipe.yaml"
RESOLVED = "recipe.resolved.yaml"
METRICS = "metrics.jsonl"
STATUS = "status.json"
PLAN = "plan.json"

_STATES: tuple[RunState, ...] = ("finished", "stopped", "running", "failed")
_SILENCE = timedelta(hours=1)  # a run on another machine that has said nothing for so long counts as stopped


@dataclass(frozen=True)
class RunInfo:
    """What a listing shows of one run. Unknown words are empty, unknown numbers None.

    `last_loss` is in nats per learned token; `message` is the last sentence of a run that stopped or failed. `planned_bytes`
    and `peak_bytes` are the most memory that was planned and that was measured.
    """

    path: Path
    name: str
    state: RunState
    step: int | None
    total_steps: int | None
    model: str
    method: str
    last_loss: float | None
    planned_bytes: int | None
    peak_bytes: int | None
    started: datetime
    message: str


# ── folders ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def new_run_folder(base: Path, name: str) -> Path:
    """A fresh folder `base/NAME-N`, N one higher than any there; two processes never get the same."""
    stem = re.sub(r"[^\w.-]+", "-", name).strip("-.") or "run"
    make_folder(base)
    pattern = re.compile(rf"{re.escape(stem)}-(\d+)")
    taken = [int(match[1]) for entry in base.iterdir() if (match := pattern.fullmatch(entry.name))]
    for number in count(max(taken, default=0) + 1):
        try:
            make_folder(base / f"{stem}-{number}", exist_ok=False)
        except UsageError:
            continue
        return base / f"{stem}-{number}"
    raise AssertionError("counting has no end")


def is_run(folder: Path) -> bool:
    """Whether a folder holds a run: its recipe or its status."""
    return any((folder / name).is_file() for name in (RESOLVED, RECIPE, STATUS))


def list_runs(base: Path) -> list[RunInfo]:
    """The runs in `base`, the one started last at the end; none if there is no such folder."""
    if not base.is_dir():
        return []
    infos = [read_run(folder) for folder in base.iterdir() if is_run(folder)]
    return sorted(infos, key=lambda info: (info.started, _natural(info.name)))


def find_run(text: str, base: Path) -> Path:
    """The run folder that `text` names: a path, the name of a run in `base`, or `latest`.

    Raises: NotFound, with the names that come near.
    """
    if text == "latest" and not is_run(Path(text)):
        runs = list_runs(base)
        if not runs:
            raise NotFound(f"There are no runs in {base}.", "Start one with `luthier train`, or give the run's path.")
        return runs[-1].path
    for folder in (expanded(text), base / text):
        if is_run(folder):
            return folder
    known = [info.name for info in list_runs(base)]
    near = [name for name in known if name.startswith(text)] or difflib.get_close_matches(text, known, n=3, cutoff=0.5)
    mend = f"Did you mean {' or '.join(near[-3:])}?" if near else "`luthier runs` lists the runs."
    if Path(text).is_dir():
        raise NotFound(f"{text} is a folder, but holds no run: it has no {RESOLVED}, {RECIPE} or {STATUS}.", mend)
    raise NotFound(f"There is no run called {text!r} in {base}, and no such folder.", mend)


# ── status ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def write_status(
    run: Path,
    state: RunState,
    *,
    step: int | None = None,
    total_steps: int | None = None,
    message: str = "",
) -> None:
    """Say how far a run is; this process is noted as the one that carries it out. The first call sets `started`.

    Steps that are not given stay as they were; `step` need not be given at all where metrics are written.
    """
    now = datetime.now(UTC).isoformat()
    before = _read_mapping(run / STATUS)
    write_json(
        run / STATUS,
        {
            "state": state,
            "owner": owner_tag(),
            "started": before.get("started", now),
            "updated": now,
            "step": before.get("step") if step is None else step,
            "total_steps": before.get("total_steps") if total_steps is None else total_steps,
            "message": message,
        },
    )


def is_busy(run: Path) -> bool:
    """Whether another process of this machine is carrying the run out."""
    status = _read_mapping(run / STATUS)
    owner = str(status.get("owner"))
    return status.get("state") == "running" and owner != owner_tag() and owner_is_alive(owner) is True


def read_run(run: Path) -> RunInfo:
    """What is known of a run. A run with broken files is listed all the same, with what can be read of it."""
    status = _read_mapping(run / STATUS)
    try:
        metrics = read_metrics(run)
    except LuthierError:
        metrics = []
    recipe = _read_recipe(run)
    last = metrics[-1] if metrics else {}
    losses = [line["loss"] for line in metrics if isinstance(line.get("loss"), (int, float))]
    return RunInfo(
        path=run,
        name=run.name,
        state=_state(run, status),
        step=_whole(status.get("step")) if _whole(last.get("step")) is None else _whole(last.get("step")),
        total_steps=_whole(status.get("total_steps")),
        model=_choice(recipe.get("model"), "name"),
        method=_choice(recipe.get("method"), "kind"),
        last_loss=float(losses[-1]) if losses else None,
        planned_bytes=_whole(_read_mapping(run / PLAN).get("peak_bytes")),
        peak_bytes=max((line["peak_memory_bytes"] for line in metrics if "peak_memory_bytes" in line), default=None),
        started=_time(status.get("started")) or datetime.fromtimestamp(run.stat().st_mtime, UTC),
        message=str(status.get("message", "")),
    )


def _state(run: Path, status: dict[str, Any]) -> RunState:
    state = status.get("state")
    if state not in _STATES:
        return "finished" if (run / "report.md").is_file() else "stopped"
    if state != "running":
        return _STATES[_STATES.index(state)]
    alive = owner_is_alive(str(status.get("owner")))
    if alive is None:
        files = [run / STATUS, run / METRICS]
        last_sign = max(datetime.fromtimestamp(file.stat().st_mtime, UTC) for file in files if file.is_file())
        alive = datetime.now(UTC) - last_sign < _SILENCE
    return "running" if alive else "stopped"


def _read_mapping(file: Path) -> dict[str, Any]:
    try:
        values = read_json(file)
    except LuthierError:
        return {}
    return values if isinstance(values, dict) else {}


def _read_recipe(run: Path) -> dict[str, Any]:
    for name in (RESOLVED, RECIPE):
        try:
            recipe = yaml.safe_load((run / name).read_text("utf-8"))
        except (OSError, ValueError, yaml.YAMLError):
            continue
        if isinstance(recipe, dict):
            return recipe
    return {}


def _choice(value: object, key: str) -> str:
    """A part of a recipe by name: the part itself where it is a word, else its `key`."""
    if isinstance(value, dict):
        value = value.get(key, "")
    return value if isinstance(value, str) else ""


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) else None


def _time(text: object) -> datetime | None:
    try:
        time = datetime.fromisoformat(str(text))
    except ValueError:
        return None
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _natural(name: str) -> list[tuple[int, str]]:
    """A key that puts `a-2` before `a-10`."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


# ── metrics ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def append_metrics(run: Path, line: dict[str, Any]) -> None:
    """Add the numbers of one step, and flush them to the disk."""
    append_line(run / METRICS, json.dumps(line, ensure_ascii=False))


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl`, in order; none if there is no such file. A torn last line is left out.

    Raises: DataError, with the line, if another line cannot be read.
    """
    path = run / METRICS
    try:
        texts = path.read_bytes().splitlines()
    except FileNotFoundError:
        return []
    while texts and not texts[-1].strip():
        texts.pop()
    lines: list[dict[str, Any]] = []
    for number, text in enumerate(texts, start=1):
        try:
            line = json.loads(text)
        except ValueError:
            line = None
        if isinstance(line, dict) and isinstance(line.get("step"), int):
            lines.append(line)
        elif number < len(texts):
            raise DataError("This is not the JSON of one step.", "Delete the line.", file=str(path), line=number)
    return lines


def cut_metrics(run: Path, step: int) -> None:
    """Keep the lines up to and including `step`, so that a resumed run writes each later step once."""
    if (run / METRICS).is_file():
        kept = [line for line in read_metrics(run) if line["step"] <= step]
        write_text(run / METRICS, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept))
