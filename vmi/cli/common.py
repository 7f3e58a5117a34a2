# SPDX-License-Identifier: GPL-2.0-only
"""What all verbs share: their common options, where text goes, and how errors end the process.

Results go to stdout; notes, progress and errors go to stderr, each line starting with ``vmi:``. So the
output of every verb can be piped, and ``--json`` output is one JSON value and nothing else.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, ParamSpec, Protocol, TextIO

import typer

from vmi.cli.terminal import safe, visible
from vmi.errors import Notice, OutputError, UsageError, VmiError
from vmi.files import reason

if TYPE_CHECKING:
    from rich.console import Console

INTERNAL_ERROR = 1
INTERRUPTED = 130  # 128 + SIGINT, as a shell reports it
BROKEN_PIPE = 141  # 128 + SIGPIPE
PIPE_WIDTH = 200  # columns where no terminal sets them: enough for every table, so nothing is cut

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON value on stdout instead of text.")]
QuietOption = Annotated[bool, typer.Option("-q", "--quiet", help="No notes and no progress on stderr.")]
VerboseOption = Annotated[bool, typer.Option("-v", "--verbose", help="Say more on stderr.")]

P = ParamSpec("P")


class HasFacts(Protocol):
    """An object of the library that describes itself for tools."""

    def to_json(self) -> object: ...


@dataclass(frozen=True)
class Ui:
    """Where a verb's words go, by the common options."""

    json: bool = False
    quiet: bool = False
    verbose: bool = False

    def show(self, *renderables: object) -> None:
        """Print text or rich tables on stdout.

        Text may hold what a foreign file says: no markup is read in it, and it is made visible. It ends
        with one line end, whether or not it brings one.
        """
        console = _console(sys.stdout)
        with stdout_errors():
            for renderable in renderables:
                is_text = isinstance(renderable, str)
                console.print(
                    visible(str(renderable).removesuffix("\n")) if is_text else renderable, soft_wrap=is_text
                )

    def data(self, value: object) -> None:
        """Print one JSON value on stdout: keys in the order given, so the same value gives the same bytes."""
        with stdout_errors():
            print(json.dumps(value, indent=2, ensure_ascii=True, allow_nan=False))

    def facts(self, source: HasFacts) -> None:
        """Print what an object says of itself as one JSON value on stdout."""
        self.data(facts(source))

    @property
    def width(self) -> int:
        """Columns that text on stdout may have."""
        return _console(sys.stdout).width

    def note(self, sentence: str) -> None:
        """Tell the user something on stderr, unless quiet."""
        if not self.quiet:
            say(sentence)

    def detail(self, renderable: object) -> None:
        """Text or a table on stderr, only when verbose."""
        if self.verbose and not self.quiet:
            _console(sys.stderr).print(renderable, soft_wrap=isinstance(renderable, str))

    @contextlib.contextmanager
    def progress(self, what: str) -> Iterator[None]:
        """A moving line on stderr while something longer is done; nothing where stderr is no terminal."""
        if self.quiet or not sys.stderr.isatty():
            yield
            return
        with _console(sys.stderr).status(safe(what)):
            yield

    @contextlib.contextmanager
    def steps(self, what: str) -> Iterator[Callable[[int, int], None]]:
        """As ``progress``; what it gives is told how much of how much is done."""
        if self.quiet or not sys.stderr.isatty():
            yield lambda done, total: None
            return
        with _console(sys.stderr).status(safe(what)) as line:
            yield lambda done, total: line.update(safe(f"{what}: {done} of {total}"))

    @contextlib.contextmanager
    def phases(self, what: str) -> Iterator[Callable[[str], None]]:
        """As ``progress``; what it gives is told what is being done now."""
        if self.quiet or not sys.stderr.isatty():
            yield lambda name: None
            return
        with _console(sys.stderr).status(safe(what)) as line:
            yield lambda name: line.update(safe(f"{what}: {name}"))


def facts(source: HasFacts) -> Any:
    """The JSON value of an object, whether its ``to_json`` gives the value or its text."""
    value = source.to_json()
    return json.loads(value) if isinstance(value, str) else value


def guarded(function: Callable[P, None]) -> Callable[P, None]:
    """Make a verb end as the command promises: one sentence and an exit code, never a traceback.

    With VMI_TRACEBACK set in the environment the traceback is printed before the sentence.
    """

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            with _notices(quiet=bool(kwargs.get("quiet"))):
                function(*args, **kwargs)
        except (typer.Exit, typer.Abort, typer.BadParameter):
            raise
        except VmiError as error:
            _end(str(error), int(error.exit_code))
        except KeyboardInterrupt:
            _end("interrupted", INTERRUPTED)
        except BrokenPipeError:
            _abandon_stdout()
            raise typer.Exit(BROKEN_PIPE) from None
        except Exception as error:
            what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            _end(f"internal error, please report it (VMI_TRACEBACK=1 shows where): {what}", INTERNAL_ERROR)

    return wrapper


@contextlib.contextmanager
def _notices(*, quiet: bool) -> Iterator[None]:
    """Show what the library wants the user to know as any other note; other warnings stay what they are."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if quiet else "always", Notice)
        others = warnings.showwarning

        def show(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            if issubclass(category, Notice):
                say(str(message))
            else:
                others(message, category, filename, lineno, file, line)

        warnings.showwarning = show
        yield


def say(sentence: str) -> None:
    """One line on stderr. A stderr that is gone is no reason to fail."""
    with contextlib.suppress(OSError):
        print(f"vmi: {safe(sentence)}", file=sys.stderr, flush=True)


def _end(sentence: str, code: int) -> NoReturn:
    if os.environ.get("VMI_TRACEBACK"):
        traceback.print_exc()
    say(sentence)
    raise typer.Exit(code)


@contextlib.contextmanager
def stdout_errors() -> Iterator[None]:
    """Flush stdout at the end. A full disk becomes an OutputError; a reader that left stays what it is."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        _abandon_stdout()
        raise OutputError(f"standard output can't be written: {reason(error)}") from error


def _abandon_stdout() -> None:
    """Let the interpreter's last flush go nowhere, or it would fail once more after our sentence."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def _console(stream: TextIO) -> Console:
    """A rich console on one of our streams: colours and the real width only where it is a terminal."""
    from vmi.cli.rich_console import OurConsole

    terminal = stream.isatty()
    return OurConsole(
        file=stream,
        width=None if terminal else PIPE_WIDTH,
        markup=False,
        emoji=False,
        highlight=False,
    )


def keep_inputs(inputs: Sequence[Path], target: Path) -> None:
    """Raise UsageError when an output would replace one of the inputs."""
    if target.exists() and any(path.exists() and target.samefile(path) for path in inputs):
        raise UsageError(f"{str(target)!r} is the input; the output needs a name of its own")
