"""A real server and a real model, though nobody has trained it: labelling and training with its probabilities of yes.

`make test-llm-server` makes the server's environment and says where its Python is; without one there is nothing to do.
"""

import json
import os
import subprocess
import sys
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
def model(tmp_path_factory):
    """Where the model is, once the server listens."""
    return tmp_path_factory.mktemp("model") / "random.gguf"


@pytest.fixture(scope="module")
def address(model):
    """Where the server listens, as ``http://127.0.0.1:port``."""
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


@pytest.fixture
def llama_cpp(monkeypatch):
    """The server's packages for this process and its children, after their own."""
    script = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = subprocess.run([PYTHON, "-c", script], capture_output=True, text=True, check=True).stdout.strip()
    monkeypatch.setattr(sys, "path", [*sys.path, packages])
    monkeypatch.setenv("PYTHONPATH", packages)


def test_a_child_process_says_the_same_as_the_server(model, settings, llama_cpp, tmp_path, capsys):
    asked = ["label", "env=cartpole", "limit=4", "steps=64"]
    main([*asked, *settings, f"out={tmp_path / 'server.jsonl'}"])
    main([*asked, "llm=local", f"llm.model={model}", "llm.cache=null", f"out={tmp_path / 'child.jsonl'}"])
    server, child = (
        [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()][1:]
        for name in ("server", "child")
    )
    # Not equal to the last digit: what a prompt shares with the one before is not computed again.
    assert [row["state"] for row in child] == [row["state"] for row in server]
    np.testing.assert_allclose([row["scores"] for row in child], [row["scores"] for row in server], atol=0.01)


def test_what_is_no_whole_model_is_told_in_a_line(model, address, llama_cpp, tmp_path, capsys):
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(model.read_bytes()[:20_000])
    with pytest.raises(SystemExit):
        main(["label", "env=cartpole", "llm=local", f"llm.model={cut}", "llm.cache=null"])
    error = capsys.readouterr().err
    print(f"\n{error}")
    assert error.count("\n") == 1 and "the server of" in error and "corrupted or incomplete" in error, error
