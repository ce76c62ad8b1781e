import json
import os
import shlex
import signal
import subprocess
import sys
import textwrap
import tomllib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import hydra
import pytest
from hydra.errors import MissingConfigException

import llmrl
from llmrl import __main__
from llmrl.cli import main as cli
from llmrl.cli.main import main
from llmrl.runs import directory as runs
from llmrl.runs import metrics
from llmrl.settings import overrides
from llmrl.settings.config import SOLVERS, AuxConfig, Config
from llmrl.settings.errors import install
from llmrl.settings.validation import from_dict, validate
from llmrl.training.stopping import Unheard, second_interrupt_kills

GROUPS = ("env", "aux", "method", "solver", "ppo", "llm", "launcher", "experiment", "track")
CHOICES = [
    (folder.name, file.stem)
    for folder in sorted(overrides.config_dir().iterdir())
    if folder.is_dir()
    for file in sorted(folder.glob("*.yaml"))
]
NEEDS = {
    "gymnax": ("env.id=Acrobot-v1",),
    "function": ("aux.function=os.path.join",),
    "frozen": ("reward_from=elsewhere",),
    "local": ("llm.model=a.gguf",),
}
"""Choices that say nothing without another key."""
PLUGINS = {
    "joblib": "hydra_joblib_launcher",
    "submitit": "hydra_submitit_launcher",
    "slurm": "hydra_submitit_launcher",
    "ray": "hydra_ray_launcher",
}
"""Launchers of an extra that is not there in every environment."""


# --- composing --------------------------------------------------------------------------------------------------------


def test_nothing_chosen_is_the_defaults():
    assert llmrl.compose() == Config(aux=AuxConfig(sources={"harmful": 1.0}))


@pytest.mark.parametrize(("group", "name"), CHOICES)
def test_every_yaml_composes(group, name):
    assert group in GROUPS
    if group == "launcher" and name in PLUGINS:
        pytest.importorskip(f"hydra_plugins.{PLUGINS[name]}")
    config = llmrl.compose(f"{group}={name}", *NEEDS.get(name, ()))
    assert validate(config) == config
    if group in ("env", "method", "solver"):
        assert getattr(config, group).name == name
    if group == "aux" and name not in ("none", "function"):
        assert config.aux.sources == {name: 1.0}


def test_every_solver_and_method_has_its_yaml():
    from llmrl.assembly.methods import METHODS

    chosen = {group: {name for other, name in CHOICES if other == group} for group in GROUPS}
    assert chosen["solver"] == set(SOLVERS)
    assert chosen["method"] == set(METHODS)


def test_several_sources():
    assert llmrl.compose("aux=[harmful,beneficial]").aux.sources == {"harmful": 1.0, "beneficial": 1.0}
    assert llmrl.compose("aux=[pd_bad,noise]", "aux.sources.pd_bad=0.2").aux.sources == {"pd_bad": 0.2, "noise": 1.0}
    assert llmrl.compose("aux=harmful", "aux.sources.harmful=0.5", "+aux.sources.mine=2").aux.sources == {
        "harmful": 0.5,
        "mine": 2.0,
    }


def test_values_get_the_types_of_the_dataclasses():
    config = llmrl.compose(
        "ppo.hidden=[32,16]", "ppo.learning_rate=1e-3", "method.weight.bound=null", "solver.damping=auto", "devices=2"
    )
    assert config.ppo.hidden == (32, 16)
    assert config.ppo.learning_rate == 1e-3
    assert config.method.weight.bound is None
    assert (config.solver.damping, config.devices) == ("auto", 2)


def test_the_plain_method_has_no_evidence():
    trust = llmrl.compose("method=implicit_paper").method.trust
    assert not any((trust.cross_fitting, trust.gate, trust.units, trust.ceiling, trust.advice))


ERRORS = [
    (("env=cartpol",), "unknown environment 'cartpol'; nearest: 'cartpole'"),
    (("aux=harmfull",), "unknown auxiliary reward 'harmfull'; nearest: 'harmful'"),
    (("aux=[random,beneficail]",), "unknown auxiliary reward 'beneficail'; nearest: 'beneficial'"),
    (("method=implict",), "unknown method 'implict'; nearest: 'implicit'"),
    (("solver=neuman",), "unknown solver 'neuman'; nearest: 'neumann'"),
    (("solver.name=neuman",), "unknown solver.name 'neuman'; nearest: 'neumann'"),
    (("sed=3",), "unknown key 'sed'; nearest: 'seed'"),
    (("+sed=3",), "unknown key 'sed'; nearest: 'seed'"),
    (("lancher=joblib",), "unknown key 'lancher'; nearest: 'launcher'"),
    (("experimant=no_regret",), "unknown key 'experimant'; nearest: 'experiment'"),
    (("ppo.learning_rat=3",), "unknown key 'ppo.learning_rat'; nearest: 'ppo.learning_rate'"),
    (("method.trust.patience=0",), "method.trust.patience is called method.trust.advice_patience now"),
    (("entropy=3",), "unknown key 'entropy'; nearest: 'ppo.entropy'"),
    (("pppo.clip=3",), "unknown key 'pppo'; nearest: 'ppo'"),
    (("method.wieght.bound=3",), "unknown key 'method.wieght'; nearest: 'method.weight'"),
    (("aux.sources.mine=3",), "+aux.sources.mine="),
    (("seeds=1.5",), "seeds: Value '1.5'"),
    (("ppo.num_envs=many",), "ppo.num_envs: Value 'many'"),
    (("ppo.hidden=3",), "ppo.hidden: "),
    (("seeds=0",), "seeds must be positive, got 0"),
    (("ppo.discount=1.5",), "ppo.discount must lie in [0, 1], got 1.5"),
    (("ppo.num_minibatches=3",), "ppo.num_minibatches must divide"),
    (("ppo.num_minibatches=2048",), "ppo.num_minibatches=2048 leaves 1 of num_envs * num_steps = 2048 steps to each"),
    (("method.weight.initial=2",), "got 2.0"),
    (("method.weight.spread=-1",), "method.weight.spread must be at least 0, got -1"),
    (("method.weight.spread=2", "method.weight.whiten=false"), "method.weight.spread=2.0 is for a network"),
    (("method.weight.clip_steps=0",), "method.weight.clip_steps must be positive, got 0.0"),
    (
        ("method.weight.clip_steps=0.1", "method.weight.network=false"),
        "method.weight.clip_steps=0.1 is for what a network",
    ),
    (("method.weight.residual=2",), "method.weight.residual must lie in [0, 1], got 2"),
    (("method=scalar", "method.weight.residual=0.5"), "method.weight.residual=0.5 is for what a network"),
    (("method=pies", "method.potential.decay=2"), "method.potential.decay must lie in (0, 1], got 2.0"),
    (("method.potential.updates=0",), "method.potential.updates must be positive, got 0"),
    (("method.potential.hidden=[]",), "method.potential.hidden needs at least one positive width, got []"),
    (("method.outer.warmup=-1",), "method.outer.warmup must be at least 0, got -1"),
    (("method.outer.gradient=unroled",), "unknown method.outer.gradient 'unroled'; nearest: 'unrolled'"),
    (("method.outer.data=pasta",), "unknown method.outer.data 'pasta'; nearest: 'past'"),
    (("method=bipars_imgl", "method.outer.data=window"), "needs method.outer.data=previous or past"),
    (("method=bipars_imgl", "method.trust.cross_fitting=true"), "got past and true"),
    (("method=frozen",), "method=frozen needs the run whose reward it trains under, as in reward_from=runs/x"),
    (("method=scalar", "reward_from=runs/x"), "reward_from=runs/x goes with method=frozen only, got method=scalar"),
    (("method=scalar", "reward_seed=2"), "reward_seed=2 goes with method=frozen only"),
    (("method=frozen", "reward_from=runs/x", "reward_seed=-1"), "reward_seed must be at least 0, got -1"),
    (("seeds=1,2",), "add --multirun"),
    (("env=gymnax",), "env.id"),
    (("aux=function",), "aux.function"),
    (("seed==",), "seed"),
    (("nonsense",), "nonsense"),
]


@pytest.mark.parametrize(("words", "message"), ERRORS)
def test_an_error_is_one_line_with_the_nearest_right_thing(words, message, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["train", *words])
    printed = capsys.readouterr()
    assert exit_.value.code == 2
    assert printed.out == ""
    assert message in printed.err
    assert printed.err.count("\n") == 1


@pytest.mark.parametrize(("words", "message"), ERRORS)
def test_python_gets_the_same_error(words, message):
    with pytest.raises(ValueError) as error:
        llmrl.compose(*words)
    assert message in str(error.value)


# --- commands ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def trained(monkeypatch, tmp_path):
    """Configs that a stand-in for training was called with; the working directory is empty."""
    configs = []
    row = {"mean": 1.0, "low": 0.5, "high": 1.5, "by_seed": [0.5, 1.5]}

    def train(config):
        configs.append(config)
        if config.seed == 13:
            raise FileNotFoundError("no luck")
        if config.seed == 14:
            return [][0]
        return SimpleNamespace(summary={"final": {"episode_return": row}, "seeds": 2})

    monkeypatch.setitem(sys.modules, "llmrl.training.loop", SimpleNamespace(train=train))
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    monkeypatch.chdir(tmp_path)
    return configs


def test_train_names_a_run_after_its_choices(trained, capsys, tmp_path):
    main(["train", "env=gridworld", "aux=[harmful,random]", "method=add", "seed=3", "progress=false", "seeds=4"])
    main(["train", "ppo.learning_rate=1e-3", "env.params={}", "+aux.sources.x=1"])
    main(["train", "run_dir=here"])
    assert [config.run_dir for config in trained] == [
        "runs/gridworld-harmful-random-add-s3-seeds-4",
        "runs/cartpole-harmful-x-implicit-s0-aux.sources.x-1-env.params-ppo.learning_rate-1e-3",
        "here",
    ]
    assert replace(trained[0], run_dir=None) == llmrl.compose(
        "env=gridworld", "aux=[harmful,random]", "method=add", "seed=3", "progress=false", "seeds=4"
    )
    assert "episode_return" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []  # Hydra leaves nothing behind


def test_multirun_gives_every_run_its_own_directory(trained, tmp_path):
    main(["train", "--multirun", "method=ppo,add", "solver.num_terms=1,5"])
    assert len({config.run_dir for config in trained}) == 4
    assert {config.method.name for config in trained} == {"ppo", "add"}
    assert [entry.name for entry in tmp_path.iterdir()] == ["runs"]
    assert [entry.name for entry in (tmp_path / "runs").iterdir()] == [".sweeps"]


def test_multirun_of_an_experiment(trained):
    main(["train", "--multirun", "experiment=no_regret", "env=cartpole", "aux=harmful", "seeds=2"])
    assert [config.method.name for config in trained] == ["ppo", "add", "implicit"]
    assert {config.seeds for config in trained} == {2}


@pytest.fixture
def gridded(monkeypatch, tmp_path):
    """Configs, grids and commands that a stand-in for grids was called with; the working directory is empty."""
    asked = []

    def tabulate(config, grid, command):
        asked.append((config, grid, command))
        return f"{config.run_dir}/table.md"

    monkeypatch.setitem(sys.modules, "llmrl.studies.sweeps", SimpleNamespace(tabulate=tabulate))
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    monkeypatch.chdir(tmp_path)
    return asked


def test_a_grid_inside_one_program(gridded, capsys):
    main(["train", "seeds=4", "sweep.vmap.ppo.entropy=[0,1e-2]", "+sweep.vmap.outer.learning_rate=[1e-3]"])
    config, grid, command = gridded[0]
    assert grid == {"ppo.entropy": [0, 0.01], "outer.learning_rate": [0.001]}
    name = "seeds-4-sweep.vmap.outer.learning_rate-0.001-sweep.vmap.ppo.entropy-0-0.01"
    assert config.run_dir == f"runs/cartpole-harmful-implicit-s0-{name}"
    assert replace(config, run_dir=None) == llmrl.compose("seeds=4")
    assert overrides.without_grid(shlex.split(command)[2:]) == (["seeds=4"], grid)
    assert capsys.readouterr().out == f"{config.run_dir}/table.md\n"


def test_a_grid_for_each_run_of_a_sweep(gridded):
    main(["train", "-m", "method=scalar,implicit", "sweep.vmap.entropy=[0,0.01]"])
    assert [config.method.name for config, _, _ in gridded] == ["scalar", "implicit"]
    assert [grid for _, grid, _ in gridded] == [{"entropy": [0, 0.01]}] * 2
    assert len({config.run_dir for config, _, _ in gridded}) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "sweep.vmap.ppo.entropy=0,0.01"], "as in sweep.vmap.ppo.entropy=[0,0.01], got '0,0.01'"),
        (["train", "sweep.vmap.ppo.entropy=3"], "sweep.vmap.ppo.entropy takes a list"),
        (["train", "sweep.vmap.ppo.entropy"], "sweep.vmap.ppo.entropy takes a list"),
        (["train", "sweep.vmap.ppo.entropy=[0", "seeds=3"], "as in sweep.vmap.ppo.entropy=[0], got '[0'"),
        (["train", "sweep.entropy=[0,1]"], "sweep.vmap.ppo.entropy=[0,0.01], got sweep.entropy=[0,1]"),
        (["train", "sweep.vmap.entropy=[0]", "sweep.vmap.entropy=[1]"], "sweep.vmap.entropy is given twice"),
        (["train", "sweep.vmap.llm.api_key=[sk-1]"], "llm.api_key is refused"),
        (["compare", "sweep.vmap.entropy=[0,1]"], "is for `llmrl train` alone"),
    ],
)
def test_a_grid_that_cannot_be_read_is_one_line(words, message, gridded, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(words)
    printed = capsys.readouterr()
    assert (exit_.value.code, gridded, printed.out) == (2, [], "")
    assert message in printed.err
    assert "sk-1" not in printed.err
    assert printed.err.count("\n") == 1


def test_in_python_a_grid_is_no_override():
    with pytest.raises(ValueError, match=r"llmrl\.sweep\("):
        llmrl.compose("sweep.vmap.ppo.entropy=[0,0.01]")


def test_one_bad_run_does_not_stop_the_others(trained, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["train", "--multirun", "seed=12,13,15"])
    assert exit_.value.code == 2
    assert [config.seed for config in trained] == [12, 13, 15]
    printed = capsys.readouterr().err
    assert "seed=13" in printed
    listed = "llmrl: 1 of the sweep's points failed; the same command tries them again\n  seed=13: no luck\n"
    assert printed.endswith(listed)
    assert "Error executing" not in printed
    assert "Traceback" not in printed


def test_errors_of_the_disk_are_one_line_and_bugs_keep_their_traceback(trained, capsys, monkeypatch):
    with pytest.raises(SystemExit):
        main(["train", "seed=13"])
    assert capsys.readouterr().err == "llmrl: no luck\n"
    with pytest.raises(IndexError):
        main(["train", "seed=14"])
    monkeypatch.setenv("LLMRL_DEBUG", "1")
    with pytest.raises(FileNotFoundError):
        main(["train", "seed=13"])


def test_interrupted(trained, capsys, monkeypatch):
    def interrupted(config):
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["llmrl.training.loop"], "train", interrupted)
    with pytest.raises(SystemExit) as exit_:
        main(["train"])
    assert exit_.value.code == 130
    assert "goes on" in capsys.readouterr().err


def test_evaluate_asks_for_the_runs_own_environment_unless_told(monkeypatch, capsys):
    asked = []

    def evaluate(*request):
        asked.append(request)
        return {"final": {}, "seeds": 2}

    monkeypatch.setitem(sys.modules, "llmrl.results.evaluate", SimpleNamespace(evaluate=evaluate))
    main(["evaluate", "run_dir=x"])
    main(["evaluate", "run_dir=x", "env=gridworld", "env.size=5", "episodes=7", "seed=2"])
    assert asked[0] == ("x", None, 100, 0, True)
    assert (asked[1][1].name, asked[1][1].size, asked[1][2:]) == ("gridworld", 5, (7, 2, True))
    for words, message in (
        (["env=cartpol", "run_dir=x"], "'cartpole'"),
        ([], "run_dir"),
        (["run_di=x"], "'run_dir'"),
        (["run_dir=x", "env.size=3"], "env=..."),
        (["run_dir=x", "episodes=0"], "episodes"),
    ):
        with pytest.raises(SystemExit) as exit_:
            main(["evaluate", *words])
        assert exit_.value.code == 2
        assert message in capsys.readouterr().err


def test_report_takes_directories_without_a_key(monkeypatch, capsys):
    asked = []

    def report(*paths, **options):
        asked.append((*paths, options))
        return "out/index.html"

    monkeypatch.setitem(sys.modules, "llmrl.results.report.page", SimpleNamespace(report=report))
    main(["report", "runs/x", "it's a [run], isn't it", "runs/*", "out=there", "dims=[angle,cart velocity]"])
    assert asked[0][:2] == (("runs/x", "it's a [run], isn't it", "runs/*"), "there")
    assert asked[0][2] == {
        "measure": None,
        "dims": ("angle", "cart velocity"),
        "trust": True,
        "command": shlex.join(["llmrl", "report", *asked[0][0], "out=there", "dims=[angle,cart velocity]"]),
    }
    assert capsys.readouterr().out == "out/index.html\n"
    for words, message in (
        ([], "llmrl report runs"),
        (["x", "mesure=y"], "'measure'"),
        (["x", "dims=[angle]"], "dims"),
    ):
        with pytest.raises(SystemExit) as exit_:
            main(["report", *words])
        assert exit_.value.code == 2
        assert message in capsys.readouterr().err


def test_figure_takes_its_number_without_a_key(monkeypatch, capsys):
    asked = []

    def figure(number, **options):
        asked.append((number, options))
        assert llmrl.compose("method=add").method.name == "add"  # as a figure does, inside the application
        return "figure1.png"

    monkeypatch.setitem(sys.modules, "llmrl.studies.figures", SimpleNamespace(figure=figure))
    main(["figure", "1", "seeds=4", "shard=1/2", "quick=true", "methods=[ppo,add]"])
    number, options = asked[0]
    assert number == 1
    assert (options["seeds"], options["shard"], options["quick"]) == (4, "1/2", True)
    assert (options["methods"], options["processes"], options["helpful"]) == (("ppo", "add"), 1, False)
    assert options["command"] == "llmrl figure 1 seeds=4 shard=1/2 quick=true 'methods=[ppo,add]'"
    for words, message in (
        ([], "number"),
        (["1", "2"], "one number, got 1 2"),
        (["one"], "number: Value 'one'"),
        (["1", "processes=0"], "processes"),
        (["1", "sedes=3"], "'seeds'"),
    ):
        with pytest.raises(SystemExit) as exit_:
            main(["figure", *words])
        assert exit_.value.code == 2
        assert message in capsys.readouterr().err


def test_suite_passes_on_what_it_is_asked(monkeypatch, capsys):
    asked = []

    def suite(**options):
        asked.append(options)
        return "index.html"

    monkeypatch.setitem(sys.modules, "llmrl.studies.suite", SimpleNamespace(suite=suite))
    main(["suite", "quick=true", "methods=[scalar]", "shard=1/2", "devices=1"])
    assert {name: value for name, value in asked[0].items() if value not in ((), None)} == {
        "set": "development",
        "quick": True,
        "methods": ("scalar",),
        "processes": 1,
        "shard": "1/2",
        "devices": 1,
        "dry_run": False,
        "command": "llmrl suite quick=true 'methods=[scalar]' shard=1/2 devices=1",
    }
    main(["suite", "--multirun", "set=report", "shard=1/2,2/2"])
    assert [(options["set"], options["shard"]) for options in asked[1:]] == [("report", "1/2"), ("report", "2/2")]
    assert capsys.readouterr().out == "index.html\n" * 3
    for words, message in ((["set=reprot"], "'report'"), (["processes=0"], "processes"), (["task=[x]"], "'tasks'")):
        with pytest.raises(SystemExit) as exit_:
            main(["suite", *words])
        assert exit_.value.code == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("launcher", PLUGINS)
def test_every_launcher_fits_the_suite(launcher):
    pytest.importorskip(f"hydra_plugins.{PLUGINS[launcher]}")
    overrides.register_schemas()
    with overrides._own_hydra():
        node = hydra.compose("suite", [f"launcher={launcher}", "shard=1/2"])
    assert overrides.to_suite(node).devices == ("auto" if launcher == "slurm" else 1)


def test_compare_passes_on_what_a_run_is_told(monkeypatch, capsys):
    asked = []

    def compare(*request, **options):
        asked.append((*request, options))
        return "comparison.png"

    monkeypatch.setitem(sys.modules, "llmrl.studies.compare", SimpleNamespace(compare=compare))
    main(["compare", "aux=language", "llm.noise=0.5", "method=scalar", "beside=[ppo]"])
    main(["compare", "run_dir=here", "method.trust.gate=false"])
    assert asked[0][:3] == (
        ["aux=language", "llm.noise=0.5", "method=scalar"],
        ("ppo",),
        "runs/cartpole-language-compare-s0-llm.noise-0.5",
    )
    assert asked[0][3] == {
        "command": "llmrl compare aux=language llm.noise=0.5 method=scalar 'beside=[ppo]'",
    }
    assert asked[1][:3] == (["method.trust.gate=false"], ("ppo", "add"), "here")
    assert capsys.readouterr().out == "comparison.png\n" * 2
    for words, message in ((["beside=[pppo]"], "'ppo'"), (["besides=[ppo]"], "'beside'"), (["seeds=0"], "seeds")):
        with pytest.raises(SystemExit) as exit_:
            main(["compare", *words])
        assert exit_.value.code == 2
        assert message in capsys.readouterr().err


def test_a_flags_value_is_no_positional_word(capsys):
    main(["figure", "--cfg", "job", "1"])
    assert "number: 1" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["trian"], ["--trian"]])
def test_unknown_command(words, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(words)
    assert exit_.value.code == 2
    assert "nearest: 'train'" in capsys.readouterr().err


# --- starting fast ----------------------------------------------------------------------------------------------------

SLOW = ("jax", "flax", "gymnax", "orbax", "matplotlib", "rich")


READING = (
    ["--help"],
    ["--version"],
    ["train", "--help"],
    ["train", "--cfg", "job"],
    ["compare", "--help"],
    ["evaluate", "--help"],
    ["report", "--help"],
    ["figure", "--cfg", "job", "1"],
    ["suite", "--help"],
    ["train", "seeds=0"],
)
"""Commands, in this order in one process, so that the first that imports too much is named."""


def test_what_only_reads_configs_does_not_import_jax():
    script = (
        "import sys, json\nfrom llmrl.cli.main import main\nimported = {}\n"
        f"for words in {READING!r}:\n    try:\n        main(words)\n    except SystemExit:\n        pass\n"
        f"    imported[' '.join(words)] = [name for name in {SLOW!r} if name in sys.modules]\n"
        "print(json.dumps(imported))"
    )
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert json.loads(process.stdout.splitlines()[-1]) == {" ".join(words): [] for words in READING}


def test_help_names_groups_and_keys(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    printed = capsys.readouterr().out
    for word in (*GROUPS, "implicit_paper", "learning_rate", "--multirun"):
        assert word in printed


@pytest.mark.parametrize("command", ["figure", "suite", "report", "status", "bench"])
def test_commands_without_groups_name_none(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    printed = capsys.readouterr().out
    assert "== Keys" in printed
    assert "implicit_paper" not in printed
    with pytest.raises(SystemExit) as exit_:
        main([command, "method=implicit"])
    assert exit_.value.code == 2
    assert "method=... is not for this command" in capsys.readouterr().err


def test_cfg_job_is_a_config(capsys):
    import yaml

    main(["train", "--cfg", "job", "aux=harmful", "seeds=3"])
    assert from_dict(yaml.safe_load(capsys.readouterr().out)) == llmrl.compose("aux=harmful", "seeds=3")


def test_importing_the_package_is_free_and_its_functions_are_not_hidden_by_modules():
    script = (
        "import sys, llmrl\n"
        "assert 'jax' not in sys.modules and 'hydra' not in sys.modules\n"
        "import llmrl.training.loop, llmrl.settings.overrides\n"
        "from llmrl.training.loop import train\n"
        "assert callable(llmrl.compose) and llmrl.train is train\n"
        "assert callable(llmrl.implicit_gradient) and callable(llmrl.plot)\n"
        "assert callable(llmrl.bilevel.solvers.neumann) and llmrl.trust.learner\n"
        "assert set(llmrl.__all__) <= set(dir(llmrl))\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize("modes", [("--multirun", "--cfg", "job"), ("-m", "-c", "job"), ("--cfg=job", "--multirun")])
def test_two_modes_of_hydra_are_refused_in_one_line(modes, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["train", *modes])
    assert exit_.value.code == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "exclude each other" in told


def test_a_launcher_that_is_missing_says_what_to_install():
    missing = MissingConfigException("", "hydra/launcher/submitit_local", ["basic"])
    assert overrides.explain(missing) == f"this launcher is not installed: {install('cluster')}"


# --- leaving ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_closed_pipe_ends_quietly(stream, trained, monkeypatch, capfd):
    from llmrl.training.progress import note, show_summary

    def heard(config):
        note("something")
        show_summary({"final": {}, "seeds": 1}, title="something")

    monkeypatch.setattr(sys.modules["llmrl.training.loop"], "train", heard)
    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as closed, monkeypatch.context() as patched:
        patched.setattr(sys, stream, closed)
        with pytest.raises(SystemExit) as exit_:
            main(["train"])
    assert exit_.value.code == 141
    assert "Errno" not in capfd.readouterr().err


def test_a_closed_pipe_fails_no_run(tmp_path):
    with pytest.raises(Unheard), runs.open_run(Config(run_dir=str(tmp_path))):
        raise Unheard
    assert runs.failure(tmp_path) is None


def test_the_second_interrupt_is_left_to_the_system():
    before = signal.getsignal(signal.SIGINT)
    with second_interrupt_kills():
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before
    try:
        with pytest.raises(KeyboardInterrupt), second_interrupt_kills():
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGINT, before)


INTERRUPTED = {
    "raised": """
        import signal
        from llmrl.cli import main as cli

        cli._run_application = lambda *_: signal.raise_signal(signal.SIGINT)
        cli.main(["train"])
    """,
    "importing": """
        import signal, sys
        from llmrl import __main__ as script

        class Interrupting:
            def find_spec(self, name, *_):
                if name == "llmrl.cli.main":
                    signal.raise_signal(signal.SIGINT)

        sys.meta_path.insert(0, Interrupting())
        script.main()
    """,
    "dropped": """
        import gc, signal
        from llmrl.training.stopping import second_interrupt_kills

        with second_interrupt_kills():
            gc.callbacks.append(lambda *_: signal.raise_signal(signal.SIGINT))
            gc.collect()
            print("goes on")
    """,
}


@pytest.mark.parametrize("kind", INTERRUPTED)
def test_an_interrupt_ends_the_process_by_its_signal_without_a_traceback(kind):
    script = textwrap.dedent(INTERRUPTED[kind])
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    told = "llmrl: interrupted; the same command goes on where this one stopped\n" if kind == "raised" else ""
    assert (process.returncode, process.stdout, process.stderr) == (-signal.SIGINT, "", told)


def test_the_console_script_is_what_waits_for_an_interrupt(monkeypatch):
    scripts = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {"llmrl": "llmrl.__main__:main"}
    before, seen = signal.getsignal(signal.SIGINT), []
    monkeypatch.setattr(cli, "main", lambda: seen.append(signal.getsignal(signal.SIGINT)))
    __main__.main()
    assert seen == [before] == [signal.getsignal(signal.SIGINT)]


def test_a_sweep_trains_what_hears_no_source_once(monkeypatch, tmp_path, capsys):
    """The other directory is a link, which the same run asked for alone leaves as it is."""
    trained = []

    def train(config):
        trained.append(config.method.name)
        with runs.open_run(config) as run:
            summary = {"final": {}, "seeds": 2, "steps_per_second": 1.0, "versions": metrics.versions()}
            metrics.write_summary(run.summary_path, summary)
        return SimpleNamespace(summary=summary)

    monkeypatch.setitem(sys.modules, "llmrl.training.loop", SimpleNamespace(train=train))
    monkeypatch.chdir(tmp_path)
    main(["train", "--multirun", "method=ppo,add", "aux=harmful,random", "seeds=2"])
    assert sorted(trained) == ["add", "add", "ppo"]
    first, second = (tmp_path / f"runs/cartpole-{aux}-ppo-s0-seeds-2" for aux in ("harmful", "random"))
    assert second.resolve() == first.resolve()
    assert "method=ppo hears no source" in capsys.readouterr().err
    main(["train", "method=ppo", "aux=random", "seeds=2"])
    assert len(trained) == 3 and second.is_symlink()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["train", "method=[ppo,add]"], "method takes one choice, got [ppo,add]; method=ppo,add --multirun runs each"),
        (["train", "--steps", "2000"], "unknown option --steps; settings are written key=value, as in steps=..."),
        (["train", "--total-steps=2000"], "as in total_steps=2000"),
        (["train", "env=river.river"], "one of your own is env=gymnax env.id=my_module.my_function"),
        (["train", "env=gymnax", "env.id=river", "aux=none"], "one of your own is env=gymnax env.id=my_module"),
        (["evaluate", "runs/not there"], "runs/not there"),
    ],
)
def test_slips_of_a_first_hour_are_one_line(words, told, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit_:
        main(words)
    assert exit_.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line
