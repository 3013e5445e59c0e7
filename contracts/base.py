"""The base of everything that crosses a process boundary, and the small types that occur everywhere."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    PlainSerializer,
    StringConstraints,
    WithJsonSchema,
)

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_NAME = re.compile(r"^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$")
_DURATION = re.compile(r"^(\d+(?:\.\d+)?)(s|m|h|d|w)$")


class Contract(BaseModel):
    """A frozen model that refuses keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def parse_duration(value: Any) -> Any:
    """Read ``90s``, ``15m``, ``36h``, ``7d``, ``2w`` as a timedelta; pydantic judges values of other types."""
    if isinstance(value, str):
        match = _DURATION.match(value.strip())
        if match is None:
            raise ValueError("a duration is a number and a unit: 90s, 15m, 36h, 7d, 2w")
        return timedelta(seconds=float(match[1]) * _UNITS[match[2]])
    return value


def format_duration(value: timedelta) -> str:
    """Write a timedelta as the largest whole unit: the inverse of `parse_duration`."""
    seconds = value.total_seconds()
    for unit in ("w", "d", "h", "m"):
        if seconds and seconds % _UNITS[unit] == 0:
            return f"{int(seconds // _UNITS[unit])}{unit}"
    return f"{seconds:g}s"


def _in_utc_too(value: datetime) -> datetime:
    try:
        value.astimezone(UTC)
    except OverflowError:
        raise ValueError("lies outside of the years 1 to 9999 in UTC") from None
    return value


Moment = Annotated[AwareDatetime, AfterValidator(_in_utc_too)]
"""A time with its zone, which can be told in UTC."""


def _is_name(value: str) -> str:
    if not _NAME.fullmatch(value):
        raise ValueError(
            f"{value!r} is no name: at most 40 lower case letters, digits and -, a letter or digit first and last, as "
            "in churn-2"
        )
    return value


Name = Annotated[str, AfterValidator(_is_name), WithJsonSchema({"type": "string", "pattern": _NAME.pattern})]
"""A DNS label short enough to become part of Kubernetes names."""

Duration = Annotated[
    timedelta,
    BeforeValidator(parse_duration),
    PlainSerializer(format_duration, return_type=str),
    WithJsonSchema({"type": "string", "pattern": _DURATION.pattern, "examples": ["36h", "7d"]}),
]
