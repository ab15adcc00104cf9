"""The stage `merge`: the adapter folded into the base, with its proof."""

from dataclasses import asdict

from mgm_lora.artifacts import digest_folder, new_file, write_json
from mgm_lora.data.table import read_samples
from mgm_lora.merging.merge import MergeProof, merge_with_proof
from mgm_lora.merging.probe import Probe
from mgm_lora.model.base import find_base
from mgm_lora.settings import SUBJECT, Settings
from mgm_lora.stages import paths


def run(settings: Settings) -> MergeProof:
    """Writes artifacts/merged and metrics/merge.json."""
    base = find_base(settings.base)
    samples = read_samples(paths.SAMPLES / "heldout.parquet")[: settings.merging.num_probe_samples]
    probes = [
        Probe(turns=tuple(sample.turns), pictures=tuple(settings.data.pictures / name for name in sample.pictures))
        for sample in samples
    ]
    proof = merge_with_proof(
        paths.TRAINED / paths.run_name(SUBJECT, settings.comparison.seeds[0]),
        base=base,
        probes=probes,
        merging=settings.merging,
        max_new_tokens=settings.evaluation.max_new_tokens,
        destination=paths.MERGED,
        settings={"base": settings.base, "merging": settings.merging},
        parents={"samples": digest_folder(paths.SAMPLES)},
    )
    with new_file(paths.METRICS / "merge.json") as path:
        write_json(path, asdict(proof))
    return proof
