"""Decide which row is on which side, and read what was decided.

Called by `features`, which writes a split, and by `train` and the gates, which read one.  A row's side depends on the
seed and on the row's own key (or group, or time), never on other rows, on their order or on the dataset's hash: rows
that come later move none that were there.  docs/split.md specifies the bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from contracts.errors import ConfigError
from contracts.pipeline.learning import Split, TimeBounds
from contracts.pipeline.table import Column, ColumnType
from contracts.references import RECIPE_FILE, SIDES, SPLIT_MANIFEST, SPLIT_ROWS, SplitManifest
from serving.transform import Recipe
from steps.world import World

KEY_BYTES = 16
CELL_BYTES = 9
_MASK = 2**64 - 1

Keys = npt.NDArray[np.bytes_]
Sides = npt.NDArray[np.int8]


@dataclass(frozen=True)
class SplitRows:
    """A split as it was written: one key and one side for each row of the dataset, in its order."""

    manifest: SplitManifest
    keys: Keys
    sides: Sides

    def mask(self, side: str) -> npt.NDArray[np.bool_]:
        """Say of each row whether it is on `side`: train, validation or test."""
        chosen: npt.NDArray[np.bool_] = self.sides == SIDES.index(side)
        return chosen

    def seen(self) -> Keys:
        """Return the keys of all rows that a model of this split has learned from or was chosen by."""
        return self.keys[~self.mask("test")]

    def unseen_by(self, *others: SplitRows) -> npt.NDArray[np.bool_]:
        """Say of each test row here whether no model of the other splits has seen it either.

        Keys made in another way (other columns, other types) can't be compared; then no row counts as unseen.
        """
        unseen = self.mask("test")
        for other in others:
            if other.manifest.key_scheme != self.manifest.key_scheme:
                return np.zeros(len(self.sides), dtype=np.bool_)
            unseen &= ~np.isin(self.keys, other.seen())
        return unseen


def key_scheme(name: str, columns: Sequence[Column]) -> str:
    """Return the hash of what keys are made of: the pipeline's name, the key columns and their types."""
    made_of = ["retrain row key 1", name, [[c.name, c.type.value] for c in columns]]
    return hashlib.sha256(json.dumps(made_of, separators=(",", ":"), ensure_ascii=False).encode()).hexdigest()


def row_keys(batches: Iterable[Any], columns: Sequence[Column], scheme: str) -> Keys:
    """Return the keys of rows that come as Arrow record batches holding `columns`.

    A key is the first 16 bytes of a SHA-256 over the scheme and the row's canonical cells, so it gives no cell away.
    It knows nothing of the seed: two models' rows can be compared though their splits were drawn with different seeds.
    """
    prefix = np.frombuffer(bytes.fromhex(scheme)[:KEY_BYTES], dtype=np.uint8)
    empty = pa.scalar(b"", pa.large_binary())
    keys = bytearray()
    for batch in batches:
        head = np.empty((len(batch), KEY_BYTES + CELL_BYTES * len(columns)), dtype=np.uint8)
        head[:, :KEY_BYTES] = prefix
        texts = []
        for number, column in enumerate(columns):
            cells, start = batch.column(column.name), KEY_BYTES + CELL_BYTES * number
            if column.type is ColumnType.STRING:
                texts.append(cells.cast(pa.large_string()).cast(pa.large_binary()).fill_null(b""))
            present, words = _words(cells, column.type)
            head[:, start] = present
            head[:, start + 1 : start + CELL_BYTES] = words.view(np.uint8).reshape(-1, CELL_BYTES - 1)
        # Arrow lays each row's bytes side by side; what remains to do in Python is one hash a row
        for content in pc.binary_join_element_wise(_rows_as_bytes(head), *texts, empty).to_pylist():
            keys += hashlib.sha256(content).digest()[:KEY_BYTES]
    return np.frombuffer(bytes(keys), dtype=f"S{KEY_BYTES}")


def _words(cells: Any, kind: ColumnType) -> tuple[npt.NDArray[np.bool_], npt.NDArray[Any]]:
    """Return which cells are there, and their values (of a string its length) in 8 bytes, else 0."""
    if kind is ColumnType.NUMBER:
        numbers = cells.fill_null(float("nan")).to_numpy(zero_copy_only=False)
        present = ~np.isnan(numbers)
        return present, (np.where(present, numbers, 0.0) + 0.0).astype("<f8")  # -0.0 + 0.0 is 0.0
    if kind is ColumnType.STRING:
        whole = pc.binary_length(cells.cast(pa.large_string()))
    elif kind is ColumnType.INTEGER:
        whole = cells
    else:
        whole = cells.cast(pa.int32() if kind is ColumnType.DATE else pa.int64())
    words = whole.fill_null(0).to_numpy(zero_copy_only=False).astype("<i8")
    return cells.is_valid().to_numpy(zero_copy_only=False), words


def _rows_as_bytes(matrix: npt.NDArray[np.uint8]) -> Any:
    rows, width = matrix.shape
    ends = np.arange(rows + 1, dtype=np.int64) * width
    return pa.Array.from_buffers(pa.large_binary(), rows, [None, pa.py_buffer(ends), pa.py_buffer(matrix)])


def sides_by_hash(keys: Keys, split: Split) -> Sides:
    """Return the sides that the keys (of rows, or of their groups) fall on.

    Every key has a place in [0, 2^64); the first `test` of that range is the test side, the next `validation` the
    validation side.  All classes are cut at the same places, so for each the shares are met on average.
    """
    places = _places(keys, split.seed)
    test, validation = int(split.test * 2**64), int((split.test + split.validation) * 2**64)
    return _sides(
        np.where(places < test, SIDES.index("test"), np.where(places < validation, SIDES.index("validation"), 0))
    )


def _places(keys: Keys, seed: int) -> npt.NDArray[np.uint64]:
    """Return splitmix64(first 8 bytes of the key, little-endian, xor splitmix64(seed)): one place a key and seed."""
    words = keys.view("<u8").reshape(-1, KEY_BYTES // 8)[:, 0]
    return _splitmix64(words ^ _splitmix64(np.array([seed & _MASK], dtype=np.uint64)))


def _splitmix64(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Mix 64-bit words (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014)."""
    mixed = words + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def sides_by_time(moments: npt.NDArray[np.datetime64], bounds: TimeBounds) -> Sides:
    """Return the sides of rows by their time: before `validation`, before `test`, later."""
    validation, test = (_moment(bound) for bound in (bounds.validation, bounds.test))
    return _sides(
        np.where(moments < validation, 0, np.where(moments < test, SIDES.index("validation"), SIDES.index("test")))
    )


def _moment(bound: datetime) -> np.datetime64:
    return np.datetime64(bound.astimezone(UTC).replace(tzinfo=None), "us")


def _sides(values: npt.NDArray[np.int64]) -> Sides:
    return values.astype(np.int8)


def seal(manifest: SplitManifest, keys: Keys, sides: Sides) -> SplitManifest:
    """Return the manifest with its hash: over its other fields as canonical JSON, then the keys, then the sides."""
    said = manifest.model_dump(mode="json", exclude={"sha256"})
    digest = hashlib.sha256(json.dumps(said, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode())
    digest.update(keys.tobytes())
    digest.update(sides.tobytes())
    return manifest.model_copy(update={"sha256": digest.hexdigest()})


def write_split(world: World, rows: SplitRows, recipe: Recipe) -> str:
    """Write rows.parquet and recipe.json, then split.json, and return the folder's URI.  Same split, same bytes."""
    uri = world.storage.uri("splits", rows.manifest.sha256)
    keys = pa.Array.from_buffers(pa.binary(KEY_BYTES), len(rows.keys), [None, pa.py_buffer(rows.keys.tobytes())])
    table = pa.table({"key": keys, "side": pa.array(rows.sides)})
    path = world.scratch / SPLIT_ROWS
    pq.write_table(table, path, compression="zstd", use_dictionary=["side"], write_statistics=False)
    world.storage.upload(path, f"{uri}/{SPLIT_ROWS}")
    world.storage.write(f"{uri}/{RECIPE_FILE}", recipe.json_bytes())
    world.storage.write(f"{uri}/{SPLIT_MANIFEST}", rows.manifest.model_dump_json(indent=2).encode())
    return uri


def read_split(world: World, uri: str) -> SplitRows:
    """Read a split's rows and manifest.

    Raises
    ------
    ConfigError
        When there is no whole split at `uri`.
    """
    manifest = SplitManifest.model_validate_json(world.storage.read(f"{uri}/{SPLIT_MANIFEST}"))
    table = pq.read_table(world.storage.fetch(f"{uri}/{SPLIT_ROWS}", world.scratch))
    chunks = [
        np.frombuffer(c.buffers()[1], dtype=f"S{KEY_BYTES}", count=len(c), offset=c.offset * KEY_BYTES)
        for c in table.column("key").chunks
    ]
    rows = SplitRows(manifest, np.concatenate(chunks), table.column("side").to_numpy())
    if seal(manifest, rows.keys, rows.sides).sha256 != manifest.sha256:
        raise ConfigError(f"the split at {uri} is not what its hash says", remedy="remove it and run again")
    return rows


def read_recipe(world: World, uri: str) -> Recipe:
    """Read the fitted transform of a split."""
    return Recipe.model_validate_json(world.storage.read(f"{uri}/{RECIPE_FILE}"))
