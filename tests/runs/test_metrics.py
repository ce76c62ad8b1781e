import contextlib
import json

import numpy as np
import pytest

from llmrl.runs.metrics import append, index, read, summary, truncate, write_summary


def chunk(first, iterations, seeds=3):
    rng = np.random.default_rng(first)
    return {
        "episode_return": rng.normal(size=(seeds, iterations)).astype(np.float32),
        "meta_matvecs": rng.integers(0, 20, size=(seeds, iterations), dtype=np.int32),
        "discount": rng.uniform(size=(seeds, iterations)).astype(np.float32),
    }


def test_what_was_appended_is_read_back_exactly(tmp_path):
    path = tmp_path / "metrics.csv"
    first, second = chunk(0, 4), chunk(4, 2)
    first["episode_return"][0, :3] = [np.nan, np.inf, np.float32(1e-42)]  # the last one is subnormal
    append(path, first, 0, 64)
    append(path, second, 4, 64)
    curves = read(path)
    for name in first:
        np.testing.assert_array_equal(curves[name], np.concatenate([first[name], second[name]], axis=1))
    np.testing.assert_array_equal(curves["seed"][:, 0], [0, 1, 2])
    np.testing.assert_array_equal(curves["iteration"][0], np.arange(6))
    np.testing.assert_array_equal(curves["env_steps"][2], 64 * np.arange(1, 7))
    assert curves["episode_return"].dtype == np.float32


def test_a_run_in_memory_has_the_same_index(tmp_path):
    append(tmp_path / "metrics.csv", chunk(0, 5), 0, 64)
    written = read(tmp_path / "metrics.csv")
    for name, column in index(chunk(0, 5), 64).items():
        np.testing.assert_array_equal(column, written[name])
        assert column.dtype == written[name].dtype


def test_every_float32_survives_being_written(tmp_path):
    bits = np.random.default_rng(0).integers(0, 2**32, size=(1, 20_000), dtype=np.uint32).view(np.float32)
    values = np.where(np.isfinite(bits), bits, np.float32(0))
    append(tmp_path / "metrics.csv", {"x": values}, 0, 1)
    np.testing.assert_array_equal(read(tmp_path / "metrics.csv")["x"], values)


def test_one_row_per_seed_and_iteration(tmp_path):
    append(tmp_path / "metrics.csv", chunk(0, 2), 0, 64)
    lines = (tmp_path / "metrics.csv").read_text().splitlines()
    assert lines[0] == "seed,iteration,env_steps,episode_return,discount,meta_matvecs"
    assert [line.split(",")[:3] for line in lines[1:]] == [
        [str(seed), str(iteration), str(64 * (iteration + 1))] for iteration in range(2) for seed in range(3)
    ]


def test_truncating_undoes_appending(tmp_path):
    path = tmp_path / "metrics.csv"
    append(path, chunk(0, 3), 0, 64)
    before = path.read_bytes()
    append(path, chunk(3, 2), 3, 64)
    truncate(path, 3)
    assert path.read_bytes() == before
    truncate(path, 0)
    assert path.read_bytes() == b""
    append(path, chunk(0, 3), 0, 64)
    assert path.read_bytes() == before


@pytest.mark.parametrize("lost", [1, 7, 40])
def test_a_half_written_row_is_dropped(tmp_path, lost):
    path = tmp_path / "metrics.csv"
    append(path, chunk(0, 3), 0, 64)
    before = path.read_bytes()
    append(path, chunk(3, 2), 3, 64)
    path.write_bytes(path.read_bytes()[:-lost])
    truncate(path, 3)
    assert path.read_bytes() == before


@pytest.mark.parametrize("lost", [1, 7, 40, 60])
def test_what_a_killed_process_wrote_in_part_is_left_out(tmp_path, lost):
    path = tmp_path / "metrics.csv"
    append(path, chunk(0, 3), 0, 64)
    before = read(path)
    append(path, chunk(3, 1), 3, 64)
    path.write_bytes(path.read_bytes()[:-lost])
    after = read(path)
    assert after.keys() == before.keys()
    for name, curve in before.items():
        np.testing.assert_array_equal(after[name], curve)


DAMAGES = {
    "half a row": lambda rows: [*rows, b"0,3,256,1.5\n"],
    "bytes": lambda rows: [*rows, b"\xff\xfe\x00\x81\n", b"\xff"],
    "a broken row": lambda rows: [*rows[:10], b"0,3,256,what,1,2\n", *rows[10:]],
    "a longer row": lambda rows: [*rows[:10], rows[10].strip() + b",1\n", *rows[11:]],
    "a lost row": lambda rows: [*rows[:10], *rows[11:]],
    "a row twice": lambda rows: [*rows[:10], rows[9], *rows[10:]],
    "a byte order mark": lambda rows: [b"\xef\xbb\xbf" + rows[0], *rows[1:10]],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_comes_before_a_damage_is_read(tmp_path, damage):
    path = tmp_path / "metrics.csv"
    append(path, chunk(0, 3), 0, 64)
    before = read(path)
    rest = chunk(3, 2) if damage.startswith(("a broken", "a lo", "a row")) else None
    if rest:
        append(path, rest, 3, 64)
    path.write_bytes(b"".join(DAMAGES[damage](path.read_bytes().splitlines(keepends=True))))
    with pytest.warns(UserWarning, match="is damaged") if rest else contextlib.nullcontext():
        after = read(path)
    assert after.keys() == before.keys()
    for name, curve in before.items():
        np.testing.assert_array_equal(after[name], curve)
    truncate(path, 2)
    assert read(path)["iteration"][0].tolist() == [0, 1]


@pytest.mark.parametrize("text", ["x,y\n1,2\n", "\n", "\x00\x81\n"])
def test_a_file_of_other_columns_is_refused_in_one_line(tmp_path, text):
    (tmp_path / "metrics.csv").write_text(text)
    with pytest.raises(ValueError, match=r"must start with the columns seed,iteration,env_steps"):
        read(tmp_path / "metrics.csv")


@pytest.mark.parametrize("text", ["seed,iteration,env_steps,x\n", "seed,iteration,env_steps,x\n0,0,64,0.5"])
def test_a_file_without_a_complete_row_is_refused_in_one_line(tmp_path, text):
    (tmp_path / "metrics.csv").write_text(text)
    with pytest.raises(ValueError, match="no complete row"):
        read(tmp_path / "metrics.csv")


def test_rows_that_should_be_there_are_missed(tmp_path):
    path = tmp_path / "metrics.csv"
    truncate(path, 0)
    assert not path.exists()
    with pytest.raises(ValueError, match="missing"):
        truncate(path, 2)
    append(path, chunk(0, 3), 0, 64)
    with pytest.raises(ValueError, match="ends at iteration 2"):
        truncate(path, 5)


def test_other_metrics_are_refused(tmp_path):
    path = tmp_path / "metrics.csv"
    append(path, chunk(0, 1), 0, 64)
    with pytest.raises(ValueError, match="columns"):
        append(path, {"episode_return": np.zeros((3, 1), np.float32)}, 1, 64)
    append(path, dict(reversed(chunk(1, 1).items())), 1, 64)
    np.testing.assert_array_equal(read(path)["discount"][:, 1:], chunk(1, 1)["discount"])


@pytest.mark.parametrize("seeds", [3, 5])
def test_summary_says_how_training_ended(tmp_path, seeds):
    ramps = np.arange(20, dtype=np.float32) + 10 * np.arange(seeds, dtype=np.float32)[:, None]
    never = np.full((seeds, 20), np.nan, np.float32)
    values = summary(
        {"episode_return": ramps, "success_rate": never},
        steps_per_iteration=64,
        compile_seconds=2.0,
        run_seconds=4.0,
        run_iterations=10,
    )
    ends = values["final"]["episode_return"]
    assert ends["by_seed"] == [18.5 + 10 * seed for seed in range(seeds)]
    assert ends["mean"] == 18.5 + 5 * (seeds - 1)
    if seeds < 5:
        assert ends["low"] is ends["high"] is None
    else:
        assert 18.5 <= ends["low"] < ends["mean"] < ends["high"] <= 58.5
    assert values["area"]["episode_return"]["mean"] == ends["mean"] - 9.0
    assert values["final"]["success_rate"]["mean"] is None
    assert values["steps_per_second"] == 10 * 64 * seeds / 4
    assert values["env_steps"] == 20 * 64
    assert {"python", "jax"} <= set(values["versions"])
    write_summary(tmp_path / "summary.json", values)
    assert json.loads((tmp_path / "summary.json").read_text()) == values
