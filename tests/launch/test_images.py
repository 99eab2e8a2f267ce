"""Dockerfiles without a Docker daemon: the files they copy, users, layers, and the versions that their page names."""

from __future__ import annotations

import fnmatch
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "launch" / "docker").glob("Dockerfile.*"))


def instructions(file: Path) -> list[tuple[str, str]]:
    """(word, rest) of each instruction, continued lines joined, comments left out."""
    lines = [
        line for line in file.read_text(encoding="utf-8").splitlines() if not line.lstrip().startswith("#")
    ]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    found = [line.partition(" ") for line in joined.splitlines() if line.strip()]
    return [(word, rest.strip()) for word, _, rest in found]


def in_context(path: str) -> bool:
    """Whether .dockerignore leaves a path of the checkout in the build's context: its last fitting line counts."""
    kept = True
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        pattern, wanted = line.strip().removeprefix("!"), line.startswith("!")
        parts = [path, *(str(parent) for parent in Path(path).parents)]
        if (
            pattern
            and not pattern.startswith("#")
            and any(
                fnmatch.fnmatchcase(part, pattern.removeprefix("**/")) for part in [*parts, Path(path).name]
            )
        ):
            kept = wanted
    return kept


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.suffix)
def test_all_that_a_dockerfile_copies_is_there_and_in_the_context(file):
    copied = {name for word, rest in instructions(file) if word == "COPY" for name in rest.split()[:-1]}
    assert copied and all((ROOT / name).exists() for name in copied)
    assert all(in_context(name) for name in copied)
    # What a build of the package needs, as in a source distribution.
    assert copied >= {
        "pyproject.toml",
        "setup.py",
        "MANIFEST.in",
        "README.md",
        "LICENSE",
        "launch",
        "sage_scale",
    }
    code = (
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "sage_scale").rglob("*.*")
        if "__pycache__" not in path.parts
    )
    assert all(map(in_context, code))


def test_nothing_else_is_sent_to_the_builder():
    assert not any(
        map(
            in_context,
            (".git/config", ".venv/bin/python", "runs/a/model", "tests/conftest.py", ".env", "docs"),
        )
    )
    assert not in_context("sage_scale/__pycache__")


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.suffix)
def test_a_dockerfile_keeps_the_rules(file):
    steps = instructions(file)
    words = [word for word, _ in steps]
    assert words[:2] == ["ARG", "FROM"] and set(words) <= {
        "ARG",
        "FROM",
        "RUN",
        "ENV",
        "WORKDIR",
        "COPY",
        "USER",
        "ENTRYPOINT",
        "CMD",
    }
    of = {word: [rest for each, rest in steps if each == word] for word in words}
    assert re.fullmatch(r"python:\$\{PYTHON\}-slim-[a-z]+", of["FROM"][0]), "a named release, never latest"
    # Kubernetes checks runAsNonRoot by a number; signals reach an init process only by the exec form.
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", of["USER"][-1]) and words.index("USER") > len(words) - 5
    assert of["ENTRYPOINT"] == ['["tini", "--"]'] and of["CMD"][0].startswith('["sage-scale"')
    for run in of["RUN"]:
        if "apt-get install" in run:
            assert (
                "apt-get update" in run
                and "--no-install-recommends" in run
                and "rm -rf /var/lib/apt/lists/*" in run
            )
        for install in re.findall(r"pip install [^&]*", run):
            assert "-c constraints.txt" in install or "--no-deps" in install
        assert "sudo" not in run and "| sh" not in run
    # No secret in a layer.
    assert not re.search(r"(?i)(token|password|secret|access_key)", "\n".join(of["ARG"] + of["ENV"]))


def test_the_page_of_images_names_the_versions_that_are_installed():
    page = (ROOT / "launch" / "images.md").read_text(encoding="utf-8")
    pinned = dict(
        re.findall(r"^(torch|triton)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    )
    assert f"| torch {pinned['torch']} from |" in page and f"`triton=={pinned['triton']}`" in page
    arguments = {line.split("=")[0] for file in FILES for word, line in instructions(file) if word == "ARG"}
    assert arguments == set(re.findall(r"^\| `([A-Z_]+)` \|", page, re.MULTILINE))


def test_the_doctor_gives_the_drivers_of_the_page():
    from sage_scale.cli.doctor import CUDA_12, OLDEST_DRIVERS

    page = (ROOT / "launch" / "images.md").read_text(encoding="utf-8")
    rows = re.findall(r"\| `(https\S+)` \| (\d+)\.\d+ \| (\d+) or newer", page)
    assert {(int(major), int(driver)) for _, major, driver in rows} <= OLDEST_DRIVERS.items()
    assert [major for url, major, _ in rows if url == CUDA_12] == ["12"]
