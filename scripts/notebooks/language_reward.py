# ---
# jupyter:
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # A language model as the reward
#
# From a state to a sentence, from the sentence to a question, from the answer to a reward, and then: what if the answers are wrong?
# Nothing here needs a key or a network. The answers are recorded ones, written by hand; `llm=ollama`, `llm=vllm` or `llm=openai` in
# their place asks [a model of yours](../own_llm.md).

# %%
import os

import numpy as np

import llmrl
from llmrl.envs.captions import cartpole
from llmrl.language import make_provider
from llmrl.language.question import questions

SMALL = bool(os.environ.get("LLMRL_SMALL"))  # seconds instead of results, for tests
SIZE = ("ppo=tiny", "solver=identity", "total_steps=512", "seeds=2", "num_chunks=1", "devices=1") if SMALL else ("seeds=4",)

# %% [markdown]
# ## Words
#
# A captioner gives every state a number, on the device, and every number a sentence, on the host. What two states have in common in
# words, they share one answer for.

# %%
captioner = cartpole()
keys = captioner.keys()
print(len(keys), "states in words. For instance:")
for key in (0, 262, 524):
    print(f"  {key:3d}: {captioner.describe(key)}")
print("events:", captioner.events)

# %% [markdown]
# ## Questions
#
# This is what a model would be sent about one state and one event. (No model is asked here: the provider is built with a name
# that is never contacted.)

# %%
shown = llmrl.compose("llm=vllm", "llm.model=none-is-asked", "llm.cache=null").llm
question = questions(make_provider(shown, captioner), captioner, 262)[0]
print(question.system, question.user, sep="\n---\n")

# %% [markdown]
# ## Answers
#
# Recorded ones: a score in [0, 1] per event. In training a step is worth `score - 0.5`; uncentred, any answer would also be a bonus
# for staying alive.

# %%
for key in (0, 262, 524):
    scores = [captioner.oracle(key, event) for event in range(len(captioner.events))]
    print(f"{captioner.describe(key)}\n    left {scores[0]:.2f}, right {scores[1]:.2f}")

# %% [markdown]
# ## Training, with good answers and with bad ones
#
# `llm.adversarial=true` makes every answer wrong, `llm.noise=0.25` a quarter of them. The agent is not told.


# %%
def trained(*overrides):
    config = llmrl.compose("aux=language", "llm=recorded", "llm.cache=null", "progress=false", *SIZE, *overrides)
    return llmrl.train(config)


helpful, misleading = trained(), trained("llm.adversarial=true")

# %%
for name, result in {"helpful": helpful, "misleading": misleading}.items():
    weight = np.mean(result.metrics["weight_mean_active"][:, -1])
    length = np.mean(result.metrics["episode_length"][:, -1])
    coverage = np.mean(result.metrics["language_coverage"])
    print(f"{name:10s} weight {weight:+.2f}, {length:.0f} steps, {100 * coverage:.0f} % of the states answered")

# %%
llmrl.plot(misleading, title="every answer wrong")

# %% [markdown]
# The same model, turned around: its answers are worth as much as ever, only the sign is another. A model that is right half of the time is
# the worst case: there is nothing to learn from it, and the weight should stay near zero. Try `llm.noise=0.5`.
