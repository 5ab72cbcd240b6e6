"""What the environment says of Python is meant for the job: it changes neither the job nor whether it is recorded."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from fakes.installation import BASE_PACKAGE, Environment, link_packages
from fakes.process_harness import BIN, COLLECTOR, DEADLINE_S, UPLOADER, Home

MODULE = (sys.executable, "-m", "sentinel_collector")
"""Started by an interpreter of the user's, which has to survive its environment by itself."""
SCRIPT = (str(BIN / "sentinel-collector.py"),)
"""What the command is where there is no C compiler."""
OTHER_PYTHON = "/usr/lib/another-python"
VARIABLES: dict[str, dict[str, str]] = {
    "breakpoint": {"PYTHONBREAKPOINT": "nowhere.at_all"},
    "development mode": {"PYTHONDEVMODE": "1"},
    "encoding": {"PYTHONIOENCODING": "latin-1"},
    "inspect": {"PYTHONINSPECT": "1"},
    "latin locale": {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"},
    "malloc": {"PYTHONMALLOC": "debug"},
    "malloc statistics": {"PYTHONMALLOCSTATS": "1"},
    "no user site": {"PYTHONNOUSERSITE": "1", "PYTHONDONTWRITEBYTECODE": "1"},
    "optimize": {"PYTHONOPTIMIZE": "2"},
    "import times": {"PYTHONPROFILEIMPORTTIME": "1"},
    "safe path off": {"PYTHONSAFEPATH": ""},
    "startup": {"PYTHONSTARTUP": "/nowhere/startup.py"},
    "traced memory": {"PYTHONTRACEMALLOC": "5"},
    "user base": {"PYTHONUSERBASE": "/nowhere"},
    "verbose": {"PYTHONVERBOSE": "1"},
    "warnings are errors": {"PYTHONWARNINGS": "error"},
    "odd names": {"a.b": "1", "BASH_FUNC_module%%": "() {  eval `true`\n}", "EMPTY": ""},
}
FATAL: dict[str, dict[str, str]] = {
    "executable": {"PYTHONEXECUTABLE": OTHER_PYTHON},
    "launcher of a venv": {"__PYVENV_LAUNCHER__": OTHER_PYTHON},
    "encoding that is none": {"PYTHONIOENCODING": "bogus"},
    "home": {"PYTHONHOME": OTHER_PYTHON},
    "home and path": {"PYTHONHOME": OTHER_PYTHON, "PYTHONPATH": OTHER_PYTHON},
    "hash seed": {"PYTHONHASHSEED": "bogus"},
    "library directory": {"PYTHONPLATLIBDIR": "lib64x"},
    "memory allocator": {"PYTHONMALLOC": "bogus"},
}
"""With these no interpreter reaches its first line."""
NOISY = {"import times", "verbose", "malloc statistics", "malloc", "development mode"}
"""What an interpreter that has begun with these has written by then, or writes when it is started again."""
SHADOWS = [
    ("collector", "protocol", "uploader"),
    ("sentinel_collector_plugins", "psutil", "msgspec", "zmq", "pynvml"),
    ("re", "argparse", "signal", "errno", "typing", "socket", "json", "threading", "subprocess", "tomllib"),
    ("encodings", "os", "site", "codecs", "importlib", "runpy"),
    ("urllib3", "botocore", "sqlite3", "logging", "dataclasses"),
    ("sitecustomize", "usercustomize"),
]


JOB = ("/bin/sh", "-c", "cat /proc/$$/environ; exit 7")
"""A job that writes its environment down."""


def bare(home: Home, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    return home.run(*JOB, env=env)


def assert_recorded_untouched(home: Home, entry: Sequence[str], env: Mapping[str, str], *, quiet: bool = True) -> None:
    """The job's exit code and output, its environment, are those without us, and its run is delivered."""
    output = home.directory / "rows.csv"
    done = home.run(*entry, "--connect", home.address, "--output", str(output), "--wait", "30", "--", *JOB, env=env)
    expected = bare(home, env)
    assert done.returncode == expected.returncode == 7, done.stderr
    assert sorted(done.stdout.split("\0")) == sorted(expected.stdout.split("\0"))
    said = [line for line in done.stderr.splitlines() if not line.startswith("sentinel-collector: ")]
    if quiet:
        assert said == []
    assert len(output.read_text().splitlines()) > 1
    assert "delivered" in done.stderr


def shadows(directory: Path, names: Sequence[str], *, package: bool) -> str:
    """A directory with modules of these names, each of which ends whatever imports it; returned as its path."""
    directory.mkdir()
    for name in names:
        path = directory / name / "__init__.py" if package else directory / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"raise SystemExit('the job has a module {name}')\n", encoding="utf-8")
    return str(directory)


@pytest.mark.parametrize("env", [*VARIABLES.values(), *FATAL.values()], ids=[*VARIABLES, *FATAL])
def test_no_variable_of_python_s_matters_to_the_command(home: Home, env: dict[str, str]) -> None:
    home.start_uploader()
    assert_recorded_untouched(home, [COLLECTOR], env)


@pytest.mark.parametrize("entry", [MODULE, SCRIPT], ids=["module", "script"])
@pytest.mark.parametrize("name", VARIABLES)
def test_an_interpreter_that_could_begin_is_started_again_without_them(
    home: Home, entry: tuple[str, ...], name: str
) -> None:
    home.start_uploader()
    assert_recorded_untouched(home, entry, VARIABLES[name], quiet=name not in NOISY)


@pytest.mark.parametrize("package", [True, False], ids=["packages", "modules"])
@pytest.mark.parametrize("names", SHADOWS, ids=" ".join)
def test_modules_of_the_job_s_are_not_taken_for_ours(home: Home, names: tuple[str, ...], *, package: bool) -> None:
    path = shadows(home.directory / "lib", names, package=package)
    home.start_uploader()
    assert_recorded_untouched(home, [COLLECTOR], {"PYTHONPATH": path})


@pytest.mark.parametrize("names", [names for names in SHADOWS if "encodings" not in names], ids=" ".join)
def test_modules_that_the_interpreter_itself_does_not_need_are_not_taken_for_ours_by_the_module_command(
    home: Home, names: tuple[str, ...]
) -> None:
    # What the start of an interpreter imports by itself is decided before us, and its sitecustomize has run.
    path = shadows(home.directory / "lib", names, package=False)
    home.start_uploader()
    if "sitecustomize" in names:
        Path(path, "sitecustomize.py").write_text("raise ValueError('broken')\n", encoding="utf-8")
        assert_recorded_untouched(home, MODULE, {"PYTHONPATH": path}, quiet=False)
    else:
        assert_recorded_untouched(home, MODULE, {"PYTHONPATH": path})


@pytest.mark.parametrize(
    "env",
    [
        {"PYTHONHOME": OTHER_PYTHON},
        {"PYTHONHASHSEED": "bogus"},
        {"PYTHONWARNINGS": "error", "PYTHONINSPECT": "1"},
        {"PYTHONEXECUTABLE": OTHER_PYTHON, "__PYVENV_LAUNCHER__": OTHER_PYTHON},
    ],
    ids=["home", "hash seed", "warnings", "executable"],
)
def test_this_user_s_own_uploader_is_started_in_the_same_way(home: Home, env: dict[str, str]) -> None:
    path = shadows(home.directory / "lib", ["msgspec", "zmq", "sqlite3", "sentinel_uploader", "logging"], package=True)
    done = home.collector("--", *JOB, env={"PYTHONPATH": path, **env})
    assert done.returncode == 7
    assert "delivered to" in done.stderr
    assert len(home.local_runs()) == 1


def test_an_installation_on_pythonpath_works_behind_a_module_that_shadows_its_own(home: Home) -> None:
    environment = Environment(home.directory / "environment", [])
    lib = home.directory / "installed"
    lib.mkdir()
    link_packages(lib, BASE_PACKAGE)
    env = {"PYTHONPATH": os.pathsep.join([shadows(home.directory / "lib", ["psutil", "zmq"], package=True), str(lib)])}
    home.start_uploader()
    for entry in ([environment.collector], [environment.python, "-m", "sentinel_collector"]):
        assert_recorded_untouched(home, entry, env)


def test_the_uploader_s_command_is_isolated_too(home: Home) -> None:
    path = shadows(home.directory / "lib", ["msgspec", "zmq", "sqlite3", "logging", "psutil"], package=True)
    env = {"PYTHONPATH": path, "PYTHONWARNINGS": "error", "PYTHONINSPECT": "1"}
    done = home.run(UPLOADER, "--version", env=env)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("first_line", ["#!/nowhere/python\n", "no interpreter\n", None])
def test_a_job_runs_unrecorded_where_there_is_no_interpreter(home: Home, first_line: str | None) -> None:
    bin_dir = home.directory / "bin"
    bin_dir.mkdir()
    shutil.copy(COLLECTOR, bin_dir / "sentinel-collector")
    if first_line is not None:
        (bin_dir / "sentinel-collector.py").write_text(first_line, encoding="utf-8")
    done = home.run(str(bin_dir / "sentinel-collector"), "--quiet", "--", *JOB)
    assert done.returncode == 7
    assert done.stdout == bare(home, {}).stdout
    (line,) = done.stderr.splitlines()
    assert line.startswith("sentinel-collector: cannot start Python for ")
    assert line.endswith("; the job runs and is not recorded")
    assert home.run(str(bin_dir / "sentinel-collector")).returncode == 1
    assert home.run(str(bin_dir / "sentinel-collector"), "--", "/nowhere/job").returncode == 127


def test_a_job_runs_unrecorded_where_the_packages_are_gone(home: Home) -> None:
    environment = Environment(home.directory / "environment", [])
    done = home.run(environment.collector, "--quiet", "--", *JOB)
    assert done.returncode == 7
    assert sorted(done.stdout.split("\0")) == sorted(bare(home, {}).stdout.split("\0"))
    (line,) = done.stderr.splitlines()
    assert line.startswith("sentinel-collector: the installation is damaged: No module named 'sentinel_collector'")
    assert line.endswith("; the job runs and is not recorded")
    assert home.run(environment.collector).returncode == 1
    assert home.run(environment.collector, "--", "/nowhere/job").returncode == 127


def test_the_interpreter_of_a_long_path_is_found(home: Home) -> None:
    directory = home.directory / "a name with spaces" / ("x" * 100)
    directory.mkdir(parents=True)
    (directory / "python").symlink_to(sys.executable)
    shutil.copy(COLLECTOR, directory / "sentinel-collector")
    head = f"#!/bin/sh\n'''exec' \"{directory}/python\" \"$0\" \"$@\"\n' '''\n"
    (directory / "sentinel-collector.py").write_text(head + "import sys; print(*sys.argv[1:])\n", encoding="utf-8")
    done = home.run(str(directory / "sentinel-collector"), "one", "two three", env={"PYTHONHOME": OTHER_PYTHON})
    assert (done.returncode, done.stdout) == (0, "one two three\n"), done.stderr


def test_a_link_to_the_command_is_the_command(home: Home) -> None:
    link = home.directory / "sentinel-collector"
    link.symlink_to(COLLECTOR)
    done = home.run(str(link), "--version")
    assert done.returncode == 0
    assert done.stdout.startswith("sentinel-collector ")


def test_what_runs_is_gone_when_the_job_is(home: Home) -> None:
    """The command becomes the interpreter: there is no process in between that a signal could miss."""
    process = home.start(COLLECTOR, "--connect", home.address, "--", "sh", "-c", "echo begun; exec sleep 60")
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    assert b"sentinel-collector.py" in Path(f"/proc/{process.pid}/cmdline").read_bytes()
    process.terminate()
    assert process.wait(DEADLINE_S) == 128 + 15
