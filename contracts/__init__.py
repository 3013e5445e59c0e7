"""What all sides agree on: errors, stages, the pipeline file, settings, names.  Imports nothing of ours but itself."""
