"""``llmrl check``: whatever is wrong with an environment, a source or a captioner is a line that names the function,
what came and what was expected, and never a traceback; what is right is said too."""

import itertools
import random
import re
import sys
from types import ModuleType

import gym_worlds
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from broken import (
    CAPTIONERS,
    ENVIRONMENTS,
    LINE,
    SOURCES,
    changed,
    field,
    hint,
    resets,
    spec,
    state,
    words,
)

import llmrl
from llmrl.cli.main import main
from llmrl.envs import with_aux
from llmrl.envs.base import action_shape
from llmrl.envs.caption_checks import caption_notes, captions
from llmrl.envs.playing import INSTANCES, _actions, play
from llmrl.envs.playing_checks import notes, played_faults
from llmrl.studies.check import WRONG, _of_the_host, findings
from llmrl.types import Box, Codes, Discrete, Environment

SHORT = {"steps": 10, "seconds": 1000.0}

RESET, STEP = r"reset\(key\)", r"step\(key, state, action\)"

# --- what shapes do not show ------------------------------------------------------------------------------------------


def every(number, usual, rarely):
    """A function of Python's own memory: every so many calls it does something else. Traced a few times it is the
    same program."""
    calls = itertools.count(1)
    return lambda *arguments: (usual if next(calls) % number else rarely)(*arguments)


COIN = random.Random(0)


class Remembering:
    """An environment whose time lies in Python."""

    def __init__(self):
        self.time = 0

    def step(self, key, at, action):
        self.time += 1
        at, result = LINE.step(key, at, action)
        return at, result._replace(truncated=jnp.asarray(self.time % 7 == 0))


def calling(function, method="sequential"):
    """The same on the host, one number at a time."""
    return lambda x: jax.pure_callback(function, jax.ShapeDtypeStruct((), jnp.float32), x, vmap_method=method)


def raising(x):
    raise LookupError("no such place")


def encoded(place):
    """Observations that are bytes, the second of them as large as the time."""

    def seen(at):
        return jnp.stack([jnp.uint8(0), at["time"].astype(jnp.uint8)])

    def step(key, at, action):
        at, result = LINE.step(key, at, action)
        return at, result._replace(obs=seen(at))

    codes = Codes(2, ((0.0,), (1.0,)))
    described = changed(LINE.spec, encoding=(codes,))
    return Environment(described, lambda key: (LINE.reset(key)[0], seen(LINE.reset(key)[0])), step)


PLAYED_ENVIRONMENTS = {
    "a reward of NaN": (
        field(reward=lambda x: jnp.log(x - 1.0) * 0.0),
        rf"{STEP} returned reward nan at step 1 of an episode, which repeats action 0; expected a finite number",
    ),
    "an infinite reward": (field(reward=lambda x: 1.0 / (1.0 - x)), rf"{STEP} returned reward inf at step \d.*finite"),
    "an observation of NaN": (
        field(obs=lambda x: x.at[1].set(jnp.sqrt(3.0 - x[1]))),
        rf"{STEP} returned an observation with nan as component 1 at step 4 of an episode.*; expected finite numbers",
    ),
    "NaN from the start": (
        resets(lambda at, obs: (at, obs * jnp.nan)),
        rf"{RESET} returned an observation with nan as component 0; expected finite numbers",
    ),
    "no end": (
        field(truncated=lambda x: False, terminated=lambda x: False),
        rf"{STEP} let an episode go on for 10 steps.*; expected truncated at spec.horizon 9, as in truncated=time",
    ),
    "an end that comes late": (
        spec(horizon=5),
        rf"{STEP} let an episode go on for 9 steps.*; expected truncated at spec.horizon 5",
    ),
    "a coin of Python's": (
        field(reward=lambda x: x + (9.0 if COIN.random() < 0.3 else 0.0)),
        rf"{STEP} (is not pure: .*; expected|returned reward .*, and .* when it was called again)",
    ),
    "a counter": (
        field(reward=every(7, lambda x: x, lambda x: x + 1.0)),
        rf"{STEP} returned reward .*, and .* when it was called again with the same arguments; expected the same",
    ),
    "a time of Python's": (
        LINE._replace(step=Remembering().step),
        rf"{STEP} returned truncated .*, and .* when it was called again with the same arguments; expected",
    ),
    "a state of chance": (
        state(every(7, lambda at: at, lambda at: at | {"place": at["place"] * 2.0})),
        rf"{STEP} returned state\['place'\] .*, and .* when it was called again",
    ),
    "a start of chance": (
        resets(every(5, lambda at, obs: (at, obs), lambda at, obs: (at, obs + 1.0))),
        rf"{RESET} returned observation .*, and .* when it was called again with the same arguments; expected the same",
    ),
    "a host that fails": (
        field(reward=calling(raising)),
        rf"{STEP} failed when it was run: .*no such place.*; expected pure jax",
    ),
    "a host that takes one at a time": (
        field(reward=calling(lambda x: x, None)),
        rf"{STEP} failed under jax.vmap: NotImplementedError: .*; expected pure jax",
    ),
    "a byte without a row": (encoded(1), "byte 1 of an observation is 2; expected less than the 2 rows that spec.enc"),
    "names of too many components": (spec(obs_names=("x",)), "spec.obs_names has 1 names; expected one for each of"),
    "names that are numbers": (spec(obs_names=(1, 2)), r"spec.obs_names is \(1, 2\); expected a tuple of texts"),
    "codes that are lists": (spec(encoding=[1, 2]), r"spec.encoding is \[1, 2\]; expected a tuple of .*Codes"),
}

PLAYED_SOURCES = {
    "a source of NaN": (
        lambda s, a, n: n["place"] / 0.0 * 0.0,
        r"auxiliary function .*lambda.* returned nan at step 1 .*; expected a finite number",
    ),
    "a source of logarithms": (
        lambda s, a, n: jnp.log(s["time"].astype(jnp.float32)),
        r"auxiliary function .*lambda.* returned -inf at step 1 .*; expected a finite number",
    ),
    "a source that counts": (
        every(7, hint, lambda *arguments: hint(*arguments) + 1.0),
        rf"{STEP} returned aux .*, and .* when it was called again with the same arguments; expected the same",
    ),
    "a source whose host fails": (
        lambda s, a, n: calling(raising)(n["place"]),
        rf"{STEP} failed when it was run: .*no such place.*; expected pure jax",
    ),
    "a source of one at a time": (
        lambda s, a, n: calling(lambda x: x, None)(n["place"]),
        r"auxiliary function .*lambda.* failed under jax.vmap: NotImplementedError.*; expected a function",
    ),
}


def unknown_beyond(key):
    if key:
        raise KeyError(key)
    return "near"


PLAYED_CAPTIONERS = {
    "words of some states only": (
        words(keys=None, describe=unknown_beyond),
        r"describe\(key\) failed: KeyError: 1.*; expected a text",
    ),
    "numbers for some states": (
        words(keys=None, describe=lambda key: "near" if key == 0 else key),
        r"describe\(key\) returned 1; expected a text",
    ),
    "words that change": (
        words(describe=every(2, str, lambda key: f"the {key}")),
        r"describe\(\d\) returned '.*', and '.*' when it was called again; expected the same",
    ),
    "a state that is not listed": (
        words(keys=lambda: (0,)),
        r"state_key\(obs\) returned 1; expected one of the 1 that keys\(\) lists",
    ),
    "a state listed twice": (words(keys=lambda: (0, 1, 0)), r"keys\(\) holds 1 keys twice; expected each once"),
    "a key of 33 bits": (words(keys=lambda: (0, 1, 2**32)), r"keys\(\) holds 4294967296; expected ints from 0 to"),
    "a list that changes": (
        words(keys=every(2, lambda: (1, 0), lambda: (0, 1))),
        r"keys\(\) returned other keys, or another order, when it was called again",
    ),
    "an event too many": (
        words(event=lambda obs, action, next_obs: action + 1),
        r"event\(obs, action, next_obs\) returned 2; expected 0 to 1, an index into its 2 events",
    ),
    "the key of no state": (
        words(keys=None, describe=str, state_key=lambda obs: jnp.uint32(0xFFFFFFFF)),
        r"state_key\(obs\) returned 0xFFFFFFFF, which stands for no state; expected a smaller key",
    ),
    "a key that changes": (
        words(
            keys=None,
            describe=str,
            state_key=every(5, lambda obs: jnp.uint32(0), lambda obs: jnp.uint32(1)),
        ),
        r"state_key\(obs\) returned .*, and .* when it was called again with the same arguments; expected the same",
    ),
    "a key whose host fails": (
        words(state_key=lambda obs: calling(raising)(obs[0]).astype(jnp.uint32)),
        r"state_key\(obs\) failed when it was run: .*no such place.*; expected pure jax",
    ),
    "a past in one text": (
        words(history=lambda key: ("near, go",)),
        r"history\(\d\) holds 'near, go'; expected a sequence of \(state, action\)",
    ),
    "no past": (words(history=unknown_beyond), r"history\(0\) holds 'n'; expected a sequence of \(state, action\)"),
    "a past that fails": (words(history=raising), r"history\(0\) failed: LookupError: no such place.*; expected"),
    "an oracle of NaN": (
        words(oracle=lambda key, event: float("nan") if event else 0.5),
        r"oracle\(key, event\) returned nan; expected a number in \[0, 1\]",
    ),
}

# --- what cannot even be loaded ---------------------------------------------------------------------------------------

UNLOADED = {
    "no such module": (
        "env.id=nowhere_at_all.world",
        "importing nowhere_at_all failed: Module.*PYTHONPATH",
    ),
    "no such function": ("env.id=MODULE.wrold", "unknown function in .* 'wrold'; nearest: 'world'"),
    "a module that is cut short": ("env.id=cut_short.world", "importing cut_short failed: SyntaxError"),
    "a module that leaves": ("env.id=leaving.world", "importing leaving failed: SystemExit: 3"),
    "a function that leaves": ("env.id=MODULE.leaving", "MODULE.leaving' failed: SystemExit: 4.*expected an llmrl"),
    "a function that asks for more": ("env.id=MODULE.asking", "MODULE.asking.*size"),
    "a parameter that is none": ("+env.params.depth=3", "unknown parameter .*'depth'"),
    "a number as source": ("aux.function=MODULE.number", "aux_function 'MODULE.number' is 3; expected a function"),
    "no such source": ("aux.function=MODULE.nothing", "unknown function in MODULE 'nothing'"),
    "no such captioner": ("captioner=MODULE.nothing", "unknown function in MODULE 'nothing'"),
    "a captioner that leaves": ("captioner=MODULE.leaving", "captioner MODULE.leaving failed: SystemExit: 4"),
    "answers without words": ("aux=language", "aux=language needs words for the states of MODULE.world"),
}

MODULE = "checked_worlds_for_tests"


def leaving():
    sys.exit(4)


@pytest.fixture
def module(monkeypatch, tmp_path):
    """A module of one's own, as a dotted path finds it, and two that cannot be imported."""
    made = ModuleType(MODULE)
    made.world, made.leaving, made.asking, made.number = lambda: LINE, leaving, lambda size: LINE, 3
    monkeypatch.setitem(sys.modules, MODULE, made)
    (tmp_path / "cut_short.py").write_text("def world(:\n")
    (tmp_path / "leaving.py").write_text("raise SystemExit(3)\n")
    monkeypatch.syspath_prepend(tmp_path)
    return made


def asked(*overrides):
    """The findings of ``llmrl check`` with these words."""
    config = llmrl.compose("env=gymnax", f"env.id={MODULE}.world", "aux=none", "method=ppo", *overrides)
    return findings(config, **SHORT)


def asked_of(module, part):
    """The same of a part of the tables above."""
    if part in {**SOURCES, **PLAYED_SOURCES}:
        module.broken = {**SOURCES, **PLAYED_SOURCES}[part][0]
        return asked(f"aux.function={MODULE}.broken")
    if part in {**CAPTIONERS, **PLAYED_CAPTIONERS}:
        module.broken = {**CAPTIONERS, **PLAYED_CAPTIONERS}[part][0]
        return asked(f"captioner={MODULE}.broken")
    module.world = lambda: {**ENVIRONMENTS, **PLAYED_ENVIRONMENTS}[part][0]
    return asked()


def wrong_ones(found):
    return [finding.says for finding in found if finding.mark == WRONG]


PLAYED = {**PLAYED_ENVIRONMENTS, **PLAYED_SOURCES, **PLAYED_CAPTIONERS}
SHOWN_BY_SHAPES = {**ENVIRONMENTS, **SOURCES, **CAPTIONERS}


@pytest.mark.parametrize("part", PLAYED)
def test_what_shapes_do_not_show_is_one_line_each(module, part):
    said = wrong_ones(asked_of(module, part))
    assert said and not any("\n" in says for says in said)
    assert any(re.search(PLAYED[part][1], says) for says in said), said


@pytest.mark.parametrize("part", SHOWN_BY_SHAPES)
def test_what_shapes_show_is_told_as_train_refuses_it(module, part):
    says = next(finding.says for finding in asked_of(module, part) if finding.mark == WRONG)
    assert re.search(SHOWN_BY_SHAPES[part][1], says), says


@pytest.mark.parametrize("case", UNLOADED)
def test_what_cannot_be_loaded_is_one_line(module, case):
    word, pattern = (text.replace("MODULE", MODULE) for text in UNLOADED[case])
    said = wrong_ones(asked(word))
    assert len(said) == 1 and "\n" not in said[0] and re.search(pattern, said[0]), said


def test_there_are_far_more_than_fifty():
    assert len(PLAYED) + len(UNLOADED) >= 49 and len({**PLAYED, **SHOWN_BY_SHAPES}) > 100


def test_every_fault_is_listed(module):
    """Of the environment's description and steps all at once; of sources and captioner however the other one is."""
    module.world = lambda: field(reward=lambda x: x[None], truncated=lambda x: 0)._replace(
        spec=changed(LINE.spec, horizon=0, obs_scale=(1.0, 0.0, 1.0))
    )
    assert len(wrong_ones(asked())) == 4
    module.world, module.broken = lambda: LINE, lambda s, a, n: n["place"] / 0.0
    module.words = words(keys=lambda: (0,))
    said = wrong_ones(asked(f"aux.function={MODULE}.broken", f"captioner={MODULE}.words"))
    assert len(said) == 2 and "auxiliary function" in said[0] and "state_key(obs)" in said[1]


# --- what is right ----------------------------------------------------------------------------------------------------


WORLD = """
import numpy as np
from broken import LINE, WORDS, hint, words

SLOPE = np.float32({slope})

def world():
    return LINE

def source(state, action, next_state):
    return SLOPE * hint(state, action, next_state)

def captioner():
    return words(state_key=lambda obs: WORDS.state_key(obs) * 0 + np.uint32({key}), keys=None, describe=str)
"""


@pytest.fixture
def written(monkeypatch, tmp_path):
    """``(**values) -> words of the command line``: a module that another process finds, too."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(name, slope="0.5", key="3"):
        (tmp_path / f"{name}.py").write_text(WORLD.format(slope=slope, key=key))
        words = f"env.id={name}.world", f"aux.function={name}.source", f"captioner={name}.captioner"
        return ["env=gymnax", "aux=none", *words, "method=add", "steps=10", "progress=false"]

    yield write


def test_what_differs_between_processes_is_found(written):
    asked = written("frozen", slope="np.random.rand()", key="hash('near') % 1000")
    last = list(findings(llmrl.compose(*(word for word in asked if "steps" not in word)), **SHORT))[-1]
    assert last.mark == WRONG
    assert "the same seed gave other values of source, keys of states, words of states; expected the same" in last.says


def test_what_is_fine_is_said_and_the_command_leaves_with_0(written, capsys):
    main(["check", *written("healthy")])
    said = capsys.readouterr().out.splitlines()
    assert said[-1] == "nothing is wrong" and not any(WRONG in line for line in said)
    for says in (
        "spec: observations [2], Discrete(num=2), episodes of at most 9 steps",
        "healthy.source returns one value",
    ):
        assert any(line.startswith("  ok") and says in line for line in said)
    assert any("the same in 25 steps: observations, rewards, ends, values of source" in line for line in said)


def test_what_is_wrong_is_said_and_the_command_leaves_with_1(module, capsys):
    module.world = lambda: field(reward=lambda x: x[None])
    with pytest.raises(SystemExit) as left:
        main(["check", "env=gymnax", f"env.id={MODULE}.world"])
    out, err = capsys.readouterr()
    assert left.value.code == 1 and not err
    assert "  WRONG" in out and "returned reward float32[1]; expected float32[]" in out and "1 thing to mend" in out


def asked_of_python(name, *overrides):
    config = llmrl.compose("env=gymnasium", f"env.id=gym_worlds:{name}", "aux=none", "method=ppo", *overrides)
    return list(_of_the_host(config, 10, 1000.0))


def test_an_environment_of_python_is_played_too():
    found = asked_of_python("walk")
    assert not wrong_ones(found) and any("8 instances x 10 steps" in finding.says for finding in found)


def test_what_is_wrong_in_python_is_one_line(monkeypatch):
    (says,) = wrong_ones(asked_of_python("no_environment"))
    assert "expected a gymnasium.Env" in says and "\n" not in says

    class Late(gym_worlds.Walk):
        def step(self, action):
            return super().step(action)[0], float("nan") if self.at > 1 else 0.0, False, False, {}

    monkeypatch.setattr(gym_worlds, "late", lambda: Late(), raising=False)
    said = wrong_ones(asked_of_python("late", "env.horizon=5"))
    assert any("step(action) returned reward nan at step" in says for says in said), said


# --- notes ------------------------------------------------------------------------------------------------------------

LONG = changed(LINE.spec, horizon=500)
NOTED = {
    "no end was seen": (
        field(truncated=lambda x: False, terminated=lambda x: False)._replace(spec=LONG),
        "no episode ended in 80 steps",
    ),
    "idle actions": (LINE._replace(step=lambda key, at, action: LINE.step(key, at, 0 * action)), "changed nothing"),
    "short episodes": (field(terminated=lambda x: True), "every episode ended at its first step"),
    "no reward": (field(reward=lambda x: 0.0 * x), "the reward was 0 in all 80 steps"),
    "a blind one": (
        Environment(LINE.spec, lambda key: (LINE.reset(key)[0], jnp.ones(2)), field(obs=jnp.ones_like).step),
        "the observation was the same in all 80 steps",
    ),
    "large observations": (spec(obs_scale=1e-3), r"observations are as large as .* after spec.obs_scale"),
    "large returns": (field(reward=lambda x: x + 1e7), "returns are as large as"),
}


@pytest.mark.parametrize("case", NOTED)
def test_what_may_be_meant_is_a_note(case):
    env, pattern = NOTED[case]
    played = play(env, "line", seed=0, num_steps=10, seconds=1000.0)
    assert any(re.search(pattern, says) for says in notes(env.spec, played))
    assert not list(played_faults("line", env.spec, played))


def test_a_silent_source_is_a_note_unless_it_is_filled_in_later():
    env = with_aux(LINE, {"hint": lambda s, a, n: jnp.zeros(())})
    played = play(env, "line", seed=0, num_steps=10, seconds=1000.0)
    silent = "auxiliary function hint returned 0 in all 80 steps"
    assert silent in [*notes(env.spec, played)] and silent not in [*notes(env.spec, played, ("hint",))]


@pytest.mark.parametrize(
    ("captioner", "pattern"),
    [
        (words(describe=lambda key: " "), "told nothing of that state"),
        (words(describe=lambda key: "here"), r"describe\(0\) and describe\(1\) read alike"),
        (words(state_key=lambda obs: jnp.uint32(1)), "all 80 states have the key 1"),
    ],
)
def test_words_that_say_little_are_a_note(captioner, pattern):
    played = play(LINE, "line", seed=0, num_steps=10, seconds=1000.0)
    met = captions("captioner", LINE.spec, captioner, played)
    assert re.search(pattern, next(caption_notes(captioner, met)))


# --- playing ----------------------------------------------------------------------------------------------------------


BOUNDED = changed(Box(2), low=np.array([0.0, 1.0]), high=np.array([1.0, 4.0]))
"""A bound for each dimension."""


@pytest.mark.parametrize("action", [Discrete(1), Discrete(3), Box(2, -1.0, 3.0), BOUNDED])
def test_actions_are_of_their_space_and_half_of_them_repeat(action):
    drawn = np.stack(list(_actions(action, 0, 40)))
    assert drawn.shape[2:] == action_shape(action).shape and drawn.dtype == action_shape(action).dtype
    repeated, others = drawn[:, : INSTANCES // 2], drawn[:, INSTANCES // 2 :]
    assert (repeated == repeated[:1]).all()
    if isinstance(action, Discrete):
        assert set(np.unique(others)) == set(range(action.num))
    else:
        assert (others < action.low).any() and (others > action.high).any()
        assert (repeated == action.low).any() and (repeated == action.high).any()


def test_episodes_start_anew_where_they_end():
    played = play(LINE, "line", seed=0, num_steps=20, seconds=1000.0)
    assert not played.faults and played.heeded and played.num_steps == 20 * INSTANCES
    after = np.concatenate([np.ones((1, INSTANCES), bool), played.ends[:-1]])
    np.testing.assert_array_equal(played.started, after)
    np.testing.assert_array_equal(played.obs[..., 1] == 0.0, after)  # the time
    np.testing.assert_array_equal(played.results.obs[..., 1], played.ages)
    np.testing.assert_array_equal(played.obs[1:][~after[1:]], played.results.obs[:-1][~after[1:]])


def test_playing_ends_when_its_time_is_over():
    assert len(play(LINE, "line", seed=0, num_steps=20, seconds=1e-9).ages) == 1
