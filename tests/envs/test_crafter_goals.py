"""Goals by rule: every achievement has its event and its way there, and conditions are what the words say."""

import jax.numpy as jnp
import numpy as np
import pytest

from llmrl.envs import crafter_captions as captions
from llmrl.envs import crafter_codes as codes
from llmrl.envs import crafter_goals as goals
from llmrl.language import make_provider
from llmrl.language.question import questions
from llmrl.ops.rules import rule_scores
from llmrl.settings.config import LLMConfig

RANDOM = np.random.default_rng(0)


def suggested(rules, key, **noise):
    """Events that are worth 1 in a state, in words."""
    events = jnp.arange(len(captions.EVENTS), dtype=jnp.int32)
    scores, _ = rule_scores(rules, jnp.full(len(captions.EVENTS), key, jnp.uint32), events, **noise)
    return {event for event, score in zip(captions.EVENTS, np.asarray(scores), strict=True) if score == 1.0}


def key_of(**fields):
    return sum(value << captions.place_of(name.replace("_", " ")) for name, value in fields.items())


def test_every_achievement_has_an_event_and_all_of_them_need_everything():
    events = [goals.achieved_by(name) for name in codes.ACHIEVEMENTS]
    assert len(set(events)) == 22 and set(events) <= set(goals.POSSIBLE)
    assert set(goals.POSSIBLE) == set(captions.EVENTS[1:]) == goals.leading_to("all")
    for event, before in goals.REQUIRES.items():
        assert set(before) <= goals.leading_to(codes.ACHIEVEMENTS) and event not in before


@pytest.mark.parametrize(
    ("task", "needed"),
    [
        ("place_table", {"chop a tree", "place a table"}),
        ("make_wood_sword", {"chop a tree", "place a table", "make a wooden sword"}),
        ("collect_stone", {"chop a tree", "place a table", "make a wooden pickaxe", "mine stone"}),
        ("eat_cow", {"attack a cow", "eat a cow"}),
        (("wake_up", "eat_plant"), {"go to sleep", "wake up", "pick a sapling", "place a plant", "eat a ripe plant"}),
    ],
)
def test_what_a_task_needs(task, needed):
    assert goals.leading_to(task) == needed


def test_the_oracle_suggests_what_is_possible_and_leads_to_the_task():
    rules = goals.oracle("make_stone_pickaxe")
    grass = captions.FRONT.index("grass")
    assert suggested(rules, 0) == set()
    assert suggested(rules, key_of(tree=1, water=1)) == {"chop a tree"}
    assert suggested(rules, key_of(stone=1)) == set()
    assert (
        suggested(rules, key_of(stone=1, pickaxe=1)) == suggested(rules, key_of(stone=1, pickaxe=3)) == {"mine stone"}
    )
    assert suggested(rules, key_of(held_wood=1, table=1)) == {"place a table"}
    near = key_of(held_wood=1, held_stone=1, table=2, front=grass)
    assert suggested(rules, near) == {"place a table", "make a wooden pickaxe", "make a stone pickaxe"}
    # All else that is possible, and nothing that is not, is what a wrong answer suggests.
    wrong = {"place a stone", "place a furnace", "pick a sapling", "make a wooden sword", "make a stone sword"}
    assert suggested(rules, near, noise=1.0) == wrong
    assert suggested(goals.oracle("all"), near) == wrong | suggested(rules, near)


def test_what_a_language_model_might_say_has_its_mistakes():
    rules = goals.plausible()
    assert "mine stone" in suggested(rules, key_of(stone=1))  # without a pickaxe
    assert "make a wooden pickaxe" in suggested(rules, key_of(held_wood=1))  # without a table
    assert "place a table" not in suggested(rules, key_of(held_wood=1))
    assert "make a wooden pickaxe" not in suggested(rules, key_of(held_wood=1, pickaxe=1))
    assert suggested(rules, key_of(water=1, tired=1)) == {"drink water", "go to sleep"}


@pytest.mark.parametrize("provider", ["oracle", "plausible"])
def test_rules_are_a_provider_on_the_host_too(provider):
    words = goals.captions("make_iron_pickaxe")
    asked = make_provider(LLMConfig(provider=provider), words)
    for key in RANDOM.integers(0, 2**28, 40).tolist():
        if max(key >> captions.place_of(name) & 3 for name in captions.STATIONS) > 2:
            continue  # no state's key
        said = {
            question.phrases[0] for question in questions(asked, words, key) if asked.answer_now(question).scores[0]
        }
        assert said == suggested(words.rules[provider], key)


def test_other_words_have_no_hand_written_table():
    with pytest.raises(ValueError, match="plausible is a table written by hand for both Crafters"):
        make_provider(LLMConfig(provider="plausible"), goals.captions()._replace(rules={}))
    with pytest.raises(ValueError, match="there is no condition 'sees moon'"):
        goals.rules([("chop a tree", ("sees moon",), 1.0)])
