"""What every section of the settings is made of: frozen, strict, nothing unknown; and the types that several share."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Auto = Literal["auto"]
RelativePath = Annotated[Path, Field(strict=False)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
LearningRate = Annotated[float, Field(gt=0.0, le=1.0)]


class Section(BaseModel):
    """A frozen section: unknown entries are errors, text is no number."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)
