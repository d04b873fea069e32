"""The models of a run beside the policy and its reference: critics, and models that judge responses."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from itertools import groupby

from align_anything.algorithms.online import Online
from align_anything.configs.online import COST, JudgeCfgs, OnlineRunCfgs
from align_anything.configs.schema import RunCfgs
from align_anything.core.distributed import all_gather_object
from align_anything.core.errors import ModelError, SampleError, SettingsError
from align_anything.core.types import Conversation, Example, Skipped
from align_anything.datasets.media.audio import at_rate
from align_anything.engines.frozen import FrozenEngine
from align_anything.models.acting.checkpoint import load_action_spec
from align_anything.models.acting.known import is_acting
from align_anything.models.adapter import find_adapter
from align_anything.models.checkpoint import read_config, stored_tensor
from align_anything.models.diffusion.checkpoint import is_pipeline
from align_anything.models.families import own_head
from align_anything.models.family import FamilySpec
from align_anything.models.pretrained_model import load_spec
from align_anything.models.score import SCORE_HEAD
from align_anything.rewards.base import Completion, check_values
from align_anything.rewards.live_codes import LiveCodes
from align_anything.trainers.loops.splitting import Exchange, exchanged_and_filled, split
from align_anything.trainers.pairs import Pair
from align_anything.trainers.runs.data import require_judging, require_readable
from align_anything.trainers.runs.model_checks import require_positions


def require_head(source: str) -> None:
    """Raises ModelError for a checkpoint, or an adapter, that has no score head; a new one would score at random."""
    if is_pipeline(source):
        raise ModelError(
            f'{source} is a pipeline of diffusers, which judges nothing: name a model that reads the media.'
        )
    adapter = find_adapter(source)
    if adapter is not None and SCORE_HEAD in (adapter.settings.get('modules_to_save') or ()):
        return
    model = source if adapter is None else adapter.require_base()
    if own_head(read_config(model).model_type) is not None:
        return
    if stored_tensor(model, f'{SCORE_HEAD}.weight') is None:
        raise ModelError(
            f'{source} has no score head ({SCORE_HEAD}.weight), so it is no reward model: train one with rm or '
            'cost_model.'
        )


def scores_responses(source: str) -> bool:
    """Whether a checkpoint, or an adapter, has a score head. Raises ModelError for one that cannot be read."""
    try:
        require_head(source)
    except ModelError:
        # What is wrong otherwise is told of where it is opened.
        return False
    return True


def spec_of_role(cfgs: RunCfgs, source: str) -> FamilySpec:
    """The rules of the family of a model beside the policy, with the limit that its own checkpoint says."""
    if is_acting(source):
        return load_action_spec(source)
    return load_spec(source, model_max_length=None, trust_remote_code=cfgs.model_cfgs.trust_remote_code)


def spec_of_judge(cfgs: OnlineRunCfgs, judge: JudgeCfgs, pair: Pair) -> FamilySpec:
    """The same of a model that scores responses, with the limit of the settings if they have one.

    Raises ModelError when it cannot read what the pair is about, answers with it, and SettingsError when the limit is
    more than the model has positions.
    """
    spec = spec_of_role(cfgs, judge.source)
    require_judging(pair, spec, judge.source)
    if judge.max_length is not None:
        require_positions(spec.config, judge.source, judge.max_length, f'model_cfgs.{judge.role}_max_length')
        spec.max_length = judge.max_length
    return spec


def judges_of(cfgs: OnlineRunCfgs, algorithm: Online) -> dict[str, JudgeCfgs]:
    """The models that judge responses, by what metrics call them. Raises SettingsError without a cost model to obey."""
    judges = cfgs.model_cfgs.judges
    if COST in judges and judges[COST].source is None and cfgs.environment_cfgs.environment is None:
        raise SettingsError(
            [
                f'model_cfgs.cost_model_name_or_path is required: {algorithm.name} bounds what it says. Or name an '
                'environment (environment_cfgs.environment), whose costs it bounds.'
            ]
        )
    return {name: judge for name, judge in judges.items() if judge.source is not None}


def critic_source(role: str, cfgs: OnlineRunCfgs) -> str:
    return cfgs.model_cfgs.critics[role] or cfgs.model_cfgs.model_name_or_path


def critic_spec(role: str, cfgs: OnlineRunCfgs, policy: FamilySpec, pair: Pair) -> FamilySpec:
    """The rules of a critic's family.

    Raises ModelError when it does not read the tokens of the policy, and SettingsError when it reads fewer of them.
    """
    source = critic_source(role, cfgs)
    if source == cfgs.model_cfgs.model_name_or_path:
        return policy
    spec = spec_of_role(cfgs, source)
    require_readable(pair, spec, source)
    require_positions(spec.config, source, policy.max_length, 'model_cfgs.model_max_length')
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

    A completion is read in full or not at all.

    Args:
        source: the checkpoint, for messages.
        engine: of `open_scorer`.
        spec: the rules of its family.
        batch_size: responses in one forward pass.
        max_length: longest conversation in its own tokens that it reads; None is any.
        unread_score: score of a completion that it cannot read.
        budget: tokens of a forward pass, which then go by them; None goes by `batch_size`.
        exchanges: whether ranks score completions of each other for equal work.
    """

    def __init__(
        self,
        source: str,
        engine: FrozenEngine,
        spec: FamilySpec,
        batch_size: int,
        max_length: int | None = None,
        unread_score: float = 0.0,
        budget: int | None = None,
        exchanges: bool = False,
    ) -> None:
        self.source, self.engine, self.batch_size = source, engine, batch_size
        self.max_length, self.unread_score = max_length or sys.maxsize, unread_score
        self.budget, self.exchanges = budget, exchanges
        # Its length decides whether a completion is read, so nothing may be cut off before.
        self.spec = copy(spec)
        self.spec.max_length = sys.maxsize
        self._codes = None if spec.codes is None else LiveCodes(spec.codes, engine.device)
        self._unread: list[Skipped] = []

    def __call__(self, completions: Sequence[Completion]) -> list[float]:
        """Returns the score of each completion. Every rank calls it, with however many it has.

        Raises RewardError for a score that is not finite.
        """
        unread: list[Skipped] = []
        groups = groupby(range(len(completions)), lambda number: id(completions[number].conversation))
        encoded = [some for _, group in groups for some in self._encoded(list(group), completions, unread)]
        numbers, examples = [number for own, _ in encoded for number in own], [example for _, example in encoded]
        # Ranks make equally many passes, which a partitioned model needs.
        of_ranks = all_gather_object((-(-len(numbers) // self.batch_size), unread))
        self._unread = [item for _, own in of_ranks for item in own]
        micro_batches, exchange = self._split(examples, max(passes for passes, _ in of_ranks))
        found: list[float] = []
        for micro_batch in micro_batches:
            batch = self.engine.policy.collate(micro_batch).to(self.engine.device)
            scored = self.engine.score(batch).values.tolist()
            found += scored[: sum(len(example.responses) for example in micro_batch)]
        read = exchange.back(found)
        scores = [self.unread_score] * len(completions)
        for number, score in zip(numbers, read, strict=True):
            scores[number] = score
        return check_values(f'the model {self.source}', scores, completions)

    def unread(self) -> list[Skipped]:
        """Returns what the last call could not read, on all ranks: the rows, and why not."""
        return self._unread

    def _split(self, examples: list[Example], passes: int) -> tuple[list[list[Example]], Exchange]:
        if self.budget is None:
            return split(examples, self.batch_size, passes), Exchange(examples)
        collate = self.engine.policy.collate
        return exchanged_and_filled(examples, self.budget, collate.size, collate.cost if self.exchanges else None)

    def _as_read(self, conversations: list[Conversation]) -> list[Conversation]:
        """The conversations with sounds at the rate of this model, and codes where it reads media as codes."""
        if self.spec.audio_rate is not None:
            conversations = at_rate(conversations, self.spec.audio_rate)
        return conversations if self._codes is None else self._codes.beside(conversations)

    def _encoded(
        self, numbers: list[int], completions: Sequence[Completion], unread: list[Skipped]
    ) -> list[tuple[list[int], Example]]:
        """Encodes the completions of these numbers, which answer one prompt.

        Returns Examples with those that the model can read, and their numbers; the others are added to `unread`.
        """
        group = [completions[number] for number in numbers]
        conversations, start = [[*item.conversation, item.turn] for item in group], len(group[0].conversation)
        try:
            example = self.spec.encode_group(self._as_read(conversations), 'last', start=start, judged=True)
        except SampleError as error:
            if len(numbers) > 1:  # the others may be fine
                return [some for number in numbers for some in self._encoded([number], completions, unread)]
            unread.append(Skipped(group[0].source, str(error)))
            return []
        lengths = [len(example.prompt) + len(response) for response in example.responses]
        unread += [
            Skipped(
                item.source, f'the conversation has {length} tokens of {self.source}, which reads {self.max_length}'
            )
            for item, length in zip(group, lengths, strict=True)
            if length > self.max_length
        ]
        fitting = [at for at, length in enumerate(lengths) if length <= self.max_length]
        read = replace(example, responses=[example.responses[at] for at in fitting])
        return [([numbers[at] for at in fitting], read)]
