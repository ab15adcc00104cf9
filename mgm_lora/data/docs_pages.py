"""How Great Expectations' Data Docs look here: its own pages in templates that need no network, behind an overview.

Its own templates load Bootstrap, jQuery and more from other hosts, and show an empty list without them; they also put
what was found into the page as it stands, where a file name can be markup. Those of them that matter are replaced by
`templates/`; the rest is used as it is. It knows no checks.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from great_expectations.render.view.view import DefaultJinjaIndexPageView, DefaultJinjaPageView
from jinja2 import ChoiceLoader, Environment, FileSystemLoader

_TEMPLATES = Path(__file__).parent / "templates"


class PageView(DefaultJinjaPageView):
    """A suite's page, or a validation's."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        _use_own_templates_(self.env)


class IndexView(DefaultJinjaIndexPageView):
    """The page that lists the others, below how often each check failed."""

    def __init__(self, overview: Mapping[str, object], **options: Any) -> None:
        super().__init__(**options)
        _use_own_templates_(self.env)
        self.env.globals["overview"] = overview


def _use_own_templates_(env: Environment) -> None:
    """In place: ours come first."""
    assert env.loader is not None
    env.loader = ChoiceLoader([FileSystemLoader(_TEMPLATES), env.loader])
