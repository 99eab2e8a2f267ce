"""The floors of docs/design/architecture.md: a package imports only from floors below its own.

Imports are read from the syntax tree, so one inside a function counts like one at the top.
"""

from __future__ import annotations

import ast
from pathlib import Path

import sage_scale

PACKAGE = Path(sage_scale.__file__).resolve().parent
FLOORS = (
    ("errors", "parallel", "retry", "deprecated"),
    ("untrusted",),
    ("keypoints", "losses", "text"),
    ("storage", "config"),
    ("registry",),
    ("shards", "corpora", "vision"),
    ("streaming", "nn", "segmentation", "extraction"),
    ("evaluation", "precompute", "planning"),
    ("training", "reporting"),
    ("models",),
    ("experiments", "translation"),
    ("serving",),
    ("cli",),
)
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}


def room(dotted: str) -> str:
    """`sage_scale.shards.layout` belongs to `shards`; the package's own name to nothing."""
    parts = dotted.split(".")
    return parts[1] if len(parts) > 1 else ""


def imports(path: Path, nested: bool = True) -> set[str]:
    """Dotted names inside sage_scale that a file imports: at any depth, or at its top only."""
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    package = path.relative_to(PACKAGE.parent).parent.parts
    found: set[str] = set()
    for node in ast.walk(tree) if nested else tree.body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            dotted = ".".join([*base, *([node.module] if node.module else [])])
            found |= {f"{dotted}.{alias.name}" for alias in node.names}
    return {name for name in found if name == "sage_scale" or name.startswith("sage_scale.")}


def files() -> list[Path]:
    return [
        path for path in sorted(PACKAGE.rglob("*.py")) if path.parent != PACKAGE or path.stem != "__init__"
    ]


def room_of_file(path: Path) -> str:
    inside = path.relative_to(PACKAGE)
    return inside.parts[0] if len(inside.parts) > 1 else inside.stem


def test_every_room_has_a_floor():
    homeless = {room_of_file(path) for path in files()} - set(FLOOR)
    assert not homeless, f"give {sorted(homeless)} a floor here and in docs/design"


def test_imports_run_down_only():
    wrong = []
    for path in files():
        here = room_of_file(path)
        for name in sorted(imports(path)):
            there = room(name)
            if there in ("", here) or there not in FLOOR:
                continue
            if FLOOR[there] < FLOOR[here]:
                continue
            which = "its own floor" if FLOOR[there] == FLOOR[here] else "a floor above"
            wrong.append(f"{path.relative_to(PACKAGE)} ({here}) imports {name}, of {which}")
    assert not wrong, "\n".join(wrong)


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_no_cycles_between_modules():
    """Inside a package too: only imports at a file's top count, which Python runs at once."""
    modules = {module_name(path): path for path in files()}
    graph: dict[str, set[str]] = {}
    for name, path in modules.items():
        wanted = {
            found if found in modules else found.rpartition(".")[0] for found in imports(path, nested=False)
        }
        graph[name] = {other for other in wanted if other in modules and other != name}
    done: set[str] = set()

    def visit(name: str, trail: list[str]) -> None:
        assert name not in trail, "imports in a circle: " + " -> ".join([*trail[trail.index(name) :], name])
        if name in done:
            return
        for other in sorted(graph[name]):
            visit(other, [*trail, name])
        done.add(name)

    for name in sorted(graph):
        visit(name, [])


def test_the_reader_of_imports_sees_all_kinds(tmp_path, monkeypatch):
    """The checks above are worth what this reader sees: nested, relative and aliased imports."""
    package = tmp_path / "sage_scale" / "shards"
    package.mkdir(parents=True)
    file = package / "layout.py"
    file.write_text(
        "import sage_scale.cli.main as entry\n"
        "def late():\n    from sage_scale.training import engine\n"
        "from ..storage import open_store\nfrom . import index\nimport os\n"
    )
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path / "sage_scale")
    assert imports(file) == {
        "sage_scale.cli.main",
        "sage_scale.training.engine",
        "sage_scale.storage.open_store",
        "sage_scale.shards.index",
    }
    assert "sage_scale.training.engine" not in imports(file, nested=False)
