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
from itertools import repeat
from operator import itemgetter, setitem
from types import BuiltinMethodType, FunctionType, MappingProxyType, MethodType
from typing import Any

from vmi.native.stamped import STAMP, Stamped, stamp

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
        self._many, self._stamped = _Many(), _Stamped()
        # with the objects, or the number of one might become another's
        seen: dict[int, object] = {id(one): one for one in alone}
        while todo:
            one = todo.pop()
            if id(one) not in seen and not isinstance(one, self._others):
                seen[id(one)] = one
                todo.extend(self._keep(one))

    def __repr__(self) -> str:
        return f"<Held {len(self._undo) + len(self._many) + len(self._stamped.ones)} objects>"

    def put_back(self) -> None:
        """Let each object hold what it held."""
        self._many.put_back()
        self._stamped.put_back()
        for undo, one, kept in self._undo:
            undo(one, kept)

    def _keep(self, one: Any) -> Iterable[object]:
        """Keep what an object holds, and give what it refers to."""
        kind = type(one)
        if kind is tuple:
            return tuple(one)
        if kind is MappingProxyType:  # nobody can change it by this
            return (*one, *one.values())
        if isinstance(one, dict):
            copy = dict(one)
            if isinstance(one, OrderedDict):
                self._undo.append((_undo_ordered, one, copy))
            else:
                self._many.dicts.add(one, copy)
            return (*copy, *copy.values())
        if isinstance(one, list):
            self._many.lists.add(one, one.copy())
            return one.copy()
        if isinstance(one, bytearray):
            self._many.lists.add(one, bytes(one))
            return ()
        if isinstance(one, set):
            self._undo.append((_undo_set, one, tuple(one)))
            return tuple(one)
        if isinstance(one, deque):
            self._many.deques.add(one, tuple(one))
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
                (self._stamped if isinstance(one, Stamped) else self._many.attributes).add(own, dict(own))
            if names:
                self._many.slots(one, names, values)
        return [*(own or {}).values(), *values]


class _Pairs:
    """Objects of one kind, with what each held."""

    def __init__(self) -> None:
        self.ones: list[Any] = []
        self.kept: list[Any] = []

    def __repr__(self) -> str:
        return f"<Pairs {len(self.ones)}>"

    def add(self, one: Any, kept: Any) -> None:
        """Remember one."""
        self.ones.append(one)
        self.kept.append(kept)


class _Stamped(_Pairs):
    """The attributes of stamped objects: only those that were set since are put back."""

    def __init__(self) -> None:
        super().__init__()
        self._stamps: list[int] = []

    def add(self, one: Any, kept: Any) -> None:
        """See :class:`_Pairs`."""
        super().add(one, kept)
        self._stamps.append(stamp(one))

    def put_back(self) -> None:
        """Let each hold what it held."""
        stamps = list(map(_stamp_of, self.ones))
        if stamps == self._stamps:
            return
        for number, (now, was) in enumerate(zip(stamps, self._stamps, strict=True)):
            if now != was:
                own = self.ones[number]
                _put_back(own, self.kept[number])
                self._stamps[number] = stamp(own)  # for others that keep it too


class _Many:
    """The kinds of objects of which there are most: each kind goes back in one go, without a loop of ours."""

    def __init__(self) -> None:
        self.attributes, self.dicts, self.lists, self.deques = _Pairs(), _Pairs(), _Pairs(), _Pairs()
        self._sizes: list[int] = []  # of the attributes that objects had
        self._slots: tuple[list[Any], list[str], list[Any]] = [], [], []
        self._unset: list[tuple[Any, str]] = []

    def __repr__(self) -> str:
        return f"<Many {len(self)}>"

    def __len__(self) -> int:
        rows = [pairs.ones for pairs in (self.attributes, self.dicts, self.lists, self.deques)]
        return sum(map(len, rows)) + len({id(one) for one in self._slots[0]})

    def slots(self, one: Any, names: Iterable[str], values: Iterable[Any]) -> None:
        """Remember an object without a dictionary."""
        for name, value in zip(names, values, strict=True):
            if value is _MISSING:
                self._unset.append((one, name))
            else:
                for row, part in zip(self._slots, (one, name, value), strict=True):
                    row.append(part)

    def put_back(self) -> None:
        """Let each hold what it held."""
        own, kept = self.attributes.ones, self.attributes.kept
        _do(map(dict.update, own, kept))
        self._sizes = self._sizes or list(map(len, kept))
        if list(map(len, own)) != self._sizes:
            # rare, and an attribute can't be missed for a moment here
            for attributes, before in zip(own, kept, strict=True):
                _put_back(attributes, before)
        _do(map(dict.clear, self.dicts.ones))
        _do(map(dict.update, self.dicts.ones, self.dicts.kept))  # a Counter's own update() would add
        _do(map(setattr, *self._slots))
        for one, name in self._unset:
            if hasattr(one, name):
                delattr(one, name)
        _do(map(setitem, self.lists.ones, repeat(_WHOLE), self.lists.kept))
        _do(map(deque.clear, self.deques.ones))
        _do(map(deque.extend, self.deques.ones, self.deques.kept))


_do = deque[None](maxlen=0).extend
_stamp_of = itemgetter(STAMP)
_WHOLE = slice(None)


def _put_back(attributes: dict[str, Any], kept: dict[str, Any]) -> None:
    attributes.update(kept)
    for name in attributes.keys() - kept.keys():
        del attributes[name]


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


def _undo_ordered(one: OrderedDict[Any, Any], kept: dict[Any, Any]) -> None:
    one.clear()
    one.update(kept)


def _undo_set(one: set[Any], kept: tuple[Any, ...]) -> None:
    one.clear()
    one.update(kept)
