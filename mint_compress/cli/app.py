"""The commands: options in, one report out."""

from __future__ import annotations

import json
import logging
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from mint_compress import processes
from mint_compress.allocator import keep_little_memory
from mint_compress.cli.options import (
    BENCH,
    COMPRESS,
    INSPECT,
    REPORT,
    SWEEP,
    VERIFY,
    SectionedCommand,
    options,
)
from mint_compress.cli.terminal import ended_as_by_ctrl_c, exit_status, terminal, third_parties_silenced
from mint_compress.errors import MintError
from mint_compress.files import check_file, replacing
from mint_compress.preflight import check_model, check_run, check_sweep
from mint_compress.settings import GRID, Benchmark, Settings

if TYPE_CHECKING:
    from mint_compress.inspecting import Inspection
    from mint_compress.options import Option
    from mint_compress.progress import Progress
    from mint_compress.reporting import Report

PROGRAM = "mint-compress"
LOADING = "load PyTorch"
ONE_PROCESS = (
    "accelerate launch starts one process unless --multi_gpu is given, which needs no GPU: this one is "
    "alone. torchrun --nproc-per-node N starts several as well"
)
WIDE = {"max_content_width": 100, "help_option_names": ["-h", "--help"]}
FILE = click.Path(path_type=Path)


class DefaultGroup(click.Group):
    """``compress`` may be left out; every failure is one line on stderr and an exit status."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.obj = shlex.join([PROGRAM, *args])
        if not args:
            args = ["--help"]
        if args[0] == "help":
            args = ["--help", *args[1:]]
        if args[0] not in (*self.commands, "-h", "--help", "--version"):
            _check_command(args[0], list(self.commands))
            args = ["compress", *args]
        return super().parse_args(ctx, args)

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write_usage(PROGRAM, "[compress] MODEL --ratio R -o OUT.onnx [options]")

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        compress.format_options(ctx, formatter)
        others = [(name, command) for name, command in self.commands.items() if command is not compress]
        with formatter.section("Other commands"):
            formatter.write_dl(
                [
                    (" ".join([name, *_arguments(command)]), command.get_short_help_str(90))
                    for name, command in others
                ]
            )

    def main(self, *args: Any, standalone_mode: bool = True, **kwargs: Any) -> Any:
        run = partial(cast("Callable[..., Any]", super().main), *args, standalone_mode=False, **kwargs)
        if not standalone_mode:
            return run()
        with ended_as_by_ctrl_c():
            status = exit_status(run)
        sys.exit(status)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            # caught before click sees it: click would print an empty line first
            notes = " ".join(getattr(error, "__notes__", ()))
            raise click.exceptions.Abort(notes[:1].lower() + notes[1:].rstrip(".")) from None
        except EOFError as error:
            # click would take it for Ctrl-D; here it can only be a broken file
            raise RuntimeError(f"EOFError: {error}") from error


def _check_command(word: str, commands: list[str]) -> None:
    """Refuse what was meant to be a command, rather than take it for a model."""
    alike = get_close_matches(word, commands, n=1, cutoff=0.75)
    if alike and not Path(word).exists():
        raise MintError(f"There is no command and no model file {word!r}. Did you mean {alike[0]}?")


def _arguments(command: click.Command) -> list[str]:
    return [param.metavar or "" for param in command.params if isinstance(param, click.Argument)]


@click.group(cls=DefaultGroup, context_settings=WIDE)
@click.version_option(package_name=PROGRAM, prog_name=PROGRAM)
def main() -> None:
    """Make a trained PyTorch network smaller, repair it, and export it: checked and timed.

    The channels that carry the least information about the next layer go, physically.
    """


@main.command(cls=SectionedCommand, context_settings=WIDE)
@click.argument("model", metavar="MODEL", type=FILE)
@options(COMPRESS)
@click.version_option(package_name=PROGRAM, prog_name=PROGRAM)
@click.pass_obj
def compress(
    command: str, /, model: Path, data: str | None, plan: Path | None, output: Path | None, dry_run: bool,
    force: bool, resume: bool, as_json: bool, quiet: bool, **given: Any,
) -> None:  # fmt: skip
    """Prune MODEL, repair and fine-tune it, export it, check it and time it."""
    if output is None:
        raise MintError("No output given. Name the file to write, for example -o small.onnx.")
    settings = Settings.of(**given)
    rest: dict[str, Any] = {
        "plan": plan, "output": output, "dry_run": dry_run, "force": force, "resume": resume,
    }  # fmt: skip
    check_run(model, data, settings, **rest)
    with working(quiet) as progress:
        from mint_compress.compression import compress as run

        progress(LOADING, 1, 1)
        with third_parties_silenced():
            _, report = run(model, data, settings=settings, command=command, progress=progress, **rest)
    if _speaks():
        _show(report, as_json, quiet)


@contextmanager
def working(quiet: bool) -> Iterator[Progress]:
    """The terminal while something long goes on, which begins with loading PyTorch."""
    with terminal(quiet or not _speaks()) as progress:
        keep_little_memory()
        if processes.is_launch_of_one():
            logging.getLogger("mint_compress").warning(ONE_PROCESS)
        progress(LOADING, 0, 1)
        yield progress


def _speaks() -> bool:
    """Of processes that share a run, the main one alone writes to the terminal."""
    return processes.launched()[0] == 0


def _show(result: Report | Inspection, as_json: bool, quiet: bool) -> None:
    if as_json:
        click.echo(result.to_json())
    elif not quiet:
        from rich.console import Console

        Console(highlight=False).print(result)


@main.command(cls=SectionedCommand, context_settings=WIDE)
@click.argument("model", metavar="MODEL", type=FILE)
@options(INSPECT)
def inspect(model: Path, as_json: bool, quiet: bool, **given: Any) -> None:
    """List the channel groups of MODEL, why some must stay, and the largest possible --ratio."""
    if not _speaks():
        return  # there is nothing to share
    settings = Settings.of(**given)
    check_model(model)
    with working(quiet) as progress:
        from mint_compress.inspecting import inspect_model

        progress(LOADING, 1, 1)
        with third_parties_silenced():
            result = inspect_model(model, settings=settings, progress=progress)
    _show(result, as_json, quiet)


@main.command(cls=SectionedCommand, context_settings=WIDE)
@click.argument("model", metavar="MODEL", type=FILE)
@options(SWEEP)
def sweep(model: Path, data: str, output: Path, as_json: bool, quiet: bool, **given: Any) -> None:
    """Compress MODEL with every combination of a grid; what is there is kept."""
    grid = {name: given.pop(name) or () for name in GRID}
    settings = Settings.of(**given)
    check_sweep(model, data, settings, grid, output)
    with working(quiet) as progress:
        from mint_compress.sweeping import sweep as run
        from mint_compress.sweeping import table

        progress(LOADING, 1, 1)
        with third_parties_silenced():
            try:
                rows = run(model, data, grid, output, settings=settings, progress=progress)
            except KeyboardInterrupt:
                if not output.exists():
                    raise
                raise click.exceptions.Abort(f"the rows made so far are in {output}") from None
    if as_json and _speaks():
        click.echo(json.dumps(rows, indent=2))
    elif not quiet and _speaks():
        click.echo(table(rows))


@main.command(cls=SectionedCommand, context_settings=WIDE)
@click.argument("exports", metavar="A.onnx B.xml ...", type=FILE, nargs=-1, required=True)
@options(BENCH)
def bench(
    exports: tuple[Path, ...], as_json: bool, quiet: bool, input_shape: tuple[int, ...] | None, seed: int,
    **given: Any,
) -> None:  # fmt: skip
    """Time exported models of any runtimes in turn: A B C A B C."""
    if not _speaks():
        return  # others would only disturb
    for path in exports:
        check_file("model", path)
    _check(BENCH["Benchmark"], given)
    settings = Settings(benchmark=Benchmark(**given)).replace(input_shape=input_shape, seed=seed)
    with working(quiet) as progress:
        from mint_compress.exporting.comparison import compare_files

        progress(LOADING, 1, 1)
        with third_parties_silenced():
            result = compare_files(
                exports, settings.benchmark, input_shape=input_shape, seed=seed, progress=progress
            )
    if as_json:
        click.echo(json.dumps(result.to_dict(), indent=2))
    elif not quiet:
        click.echo(str(result))


@main.command(cls=SectionedCommand, context_settings=WIDE)
@click.argument("export", metavar="OUT.onnx", type=FILE)
@options(VERIFY)
def verify(export: Path, as_json: bool, quiet: bool, max_latency: float | None, **given: Any) -> None:
    """Check an export where it is to run, by the samples beside it; PyTorch is not needed."""
    if not _speaks():
        return  # others would only disturb
    _check(VERIFY["Benchmark"], {**given, "max_latency": max_latency})
    check_file("export", export)
    with terminal(quiet) as progress:
        from mint_compress.verifying import verify_export

        result = verify_export(export, Benchmark(**given), max_latency=max_latency, progress=progress)
    if as_json:
        click.echo(json.dumps(result.to_dict(), indent=2))
    elif not quiet:
        click.echo(str(result))


@main.command(cls=SectionedCommand, context_settings=WIDE)
@click.argument("figures", metavar="OUT.json", type=FILE)
@options(REPORT)
def report(figures: Path, output: Path | None, force: bool) -> None:
    """Make the page OUT.html of a report again."""
    from mint_compress.reporting import Report
    from mint_compress.reporting.html import report_page

    if not _speaks():
        return
    check_file("report", figures)
    page = figures.with_suffix(".html") if output is None else output
    if page.exists() and not force:
        raise MintError(f"{str(page)!r} exists already. Replace it with --force, or choose another name.")
    text = report_page(Report.from_json(figures.read_text(encoding="utf-8", errors="replace")))
    with replacing(page) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _check(several: Iterable[Option], given: Mapping[str, Any]) -> None:
    """Under the names that they have in this command."""
    for one in several:
        one.check(given[one.name])
