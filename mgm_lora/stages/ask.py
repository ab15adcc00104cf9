"""`mgm-lora ask`: one question about one picture."""

from pathlib import Path

from mgm_lora.model.answering import Question, answer_questions
from mgm_lora.model.base import find_base
from mgm_lora.model.pictures import open_picture
from mgm_lora.model.processor import MGMProcessor
from mgm_lora.model.template import PICTURE_MARKER
from mgm_lora.settings import Settings
from mgm_lora.stages.models import load_adapted


def run(settings: Settings, *, picture: Path, question: str, adapter: str | None, max_new_tokens: int) -> str:
    """The answer of the base, or of an adapter's folder or registered version."""
    open_picture(picture, max_pixels=settings.validation.max_picture_pixels)  # before any weight is read
    folder = _adapter_folder(settings, adapter) if adapter is not None else None
    base = find_base(settings.base)
    model = base.load() if folder is None else load_adapted(folder, base=base)
    asked = Question(turns=(("human", f"{PICTURE_MARKER}\n{question}"),), pictures=(picture,))
    processor = MGMProcessor.from_pretrained(base.folder, towers=base.towers)
    return answer_questions(model, processor=processor, questions=[asked], batch_size=1, max_new_tokens=max_new_tokens)[
        0
    ]


def _adapter_folder(settings: Settings, adapter: str) -> Path:
    if not adapter.startswith("models:/"):
        return Path(adapter)
    from mgm_lora.registry.lookup import resolve_version

    return resolve_version(adapter, registry=settings.registry)
