"""Who carries a run out, and how that ended: one process at a time, its last word in `status.json`."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from luthier.errors import Interrupted, LuthierError, NotFinite, UsageError
from luthier.ops.shortage import shortage_told
from luthier.store.files import leftovers, locked
from luthier.store.runs import METRICS, STATUS, RunState, is_busy, read_run, write_status
from luthier.training.checkpoint import FOLDER as CHECKPOINTS

Announce = Callable[[str], None]

_LESS_MEMORY = (
    "Lower training.tokens_per_micro_batch (and data.max_length with it) or training.workers, set "
    "training.gradient_checkpointing to true or model.dtype to bf16, or close other programs."
)


def is_free(folder: Path) -> bool:
    """Whether a run may begin in a folder: nothing is in it, or only a run that ended before its first step."""
    if not folder.is_dir():
        return True
    names = {entry.name for entry in folder.iterdir()} - {entry.name for entry in leftovers(folder)}
    return not names or (STATUS in names and not has_steps(folder) and read_run(folder).state != "running")


def has_steps(folder: Path) -> bool:
    """Whether a run took a step, so that there is something to go on from."""
    return (folder / METRICS).exists() or (folder / CHECKPOINTS).exists()


def to_go_on(folder: Path) -> str:
    """The command that goes on with a run."""
    return f"luthier resume {shlex.quote(str(folder))}"


@contextmanager
def carried_out(folder: Path, announce: Announce) -> Iterator[None]:
    """Within, the run is this process's and its status is running; afterwards the status says how it ended.

    Errors say how to go on; a shortage of memory is a ResourceError. Raises UsageError if another process is at it.
    """
    with locked(folder / STATUS, timeout_seconds=60):
        if is_busy(folder):
            raise UsageError(
                f"Another process is carrying out the run {folder}.",
                "Wait for its end, or stop it first; 'luthier runs' shows how far it is.",
            )
        with _end_told(folder, announce):
            write_status(folder, "running")
    with _end_told(folder, announce):
        with shortage_told(_LESS_MEMORY):
            yield
        write_status(folder, "finished")


@contextmanager
def _end_told(folder: Path, announce: Announce) -> Iterator[None]:
    """Whatever ends the run within is its last word, and says how to go on."""
    try:
        yield
    except LuthierError as error:
        _note_end(folder, "stopped" if isinstance(error, Interrupted) else "failed", str(error))
        # before the first step the same command serves; what is not finite would come out the same again
        if has_steps(folder) and not isinstance(error, NotFinite):
            error.mend = f"{error.mend} To go on: {to_go_on(folder)}".strip()
        raise
    except Exception as error:
        _note_end(folder, "failed", f"{type(error).__name__}: {error}")
        raise
    except BaseException as error:
        _note_end(folder, "stopped", "Stopped at once.")
        if isinstance(error, KeyboardInterrupt):
            announce(f"To go on: {to_go_on(folder)}")
        raise


def _note_end(folder: Path, state: RunState, message: str) -> None:
    with suppress(LuthierError):  # what ended the run tells more; one without a last word counts as stopped
        write_status(folder, state, message=message)
