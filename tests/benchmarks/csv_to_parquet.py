"""What an idiomatic CSV-to-Parquet takes: one statement of duckdb, types inferred, nothing checked, nothing hashed.

``python -m tests.benchmarks.csv_to_parquet TABLE.csv OUT.parquet``.
"""

import sys

import duckdb

if __name__ == "__main__":
    duckdb.sql(f"COPY (FROM read_csv('{sys.argv[1]}')) TO '{sys.argv[2]}' (FORMAT parquet)")
