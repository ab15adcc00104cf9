"""`make stress`: rounds of killing over all stages, and docs/stress.md, which says how it went. Not collected by `make test`.

STRESS_ROUNDS and STRESS_SEED change how many, and which.
"""

import os
import random
from collections import Counter
from pathlib import Path

from .rounds import Reference, Round, measure, run_round
from .small_project import ROOT, make_project, write_params

LONGER = {"num_epochs": 20, "global_batch_size": 8, "evaluations": 4, "checkpoints": 20}
"""Trainings that are killed while they train, and while they write one of many checkpoints."""
REPORT = ROOT / "docs" / "stress.md"


def test_rounds_of_killing_all_stages(tiny_base: Path, tmp_path: Path) -> None:
    num_rounds, seed = int(os.environ.get("STRESS_ROUNDS", "20")), int(os.environ.get("STRESS_SEED", "17"))
    rng = random.Random(seed)
    project = make_project(tmp_path / "project", base=tiny_base)
    write_params(project, {"training": LONGER})
    reference = measure(project)
    rounds: list[Round] = []
    for stage in choose_stages(sorted(reference.seconds), num_rounds=num_rounds, rng=rng):
        rounds.append(run_round(project, stage, reference=reference, rng=rng))
        print(f"round {len(rounds)}/{num_rounds}: {rounds[-1]}", flush=True)
    REPORT.write_text(report(rounds, reference=reference, seed=seed), encoding="utf-8")


def choose_stages(stages: list[str], *, num_rounds: int, rng: random.Random) -> list[str]:
    """Every stage once, and trainings for what is left: they have the most to lose."""
    trainings = [name for name in stages if name.startswith("train")]
    more = [rng.choice(trainings) for _ in range(max(0, num_rounds - len(stages)))]
    chosen = [*rng.sample(stages, k=min(len(stages), num_rounds)), *more]
    rng.shuffle(chosen)
    return chosen


def report(rounds: list[Round], *, reference: Reference, seed: int) -> str:
    """Markdown."""
    num_kills, minutes = sum(len(each.kills) for each in rounds), sum(each.seconds for each in rounds) / 60
    lines = [
        "# Stress",
        "",
        "`make stress` runs a small project through real `dvc repro`, kills a stage at random moments with SIGKILL (the stage,",
        "`dvc`, or its whole process group), up to three times in a row, and lets `dvc repro` go on. This page is written by the",
        "run itself, which ends without it at the first round that breaks one of these:",
        "",
        "- after each kill nothing that was started lives (within 30 s), no card is held, and what lies under an artifact's own",
        "  name is whole;",
        "- after `dvc repro` every artifact (samples, plans, adapter, models, scores) is byte by byte that of an undisturbed run,",
        "  and no checkpoint is left.",
        "",
        f"Seed {seed}: {len(rounds)} rounds, {num_kills} kills, {minutes:.1f} minutes; every round held.",
        "",
        "| stage | alone takes | rounds | kills | of the stage | of dvc | of the group | ended before | went on from a checkpoint |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for stage in sorted(reference.seconds):
        mine = [each for each in rounds if each.stage == stage]
        who = Counter(victim for each in mine for victim, _ in each.kills)
        counts = [len(mine), sum(who.values()), who["stage"], who["dvc"], who["group"]]
        counts += [sum(each.outlived for each in mine), sum(each.resumed for each in mine)]
        lines.append(f"| {stage} | {reference.seconds[stage]:.1f} s | {' | '.join(map(str, counts))} |")
    return "\n".join(lines) + "\n"
