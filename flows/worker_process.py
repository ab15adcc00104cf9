"""What a flow run owes the worker that started its process, and what it gets from it. It knows no flow."""

import os

from mgm_lora.stages.process import die_with

MLFLOW_PAGES = "MGM_LORA_MLFLOW"
"""The variable that says where MLflow's pages are; a worker that `flows.services` started has it."""
_STARTED_BY_WORKER = "PREFECT__FLOW_RUN_ID"  # Prefect sets it for the process that a worker, or `serve`, runs a flow in


def end_with_worker() -> None:
    """Ends this process, where a worker started it, with that worker, which of itself would leave it running and start another beside it."""
    if _STARTED_BY_WORKER in os.environ:
        die_with(os.getppid())
