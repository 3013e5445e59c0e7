"""How a version is released, when runs start, and who hears of them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from contracts import names
from contracts.base import Contract, Duration, parse_duration


class Release(Contract):
    """How an approved version comes to serve."""

    strategy: Literal["rolling", "recreate"] = "rolling"
    ready_timeout: Duration = Field(parse_duration("60s"), description="Not healthy by then: the old version stays.")
    drain_timeout: Duration = Field(
        parse_duration("15s"), description="How long the old version may finish its answers."
    )
    contract: int = Field(
        1, ge=1, description="Raise it when requests that production accepts need no longer be accepted."
    )


class Records(Contract):
    """Which predictions the server keeps, under `predictions/<pipeline>` of the store: id, time, version, scores."""

    share: float = Field(
        0.0, ge=0, le=1, description="Share of the requests, by a hash of X-Request-Id, else of the body.",
        examples=[0.1],
    )  # fmt: skip
    inputs: bool = Field(False, description="Keep the rows too, but for the cells of sensitive columns.")


class Schedule(Contract):
    """Cron lines in one time zone; one run at a time."""

    cron: tuple[str, ...] = Field(min_length=1, examples=[["0 3 * * 1"]])
    timezone: str = "UTC"
    starting_deadline: Duration = parse_duration("1h")
    keep_successful: int = Field(3, ge=0)
    keep_failed: int = Field(3, ge=0)


class Objects(Contract):
    """A new object in a bucket starts a run on it; the store tells POST /<pipeline name>/objects, as MinIO can."""

    bucket: str = Field(pattern="^[a-z0-9][a-z0-9.-]{2,62}$")
    prefix: str = Field("", pattern="^[A-Za-z0-9._~/=+:,-]*$", description="What its key starts with.")
    suffix: str = Field("", pattern="^[A-Za-z0-9._~/=+:,-]*$", description="What its key ends with.")


class Webhook(Contract):
    """POST /<pipeline name> with a bearer token starts a run."""

    port: int = Field(12000, gt=0, lt=65536)
    token_secret: str = Field(names.WEBHOOK_SECRET, description="Secret whose key `token` holds the bearer token.")
    objects: Objects | None = None


class Triggers(Contract):
    """What starts a run besides a person."""

    webhook: Webhook | None = None


class Notifications(Contract):
    """When to tell; where to, says the secret setting `notify_urls` (Apprise), else the console."""

    on: tuple[Literal["promoted", "rejected", "inconclusive", "unchanged", "failed", "other"], ...] = (
        "promoted", "rejected", "inconclusive", "unchanged", "failed", "other",
    )  # fmt: skip


class Resources(Contract):
    """Default sizes of a stage's container, in MiB and millicores; what is not here the environment's settings say."""

    memory_mib: int = Field(1024, ge=64)
    cpu_millicores: int = Field(500, ge=10)
