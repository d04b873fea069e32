"""The models that judge the responses of a run, opened."""

from __future__ import annotations

from collections.abc import Mapping

from align_anything.algorithms.base import Algorithm
from align_anything.algorithms.generate import Generating
from align_anything.algorithms.online import Online
from align_anything.configs.online import MODEL, JudgeCfgs, OnlineRunCfgs
from align_anything.configs.schema import RunCfgs
from align_anything.engines.frozen import FrozenEngine
from align_anything.models.family import FamilySpec
from align_anything.rewards.base import Reward
from align_anything.trainers.loops.splitting import exchanges
from align_anything.trainers.pairs import Pair
from align_anything.trainers.runs.assembly import make_collator, open_scorer
from align_anything.trainers.runs.roles import ModelJudge
from align_anything.trainers.runs.settings import acts, denoises


def judging_engine(cfgs: RunCfgs, spec: FamilySpec, pair: Pair, algorithm: Algorithm, source: str) -> FrozenEngine:
    """Loads a model that judges responses of the pair. Every rank calls it."""
    return open_scorer(cfgs, make_collator(cfgs, spec, pair.judged, algorithm), source)


def open_judges(
    cfgs: OnlineRunCfgs,
    judges: Mapping[str, JudgeCfgs],
    specs: Mapping[str, FamilySpec],
    pair: Pair,
    algorithm: Online | Generating,
) -> list[Reward]:
    """Loads the models that judge responses, given what `judges_of` and `spec_of_judge` say. Every rank calls it."""
    rewards = []
    for name, asked in judges.items():
        weight, spec = cfgs.reward_cfgs.reward_model_weight if name == MODEL else 0.0, specs[name]
        scorer = judging_engine(cfgs, spec, pair, algorithm, asked.source)
        train = cfgs.train_cfgs
        size = train.per_device_train_batch_size if algorithm.trains else train.per_device_eval_batch_size
        # That of a denoiser or of chunks counts something else than tokens.
        of_tokens = not denoises(cfgs) and not acts(cfgs)
        judge = ModelJudge(
            asked.source,
            scorer,
            spec,
            size,
            spec.max_length,
            asked.unread_score,
            budget=train.max_length_per_batch if of_tokens else None,
            exchanges=exchanges(cfgs),
        )
        rewards.append(Reward(name, weight, judge, judge.unread))
    return rewards
