"""All that is promised about speed and memory, as ratios measured in one run: ``make benchmark``.

``python -m tests.benchmarks [PART ...] [--quick] [--folder DIR]`` prints a table in Markdown.  The parts: `runner`
(nine and ninety no-op steps beside a bare loop), `stages` (five stages beside one process), `ingest` (beside duckdb),
`memory` (a table of 3 GB; train alone takes minutes), `run` (`retrain run`, fresh and unchanged), `help`, `ledger`.
With ``--quick`` tables are a tenth as long and everything is done once, so that start-up outweighs work.  Each ratio is
of medians on the clock; in brackets, of processors' time.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from contracts.settings import desk, variable
from tests.benchmarks import desk_run
from tests.benchmarks import ledger as of_ledger
from tests.benchmarks.measure import ROOT, Cost, by_turns, clean, cost, machine

PYTHON = sys.executable
RETRAIN = str(Path(PYTHON).with_name("retrain"))
Row = tuple[str, str, str]
"""What was measured, the value, the limit."""


@dataclass(frozen=True)
class Bench:
    """Where the benchmarks work, and how long."""

    folder: Path
    quick: bool

    @property
    def runs(self) -> int:
        """How often each command is timed."""
        return 1 if self.quick else 3

    def table(self, rows: int) -> Path:
        """Return the pipeline over a table of so many rows, made in a process of its own: it needs much memory."""
        rows = rows // 10 if self.quick else rows
        folder = self.folder / f"rows-{rows}"
        words = [PYTHON, "-m", "tests.benchmarks.million", str(rows), str(folder)]
        subprocess.run(words, check=True, env=clean(), stdout=subprocess.DEVNULL)
        return folder / "table.yaml"


def runner(bench: Bench) -> Iterator[Row]:
    """No-op steps beside a loop that starts the same processes."""
    commands = {
        (kind, steps): [PYTHON, "-m", f"tests.benchmarks.noop_{kind}", str(steps)]
        for kind in ("loop", "steps")
        for steps in (9, 90)
    }
    found = by_turns(commands, 1 if bench.quick else 7, bench.folder)

    def each(kind: str) -> float:
        return (found[kind, 90].seconds - found[kind, 9].seconds) / 81 * 1000

    yield "nine no-op steps / bare loop", found["steps", 9].ratio(found["loop", 9]), "1.5"
    own = f"{each('steps') - each('loop'):.1f} ms (with its process {each('steps'):.1f} ms)"
    yield "each further step, 90 against 9, beyond its process", own, "15 ms"


def stages(bench: Bench) -> Iterator[Row]:
    """Five stages on a million rows beside one process that does the same work."""
    pipeline, homes = bench.table(1_000_000), bench.folder / "homes"
    table = str(pipeline.with_name("table.csv"))
    words = {
        "one process": ["tests.benchmarks.one_process", table, str(homes / "one")],
        "stages": ["tests.benchmarks.five_stages", str(pipeline), str(homes / "stages")],
        "warm": ["tests.benchmarks.five_stages", str(pipeline), str(homes / "warm"), "--warm"],
    }
    for name in words:
        (bench.folder / f"{name}.log").unlink(missing_ok=True)

    commands = {name: [PYTHON, "-m", *command] for name, command in words.items()}
    found = by_turns(
        commands, 1 if bench.quick else 2, bench.folder, lambda _: shutil.rmtree(homes, ignore_errors=True)
    )
    one, cold, warm = (_said(bench.folder / f"{name}.log") for name in words)
    if any(cold[key] != warm[key] for key in cold if key != "seconds"):
        sys.exit(f"a warm parent changed the results:\n{cold}\n{warm}")
    yield "five stages / one process, 1M rows x 30", found["stages"].ratio(found["one process"]), "1.5"
    yield "the same, forked from a warm parent", found["warm"].ratio(found["one process"]), "1.2"
    yield "test roc_auc: stages, one process", f"{cold['roc_auc']:.4f}, {one['roc_auc']:.4f}", ""


def ingest(bench: Bench) -> Iterator[Row]:
    """Ingest beside duckdb's plain conversion."""
    pipeline = bench.table(1_000_000)
    folder = pipeline.parent
    commands = {
        "duckdb": [PYTHON, "-m", "tests.benchmarks.csv_to_parquet", "table.csv", "table.parquet"],
        "ingest": _stage("ingest"),
    }
    home = folder / "home"
    found = by_turns(
        commands, bench.runs, folder, between=lambda _: shutil.rmtree(home, ignore_errors=True), **_settings(pipeline)
    )
    yield "ingest with validation and hash / duckdb's CSV to Parquet", found["ingest"].ratio(found["duckdb"]), "1.4"
    yield "ingest's peak, 1M rows", f"{found['ingest'].peak:.0f} MiB (duckdb {found['duckdb'].peak:.0f})", ""


def memory(bench: Bench) -> Iterator[Row]:
    """Peaks of ingest, features and train on a table of 3 GB."""
    pipeline = bench.table(15_000_000)
    shutil.rmtree(pipeline.parent / "home", ignore_errors=True)
    size = pipeline.with_name("table.csv").stat().st_size / 1e9
    peak = _costs(pipeline)
    yield f"ingest's peak, {size:.1f} GB of CSV", f"{peak['ingest'].peak:.0f} MiB", "600 MiB"
    yield "features' peak", f"{peak['features'].peak:.0f} MiB", "1024 MiB"
    yield "train's peak", f"{peak['train'].peak:.0f} MiB", ""


def run(bench: Bench) -> Iterator[Row]:
    """`retrain run`, fresh and unchanged, and where the time goes."""
    fresh, unchanged = desk_run.medians(ROOT / "adult.yaml", bench.runs)
    yield "unchanged run / fresh run, adult.yaml", desk_run.ratios(fresh, unchanged), "0.5"
    million = desk_run.measure(bench.table(1_000_000))
    yield "unchanged run / fresh run, 1M rows", desk_run.ratios(*million), "0.25"
    yield "`retrain run adult.yaml`, fresh", f"{fresh['total']:.1f} s (work {fresh['cpu']:.1f} s)", "aim 20 s"
    shares = ", ".join(f"{name} {seconds:.1f}" for name, seconds in fresh.items() if name not in ("total", "cpu"))
    yield "its stages, s", shares, ""


def help_page(bench: Bench) -> Iterator[Row]:
    """`retrain --help`."""
    found = by_turns({"help": [RETRAIN, "--help"]}, 5, bench.folder)["help"]
    yield "`retrain --help`", f"{found.seconds:.2f} s (work {found.work:.2f} s)", "aim 0.3 s"


def ledger(bench: Bench) -> Iterator[Row]:
    """A ledger of 10,000 entries, its evidence as long as a gate's."""
    entries, runs = (1_000, 3) if bench.quick else (10_000, 9)
    bench.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=bench.folder) as folder:
        one = of_ledger.filled(Path(folder), entries)
        moment = of_ledger.START + timedelta(minutes=entries // 2)
        clock, work = of_ledger.seconds(lambda: one.verify(of_ledger.MODEL), runs)
        yield f"{entries:,} entries verified", f"{clock:.2f} s (work {work:.2f} s)", "1 s"

        def answer() -> None:
            serving = one.serving_at(of_ledger.MODEL, moment)
            assert serving is not None
            one.history(of_ledger.MODEL, serving.version, moment)

        for what, (clock, work), limit in (
            ("what served at a moment, and its history", of_ledger.seconds(answer, 30), "50 ms"),
            ("an entry more", of_ledger.added(one, 50), "5 ms"),
        ):
            yield what, f"{clock * 1000:.1f} ms (work {work * 1000:.1f} ms)", limit


PARTS: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "runner": runner, "stages": stages, "ingest": ingest, "memory": memory, "run": run, "help": help_page,
    "ledger": ledger,
}  # fmt: skip


def _stage(name: str, *words: str) -> list[str]:
    as_of = ["--as-of", "2026-01-01T00:00:00Z"] if name == "ingest" else []
    return [PYTHON, "-m", "steps", name, *as_of, *words]


def _settings(pipeline: Path) -> dict[str, str]:
    folder = pipeline.parent
    more = {variable("pipeline"): str(pipeline), variable("outputs"): str(folder / "out")}
    return desk(folder / "home", folder) | more | {"TMPDIR": str(folder)}


def _costs(pipeline: Path) -> dict[str, Cost]:
    """Return the cost of ingest, features and train, each a process of its own."""
    environment, found = clean(**_settings(pipeline)), {}

    def run_stage(name: str, *words: str) -> dict[str, str]:
        found[name] = cost(_stage(name, *words), environment, pipeline.parent, name)
        return {path.name: path.read_text() for path in (pipeline.parent / "out").iterdir()}

    made = run_stage("ingest")
    dataset = ("--dataset", made["dataset"], "--dataset-sha256", made["dataset-sha256"])
    split = run_stage("features", *dataset)
    run_stage("train", *dataset, "--split", split["split"], "--split-sha256", split["split-sha256"])
    return found


def _said(log: Path) -> dict[str, object]:
    """Return the line of JSON among what a command printed."""
    return next(json.loads(line) for line in reversed(log.read_text().splitlines()) if line.startswith("{"))


def main() -> None:
    """Measure the parts asked for and print the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--folder", type=Path, help="keeps the tables; a temporary one when left out")
    options = parser.parse_args()
    if unknown := sorted(set(options.parts) - set(PARTS)):
        parser.error(f"no such part: {', '.join(unknown)}")
    print(f"{machine()}\n\n| | measured | at most |\n|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        bench = Bench((options.folder or Path(temporary)).resolve(), options.quick)
        for part in options.parts or PARTS:
            for row in PARTS[part](bench):
                print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
