"""Serve one packaged model: ``python -m serving --package DIR --version N ...``.  Started by the holder and the image.

It loads the package, if that is whole and signed by one of the keys in ``RETRAIN_MODEL_KEYS``, and predicts its example
first; only then does it accept connections and write ``ready`` to ``--ready-fd``.  With ``--records`` it keeps sampled
predictions.  SIGTERM drains.  When the other end of ``--life-fd`` closes, its holder is gone and it drains too.
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import signal
import socket
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path

LOG = logging.getLogger("retrain.server")


def main(argv: list[str] | None = None) -> int:
    """Serve until told to end."""
    options = _parser().parse_args(argv)
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(process)d %(levelname)s %(message)s", stream=sys.stderr
    )
    if options.life_fd is not None:
        threading.Thread(target=_end_with_holder, args=(options.life_fd,), daemon=True).start()

    # What is imported and loaded stays: going through it over and over would cost a fifth of the start.
    gc.disable()
    # Below the life line: a model whose import or loading hangs ends with its holder all the same.
    from contracts.errors import StageError
    from contracts.names import MODEL_KEYS
    from serving.app import create_app
    from serving.model import PackagedModel
    from serving.model_keys import trusted
    from serving.records import Recording, Records
    from serving.schemas import ModelAnswer
    from serving.server import DrainingServer, listen
    from serving.signature import check, subject

    try:
        check(options.package, subject(options.name, options.run_id), trusted(os.environ.get(MODEL_KEYS, "")))
        model = PackagedModel.load(options.package)
        identity = ModelAnswer(
            name=options.name, version=options.version, run_id=options.run_id,
            dataset_sha256=options.dataset_sha256, since=datetime.now(UTC),
        )  # fmt: skip
        recording = Recording(options.records, options.record_share, options.record_inputs) if options.records else None
        records = Records(recording, model.manifest, identity) if recording else None
        app = create_app(model, identity, records)
    except StageError as error:
        LOG.error("version %d does not load: %s", options.version, error.message)
        for finding in error.findings:
            LOG.error("  %s", finding)
        return error.row.exit_code

    def ready() -> None:
        LOG.info("version %d of %s answers", options.version, options.name)
        if options.ready_fd is not None:
            os.write(options.ready_fd, b"ready")
            os.close(options.ready_fd)

    listener = socket.socket(fileno=options.fd) if options.fd is not None else listen(options.host, options.port)
    server = DrainingServer(app, drain_seconds=options.drain_seconds, on_ready=ready)
    gc.freeze()
    gc.enable()
    # uvicorn raises the signal anew when it has drained: that is a clean end
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        server.run(sockets=[listener])
    finally:
        if records is not None:
            records.close()
    return 0


def _end_with_holder(life_fd: int) -> None:
    os.read(life_fd, 1)
    os.kill(os.getpid(), signal.SIGTERM)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m serving", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--package", type=Path, required=True, help="folder of the packaged model")
    parser.add_argument("--name", required=True, help="pipeline")
    parser.add_argument("--version", type=int, required=True, help="registered version")
    parser.add_argument("--run-id", required=True, help="MLflow run that trained it")
    parser.add_argument("--dataset-sha256", required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--fd", type=int, help="listening socket that was handed down; instead of host and port")
    parser.add_argument("--ready-fd", type=int, help="where `ready` is written when connections are accepted")
    parser.add_argument("--life-fd", type=int, help="pipe whose closing ends this process")
    parser.add_argument("--drain-seconds", type=float, default=15.0)
    parser.add_argument("--records", type=Path, help="folder of prediction records; without it none are kept")
    parser.add_argument("--record-share", type=float, default=1.0, help="share of the requests that are recorded")
    parser.add_argument("--record-inputs", action="store_true", help="with their rows, but for sensitive columns")
    return parser


if __name__ == "__main__":
    sys.exit(main())
