"""The limited process itself (see `limited.py`): takes a request on standard in, limits itself, and runs the program.

Started as a file, so it imports nothing of Luthier; it is quick to start for that reason too.
"""

import ctypes
import json
import os
import resource
import sys
from typing import Any

_NEW_USER, _NEW_NETWORK = 0x10000000, 0x40000000
_REFUSED = (
    "socket.", "subprocess.", "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "os.kill",
    "ctypes.", "gc.", "sys._current_frames", "sys.settrace", "sys.setprofile", "shutil.rmtree", "webbrowser.", "ftplib.", "http.", "smtplib.", "urllib.", "pty.", "signal.",
)  # fmt: skip
_CHANGES = (
    "os.remove",
    "os.rename",
    "os.rmdir",
    "os.mkdir",
    "os.chmod",
    "os.chown",
    "os.link",
    "os.symlink",
    "os.truncate",
)
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def limit(request: dict[str, int]) -> None:
    """Bound this process by what the system offers."""
    seconds = int(request["seconds"]) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    resource.setrlimit(resource.RLIMIT_FSIZE, (request["file"], request["file"]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (request["memory"], request["memory"]))
        ctypes.CDLL(None).unshare(_NEW_USER | _NEW_NETWORK)  # refused on some systems: the hook below stays


def guard() -> None:
    """Refuse what no answer needs; nothing can take this hook away again."""
    folder = os.path.realpath(os.getcwd()) + os.sep

    def is_outside(path: object) -> bool:
        if not isinstance(path, str | bytes | os.PathLike):
            return False  # an open file's number
        return not (os.path.realpath(os.fsdecode(path)) + os.sep).startswith(folder)

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if isinstance(flags, int) and flags & _WRITES and is_outside(path):
                raise PermissionError(f"{path!r}: only files of this folder may be written")
        elif event.startswith(_REFUSED):
            raise PermissionError(f"{event} is not allowed here")
        elif event.startswith(_CHANGES) and any(is_outside(path) for path in arguments[:2]):
            raise PermissionError(f"{event} is allowed in this folder alone")

    sys.addaudithook(hook)


def launch() -> None:
    """Run the program of the request on standard in."""
    request = json.loads(sys.stdin.buffer.read())
    mark, out, write, dumps = request.pop("mark"), os.dup(1), os.write, json.dumps  # before the program can change them

    def report(value: object) -> None:
        sys.stdout.flush()
        write(out, f"\n{mark}{dumps(value)}\n".encode())

    names: dict[str, Any] = {"__name__": "limited"}
    code = compile(request["program"], "program", "exec")
    limit(request)
    guard()
    exec(code, names)
    names["main"](request["given"], report)


launch()
