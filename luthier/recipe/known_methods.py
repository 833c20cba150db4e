"""Every method that a recipe can name: the package's own, and those that other installed packages bring.

A package brings a method by an entry point of the group `luthier.methods`, under its kind. In its pyproject.toml:

    [project.entry-points."luthier.methods"]
    scale = "scaling:Scale"
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING

from luthier.errors import UsageError
from luthier.methods import METHODS, Method, give_stack, kind_of, one_of

GROUP = "luthier.methods"


def brought(points: Iterable[EntryPoint]) -> tuple[type[Method], ...]:
    """The methods behind entry points.

    Raises: UsageError, naming the package, for one that cannot be imported, is no method, or bears another kind than its
    entry point or one that is taken.
    """
    found: dict[str, type[Method]] = {}
    taken = {kind_of(method) for method in METHODS}
    for point in points:
        method = _loaded(point)
        if kind_of(method) != point.name:
            raise _fault(point, f"its kind is {kind_of(method)!r}, not {point.name!r}")
        if point.name in taken:
            raise _fault(point, "there is a method of that kind already")
        taken.add(point.name)
        found[point.name] = method
    return tuple(found.values())


def _loaded(point: EntryPoint) -> type[Method]:
    try:
        method = point.load()
    except Exception as error:  # whatever the package does when it is imported
        raise _fault(point, f"it cannot be imported ({type(error).__name__}: {error})") from error
    if not isinstance(method, type) or not issubclass(method, Method):
        raise _fault(point, f"{point.value} is no subclass of luthier.methods.Method")
    return method


def _fault(point: EntryPoint, what: str) -> UsageError:
    package = "a package" if point.dist is None else f"the package {point.dist.name}"
    return UsageError(
        f"The method {point.name!r}, which {package} brings, cannot be used: {what}.", "Mend or uninstall that package."
    )


_BROUGHT = brought(entry_points(group=GROUP))

KNOWN_METHODS: tuple[type[Method], ...] = (*METHODS, *_BROUGHT)
"""The package's own methods, and those of installed packages after them."""

if _BROUGHT:
    give_stack(KNOWN_METHODS)

if TYPE_CHECKING:
    AnyMethod = Method
else:
    AnyMethod = one_of(KNOWN_METHODS)
