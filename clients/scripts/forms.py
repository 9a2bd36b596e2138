"""Hold what scripts ask for in structured form.

Each value is one of a few: some clients leave out the limits of numbers and texts, and a model that
was taught no forms need not end them.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict


class Weather(BaseModel):
    """Describe the weather of a city."""

    model_config = ConfigDict(extra="forbid")  # or a model may add what it likes, without an end

    city: Literal["Zurich", "Bern"]
    degrees: Literal[5, 15, 25]
    sky: Literal["clear", "grey"]


ASKED = "How is the weather in Zurich?"
