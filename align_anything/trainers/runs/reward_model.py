"""A trained model that scores responses: opened frozen, checked, and asked about conversations."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from align_anything.configs.schema import RunCfgs
from align_anything.core.distributed import all_gather_object
from align_anything.core.errors import ModelError, RewardError, SampleError
from align_anything.core.types import Example, Message
from align_anything.engines.frozen import FrozenEngine
from align_anything.engines.process_group import device_of_rank
from align_anything.models.adapter import find_adapter
from align_anything.models.checkpoint import stored_tensor
from align_anything.models.family import FamilySpec
from align_anything.models.pretrained_model import load_spec
from align_anything.models.score import SCORE_HEAD
from align_anything.policies.token.collator import TokenCollator
from align_anything.policies.score import ScorePolicy
from align_anything.rewards.base import Completion, check_values
from align_anything.trainers.runs.assembly import DTYPES, checked, engine_config, make_collator, precision_of
from align_anything.trainers.loops.cutting import cut
from align_anything.trainers.runs.data import require_readable
from align_anything.trainers.runs.loading import load_frozen
from align_anything.trainers.pairs import Pair


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


def open_scorer(
    cfgs: RunCfgs, spec: FamilySpec, source: str, pair: Pair, layout: str
) -> tuple[FrozenEngine, TokenCollator]:
    """Loads the model `source`, which has a score head, with the collator of a layout that is right on it."""
    config, dtype = engine_config(cfgs)[0], DTYPES[precision_of(cfgs)]
    model = load_frozen(cfgs, spec, source, layout, dtype=dtype, config=config, is_reward_model=True)
    policy = ScorePolicy(model, dtype=dtype)
    engine = FrozenEngine(policy, config, device_of_rank())
    collator = checked(engine.module, engine.device, policy, make_collator(cfgs, spec, pair, layout), spec, pair)
    return engine, collator


def spec_of_reward_model(cfgs: RunCfgs, source: str, pair: Pair) -> FamilySpec:
    """The rules of a reward model's own family. Raises ModelError when it cannot read what the pair is about."""
    models = cfgs.model_cfgs
    spec = load_spec(source, model_max_length=models.model_max_length, trust_remote_code=models.trust_remote_code)
    require_readable(pair, spec, source)
    return spec


class ModelJudge:
    """Scores completions with a model of ours, in its own template and by its own tokenizer and processor.

    Args:
        source: the checkpoint, for messages.
        spec: its family.
        engine, collator: of `open_scorer`.
        batch_size: responses in one forward pass.
    """

    def __init__(
        self, source: str, spec: FamilySpec, engine: FrozenEngine, collator: TokenCollator, batch_size: int
    ) -> None:
        self.source, self.spec, self.batch_size = source, spec, batch_size
        self.engine, self.collator = engine, collator

    def __call__(self, completions: Sequence[Completion]) -> list[float]:
        """Returns the score of each completion. Every rank calls it, with however many it has.

        Raises RewardError for a conversation that the model cannot read whole, and for a score that is not finite.
        """
        examples = [self._example(list(group)) for _, group in groupby(completions, lambda item: id(item.conversation))]
        # Ranks make equally many passes, which a partitioned model needs.
        number = max(all_gather_object(-(-len(completions) // self.batch_size)))
        scores: list[float] = []
        for part in cut(examples, self.batch_size, number):
            batch = self.collator(part).to(self.engine.device)
            found = self.engine.score(batch).values.tolist()
            scores += found[: sum(len(example.responses) for example in part)]
        return check_values(f'the model {self.source}', scores, completions)

    def _example(self, group: list[Completion]) -> Example:
        conversations = [[*item.conversation, _answer(item.response)] for item in group]
        start = len(group[0].conversation)
        try:
            return self.spec.encode_group(conversations, 'last', start=start, judged=True)
        except SampleError as error:
            raise RewardError(f'{group[0].source}: the reward model {self.source} cannot read this: {error}') from error


def _answer(text: str) -> Message:
    return {'role': 'assistant', 'content': [{'type': 'text', 'text': text}]}
