"""The packages of the viewer import downwards only."""

import ast
from pathlib import Path

import sentinel_viewer

ROOT = Path(str(sentinel_viewer.__file__)).parent
MAY_IMPORT = {
    "runs": set(),
    "rows": {"runs"},
    "output": {"rows"},
    "analysis": {"output", "rows", "runs"},
    "report": {"analysis", "output", "rows", "runs"},
    "live": {"output", "rows", "runs"},
    "top": {"live", "output"},
    "web": {"analysis", "live", "output", "report", "runs", "top"},
    "cli": {"analysis", "live", "output", "report", "rows", "runs", "top", "web"},
}


def test_imports_go_one_way() -> None:
    packages = {path.name for path in ROOT.iterdir() if (path / "__init__.py").exists()}
    assert packages == MAY_IMPORT.keys()
    for package, allowed in MAY_IMPORT.items():
        for path in (ROOT / package).glob("*.py"):
            found = {
                node.module.split(".")[1]
                for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
                if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("sentinel_viewer.")
            }
            assert found - {"errors", package} <= allowed, path.name
