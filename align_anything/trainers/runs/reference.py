"""The reference of a run: the policy without its adapter, a frozen copy, or what one of them said, kept on disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from functools import cache
from pathlib import Path
from uuid import uuid4

import torch
from torch import Tensor, nn

from align_anything.algorithms.base import Algorithm
from align_anything.algorithms.referring import Reference, Referring
from align_anything.configs.schema import RunCfgs
from align_anything.core.distributed import (
    all_gather_object,
    all_reduce_sum,
    barrier,
    broadcast_object,
    is_main,
)
from align_anything.core.errors import SettingsError
from align_anything.core.logging import get_logger
from align_anything.core.parameters import is_partitioned
from align_anything.core.types import Batch, Scored
from align_anything.datasets.dataset import ExampleDataset
from align_anything.datasets.reference_scores import KEYS, Indexed, Referenced, ReferenceScores
from align_anything.engines.deepspeed_engine import DeepSpeedEngine
from align_anything.models.adapter import find_adapter
from align_anything.models.fingerprint import weights_fingerprint
from align_anything.models.trainable import plain_name
from align_anything.trainers.loops.base import recorded_reference
from align_anything.trainers.runs.assembly import open_frozen
from align_anything.trainers.runs.data import loader_in_order
from align_anything.trainers.runs.settings import DTYPES, frozen_config, precision_of

logger = get_logger(__name__)

WRITTEN_AT_ONCE = 4096
Scorer = Callable[[Batch], Scored]


def check_reference(cfgs: RunCfgs, algorithm: Algorithm) -> None:
    """Raises SettingsError for what the reference cannot do."""
    if isinstance(algorithm, Referring) and algorithm.reference_cache_dir and cfgs.data_cfgs.streaming:
        raise SettingsError(
            ['train_cfgs.reference_cache_dir: a stream cannot be scored beforehand. Set data_cfgs.streaming: False.']
        )


def make_roles(
    cfgs: RunCfgs,
    algorithm: Algorithm,
    policy: DeepSpeedEngine,
    training: ExampleDataset,
    held_out: Sequence[ExampleDataset],
) -> tuple[dict[str, Scorer], Indexed, Sequence[Indexed]]:
    """What scores batches beside the policy, by role, and the rows to train and to evaluate on.

    To be called before the policy has changed or resumed, while it is the model that training starts from.
    """
    if not isinstance(algorithm, Referring):
        return {}, training, held_out
    if algorithm.reference_cache_dir is not None:
        scores = ReferenceScores(algorithm.reference_cache_dir, reference_fingerprint(cfgs, algorithm))
        require_shared(scores.folder)
        scorer = _start_or_copy(cfgs, algorithm, policy)
        for dataset in (training, *held_out):
            score_rows(cfgs, dataset, scores, scorer, policy)
        rows, *others = (Referenced(dataset, scores, complete=True) for dataset in (training, *held_out))
        return {'reference': recorded_reference}, rows, others
    return {'reference': reference_scorer(cfgs, algorithm, policy)}, training, held_out


def reference_scorer(cfgs: RunCfgs, algorithm: Reference, policy: DeepSpeedEngine, temperature: float = 1.0) -> Scorer:
    """The reference at the `temperature` of the policy: the model under its adapter, else a frozen copy."""
    if without_adapter_is_reference(cfgs, algorithm):
        logger.info('reference: the model without the adapter')
        return adapter_off(policy)
    return frozen_copy(cfgs, algorithm, policy, temperature)


def reference_fingerprint(cfgs: RunCfgs, algorithm: Referring) -> str:
    """Tells the reference from others: by its weights, those under its adapter, its precision and quantisation."""
    source = algorithm.reference_model_name_or_path or cfgs.model_cfgs.model_name_or_path
    adapter = find_adapter(source)
    told = [weights_fingerprint(item) for item in (source, *([adapter.require_base()] if adapter else []))]
    told.append(precision_of_reference(cfgs, algorithm))
    if cfgs.bnb_cfgs.use_bnb:
        told.extend(str(value) for value in cfgs.bnb_cfgs.model_dump().values())
    return '-'.join(told)


def score_rows(
    cfgs: RunCfgs, dataset: ExampleDataset, scores: ReferenceScores, scorer: Scorer, policy: DeepSpeedEngine
) -> None:
    """Adds what `scores` lacks of the rows of `dataset`. Every rank calls it and takes its share of the rows."""
    rows = Referenced(dataset, scores, complete=False)
    batch_size = cfgs.train_cfgs.per_device_train_batch_size
    fresh: dict[str, Tensor] = {}
    made = 0
    with closing(loader_in_order(rows, dataset.sizes, batch_size, policy.policy.collate, cfgs)) as loader:
        for batch in loader.micro_batches(0):
            wanted = {key for meta in batch.metas for key in meta.get(KEYS, ()) if key not in scores}
            # Ranks make the same calls, whichever of them lacks something.
            local = torch.tensor([float(bool(wanted)), float(batch.unmatched is not None)])
            lacks, compares = all_reduce_sum(local.to(policy.device)).tolist()
            if not lacks:
                continue
            found = _by_key(batch, scorer, policy.device, last=False)
            if compares:
                found |= _by_key(batch.unmatched or batch, scorer, policy.device, last=batch.unmatched is not None)
            fresh |= {key: value for key, value in found.items() if key in wanted}
            if len(fresh) >= WRITTEN_AT_ONCE:
                scores.add(fresh)
                made, fresh = made + len(fresh), {}
    scores.add(fresh)
    # Once all ranks are here, all have written.
    total = all_reduce_sum(torch.tensor(made + len(fresh), device=policy.device))
    scores.look()
    logger.info('reference: %d responses scored, %s', int(total), scores.folder)


def require_shared(folder: Path) -> None:
    """Raises SettingsError when the ranks do not see one folder but each node has its own. Every rank calls it."""
    mark = folder / broadcast_object(f'.shared.{uuid4().hex}')
    if is_main():
        mark.touch()
    barrier()
    seen = all_gather_object(mark.exists())
    if is_main():
        mark.unlink()
    if not all(seen):
        raise SettingsError(
            [
                f'train_cfgs.reference_cache_dir: of {len(seen)} processes only {sum(seen)} see what the first one '
                f'writes into {folder.parent}. Each scores a share of the rows for all: name a folder that all nodes '
                'share.'
            ]
        )


def _by_key(batch: Batch, scorer: Scorer, device: torch.device, last: bool) -> dict[str, Tensor]:
    """Scores a batch; with `last`, one of unmatched responses, whose keys stand last in the metas."""
    values = scorer(batch.to(device)).values.float().cpu()
    pieces = batch.by_response(values)
    owned = torch.bincount(batch.examples_of_responses).tolist()
    keys = [
        key
        for number, meta in zip(owned, batch.metas, strict=True)
        for key in (meta.get(KEYS, ())[-1:] if last else meta.get(KEYS, ())[:number])
    ]
    # An empty micro-batch has a response without a key.
    return {key: piece.clone() for key, piece in zip(keys, pieces, strict=False)}


def _start_or_copy(cfgs: RunCfgs, algorithm: Referring, policy: DeepSpeedEngine) -> Scorer:
    """The policy itself where it is the reference as long as it has not been trained, else a copy.

    A copy is loaded when it is first asked, which ranks do together: there may be nothing left to score.
    """
    if algorithm.reference_model_name_or_path in (None, cfgs.model_cfgs.model_name_or_path) and (
        algorithm.reference_dtype in ('auto', precision_of(cfgs))
    ):
        return policy.infer
    copy = cache(lambda: frozen_copy(cfgs, algorithm, policy))
    return lambda batch: copy()(batch)


def without_adapter_is_reference(cfgs: RunCfgs, algorithm: Reference) -> bool:
    """Whether switching the adapter off gives the reference: not when training goes on from a trained adapter."""
    source = cfgs.model_cfgs.model_name_or_path
    same = algorithm.reference_model_name_or_path in (None, source)
    return cfgs.lora_cfgs.use_lora and same and find_adapter(source) is None


def adapter_off(policy: DeepSpeedEngine) -> Scorer:
    """Scores with the weights under the adapter that `policy` trains."""

    def score(batch: Batch) -> Scored:
        with policy.policy.model.disable_adapter():
            return policy.infer(batch)

    return score


def frozen_copy(cfgs: RunCfgs, algorithm: Reference, policy: DeepSpeedEngine, temperature: float = 1.0) -> Scorer:
    """Loads the reference and lets it share the weights that the policy keeps frozen too."""
    source = algorithm.reference_model_name_or_path or cfgs.model_cfgs.model_name_or_path
    precision = precision_of_reference(cfgs, algorithm)
    config = frozen_config(cfgs, precision, algorithm.reference_ds_cfgs)
    engine = open_frozen(
        cfgs, policy.policy.collate, source, scores=algorithm.scores, dtype=DTYPES[precision], config=config
    )
    engine.policy.set_temperature(temperature)
    shared = share_frozen(policy.policy.model, engine.policy.model)
    logger.info('reference: a frozen copy of %s in %s, %d weights shared with the policy', source, precision, shared)
    return engine.score


def precision_of_reference(cfgs: RunCfgs, algorithm: Reference) -> str:
    """The precision in which a reference scores."""
    return precision_of(cfgs) if algorithm.reference_dtype == 'auto' else algorithm.reference_dtype


def share_frozen(policy: nn.Module, reference: nn.Module) -> int:
    """Gives weights of `reference` that `policy` keeps frozen, and that are equal, one storage; returns how many."""
    theirs = {plain_name(name): parameter for name, parameter in reference.named_parameters()}
    shared = 0
    for name, parameter in policy.named_parameters():
        other = theirs.get(plain_name(name))
        if other is None or parameter.requires_grad or is_partitioned(parameter) or is_partitioned(other):
            continue
        if parameter.dtype == other.dtype and torch.equal(parameter, other):
            other.data = parameter.data
            shared += parameter.numel()
    return shared
