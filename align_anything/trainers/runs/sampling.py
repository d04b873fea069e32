"""How the settings of a run say that responses are sampled, and what media they may hold."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from align_anything.configs.online import OnlineModelCfgs
from align_anything.configs.schema import RunCfgs
from align_anything.core.errors import SettingsError
from align_anything.core.types import MediaKind
from align_anything.datasets.dataset import ExampleDataset
from align_anything.models.family import FamilySpec
from align_anything.policies.token.collator import TokenCollator
from align_anything.rollouts.base import Sampling, check_emission
from align_anything.rollouts.grammar import Emission, Grid
from align_anything.trainers.pairs import Pair


def sampling_of(model: OnlineModelCfgs, pair: Pair, spec: FamilySpec) -> Sampling:
    """How responses are sampled.

    Raises SettingsError for media that the model cannot write as asked, or not within the length limit.
    """
    sampling = Sampling(
        max_new_tokens=model.max_new_tokens,
        temperature=model.temperature,
        top_p=model.top_p,
        top_k=model.top_k,
        repetition_penalty=model.repetition_penalty,
        stop=tuple(model.stop),
        include_stop_str_in_output=model.include_stop_str_in_output,
        emit=emission_of(model.emit_size, pair, spec),
        emit_temperature=dict(model.emit_temperature),
        emit_top_k=dict(model.emit_top_k),
        guidance=model.guidance_scale,
        eval_guidance=model.eval_guidance_scale,
        eval_temperature=model.eval_temperature,
    )
    check_emission(spec.codes, sampling)
    if is_guided(model):
        _check_guided(spec)
    return sampling


def sampling_of_answers(cfgs: RunCfgs, pair: Pair, spec: FamilySpec) -> Sampling:
    """How the answers are sampled that `eval_tasks` measure in training on data: text greedily, codes of media not.

    Raises SettingsError for media that the model does not write within the length limit, or of a size not known.
    """
    kinds = _kinds(pair, spec)
    sampling = Sampling(
        max_new_tokens=cfgs.train_cfgs.eval_max_new_tokens,
        temperature=0.0,
        emit=emission_of({}, pair, spec),
        emit_temperature=dict.fromkeys(kinds, 1.0),
    )
    try:
        check_emission(spec.codes, sampling)
    except SettingsError as error:
        problems = [
            text.replace('model_cfgs.max_new_tokens', 'train_cfgs.eval_max_new_tokens') for text in error.problems
        ]
        raise SettingsError(
            [
                f'train_cfgs.eval_tasks: {text} Or measure the trained model by align-anything evaluate.'
                for text in problems
            ]
        ) from error
    return sampling


def _check_guided(spec: FamilySpec) -> None:
    problems = []
    if spec.softcap is not None:
        problems.append(
            f"model_cfgs.guidance_scale: models of type '{spec.model_type}' cap their logits, so that guided "
            'log-probabilities are those of no hidden state. Leave it out.'
        )
    if spec.codes.further:
        problems.append(
            f"model_cfgs.guidance_scale: models of type '{spec.model_type}' write codes beside the tokens that are "
            'guided, and these would not follow. Leave it out.'
        )
    if spec.codes.parallel is not None:
        problems.append(
            'model_cfgs.guidance_scale: codes that are sampled at once (action_cfgs.action_decoding: parallel) are '
            'sampled by the model as it is. Leave it out.'
        )
    if not spec.codes.ranged:
        problems.append(
            'model_cfgs.guidance_scale: this algorithm scores codes over the whole vocabulary, but they are guided '
            'among each other (Algorithm.scores_ranges). Leave it out.'
        )
    if problems:
        raise SettingsError(problems)


def is_guided(model: OnlineModelCfgs) -> bool:
    """Whether any responses are guided, those to learn from or those of evaluations."""
    return model.guidance_scale != 1 or model.eval_guidance_scale not in (None, 1)


def guided_if_asked(
    model: OnlineModelCfgs, collate: TokenCollator, datasets: Sequence[ExampleDataset]
) -> tuple[TokenCollator, list[ExampleDataset]]:
    """The collator, and the prompts each with its unconditional form, of runs with guidance; of others as they are.

    Raises DataError where the first prompts have no such form.
    """
    if not is_guided(model):
        return collate, list(datasets)
    return replace(collate, guidance=model.guidance_scale), guided_prompts(datasets)


def guided_prompts(datasets: Sequence[ExampleDataset]) -> list[ExampleDataset]:
    """The prompts each with its unconditional form. Raises DataError where the first ones have no such form."""
    found = [dataset.of_task(replace(dataset.task, guided=True)) for dataset in datasets]
    for dataset in found:
        dataset.probe(final=True)
    return found


def check_kinds(setting: str, named: Collection[str], sampling: Sampling) -> None:
    """Raises SettingsError for a kind of units under a setting which responses have none of."""
    emission = sampling.emit or Emission()
    known = [*([] if emission.begins else ['text']), *emission.grids]
    stray = sorted(set(named) - set(known))
    if stray:
        raise SettingsError([f'{setting}.{stray[0]}: no unit of a response is {stray[0]}, but {" or ".join(known)}.'])


def emission_of(sizes: Mapping[str, list[int] | int], pair: Pair, spec: FamilySpec) -> Emission | None:
    """What media a response may hold: the kinds that both the pair and the model write; None for text alone.

    `sizes` are those that the settings give. Raises SettingsError for the size of a kind that is not among them.
    """
    kinds = _kinds(pair, spec)
    stray = sorted(set(sizes) - set(kinds))
    if stray:
        raise SettingsError([f'model_cfgs.emit_size: responses hold no {stray[0]}, but {", ".join(kinds) or "text"}.'])
    if not kinds:
        return None
    grids = {kind: _grid(sizes.get(kind)) for kind in kinds}
    return Emission(grids, None if pair.writes_text else kinds[0])


def _kinds(pair: Pair, spec: FamilySpec) -> list[MediaKind]:
    """The kinds that responses hold as codes; actions in words are text."""
    return sorted(pair.writes & spec.emits & (spec.codes.kinds.keys() if spec.codes is not None else set()))


def _grid(size: list[int] | int | None) -> Grid | None:
    return None if size is None else (size,) if isinstance(size, int) else tuple(size)
