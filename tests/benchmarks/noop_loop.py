"""The bare loop: starts the same no-op processes one after the other, each with the value that the last one passed on.

``python -m tests.benchmarks.noop_loop STEPS``.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

NOOP = str(Path(__file__).with_name("noop.py"))


def main() -> None:
    """Run the loop."""
    value = "0"
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "value")
        for _ in range(int(sys.argv[1])):
            subprocess.run([sys.executable, NOOP, value, str(out)], check=True)
            value = out.read_text()


if __name__ == "__main__":
    main()
