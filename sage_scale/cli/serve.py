"""`sage-scale serve`: a translator as a page and an HTTP endpoint."""

from __future__ import annotations

import ipaddress
import secrets
from typing import Annotated

import typer

from sage_scale.errors import UsageError
from sage_scale.training.run_place import model_folder
from sage_scale.untrusted.printer import tell


def serve(
    model: Annotated[
        str,
        typer.Option(
            "--model", help="A run, its model/ folder, a folder of `models export`, or hf://OWNER/NAME."
        ),
    ],
    host: Annotated[
        str, typer.Option(help="Address to listen on; any but this machine's own needs a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0: a free one.")] = 8080,
    token: Annotated[
        str,
        typer.Option(
            envvar="SAGE_TOKEN", help="Token that each request gives; else made where one is needed."
        ),
    ] = "",
    megabytes: Annotated[float, typer.Option(min=0.1, help="Largest video, MB.")] = 200.0,
    seconds: Annotated[float, typer.Option(min=1, help="Longest video, seconds.")] = 120.0,
    decoding: Annotated[int, typer.Option("--decoders", min=1, max=64, help="Videos decoded at once.")] = 2,
    device: Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1; else the best there is.")] = "",
) -> None:
    """Serve a page that translates videos, and POST /api/translate, from this machine."""
    try:
        import fastapi as _  # noqa: F401
        import uvicorn
    except ModuleNotFoundError:
        raise UsageError("serve needs FastAPI and uvicorn: pip install 'sage-scale[serve]'") from None
    from sage_scale.serving.decoders import Decoders
    from sage_scale.serving.limits import Limits

    local = host == "localhost" or _is_loopback(host)
    if not local and not token:
        token = secrets.token_urlsafe(24)
    decoders = Decoders(
        Limits(megabytes=megabytes, seconds=seconds, decoders=decoding)
    )  # it starts meanwhile
    folder = model_folder(model)
    from transformers.utils import logging

    logging.disable_progress_bar()
    from sage_scale.serving.app import make_app
    from sage_scale.translation.translate import Translator

    translator = Translator(folder, device)
    tell(f"sage-scale: {translator.trained_on}")
    app = make_app(translator, decoders, token, ("127.0.0.1", "localhost", "[::1]") if local else ())
    settings = uvicorn.Config(app, host=host, port=port, log_level="warning", server_header=False)
    server = uvicorn.Server(settings)
    try:
        bound = settings.bind_socket()
        bound.listen()  # who calls the address that is printed below waits, and is not refused
    except SystemExit:
        raise UsageError(f"{host}:{port} cannot be listened on: give another --host or --port") from None
    shown = f"[{host}]" if ":" in host else host
    query = f"/?token={token}" if token else ""
    tell(f"sage-scale: http://{shown}:{bound.getsockname()[1]}{query}  (Ctrl-C ends it)")
    server.run(sockets=[bound])


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
