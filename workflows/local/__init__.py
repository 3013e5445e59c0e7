"""Runs a compiled Argo manifest on this machine: each container template becomes a local process.

Three parts, apart from each other:

- semantics: `pratt`, `expr`, `when`, `depends` (the languages), `templating`, `parameters`, `manifest` (what is read
  and what is refused), `retry` (whether to try again), `schedule` (the next state of a run, as a pure function);
- processes: `pods` (one container as a process), `guard` (no process outlives the runner), `locks`;
- state: `state` (a run on disk after every transition).

`runner` joins them: `execute` and `resume`, called by the command line.
"""
