"""The image registry: which digest a tag has, for `build`, and what retention removes.  Nothing is pulled or pushed."""

from __future__ import annotations

import httpx

from contracts.errors import NetworkError
from contracts.settings import Settings

_MANIFESTS = ", ".join(
    (
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
        "application/vnd.docker.distribution.manifest.v2+json",
    )
)


def pinned(image: str) -> bool:
    """Say whether an image is named by its digest, so that it is the same one tomorrow."""
    return "@sha256:" in image


def digest(repository: str, tag: str, settings: Settings) -> str | None:
    """Return the digest (``sha256:...``) of ``repository:tag``.

    None when there is no such image, or when the registry shows its images only to those who log in, which this does
    not do: the image is built once more then, under the same tag.

    Raises
    ------
    NetworkError
        The registry does not answer.
    """
    answer = _ask("HEAD", repository, tag, settings)
    return answer.headers.get("docker-content-digest") if answer.status_code == 200 else None


def shows(repository: str, settings: Settings) -> bool:
    """Say whether the registry tells those who do not log in which images it has; raises as `digest`."""
    return _ask("HEAD", repository, "preflight", settings).status_code not in (401, 403)


def exists(image: str, settings: Settings) -> bool:
    """Say whether the registry shows an image (``repository@sha256:...``); raises as `digest`."""
    repository, _, by_digest = image.partition("@")
    return digest(repository, by_digest, settings) is not None


def remove(image: str, settings: Settings) -> str:
    """Ask the registry to delete an image (``repository@sha256:...``), and return why it does not, if so.

    Its layers go when the registry collects its garbage.

    Raises
    ------
    NetworkError
        The registry does not answer.
    """
    repository, _, by_digest = image.partition("@")
    status = _ask("DELETE", repository, by_digest, settings).status_code
    return "" if status in (200, 202, 404) else f"its registry answers {status} to a deletion"


def _ask(method: str, repository: str, reference: str, settings: Settings) -> httpx.Response:
    host, _, name = repository.partition("/")
    scheme = "http" if settings.insecure_registry else "https"
    try:
        answer = httpx.request(
            method, f"{scheme}://{host}/v2/{name}/manifests/{reference}", headers={"accept": _MANIFESTS}, timeout=10,
            follow_redirects=True,
        )  # fmt: skip
    except httpx.HTTPError as error:
        raise NetworkError(f"the registry {host} does not answer: {type(error).__name__}") from None
    if answer.status_code == 429 or answer.status_code >= 500:
        raise NetworkError(f"the registry {host} answered {answer.status_code}")
    return answer
