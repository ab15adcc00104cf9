"""Parts of the pipeline as flows of their own, so that each can have its own schedule, work pool and page in Prefect.

A part brings its stages up to date and, as `dvc repro STAGE` does, what they need: it never builds on something stale,
and what is unchanged is Cached. Unlike the pipeline, a part has to say which stages it is about; that is all it knows.
"""

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State

from flows.pipeline import run_stages


@flow(persist_result=False)
def validation(force: bool = False, pull: bool = True, card_pool: str | None = None) -> State[Any]:
    """Checks the data, and writes the table of samples and the Data Docs.

    Args:
        force: Run each of them, also where nothing changed.
        pull: Get missing data from the DVC remote, where one is configured.
        card_pool: The work pool of another machine that has the card: stages that ask for it are run there. Empty: all run here.
    """
    return run_stages(["validate"], force=force, pull=pull, card_pool=card_pool)


@flow(persist_result=False)
def training(force: bool = False, pull: bool = True, card_pool: str | None = None) -> State[Any]:
    """Trains both arms, the adapter and the full fine-tune.

    Args:
        force: Run each of them, also where nothing changed.
        pull: Get missing data from the DVC remote, where one is configured.
        card_pool: The work pool of another machine that has the card: stages that ask for it are run there. Empty: all run here.
    """
    return run_stages(["train"], force=force, pull=pull, card_pool=card_pool)


@flow(persist_result=False)
def evaluation(force: bool = False, pull: bool = True, card_pool: str | None = None) -> State[Any]:
    """Merges, scores every model, and compares them.

    Args:
        force: Run each of them, also where nothing changed.
        pull: Get missing data from the DVC remote, where one is configured.
        card_pool: The work pool of another machine that has the card: stages that ask for it are run there. Empty: all run here.
    """
    return run_stages(["merge", "evaluate", "compare"], force=force, pull=pull, card_pool=card_pool)


@flow(persist_result=False)
def registration(force: bool = False, pull: bool = True, card_pool: str | None = None) -> State[Any]:
    """Registers the adapter with its scores.

    Args:
        force: Run each of them, also where nothing changed.
        pull: Get missing data from the DVC remote, where one is configured.
        card_pool: The work pool of another machine that has the card: stages that ask for it are run there. Empty: all run here.
    """
    return run_stages(["register"], force=force, pull=pull, card_pool=card_pool)
