"""`mgm-lora benchmark`: a public benchmark's questions asked of a model, or answers to them that were made elsewhere, scored.

Answers lie in build/benchmarks while they come, in a file that is named by all that they depend on; the result goes to reports/benchmarks.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mgm_lora.artifacts import digest_file, digest_folder
from mgm_lora.errors import ArtifactError, SettingsError
from mgm_lora.evaluation.benchmarks.asking import AnswerJournal, ask, prepare_questions
from mgm_lora.evaluation.benchmarks.catalogue import BENCHMARKS
from mgm_lora.evaluation.benchmarks.door import Reading, Sources
from mgm_lora.evaluation.benchmarks.elsewhere import read_answers
from mgm_lora.evaluation.benchmarks.published_prompts import places_of, read_prompts, with_prompts
from mgm_lora.evaluation.benchmarks.results import BenchmarkScores, Provenance, has_truths, limited, write_results
from mgm_lora.evaluation.benchmarks.table import print_scores
from mgm_lora.model.base import Base, find_base
from mgm_lora.settings import Settings
from mgm_lora.stages import paths
from mgm_lora.stages.models import load_adapted, load_named

ANSWERS = Path("build/benchmarks")
RESULTS = Path("reports/benchmarks")
UNPACKED = ANSWERS / "pictures"
DEFAULT_SPLIT = "test"


@dataclass(frozen=True)
class BenchmarkRequest:
    """Which questions."""

    name: str
    questions: tuple[Path, ...]
    annotations: Path | None = None
    pictures: Path | None = None
    split: str | None = None
    prompts: Path | None = None
    """A question file of LLaVA's, whose prompts are asked instead."""
    limit: int | None = None


@dataclass(frozen=True)
class ModelChoice:
    """Which model is asked."""

    name: str | None = None
    """base, merged, or an arm of the settings; none: base, unless there is an adapter."""
    seed: int | None = None
    adapter: str | None = None
    """A folder or a registered version."""
    batch_size: int | None = None
    """None: evaluation.batch_size."""
    max_new_tokens: int = 128


def ask_model(settings: Settings, *, request: BenchmarkRequest, model: ModelChoice) -> BenchmarkScores:
    """Asks what was not answered yet; writes reports/benchmarks/<benchmark>/<model> and shows the scores."""
    reading = limited(_read(request, needs_pictures=True), request.limit)
    base = find_base(settings.base)
    name, folder = _find_model(settings, model)
    provenance = Provenance(
        parents={"model": base.digest if folder is None else digest_folder(folder), **_digests(request)},
        base={**base.identity, "dtype": str(base.dtype)},
        details={"max_new_tokens": model.max_new_tokens},
    )
    journal = AnswerJournal(ANSWERS / request.name / name / f"{_name_of_journal(reading, provenance)}.jsonl")
    _ask_rest(
        settings,
        reading=reading,
        journal=journal,
        base=base,
        name=name,
        folder=folder,
        model=model,
        label=f"{name}, {request.name}",
    )
    return _write(settings, journal.read(), request=request, reading=reading, name=name, provenance=provenance)


def score_answers(
    settings: Settings, *, request: BenchmarkRequest, predictions: Sequence[Path], name: str | None
) -> BenchmarkScores:
    """Scores answers that were made elsewhere, and writes and shows the same; `name` is what their model is called, none: as the file."""
    if request.limit is not None:
        raise SettingsError("--limit has no effect on --predictions: answers to all questions are scored")
    reading = _read(request, needs_pictures=False)
    places = places_of(None if request.prompts is None else read_prompts(request.prompts))
    answers = read_answers(predictions, benchmark=BENCHMARKS[request.name], reading=reading, places=places)
    digests = {f"predictions/{path.name}": _digest(path) for path in predictions}
    provenance = Provenance(parents={**_digests(request), **digests}, base={}, details={})
    name = _plain(predictions[0].stem if name is None else name)
    return _write(settings, answers, request=request, reading=reading, name=name, provenance=provenance)


def _read(request: BenchmarkRequest, *, needs_pictures: bool) -> Reading:
    benchmark = BENCHMARKS[request.name]
    given = {"annotations": request.annotations, "pictures": request.pictures, "split": request.split}
    useless = [f"--{name}" for name, value in given.items() if value is not None and name not in benchmark.takes]
    if useless:
        raise SettingsError(
            f"{benchmark.title} doesn't take {', '.join(useless)}: expected --questions {benchmark.files}"
        )
    if needs_pictures and "pictures" in benchmark.takes and request.pictures is None:
        raise SettingsError(f"{benchmark.title} needs --pictures, the folder that its pictures are in")
    sources = Sources(
        questions=request.questions,
        annotations=request.annotations,
        pictures=request.pictures,
        split=request.split or DEFAULT_SPLIT,
        unpacked=UNPACKED,
    )
    reading = benchmark.read(sources)
    has_truths(reading)  # all or none, which is told before a model is asked
    if request.prompts is None or not needs_pictures:  # answers that are there already need no prompt
        return reading
    return with_prompts(reading, read_prompts(request.prompts), benchmark=benchmark)


def _ask_rest(
    settings: Settings,
    *,
    reading: Reading,
    journal: AnswerJournal,
    base: Base,
    name: str,
    folder: Path | None,
    model: ModelChoice,
    label: str,
) -> None:
    """Asks what the journal doesn't have; reads no weight where that is nothing, or can't be asked."""
    answered = journal.read()
    rest = [question for question in reading.questions if question.id not in answered]
    if not rest:
        return
    processor = base.processor()
    prepared = prepare_questions(rest, processor=processor)
    ask(
        load_named(name, base=base)[0] if folder is None or model.adapter is None else load_adapted(folder, base=base),
        processor=processor,
        prepared=prepared,
        journal=journal,
        batch_size=settings.evaluation.batch_size if model.batch_size is None else model.batch_size,
        max_new_tokens=model.max_new_tokens,
        label=label,
    )


def _find_model(settings: Settings, model: ModelChoice) -> tuple[str, Path | None]:
    """What the model is called, and its folder; none: the base."""
    if model.adapter is not None:
        if model.name is not None or model.seed is not None:
            raise SettingsError("--adapter says which model is asked: leave --model and --seed away")
        return _plain(model.adapter), _adapter_folder(settings, model.adapter)
    arm = model.name or "base"
    if arm in paths.UNTRAINED:
        if model.seed is not None:
            raise SettingsError(f"--seed has no effect on the model '{arm}', which is of no training of its own")
        return arm, None if arm == "base" else _existing(paths.model_folder(arm))
    if arm not in settings.arms:
        known = ", ".join((*paths.UNTRAINED, *settings.arms))
        raise SettingsError(f"no model '{arm}': there are {known}")
    name = paths.run_name(arm, settings.comparison.seeds[0] if model.seed is None else model.seed)
    return name, _existing(paths.model_folder(name))


def _adapter_folder(settings: Settings, adapter: str) -> Path:
    if not adapter.startswith("models:/"):
        return _existing(Path(adapter))
    from mgm_lora.registry.lookup import resolve_version

    return resolve_version(adapter, registry=settings.registry)


def _existing(folder: Path) -> Path:
    if not folder.is_dir():
        raise ArtifactError(f"no model at '{folder}': run `dvc repro`, or the stage that makes it")
    return folder


def _write(
    settings: Settings,
    answers: Mapping[str, str],
    *,
    request: BenchmarkRequest,
    reading: Reading,
    name: str,
    provenance: Provenance,
) -> BenchmarkScores:
    benchmark = BENCHMARKS[request.name]
    destination = RESULTS / request.name / (name if request.limit is None else f"{name}-first-{request.limit}")
    scores = write_results(
        answers,
        benchmark=benchmark,
        reading=reading,
        model=name,
        limit=request.limit,
        evaluation=settings.evaluation,
        provenance=provenance,
        destination=destination,
    )
    print_scores(scores, title=benchmark.title)
    print(f"\nanswers, scores{'' if request.limit else ' and submission'}: {destination}")
    return scores


def _name_of_journal(reading: Reading, provenance: Provenance) -> str:
    """A digest of all that an answer depends on; how many are asked is not of it, so that a try's answers are a whole run's too."""
    dependencies: dict[str, Any] = {
        "parents": dict(provenance.parents),
        "base": dict(provenance.base),
        "details": dict(provenance.details),
        # as our own code makes them, of which no file's digest tells
        "first": [reading.questions[0].prompt, str(reading.questions[0].picture)],
    }
    return hashlib.sha256(json.dumps(dependencies, sort_keys=True).encode()).hexdigest()[:16]


def _digests(request: BenchmarkRequest) -> dict[str, str]:
    files = [*request.questions, *(path for path in (request.annotations, request.prompts) if path is not None)]
    return {f"questions/{path.name}": _digest(path) for path in files}


def _digest(path: Path) -> str:
    """Of MME's folders the texts: the pictures are hundreds of MiB."""
    return digest_folder(path, pattern="**/*.txt") if path.is_dir() else digest_file(path)


def _plain(name: str) -> str:
    """A name for a folder: `models:/demo@challenger` -> `demo-challenger`."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name.removeprefix("models:/")).strip("-.")
