"""Shows what a stage made in Prefect: metrics and plots as tables, pictures as pictures, reports as links.

What is shown follows from the kind of file alone, so a new stage needs nothing here. The files stay where they are:
Prefect gets figures and small pictures, and of reports the address on this machine. It doesn't know the stages, and
never makes a run fail.
"""

import base64
import csv
import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact

from tasks.dag import Stage

_PICTURES = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".svg": "image/svg+xml",
    ".webp": "image/webp",
}
_MAX_BYTES = 1_000_000  # it goes into the server's database
_MAX_ROWS = 200

Log = logging.Logger | logging.LoggerAdapter[logging.Logger]


def show_products(stage: Stage, *, root: Path, log: Log) -> None:
    """Makes the artifacts of one stage in the run that is going on; a file that can't be shown is named in `log`."""
    for path in stage.metrics:
        _try(_show_metrics, path, root=root, log=log)
    for path in stage.plots:
        for file in _files(path, root=root):
            _try(_show_plot, file, root=root, log=log)
    for path in stage.outs:
        _try(_show_output, path, root=root, log=log)


def show_output(path: Path, *, root: Path, log: Log) -> None:
    """Makes the artifact of one file, a picture or a page; a file that can't be shown is named in `log`."""
    _try(_show_output, path, root=root, log=log)


def show_mlflow(address: str) -> None:
    """Makes the artifact that leads from the run that is going on to MLflow's pages."""
    create_link_artifact(
        address, link_text="MLflow", key="mlflow", description="Runs side by side, curves, registered versions."
    )


def _try(show: Callable[..., None], path: Path, *, root: Path, log: Log) -> None:
    try:
        show(path, root=root)
    except (OSError, ValueError) as error:  # ValueError: not JSON, not UTF-8
        log.warning("can't show '%s': %s", path, error)


def _files(path: Path, *, root: Path) -> list[Path]:
    if (root / path).is_dir():
        return sorted(file.relative_to(root) for file in (root / path).rglob("*") if file.is_file())
    return [path]


def _show_metrics(path: Path, *, root: Path) -> None:
    metrics = json.loads((root / path).read_text(encoding="utf-8"))
    table = [{"metric": name, "value": value} for name, value in _flat(metrics)]
    create_table_artifact(table=table, key=_key(path), description=f"`{path}`")


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else str(key))
    else:
        yield name, value if isinstance(value, int | float | str | None) else json.dumps(value)


def _show_plot(path: Path, *, root: Path) -> None:
    points = _points(root / path)
    if not points:
        _show_output(path, root=root)
        return
    step = -(-len(points) // _MAX_ROWS)
    thinned = f" (every {step}th of {len(points)} rows)" if step > 1 else ""
    create_table_artifact(
        table=points[::step], key=_key(path), description=f"`{path}`{thinned}: `dvc plots show` draws it"
    )


def _points(path: Path) -> list[dict[str, Any]]:
    """The rows of DVC plots data: CSV, TSV, or the first list of objects in JSON; empty for another kind of file."""
    if path.suffix in (".csv", ".tsv"):
        with path.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ","))
    if path.suffix != ".json":
        return []
    data = json.loads(path.read_text(encoding="utf-8"))
    candidates: Sequence[Any] = [data, *data.values()] if isinstance(data, dict) else [data]
    lists = [
        rows for rows in candidates if isinstance(rows, list) and rows and all(isinstance(row, dict) for row in rows)
    ]
    return lists[0] if lists else []


def _show_output(path: Path, *, root: Path) -> None:
    full_path = root / path
    media_type = _PICTURES.get(path.suffix.lower())
    if media_type and full_path.stat().st_size <= _MAX_BYTES:
        data = base64.b64encode(full_path.read_bytes()).decode("ascii")
        # not an image artifact: the UI writes its address under the picture, here a screenful of base64
        create_markdown_artifact(f"![{path}](data:{media_type};base64,{data})", key=_key(path), description=f"`{path}`")
    elif path.suffix == ".md" and full_path.stat().st_size <= _MAX_BYTES:
        create_markdown_artifact(
            full_path.read_text(encoding="utf-8"), key=artifact_key(str(path)), description=f"`{path}`"
        )
    elif media_type or path.suffix == ".html":
        _show_link(path, root=root)
    elif (full_path / "index.html").is_file():
        _show_link(path / "index.html", root=root)


def _show_link(path: Path, *, root: Path) -> None:
    where = root / path
    if not where.is_file():
        raise FileNotFoundError("it is not there")
    create_link_artifact(
        where.as_uri(),
        link_text=str(path),
        key=_key(path),
        description=f"A file on the machine that ran the stage. Browsers open it from there alone: `{where}`",
    )


def artifact_key(name: str) -> str:
    """A name as Prefect takes it: lower-case letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _key(path: Path) -> str:
    return artifact_key(str(path.with_suffix("")))
