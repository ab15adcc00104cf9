"""Promotion and rollback as the commands do them: real adapters from a real registry, asked today's questions."""

import json
import logging
import shutil
from pathlib import Path

import pytest

from mgm_lora.artifacts import digest_file, write_json
from mgm_lora.data.table import Sample, read_samples, write_samples
from mgm_lora.errors import ArtifactError, BusyRegistryError, DataError, PromotionRefusedError, RegistryError
from mgm_lora.evaluation.gate import BEATS_BASE, BEATS_CHAMPION, RuleResult
from mgm_lora.registry import champion as moves
from mgm_lora.registry.history import Entry, read_history
from mgm_lora.registry.lookup import fetch_version, find_version
from mgm_lora.registry.store import open_store
from mgm_lora.settings import Settings
from mgm_lora.stages import promote as stage

from .conftest import allowing

SAMPLES = Path("artifacts/samples")


class Shown:
    """What was shown."""

    def __init__(self) -> None:
        self.judgements: list[stage.Judgement] = []

    def __call__(self, judgement: stage.Judgement) -> None:
        self.judgements.append(judgement)

    @property
    def rules(self) -> dict[str, RuleResult]:
        return {rule.rule: rule for rule in self.judgements[-1].rules}


@pytest.fixture
def shown() -> Shown:
    return Shown()


def run(
    settings: Settings, shown: Shown, version: str = "challenger", *, reason: str = "", dry_run: bool = False
) -> Entry | None:
    return stage.run(settings, version=version, reason=reason, dry_run=dry_run, show=shown)


def aliases(settings: Settings) -> dict[str, int]:
    model = open_store(settings.registry).client.get_registered_model("demo")
    return {name: int(version) for name, version in model.aliases.items()}


def test_challenger_that_keeps_the_rules_becomes_the_champion(settings: Settings, shown: Shown) -> None:
    entry = run(settings, shown)
    assert entry is not None
    assert (entry.version, entry.replaced, entry.overruled) == (2, None, ())
    assert aliases(settings) == {"challenger": 2, "champion": 2}
    assert shown.judgements[-1].broken == ()
    assert shown.rules[BEATS_BASE].found.startswith("+")
    assert shown.rules["size"].found.endswith("MiB")
    store = open_store(settings.registry)
    note = json.loads(store.client.get_model_version("demo", "2").tags["judgement"])
    assert note["outcome"] == "kept all rules"
    assert [rule["rule"] for rule in note["rules"]] == list(shown.rules)


def test_version_that_breaks_a_rule_is_refused_by_its_name(settings: Settings, shown: Shown) -> None:
    with pytest.raises(PromotionRefusedError) as told:
        run(settings, shown, "1")
    assert told.value.exit_code == 3
    assert f"{BEATS_BASE}: asked is a higher score" in str(told.value)
    assert "retention: asked is at least 90.0 %, found 50.0 %" in str(told.value)
    assert aliases(settings) == {"challenger": 2}
    store = open_store(settings.registry)
    assert read_history(store, model_name="demo") == []
    assert json.loads(store.client.get_model_version("demo", "1").tags["judgement"])["outcome"] == "refused"


def test_reason_overrules_and_is_kept(settings: Settings, shown: Shown) -> None:
    entry = run(settings, shown, "1", reason="there is none yet")
    assert entry is not None
    assert BEATS_BASE in entry.overruled
    [kept] = read_history(open_store(settings.registry), model_name="demo")
    assert (kept.reason, kept.overruled) == ("there is none yet", entry.overruled)
    note = json.loads(open_store(settings.registry).client.get_model_version("demo", "1").tags["judgement"])
    assert (note["outcome"], note["reason"]) == ("overruled", "there is none yet")


def test_champion_from_the_registry_is_asked_again_and_judged_beside(settings: Settings, shown: Shown) -> None:
    run(settings, shown)
    for name in ("trained", "scores"):
        shutil.rmtree(Path("artifacts") / name)  # nothing of it is in the working directory
    with pytest.raises(PromotionRefusedError, match=BEATS_CHAMPION):
        run(settings, shown, "1")
    found = shown.rules[BEATS_CHAMPION].found
    assert found.startswith("−")
    store = open_store(settings.registry)
    scored = fetch_version(find_version("models:/demo/2", store=store), store=store).evidence.scores / "scores.json"
    assert f"against {100 * json.loads(scored.read_text())['score']['value']:.1f} %, 40 questions" in found


def test_better_version_takes_the_place_and_a_rollback_gives_it_back(settings: Settings, shown: Shown) -> None:
    run(settings, shown, "1", reason="there is none yet")
    entry = run(settings, shown)
    assert entry is not None
    assert (entry.version, entry.replaced) == (2, 1)
    assert shown.rules[BEATS_CHAMPION].passed
    assert stage.run_rollback(settings, reason="a bad day").version == 1
    assert aliases(settings) == {"challenger": 2, "champion": 1}


def test_dry_run_shows_and_changes_nothing(settings: Settings, shown: Shown) -> None:
    assert run(settings, shown, "1", dry_run=True) is None
    assert BEATS_BASE in shown.judgements[-1].broken
    assert aliases(settings) == {"challenger": 2}
    assert "judgement" not in open_store(settings.registry).client.get_model_version("demo", "1").tags


def test_champion_promoted_again_is_left_alone(
    settings: Settings, shown: Shown, caplog: pytest.LogCaptureFixture
) -> None:
    run(settings, shown)
    with caplog.at_level(logging.INFO):
        assert run(settings, shown, "models:/demo/2") is None
    assert "version 2 of demo is the champion already" in caplog.text
    assert len(shown.judgements) == 1


def test_promotion_that_was_overtaken_while_it_asked_is_told(settings: Settings) -> None:
    def overtake(judgement: stage.Judgement) -> None:
        store = open_store(settings.registry)
        moves.promote(store, model_name="demo", version=1, judged_against=None, reason="quicker", rules=())

    with pytest.raises(BusyRegistryError, match="which was nobody, and is version 1 meanwhile"):
        stage.run(settings, version="2", reason="", dry_run=False, show=overtake)
    assert aliases(settings) == {"challenger": 2, "champion": 1}


def test_questions_that_a_model_has_learned_from_are_left_out(settings: Settings, shown: Shown) -> None:
    """Today's held-out questions hold one that version 2 was trained on, since the split was made anew."""
    learned = read_samples(SAMPLES / "train.parquet")[0]
    change_samples("heldout", [*read_samples(SAMPLES / "heldout.parquet"), learned])
    run(settings, shown)
    assert shown.judgements[-1].num_left_out == 1
    assert "40 questions" in shown.rules[BEATS_BASE].found


def test_nothing_left_to_ask_is_told(settings: Settings, shown: Shown) -> None:
    change_samples("heldout", read_samples(SAMPLES / "train.parquet"))
    with pytest.raises(
        DataError, match="all 8 held-out questions are about pictures that one of the models has learned from"
    ):
        run(settings, shown)


def test_samples_of_other_data_than_todays_are_refused(settings: Settings, shown: Shown) -> None:
    settings.data.heldout.write_text("[]")
    with pytest.raises(ArtifactError, match="run `dvc repro validate`, so that today's questions are asked"):
        run(settings, shown)


def test_data_that_is_not_here_is_told(settings: Settings, shown: Shown) -> None:
    settings.data.heldout.unlink()
    with pytest.raises(ArtifactError, match="which today's questions are in: run `dvc pull`"):
        run(settings, shown)


def test_champion_whose_files_are_gone_can_be_overruled(settings: Settings, shown: Shown) -> None:
    run(settings, shown, "1", reason="there is none yet")
    store = open_store(settings.registry)
    shutil.rmtree(fetch_version(find_version("models:/demo/1", store=store), store=store).evidence.folder)
    with pytest.raises(PromotionRefusedError, match="version 1 can't be asked"):
        run(settings, shown)
    assert run(settings, shown, reason="its files are lost") is not None


def test_champion_of_a_base_that_is_gone_can_be_overruled(settings: Settings, shown: Shown) -> None:
    run(settings, shown, "1", reason="there is none yet")
    store = open_store(settings.registry)
    manifest = fetch_version(find_version("models:/demo/1", store=store), store=store).adapter / "manifest.json"
    entries = json.loads(manifest.read_text())
    entries["base"]["digest"] = "0" * 64
    write_json(manifest, entries)
    with pytest.raises(
        PromotionRefusedError, match=r"version 1 was trained on the base 'data/base' with digest 000000000000"
    ):
        run(settings, shown)


def test_rules_of_the_settings_are_the_ones_that_are_asked(settings: Settings, shown: Shown) -> None:
    strict = allowing(settings, max_adapter_mib=0.001, max_seconds_per_answer=1e-9)
    with pytest.raises(PromotionRefusedError):
        run(strict, shown)
    assert shown.judgements[-1].broken == ("size", "seconds an answer")


@pytest.mark.parametrize(
    "version, told",
    [
        ("7", r"no version 'models:/demo/7' .* There are: demo with versions 1, 2 demo@challenger"),
        ("best", "no version 'models:/demo@best'"),
        ("models:/other/1", r"is of the model 'other', and this is about versions of 'demo'"),
    ],
)
def test_unknown_version_names_those_that_there_are(version: str, told: str, settings: Settings, shown: Shown) -> None:
    with pytest.raises(RegistryError, match=told):
        run(settings, shown, version)


def test_rollback_without_champion_or_model_is_told(settings: Settings) -> None:
    with pytest.raises(RegistryError, match="nobody is the champion"):
        stage.run_rollback(settings, reason="")
    registry = settings.registry.model_copy(update={"model_name": "other"})
    with pytest.raises(RegistryError, match="no model 'other'"):
        stage.run_rollback(settings.model_copy(update={"registry": registry}), reason="")


def test_table_and_json_tell_each_rule(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    stage.run(settings, version="2", reason="", dry_run=True, show=stage.show_table)
    table = capsys.readouterr().out
    assert "version 2 of demo; nobody is the champion yet" in table
    assert all(rule in table for rule in (BEATS_BASE, "retention", "97.0 %", "kept"))
    stage.run(settings, version="1", reason="", dry_run=True, show=stage.show_json)
    told = json.loads(capsys.readouterr().out)
    assert BEATS_BASE in told["broken"]


def change_samples(name: str, samples: list[Sample]) -> None:
    """Today's data is other: its file and, as `dvc repro validate` would make it, the SampleTable."""
    write_samples(samples, path=SAMPLES / f"{name}.parquet")
    file = Path(f"data/instructions/{name}.json")
    file.write_text("changed")
    manifest = json.loads((SAMPLES / "manifest.json").read_text())
    manifest["parents"][name] = digest_file(file)
    write_json(SAMPLES / "manifest.json", manifest)
