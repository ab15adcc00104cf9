"""`mgm-lora summary`: the table of arms in the terminal, and where to look."""

from mgm_lora.evaluation.summary import print_summary
from mgm_lora.settings import SUBJECT, Settings
from mgm_lora.stages import paths


def run(settings: Settings) -> None:
    """Prints to standard output."""
    places = {
        "report": str(paths.REPORT),
        "data docs": str(paths.DATA_DOCS / "index.html"),
        "adapter": str(paths.TRAINED / paths.run_name(SUBJECT, settings.comparison.seeds[0])),
        "runs": "make mlflow",
        "schedule": "make flow",
        "ask": f"mgm-lora ask PICTURE QUESTION --adapter models:/{settings.registry.model_name}@challenger",
    }
    print_summary(paths.METRICS / "comparison.json", places=places)
