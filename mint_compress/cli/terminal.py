"""What reaches the terminal: one bar or line a stage, one line a failure, and nothing of third parties."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from typing import Any

import click

from mint_compress import processes
from mint_compress.errors import MintError, OwnFault, ProcessLost
from mint_compress.progress import Progress

DEBUG = "MINT_COMPRESS_DEBUG"
EVERY_SECONDS = 30.0
"""Between two lines of one stage where there is no terminal."""
OTHERS_SECONDS = 10.0
"""In which the main process says why all fail; if it does not, another one does."""


@contextmanager
def ended_as_by_ctrl_c() -> Iterator[None]:
    """SIGTERM, from timeout or a scheduler, and a closed terminal leave no files behind either."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    if threading.current_thread() is not threading.main_thread():
        numbers = []  # handlers can be set there only
    numbers = [number for number in numbers if signal.getsignal(number) == signal.SIG_DFL]
    for number in numbers:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


def exit_status(run: Callable[[], Any]) -> int:
    """Run a command and turn whatever it raises into one line on stderr and a status."""
    try:
        status = run()
        return status if isinstance(status, int) else 0
    except click.exceptions.Abort as error:
        _say(f"Interrupted; {str(error) or 'nothing was written'}.")
        return 130
    except click.ClickException as error:
        return _failed(error.format_message(), 2, error)
    except MintError as error:
        return _failed(str(error), error.exit_code, error)
    except SystemExit as error:
        return _failed(f"a module of yours called sys.exit({error.code!r})", 2, error)
    except ProcessLost as error:
        return _failed(str(error), error.exit_code, error)
    except OwnFault as fault:
        return _unexpected(fault.__cause__ or fault)
    except Exception as error:  # whatever it is, a person gets one line
        return _unexpected(error)


def _unexpected(error: BaseException) -> int:
    said = f"{type(error).__name__}: {error}".rstrip(": ")
    return _failed(f"{said} (unexpected; {DEBUG}=1 shows the traceback)", 1, error)


def _failed(message: str, status: int, error: BaseException) -> int:
    if _debug():
        import traceback

        traceback.print_exception(error)
    for note in getattr(error, "__notes__", ()):  # what was added to it on its way
        message = f"{message.rstrip('.')}. {note}"
    _say(f"Error: {' '.join(message.split())}")
    return status


def _say(line: str) -> None:
    """One line on stderr; of processes that share a run, the first that fails says it."""
    rank, count = processes.launched()
    first = processes.first_to_say() if count > 1 else True
    if first is None and rank:  # before the processes have met; the main one fails alike, and says so
        try:
            time.sleep(OTHERS_SECONDS)
        except KeyboardInterrupt:  # it has, and the launcher ends this one
            return
    if first is not False:
        click.echo(line, err=True)


def _debug() -> bool:
    return os.environ.get(DEBUG, "") not in ("", "0")


@contextmanager
def terminal(quiet: bool) -> Iterator[Progress]:
    """Keep stdout for results and the terminal free of third parties; give a progress callback.

    Warnings of this package become one line each on stderr. All settings are restored.
    """
    with ExitStack() as stack:
        if not _debug():
            # read by the C++ side of torch when it is loaded
            os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
        stack.enter_context(_logging_to_stderr(quiet))
        # a builder or a loader of the user's may print; stdout is for the report alone
        sink = stack.enter_context(open(os.devnull, "w")) if quiet else sys.stderr
        stack.enter_context(redirect_stdout(sink))
        yield _no_bars if quiet else stack.enter_context(_bars())


@contextmanager
def third_parties_silenced() -> Iterator[None]:
    """Nothing from the loggers of the libraries that were imported before; their levels are restored."""
    loggers = [logging.getLogger(name) for name in ("torch", "onnxscript", "onnx_ir", "accelerate")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logger.level if _debug() else logging.CRITICAL)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


class _Lines(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        # rich, while it draws bars, puts what arrives on sys.stderr above them
        click.echo(
            f"{record.levelname.capitalize()}: {' '.join(record.getMessage().split())}", file=sys.stderr
        )


@contextmanager
def _logging_to_stderr(quiet: bool) -> Iterator[None]:
    handler: logging.Handler = logging.NullHandler() if quiet else _Lines(logging.WARNING)
    handlers = [(logging.getLogger(name), handler) for name in ("mint_compress", "mint_exporters")]
    if not _debug():
        # without any handler at the root, Python prints the warnings of every library
        handlers.append((logging.getLogger(), logging.NullHandler()))
    for logger, handler in handlers:
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger, handler in handlers:
            logger.removeHandler(handler)


def _no_bars(stage: str, done: int, total: int) -> None:
    """Progress that nobody wants to see."""


class _Log:
    """A line for each stage, and one now and then with the share done: a log shows that the run lives."""

    def __init__(self) -> None:
        self._last: dict[str, float] = {}

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if stage not in self._last:
            click.echo(f"{stage} ...", err=True)
        elif now - self._last[stage] >= EVERY_SECONDS:
            click.echo(f"{stage} ... {f'{done / total:.0%}' if total else done}", err=True)
        else:
            return
        self._last[stage] = now


@contextmanager
def _bars() -> Iterator[Progress]:
    """A bar per stage on a terminal, with an estimate, cleared at the end; elsewhere lines now and then."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        SpinnerColumn,
        TaskID,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    tasks: dict[str, TaskID] = {}
    if not console.is_terminal or console.is_dumb_terminal:
        yield _Log()
        return
    name = TextColumn("{task.description}", markup=False)
    times = (TimeElapsedColumn(), TimeRemainingColumn())
    columns = (SpinnerColumn(), name, BarColumn(), MofNCompleteColumn(), *times)
    with Progress(*columns, console=console, transient=True) as bars:

        def bar(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=None)
            bars.update(tasks[stage], completed=done, total=total or None)

        yield bar
