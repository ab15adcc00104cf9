"""Rewrites single entries of `params.yaml` and keeps all else of the file: comments, order, and how it is written.

It knows no settings by name: what the file says in the end is checked by reading it.
"""

from collections.abc import Mapping
from copy import deepcopy
from difflib import unified_diff
from io import StringIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.compat import ordereddict
from ruamel.yaml.error import YAMLError
from ruamel.yaml.scalarstring import DoubleQuotedScalarString

from mgm_lora.artifacts import new_file
from mgm_lora.errors import SettingsError
from mgm_lora.settings import read_settings

_WORDS_TO_QUOTE = ("off", "on", "yes", "no", "y", "n", "null", "true", "false")
Changes = Mapping[str, Mapping[str, Any]]


def rewritten(path: Path, *, changes: Changes) -> tuple[str, str]:
    """The file's text as it is, and with the entries changed; null takes an entry away.

    Raises:
        SettingsError: the file is missing, or no YAML with sections.
    """
    before, settings = _load(path)
    for section, entries in changes.items():
        for name, value in entries.items():
            _change(settings.setdefault(section, CommentedMap()), name, value)
    return before, _dump(settings)


def with_entries(path: Path, *, entries: Mapping[str, Any]) -> tuple[str, str]:
    """The file's text as it is, and with single entries changed, each named by its dotted path; raises as `rewritten` does.

    What takes its entries from a changed arm (`<<: *lora`) takes these too, but where it is named itself.
    """
    before, settings = _load(path)
    text = before
    while (after := _with_each(settings, entries)) != text:
        # again: an arm that is to keep what another one gave it has it written only once that one says otherwise
        text, settings = after, round_trip_yaml().load(after)
    return before, text


def _with_each(settings: CommentedMap, entries: Mapping[str, Any]) -> str:
    for entry, value in entries.items():
        *folders, name = entry.split(".")
        section = settings
        for folder in folders:
            section = _own_section(section, folder)
        _change(section, name, _written(value))
    return _dump(settings)


def with_entries_apart(path: Path, *, entries: Mapping[str, Any]) -> str:
    """As `with_entries`, but what takes its entries from a changed arm stays as it was: for one training of that arm alone."""
    _, settings = _load(path)
    for container in dict.fromkeys(_container(entry) for entry in entries):
        *folders, name = container
        section = settings
        for folder in folders:
            section = section[folder]
        # a new map: those that merge the old one keep it, and it is written where the first of them stands
        section[name] = CommentedMap(deepcopy(dict(section[name])))
    for entry, value in entries.items():
        *folders, name = entry.split(".")
        section = settings
        for folder in folders:
            section = section.setdefault(folder, CommentedMap())
        section[name] = _written(value)
    return _dump(settings)


def write_checked(path: Path, *, text: str) -> None:
    """Replaces the file; raises SettingsError where the text is no valid settings, and leaves the file as it was."""
    with new_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
        try:
            read_settings(temporary)
        except SettingsError as error:
            raise SettingsError(f"'{path}' was not changed: {error}") from error


def difference(before: str, after: str, *, context: int = 0) -> list[str]:
    """As diff shows it, with so many unchanged lines around."""
    return list(unified_diff(before.splitlines(), after.splitlines(), "before", "after", lineterm="", n=context))


def round_trip_yaml() -> YAML:
    """A reader and writer that keeps comments, quotes and the forms of numbers."""
    yaml = YAML()
    yaml.width, yaml.preserve_quotes = 10_000, True
    yaml.representer.add_representer(type(None), _write_null)
    return yaml


def _load(path: Path) -> tuple[str, CommentedMap]:
    if not path.is_file():
        raise SettingsError(f"no settings at '{path}': run from the project's root, or name the file with --params")
    try:
        text = path.read_text(encoding="utf-8")
        settings = round_trip_yaml().load(text)
    except (YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"'{path}' is not YAML: {error}") from error
    if not isinstance(settings, CommentedMap):
        raise SettingsError(f"'{path}' must hold sections (base, data, lora, ...), found {type(settings).__name__}")
    return text, settings


def _dump(settings: CommentedMap) -> str:
    text = StringIO()
    round_trip_yaml().dump(settings, text)
    return text.getvalue()


def _container(entry: str) -> tuple[str, ...]:
    """The arm or section that an entry lies in."""
    return tuple(entry.split(".")[: 2 if entry.startswith("arms.") else 1])


def _own_section(section: CommentedMap, name: str) -> CommentedMap:
    """In place: a section that is taken from another (`<<`), or isn't there, becomes one of its own first."""
    if name not in section._ok:
        section[name] = CommentedMap(deepcopy(dict(section.get(name, {}))))
    found: CommentedMap = section[name]
    return found


def _written(value: Any) -> Any:
    """A value as one would write it: small maps and lists in a line, and nothing that some readers take for something else."""
    if isinstance(value, str) and value.lower() in _WORDS_TO_QUOTE:
        return DoubleQuotedScalarString(value)
    if isinstance(value, float) and "e" in repr(value) and "." not in repr(value):
        return round_trip_yaml().load(repr(value).replace("e", ".0e"))  # some readers take 1e-05 for text
    if isinstance(value, Mapping):
        section = CommentedMap({name: _written(entry) for name, entry in value.items()})
        section.fa.set_flow_style()
        return section
    if isinstance(value, list | tuple):
        items = CommentedSeq([_written(item) for item in value])
        items.fa.set_flow_style()
        return items
    return value


def _change(section: CommentedMap, name: str, value: Any) -> None:
    """In place; what is the same already stays written as it is."""
    if name not in section:
        if value is not None:
            # before the last: the empty line behind a section hangs on its last entry
            section.insert(max(0, len(section) - 1), name, value)
    elif value is None and section[name] is not None:
        del section[name]
    elif isinstance(value, Mapping) and isinstance(section[name], CommentedMap) and section[name].anchor.value:
        _replace_entries(section[name], value)  # in place: others take theirs from it
    elif section[name] != value:
        section[name] = value
        _close_up_comment(section, name)


def _replace_entries(section: CommentedMap, entries: Mapping[str, Any]) -> None:
    for name in [name for name in section if name not in entries]:
        ordereddict.__delitem__(section, name)  # not `del`: ruamel trips over those that merge this section
        section._ok.discard(name)
    for name, value in entries.items():
        if name not in section:
            section[name] = value
        else:
            _change(section, name, value)


def _close_up_comment(section: CommentedMap, name: str) -> None:
    """In place: a comment keeps its distance to the value, not to the margin."""
    comment = (section.ca.items.get(name) or [None] * 3)[2]
    if comment is not None and comment.value.startswith("#"):
        comment.start_mark.column = 0


def _write_null(representer: Any, _: None) -> Any:
    return representer.represent_scalar("tag:yaml.org,2002:null", "null")
