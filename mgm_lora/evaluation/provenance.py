"""What was run: settings, digests, base, versions, seeds and machine, gathered from the manifests behind a comparison.

It takes what the manifests say; a setting that differs between artifacts is shown once per value, with the artifacts
it holds for.
"""

import os
import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mgm_lora.artifacts import Manifest
from mgm_lora.evaluation.comparison import Comparison

_BYTES_PER_GIB = 2**30
_CPU_INFO = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class Fact:
    """A name, a value, and the artifacts that it holds for, where not all agree."""

    name: str
    value: str
    where: str = ""


@dataclass(frozen=True)
class Provenance:
    """Lists of facts, each a table of the report."""

    base: tuple[Fact, ...]
    settings: tuple[Fact, ...]
    digests: tuple[Fact, ...]
    details: tuple[Fact, ...]
    versions: tuple[Fact, ...]
    machine: tuple[Fact, ...]


def gather_provenance(comparison: Comparison) -> Provenance:
    """Reads the manifests of everything that the comparison stands on, and this machine."""
    manifests = {"samples": comparison.samples}
    for arm in comparison.arms.values():
        for run in arm.runs:
            manifests |= run.manifests
    return Provenance(
        base=_agree({name: dict(_flatten(item.base)) for name, item in manifests.items()}),
        settings=_agree({name: dict(_flatten(item.settings)) for name, item in manifests.items()}),
        digests=_by_artifact({name: item.parents for name, item in manifests.items()}),
        details=_by_artifact({name: _details(item) for name, item in manifests.items()}),
        versions=_agree({name: item.versions for name, item in manifests.items()}),
        machine=(*_machine(), *_devices(comparison)),
    )


def _agree(values: Mapping[str, Mapping[str, object]]) -> tuple[Fact, ...]:
    holders: dict[str, dict[str, list[str]]] = {}
    for artifact, entries in values.items():
        for name, value in entries.items():
            holders.setdefault(name, {}).setdefault(_text(value), []).append(artifact)
    return tuple(
        Fact(name, value, ", ".join(artifacts) if len(by_value) > 1 else "")
        for name, by_value in holders.items()
        for value, artifacts in by_value.items()
    )


def _by_artifact(values: Mapping[str, Mapping[str, object]]) -> tuple[Fact, ...]:
    return tuple(
        Fact(name, _text(value), artifact) for artifact, entries in values.items() for name, value in entries.items()
    )


def _details(manifest: Manifest) -> dict[str, object]:
    seed = {} if manifest.seed is None else {"seed": manifest.seed}
    return {"kind": manifest.kind, **seed, **dict(_flatten(manifest.details))}


def _flatten(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    for name, entry in value.items():
        if isinstance(entry, Mapping):
            yield from _flatten(entry, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", entry


def _text(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, (list, tuple)):
        return ", ".join(_text(item) for item in value) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _machine() -> Iterator[Fact]:
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / _BYTES_PER_GIB
    yield Fact("system", platform.platform())
    yield Fact("python", platform.python_version())
    yield Fact("processor", f"{_processor()}, {os.cpu_count()} cores")
    yield Fact("memory", f"{memory:.1f} GiB")


def _processor() -> str:
    lines = _CPU_INFO.read_text(encoding="utf-8").splitlines() if _CPU_INFO.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _devices(comparison: Comparison) -> Iterator[Fact]:
    for name, arm in comparison.arms.items():
        if arm.first.cost and arm.first.cost.device:
            yield Fact("trained on", arm.first.cost.device, name)
