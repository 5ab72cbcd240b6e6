"""What the architecture promises about imports, errors and documents."""

import ast
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes.process_harness import Home
from locations import ROOT

import sentinel_collector
import sentinel_protocol
import sentinel_uploader
import sentinel_viewer
from sentinel_collector import settings as collector_config
from sentinel_protocol.common.errors import SentinelStreamError
from sentinel_protocol.common.local_uploader import LOCAL_UPLOADER_VARIABLES
from sentinel_protocol.wire import messages
from sentinel_uploader.app.settings import SETTINGS

PACKAGES = {
    "sentinel_collector": sentinel_collector,
    "sentinel_protocol": sentinel_protocol,
    "sentinel_uploader": sentinel_uploader,
    "sentinel_viewer": sentinel_viewer,
}
STANDARD = sys.stdlib_module_names | {"_sha256", "_sha2"}
"""Its digests changed their name with Python 3.12."""
FOREIGN = {
    "sentinel_protocol": {"msgspec", "zmq"},
    "sentinel_collector": {"msgspec", "zmq", "psutil", "pynvml"},
    "sentinel_uploader": {"msgspec", "zmq", "urllib3", "botocore", "prometheus_client"},
    "sentinel_viewer": {"msgspec", "botocore", "pyarrow", "rich", "starlette", "textual", "uvicorn"},
}
OURS = {
    "sentinel_protocol": {"sentinel_protocol"},
    "sentinel_collector": {"sentinel_protocol", "sentinel_collector"},
    "sentinel_uploader": {"sentinel_protocol", "sentinel_uploader"},
    "sentinel_viewer": {"sentinel_protocol", "sentinel_viewer"},
}


def existing(*names: str) -> set[str]:
    """The names, each of which must be a module: a stale name would make an assertion about it vacuous."""
    for name in names:
        importlib.import_module(name)
    return set(names)


def modules(package: str) -> Iterator[tuple[str, Path]]:
    directory = Path(str(PACKAGES[package].__file__)).parent
    yield package, directory / "__init__.py"
    for info in pkgutil.walk_packages([str(directory)], prefix=f"{package}."):
        path = directory.joinpath(*info.name.split(".")[1:])
        yield info.name, path / "__init__.py" if info.ispkg else path.with_suffix(".py")


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


@pytest.mark.parametrize("package", PACKAGES)
def test_package_imports_only_what_it_may(package: str) -> None:
    allowed = OURS[package] | FOREIGN[package] | STANDARD
    for name, path in modules(package):
        strangers = {top for module in imported(path) if (top := module.partition(".")[0]) not in allowed}
        assert not strangers, f"{name} imports {strangers}"


@pytest.mark.parametrize("package", ["sentinel_collector", "sentinel_protocol"])
def test_the_collector_does_without_what_costs_a_short_job_milliseconds(package: str) -> None:
    heavy = {"dataclasses", "inspect", "logging", "shutil", "subprocess", "tempfile"}
    for name, path in modules(package):
        assert not heavy & set(imported(path)), name


def test_nothing_heavy_is_imported_before_the_job_starts() -> None:
    code = "import sys, sentinel_collector.cli\nprint(*sys.modules)"
    loaded = set(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    )
    assert existing("sentinel_collector.job.process") <= loaded
    heavy = {
        "zmq",
        "msgspec",
        "psutil",
        "pynvml",
        "ctypes",
        "typing",
        "threading",
        "socket",
        "subprocess",
        "json",
        "tomllib",
    }
    # What the interpreter's own start has loaded (site, .pth files) is not ours.
    before = set(
        subprocess.run(
            [sys.executable, "-c", "import sys, argparse\nprint(*sys.modules)"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
    )
    assert not heavy & (loaded - before)


_WHOLE_RUN = """
import os, sys
before, leave = set(sys.modules), os._exit
from sentinel_collector.cli import main
def tell(code):
    print(*sorted(set(sys.modules) - before), file=open(sys.argv[1], "w"), flush=True)
    leave(code)
os._exit = tell  # the recorder's end
exit_code = main(sys.argv[2:])
print(*sorted(set(sys.modules) - before), file=sys.stderr)
sys.exit(exit_code)
"""


def test_a_whole_short_run_loads_nothing_that_it_can_do_without(home: Home) -> None:
    home.start_uploader()
    told = home.directory / "modules"
    done = home.run(sys.executable, "-c", _WHOLE_RUN, str(told), "--connect", home.address, "--", "true")
    assert done.returncode == 0, done.stderr
    of_waiter = set(done.stderr.splitlines()[-1].split())
    assert "sentinel_collector.job.waiter" in of_waiter
    assert not {"sentinel_collector.session", "msgspec", "zmq", "threading"} & of_waiter
    loaded = set(told.read_text().split())
    assert {"sentinel_collector.session", "sentinel_collector.sensors.linux.system", "msgspec", "zmq"} <= loaded
    ours = existing(
        # for this user's own uploader, for the cloud's metadata service
        "sentinel_collector.delivery.local_uploader",
        "sentinel_collector.discovery.cloud.discovery",
        "sentinel_protocol.common.local_uploader",
        # for keys, for other systems and GPUs
        "sentinel_protocol.wire.curve_keys",
        "sentinel_collector.sensors.psutil_fallback.system_and_tree",
        "sentinel_collector.sensors.gpu.worker",
    )
    heavy = {
        # OpenSSL
        "hashlib", "_hashlib",
        # what msgspec would take from it, `typing` has
        "typing_extensions", "inspect", "ast", "dis", "tokenize", "linecache",
        # for identities, for settings in files, for other systems and GPUs
        "socket", "selectors", "ipaddress", "tomllib", "psutil", "pynvml",
        "asyncio", "dataclasses", "logging", "shlex", "shutil", "subprocess", "tempfile",
    }  # fmt: skip
    assert not (heavy | ours) & loaded


def test_what_is_kept_from_msgspec_is_there_for_everybody_else() -> None:
    code = (
        "import gc, sys; from sentinel_collector.deferred_imports import import_session; import_session();"
        "assert gc.isenabled() and gc.get_freeze_count() > 10_000;"
        "assert 'msgspec' in sys.modules and 'typing_extensions' not in sys.modules;"
        "import typing_extensions; import_session(); assert sys.modules['typing_extensions'] is typing_extensions"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("package", PACKAGES)
def test_every_error_of_ours_has_the_one_root(package: str) -> None:
    found = 0
    for name, _ in modules(package):
        if name.endswith("__main__"):
            continue
        for _, thing in inspect.getmembers(importlib.import_module(name), inspect.isclass):
            if issubclass(thing, Exception) and thing.__module__.partition(".")[0] in PACKAGES:
                found += 1
                assert issubclass(thing, SentinelStreamError), thing
    assert found


@pytest.mark.parametrize("package", PACKAGES)
def test_time_comes_from_the_clock(package: str) -> None:
    called = re.compile(r"\btime\.(time|monotonic|sleep|perf_counter)\(|\bdatetime\.now\(")
    for name, path in modules(package):
        if name != "sentinel_protocol.common.clock":
            assert not called.search(path.read_text(encoding="utf-8")), name


def test_a_local_uploader_gets_each_of_its_settings() -> None:
    """It is started with the variables that the protocol names, and its address and spool as flags."""
    named = {setting.env for setting in SETTINGS if setting.env is not None}
    flags = {"SENTINEL_BIND", "SENTINEL_SPOOL", "SENTINEL_EXIT_WHEN_IDLE"}
    assert named - flags <= LOCAL_UPLOADER_VARIABLES
    assert not flags & LOCAL_UPLOADER_VARIABLES


def test_run_keys_that_the_collector_takes_are_those_of_the_protocol() -> None:
    assert collector_config.MAX_RUN_KEY_CHARS == messages.MAX_RUN_KEY_CHARS
    assert collector_config.run_key("x" * messages.MAX_RUN_KEY_CHARS)
    for bad in ("x" * (messages.MAX_RUN_KEY_CHARS + 1), "line\nbreak", ""):
        with pytest.raises(ValueError, match="must be"):
            collector_config.run_key(bad)


def test_children_of_the_tests_use_the_package_that_the_tests_use() -> None:
    names = ", ".join(PACKAGES)
    code = f"import {names}\nprint(*(module.__file__ for module in ({names})))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert found.split() == [str(package.__file__) for package in PACKAGES.values()]


def test_version_is_the_same_everywhere() -> None:
    from importlib.metadata import version

    assert version("sentinel-stream") == sentinel_protocol.__version__
