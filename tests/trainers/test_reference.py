"""References agree whatever they are, stay what they were, and are asked only once when their scores are kept."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from align_anything.algorithms.base import Algorithm, known_algorithms
from align_anything.algorithms.dpo import DPO
from align_anything.algorithms.kto import KTO
from align_anything.configs.deepspeed_files import load_deepspeed_config
from align_anything.configs.resolve import resolve
from align_anything.core.errors import SettingsError
from align_anything.core.store import FORMAT
from align_anything.core.types import Batch, Scored, Skipped
from align_anything.datasets.dataset import ExampleDataset
from align_anything.datasets.reference_scores import Referenced
from align_anything.engines.deepspeed_engine import DeepSpeedEngine
from align_anything.trainers.runs import reference as module
from align_anything.trainers.runs.assembly import assemble, make_collator
from align_anything.trainers.runs.checks import check_reference
from align_anything.trainers.runs.data import make_dataset, open_sources
from align_anything.trainers.runs.reference import make_roles
from align_anything.trainers.runs.settings import spec_of
from tests.harness.ranks import run_ranks
from tests.trainers.runs import IMAGE, TEXT, lines, sft, succeed, text_rows, warm, weights, write_rows
from tests.trainers.test_kept_features import count, epochs

ROWS = 6
Tiny = Callable[..., Path]


def pairs(count: int, seed: int = 0) -> list[dict[str, Any]]:
    chosen, rejected = (text_rows(count, seed + number) for number in range(2))
    return [
        {'prompt': one['instruction'], 'chosen': one['output'], 'rejected': f'no {other["output"]}'}
        for one, other in zip(chosen, rejected, strict=True)
    ]


@pytest.fixture(scope='module')
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp('inputs') / 'rows.jsonl', pairs(ROWS))


@pytest.fixture(scope='module')
def other(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint with other weights."""
    folder = tmp_path_factory.mktemp('models') / 'other'
    shutil.copytree(tiny('llama'), folder)
    generator = torch.Generator().manual_seed(0)
    state = load_file(folder / 'model.safetensors')
    state = {name: state[name] + 0.1 * torch.randn(state[name].shape, generator=generator) for name in sorted(state)}
    save_file(state, folder / 'model.safetensors', {'format': 'pt'})
    return folder


@pytest.fixture(scope='module')
def adapter(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained adapter of the checkpoint, on which training goes on."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp('models') / 'adapter'
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(tiny('llama'))
    settings = {'r': 16, 'lora_alpha': 16, 'target_modules': ['q_proj', 'down_proj'], 'task_type': 'CAUSAL_LM'}
    adapted = get_peft_model(model, LoraConfig(**settings, init_lora_weights=False))
    adapted.peft_config['default'].base_model_name_or_path = str(tiny('llama'))
    adapted.save_pretrained(folder)
    return folder


@dataclass
class Opened:
    """A run before its first step."""

    algorithm: Algorithm
    engine: DeepSpeedEngine
    dataset: ExampleDataset
    roles: dict[str, Any]
    rows: Any

    def batch(self, numbers: Sequence[int]) -> Batch:
        return self.engine.policy.collate([self.rows[number] for number in numbers])


def opened(kind: type[Algorithm], out: Path, model: Path, rows: Path, **settings: Any) -> Opened:
    """Does what a run does before its first step, with `settings` on its command line."""
    argv = sft(out, model, rows, template='Preference', **settings)
    resolved = resolve(TEXT.name, kind.name, kind, known_algorithms(), argv, {})
    cfgs, algorithm = resolved.cfgs, resolved.algorithm
    spec = spec_of(cfgs)
    dataset = make_dataset(open_sources(cfgs).training, TEXT, spec, algorithm, cfgs.data_cfgs.train_on)
    torch.manual_seed(cfgs.train_cfgs.seed)
    engine = assemble(cfgs, algorithm, make_collator(cfgs, spec, TEXT, algorithm), total_steps=10)
    roles, training, _ = make_roles(cfgs, algorithm, engine, dataset, [])
    return Opened(algorithm, engine, dataset, roles, training)


def scores(batch: Batch, score: Callable[[Batch], Any]) -> torch.Tensor:
    """Of the responses, and of those of other rows where there are such."""
    return torch.cat([score(item).values.float() for item in (batch, batch.unmatched) if item is not None])


def recorded(batch: Batch) -> Scored:
    """What the reference said of a batch when its rows were prepared."""
    return Scored(batch.values_of('reference'))


def follow(rank: int, ranks: int, out: Path, given: dict[str, tuple[type[Algorithm], Path, Path, dict[str, Any]]]):
    """For each kind of reference the scores of policy and reference at the start, then of reference and policy."""
    found = {}
    for name, (kind, model, rows, settings) in given.items():
        run = opened(kind, out / name, model, rows, **settings)
        batch = run.batch(range(rank, ROWS, ranks))
        policy, reference = run.engine.infer, run.roles.get('reference', recorded)
        before = scores(batch, policy), scores(batch, reference)
        assert run.engine.train_step([batch], run.algorithm, run.roles).applied
        found[name] = *before, scores(batch, reference), scores(batch, policy)
    return found


def compare(found: dict[str, tuple[torch.Tensor, ...]], same_as_start: bool = True) -> None:
    first = next(iter(found.values()))[1]
    for name, (start, before, after, trained) in found.items():
        for wanted in (first, *([start] if same_as_start else [])):
            torch.testing.assert_close(before, wanted, atol=1e-5, rtol=0, msg=lambda text, n=name: f'{n}: {text}')
        torch.testing.assert_close(after, before, atol=1e-5, rtol=0)
        assert float((trained - start).abs().max()) > 1e-3, f'{name}: the policy has moved away'


def zero(stage: int) -> str:
    return f'ds_z{stage}_config.json'


@pytest.mark.extended
def test_all_kinds_of_references_agree_on_two_ranks(
    tiny: Tiny, rows: Path, other: Path, adapter: Path, tmp_path: Path
) -> None:
    warm()
    base, cache = tiny('llama'), {'reference_cache_dir': tmp_path / 'cache'}
    lora = {'use_lora': True, 'r': 16, 'lora_alpha': 16, 'target_modules': '["q_proj", "down_proj"]'}
    own = {
        'copy': (DPO, base, rows, {}),
        'copy, partitioned': (DPO, base, rows, {'reference_ds_cfgs': zero(3), 'ds_cfgs': zero(2)}),
        'both partitioned': (DPO, base, rows, {'ds_cfgs': zero(3)}),
        'adapter off': (DPO, base, rows, lora),
        'cached': (DPO, base, rows, cache),
        'cached, partitioned': (DPO, base, rows, {'reference_cache_dir': tmp_path / 'cache3', 'ds_cfgs': zero(3)}),
    }
    named = {'reference_model_name_or_path': other}
    others = {'copy': (DPO, base, rows, named), 'cached': (DPO, base, rows, {**named, **cache})}
    continued = {'copy': (DPO, adapter, rows, lora)}
    unpaired = {'copy': (KTO, base, rows, {}), 'cached': (KTO, base, rows, cache)}
    groups = [own, others, continued, unpaired]

    def work(rank: int) -> list[Any]:
        return [follow(rank, 2, tmp_path / str(number), group) for number, group in enumerate(groups)]

    for results in run_ranks(work, 2, timeout=240):
        for number, found in enumerate(results):
            compare(found, same_as_start=number != 1)
        one, another = (next(iter(found.values()))[1] for found in results[:2])
        assert float((one - another).abs().max()) > 1e-2
    assert len(list((tmp_path / 'cache' / FORMAT).iterdir())) == 2, 'one folder for each reference'


def keeps(rank: int, out: Path, model: Path, rows: Path, file: Path) -> tuple[set[bool], dict[str, int], torch.Tensor]:
    """Whether partitions of the reference are offloaded, what of it is there after it has scored, and its scores."""
    from deepspeed.runtime.zero.partition_parameters import Init

    offloaded: set[bool] = set()
    inner = Init.__init__

    def begun(self: Any, *given: Any, **more: Any) -> None:
        inner(self, *given, **more)
        # The device of a rank is a CPU here as well; but only what is offloaded is pinned.
        offloaded.add(self.pin_memory)

    Init.__init__ = begun
    try:
        run = opened(DPO, out, model, rows, ds_cfgs=zero(0), reference_ds_cfgs=file)
    finally:
        Init.__init__ = inner
    engine = run.roles['reference'].__self__
    found = scores(run.batch(range(ROWS)), run.roles['reference'])
    return offloaded, {name: weight.numel() for name, weight in engine.policy.named_parameters()}, found


@pytest.mark.extended
def test_an_offloaded_reference_is_on_the_device_only_while_it_scores(tiny: Tiny, rows: Path, tmp_path: Path) -> None:
    """What a CPU can show of it: partitions go to `cpu` by name, and between passes no weight is gathered."""
    warm()
    config = load_deepspeed_config('ds_z3_offload_config.json')
    # All weights of a tiny model are small, and small ones stay gathered.
    config['zero_optimization']['stage3_param_persistence_threshold'] = 0
    files = {name: tmp_path / f'{name}.json' for name in ('offloaded', 'kept')}
    files['offloaded'].write_text(json.dumps(config))
    del config['zero_optimization']['offload_param'], config['zero_optimization']['offload_optimizer']
    files['kept'].write_text(json.dumps(config))
    [(offloaded, there, found)] = run_ranks(keeps, 1, args=(tmp_path / 'o', tiny('llama'), rows, files['offloaded']))
    assert offloaded == {True} and there and not any(there.values())
    [(offloaded, _, same)] = run_ranks(keeps, 1, args=(tmp_path / 'k', tiny('llama'), rows, files['kept']))
    assert offloaded == {False}
    torch.testing.assert_close(found, same)


def test_scores_on_disk_are_made_once_and_only_serve_what_they_are_of(
    tiny: Tiny, rows: Path, other: Path, tmp_path: Path
) -> None:
    warm()
    cache = tmp_path / 'cache'
    spare = '{% for m in messages %}{{ m.role }}={{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant={% endif %}'  # noqa: E501
    (tmp_path / 'template.jinja').write_text(spare)

    def work(rank: int) -> dict[str, Any]:
        calls: list[int] = []
        inner = module._by_key

        def counted(batch: Batch, *given: Any, **more: Any) -> Any:
            calls.append(batch.num_responses)
            return inner(batch, *given, **more)

        module._by_key = counted

        def asked(kind: type[Algorithm] = DPO, data: Path = rows, **settings: Any) -> tuple[int, Opened]:
            calls.clear()
            run = opened(kind, tmp_path / 'run', tiny('llama'), data, reference_cache_dir=cache, **settings)
            return sum(calls), run

        found = {'first': asked()[0]}
        found['again'], run = asked()
        found['with larger batches'] = asked(per_device_train_batch_size=4)[0]
        values = run.rows[0].responses[0].per_unit['reference'].clone()
        for file in cache.rglob('*.safetensors'):
            file.write_bytes(file.read_bytes()[:-4])
        found['broken'], mended = asked()
        torch.testing.assert_close(mended.rows[0].responses[0].per_unit['reference'], values)
        found['mended'] = asked()[0]
        found['other model'] = asked(reference_model_name_or_path=other)[0]
        found['other precision'] = asked(reference_dtype='bf16')[0]
        found['other template'] = asked(chat_template=tmp_path / 'template.jinja')[0]
        found['cut'] = asked(model_max_length=max(len(run.rows[n].prompt) for n in range(ROWS)) + 2)[0]
        found['unpaired'] = asked(KTO)[0]
        found['unpaired again'] = asked(KTO)[0]

        changed = write_rows(tmp_path / 'changed.jsonl', [{**row, 'chosen': 'Another'} for row in pairs(ROWS)])
        edited = opened(DPO, tmp_path / 'run', tiny('llama'), changed, reference_cache_dir=cache).dataset
        stale = Referenced(edited, mended.rows._store)[0]
        assert isinstance(stale, Skipped) and 'changed.jsonl' in stale.source
        assert 'the reference has no scores of it' in stale.reason and 'Start the run again' in stale.reason
        return found

    [found] = run_ranks(work, 1, timeout=240)
    each = 2 * ROWS
    assert found == {
        'first': each,
        'again': 0,
        'with larger batches': 0,
        'broken': each,
        'mended': 0,
        'other model': each,
        'other precision': each,
        'other template': each,
        'cut': found['cut'],
        # The answers are known, those of other rows are not: batches are scored whole.
        'unpaired': each + ROWS,
        'unpaired again': 0,
    }
    assert found['cut'] > 0


def test_a_stream_has_no_scores_beforehand(tiny: Tiny, rows: Path, tmp_path: Path) -> None:
    argv = sft(tmp_path, tiny('llama'), rows, template='Preference', streaming=True, max_steps=1,
               reference_cache_dir=tmp_path / 'cache')  # fmt: skip
    resolved = resolve(TEXT.name, 'dpo', DPO, known_algorithms(), argv, {})
    with pytest.raises(SettingsError, match='a stream cannot be scored beforehand'):
        check_reference(resolved.cfgs, resolved.algorithm)


def losses(folder: Path) -> list[float]:
    return [record['train/loss'] for record in lines(folder / 'metrics.jsonl') if 'train/loss' in record]


def forbid(rank: int) -> None:
    """No reference may be loaded or asked."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError('the reference is needed again')

    module._by_key = module.frozen_copy = module.adapter_off = refuse


def test_a_run_goes_on_with_the_scores_and_without_the_reference(tiny: Tiny, rows: Path, tmp_path: Path) -> None:
    held_out = write_rows(tmp_path / 'held_out.jsonl', pairs(3, seed=5))
    settings = {
        'epochs': 2, 'save_interval': 2, 'save_total_limit': 9, 'lr_scheduler_type': 'constant',
        'eval_datasets': held_out, 'eval_template': 'Preference', 'eval_strategy': 'steps', 'eval_interval': 3,
    }  # fmt: skip

    def argv(name: str, *more: Any, **changes: Any) -> list[str]:
        return sft(tmp_path / name, tiny('llama'), rows, *more, template='Preference', **settings, **changes)

    kept = {'reference_cache_dir': tmp_path / 'cache'}
    succeed(argv('copy'), algorithm=DPO)
    succeed(argv('kept', **kept), algorithm=DPO)
    assert len(losses(tmp_path / 'copy')) == 6
    assert losses(tmp_path / 'kept') == pytest.approx(losses(tmp_path / 'copy'), rel=1e-5)
    expected = weights(tmp_path / 'kept' / 'slice_end')
    output = succeed(argv('kept', '--resume', tmp_path / 'kept' / 'slice_2', **kept), before=forbid, algorithm=DPO)
    assert 'after step 2' in output
    found = weights(tmp_path / 'kept' / 'slice_end')
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    evaluated = [
        [record['eval/loss'] for record in lines(tmp_path / name / 'metrics.jsonl') if 'eval/loss' in record]
        for name in ('copy', 'kept')
    ]
    assert len(evaluated[0]) == 2 and evaluated[1] == pytest.approx(evaluated[0], rel=1e-5)


def test_kept_scores_and_kept_features_leave_neither_reference_nor_tower_to_run(tiny: Tiny, tmp_path: Path) -> None:
    data = []
    for number, row in enumerate(pairs(3)):
        Image.new('RGB', (40 + 8 * number, 60), (50 * number, 80, 90)).save(tmp_path / f'{number}.png')
        data.append({**row, 'image': f'{number}.png'})
    rows = write_rows(tmp_path / 'rows.jsonl', data)
    argv = sft(tmp_path / 'run', tiny('llava'), rows, template='Preference',
               reference_cache_dir=tmp_path / 'cache', feature_cache_dir=tmp_path / 'features')  # fmt: skip
    succeed(argv, pair=IMAGE, before=count(tmp_path / 'first'), algorithm=DPO)
    # The medium of the check before the first step, and the images: the reference reads the policy's features.
    assert [sum(epoch) for epoch in epochs(tmp_path / 'first', 0)] == [4, 0]
    expected = losses(tmp_path / 'run')
    watch = count(tmp_path / 'second')

    def before(rank: int) -> None:
        forbid(rank)
        watch(rank)

    succeed([*argv, '--overwrite_output_dir', 'True'], pair=IMAGE, before=before, algorithm=DPO)
    assert [sum(epoch) for epoch in epochs(tmp_path / 'second', 0)] == [0, 0]
    assert losses(tmp_path / 'run') == pytest.approx(expected, rel=1e-5)
