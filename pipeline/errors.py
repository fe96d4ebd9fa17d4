"""What can go wrong, in one small tree. Each message says the value, the rule and the remedy.

    PipelineError
    ├── RecipeError     the recipe cannot be run as it is written
    ├── DataError       images, labels or shards
    ├── WeightsError    pretrained weights or their transplant
    ├── ClusterError    Ray: no room, no connection, workers lost for good
    ├── TrainingError   the training itself: a loss that is not finite
    ├── StoppedError    it was asked to stop, and did so; what is finished is kept
    │   └── InterruptError  by Ctrl-C
    ├── TrackingError   MLflow cannot be reached, or has no such run or model
    │   └── OutageError MLflow is away for now; the same again may work later
    └── StoreError      the store's folder: full, in use, missing
        └── SupersededError  another attempt of the same training has taken it over

Every error takes one positional message, so that it pickles: errors cross Ray's processes.
"""

from __future__ import annotations


class PipelineError(Exception):
    """Anything a user can mend; the command line prints it without a traceback."""


class RecipeError(PipelineError):
    """The recipe cannot be run as it is written."""


class DataError(PipelineError):
    """Images, labels or shards are not what they should be."""


class WeightsError(PipelineError):
    """Pretrained weights are missing, unsafe or of another net."""


class ClusterError(PipelineError):
    """Ray has no room, cannot be reached, or lost its workers for good."""


class TrainingError(PipelineError):
    """Training cannot go on."""


class StoppedError(PipelineError):
    """The run was asked to stop, and did so; what is finished, or in a checkpoint, is kept."""


class InterruptError(StoppedError):
    """It was Ctrl-C that asked."""


class TrackingError(PipelineError):
    """MLflow cannot be reached, or a run or model in it is missing."""


class OutageError(TrackingError):
    """MLflow is away for now; the same operation may work later."""


class StoreError(PipelineError):
    """The store is full, in use, missing or damaged."""


class SupersededError(StoreError):
    """A later attempt of the same training has taken it over; this one stops."""
