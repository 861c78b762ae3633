"""The schema of every command, and its registration with Hydra.

A command's configuration is a dataclass of components; a YAML under ``conf/`` chooses and fills them. A
field without a default is a component that the YAML's defaults list chooses. The docstring under a field is
what ``--help`` shows beside it.
"""

from rlhf.config.composition import CONF, build, register
from rlhf.config.groups import GROUPS
from rlhf.config.offline import Evaluate, Generate, Query, Rank, Refine, Score, Select, Serve
from rlhf.config.training import RL, SFT, Distill, Job, Preference, Reward

__all__ = [
    "CONF",
    "GROUPS",
    "RL",
    "SFT",
    "Distill",
    "Evaluate",
    "Generate",
    "Job",
    "Preference",
    "Query",
    "Rank",
    "Refine",
    "Reward",
    "Score",
    "Select",
    "Serve",
    "build",
    "register",
]
