"""Arithmetic over named numbers, read by a grammar of its own: nothing else can be written.

+ - * / ^ ( )   min(…) max(…) abs(x) floor(x) ceil(x) exp(x) sqrt(x) log(x)
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Mapping

_OPERATIONS: dict[type, Callable[[float, float], float]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.Div: lambda a, b: a / b,
    ast.Pow: math.pow,
}
_FUNCTIONS: dict[str, Callable[..., float]] = {
    "min": min, "max": max, "abs": abs, "floor": math.floor, "ceil": math.ceil, "exp": math.exp, "sqrt": math.sqrt,
    "log": math.log,
}  # fmt: skip
_MOST_LETTERS = 2000


class Formula:
    """A formula that was read. Raises: ValueError, said in words, for what is no formula."""

    def __init__(self, text: str) -> None:
        if len(text) > _MOST_LETTERS:
            raise ValueError(f"is longer than {_MOST_LETTERS:,} characters")
        try:
            self._tree = ast.parse(text.strip().replace("^", "**"), mode="eval").body
        except (SyntaxError, ValueError, RecursionError):
            raise ValueError(f"{text!r} is no formula") from None
        self.names: set[str] = set()
        self._check(self._tree)

    def value(self, numbers: Mapping[str, float]) -> float:
        """What it comes to. Raises: ArithmeticError or ValueError where it has no value."""
        return self._value(self._tree, numbers)

    def _check(self, node: ast.expr) -> None:
        match node:
            case ast.Constant(value=bool()):
                raise ValueError("knows numbers only")
            case ast.Constant(value=int() | float()):
                pass
            case ast.Name(id=name):
                self.names.add(name)
            case ast.UnaryOp(op=ast.USub() | ast.UAdd(), operand=operand):
                self._check(operand)
            case ast.BinOp(left=left, op=operation, right=right) if type(operation) in _OPERATIONS:
                self._check(left)
                self._check(right)
            case ast.Call(func=ast.Name(id=name), args=[_, *_] as arguments, keywords=[]) if name in _FUNCTIONS:
                if name not in ("min", "max") and len(arguments) != 1:
                    raise ValueError(f"{name} takes one number")
                for argument in arguments:
                    self._check(argument)
            case _:
                raise ValueError(f"may not hold {ast.unparse(node)!r}; it knows + - * / ^ and {', '.join(_FUNCTIONS)}")

    def _value(self, node: ast.expr, numbers: Mapping[str, float]) -> float:
        match node:
            case ast.Constant(value=int() | float() as number):
                return float(number)
            case ast.Name(id=name):
                return numbers[name]
            case ast.UnaryOp(op=operation, operand=operand):
                value = self._value(operand, numbers)
                return -value if isinstance(operation, ast.USub) else value
            case ast.BinOp(left=left, op=operation, right=right):
                return _OPERATIONS[type(operation)](self._value(left, numbers), self._value(right, numbers))
            case ast.Call(func=ast.Name(id=name), args=arguments):
                values = [self._value(argument, numbers) for argument in arguments]
                return float(_FUNCTIONS[name](*values) if len(values) > 1 or name not in ("min", "max") else values[0])
        raise AssertionError("formulas are checked before they are computed")
