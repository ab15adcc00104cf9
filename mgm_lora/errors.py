"""Every error that mgm-lora raises on purpose: its own type and a builtin at once.

A message says what was asked, what was found and what to do. `exit_code` is what the command line ends with:
2 for bad input, 3 for a proof or gate that did not hold, 4 for the machine (disk, permissions), 5 for its memory.
It knows nothing of who raises what.
"""


class MgmLoraError(Exception):
    """Base of all errors of this package."""

    exit_code = 2


class SettingsError(MgmLoraError, ValueError):
    """`params.yaml` holds unknown or wrong entries; the message names all of them."""


class UnknownStageError(MgmLoraError, LookupError):
    """A stage was asked for that `dvc.yaml` doesn't have."""


class DataError(MgmLoraError, ValueError):
    """The data set can't be read or is not in LLaVA's form."""


class PictureError(DataError):
    """A picture is missing, broken, or no picture at all."""


class BenchmarkFileError(DataError):
    """A benchmark's official file is of another version or shape than expected."""


class OtherQuestionsError(DataError):
    """Answers are for other questions than the benchmark's: some are missing, unknown or doubled."""


class RefusedError(MgmLoraError, ValueError):
    """A server of a version doesn't answer a request; `status` is HTTP's."""

    def __init__(self, message: str, *, status: int) -> None:
        """A sentence for who asked, and a status from 400 on."""
        super().__init__(message)
        self.status = status


class CheckpointError(MgmLoraError, ValueError):
    """A checkpoint's files, keys or shapes are not what its configuration says."""


class NoMatchingModuleError(MgmLoraError, LookupError):
    """An application point matches no module of the model."""


class ArtifactError(MgmLoraError, FileNotFoundError):
    """A stage's artifact is missing, of another kind, or not whole."""


class BaseChangedError(MgmLoraError, ValueError):
    """An adapter meets a base model other than the one that it was trained on."""

    exit_code = 3


class ValidationFailedError(MgmLoraError, ValueError):
    """The data set failed a check that stops the run (leakage, too many rejects)."""

    exit_code = 3


class TrainingError(MgmLoraError, RuntimeError):
    """The training can't go on: the trainable set or the loss is not what was asked."""

    exit_code = 3


class BrokenLossError(TrainingError, ArithmeticError):
    """The loss is no number any more, or has jumped further than the settings allow."""


class ContractError(TrainingError):
    """What trained, changed or was saved is not what was asked for; the parameters are named."""


class MergeProofError(MgmLoraError, ArithmeticError):
    """The merged model is not the adapted model within the stated bound, or not different from the base."""

    exit_code = 3


class RegistryError(MgmLoraError, LookupError):
    """A registered version can't be found, read or written."""


class StoreUnreachableError(RegistryError, ConnectionError):
    """MLflow's server doesn't answer; what was to be written can be written later."""

    exit_code = 4


class BusyRegistryError(RegistryError, BlockingIOError):
    """Another process changes the same registered model, or has changed it meanwhile."""

    exit_code = 4


class PromotionRefusedError(MgmLoraError, ValueError):
    """A version doesn't keep the rules of the section `promotion`; the message names those that it breaks."""

    exit_code = 3


class NotReproducedError(MgmLoraError, ArithmeticError):
    """A version that was made again has another digest."""

    exit_code = 3


class StorageError(MgmLoraError, OSError):
    """The output can't be written: no space, no permission."""

    exit_code = 4


class OrderError(MgmLoraError, ValueError):
    """A stage can't be handed to a worker on another machine as it is here, or the worker finds something else."""


class WorkplaceError(MgmLoraError, RuntimeError):
    """A worker can't be brought to a run's commit."""


class RemoteError(MgmLoraError, OSError):
    """The DVC remote can't be read or written, or is none that two machines share."""

    exit_code = 4


class ServiceError(MgmLoraError, ConnectionError):
    """A server or worker doesn't start, or doesn't end."""

    exit_code = 4


class BusyCardError(MgmLoraError, BlockingIOError):
    """Another process trains on the card."""

    exit_code = 4


class DoesNotFitError(MgmLoraError, MemoryError):
    """A training step takes more memory than the card, or the budget, has."""

    exit_code = 5


class SweepError(MgmLoraError, ValueError):
    """A sweep is not defined as it must be, or can't be run in this project."""


class TrialInterruptedError(MgmLoraError, RuntimeError):
    """A trial of a sweep ended for a reason that isn't its own, so that the next one would too."""

    exit_code = 4


class PlanError(MgmLoraError, ValueError):
    """No way to run the step fits the budget, or a plan is of other settings than the run's."""
