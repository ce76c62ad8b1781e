# ---
# jupyter:
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # First run
#
# A CartPole agent with a bad adviser: whenever the pole straightens up, the adviser punishes the agent. We train eight agents that
# learn how far to trust this adviser, look at their curves, and then at where they trust it.

# %%
import os

import numpy as np

import llmrl

SMALL = bool(os.environ.get("LLMRL_SMALL"))  # seconds instead of results, for tests
SIZE = ("ppo=tiny", "solver=identity", "total_steps=512", "seeds=2", "num_chunks=1", "devices=1") if SMALL else ("seeds=8",)

# %% [markdown]
# Overrides are those of the command line. `config` is a frozen dataclass with every setting.

# %%
config = llmrl.compose("env=cartpole", "aux=harmful", "method=implicit", "progress=false", *SIZE)
print(config.env.name, config.aux.sources, config.method.name, config.total_steps, "steps")

# %%
result = llmrl.train(config)

# %% [markdown]
# Every metric is an array, a row per seed and a column per iteration; seeds are never averaged away.

# %%
for name in ("episode_length", "influence/harmful", "meta_residual"):
    curves = result.metrics[name]
    print(f"{name:20s} {curves.shape}  at the end, by seed: {np.round(curves[:, -1], 2)}")

# %% [markdown]
# A thin line is a seed. An influence below zero means that the adviser's word has been turned around: to straighten up is good after all.

# %%
llmrl.plot(result)

# %% [markdown]
# ## Where is the adviser trusted?
#
# The trained policies are played once more, and at each state that they visit we ask: what would the source say of each action, and
# what does the learner make of that?

# %%
found = llmrl.trust_map(result, num_steps=16 if SMALL else 256)
print("sources", found.sources, "| asked about", found.probes, "| weights", found.weight.shape)

# %%
from llmrl.analysis.trust import shares

of_source = shares(found, "harmful")
for kind, share in of_source._asdict().items():
    print(f"{kind:8s} on {100 * np.nanmean(share):5.1f} % of the steps on which the source speaks")

# %%
from llmrl.analysis.trust_plots import heat_maps

heat_maps(found, "harmful")

# %% [markdown]
# With `run_dir=runs/somewhere` the same run would leave [a directory](../run_directory.md), go on after an interruption, and be part of
# `llmrl report runs`.
