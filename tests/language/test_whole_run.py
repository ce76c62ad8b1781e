"""A whole run with a key: it is nowhere in what the run leaves or says, however the endpoint behaves (F10)."""

import pytest

pytest.importorskip("openai")

from llmrl.cli import main

TINY = (
    "env=cartpole",
    "aux=language",
    "ppo=tiny",
    "method=add",
    "seeds=2",
    "total_steps=256",
    "num_chunks=2",
    "devices=1",
    "llm=openai",
    "llm.model=m",
    "llm.score=string_similarity",
    "llm.deadline=10",
)


@pytest.mark.parametrize("behaviour", ["echo", pytest.param("ok", marks=pytest.mark.slow)])
def test_the_key_is_nowhere_in_a_whole_run(behaviour, hostile, key, tmp_path, monkeypatch, capfd, caplog):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    monkeypatch.chdir(tmp_path)
    main(["train", *TINY, f"llm.base_url={hostile.url(behaviour, f'whole-{behaviour}')}", "run_dir=runs/x"])
    printed = capfd.readouterr()
    left = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert {"config.yaml", "metrics.csv", "summary.json", "answers.sqlite"} <= {file.name for file in left}
    assert hostile.hits[f"whole-{behaviour}"] > 1
    for file in left:
        assert key.encode() not in file.read_bytes(), file
    assert key not in printed.out + printed.err + caplog.text


@pytest.mark.slow
def test_nor_where_the_key_is_refused(hostile, key, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit_:
        main(["train", *TINY, f"llm.base_url={hostile.url('rejects', 'whole-rejects')}", "run_dir=runs/x"])
    printed = capfd.readouterr()
    assert exit_.value.code == 2
    assert key not in printed.out + printed.err and "Traceback" not in printed.err
    assert all(key.encode() not in file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
