"""Where rows come from: files by path, file://, s3://, http(s)://, a SQL query, a Python function.

`ingest` calls `open_source` and reads what it returns; `preflight` calls `probe`, which reads no rows.
"""

from steps.sources.opening import Opened, TableSource, open_source, other_delimiter, probe

__all__ = ["Opened", "TableSource", "open_source", "other_delimiter", "probe"]
