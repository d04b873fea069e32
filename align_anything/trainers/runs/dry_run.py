"""Everything that can be known before training: what trains, how long, how much memory, and what is trained on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from align_anything.algorithms.online import Online
from align_anything.configs.online import OnlineRunCfgs
from align_anything.configs.resolve import Resolved
from align_anything.configs.schema import RunCfgs
from align_anything.core.distributed import is_main
from align_anything.core.errors import DataError
from align_anything.core.types import ACTION, Batch, Example, Piece, Skipped, named_tensors
from align_anything.datasets.skips import told_once
from align_anything.engines.deepspeed_config import sharer_of
from align_anything.models.acting.pi0 import BLANK, Pi0Spec
from align_anything.models.acting.pieces import GOAL, OBSERVATION
from align_anything.models.acting.spec import ActionSpec
from align_anything.models.diffusion.prepared import LATENTS
from align_anything.models.family import FamilySpec
from align_anything.models.spec import Spec
from align_anything.models.trainable import parameter_table, render_table
from align_anything.models.work import positions_in_towers
from align_anything.policies.token.collator import TokenCollator
from align_anything.reporting.online_report import names_of_numbers
from align_anything.trainers.loops.splitting import split, steps_of_rollout
from align_anything.trainers.pairs import Pair
from align_anything.trainers.runs.acting import longest_episode
from align_anything.trainers.runs.assembly import (
    build_on_meta,
    check_model,
    kept_features,
    kernels,
    make_collator,
    require_trained,
)
from align_anything.trainers.runs.checks import (
    check_evaluation,
    check_online,
    check_reference,
)
from align_anything.trainers.runs.data import (
    make_dataset,
    open_run,
    prompt_sampler,
    row_buckets,
    row_costs,
    total_steps,
    training_loader,
    training_sampler,
)
from align_anything.trainers.runs.eval_tasks import metrics_of
from align_anything.trainers.runs.generating import GENERATING
from align_anything.trainers.runs.memory import memory_of_run, memory_table, total
from align_anything.trainers.runs.pipelines import denoised_at_once
from align_anything.trainers.runs.ptx import ptx_dataset, with_ptx_if_given
from align_anything.trainers.runs.rewarding import rewards_to_learn_from
from align_anything.trainers.runs.roles import judges_of
from align_anything.trainers.runs.rollout_engine import check_rollouts
from align_anything.trainers.runs.settings import (
    data_ranks,
    engine_config,
    objective_of,
    precision_of,
    told_of_activations,
)
from align_anything.trainers.runs.verdict import verdict
from align_anything.trainers.runs.windows import windows_of

SAMPLES = 3
COUNTED = {
    'token': 'about, {:,} tokens in the language model',
    'denoising step': 'of {:,} samples at once',
    'action': 'of {:,} steps',
    'denoised action': 'of {:,} tokens and steps',
}
"""What activations are told of, by what a unit is."""


def dry_run(pair: Pair, resolved: Resolved, console: Console | None = None) -> None:
    """Resolves everything, builds the first batch and prints what a run would do. Reads and writes no weights."""
    cfgs = resolved.cfgs
    config, optimizer = engine_config(cfgs)
    check_reference(cfgs, resolved.algorithm)
    sources, spec = open_run(cfgs, pair, resolved.algorithm)
    check_model(resolved, spec)
    collate = make_collator(cfgs, spec, pair, resolved.algorithm)
    given = sources.training, pair, spec, resolved.algorithm, cfgs.data_cfgs.train_on
    drop = cfgs.data_cfgs.drop_truncated
    batch, generates = None, resolved.algorithm.generates
    if generates:
        check_online(cfgs, resolved.algorithm)
        check_rollouts(resolved)
        names = [*(reward.name for reward in rewards_to_learn_from(cfgs)), *judges_of(cfgs, resolved.algorithm)]
        generating = GENERATING[spec.unit]
        generating.sampling_of(resolved, pair, spec, steps_of_rollout(cfgs, resolved.algorithm))
        dataset = make_dataset(*given, reserved=cfgs.model_cfgs.max_new_tokens)
        dataset.probe(final=True)
        collate, (dataset,) = generating.guided_if_asked(cfgs, collate, [dataset])
        sampler, steps = prompt_sampler(sources, dataset, collate, cfgs, resolved.algorithm)
        ptx_dataset(with_ptx_if_given(resolved), pair, spec)
        metrics = names_of_numbers(names, spec.unit == 'token', cfgs.environment_cfgs.environment is not None)
    else:
        windows = windows_of(cfgs, pair, resolved.algorithm, spec)
        dataset = make_dataset(*given, drop_truncated=drop, windows=windows)
        dataset.probe(final=True)
        costs, _ = row_costs(dataset, collate, cfgs)
        buckets, _ = row_buckets(dataset, spec, cfgs)
        sampler = training_sampler(sources.training, dataset, collate, cfgs, costs, buckets=buckets)
        steps = total_steps(cfgs, sampler)
        loader = training_loader(dataset, sampler, collate, cfgs)
        batch = next(iter(loader.micro_batches(0)), None)
        if batch is None:
            raise DataError('the training data hold no rows.')
        objective = objective_of(resolved.algorithm, spec.codes)
        metrics = ['loss', *objective.counts(batch)] if resolved.algorithm.trains else []
    check_evaluation(cfgs, metrics, steps, metrics_of(cfgs, pair))
    model, rates = build_on_meta(cfgs, spec, resolved.algorithm)
    if resolved.algorithm.trains:
        require_trained(cfgs, resolved.algorithm, collate, model, pair)
    kept: list[Example] = []
    left_out: list[Skipped] = []
    # Of the largest micro-batch, and of one of a single row: tokens, or samples that are denoised.
    largest, least = cfgs.train_cfgs.max_length_per_batch or 0, 0
    # Likewise, by tower: positions of media.
    most, fewest = Counter[str](), Counter[str]()
    if spec.unit == 'denoising step':
        largest = denoised_at_once(cfgs, spec, resolved.algorithm) if generates else batch.inputs.rows
        least = -(-largest // cfgs.train_cfgs.per_device_train_batch_size)
    # As many on every rank, whatever it finds in them: a sampler may have to agree with its peers on each.
    for rows in islice(sampler.micro_batches(0), 4 * SAMPLES):
        wanted = rows if len(kept) < SAMPLES else ()
        made = [dataset[row] for row in wanted]
        found = [item for item in made if isinstance(item, Example)]
        left_out += [item for item in made if isinstance(item, Skipped)]
        if spec.unit != 'denoising step':
            updated = _longest_update(cfgs, resolved.algorithm, found) if generates else found
            largest = max(largest, collate.size(updated))
            least = max([least, *(collate.size([row]) for row in updated)])
        if spec.unit == 'token':
            most |= _in_towers(cfgs, collate, updated)
            for row in updated:
                fewest |= _in_towers(cfgs, collate, [row])
        kept += found
    if not kept:
        raise DataError(f'not one of the first {len(left_out)} rows of this rank can be used:\n{told_once(left_out)}')
    held = memory_of_run(cfgs, pair, resolved.algorithm, spec, model, largest, most)
    if not is_main():
        return
    console = console or Console(highlight=False)
    console.print(render_table(parameter_table(model, spec.components, rates)))
    cached = kept_features(cfgs, spec, model)
    shown_rows = None if cfgs.data_cfgs.streaming else len(dataset)
    computing = kernels(cfgs, collate, model)
    console.print(_plan(cfgs, shown_rows, steps, collate.layout, optimizer, config, cached, computing, generates))
    counted = COUNTED[spec.unit]
    console.print(memory_table(held, counted.format(largest)))

    def measure(changed: RunCfgs) -> float:
        smaller, _ = build_on_meta(changed, spec, resolved.algorithm)
        fewer = changed.train_cfgs.per_device_train_batch_size < cfgs.train_cfgs.per_device_train_batch_size
        size = (least, fewest) if fewer else (largest, most)
        return total(memory_of_run(changed, pair, resolved.algorithm, spec, smaller, *size))

    counts_all = all(memory.activations is not None for memory in held.values())
    console.print(verdict(cfgs, total(held), counts_all, resolved.device_gib, measure), soft_wrap=True)
    if batch is not None:
        console.print(_first_batch(batch))
    for number, example in enumerate(kept[:SAMPLES], 1):
        console.rule(f'sample {number} of {min(SAMPLES, len(kept))}')
        # Not in the rule, which would cut a long path before the number of the row.
        truncated = any(response.truncated for response in example.responses)
        cut = ' (truncated at model_cfgs.model_max_length)' if truncated else ''
        console.print(f'{example.source}{cut}', soft_wrap=True)
        console.print(show_example(example, spec), soft_wrap=True)
    if left_out:
        console.print(f'\nof these rows {len(left_out)} are left out:\n{told_once(left_out)}', soft_wrap=True)
    console.print(f'\n{marks_of(spec)} This was a dry run: nothing was trained or saved.')


def _in_towers(cfgs: RunCfgs, collate: TokenCollator, rows: Sequence[Example]) -> Counter[str]:
    """The positions of towers in a micro-batch of these rows; of one that goes by tokens, in a full one of such."""
    found = positions_in_towers(collate.spec, rows, collate.layout == 'shared_prefix')
    budget = cfgs.train_cfgs.max_length_per_batch
    size = collate.size(rows)
    return Counter({tower: number * (budget or size) // max(size, 1) for tower, number in found.items()})


def _longest_update(cfgs: OnlineRunCfgs, algorithm: Online, prompts: Sequence[Example]) -> list[Example]:
    """The first micro-batch of the update if every response were as long as it may become."""
    asked = [replace(one, responses=[_longest_response(cfgs, one)] * algorithm.trained_responses) for one in prompts]
    return split(asked, cfgs.train_cfgs.per_device_train_batch_size, 1)[0]


def _longest_response(cfgs: OnlineRunCfgs, example: Example) -> Piece:
    units, longest = cfgs.model_cfgs.max_new_tokens, longest_episode(cfgs)
    length = units
    if longest is not None:
        length = longest - len(example.prompt)
        units *= cfgs.environment_cfgs.max_turns
    return Piece(torch.zeros(length, dtype=torch.long), (torch.arange(length) < units).float())


def show_example(example: Example, spec: Spec) -> Text:
    """The example as text: trained tokens marked, those of media as `<media × 576>` or `<image codes × 16>`.

    A response of several sequences says of each how many tokens of the prompt it continues. Of one that is denoised the
    shape of its latents is told.
    """
    text = Text()
    if spec.unit == 'denoised action':
        return _show_chunks(example, spec)
    if spec.unit == 'action':
        return _show_actions(example, spec)
    if spec.unit != 'token':
        text.append(bytes(example.prompt.ids.tolist()).decode(), style='dim')
        for response in example.responses:
            told = f'⟦{spec.kind}: latents {shape_of(response)}, {response.units} draws⟧'
            text.append(f'\n{told}', style='bold green')
        return text
    text.append_text(_show_piece(example.prompt, spec))
    for piece in (piece for response in example.responses for piece in response.sequences):
        if piece.prefix_length is not None:
            text.append(f'\n↳ behind the first {piece.prefix_length} tokens of the prompt: ', style='dim')
        elif any(response.earlier for response in example.responses):
            text.append('\n↳ behind the prompt: ', style='dim')
        text.append_text(_show_piece(piece, spec))
    return text


def _show_actions(example: Example, spec: ActionSpec) -> Text:
    text = Text()
    if GOAL in example.prompt.media:
        text.append(spec.tokenizer.decode(example.prompt.media[GOAL][0].tolist()))
    for piece in (example.prompt, *example.responses):
        done = iter(spec.decode(piece))
        for number, weight in zip(piece.ids.tolist(), piece.weights.tolist(), strict=True):
            if number == OBSERVATION:
                text.append(f' <pictures × {spec.config.cameras}>', style='dim')
                continue
            actions = next(done)[ACTION]
            told = ', '.join(actions.names) or str(actions.values.tolist())
            text.append(f' ⟦{told}⟧' if weight else f' {told}', style='bold green' if weight else 'dim')
        text.append('\n')
    return text


def _show_chunks(example: Example, spec: Pi0Spec) -> Text:
    text = Text()
    if GOAL in example.prompt.media:
        goal = example.prompt.media[GOAL][0]
        text.append(spec.tokenizer.decode(goal[goal != BLANK].tolist()))
    for piece in example.responses:
        for part in spec.decode(piece):
            text.append(f' ⟦{part[ACTION].values.tolist()}⟧', style='bold green')
        text.append('\n')
    return text


def shape_of(response: Piece) -> str:
    """The shape of a response's latents, as a person would write it."""
    return ' × '.join(map(str, response.media[LATENTS].shape))


def marks_of(spec: Spec) -> str:
    """A sentence on what `show_example` marks."""
    return f'{"trained tokens stand" if spec.unit == "token" else "what is trained stands"} between ⟦ ⟧.'


def _show_piece(piece: Piece, spec: FamilySpec) -> Text:
    text = Text()
    names = _media_names(piece, spec)
    for start, stop in _runs(list(zip((piece.weights > 0).tolist(), names, strict=True))):
        ids, name = piece.ids[start:stop].tolist(), names[start]
        shown = f'<{name} × {len(ids)}>' if name else spec.tokenizer.decode(ids)
        if piece.weights[start] > 0:
            text.append(f'⟦{shown}⟧', style='bold green')
        else:
            text.append(shown, style='magenta' if name else 'dim')
    return text


def _media_names(piece: Piece, spec: FamilySpec) -> list[str]:
    """What each token stands for in a medium: `media` for a placeholder, the codes of a kind, nothing for text."""
    placeholders = torch.isin(piece.ids, torch.tensor(sorted(spec.media_token_ids), dtype=torch.long)).tolist()
    kinds = [None if spec.codes is None else spec.codes.kind_of(token) for token in piece.ids.tolist()]
    return [
        'media' if held else f'{kind} codes' if kind else '' for held, kind in zip(placeholders, kinds, strict=True)
    ]


def _runs(values: Sequence[object]) -> list[tuple[int, int]]:
    bounds = [0, *(i for i in range(1, len(values)) if values[i] != values[i - 1]), len(values)]
    return [(start, stop) for start, stop in zip(bounds, bounds[1:], strict=False) if stop > start]


def _plan(
    cfgs,
    rows: int | None,
    steps: int,
    layout: str,
    optimizer: str,
    config: dict,
    cached: Sequence[str],
    computing: Mapping[str, str],
    generates: bool,
) -> Table:
    train = cfgs.train_cfgs
    ranks, _ = data_ranks(cfgs)
    per_step = train.per_device_train_batch_size * train.gradient_accumulation_steps * ranks
    shared = train.sequence_parallel_size
    in_words = f'groups of {shared} ranks' if shared > 1 else 'ranks'
    table = Table(title='Run', show_header=False)
    for name, value in {
        'rows': 'stream' if rows is None else f'{rows:,}',
        'responses per step' if generates else 'samples per step': f'up to {train.max_length_per_batch} tokens a device'
        if train.max_length_per_batch and not generates
        else f'{per_step} = {train.per_device_train_batch_size} × '
        f'{train.gradient_accumulation_steps} accumulated × {ranks} {in_words}',
        'optimizer steps': f'{steps:,}',
        'engine': f'{sharer_of(config)}, {precision_of(cfgs)}, {optimizer}',
        'activations': told_of_activations(cfgs),
        'layout': f'{layout} (checked on the model before the first step)',
        **computing,
        **({'features kept': ', '.join(cached)} if cached else {}),
    }.items():
        table.add_row(name, value)
    return table


def _first_batch(batch: Batch) -> Table:
    table = Table(title='First micro-batch of this rank', show_header=False)
    for name, value in batch.stats.items():
        table.add_row(name, str(value))
    table.add_row('skipped', str(len(batch.skipped)))
    for name, value in named_tensors(batch.inputs):
        table.add_row(name, f'{tuple(value.shape)} {str(value.dtype).removeprefix("torch.")}')
    return table
