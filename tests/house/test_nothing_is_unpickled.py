"""Nothing received is ever unpickled or evaluated: a walk over every syntax tree."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FORBIDDEN_MODULES = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "jsonpickle"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}
SOURCES = sorted(
    path for top in ("src", "scripts", "bench", "examples") for path in (ROOT / top).rglob("*.py")
)


def offences(tree: ast.AST) -> list[str]:
    found = []
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        found += [f"imports {n}" for n in names if n.split(".")[0] in FORBIDDEN_MODULES]
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in FORBIDDEN_CALLS
        ):
            found.append(f"line {node.lineno}: calls {node.func.id}")
    return found


def test_no_source_unpickles_or_evaluates() -> None:
    assert len(SOURCES) > 20, "the walk found no sources"
    bad = {str(p.relative_to(ROOT)): offences(ast.parse(p.read_text())) for p in SOURCES}
    assert {path: found for path, found in bad.items() if found} == {}


def test_the_walk_finds_what_it_looks_for() -> None:
    guilty = ast.parse("import pickle\nfrom marshal import loads\neval('1')\nexec('')\n")
    assert len(offences(guilty)) == 4
