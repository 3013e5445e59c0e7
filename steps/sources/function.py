"""Rows from the user's own Python function.  Called by `opening` for ``python:module:function`` sources."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pyarrow as pa

from contracts.errors import ConfigError, DataError, NetworkError, StageError
from serving.user_code import UserCode, blame


class Function:
    """A function that returns a table or a reader, or yields tables or record batches."""

    def __init__(self, uri: str, code: UserCode, as_of: datetime) -> None:
        self.name = uri
        reference = uri.removeprefix("python:")
        if ":" not in reference:
            raise ConfigError(f"{uri} names no function", remedy="write python:module:function")
        self._function = code.resolve(reference)
        if not callable(self._function):
            raise ConfigError(f"{uri} is no function")
        self._as_of = as_of

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Call the function, with `as_of` when it has a parameter of that name, and yield what it yields.

        Raises
        ------
        DataError
            When that is not Arrow.
        ConfigError, NetworkError
            When the function raises; NetworkError when that is a connection or a timeout, which may pass.
        """
        try:
            yield from self._batches()
        except (StageError, GeneratorExit):
            raise
        except (ConnectionError, TimeoutError) as error:
            raise NetworkError(f"{self.name} raised {blame(error)}") from None
        except (Exception, SystemExit) as error:  # noqa: BLE001  it is the user's code, and may raise anything
            raise ConfigError(f"{self.name} raised {blame(error)}", remedy="mend the function") from None

    def _batches(self) -> Iterator[pa.RecordBatch]:
        parameters = inspect.signature(self._function)
        arguments = {"as_of": self._as_of} if "as_of" in parameters.parameters else {}
        try:
            parameters.bind(**arguments)
        except TypeError as error:
            raise ConfigError(f"{self.name}: {error}", remedy="it may have one parameter, as_of") from None
        found: Any = self._function(**arguments)
        if isinstance(found, (pa.Table, pa.RecordBatch)):
            found = [found]
        elif not isinstance(found, Iterator | list | tuple):
            raise self._not_arrow(found)
        for part in found:
            if isinstance(part, pa.Table):
                batches = part.to_batches()
                yield from batches or [
                    pa.RecordBatch.from_arrays([pa.nulls(0, f.type) for f in part.schema], schema=part.schema)
                ]
            elif isinstance(part, pa.RecordBatch):
                yield part
            else:
                raise self._not_arrow(part)

    def _not_arrow(self, found: object) -> DataError:
        return DataError(
            f"{self.name} yields {type(found).__name__}",
            remedy="return a pyarrow Table or RecordBatchReader, or yield record batches",
        )
