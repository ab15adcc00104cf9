"""What the commands of the command line share: the settings' option, and how each begins. It knows no command."""

from pathlib import Path
from typing import Annotated

import typer

from mgm_lora.settings import Settings, read_settings

Params = Annotated[
    Path, typer.Option("--params", help="The settings file; mgm_lora/settings.py says what each entry is.")
]
DEFAULT_PARAMS = Path("params.yaml")


def begin(params: Path) -> Settings:
    """Every stage's first act: end with the parent, and know the settings."""
    from mgm_lora.stages.process import die_with_parent

    die_with_parent()
    return read_settings(params)
