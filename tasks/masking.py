"""Keeps passwords out of what is shown: lines of a stage or of dvc go to Prefect's log, to its database, and to everyone who may look.

What is masked are passwords within addresses, and the values of this process's variables whose names say that they are secret. It knows no stage.
"""

import os
import re
from collections.abc import Mapping

_IN_ADDRESS = re.compile(r"(://[^/@\s:]*:)[^/@\s]+(?=@)")
_SECRET_NAME = re.compile(r"(^|_)(PASSWORD|PASSWD|SECRET|TOKEN|KEY|CREDENTIALS?|DATABASE)($|_)")
_MIN_LENGTH = 8  # a shorter value is a word that lines hold for other reasons
_MASK = "***"


class Mask:
    """To be called with each line."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        values = {
            value
            for name, value in environment.items()
            if _SECRET_NAME.search(name.upper()) and len(value) >= _MIN_LENGTH
        }
        # the longest first: one may be a part of another
        self._secrets = re.compile("|".join(map(re.escape, sorted(values, key=len, reverse=True)))) if values else None

    def __call__(self, line: str) -> str:
        if self._secrets:
            line = self._secrets.sub(_MASK, line)
        return _IN_ADDRESS.sub(rf"\1{_MASK}", line)
