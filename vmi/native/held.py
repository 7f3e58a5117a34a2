# SPDX-License-Identifier: GPL-2.0-only
"""What the objects of a machine hold, kept so that it can be put back into the very same objects.

A machine in memory is a web of some hundred objects: devices with their registers, queues and waiting events,
whoever listens to whom, and the hypervisor that is on it. All that is reachable from it is looked at once,
and of each object and container is kept what it refers to. Putting that back leaves each object what it was,
so everything that points to it, the emulator's callbacks too, stays right; what came up since is forgotten.

What belongs to somebody else is neither entered nor changed: objects whose classes are not of the packages
of the objects that were begun with, and types that the caller knows to take care of otherwise. Numbers,
texts and the like don't change; what C libraries hold isn't seen here.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from enum import Enum
from functools import partial
from types import BuiltinMethodType, FunctionType, MethodType
from typing import Any

_CONSTANT = (int, float, str, bytes, frozenset, range, type, type(None), Enum)
_MISSING = object()


class Held:
    """What is reachable from ``roots``; :meth:`put_back` as often as you like.

    :param roots: where to begin; also says whose objects are entered.
    :param others: types whose objects are left alone, with all that they refer to.
    :param alone: objects that are left alone, too.
    """

    def __init__(
        self, roots: Iterable[object], others: tuple[type, ...], alone: Iterable[object] = ()
    ) -> None:
        todo = list(roots)
        self._packages = tuple({_package(type(root)) for root in todo} - {"builtins"})
        self._others = others + _CONSTANT
        self._undo: list[tuple[Callable[[Any, Any], None], Any, Any]] = []
        # with the objects, or the number of one might become another's
        seen: dict[int, object] = {id(one): one for one in alone}
        while todo:
            one = todo.pop()
            if id(one) not in seen and not isinstance(one, self._others):
                seen[id(one)] = one
                todo.extend(self._keep(one))

    def __repr__(self) -> str:
        return f"<Held {len(self._undo)} objects>"

    def put_back(self) -> None:
        """Let each object hold what it held."""
        for undo, one, kept in self._undo:
            undo(one, kept)

    def _keep(self, one: Any) -> Iterable[object]:
        """Keep what an object holds, and give what it refers to."""
        kind = type(one)
        if kind is tuple:
            return tuple(one)
        if isinstance(one, dict):
            copy = dict(one)
            self._undo.append((_undo_ordered if isinstance(one, OrderedDict) else _undo_dict, one, copy))
            return (*copy, *copy.values())
        if isinstance(one, list):
            self._undo.append((_undo_list, one, one.copy()))
            return one.copy()
        if isinstance(one, bytearray):
            self._undo.append((_undo_list, one, bytes(one)))
            return ()
        if isinstance(one, (set, deque)):
            self._undo.append((_undo_set if isinstance(one, set) else _undo_deque, one, tuple(one)))
            return tuple(one)
        if kind is MethodType or kind is BuiltinMethodType:
            return (one.__self__,)
        if isinstance(one, partial):
            return (one.func, *one.args, *one.keywords.values())
        if kind is FunctionType:
            return _of_function(one) if self._ours(one.__module__) else ()
        return self._keep_instance(one) if any(self._ours(base.__module__) for base in kind.__mro__) else ()

    def _ours(self, module: str) -> bool:
        return any(module == package or module.startswith(f"{package}.") for package in self._packages)

    def _keep_instance(self, one: Any) -> list[object]:
        kind = type(one)
        own = getattr(one, "__dict__", None)
        names = tuple(name for base in kind.__mro__ for name in _slots(base))
        values = tuple(getattr(one, name, _MISSING) for name in names)
        parameters = getattr(kind, "__dataclass_params__", None)
        if parameters is None or not parameters.frozen:
            if own is not None:
                self._undo.append((_undo_attributes, own, dict(own)))
            if names:
                self._undo.append((_undo_slots, one, tuple(zip(names, values, strict=True))))
        return [*(own or {}).values(), *values]


def _of_function(one: FunctionType) -> list[object]:
    """What a function closes over, and its default values."""
    found = list(one.__defaults__ or ())
    for cell in one.__closure__ or ():
        with suppress(ValueError):  # a variable without a value
            found.append(cell.cell_contents)
    return found


def _package(kind: type) -> str:
    """``vmi.native`` of a class in ``vmi.native.machine``; a module of its own is one."""
    return ".".join(kind.__module__.split(".")[:2])


def _slots(kind: type) -> tuple[str, ...]:
    slots = vars(kind).get("__slots__", ())
    names = (slots,) if isinstance(slots, str) else tuple(slots)
    return tuple(name for name in names if name not in ("__dict__", "__weakref__"))


def _undo_attributes(attributes: dict[str, Any], kept: dict[str, Any]) -> None:
    attributes.update(kept)
    if len(attributes) != len(kept):  # rare, and an attribute can't be missed for a moment here
        for name in attributes.keys() - kept.keys():
            del attributes[name]


def _undo_slots(one: Any, kept: tuple[tuple[str, Any], ...]) -> None:
    for name, value in kept:
        if value is not _MISSING:
            setattr(one, name, value)
        elif hasattr(one, name):
            delattr(one, name)


def _undo_dict(one: dict[Any, Any], kept: dict[Any, Any]) -> None:
    one.clear()
    dict.update(one, kept)  # a Counter's own update() would add


def _undo_ordered(one: OrderedDict[Any, Any], kept: dict[Any, Any]) -> None:
    one.clear()
    one.update(kept)


def _undo_list(one: Any, kept: Any) -> None:
    one[:] = kept


def _undo_set(one: set[Any], kept: tuple[Any, ...]) -> None:
    one.clear()
    one.update(kept)


def _undo_deque(one: deque[Any], kept: tuple[Any, ...]) -> None:
    one.clear()
    one.extend(kept)
