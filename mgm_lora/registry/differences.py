"""How two versions differ in what they were made from: settings, data, code, libraries; and in their figures. Of the answers it knows nothing."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mgm_lora.artifacts import Manifest, read_manifest
from mgm_lora.registry.lookup import VersionFiles
from mgm_lora.settings import SUBJECT


@dataclass(frozen=True)
class Difference:
    """One entry that differs; None where a version doesn't have it."""

    part: str
    """settings, data, code, libraries or figures."""
    name: str
    first: str | None
    second: str | None


def find_differences(first: VersionFiles, second: VersionFiles) -> list[Difference]:
    """All of them, part by part; raises ArtifactError where a version's evidence is not whole."""
    parts = {
        "settings": (_settings(first), _settings(second)),
        "data": (_data(first), _data(second)),
        "code": (_code(first), _code(second)),
        "libraries": (_manifest(first).versions, _manifest(second).versions),
        "figures": (_figures(first), _figures(second)),
    }
    return [
        Difference(part, name, _text(one.get(name)), _text(other.get(name)))
        for part, (one, other) in parts.items()
        for name in dict.fromkeys([*one, *other])
        if one.get(name) != other.get(name)
    ]


def _settings(files: VersionFiles) -> dict[str, Any]:
    return dict(_leaves(files.evidence.params))


def _data(files: VersionFiles) -> dict[str, Any]:
    """Digests of the files and pictures that were checked, and how many samples were kept."""
    samples = files.evidence.samples
    kept = {f"{name}, samples": found.get("num_kept") for name, found in samples.details.get("files", {}).items()}
    return {"base": _manifest(files).base.get("digest"), **samples.parents, **kept}


def _code(files: VersionFiles) -> dict[str, Any]:
    source = files.evidence.source
    return {"commit": source.commit, "not in the commit": ", ".join([*source.changed, *source.removed]) or None}


def _figures(files: VersionFiles) -> dict[str, Any]:
    arms = files.evidence.comparison.get("arms", {})
    ours = {name: value for name, value in dict(_leaves(arms.get(SUBJECT, {}))).items() if isinstance(value, float)}
    return ours | {"base's score": arms.get("base", {}).get("score")}


def _manifest(files: VersionFiles) -> Manifest:
    return read_manifest(files.adapter, kind="TrainedAdapter")


def _leaves(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, entry in value.items():
        if isinstance(entry, Mapping) and entry:
            yield from _leaves(entry, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", entry


def _text(value: Any) -> str | None:
    return None if value is None else str(value)
