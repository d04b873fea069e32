"""A loss that is not finite never reaches the weights; the evaluation loss is the mean over all tokens of all ranks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from align_anything.algorithms.sft import SFT
from align_anything.models.family import FamilySpec
from align_anything.trainers.loops.offline import OfflineLoop
from tests.harness.pairwise import first_of
from tests.trainers.runs import lines, poison, run, sft, succeed, text_rows, weights, write_rows

STEPS = 5  # 20 rows, 2 ranks x 2 rows
STAGES = ['z0', 'z2', 'z3']


@pytest.fixture(scope='module')
def rows(tmp_path_factory) -> Path:
    return write_rows(tmp_path_factory.mktemp('inputs') / 'rows.jsonl', text_rows(4 * STEPS))


@pytest.mark.parametrize('stage', first_of(STAGES, 'z2'))
def test_stop_names_the_samples_and_leaves_the_last_good_slice(tiny, rows, tmp_path, stage):
    argv = sft(tmp_path / 'run', tiny('llama'), rows, ds_cfgs=f'ds_{stage}_config.json', save_interval=2,
               save_total_limit=2)  # fmt: skip
    ended = run(argv, 2, before=poison(3, met=tmp_path / 'met'))
    assert [item.code for item in ended] == [2, 2], ended[0].output + ended[1].output
    assert 'Traceback' not in ended[0].output + ended[1].output
    assert 'step 3: the loss is not finite; the weights were left as they were' in ended[0].output
    assert 'train_cfgs.nonfinite_loss: skip' in ended[0].output
    named = ended[0].output.partition('Samples in question: ')[2].partition('. Look')[0].split(', ')
    # Only the rows of the rank that met it, not those of its peer.
    assert named == (tmp_path / 'met').read_text().splitlines() and len(named) == 2
    assert sorted(path.name for path in (tmp_path / 'run').glob('slice_*')) == ['slice_2']
    assert all(tensor.isfinite().all() for tensor in weights(tmp_path / 'run' / 'slice_2').values())
    assert [record['step'] for record in lines(tmp_path / 'run' / 'metrics.jsonl')] == [1, 2]

    assert 'after step 2' in succeed([*argv, '--resume', 'auto'], 2)


@pytest.mark.parametrize('stage', first_of(STAGES, 'z0'))
def test_skip_leaves_the_step_out_and_counts_it(tiny, rows, tmp_path, stage):
    """The run ends where one ends that was told to leave out that very step."""

    def leave_out(rank: int) -> None:
        from align_anything.engines.deepspeed_engine import DeepSpeedEngine

        inner_step, inner_train = OfflineLoop._step, DeepSpeedEngine.train_step

        def step(self, loaded):
            DeepSpeedEngine.train_step = without if self.progress.step + 1 == 3 else inner_train
            return inner_step(self, loaded)

        def without(self, micro_batches, *given, **options):
            zero = SFT.counts
            SFT.counts = lambda algorithm, batch: {'loss': torch.tensor(0.0)}
            result = inner_train(self, micro_batches, *given, **options)
            SFT.counts = zero
            return result

        OfflineLoop._step = step

    shape = {'ds_cfgs': f'ds_{stage}_config.json', 'lr_scheduler_type': 'constant'}
    output = succeed(
        sft(tmp_path / 'poisoned', tiny('llama'), rows, nonfinite_loss='skip', **shape), 2, before=poison(3)
    )
    assert 'step 3: the loss is not finite' in output
    succeed(sft(tmp_path / 'without', tiny('llama'), rows, **shape), 2, before=leave_out)

    records = lines(tmp_path / 'poisoned' / 'metrics.jsonl')
    assert [record.get('train/nonfinite_steps', 0) for record in records] == [0, 0, 1, 1, 1]
    assert records[2]['train/loss'] == 'nan'
    expected, found = (weights(tmp_path / name / 'slice_end') for name in ('without', 'poisoned'))
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def float64_loss(folder: Path, spec: FamilySpec, held_out: list[dict[str, str]]) -> float:
    """The mean over all answer tokens, sample by sample without a batch, in float64."""
    model = AutoModelForCausalLM.from_pretrained(folder).double().eval()
    total, count = 0.0, 0
    for row in held_out:
        turns = [{'role': 'user', 'content': row['instruction']}, {'role': 'assistant', 'content': row['output']}]
        example = spec.encode([{**turn, 'content': [{'type': 'text', 'text': turn['content']}]} for turn in turns])
        ids = torch.cat([example.prompt.ids, example.responses[0].ids])
        label = torch.cat([example.prompt.weights, example.responses[0].weights]).bool()
        with torch.no_grad():
            logp = model(input_ids=ids[None], use_cache=False).logits[0].log_softmax(-1)
        scores = logp[:-1].gather(1, ids[1:, None])[:, 0][label[1:]]
        total, count = total - float(scores.sum()), count + len(scores)
    return total / count


@pytest.mark.parametrize(('strategy', 'steps'), [('epoch', [5, 10]), ('steps', [3, 6, 9])])
def test_the_evaluation_loss_is_that_of_a_float64_loop(tiny, rows, tmp_path, strategy, steps):
    """Seven rows on two ranks, two at a time: one rank has a row less and a batch of none at the end."""
    from align_anything.models.pretrained_model import load_spec

    held_out = text_rows(7, seed=3)
    held_out[0]['output'] = ' '.join([held_out[0]['output']] * 6)  # a mean of means would be far off
    path = write_rows(tmp_path / 'held_out.jsonl', held_out)
    succeed(
        sft(tmp_path / 'run', tiny('llama'), rows, eval_datasets=path, eval_template='Instruction', epochs=2,
            eval_strategy=strategy, eval_interval=3, per_device_eval_batch_size=2, save_interval=3,
            save_total_limit=9, ds_cfgs='ds_z2_config.json'), 2)  # fmt: skip
    found = {r['step']: r['eval/loss'] for r in lines(tmp_path / 'run' / 'metrics.jsonl') if 'eval/loss' in r}
    assert list(found) == steps
    spec = load_spec(tiny('llama'), model_max_length=128)
    for step, folder in {3: 'slice_3', 6: 'slice_6', 9: 'slice_9', 10: 'slice_end'}.items():
        if step in found:
            expected = float64_loss(tmp_path / 'run' / folder, spec, held_out)
            assert found[step] == pytest.approx(expected, rel=1e-5)
    assert len(set(found.values())) == len(steps)


def test_an_evaluation_does_not_change_the_training(tiny, rows, tmp_path):
    evaluation = {'eval_datasets': rows, 'eval_template': 'Instruction', 'eval_strategy': 'steps', 'eval_interval': 1}
    for name, more in {'with': evaluation, 'without': {}}.items():
        succeed(sft(tmp_path / name, tiny('llama'), rows, use_lora=True, lora_dropout=0.3, **more))
    expected, found = (weights(tmp_path / name / 'slice_end') for name in ('without', 'with'))
    assert expected and all(torch.equal(found[name], expected[name]) for name in expected)
    assert AutoTokenizer.from_pretrained(tmp_path / 'with' / 'slice_end').chat_template
