"""The command ``optuna-robustloss``."""

from __future__ import annotations

import traceback
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from optuna_robustloss.cli import benchmark, search
from optuna_robustloss.cli.console import clear_errors
from optuna_robustloss.cli.streams import exit_process, guard_streams


class _Commands(TyperGroup):
    """Commands whose errors are one line, those of their options' callbacks too."""

    def invoke(self, ctx: Any) -> Any:
        with clear_errors():
            return super().invoke(ctx)


app = typer.Typer(
    cls=_Commands,
    help="Search for loss functions that are robust to label noise.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # panels cost as much time as everything else
)
for command in (
    search.search,
    search.init,
    search.work,
    search.status,
    search.export,
    search.evaluate,
    benchmark.benchmark,
    benchmark.features,
):
    app.command()(command)


def _print_version(wanted: bool) -> None:
    if wanted:
        import optuna_robustloss

        typer.echo(optuna_robustloss.__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    pass


def main() -> NoReturn:
    """Run the command line and end the process."""
    guard_streams()
    code = 1
    try:
        app()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0
    except KeyboardInterrupt:  # before a command has begun
        code = 130
    except Exception:
        traceback.print_exc()
    exit_process(code)
