"""Sweeps by launchers that are not Hydra's own; each test needs the plugin that it names."""

import os
import subprocess
import sys

import pytest
from small import RUN

TINY = (*RUN, "seeds=2", "total_steps=256", "num_chunks=2")


def llmrl(directory, *words):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "RAY_USAGE_STATS_ENABLED": "0"}
    command = [sys.executable, "-m", "llmrl", *words]
    process = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr[-3000:]
    return process.stdout


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_sweep_of_eight_by_ray_ends_in_one_table(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_ray_launcher")
    llmrl(tmp_path, "train", "--multirun", "launcher=ray", *TINY, "method=add,ppo", "seed=0,10,20,30")
    assert llmrl(tmp_path, "status", "runs").count(" finished ") == 8
    llmrl(tmp_path, "report", "runs", "trust=false")
    page = (tmp_path / "report" / "index.html").read_text()
    assert all(f"{method}-s{seed}-" in page for method in ("add", "ppo") for seed in (0, 10, 20, 30))
