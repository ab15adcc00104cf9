"""Sweeps in a project with real git, DVC and MLflow: what is run, what is left after kills and faults, and what is written down."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import mlflow
import psutil
import pytest

from mgm_lora.errors import SweepError, TrialInterruptedError
from mgm_lora.settings import read_settings
from mgm_lora.stages import sweep
from mgm_lora.stages.sweep_runner import plan_sweep
from mgm_lora.sweeping.results import SweepResult, read_sweep
from tests.small_project import environment
from tests.sweep_project import add_sweep, commit, experiments, make_sweep_project, trained_rates
