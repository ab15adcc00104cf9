"""`mgm-lora preset`: settings that fit a card, written into `params.yaml`.

A preset says what model, card and recipe ask for. Where data and runs lie, what is scored and asked of the figures stays the user's. The presets are
the files in `presets/`; what one names, it replaces whole (a step, an application point), so that nothing of another way to train is left.
It doesn't know what the entries mean.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from mgm_lora.errors import SettingsError
from mgm_lora.stages.params_file import difference, rewritten, round_trip_yaml, write_checked


@dataclass(frozen=True)
class Preset:
    """A name, what it is for in one line, and entries by section."""

    name: str
    about: str
    sections: Mapping[str, Mapping[str, Any]]


def run(name: str | None, *, params: Path, dry_run: bool) -> None:
    """Prints the difference and, without `dry_run`, writes it; without a name, prints what there is.

    Raises:
        SettingsError: there is no such preset, or the settings would not be valid; the file stays as it was.
    """
    if name is None:
        presets = all_presets()
        width = max(map(len, presets))
        print("\n".join(f"{preset.name:{width}}  {preset.about}" for preset in presets.values()))
        return
    before, after = rewritten(params, changes=find_preset(name).sections)
    if before == after:
        print(f"{params} is as {name} says already")
        return
    print("\n".join(difference(before, after, context=2)))
    if dry_run:
        print(f"\n{params} was not changed (--dry-run)")
        return
    write_checked(params, text=after)
    print(f"\nwritten to {params}; `mgm-lora validate` and `mgm-lora plan --arm lora` say whether your data fits")


def find_preset(name: str) -> Preset:
    """The preset of that name; raises SettingsError where there is none."""
    presets = all_presets()
    if name not in presets:
        raise SettingsError(f"no preset '{name}', there are {', '.join(presets)}")
    return presets[name]


def all_presets() -> dict[str, Preset]:
    """By name, in alphabetical order."""
    files = resources.files("mgm_lora.stages").joinpath("presets").iterdir()
    return {file.name.removesuffix(".yaml"): _read(file) for file in sorted(files, key=lambda file: file.name)}


def _read(file: Any) -> Preset:
    sections = round_trip_yaml().load(file.read_text(encoding="utf-8"))
    return Preset(name=file.name.removesuffix(".yaml"), about=sections.pop("about"), sections=sections)
