"""The record of a survey: everything about its files that is declared and not guessed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from remap.config import ConfigError, tuples

FRAMES = ("rest", "heliocentric", "observed")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Survey:
    """What the files of a survey are. A survey of one's own is the same record filled in.

    Attributes:
      name: by which configs and command lines call it.
      about: one or more sentences: the layout, which bits of the masks count and why, what is left out.
      source: how a file is read (see `remap.io.read`).
      patterns: glob patterns of the files in a folder.
      frame: of the wavelengths: "rest" of the star, "heliocentric" (or barycentric), or "observed" at the telescope.
      reference: the paper or document that describes the files.
      labels: how the survey's own catalogue of labels is read (see `remap.io.read_labels`); {} where there is none.

    Raises:
      ConfigError: a frame that does not exist, or a source without a format.
    """

    name: str
    about: str
    source: Mapping[str, Any]
    patterns: tuple[str, ...]
    frame: str
    reference: str
    labels: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.frame not in FRAMES:
            raise ConfigError(f"survey {self.name}: frame must be one of {FRAMES}, found {self.frame!r}")
        if "format" not in self.source:
            raise ConfigError(f"survey {self.name}: source has no format")

    def with_source(self, overrides: Mapping[str, Any]) -> Survey:
        """The same survey with keys of its source replaced; in every option where the files come in several layouts.

        Args:
          overrides: keys of the source; None takes one out.

        Examples:
          >>> from remap import surveys
          >>> survey = surveys.get("miles").with_source({"line_spread": {"resolution": 2000.0}})
          >>> survey.source["line_spread"]
          {'resolution': 2000.0}
        """
        changes = {key: tuples(value) for key, value in dict(overrides).items()}
        source = {**self.source}
        if source["format"] == "any" and not {"format", "options"} & set(changes):
            source["options"] = tuple({**option, **changes} for option in source["options"])
        else:
            source.update(changes)
        return dataclasses.replace(self, source=source)
