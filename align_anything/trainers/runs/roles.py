"""The models of a run beside the policy and its reference: critics, and models that judge responses."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from align_anything.algorithms.online import Online
from align_anything.configs.online import COST, OnlineRunCfgs
from align_anything.configs.schema import RunCfgs
from align_anything.core.distributed import all_gather_object
from align_anything.core.errors import ModelError, RewardError, SampleError, SettingsError
from align_anything.core.types import Example
from align_anything.engines.frozen import FrozenEngine
from align_anything.models.adapter import find_adapter
from align_anything.models.checkpoint import stored_tensor
from align_anything.models.family import FamilySpec
from align_anything.models.pretrained_model import load_spec
from align_anything.models.score import SCORE_HEAD
from align_anything.policies.base import Collator
from align_anything.rewards.base import Completion, check_values
from align_anything.trainers.loops.splitting import split
from align_anything.trainers.pairs import Pair
from align_anything.trainers.runs.assembly import open_frozen
from align_anything.trainers.runs.data import require_readable
from align_anything.trainers.runs.settings import dtype_of, engine_config


def require_head(source: str) -> None:
    """Raises ModelError for a checkpoint, or an adapter, that has no score head; a new one would score at random."""
    adapter = find_adapter(source)
    if adapter is not None and SCORE_HEAD in (adapter.settings.get('modules_to_save') or ()):
        return
    model = source if adapter is None else adapter.require_base()
    if stored_tensor(model, f'{SCORE_HEAD}.weight') is None:
        raise ModelError(
            f'{source} has no score head ({SCORE_HEAD}.weight), so it is no reward model: train one with rm or '
            'cost_model.'
        )


def open_scorer(cfgs: RunCfgs, collate: Collator, source: str) -> FrozenEngine:
    """Loads the model `source`, which has a score head, and checks it; `collate` is that of its own family."""
    config = engine_config(cfgs)[0]
    engine = open_frozen(cfgs, collate, source, scores='responses', dtype=dtype_of(cfgs), config=config)
    engine.policy.check(engine.module, engine.device)
    return engine


def spec_of_reward_model(cfgs: RunCfgs, source: str, pair: Pair) -> FamilySpec:
    """The rules of a reward model's own family. Raises ModelError when it cannot read what the pair is about."""
    models = cfgs.model_cfgs
    spec = load_spec(source, model_max_length=models.model_max_length, trust_remote_code=models.trust_remote_code)
    require_readable(pair, spec, source)
    return spec


def judges_of(cfgs: OnlineRunCfgs, algorithm: Online) -> dict[str, str]:
    """The models that judge responses, by what metrics call them. Raises SettingsError without a cost model to obey."""
    judges = cfgs.model_cfgs.judges
    if COST in judges and judges[COST] is None:
        raise SettingsError([f'model_cfgs.cost_model_name_or_path is required: {algorithm.name} bounds what it says.'])
    return {name: source for name, source in judges.items() if source is not None}


def critic_source(role: str, cfgs: OnlineRunCfgs) -> str:
    return cfgs.model_cfgs.critics[role] or cfgs.model_cfgs.model_name_or_path


def critic_spec(role: str, cfgs: OnlineRunCfgs, policy: FamilySpec, pair: Pair) -> FamilySpec:
    """The rules of a critic's family. Raises ModelError when it does not read the tokens of the policy."""
    source = critic_source(role, cfgs)
    if source == cfgs.model_cfgs.model_name_or_path:
        return policy
    spec = spec_of_reward_model(cfgs, source, pair)
    same = spec.model_type == policy.model_type and spec.tokenizer.get_vocab() == policy.tokenizer.get_vocab()
    if not same:
        raise ModelError(
            f'model_cfgs.{role}_model_name_or_path: {source} does not read the tokens of the policy: a critic must be '
            'of its family and have its tokenizer.'
        )
    return spec


def critic_cfgs(role: str, cfgs: OnlineRunCfgs, algorithm: Online) -> OnlineRunCfgs:
    """The settings of a run as a critic of it reads them."""
    return cfgs.model_copy(
        update={
            'train_cfgs': algorithm.train_cfgs_of_critics(cfgs.train_cfgs),
            'model_cfgs': cfgs.model_cfgs.model_copy(update={'model_name_or_path': critic_source(role, cfgs)}),
        }
    )


class ModelJudge:
    """Scores completions with a model of ours, in its own template and by its own tokenizer and processor.

    Args:
        source: the checkpoint, for messages.
        engine: of `open_scorer`.
        spec: the rules of its family.
        batch_size: responses in one forward pass.
    """

    def __init__(self, source: str, engine: FrozenEngine, spec: FamilySpec, batch_size: int) -> None:
        self.source, self.engine, self.spec, self.batch_size = source, engine, spec, batch_size

    def __call__(self, completions: Sequence[Completion]) -> list[float]:
        """Returns the score of each completion. Every rank calls it, with however many it has.

        Raises RewardError for a conversation that the model cannot read in full, and for a score that is not finite.
        """
        examples = [self._example(list(group)) for _, group in groupby(completions, lambda item: id(item.conversation))]
        # Ranks make equally many passes, which a partitioned model needs.
        number = max(all_gather_object(-(-len(completions) // self.batch_size)))
        scores: list[float] = []
        for micro_batch in split(examples, self.batch_size, number):
            batch = self.engine.policy.collate(micro_batch).to(self.engine.device)
            found = self.engine.score(batch).values.tolist()
            scores += found[: sum(len(example.responses) for example in micro_batch)]
        return check_values(f'the model {self.source}', scores, completions)

    def _example(self, group: list[Completion]) -> Example:
        conversations = [[*item.conversation, item.message] for item in group]
        start = len(group[0].conversation)
        try:
            return self.spec.encode_group(conversations, 'last', start=start, judged=True)
        except SampleError as error:
            raise RewardError(f'{group[0].source}: the reward model {self.source} cannot read this: {error}') from error
