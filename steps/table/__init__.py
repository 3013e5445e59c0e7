"""From bytes to the typed table: reading, fitting cells to types, canonical form, hash, rules.  Called by `ingest`.

`chunk` is what the readers (`csv_blocks`, `csv_reader`, `arrow_reader`) make, cell types are decided in `cells`, the
rules in `rules` and `uniqueness`, the hash in `digest`, and `assembly` runs it all in parallel, in order.
"""
