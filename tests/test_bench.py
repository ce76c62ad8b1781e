import json
import math
import subprocess
import sys
from dataclasses import asdict, replace

import grimp
import jax
import jax.numpy as jnp
import pytest
from rich.console import Console

import llmrl
from llmrl.bench import costs, crafter, meta_gradients, report, scale, throughput
from llmrl.bench import language as bench_language
from llmrl.bench.processes import missing, worker
from llmrl.bench.suites import SUITES, bench
from llmrl.bench.timing import interleaved, ratios, repeated, spread
from llmrl.bench.worker import PROGRAMS
from llmrl.cli.main import main
from llmrl.settings.config import Config, MethodConfig, PPOConfig, SolverConfig
from llmrl.settings.requests import BENCH_RIVALS, BENCH_SUITES, Bench
from llmrl.settings.validation import from_dict

TINY = PPOConfig(num_envs=2, num_steps=8, num_epochs=1, num_minibatches=1, hidden=(4,))
NO_REJAX = "no/such/python"
HEARD = bench_language.OFFLINE.aux


@pytest.fixture
def cached(monkeypatch):
    """Other processes keep what they compile where this one does, and not in the user's home."""
    if directory := jax.config.jax_compilation_cache_dir:
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", directory)


# --- its place in the library -----------------------------------------------------------------------------------------


def test_only_the_command_imports_the_benchmarks():
    """``import llmrl``, ``llmrl.train`` and every other public function work without ``llmrl.bench``."""
    graph = grimp.build_graph("llmrl", cache_dir=None)
    inside = graph.find_descendants("llmrl.bench") | {"llmrl.bench"}
    outside = graph.modules - inside
    importers = {module for module in outside if graph.find_modules_directly_imported_by(module) & inside}
    assert importers == {"llmrl.cli.main"}
    assert set(llmrl._FUNCTIONS.values()) <= outside


# --- statistics -------------------------------------------------------------------------------------------------------


def test_spread_is_median_and_extremes():
    assert spread([3.0, 1.0, 10.0]) == (3.0, 1.0, 10.0)
    assert spread([2.0]) == (2.0, 2.0, 2.0)


def test_ratios_are_of_the_same_round():
    # Every round twice as slow as the one before, for both: the ratio does not notice.
    slow = [1.0, 2.0, 4.0]
    assert ratios([3 * s for s in slow], slow) == [3.0, 3.0, 3.0]
    with pytest.raises(ValueError, match="2 and 1"):
        ratios([1.0, 1.0], [1.0])


def test_programs_take_turns_and_every_round_starts_with_another():
    calls = []

    def program(name):
        def measure():
            calls.append(name)
            return float(len(calls))

        return measure

    seconds = interleaved({name: program(name) for name in "abc"}, rounds=3)
    assert "".join(calls) == "abc" + "abc" + "bca" + "cab"
    assert seconds == {"a": [4.0, 9.0, 11.0], "b": [5.0, 7.0, 12.0], "c": [6.0, 8.0, 10.0]}


def test_something_short_is_repeated_until_the_time_is_filled():
    calls = []
    measure = repeated(lambda: calls.append(0) or jnp.zeros(()), wished_seconds=0.02)
    before = len(calls)
    seconds = measure()
    repeats = len(calls) - before
    assert repeats > 1
    assert 0 < seconds * repeats < 2.0


def test_cosine_of_pytrees():
    a = {"x": jnp.array([1.0, 0.0]), "y": (jnp.array(0.0),)}
    b = {"x": jnp.array([1.0, 0.0]), "y": (jnp.array(1.0),)}
    assert meta_gradients.cosine(a, b) == pytest.approx(0.5**0.5)
    assert math.isnan(meta_gradients.cosine(a, jax.tree.map(jnp.zeros_like, a)))


def test_a_busy_machine_is_mentioned():
    assert report.busy_warning(None) is None
    assert report.busy_warning(0.0) is None
    assert "believe ratios" in (report.busy_warning(1e6) or "")


# --- suites -----------------------------------------------------------------------------------------------------------


def test_names_are_the_same_everywhere():
    assert tuple(SUITES) == BENCH_SUITES
    assert {name.partition("_")[0] for name in PROGRAMS} == {"llmrl", *BENCH_RIVALS}


@pytest.mark.parametrize(
    "config", [throughput.PLAIN, *throughput.METHODS.values(), meta_gradients.AIDED, bench_language.OFFLINE]
)
def test_settings_survive_the_way_to_another_process(config):
    assert from_dict(json.loads(json.dumps(asdict(config)))) == config


def test_ppo_without_rejax_says_so_and_goes_on(monkeypatch, tmp_path, capsys, cached):
    monkeypatch.setattr(throughput, "PLAIN", replace(throughput.PLAIN, ppo=TINY))
    out = tmp_path / "new" / "bench.json"
    request = Bench(("ppo",), "rejax", NO_REJAX, rounds=1, seeds=(2,), envs=(2,), steps=32, out=str(out))
    tables = bench(request, command="llmrl bench suites=[ppo]")
    printed = capsys.readouterr()
    assert "make bench-rejax" in printed.err
    assert "2 seeds x 2 envs, llmrl" in printed.out
    (row,) = tables["ppo"].rows
    assert len(row.values) == 1 and row.values[0] > 0 and row.ratios == []

    kept = json.loads(out.read_text())
    assert kept["command"] == "llmrl bench suites=[ppo]"
    assert kept["machine"]["cores"] >= 1 and "jax" in kept["versions"]
    assert kept["suites"]["ppo"]["rows"][0]["by_round"]["values"] == row.values


@pytest.fixture
def tiny_costs(monkeypatch):
    tiny = Config(ppo=TINY, aux=throughput.AIDED.aux, method=MethodConfig(name="ppo"), seeds=2)
    monkeypatch.setattr(costs, "AIDED", tiny)


@pytest.mark.slow
def test_a_start_is_measured_cold_and_warm(tiny_costs, capsys):
    table = costs.start(Bench(rounds=1))
    found = {row.name: row for row in table.rows}
    assert len(found) == 2 * (len(costs.PHASES) + 1)
    for state in ("cold", "warm"):
        parts = sum(found[f"{phase}, {state}"].values[0] for phase in costs.PHASES)
        assert 0 < parts < found[f"first result, in all, {state}"].values[0]
    assert found["trace and compile, warm"].ratios[0] < 1


@pytest.mark.slow
def test_seeds_and_memory_are_counted_from_one(tiny_costs, monkeypatch, cached):
    monkeypatch.setattr(costs, "SEEDS", (1, 2))
    one, two = costs.seeds(Bench(rounds=1, steps=64)).rows
    assert one.ratios == [1.0] and two.values[0] > 0
    for row in costs.memory(Bench()).rows:
        assert row.values[0] > 0


def test_methods_are_compared_with_ppo_in_speed_compilation_and_memory(monkeypatch, cached):
    tiny = Config(ppo=TINY, aux=throughput.AIDED.aux, method=MethodConfig(name="ppo"))
    monkeypatch.setattr(throughput, "AIDED", tiny)
    monkeypatch.setattr(throughput, "METHODS", {"ppo": tiny, "add": replace(tiny, method=MethodConfig(name="add"))})
    table = throughput.methods(Bench(rounds=2, seeds=(1,), steps=32))
    reference, other = table.rows
    assert (table.reference, reference.ratios) == ("ppo", [1.0, 1.0])
    assert other.ratios == ratios(other.values, reference.values)
    assert "s (1 x ppo)" in reference.note and "MB (1 x ppo)" in reference.note
    assert other.note.count(" x ppo)") == 2


def test_peers_are_measured_each_as_its_preset():
    assert set(throughput.PEERS) >= {"eipo", "select", "adops", "decoupled", "irpo"}
    assert next(iter(throughput.METHODS)) == throughput.REFERENCE
    for name in (*throughput.PEERS, "twin"):
        composed = llmrl.compose(f"method={name}", "aux=harmful")
        assert throughput.METHODS[name].method == composed.method


def test_training_goes_on_while_a_slow_model_is_asked():
    config = replace(Config(ppo=TINY, method=MethodConfig(name="add"), num_chunks=2, seeds=1, devices=1), aux=HEARD)
    with bench_language.slow_server(0.02) as server:
        program = PROGRAMS["llmrl_chunks"](asdict(replace(config, llm=bench_language.asking(server.url))), 8)
        before = server.answers()
        _, seconds = program.run(program.state)
        assert server.answers() > before
    assert 0 < seconds < 60


@pytest.mark.slow
def test_a_slow_language_model_and_a_large_table_are_measured(monkeypatch, cached):
    quick = replace(Config(ppo=TINY, method=MethodConfig(name="add"), num_chunks=2), seeds=1)
    monkeypatch.setattr(bench_language, "OFFLINE", replace(quick, aux=HEARD))
    monkeypatch.setattr(bench_language, "AIDED", replace(quick, aux=throughput.AIDED.aux))
    monkeypatch.setattr(bench_language, "SECONDS", 0.05)
    table = bench_language.language(Bench(rounds=1, seeds=(1,), steps=64))
    offline, online, unaided, searched = table.rows
    assert offline.ratios == unaided.ratios == [1.0]
    assert online.ratios == ratios(online.values, offline.values)
    assert searched.ratios == ratios(searched.values, unaided.values)
    assert int(online.note.split()[0]) > 0
    assert "65,536 rows" in searched.name


CRAFTER = replace(crafter.PLAIN, ppo=PPOConfig(num_envs=4, num_steps=4, num_epochs=1, num_minibatches=1, hidden=(4,)))


def test_a_rollout_of_bytes_is_twenty_times_smaller():
    pytest.importorskip("craftax")
    one_hot = replace(CRAFTER, env=replace(CRAFTER.env, observation="one_hot"))
    assert crafter.rollout_bytes(one_hot) > 20 * crafter.rollout_bytes(CRAFTER)


def test_worlds_are_handed_to_those_whose_episode_ended_and_shared_where_there_are_fewer():
    done = jnp.array([True, False, True, True])
    reached, fresh = jnp.full((4, 2), 9.0), jnp.arange(4.0).reshape(2, 2)
    expected = [[0.0, 1.0], [9.0, 9.0], [0.0, 1.0], [2.0, 3.0]]
    assert crafter._instead(done, fresh, reached).tolist() == expected


@pytest.mark.slow
def test_crafter_in_all_its_ways(monkeypatch):
    pytest.importorskip("craftax")
    monkeypatch.setattr(crafter, "PLAIN", CRAFTER)
    monkeypatch.setattr(crafter, "LEARNED", replace(crafter.LEARNED, ppo=CRAFTER.ppo))
    with jax.numpy_dtype_promotion("standard"):  # which Craftax's own way asks for
        table = crafter.crafter(Bench(("crafter",), rounds=1, crafter_envs=(4,), steps=16))
    assert [row.name.partition(", ")[2] for row in table.rows][:3] == [
        f"game alone, {way}" for way in (crafter.OWN, crafter.SHARED, crafter.POOLED)
    ]
    assert len(table.rows) == 8 and all(row.values[0] > 0 for row in table.rows)
    assert table.rows[0].ratios == table.rows[3].ratios == [1.0]
    assert "MB" in table.rows[3].note and "of sharing" in table.rows[2].note
    report.show(table, Console(width=200, record=True, quiet=True))


def test_scale_says_how_much_of_the_time_the_outer_step_takes(monkeypatch):
    monkeypatch.setattr(scale, "AIDED", replace(scale.AIDED, ppo=TINY, solver=SolverConfig(name="identity")))
    monkeypatch.setattr(scale, "QUICK_SECONDS", 1e-3)
    table = scale.scale(Bench(("scale",), rounds=1, scale_seeds=(2,), scale_envs=(), quick=True))
    assert [row.name.rpartition(", ")[2] for row in table.rows] == [scale.PPO, scale.TRUSTED, scale.LEARNING]
    assert "2 seeds x" in table.rows[0].name and all(row.values[0] > 0 for row in table.rows)
    assert "% of the time in the outer step" in table.rows[2].note and table.rows[0].ratios == [1.0]
    report.show(table, Console(width=200, record=True, quiet=True))


def test_sizes_that_do_not_fit_are_refused_before_anything_starts():
    with pytest.raises(ValueError, match="num_minibatches"):
        throughput.sized(replace(throughput.PLAIN, ppo=replace(TINY, num_minibatches=3)), 1, 2)


def test_meta_gradients_in_units_of_a_policy_gradient():
    whole = meta_gradients.VARIANTS[0]
    variants = [whole, whole._replace(name="twin", like=whole.name), meta_gradients.VARIANTS[-1]]
    config = replace(meta_gradients.AIDED, ppo=replace(TINY, num_steps=64))  # long enough for a pole to fall
    table = meta_gradients.measured(config, variants, 1, rollouts=2, iterations=2, seconds=1e-3)
    rows = {row.name: row for row in table.rows}
    assert rows[meta_gradients.UNIT].ratios == [1.0]
    assert all(row.values[0] > 0 for row in table.rows)
    assert "cosine with the whole batch's 1.000 (lowest 1.000)" in rows["twin"].note
    assert "10 products" in rows[whole.name].note
    assert all(row.note.endswith(" MB") for row in table.rows)
    report.show(table, Console(width=200, record=True, quiet=True))


def test_every_comparison_is_with_a_variant_on_the_whole_batch():
    variants = {variant.name: variant for variant in meta_gradients.VARIANTS}
    assert len(variants) == len(meta_gradients.VARIANTS)
    for variant in variants.values():
        if variant.like is not None:
            assert variants[variant.like] == variant._replace(name=variant.like, fraction=1.0, like=None)


# --- processes --------------------------------------------------------------------------------------------------------


def test_a_process_that_fails_says_why():
    with (
        pytest.raises(RuntimeError, match="KeyError: 'nonsense'"),
        worker("nonsense", asdict(throughput.PLAIN), 1),
    ):
        pass


def test_missing_packages():
    assert missing(sys.executable, "json") is None
    assert "no Python" in (missing(NO_REJAX, "json") or "")
    assert "ModuleNotFoundError" in (missing(sys.executable, "no_such_package") or "")


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["suites=[ppp]"], "unknown suite 'ppp'; nearest: 'ppo'"),
        (["against=rejx"], "nearest: 'rejax'"),
        (["round=3"], "unknown key 'round'; nearest: 'rounds'"),
        (["rounds=0"], "rounds must be positive, got 0"),
        (["seeds=[8,0]"], "seeds must be positive"),
        (["suites=ppo"], "suites: "),
    ],
)
def test_an_error_is_one_line(words, message, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["bench", *words])
    printed = capsys.readouterr()
    assert exit_.value.code == 2
    assert message in printed.err and printed.err.count("\n") == 1


def test_help_does_not_wait_for_jax():
    script = (
        "import sys\nfrom llmrl.cli.main import main\n"
        "try:\n    main(['bench', '--help'])\nexcept SystemExit:\n    pass\n"
        "assert not {'jax', 'rich', 'gymnax'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
