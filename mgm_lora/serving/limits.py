"""What a server of a version takes and from where: environment variables `MGM_LORA_SERVE_*`, since they are of the machine and change no result.

`mlflow models serve` hands the environment on to the process that answers, and nothing else. It knows no server.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError, field_validator

from mgm_lora.errors import SettingsError
from mgm_lora.sections import RelativePath, Section

PREFIX = "MGM_LORA_SERVE_"
Count = Annotated[int, Field(ge=1, strict=False)]
_YES_OR_NO = TypeAdapter(bool)


class ServingLimits(Section):
    """The variables, by their names in small letters behind the prefix."""

    max_requests: Count = 4
    """Requests in the server at once: one is answered, the others wait their turn."""
    max_body_bytes: Count = 32 * 2**20
    """Of a request; `mgm-lora serve` holds it, `mlflow models serve` reads whatever comes."""
    body_seconds: Count = 30
    """In which a request's body must have come; likewise."""
    max_rows: Count = 16
    """Questions of a request."""
    max_picture_bytes: Count = 20 * 2**20
    """Of a picture's file, however it comes."""
    max_pixels: Count = 50_000_000
    """Of a picture; a larger one is refused unread (decompression bombs)."""
    max_new_tokens: Count = 512
    """Most that a request may ask for."""
    pictures: RelativePath | None = None
    """The folder that pictures may be named in by their path; none: no path is read."""
    hosts: tuple[str, ...] = Field(default=(), strict=False)
    """Hosts that pictures are fetched from, separated by commas: `pictures.example.org`, or with a port; none: nothing is fetched."""
    private_addresses: bool = False
    """Whether such a host may lie in this machine or its own network."""
    fetch_seconds: Count = 10
    """In which a picture must have come."""

    @field_validator("hosts", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return (
            tuple(host.strip().lower() for host in value.split(",") if host.strip())
            if isinstance(value, str)
            else value
        )

    @field_validator("hosts")
    @classmethod
    def _are_hosts(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        wrong = [host for host in hosts if "/" in host or "@" in host or "*" in host]
        if wrong:
            raise ValueError(
                f"{', '.join(wrong)}: write a host's whole name, or name:port, without https:// and without *"
            )
        return hosts

    @field_validator("private_addresses", mode="before")
    @classmethod
    def _yes_or_no(cls, value: object) -> object:
        return _YES_OR_NO.validate_python(value)

    @field_validator("pictures")
    @classmethod
    def _is_folder(cls, folder: Path | None) -> Path | None:
        if folder is not None and not folder.is_dir():
            raise ValueError(f"there is no folder '{folder}'")
        return folder


def read_limits(environment: Mapping[str, str]) -> ServingLimits:
    """The limits that an environment asks for; raises SettingsError, which names all mistakes."""
    given = {name: value for name, value in environment.items() if name.startswith(PREFIX)}
    try:
        return ServingLimits.model_validate({name.removeprefix(PREFIX).lower(): value for name, value in given.items()})
    except ValidationError as error:
        lines = [_line(dict(problem)) for problem in error.errors()]
        raise SettingsError("\n".join(["the environment has mistakes:", *lines])) from error


def variable(name: str) -> str:
    """The environment variable of a limit."""
    return f"{PREFIX}{name.upper()}"


def _line(problem: dict[str, object]) -> str:
    place = problem["loc"]
    name = variable(str(place[0])) if isinstance(place, tuple) and place else PREFIX
    if problem["type"] == "extra_forbidden":
        known = ", ".join(variable(field) for field in ServingLimits.model_fields)
        return f"  - {name} is no setting of mgm-lora (misspelt?); there are {known}"
    return f"  - {name}: {str(problem['msg']).removeprefix('Value error, ')}; found {problem.get('input')!r}"
