"""The process of a user's reward function (see `functions.py`): reads lines of JSON, answers each with one.

Started as a file, so it imports nothing of Luthier. What the function prints goes to standard error.
"""

import importlib.util
import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any


def load(file: Path) -> Callable[..., Any]:
    """The file's function. Raises whatever the file does."""
    sys.path.insert(0, str(file.parent))
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if spec is None or spec.loader is None:
        raise ImportError("it is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module
    spec.loader.exec_module(module)
    function = vars(module).get("reward")
    if not callable(function):
        raise ImportError("it defines no function reward(prompts, answers, rows)")
    made: Callable[..., Any] = function
    return made


def fault(error: BaseException, file: Path) -> dict[str, Any]:
    """What went wrong, and at which line of the file."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
    if isinstance(error, SyntaxError) and error.filename == str(file):
        lines.append(error.lineno)
    return {"error": f"{type(error).__name__}: {error}", "line": lines[-1] if lines else None}


def plain(scores: Any) -> Any:
    """Numbers as JSON has them, whatever library they are of; anything else in words."""
    if not isinstance(scores, (list, tuple)) and not callable(getattr(scores, "tolist", None)):
        return repr(scores)[:200]
    listed = list(scores) if isinstance(scores, (list, tuple)) else scores.tolist()
    return [each if each is None or isinstance(each, (int, float, str)) else _number(each) for each in listed]


def _number(value: Any) -> Any:
    try:
        return float(value)
    except (TypeError, ValueError):
        return repr(value)[:200]


def main() -> None:
    """Answer until standard in ends."""
    told = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def tell(said: dict[str, Any]) -> None:
        told.write(json.dumps(said) + "\n")
        told.flush()

    file = Path(sys.argv[1])
    try:
        function = load(file)
    except BaseException as error:
        tell(fault(error, file))
        return
    tell({})
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            tell({"scores": plain(function(asked["prompts"], asked["answers"], asked["rows"]))})
        except BaseException as error:
            tell(fault(error, file))


if __name__ == "__main__":
    main()
