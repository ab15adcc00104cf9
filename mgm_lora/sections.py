"""What every section of the settings is made of: frozen, strict, nothing unknown; and the types that several share."""

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Auto = Literal["auto"]
RelativePath = Annotated[Path, Field(strict=False)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
LearningRate = Annotated[float, Field(gt=0.0, le=1.0)]
_SECRET_PARAMETER = re.compile(r"[?&][^=&]*(password|passwd|pwd|token|secret)[^=&]*=", re.IGNORECASE)


class SecretInAddressError(ValueError):
    """What was found must not be repeated to people."""


def _without_secret(address: str) -> str:
    scheme, _, rest = address.partition("://")
    user = rest.rpartition("@")[0]  # a password may hold any sign: whatever is before the last @
    holds_secret = bool(user) if scheme in ("http", "https") else ":" in user
    if holds_secret or _SECRET_PARAMETER.search(rest):
        raise SecretInAddressError(
            "holds a user with a password or a token, which would be in git and in everybody's logs: take it out of the address. A server's goes"
            " into the environment (MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN), a database's into"
            " PGPASSWORD or ~/.pgpass"
        )
    return address


Address = Annotated[str, Field(min_length=1), AfterValidator(_without_secret)]
"""Of a server or database, without a secret in it."""


class Section(BaseModel):
    """A frozen section: unknown entries are errors, text is no number."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)
