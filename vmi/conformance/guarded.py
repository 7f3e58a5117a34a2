# SPDX-License-Identifier: GPL-2.0-only
"""A subject that somebody else has written, with nothing of it taken for granted.

Whatever its methods raise, give or don't come back with becomes one sentence that names the method. So a
mistake in a backend is an ERROR of the cases that met it, which says where to look, and never the end of the
run; and a case can rely on what it is given.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

from vmi.conformance.subject import REGISTERS, End, Environment, NoSubject, Stop, Subject
from vmi.errors import BackendError, RomError, VmiError
from vmi.x86 import U32

#: Seconds that a method may take. None of them has much to do; cases run for some milliseconds of guest time.
PATIENCE = 60.0

_T = TypeVar("_T")
_hung: dict[str, str] = {}  # backends of this process that haven't come back once: nobody waits again


class _Late(BaseException):
    """The time is over. No ordinary exception, which a backend might catch."""


class Guarded:
    """A :class:`~vmi.conformance.subject.Subject` around one.

    Its methods raise BackendError, or what VmiError the backend raises.

    :raises NoSubject: the backend says that there is none for this environment.
    :raises RomError: the ROM that it brings can't be plugged in.
    :raises BackendError: it could not be made.
    """

    def __init__(self, name: str, maker: Callable[[Environment], Subject], environment: Environment) -> None:
        self.name = name
        self._backend, self._environment = name, environment
        try:
            self._subject = self._get("the constructor", lambda: maker(environment))
        except (BackendError, RomError):
            raise
        except VmiError as error:
            raise NoSubject(str(error)) from None

    def __repr__(self) -> str:
        return f"<Guarded {self._backend} {self._environment}>"

    def reset(self) -> None:
        """See :class:`vmi.conformance.subject.Subject`, as for all the others."""
        self._ask("reset")

    def read(self, address: int, size: int) -> bytes:
        """Exactly as many bytes."""
        given = self._ask("read", address, size)
        if not isinstance(given, bytes | bytearray | memoryview) or len(given) != size:
            raise self._wrong("read()", f"{size} bytes", given)
        return bytes(given)

    def write(self, address: int, data: bytes) -> None:
        """As the subject does it."""
        self._ask("write", address, data)

    def registers(self) -> dict[str, int]:
        """All of them, and nothing else."""
        given = self._ask("registers")
        if not isinstance(given, Mapping):
            raise self._wrong("registers()", "numbers by names", given)
        for name in REGISTERS:
            value = given.get(name)
            if not isinstance(value, int) or not 0 <= value <= U32:
                raise self._wrong("registers()", f"a dword for {name}", value)
        return {name: int(given[name]) for name in REGISTERS}

    def set_registers(self, values: Mapping[str, int]) -> None:
        """As the subject does it."""
        self._ask("set_registers", values)

    def run(self, limit_ns: int) -> Stop:
        """How it ended."""
        given = self._ask("run", limit_ns)
        if not isinstance(given, Stop) or given.end not in tuple(End):
            raise self._wrong("run()", "a Stop", given)
        return Stop(End(given.end), str(given.reason))

    def exits(self) -> int:
        """A number."""
        given = self._ask("exits")
        if not isinstance(given, int):
            raise self._wrong("exits()", "a number", given)
        return given

    def interrupt(self, line: int) -> None:
        """As the subject does it."""
        self._ask("interrupt", line)

    def mark(self) -> Callable[[], None] | None:
        """What goes back is guarded, too."""
        back = self._ask("mark")
        if back is None:
            return None
        if not callable(back):
            raise self._wrong("mark()", "a function or None", back)

        def guarded() -> None:
            self._get("going back to what mark() has kept", back)

        return guarded

    def facts(self) -> dict[str, str]:
        """Words."""
        given = self._ask("facts")
        if not isinstance(given, Mapping) or any(
            not isinstance(word, str) for row in given.items() for word in row
        ):
            raise self._wrong("facts()", "texts by names", given)
        return dict(given)

    def _ask(self, method: str, *arguments: object) -> object:
        return self._get(f"{method}()", lambda: getattr(self._subject, method)(*arguments))

    def _get(self, what: str, question: Callable[[], _T]) -> _T:
        if self._backend in _hung:
            raise BackendError(_hung[self._backend])
        try:
            with _patient():
                return question()
        except (VmiError, KeyboardInterrupt):
            raise
        except _Late:
            sentence = f"{what} of the backend {self._backend!r} has not come back within {PATIENCE:g} s"
            _hung[self._backend] = sentence
            raise BackendError(sentence) from None
        except BaseException as error:  # SystemExit too
            raise BackendError(
                f"{what} of the backend {self._backend!r} has raised {_told(error)}"
            ) from error

    def _wrong(self, what: str, wanted: str, given: object) -> BackendError:
        return BackendError(
            f"{what} of the backend {self._backend!r} must give {wanted}, but it has given {_shown(given)}"
        )


def _told(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _shown(value: object) -> str:
    if isinstance(value, bytes | bytearray | memoryview):
        return str(len(value))
    try:
        text = repr(value)
    except Exception:
        text = type(value).__name__
    return text if len(text) <= 60 else f"{text[:60]}..."


@contextmanager
def _patient() -> Iterator[None]:
    """Raise _Late behind some time, and again and again if that is caught."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals come to the main thread only
        return

    def late(_number: int, _frame: FrameType | None) -> None:
        raise _Late

    began, handler = time.monotonic(), signal.signal(signal.SIGALRM, late)
    left, again = signal.setitimer(signal.ITIMER_REAL, PATIENCE, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, handler)
        if left:  # somebody else's alarm goes on
            signal.setitimer(signal.ITIMER_REAL, max(0.001, left - (time.monotonic() - began)), again)
