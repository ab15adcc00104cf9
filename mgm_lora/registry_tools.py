"""Commands on what is registered: promote, rollback, serve, and `registry` with list, diff, history and reproduce.

As with the stages, what a command needs is imported only when it runs. It doesn't know the command line's program.
"""

from pathlib import Path
from typing import Annotated

import typer

from mgm_lora.invocation import DEFAULT_PARAMS, Params, begin

registry = typer.Typer(help="What is registered: list, diff, history, reproduce.", no_args_is_help=True)
Json = Annotated[bool, typer.Option("--json", help="For programs.")]
Reason = Annotated[str, typer.Option(help="Why; kept in the history.")]
Version = Annotated[str, typer.Argument(help="A number, an alias, or an address models:/NAME/3.")]


def promote(
    version: Version = "challenger",
    reason: Annotated[
        str, typer.Option(help="Why; kept in the history. With a reason it is promoted also where it breaks a rule.")
    ] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Judge, show, and change nothing.")] = False,
    as_json: Json = False,
    params: Params = DEFAULT_PARAMS,
) -> None:
    """Makes a version the champion, if it keeps the rules of the section promotion; the champion is asked today's held-out questions again.

    Example: mgm-lora promote 3 --reason "the shapes are worth the size"
    """
    settings = begin(params)
    from mgm_lora.stages import promote as stage

    show = stage.show_json if as_json else stage.show_table
    stage.run(settings, version=version, reason=reason, dry_run=dry_run, show=show)


def rollback(reason: Reason = "", params: Params = DEFAULT_PARAMS) -> None:
    """Makes the previous champion the champion again, at once."""
    settings = begin(params)
    from mgm_lora.stages import promote as stage

    entry = stage.run_rollback(settings, reason=reason)
    print(f"version {entry.version} is the champion again, in the place of version {entry.replaced}")


def serve(
    version: Version = "champion",
    host: Annotated[
        str, typer.Option(help="Where it listens; 0.0.0.0: on all of this machine's addresses.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.")] = 5001,
    timeout: Annotated[int, typer.Option(min=1, help="Seconds of a request, its wait for others included.")] = 60,
    params: Params = DEFAULT_PARAMS,
) -> None:
    """Answers pictures and questions over HTTP, as `mlflow models serve` does, within all limits (docs/serving.md).

    Example: mgm-lora serve champion --port 5001
    """
    settings = begin(params)
    from mgm_lora.stages import serve as stage

    stage.run(settings, version=version, host=host, port=port, timeout_seconds=timeout)


@registry.command("list")
def list_versions(as_json: Json = False, params: Params = DEFAULT_PARAMS) -> None:
    """Shows every version: aliases, scores, what it is made of, when, and why it became the champion."""
    settings = begin(params)
    from mgm_lora.stages import registry as stage

    stage.show_versions(settings, as_json=as_json)


@registry.command()
def diff(
    first: Version,
    second: Version,
    show: Annotated[int, typer.Option(min=0, help="So many changed answers of each set; all are counted.")] = 10,
    as_json: Json = False,
    params: Params = DEFAULT_PARAMS,
) -> None:
    """Shows how two versions differ: settings, data, code, libraries, figures, and which answers changed.

    Example: mgm-lora registry diff champion challenger
    """
    settings = begin(params)
    from mgm_lora.stages import registry as stage

    stage.show_difference(settings, first=first, second=second, num_shown=show, as_json=as_json)


@registry.command()
def history(as_json: Json = False, params: Params = DEFAULT_PARAMS) -> None:
    """Shows who made which version the champion, when, why, and by which figures."""
    settings = begin(params)
    from mgm_lora.stages import registry as stage

    stage.show_history(settings, as_json=as_json)


@registry.command()
def reproduce(
    version: Version,
    folder: Annotated[
        Path | None, typer.Option(help="Where; none: build/reproduced/NAME-VERSION. It must not be there yet.")
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the folder also where all went well.")] = False,
    params: Params = DEFAULT_PARAMS,
) -> None:
    """Makes a version's adapter again from its commit, data and settings, in a clone of its own, and compares the digests.

    Example: mgm-lora registry reproduce 3
    """
    settings = begin(params)
    from mgm_lora.stages import reproduce as stage

    made = stage.run(settings, version=version, folder=folder, keep=keep)
    print(f"version {made.version} is reproduced: the adapter has the same digest {made.digest}")
