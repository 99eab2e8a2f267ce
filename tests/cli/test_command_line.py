"""What a person at a terminal meets: help, one clear line for each mistake, and the exit codes."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys

import pytest
import typer

from sage_scale import errors
from sage_scale.cli import main as command_line

PROGRAM = [sys.executable, "-m", "sage_scale.cli.main"]


def call(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PROGRAM, *arguments], capture_output=True, text=True, env={**os.environ, **environment}, timeout=60
    )


@pytest.fixture
def verb(monkeypatch, tmp_path):
    """Mounts a verb `trial` that does what a test wants, in this process."""

    def mount(function):
        (tmp_path / "trial_verb.py").write_text("")
        monkeypatch.syspath_prepend(tmp_path)
        module = type(sys)("trial_verb")
        module.trial = function  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "trial_verb", module)
        monkeypatch.setitem(command_line.VERBS, "trial", "trial_verb:trial")

    return mount


def test_help_names_every_verb():
    result = call("--help")
    assert result.returncode == 0
    verbs = "demo corpus precompute shards pretrain finetune evaluate translate report recipe models doctor"
    for name in verbs.split():
        assert re.search(rf"\b{name}\b", result.stdout), name


def test_no_verb_imports_heavy_packages_before_it_runs():
    heavy = {
        "torch",
        "ray",
        "transformers",
        "deepspeed",
        "spacy",
        "boto3",
        "av",
        "matplotlib",
        "pandas",
        "numpy",
    }
    code = (
        "import sys; from sage_scale.cli import main\n"
        "for verb in main.VERBS:\n"
        "    code = main.run([verb, '--help'])\n"
        f"    print(verb, code, *sorted({heavy!r} & set(sys.modules)), file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.stderr.splitlines() == [f"{verb} 0" for verb in command_line.VERBS]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["recpe", "show", "demo"], "did you mean 'recipe'"),
        (["nonsense"], "known: demo, corpus"),
        (["report"], "Missing argument"),
        (["report", "--sideways", "x"], "No such option"),
        (["pretrain", "--run", "r", "--data", "d", "--ranks", "many"], "--ranks"),
        (["pretrain", "--run", "no-such-run", "--data", "d"], "--recipe"),
        (
            ["pretrain", "--run", "r", "--data", "d", "--recipe", "no-such-recipe"],
            "no recipe 'no-such-recipe'",
        ),
        (["recipe", "explain", "alpha"], "did you mean 'clcl.alpha'"),
        (["report", "no-such-run"], "no-such-run"),
    ],
)
def test_wrong_usage_is_one_line_and_code_2(capsys, arguments, expected):
    assert command_line.run(arguments) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("sage-scale: ")
    assert expected in printed
    assert len(printed.strip().splitlines()) == 1, printed


@pytest.mark.parametrize(
    ("error", "code", "expected"),
    [
        (errors.UsageError("no folder x"), 2, "sage-scale: no folder x"),
        (errors.TooManyRejects("9 of 10 clips were rejected"), 3, "sage-scale: 9 of 10 clips were rejected"),
        (errors.UnitsOpen("unit 4 is open"), 4, "sage-scale: unit 4 is open"),
        (errors.StorageError("bucket\n  b is gone"), 1, "sage-scale: bucket b is gone"),
        (errors.ClipRejected("too-short", "3 frames"), 1, "too-short: 3 frames"),
        (OSError(errno.ENOSPC, "No space left on device", "/x/y.tar"), 1, "the disk is full at /x/y.tar"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), 1, "sage-scale: /x: Permission denied"),
        (
            ModuleNotFoundError("No module named 'whatever'", name="whatever"),
            1,
            "'whatever' is not installed",
        ),
        pytest.param(ZeroDivisionError("division by zero"), 1, "--debug", marks=pytest.mark.fault),
        (typer.Exit(4), 4, ""),
        (KeyboardInterrupt(), 130, "sage-scale: interrupted"),
    ],
)
def test_errors_become_one_line_and_their_code(verb, capsys, error, code, expected):
    def trial():
        raise error

    verb(trial)
    assert command_line.run(["trial"]) == code
    printed = capsys.readouterr().err
    assert expected in printed
    assert len(printed.strip().splitlines()) <= 1
    assert "Traceback" not in printed


@pytest.mark.fault
def test_debug_shows_the_traceback_wherever_it_stands(verb, capsys):
    def trial():
        raise ZeroDivisionError("division by zero")

    verb(trial)
    with pytest.raises(SystemExit) as leaving:
        command_line.main(["trial", "--debug"])
    assert leaving.value.code == 1
    assert "in trial" in capsys.readouterr().err


def test_debug_by_environment():
    result = call("recipe", "show", "no-such-recipe", SAGE_DEBUG="1")
    assert result.returncode == 2
    assert "Traceback" in result.stderr


def test_success_is_code_0_whatever_a_verb_returns(verb):
    verb(lambda: {"bleu4": 30.0})
    assert command_line.run(["trial"]) == 0
    verb(lambda: True)
    assert command_line.run(["trial"]) == 0


def test_a_reader_that_leaves_early_causes_no_noise():
    result = subprocess.run(
        ["bash", "-c", 'set -o pipefail; "$0" -m sage_scale.cli.main recipe keys | head -1', sys.executable],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert result.stdout == "name=custom\n"
    assert result.stderr == ""


def test_ctrl_c_is_one_line_and_code_130(tmp_path):
    script = tmp_path / "slow.py"
    script.write_text(
        "import atexit, sys, time, types\n"
        "from sage_scale.cli import main\n"
        "atexit.register(lambda: (print('ending', flush=True), time.sleep(0.3)))\n"
        "slow = types.ModuleType('slow_verb')\n"
        "def trial():\n    print('started', flush=True)\n    time.sleep(30)\n"
        "slow.trial = trial\nsys.modules['slow_verb'] = slow\nmain.VERBS['trial'] = 'slow_verb:trial'\n"
        "main.main(['trial'])\n"
    )
    child = subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert child.stdout is not None and child.stdout.readline() == "started\n"
    child.send_signal(signal.SIGINT)
    assert child.stdout.readline() == "ending\n"
    child.send_signal(signal.SIGINT)  # an impatient one, while Python or Ray ends
    _, printed = child.communicate(timeout=20)
    assert child.returncode == 130
    assert printed == "sage-scale: interrupted; run the same command again to go on\n"


def test_a_verb_that_has_loaded_torch_ends_at_once_with_all_written(tmp_path):
    """Threads, handlers and output end as ever; garbage is left, here an object that would speak when collected."""
    script = tmp_path / "ends.py"
    script.write_text(
        "import atexit, sys, threading, time, types\n"
        "from sage_scale.cli import main\n"
        "class Speaking:\n    def __del__(self):\n        print('collected')\n"
        "kept = Speaking()\n"
        "atexit.register(lambda: print('handler'))\n"
        "def trial():\n"
        "    threading.Thread(target=lambda: (time.sleep(0.1), print('thread'))).start()\n"
        "    print('verb')\n    return 3\n"
        "sys.modules['torch'] = types.ModuleType('torch')\n"
        "ends = types.ModuleType('ends_verb')\nends.trial = trial\nsys.modules['ends_verb'] = ends\n"
        "main.VERBS['trial'] = 'ends_verb:trial'\nsys.argv = ['sage-scale', 'trial']\nmain.main()\n"
    )
    result = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout) == (3, "verb\nthread\nhandler\n"), result.stderr


def test_version_is_the_packages():
    from importlib.metadata import version

    result = call("--version")
    assert (result.returncode, result.stdout.strip()) == (0, f"sage-scale {version('sage-scale')}")
