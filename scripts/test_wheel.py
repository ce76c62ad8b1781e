"""Builds the wheel and tries it as a stranger would: clean environments, with pip and with uv, for each Python here.

    python scripts/test_wheel.py                        # every Python from 3.11 to 3.13 on PATH
    python scripts/test_wheel.py --python python3.12 --installer uv

In each: install, import, train a minute's worth, evaluate, report; nothing of this checkout is on the path. What a
machine lacks is named and left out; the exit code is 0 when all that was tried went well, and something was.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTHONS = ("python3.11", "python3.12", "python3.13")
INSTALLERS = ("pip", "uv")

RUN = "env=gridworld env.size=4 env.horizon=20 aux=helpful_hackable method=implicit ppo=tiny seeds=2 total_steps=2048"
STEPS = (
    ("import", ["python", "-c", "import llmrl; print(llmrl.__version__, llmrl.__file__)"]),
    ("train", ["llmrl", "train", *RUN.split(), "num_chunks=2", "run_dir=runs/x"]),
    ("evaluate", ["llmrl", "evaluate", "run_dir=runs/x", "episodes=4"]),
    ("report", ["llmrl", "report", "runs", "trust=false"]),
)
"""What is tried, in this order; the first word is a program of the environment."""


def main() -> int:
    options = _options()
    started = []
    with tempfile.TemporaryDirectory(prefix="llmrl-wheel-") as folder:
        wheel = build(Path(folder))
        print(f"built {wheel.name}", flush=True)
        for python in options.python:
            version = version_of(python)
            if version is None:
                print(f"{python}: not here, left out", flush=True)
                continue
            for installer in options.installer:
                if installer == "uv" and not options.uv:
                    print(f"{python} with uv: uv is not here, left out", flush=True)
                    continue
                started.append(tried(python, version, installer, options.uv, wheel, Path(folder)))
    return 0 if started and all(started) else 1


def build(folder: Path) -> Path:
    """The wheel of this checkout; the tool that builds it comes from the package index."""
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder / "dist"), "."]
    subprocess.run(command, cwd=ROOT, check=True)
    (wheel,) = (folder / "dist").glob("*.whl")
    return wheel


def version_of(python: str) -> str | None:
    """Which Python answers to this name, if it starts at all: a shim may stand for nothing."""
    try:
        command = [python, "-c", "import platform, venv, ensurepip; print(platform.python_version())"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def tried(python: str, version: str, installer: str, uv: str | None, wheel: Path, folder: Path) -> bool:
    """Whether everything went well in one clean environment, which is removed again."""
    began, label = time.monotonic(), f"Python {version} with {installer}"
    home, work = folder / "environment", folder / "work"
    work.mkdir()
    try:
        for name, command in (*_installation(python, installer, uv, home, wheel), *STEPS):
            program = home / "bin" / command[0]
            words = [str(program) if program.exists() else command[0], *command[1:]]
            process = subprocess.run(words, cwd=work, env=_environment(home, work), capture_output=True, text=True)
            if process.returncode:
                print(f"{label}: {name} failed\n{process.stdout[-2000:]}{process.stderr[-4000:]}", flush=True)
                return False
            if name == "import" and str(home) not in process.stdout:
                print(f"{label}: imported from elsewhere: {process.stdout}", flush=True)
                return False
        rows = (work / "runs" / "x" / "metrics.csv").read_text().count("\n")
        page = (work / "report" / "index.html").is_file()
        print(f"{label}: well, {rows} rows, {time.monotonic() - began:.0f} s", flush=True)
        return rows > 1 and page
    finally:
        shutil.rmtree(home, ignore_errors=True)
        shutil.rmtree(work, ignore_errors=True)


def _installation(python: str, installer: str, uv: str | None, home: Path, wheel: Path):
    if installer == "uv":
        assert uv is not None
        yield "uv venv", [uv, "venv", "--quiet", "--no-project", "--python", _interpreter(python), str(home)]
        yield (
            "uv pip install",
            [uv, "pip", "install", "--quiet", "--python", str(home / "bin" / "python"), str(wheel)],
        )
    else:
        yield "venv", [python, "-m", "venv", str(home)]
        yield "pip install", ["python", "-m", "pip", "install", "--quiet", str(wheel)]


def _interpreter(python: str) -> str:
    command = [python, "-c", "import sys; print(sys.executable)"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _environment(home: Path, work: Path) -> dict[str, str]:
    """This one without whatever leads to another environment's packages."""
    left_out = ("PYTHONPATH", "VIRTUAL_ENV", "PYTHONHOME", "JAX_COMPILATION_CACHE_DIR")
    kept = {name: value for name, value in os.environ.items() if name not in left_out}
    return kept | {"JAX_PLATFORMS": "cpu", "MPLBACKEND": "agg", "XDG_CACHE_HOME": str(work / "cache")}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", nargs="+", default=PYTHONS, help="names or paths of Pythons")
    parser.add_argument("--installer", nargs="+", default=INSTALLERS, choices=INSTALLERS)
    parser.add_argument("--uv", default=shutil.which("uv"), help="where uv is")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
