"""`luthier cache`: what Luthier keeps between runs, and how to be rid of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from luthier.cli.options import Json
from luthier.cli.output import emit
from luthier.sizes import readable_bytes

if TYPE_CHECKING:
    from luthier.store.cache import CacheEntry

cache = typer.Typer(help="What Luthier keeps between runs: list it, clear it.", no_args_is_help=True)


@cache.command("list")
def list_cache(as_json: Json = False) -> None:
    """List what the cache holds."""
    from luthier.store.cache import cache_root, list_entries

    root = cache_root()
    entries = list_entries(root)
    lines = [_line(entry) for entry in entries]
    total = sum(entry.bytes for entry in entries)
    text = "\n".join([*lines, f"{readable_bytes(total)} in {root}"])
    emit({"folder": str(root), "bytes": total, "entries": [_document(entry) for entry in entries]}, text, as_json)


@cache.command("clear")
def clear_cache(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="What to delete, as NAME, KIND/NAME, or KIND (such as tokens) for all of a kind; unset: all."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Delete what the cache holds; all of it can be made again."""
    from luthier.store.cache import cache_root, clear

    deleted = clear(cache_root(), names or None)
    freed = sum(entry.bytes for entry in deleted)
    what = ", ".join(f"{entry.kind}/{entry.name}" for entry in deleted) or "nothing"
    document = {"bytes": freed, "deleted": [_document(entry) for entry in deleted]}
    emit(document, f"Deleted {what}: {readable_bytes(freed)} freed.", as_json)


def _document(entry: CacheEntry) -> dict[str, Any]:
    return {**vars(entry), "path": str(entry.path), "last_used": entry.last_used.isoformat()}


def _line(entry: CacheEntry) -> str:
    used = entry.last_used.astimezone().strftime("%Y-%m-%d %H:%M")
    return f"{entry.kind}/{entry.name:32} {readable_bytes(entry.bytes):>10}  last used {used}"
