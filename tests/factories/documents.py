"""Commands as pages, batch scripts and cluster files print them, parsed by the real command line without a run."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import typer

from sage_scale.cli.main import app
from sage_scale.config import load_recipe, recipe_names
from sage_scale.training import entry

ROOT = Path(__file__).resolve().parents[2]
LAUNCHERS = {"srun", "mpirun", "torchrun", "deepspeed", "ray", "python"}
"""Programs that are given a script of launch/, or `sage-scale`, with its options."""


class Command(NamedTuple):
    """One command of a page."""

    page: str
    text: str
    """The line as printed, continued lines joined, without comment."""

    @property
    def written(self) -> str:
        """The file that its output goes to; "" without one."""
        return self.text.partition(" > ")[2]

    @property
    def words(self) -> list[str]:
        """Its words for a shell, without the placeholders `...` and `[KEY=VALUE]...`, and without `> FILE`."""
        words = shlex.split(self.text.partition(" > ")[0], comments=True)
        return [word for word in words if word != "..." and not word.startswith("[")]


def blocks(page: Path) -> Iterator[tuple[str, str]]:
    """(language, text) of each block of code: fenced, or indented by four after an empty line ("")."""
    fence, lines, before = None, list[str](), ""
    for line in [*page.read_text(encoding="utf-8").splitlines(), ""]:
        if fence is not None:
            if line.startswith("```"):
                yield fence, "\n".join(lines)
                fence, lines = None, []
            else:
                lines.append(line)
        elif line.startswith("```"):
            fence, lines = line[3:].strip(), []
        elif line.startswith("    ") and (lines or not before):
            lines.append(line[4:])
        elif lines:
            yield "", "\n".join(lines)
            lines = []
        before = line


def commands(page: Path, programs: Sequence[str]) -> list[Command]:
    """The commands of a page, or of the comments of a script, whose first word is one of `programs`.

    Variables that a block sets are put in.
    """
    found = []
    if page.suffix == ".md":
        texts = [text for language, text in blocks(page) if language in ("", "sh")]
    else:
        lines = page.read_text(encoding="utf-8").splitlines()
        texts = ["\n".join(line.lstrip("# ") for line in lines if line.startswith("#   "))]
    for text in texts:
        variables: dict[str, str] = {}
        for line in re.sub(r"\\\n\s*", "", text).splitlines():
            line = re.sub(r"(^|\s+)#.*", "", line)
            if match := re.fullmatch(r"([A-Z]+)=\"([^\"]*)\"", line):
                variables[match[1]] = match[2]
                continue
            for name, value in variables.items():
                line = line.replace(f"${name} ", f"{value} ").removesuffix(f"${name}")
            for part in line.split(" && "):
                words = part.split()
                if words and words[0].rpartition("/")[2] in programs:
                    found.append(Command(str(page.relative_to(ROOT)), " ".join(words)))
    return found


def spans(page: Path) -> list[Command]:
    """Commands of ours within sentences and tables of a page, in backticks."""
    found = re.findall(r"`(sage-scale [^`]+)`", page.read_text(encoding="utf-8"))
    return [Command(str(page.relative_to(ROOT)), " ".join(text.split())) for text in dict.fromkeys(found)]


def parse(words: Sequence[str]) -> str:
    """The verb of a command line that the real parsers accept, with its recipe and its changes.

    `words` may begin with launchers. Raises as the command would for an unknown option, recipe or key.
    """
    words = list(words)
    if words[0] == "sbatch":
        script = next(word for word in words if word.endswith(".sbatch"))
        assert (ROOT / script).is_file()
        given = words[words.index(script) + 1 :]
        words = ["sage-scale", *(["precompute"] if "preprocess" in script else []), *given]
    script = next((word for word in words if re.search(r"launch/\w+\.py$", word)), "")
    start = (
        words.index(script)
        if script
        else next(i for i, word in enumerate(words) if word.endswith("sage-scale"))
    )
    assert start == 0 or words[0].rpartition("/")[2] in LAUNCHERS, words
    given = [word for word in words[start + 1 :] if word != "--"]
    if script:
        assert (ROOT / script).is_file()
        verb = Path(script).stem
        if verb != "preprocess":
            options = entry._parser(verb).parse_intermixed_args(given)
            _check_recipe(options.recipe, options.overrides)
            return verb
        given = ["precompute", *given]
    command, names = typer.main.get_command(app), []
    context = command.make_context("sage-scale", given)
    while True:
        rest = (
            [*context._protected_args, *context.args] if hasattr(context, "_protected_args") else context.args
        )
        if not hasattr(command, "resolve_command"):
            break
        name, command, rest = command.resolve_command(context, rest)
        names.append(name)
        context = command.make_context(name, rest, parent=context)
    recipe = context.params.get("recipe") or ""
    changes = context.params.get("overrides") or ()
    _check_recipe(recipe if isinstance(recipe, str) else "", changes)
    return " ".join(names)


def _check_recipe(name: str, changes: Sequence[str]) -> None:
    known = name if name in recipe_names() else "demo"
    assert known == name or name in ("", "RECIPE") or "/" in name, f"no recipe {name}"
    load_recipe(known, list(changes))
