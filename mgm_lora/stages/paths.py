"""Where the stages put things, relative to the project's root. `dvc.yaml` names the same paths."""

from pathlib import Path

PARAMS = Path("params.yaml")
DATA = Path("data")
REPORTS = Path("reports")
SAMPLES = Path("artifacts/samples")
PLANS = Path("artifacts/plans")
TRAINED = Path("artifacts/trained")
MERGED = Path("artifacts/merged")
SCORES = Path("artifacts/scores")
REGISTERED = Path("artifacts/registered")
METRICS = Path("metrics")
PLOTS = Path("reports/plots")
DATA_DOCS = Path("reports/validation")
REPORT = Path("reports/comparison.html")
PLAN_PICTURE = Path("reports/plan.png")
CHECKPOINTS = Path("build/checkpoints")  # outside every stage's outs: DVC removes those before a stage runs
RANKS = Path("build/ranks")  # what the processes of a training on several cards are given
