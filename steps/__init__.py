"""What the stages do: one module a stage, and one module for each part of the outside world.  Knows nothing of Argo."""
