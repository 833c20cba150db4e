"""Every error that Luthier raises on purpose, and the exit code that each ends a command with.

    LuthierError                1  failed
    ├── Unplannable             1  what a run needs cannot be found without carrying it out
    ├── ExportMismatch          1  written files do not compute what the run's model does
    ├── RewardFault             1  what answers are worth could not be found
    │   └── NoReward            1  none of them has a reward
    ├── JudgeFault              1  a judge gave verdicts that cannot be read, or none
    ├── UsageError              2  the command line was wrong
    ├── RecipeError             3  a recipe cannot be carried out as written
    │   └── TargetNotFound      3  a method names layers that the model does not have
    ├── DataError               3  a data file cannot be used as it is
    │   └── GateRefusal         3  the rows are readable, but training on them would be wrong
    ├── RunMismatch             3  a run would go on with another model, data or recipe
    ├── NotFound                4  a file, model or run that does not exist
    │   └── CheckpointNotFound  4  a run without a whole checkpoint
    ├── NotAllowed              5  something only an operator may turn on
    ├── ResourceError           6  the machine has too little of something
    │   ├── DiskFull            6  a write found no room
    │   ├── NotFinite           6  a loss or gradient became NaN or infinite
    │   ├── QueueFull           6  as many answers wait as may
    │   └── CacheTooSmall       6  an answer has no room in the cache even alone
    ├── NetworkError            7  something had to be fetched and could not be
    └── Interrupted       130/143  Ctrl-C or SIGTERM, after the state was saved

The message says what was found and what was expected, `mend` what to do about it, and `file`, `line` and `field` where.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from luthier.types import RowLengths


class LuthierError(Exception):
    """Something that a person can mend: what was found, where, and what to do."""

    exit_code = 1

    def __init__(
        self,
        found: str,
        mend: str = "",
        *,
        file: str | None = None,
        line: int | None = None,
        field: str | None = None,
    ) -> None:
        super().__init__(found)
        self.found = found
        self.mend = mend
        self.file = file
        self.line = line
        self.field = field

    @property
    def where(self) -> str:
        """The place of the fault as `file, line 3, field 'messages'`, as far as it is known."""
        parts = [
            self.file or "",
            f"line {self.line}" if self.line is not None else "",
            f"field {self.field!r}" if self.field else "",
        ]
        return ", ".join(part for part in parts if part)

    def __str__(self) -> str:
        text = f"{self.where}: {self.found}" if self.where else self.found
        return f"{text} {self.mend}".strip()

    def as_json(self) -> dict[str, object]:
        """The error as the one JSON document that `--json` prints."""
        return {
            "error": {
                "kind": type(self).__name__,
                "message": str(self),
                "found": self.found,
                "mend": self.mend,
                "file": self.file,
                "line": self.line,
                "field": self.field,
                "exit_code": self.exit_code,
            }
        }


class Unplannable(LuthierError):
    """What a run needs cannot be found without carrying it out."""


class ExportMismatch(LuthierError):
    """Written files, read back, do not compute what the trained model does."""


class RewardFault(LuthierError):
    """What answers are worth could not be found: a reward failed, took too long, or gave no numbers."""


class NoReward(RewardFault):
    """None of the answers has a reward."""


class JudgeFault(LuthierError):
    """A model that judges answers gave too few verdicts that can be read, or none."""


class UsageError(LuthierError):
    """The command line asks for something that does not exist or does not go together."""

    exit_code = 2


class RecipeError(LuthierError):
    """A recipe cannot be carried out as written."""

    exit_code = 3


class TargetNotFound(RecipeError):
    """A method names layers that the model does not have."""


class DataError(LuthierError):
    """A data file cannot be used as it is."""

    exit_code = 3


class GateRefusal(DataError):
    """The rows can be read, but training on them would give a broken model.

    lengths: those of the rows, where all are tokens. is_of_rows: whether the rows themselves are at fault, and no model, template
    or limit that was chosen for them.
    """

    lengths: RowLengths | None = None
    is_of_rows: bool = False


class RunMismatch(LuthierError):
    """A run would go on with another model, other data or another recipe than it began with."""

    exit_code = 3


class NotFound(LuthierError):
    """A file, model or run that does not exist."""

    exit_code = 4


class CheckpointNotFound(NotFound):
    """A run that holds no whole checkpoint."""


class NotAllowed(LuthierError):
    """Something that only an operator may turn on."""

    exit_code = 5


class ResourceError(LuthierError):
    """The machine has too little of something."""

    exit_code = 6


class DiskFull(ResourceError):
    """A write found no room on the disk."""


class NotFinite(ResourceError):
    """A loss or a gradient became NaN or infinite."""


class QueueFull(ResourceError):
    """As many answers wait in an engine as may."""


class CacheTooSmall(ResourceError):
    """An answer has no room among the keys and values that may be held, even alone."""


class NetworkError(LuthierError):
    """Something had to be fetched and could not be."""

    exit_code = 7


class Interrupted(LuthierError):
    """The run was asked to stop, and has saved its state."""

    def __init__(self, found: str, mend: str = "", *, exit_code: int = 130) -> None:
        super().__init__(found, mend)
        self.exit_code = exit_code
