"""`sage-scale`: finds the verb, runs it, and turns every error into one line and an exit code.

A verb's file is imported when the verb is asked for, and imports torch, ray and the like inside its functions, so that
start-up stays fast.

Exit codes: 0 done; 2 wrong usage; 3 too many rejects; 4 work units left open; 130 interrupted; 1 anything else.
"""

from __future__ import annotations

import atexit
import contextlib
import difflib
import errno
import os
import pkgutil
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from sage_scale import errors
from sage_scale.untrusted.display import message_line, shortened
from sage_scale.untrusted.files import text_fault
from sage_scale.untrusted.printer import echo, tell

VERBS = {
    "demo": "sage_scale.cli.results:demo",
    "corpus": "sage_scale.cli.corpus:app",
    "keypoints": "sage_scale.cli.keypoints:keypoints",
    "segment": "sage_scale.cli.segment:app",
    "precompute": "sage_scale.cli.precompute:precompute",
    "shards": "sage_scale.cli.shards:app",
    "pretrain": "sage_scale.cli.train:pretrain",
    "finetune": "sage_scale.cli.train:finetune",
    "evaluate": "sage_scale.cli.results:evaluate",
    "score": "sage_scale.cli.score:score",
    "ablate": "sage_scale.cli.ablate:ablate",
    "translate": "sage_scale.cli.translate:translate",
    "serve": "sage_scale.cli.serve:serve",
    "report": "sage_scale.cli.results:report",
    "recipe": "sage_scale.cli.recipe:app",
    "models": "sage_scale.cli.models:app",
    "plan": "sage_scale.cli.plan:plan",
    "bench": "sage_scale.cli.bench:app",
    "doctor": "sage_scale.cli.doctor:doctor",
}
"""Every verb, in the order of the work, and its function or Typer application."""

MAX_LINE = 2_000
"""Characters that are printed of an error."""
ADVICE = "this is a fault in sage-scale; run again with --debug (or SAGE_DEBUG=1) for the traceback"
SERVICE_FAULTS = ("BotoCoreError", "ClientError", "RayError")
"""Base classes of errors of services, by name: nothing heavy is imported to recognise them."""


class Verbs(TyperGroup):
    """The group of all verbs, each imported when it is asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in VERBS:
            return None
        target = pkgutil.resolve_name(VERBS[cmd_name])
        if not isinstance(target, typer.Typer):
            function, target = target, typer.Typer(add_completion=False)
            target.command(cmd_name)(function)
        command = typer.main.get_command(target)
        command.name = cmd_name
        return command

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] not in VERBS and not args[0].startswith("-"):
            near = difflib.get_close_matches(args[0], VERBS, n=1)
            known = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(VERBS)}"
            raise errors.UsageError(f"no verb '{args[0]}'; {known}")
        return super().resolve_command(ctx, args)


app = typer.Typer(cls=Verbs, add_completion=False)


def _version(show: bool) -> None:
    if show:
        from importlib.metadata import version

        echo(f"sage-scale {version('sage-scale')}")
        raise typer.Exit()


@app.callback()
def about(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show tracebacks; anywhere in the line, like SAGE_DEBUG=1.")
    ] = False,
) -> None:
    """Signing videos in, translations out: SAGE and Sign2GPT from a laptop to a cluster.

    Start with `sage-scale demo`; `sage-scale doctor` says what this machine can do.
    """


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line and leave with its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = errors.debugging() or "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"] or ["--help"]
    code = run(arguments, debug=debug)
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _silence(sys.stdout)
    if code == 130:  # another Ctrl-C would print what it interrupts of Python's and Ray's own end
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    pool = sys.modules.get("sage_scale.precompute.ray_session")
    if pool is not None and pool.ray_ended():
        sys.stderr.flush()
        os._exit(code)  # Ray's own end at exit waits for its killed server, for half a minute
    if argv is None and "torch" in sys.modules:
        # All is written; the interpreter's last collection of garbage takes a second with torch and transformers.
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)
    sys.exit(code)


def run(arguments: Sequence[str], debug: bool = False) -> int:
    """Returns the exit code of one command line. Errors are printed as one line `sage-scale: ...` on stderr."""
    try:
        for argument in arguments:
            if fault := text_fault(argument):
                raise errors.UsageError(f"the argument '{shortened(argument)}' is not UTF-8: it has {fault}")
        result = app(args=list(arguments), prog_name="sage-scale", standalone_mode=False)
        code = result if isinstance(result, int) and not isinstance(result, bool) else 0
        if code == 130:  # typer turns Ctrl-C into this exit code
            return _interrupted()
        return code
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except (KeyboardInterrupt, typer.Abort):
        return _interrupted()
    except BrokenPipeError:  # the reader (`| head`) has had enough
        _silence(sys.stdout)
        return 1
    except Exception as error:
        if debug:
            tell(*traceback.format_exc().splitlines())
        if type(error).__name__ == "NoArgsIsHelpError":
            error.show()  # type: ignore[attr-defined]
            return 2
        _say(message(error))
        return getattr(error, "exit_code", 1)


def message(error: Exception) -> str:
    """Returns an error in one line: what happened, where, and what to do next."""
    if isinstance(error, errors.SageError):
        return str(error)
    if isinstance(error, errors.ClipRejected):
        return f"the clip cannot be used: {error}"
    if hasattr(error, "format_message"):  # a wrong option or argument, from typer
        context = getattr(error, "ctx", None)
        path = getattr(context, "command_path", "sage-scale")
        return f"{str(error.format_message()).rstrip('.')} (see {path} --help)"
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        where = f" at {error.filename}" if error.filename else ""
        return f"the disk is full{where}: make room and run the same command again"
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, MemoryError):
        return "out of memory: lower the batch or chunk size, or the number of actors"
    if isinstance(error, ModuleNotFoundError) and error.name and not error.name.startswith("sage_scale"):
        return f"the package '{error.name}' is not installed; `sage-scale doctor` says what is missing"
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    if any(base.__name__ in SERVICE_FAULTS for base in type(error).__mro__):
        return f"{text} (--debug shows the traceback)"
    return f"{text} ({ADVICE})"


def _interrupted() -> int:
    _say("interrupted; run the same command again to go on")
    return 130


def _say(text: str) -> None:
    try:
        tell(f"sage-scale: {shortened(message_line(text), MAX_LINE)}")
    except BrokenPipeError:
        _silence(sys.stderr)


def _silence(stream: Any) -> None:
    """Point a stream whose reader has gone at /dev/null, so that the interpreter's last flush is quiet."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


if __name__ == "__main__":
    main()
