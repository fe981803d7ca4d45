"""`pocketrank serve`: the app under uvicorn, in one process or several."""

import argparse
import gc
import logging
import os
import socket
import sys
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn
from uvicorn.supervisors import Multiprocess

from pocketrank.config import Project
from pocketrank.errors import BadInput, UsageError
from pocketrank_cli.command import Report
from pocketrank_features.serving.guard import GuardedProtocol
from pocketrank_features.serving.tokens import Verifier, development_secret

# Feast imports torch wherever that is installed, and nothing here uses it: 400 MB and some seconds of every worker.
_HIDES = "torch" not in sys.modules
if _HIDES:
    sys.modules["torch"] = None  # type: ignore[assignment]
from pocketrank_features.serving.app import Edge, make_app  # noqa: E402

if _HIDES:
    del sys.modules["torch"]

PROJECT, DEVELOPMENT = "POCKETRANK_SERVE_PROJECT", "POCKETRANK_SERVE_DEVELOPMENT"
WORKERS = 1024  # at most
MOST_AT_ONCE = 4096  # connections of a worker; more are told to come again


def serve(arguments: argparse.Namespace) -> Report:
    """Serve until interrupted.

    Raises:
        BadConfig: no keys to verify tokens by. NotReady, BadBundle: nothing to serve.
        UsageError: half a certificate. BadInput: the address cannot be had.
    """
    project = Project.open(arguments.project)
    if bool(arguments.certificate) != bool(arguments.private_key):
        raise UsageError("serve: --certificate and --private-key belong together; give both, or neither behind a proxy")
    for name, value, least, most in (("port", arguments.port, 0, 65535), ("workers", arguments.workers, 1, WORKERS)):
        if not least <= value <= most:
            raise UsageError(f"serve: --{name} is {value}, wanted {least} to {most:,}")
    for option, file in (("certificate", arguments.certificate), ("private-key", arguments.private_key)):
        if file and not Path(file).is_file():
            raise BadInput(f"serve: --{option} {file}: no such file; name one in PEM")
    logging.basicConfig(stream=sys.stderr, format="%(message)s", level=logging.WARNING)
    os.environ[PROJECT] = str(project.root.resolve())
    os.environ[DEVELOPMENT] = "1" if arguments.development else ""
    options: dict[str, Any] = {
        "host": arguments.host,
        "port": arguments.port,
        "http": GuardedProtocol,
        "ws": "none",
        "lifespan": "off",
        "access_log": False,  # addresses and what they asked for are nobody's business
        "server_header": False,
        "log_level": "warning",
        "limit_concurrency": MOST_AT_ONCE,
        "timeout_keep_alive": 15,
        "timeout_graceful_shutdown": 10,
        "ssl_certfile": arguments.certificate,
        "ssl_keyfile": arguments.private_key,
    }
    app = app_from_environment()  # here, too, where there are more: what is wrong is said once, and all end
    with _listening(arguments.host, arguments.port) as listener:
        host = f"[{arguments.host}]" if ":" in arguments.host else arguments.host
        where = f"{'https' if arguments.certificate else 'http'}://{host}:{listener.getsockname()[1]}"
        if arguments.workers > 1:
            config = uvicorn.Config(f"{__name__}:app_from_environment", factory=True, **options)
            config.workers = arguments.workers
            run = Multiprocess(config, [listener]).run
        else:
            run = partial(uvicorn.Server(uvicorn.Config(app, **options)).run, sockets=[listener])
        trial = "; takes tokens of `pocketrank token`, so for development only" if arguments.development else ""
        print(f"serving {where}{trial}", file=sys.stderr, flush=True)  # noqa: T201
        run()
    return Report({"served": where})


def app_from_environment() -> Edge:
    """What a worker serves: the project that the environment names."""
    project = Project.open(Path(os.environ[PROJECT]))
    secret = development_secret(project) if os.environ.get(DEVELOPMENT) else None
    app = make_app(project, Verifier(project.sync, project.root, secret))
    gc.collect()
    gc.freeze()  # Feast's 200,000 objects stay; to look through them again and again keeps phones waiting for .2 s
    return app


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise BadInput(f"{host}:{port}: {error.strerror or error}; name another --port or --host") from None
    listener.set_inheritable(True)
    return listener
