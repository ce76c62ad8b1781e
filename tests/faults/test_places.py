"""Inhospitable places: no home, no network, nobody to write to; another run at the same time (F19, F20)."""

import os
import subprocess
import sys
import time

import pytest

NO_NETWORK = """
    import sys

    def audit(event, arguments):
        if event.startswith("socket.") and event not in ("socket.__new__", "socket.gethostname"):
            print(event, arguments, file=sys.stderr)
            raise SystemExit(f"the network was used: {event}")

    sys.addaudithook(audit)
"""


def test_importing_opens_no_socket(child):
    child(NO_NETWORK + "\n    import llmrl\n    import llmrl.settings.overrides, llmrl.settings.config, llmrl.language")


@pytest.mark.slow
def test_import_of_everything_opens_no_socket_and_the_package_itself_is_quick(child):
    child(
        NO_NETWORK
        + "\n    import llmrl.training.loop, llmrl.results.evaluate, llmrl.results.report.page"
        + "\n    import llmrl.results.policies, llmrl.studies.label"
    )
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", "import llmrl"], check=True)
    assert time.monotonic() - began < 3.0


@pytest.mark.slow
def test_training_needs_neither_a_home_nor_a_network(tmp_path, tiny):
    script = f"""
{NO_NETWORK}
    import llmrl
    from llmrl.results.evaluate import evaluate
    from llmrl.results.report.page import report

    result = llmrl.train(llmrl.compose(*{tiny!r}, "run_dir={tmp_path}/runs/x"))
    evaluate("{tmp_path}/runs/x", episodes=2)
    report(("{tmp_path}/runs",), "{tmp_path}/report")
    """
    import textwrap

    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    # Not even root can make a directory in there.
    nowhere = dict.fromkeys(("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"), "/proc/nowhere")
    environment = {**kept, **nowhere, "PYTHONPATH": os.pathsep.join(sys.path), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-B", "-c", textwrap.dedent(script)]
    process = subprocess.run(command, env=environment, cwd="/proc", capture_output=True, text=True)
    assert process.returncode == 0, process.stderr[-3000:]
    assert (tmp_path / "runs" / "x" / "curves.png").exists()
    assert (tmp_path / "report" / "index.html").exists()


@pytest.mark.slow
def test_the_second_of_two_commands_in_one_directory_is_refused_by_the_firsts_number(tmp_path, tiny):
    words = [sys.executable, "-m", "llmrl", "train", *tiny, "total_steps=7680000", f"run_dir={tmp_path}"]
    with subprocess.Popen(words, stderr=subprocess.DEVNULL) as first:
        while not (tmp_path / "config.yaml").exists() and first.poll() is None:
            time.sleep(0.05)
        second = subprocess.run(words, capture_output=True, text=True)
        first.kill()
    assert second.returncode == 2
    assert second.stderr.startswith(f"llmrl: run_dir={tmp_path} is in use by process {first.pid} on ")
    assert second.stderr.count("\n") == 1
