"""A real server and a real model, though nobody has trained it: labelling and training with its probabilities of yes.

`make test-llm-server` makes the server's environment and says where its Python is; without one there is nothing to do.
"""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from llmrl import language
from llmrl.cli.main import main
from llmrl.runs import metrics
from llmrl.settings.overrides import compose

PYTHON = os.environ.get("LLMRL_SERVER_PYTHON", "")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON, reason="run by make test-llm-server, which has the server's environment"),
]


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """Where the server listens, as ``http://127.0.0.1:port``."""
    model = tmp_path_factory.mktemp("model") / "random.gguf"
    command = [PYTHON, str(Path(__file__).with_name("random_model.py")), str(model)]
    log = model.with_suffix(".log").open("w")
    with (
        log,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True) as process,
    ):
        assert process.stdin is not None and process.stdout is not None
        said = next((line for line in process.stdout if line.startswith("xllamacpp ")), "")
        assert said, Path(log.name).read_text()[-2000:]
        print(f"\n{said}", end="")
        yield said.split(" at ")[1].strip()
        process.stdin.close()
        process.wait(timeout=30)


@pytest.fixture(scope="module")
def settings(address, tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache") / "answers.sqlite"
    return ["llm=llama_cpp", f"llm.base_url={address}/v1", "llm.model=random", f"llm.cache={cache}"]


def test_the_server_is_found_fit_for_the_questions(settings):
    llm = compose("aux=language", *settings).llm
    assert llm.score == "token_probability"
    found = language.probe(llm)
    print(f"\n{found.message}")
    assert found.ok, found.message


def test_labelling_and_training_with_its_probabilities(settings, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main(["label", "env=cartpole", *settings, "limit=24", "steps=512", "out=answers.jsonl"])
    printed = capsys.readouterr().out
    assert "The pole" in printed  # the first prompt
    rows = [json.loads(line) for line in Path("answers.jsonl").read_text().splitlines()][1:]
    scores = np.array([row["scores"] for row in rows])
    assert scores.shape == (24, 2)
    assert np.all((scores >= 0.0) & (scores <= 1.0))
    assert len(np.unique(scores)) > 24  # probabilities, and not the same ones for all states
    print(f"\n{printed}\n{len(rows)} states, scores from {scores.min():.2f} to {scores.max():.2f}")

    tiny = ["ppo=tiny", "total_steps=1024", "num_chunks=8", "seeds=2", "progress=false"]
    main(["train", "env=cartpole", "aux=language", *settings, *tiny, "method=implicit", "run_dir=run"])
    summary = json.loads(Path("run/summary.json").read_text())["final"]
    last = {name: curve[:, -1] for name, curve in metrics.read(Path("run/metrics.csv")).items()}
    counted = {name: float(last[f"language_{name}"][0]) for name in ("answered", "requests", "cache_hits", "failures")}
    print(f"\n{counted}, coverage {summary['language_coverage']['mean']:.2f}")
    assert counted["failures"] == 0
    assert counted["answered"] > 0
    assert counted["cache_hits"] >= 2  # what was labelled is not asked again
    assert summary["language_coverage"]["mean"] > 0.0
    assert 0.0 <= summary["language_score"]["mean"] <= 1.0
