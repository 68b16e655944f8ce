"""The shape of the code: sizes, docstrings and narrow excepts, as docs/architecture.md promises them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "src").rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("test_*.py"))
BROAD_EXCEPTS = {
    "serve/app.py": "any defect is still an answer",
    "serve/follow.py": "one defect must not end what a gateway follows",
    "serve/shadow.py": "one call's defect must not end the worker",
    "validators.py": "a user's function may raise anything",
}


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def test_nine_functions_in_ten_are_under_40_lines() -> None:
    """The 90th percentile of function lengths is under 40 lines."""
    lengths = sorted((f.end_lineno or 0) - f.lineno + 1 for path in SOURCES for f in functions(path))
    assert lengths[int(len(lengths) * 0.9)] < 40


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_are_under_500_lines(path: Path) -> None:
    """No source file has 500 lines or more."""
    assert len(path.read_text().splitlines()) < 500


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_modules_say_what_they_are(path: Path) -> None:
    """Every module with code has a docstring."""
    tree = ast.parse(path.read_text())
    assert not tree.body or ast.get_docstring(tree)


@pytest.mark.parametrize("path", TESTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_tests_state_their_specification(path: Path) -> None:
    """Every test function has a docstring."""
    assert [f.name for f in functions(path) if f.name.startswith("test_") and not ast.get_docstring(f)] == []


def test_broad_excepts_stand_in_named_places_only() -> None:
    """`except Exception` is allowed where BROAD_EXCEPTS says why, and nowhere else."""
    found = set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            broad = isinstance(node, ast.ExceptHandler) and (
                node.type is None
                or (isinstance(node.type, ast.Name) and node.type.id in {"Exception", "BaseException"})
            )
            if broad:
                found.add(path.relative_to(ROOT / "src" / "smallfirst").as_posix())
    assert found == set(BROAD_EXCEPTS)
