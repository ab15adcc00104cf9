"""The stage `validate`: the data checked, before any of it is learned from."""

from collections.abc import Sequence

from mgm_lora.artifacts import new_file, write_json
from mgm_lora.data.judgement import ValidationSummary
from mgm_lora.data.tokens import TokenCounts
from mgm_lora.data.validation import validate
from mgm_lora.errors import DataError, SettingsError
from mgm_lora.model.base import find_processor
from mgm_lora.model.markers import count_markers
from mgm_lora.model.processor import MGMProcessor
from mgm_lora.model.sequence import IGNORE_INDEX, PICTURE_TOKEN
from mgm_lora.settings import Settings
from mgm_lora.stages import paths


def run(settings: Settings) -> ValidationSummary:
    """Writes artifacts/samples, reports/validation and metrics/validate.json."""
    processor = find_processor(settings.base)
    _check_limit(settings.data.max_length, processor=processor)
    summary = validate(
        settings.data,
        validation=settings.validation,
        measure=lambda turns: measure(turns, processor=processor, max_length=settings.data.max_length),
        destination=paths.SAMPLES,
        data_docs=paths.DATA_DOCS,
    )
    with new_file(paths.METRICS / "validate.json") as path:
        write_json(path, summary.metrics())
    return summary


def measure(turns: Sequence[tuple[str, str]], *, processor: MGMProcessor, max_length: int) -> TokenCounts:
    """What a conversation with a marker per picture costs in the language model's sequence."""
    try:
        encoded = processor.encode_sample(turns, num_pictures=count_markers(turns))
    except DataError as error:
        return TokenCounts(num_tokens=0, num_labels=0, num_labels_kept=0, problem=str(error))
    position, kept = 0, 0
    for token, label in zip(encoded.input_ids, encoded.labels, strict=True):
        position += processor.num_picture_tokens if token == PICTURE_TOKEN else 1
        kept += label != IGNORE_INDEX and position <= max_length
    num_labels = sum(label != IGNORE_INDEX for label in encoded.labels)
    problem = "" if num_labels else "no token of it would be learned"
    return TokenCounts(num_tokens=position, num_labels=num_labels, num_labels_kept=kept, problem=problem)


def _check_limit(max_length: int, *, processor: MGMProcessor) -> None:
    most, per_picture = processor.config.max_length, processor.num_picture_tokens
    if max_length > most:
        raise SettingsError(
            f"data.max_length is {max_length}, but the base cuts every sequence at {most} (max_length in its config.json; a picture takes"
            f" {per_picture} tokens): lower the one, or raise the other where the language model takes longer sequences"
        )
