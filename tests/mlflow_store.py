"""What tests share that open MLflow stores in their own process."""

import mlflow


def forget_store() -> None:
    """Ends what runs, and points MLflow nowhere: the next test, and what it starts, has a store of its own."""
    while mlflow.active_run():
        mlflow.end_run()
    mlflow.set_tracking_uri(None)
    mlflow.set_registry_uri(None)
