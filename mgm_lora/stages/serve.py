"""`mgm-lora serve`: a registered version answers over HTTP."""

from mgm_lora.registry.lookup import version_uri
from mgm_lora.registry.server import serve_version
from mgm_lora.settings import Settings


def run(settings: Settings, *, version: str, host: str, port: int, timeout_seconds: int) -> None:
    """Answers until it is ended; `version` is a number, an alias, or a `models:/` address."""
    uri = version_uri(version, model_name=settings.registry.model_name)
    serve_version(uri, registry=settings.registry, host=host, port=port, timeout_seconds=timeout_seconds)
