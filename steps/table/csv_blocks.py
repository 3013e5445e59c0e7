"""Cut delimited text into blocks of whole records, so that the blocks can be read in parallel.  Used by `csv_reader`.

Records are found by RFC 4180: a line end counts where the quotes before it are even in number.  `quoting_flaw` proves
for a block that this reading of its quotes is the only one; so neither rows nor hash depend on where the cuts fall.
"""

from __future__ import annotations

import codecs
import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt

from contracts.errors import ConfigError, DataError
from contracts.pipeline.source import CsvOptions
from steps.table.chunk import Flaw

BLOCK_BYTES = 4 * 1024 * 1024
RECORD_BYTES = 16 * 1024 * 1024
"""A longer record is a quote left open, or no table."""
_BOM, _UTF16_BOMS = codecs.BOM_UTF8, (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_UTF32_BOMS = (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)
_LF, _CR = 10, 13


@dataclass(frozen=True)
class Block:
    """Whole records as UTF-8 bytes; with a flaw, what is left of the file that could not be cut."""

    data: bytes
    flaw: Flaw | None = None


def cut(path: Path, name: str, options: CsvOptions, size: int = BLOCK_BYTES) -> Iterator[Block]:
    """Yield a file's blocks, the header record first among them.

    Raises
    ------
    DataError
        When the compressed file is damaged, or changes while it is read.
    """
    quote = options.quote.encode()
    with _reading(name):
        before = path.stat()
    rest = b""
    for data in _utf8(path, name, options, size):
        if quote in data or quote in rest:
            rest += data
            end = _last_record_end(rest, quote)
            block, rest = rest[:end], rest[end:]
        else:  # copies every byte once
            end = data.rfind(b"\n") + 1
            view = memoryview(data)
            block, rest = (b"".join((rest, view[:end])), bytes(view[end:])) if end else (b"", rest + data)
        if block:
            yield Block(block)
        if len(rest) > RECORD_BYTES:
            flaw = quoting_flaw(rest, options, at_end=False) or Flaw(
                f"a record is longer than {RECORD_BYTES // 2**20} MiB",
                0,
                "close the quote, or name the right csv.quote and csv.delimiter",
            )
            yield Block(rest, flaw)
            return
    with _reading(name):
        after = path.stat()
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise DataError(
            f"{name} changed while it was read",
            remedy="write files under another name and rename them when whole, then run again",
        )
    if rest:
        yield Block(rest, quoting_flaw(rest, options, at_end=True) if rest.count(quote) % 2 else None)


def split_header(data: bytes, quote: bytes) -> tuple[bytes, bytes]:
    """Return the first record that is not blank, and what follows it."""
    start = len(data) - len(data.lstrip(b"\r\n"))
    end = start
    while (end := data.find(b"\n", end)) >= 0:
        end += 1
        if data.count(quote, start, end) % 2 == 0:
            return data[start:end], data[end:]
    return data[start:], b""


def quoting_flaw(data: bytes, options: CsvOptions, *, at_end: bool) -> Flaw | None:
    """Return the first quote that opens or closes in the middle of a cell, or that is never closed."""
    quote = options.quote.encode()
    if quote not in data:
        return None
    raw = np.frombuffer(data, dtype=np.uint8)
    quotes = _positions(raw, quote[0])
    borders = (ord(options.delimiter), _LF, _CR)
    opening, closing = quotes[::2], quotes[1::2]
    before = np.where(opening > 0, raw[opening - 1], _LF)
    after = np.where(closing + 1 < len(raw), raw[np.minimum(closing + 1, len(raw) - 1)], _LF)
    bad = np.concatenate(
        [opening[~np.isin(before, (*borders, quote[0]))], closing[~np.isin(after, (*borders, quote[0]))]]
    )
    if len(bad):
        return Flaw(
            "a quote stands in the middle of a cell",
            record_at(data, int(bad.min()), options),
            "quote the whole cell and double the quotes inside it, or name another csv.quote",
        )
    if at_end and len(quotes) % 2:
        return Flaw(
            "a quote is opened and never closed",
            record_at(data, int(quotes[-1]), options),
            "close it, or name another csv.quote",
        )
    return None


def record_at(data: bytes, position: int, options: CsvOptions) -> int:
    """Return the number, from 0, of the record that holds a position; blank lines are none."""
    quote = options.quote.encode()
    ends = _record_ends(data[:position], quote)
    lengths = np.diff(np.concatenate([[0], ends]))
    blank = lengths <= 1
    two = np.flatnonzero(lengths == 2)  # "\r\n" is blank as well
    blank[two] = [data[int(ends[i]) - 2 : int(ends[i])] == b"\r\n" for i in two]
    return int(len(ends) - np.count_nonzero(blank))


def _record_ends(data: bytes, quote: bytes) -> npt.NDArray[np.int64]:
    raw = np.frombuffer(data, dtype=np.uint8)
    ends = _positions(raw, _LF)
    if quote in data:
        ends = ends[np.searchsorted(_positions(raw, quote[0]), ends) % 2 == 0]
    return ends + 1


def _last_record_end(data: bytes, quote: bytes) -> int:
    if quote not in data:
        return data.rfind(b"\n") + 1
    ends = _record_ends(data, quote)
    return int(ends[-1]) if len(ends) else 0


def _positions(raw: npt.NDArray[np.uint8], byte: int) -> npt.NDArray[np.int64]:
    return np.flatnonzero(raw == byte)


def _utf8(path: Path, name: str, options: CsvOptions, size: int) -> Iterator[bytes]:
    """Yield the file's text as UTF-8 with ``\\n`` or ``\\r\\n`` as line ends, decompressed, without byte order mark."""
    decoder = None if options.encoding == "utf-8" else codecs.getincrementaldecoder(options.encoding)()
    old_mac: bool | None = None
    for data in chain(_bytes(path, name, size), [b""]):
        if decoder is not None:
            try:
                data = decoder.decode(data, final=not data).encode()
            except UnicodeError as error:
                raise DataError(
                    f"{name} is not {options.encoding}: {error}",
                    remedy="write it as utf-8, or name the right csv.encoding",
                ) from None
        if old_mac is None and data:
            if decoder is None and data.startswith(_UTF32_BOMS):
                raise DataError(f"{name} is UTF-32, read as utf-8", remedy="write it as utf-8")
            if decoder is None and data.startswith(_UTF16_BOMS):
                raise DataError(f"{name} is UTF-16, read as utf-8", remedy="csv.encoding: utf-16")
            data = data.removeprefix(_BOM)
            old_mac = b"\r" in data and b"\n" not in data
        yield data.replace(b"\r", b"\n") if old_mac else data


def _bytes(path: Path, name: str, size: int) -> Iterator[bytes]:
    with _reading(name), path.open("rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        file = gzip.GzipFile(fileobj=raw) if packed else raw
        while data := file.read(size):
            yield data


@contextmanager
def _reading(name: str) -> Iterator[None]:
    try:
        yield
    except (EOFError, gzip.BadGzipFile, zlib.error):
        raise DataError(
            f"{name} is damaged or cut off: its gzip stream ends early", remedy="fetch or write the file again"
        ) from None
    except OSError as error:
        raise ConfigError(
            f"cannot read {name}: {error.strerror}", remedy="check the path and its permissions"
        ) from None
