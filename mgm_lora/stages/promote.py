"""`mgm-lora promote` and `mgm-lora rollback`: who is the champion.

A promotion asks base, candidate and champion today's held-out questions, here and now, and holds the answers against the rules of the section
`promotion`. The champion is the one in the registry, with its own files. What is decided, and by which figures, is kept with the version.
"""

import json
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from mgm_lora.artifacts import read_manifest, size_on_disk
from mgm_lora.errors import ArtifactError, BaseChangedError, CheckpointError, PromotionRefusedError, RegistryError
from mgm_lora.evaluation.gate import Case, Rival, RuleResult, judge_case
from mgm_lora.evaluation.predictions import Prediction
from mgm_lora.model.base import Base, find_base
from mgm_lora.registry.champion import CHAMPION, champion_of, check_reason, note_judgement, promote, roll_back
from mgm_lora.registry.history import Entry, RuleFigures
from mgm_lora.registry.lookup import VersionFiles, fetch_version, find_model, find_version, version_uri
from mgm_lora.registry.store import Store, open_store, telling_store_errors
from mgm_lora.settings import SUBJECT, BaseSettings, Settings
from mgm_lora.stages.models import load_adapted
from mgm_lora.stages.tables import print_table
from mgm_lora.stages.trial import TodaysQuestions, ask, read_questions, time_answers

logger = logging.getLogger(__name__)
_MIB = 2**20


@dataclass(frozen=True)
class Judgement:
    """How a version stands before the rules."""

    model_name: str
    version: int
    champion: int | None
    """Whom it was compared with; none: there was none."""
    rules: tuple[RuleResult, ...]
    num_left_out: int
    """Held-out questions about pictures that one of the two has learned from."""

    @property
    def broken(self) -> tuple[str, ...]:
        """Names of the rules that it doesn't keep."""
        return tuple(rule.rule for rule in self.rules if not rule.passed)


def run(
    settings: Settings, *, version: str, reason: str, dry_run: bool, show: Callable[[Judgement], None]
) -> Entry | None:
    """Judges a version and makes it the champion; none where nothing was changed: it is the champion already, or it was a dry run.

    Args:
        version: a number, an alias, or a `models:/` address.
        reason: why; where it breaks a rule, it is promoted only with a reason.
        dry_run: judge and change nothing.
        show: gets the judgement before anything follows from it.

    Raises:
        PromotionRefusedError: it breaks a rule and no reason was given.
        BusyRegistryError: another one promoted meanwhile.
        RegistryError: there is no such version, or the store can't be read.
        BaseChangedError: the base that it was trained on isn't here.
    """
    check_reason(reason)
    with telling_store_errors(f"promote '{version}'", registry=settings.registry):
        store = open_store(settings.registry)
        name = settings.registry.model_name
        candidate = find_version(version_uri(version, model_name=name), store=store)
        number = int(candidate.version)
        champion = champion_of(store, model_name=name)
        if champion == number:
            logger.info("version %d of %s is the champion already: nothing to do", number, name)
            return None
        judgement = _judge(settings, store=store, files=fetch_version(candidate, store=store), champion=champion)
        show(judgement)
        if dry_run:
            return None
        rules = [RuleFigures(**asdict(rule)) for rule in judgement.rules]
        note_judgement(store, model_name=name, version=number, reason=reason, rules=rules)
        if judgement.broken and not reason:
            raise PromotionRefusedError(_refusal(judgement))
        return promote(store, model_name=name, version=number, judged_against=champion, reason=reason, rules=rules)


def run_rollback(settings: Settings, *, reason: str) -> Entry:
    """Makes the previous champion the champion again; raises RegistryError where there is none, and BusyRegistryError as `run` does."""
    with telling_store_errors("roll back", registry=settings.registry):
        store = open_store(settings.registry)
        find_model(settings.registry.model_name, store=store)
        return roll_back(store, model_name=settings.registry.model_name, reason=reason)


def show_table(judgement: Judgement) -> None:
    """Prints each rule with its figures."""
    against = (
        "nobody is the champion yet" if judgement.champion is None else f"the champion is version {judgement.champion}"
    )
    rows = [[rule.rule, rule.asked, rule.found, "kept" if rule.passed else "BROKEN"] for rule in judgement.rules]
    title = f"version {judgement.version} of {judgement.model_name}; {against}"
    print_table(("rule", "asked", "found", ""), rows, title=title)


def show_json(judgement: Judgement) -> None:
    """Prints the judgement for programs."""
    print(json.dumps({**asdict(judgement), "broken": judgement.broken}, indent=2, ensure_ascii=False))


def _judge(settings: Settings, *, store: Store, files: VersionFiles, champion: int | None) -> Judgement:
    name, number = settings.registry.model_name, int(files.version.version)
    reigning = None if champion is None else _find_reigning(champion, store=store, model_name=name)
    learned = files.evidence.train_pictures() | (reigning.learned if reigning else frozenset())
    questions = read_questions(settings.data, learned=learned)
    if questions.num_left_out:
        logger.warning(
            "%d held-out questions are about pictures that version %d or the champion has learned from: left out",
            questions.num_left_out,
            number,
        )
    todays_base = find_base(settings.base)
    case = _try_candidate(settings, files=files, questions=questions, todays_base=todays_base)
    met = _meet(settings, reigning=reigning, questions=questions, todays_base=todays_base) if reigning else None
    rules = judge_case(replace(case, champion=met), promotion=settings.promotion, evaluation=settings.evaluation)
    return Judgement(name, number, champion, rules, questions.num_left_out)


@dataclass(frozen=True)
class _Reigning:
    """The champion, as the registry gives it."""

    name: str
    files: VersionFiles | None
    """None where they can't be had."""
    learned: frozenset[str] = frozenset()
    problem: str = ""


def _find_reigning(champion: int, *, store: Store, model_name: str) -> _Reigning:
    name = f"version {champion}"
    version = find_version(version_uri(str(champion), model_name=model_name), store=store)
    try:
        files = fetch_version(version, store=store)
        return _Reigning(name, files, learned=files.evidence.train_pictures())
    except (RegistryError, ArtifactError) as error:
        return _Reigning(name, None, problem=str(error))


def _try_candidate(settings: Settings, *, files: VersionFiles, questions: TodaysQuestions, todays_base: Base) -> Case:
    base = _base_of(files, todays_base=todays_base)
    before = _answers(settings, base.load(), base=base, questions=questions, label="base")
    model = load_adapted(files.adapter, base=base)
    answers = _answers(settings, model, base=base, questions=questions, label=f"version {files.version.version}")
    return Case(
        candidate=answers,
        base=before,
        champion=None,
        retention=_retention(files),
        adapter_mib=size_on_disk(files.adapter) / _MIB,
        seconds_per_answer=time_answers(
            model,
            processor=base.processor(),
            samples=questions.sets["heldout"][: settings.promotion.num_timed_questions],
            data=settings.data,
            evaluation=settings.evaluation,
        ),
    )


def _meet(settings: Settings, *, reigning: _Reigning, questions: TodaysQuestions, todays_base: Base) -> Rival:
    """The champion, asked anew."""
    if reigning.files is None:
        return Rival(reigning.name, (), problem=reigning.problem)
    try:
        base = _base_of(reigning.files, todays_base=todays_base)
    except (BaseChangedError, CheckpointError) as error:
        return Rival(reigning.name, (), problem=str(error))
    model = load_adapted(reigning.files.adapter, base=base)
    label = f"{reigning.name} ({CHAMPION})"
    return Rival(reigning.name, _answers(settings, model, base=base, questions=questions, label=label))


def _answers(settings: Settings, model: Any, *, base: Base, questions: TodaysQuestions, label: str) -> list[Prediction]:
    return ask(
        model,
        processor=base.processor(),
        questions=questions.sets,
        data=settings.data,
        evaluation=settings.evaluation,
        label=label,
    )


def _base_of(files: VersionFiles, *, todays_base: Base) -> Base:
    """The base that a version was trained on: today's, or the one at the place that it names.

    Raises:
        BaseChangedError: neither is it.
        CheckpointError: today's is another one, and at that place is none.
    """
    manifest = read_manifest(files.adapter, kind="TrainedAdapter")
    digest = manifest.base["digest"]
    if todays_base.digest == digest:
        return todays_base
    recorded = BaseSettings(**manifest.settings["base"])
    base = find_base(recorded)
    if base.digest != digest:
        raise BaseChangedError(
            f"version {files.version.version} was trained on the base '{recorded.model}' with digest {digest[:12]}, found there"
            f" {base.digest[:12]}, and {todays_base.digest[:12]} at base.model: bring the base it was trained on"
        )
    return base


def _retention(files: VersionFiles) -> float | None:
    value = files.evidence.comparison.get("arms", {}).get(SUBJECT, {}).get("retention")
    return None if value is None else float(value)


def _refusal(judgement: Judgement) -> str:
    lines = [
        f"  - {rule.rule}: asked is {rule.asked}, found {rule.found}" for rule in judgement.rules if not rule.passed
    ]
    count = "a rule" if len(lines) == 1 else f"{len(lines)} rules"
    lead = f"version {judgement.version} of {judgement.model_name} is not promoted, it breaks {count} of the section promotion:"
    return "\n".join(
        [lead, *lines, 'To promote it all the same: mgm-lora promote --reason "...", which is kept in the history']
    )
