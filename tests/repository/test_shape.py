"""The shape of the code: the direction of its imports, and how long one piece of it may be."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from locations import ROOT, SOURCE_ROOTS

LINTER = str(Path(sys.executable).with_name("lint-imports"))
MAX_MODULE_LINES = 400
MAX_FUNCTION_LINES = 60
REASON = "# long: "
"""Begins a comment beside what is longer, with the reason."""

AGAINST_THE_DIRECTION = {
    "the uploader and the collector": ("uploader", "sentinel_uploader/runs/lifecycle.py", "sentinel_collector.console"),
    "the protocol and the uploader": ("protocol", "sentinel_protocol/common/clock.py", "sentinel_uploader.limits"),
    "states and the spool": ("uploader", "sentinel_uploader/runs/lifecycle.py", "sentinel_uploader.spool.store"),
    "delivery and a backend": (
        "uploader",
        "sentinel_uploader/delivery/executor.py",
        "sentinel_uploader.backends.local",
    ),
    "a sensor and the delivery": ("collector", "sentinel_collector/procfs.py", "sentinel_collector.delivery"),
}


def lint_imports(directory: Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(str(directory / root.name) for root in SOURCE_ROOTS)
    return subprocess.run(
        [LINTER, "--no-cache"], cwd=directory, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path}
    )


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for root in SOURCE_ROOTS:
        shutil.copytree(root, tmp_path / root.name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_imports_go_one_way() -> None:
    done = lint_imports(ROOT)
    assert done.returncode == 0, done.stdout
    assert " 0 broken" in done.stdout


@pytest.mark.parametrize("case", AGAINST_THE_DIRECTION)
def test_an_import_against_the_direction_fails(copy: Path, case: str) -> None:
    root, name, imported = AGAINST_THE_DIRECTION[case]
    module = copy / root / name
    module.write_text(f"{module.read_text(encoding='utf-8')}\n\nimport {imported}\n", encoding="utf-8")
    done = lint_imports(copy)
    assert done.returncode != 0
    assert " is not allowed to import " in done.stdout
    assert re.search(r", [1-9] broken", done.stdout)


def product_modules() -> list[Path]:
    return [path for root in SOURCE_ROOTS for path in sorted(root.rglob("*.py"))]


def test_no_module_is_too_long_without_a_reason() -> None:
    found = product_modules()
    assert len(found) > 100
    for path in found:
        lines = path.read_text(encoding="utf-8").splitlines()
        assert len(lines) <= MAX_MODULE_LINES or any(line.startswith(REASON) for line in lines), path


def test_no_function_is_too_long_without_a_reason() -> None:
    found = 0
    for path in product_modules():
        text = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                found += 1
                lines = text.splitlines()[node.lineno - 1 : node.end_lineno]
                assert len(lines) <= MAX_FUNCTION_LINES or any(REASON in line for line in lines), (path, node.name)
    assert found > 1000
