"""What MLflow runs to load a registered version ("models from code"); importing it acts: it hands over the model.

Nothing is pickled: a version is the adapter's files, this script and the package.
"""

from mlflow.models import set_model

from mgm_lora.registry.answering_model import AnsweringModel

set_model(AnsweringModel())
