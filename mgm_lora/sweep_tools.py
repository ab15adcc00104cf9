"""The command `mgm-lora sweep`. As with the stages, what it needs is imported only when it runs."""

from typing import Annotated

import typer


def sweep(
    name: Annotated[str | None, typer.Argument(help="Which of sweeps/; none: lists what there is.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the trials and what they will take; run nothing.")
    ] = False,
    evaluate: Annotated[
        bool, typer.Option("--evaluate", help="Ask every trained trial the questions too: scores beside the loss.")
    ] = False,
    retry: Annotated[bool, typer.Option("--retry", help="Run trials again that failed.")] = False,
    apply: Annotated[
        bool, typer.Option("--apply", help="In the end write the best trial of each arm into params.yaml.")
    ] = False,
) -> None:
    """Searches settings of arms by held-out loss: a DVC experiment per trial, one after the other.

    Interrupted, it goes on where it was when it is run again. Runs from the project's root, on what is committed.

    Example: mgm-lora sweep learning-rates --dry-run
    """
    from mgm_lora.stages import sweep as stage

    if name is None:
        stage.list_all()
    elif dry_run:
        stage.show(name, evaluate=evaluate, retry=retry)
    else:
        stage.run(name, evaluate=evaluate, retry=retry, apply=apply)
