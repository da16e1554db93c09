"""Run what decides vectors and files with the lowest versions that pyproject.toml allows.

Under Python 3.11 all of it; under newer ones, where an interpreter is found, what is quick. Each has an
environment `.venv-lowest-<version>`, which is kept for the next run.
"""

import shutil
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
LOCK = REPOSITORY / "requirements-lowest.lock"
QUICK = ("self_test", "store", "extraction")
ALL = (*QUICK, "encoders_parity", "encoders_recipe", "graph_assets", "graph_automation", "graph_checks")
TESTS = {"3.11": ALL, "3.12": QUICK, "3.13": QUICK}


def main() -> int:
    failed = []
    for version, names in TESTS.items():
        found = interpreter(version)
        if found is None:
            print(f"Python {version}: not found, not tested", flush=True)
            failed += [version] if names is ALL else []
            continue
        python = environment(version, found)
        print(f"Python {version}, lowest versions: {', '.join(names)}", flush=True)
        tests = [f"tests/test_{name}.py" for name in names]
        if subprocess.run(
            [python, "-m", "pytest", "--durations=0", "--durations-min=30", *tests], cwd=REPOSITORY
        ).returncode:
            failed.append(version)
    if failed:
        print(f"the lowest versions do not pass under Python {', '.join(failed)}")
    return 1 if failed else 0


def interpreter(version: str) -> str | None:
    """A Python of this version: on PATH, or one of pyenv's, whose shims fail where it is not chosen."""
    candidates = [shutil.which(f"python{version}"), sys.executable]
    candidates += map(str, sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python3")))
    code = "import sys; sys.exit(f'{sys.version_info[0]}.{sys.version_info[1]}' != sys.argv[1])"
    for candidate in candidates:
        if candidate and not subprocess.run([candidate, "-c", code, version], capture_output=True).returncode:
            return candidate
    return None


def environment(version: str, found: str) -> Path:
    """The interpreter of an environment with exactly the locked lowest versions."""
    folder = REPOSITORY / f".venv-lowest-{version}"
    python = folder / "bin" / "python"
    ready = folder / ".installed"
    wanted = LOCK.read_text() + (REPOSITORY / "pyproject.toml").read_text()
    if ready.exists() and ready.read_text() == wanted:
        return python
    uv = [str(REPOSITORY / ".venv" / "bin" / "uv")]
    # Anew: what is left of one that was broken off may lead to the interpreter that it was made of.
    subprocess.run([*uv, "venv", "--quiet", "--clear", "--python", found, str(folder)], check=True)
    here = ["--quiet", "--python", str(python)]
    locked = ["--compile-bytecode", "--require-hashes", str(LOCK)]
    subprocess.run([*uv, "pip", "sync", *here, *locked], check=True)
    package = ["--no-deps", "--no-build-isolation", "--editable", str(REPOSITORY)]
    subprocess.run([*uv, "pip", "install", *here, *package], check=True)
    ready.write_text(wanted)
    return python


if __name__ == "__main__":
    sys.exit(main())
