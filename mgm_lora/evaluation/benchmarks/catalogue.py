"""The benchmarks by name."""

from collections.abc import Mapping

from mgm_lora.evaluation.benchmarks.door import Benchmark
from mgm_lora.evaluation.benchmarks.gqa import Gqa
from mgm_lora.evaluation.benchmarks.mmbench import MmBench
from mgm_lora.evaluation.benchmarks.mme import Mme
from mgm_lora.evaluation.benchmarks.pope import Pope
from mgm_lora.evaluation.benchmarks.scienceqa import ScienceQa
from mgm_lora.evaluation.benchmarks.textvqa import TextVqa
from mgm_lora.evaluation.benchmarks.vqav2 import VqaV2

_ALL: tuple[Benchmark, ...] = (TextVqa(), Gqa(), Pope(), ScienceQa(), Mme(), MmBench(), VqaV2())
BENCHMARKS: Mapping[str, Benchmark] = {benchmark.name: benchmark for benchmark in _ALL}
