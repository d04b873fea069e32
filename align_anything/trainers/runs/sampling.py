"""How the settings of a run say that responses are sampled, and what media they may hold."""

from __future__ import annotations

from align_anything.configs.online import OnlineModelCfgs
from align_anything.core.errors import SettingsError
from align_anything.models.family import FamilySpec
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
        emit=emission_of(model, pair, spec),
        emit_temperature=dict(model.emit_temperature),
        emit_top_k=dict(model.emit_top_k),
    )
    check_emission(spec.codes, sampling)
    return sampling


def emission_of(model: OnlineModelCfgs, pair: Pair, spec: FamilySpec) -> Emission | None:
    """What media a response may hold: the kinds that both the pair and the model write; None for text alone.

    Raises SettingsError for the size of a kind that is not among them.
    """
    kinds = sorted(pair.writes & spec.emits)
    stray = sorted(set(model.emit_size) - set(kinds))
    if stray:
        raise SettingsError([f'model_cfgs.emit_size: responses hold no {stray[0]}, but {", ".join(kinds) or "text"}.'])
    if not kinds:
        return None
    grids = {kind: _grid(model.emit_size.get(kind)) for kind in kinds}
    return Emission(grids, None if pair.writes_text else kinds[0])


def _grid(size: list[int] | int | None) -> Grid | None:
    return None if size is None else (size,) if isinstance(size, int) else tuple(size)
