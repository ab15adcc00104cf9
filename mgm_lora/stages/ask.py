"""`mgm-lora ask`: one question about pictures, or a conversation about them, the answers shown as they come."""

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from mgm_lora.errors import DataError
from mgm_lora.model.base import find_base
from mgm_lora.model.chat import Chat
from mgm_lora.model.markers import mark_pictures, pictures_per_message
from mgm_lora.model.pictures import open_picture
from mgm_lora.settings import Settings
from mgm_lora.stages.models import load_adapted


def run(
    settings: Settings,
    *,
    pictures: Sequence[Path],
    question: str | None,
    adapter: str | None,
    max_new_tokens: int,
    show: Callable[[str], None],
) -> None:
    """Shows the answer of the base, or of an adapter's folder or registered version; without a question, those to the lines of the input."""
    opened = [open_picture(picture, max_pixels=settings.validation.max_picture_pixels) for picture in pictures]
    if question is not None:  # checked, like the pictures, before any weight is read
        marked = mark_pictures(question, num_pictures=len(opened))
        pictures_per_message([("human", marked)], num_pictures=len(opened))
    folder = _adapter_folder(settings, adapter) if adapter is not None else None
    base = find_base(settings.base)
    model = base.load() if folder is None else load_adapted(folder, base=base)
    processor = base.processor()
    chat = Chat(model, processor=processor, pictures=opened, max_new_tokens=max_new_tokens)
    if question is not None:
        chat.ask(question, show=show)
        show("\n")
        return
    for line in _lines():
        try:
            chat.ask(line, show=show)
            show("\n")
        except DataError as error:  # of this question: the conversation goes on
            print(f"mgm-lora: {error}", file=sys.stderr)


def _lines() -> Iterator[str]:
    """What is typed, up to an empty line or the input's end."""
    by_hand = sys.stdin.isatty()
    while True:
        if by_hand:
            print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline().strip()
        if not line:
            return
        yield line


def _adapter_folder(settings: Settings, adapter: str) -> Path:
    if not adapter.startswith("models:/"):
        return Path(adapter)
    from mgm_lora.registry.lookup import resolve_version

    return resolve_version(adapter, registry=settings.registry)
