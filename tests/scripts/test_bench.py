"""Every benchmark runs from end to end at tiny sizes; its figures then mean nothing, so no verdict is asked for."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from align_anything.models.diffusion.checkpoint import load_denoiser
from align_anything.models.diffusion.checkpoint import load_spec as load_pipeline_spec
from align_anything.models.diffusion.spec import Sizing
from align_anything.models.pretrained_model import load_spec
from scripts.bench.compare import require_same_work
from scripts.bench.measure import StepClock, best_per_step, in_child
from scripts.bench.pipelines import FAMILIES, pipeline
from scripts.bench.pipelines import weights as denoiser_bytes
from scripts.bench.report import Ratio
from scripts.bench.work import FULL, QUICK, spread, text_model, text_rows

ROOT = Path(__file__).resolve().parents[2]
RATIOS = {
    'text': ['text_to_text: packed / padded', 'text_to_text: packed / trl'],
    'image': ['text_image_to_text: packed / trl'],
    'dpo': ['text DPO: ours / trl', 'text DPO: cached / ours'],
    'dpo_image': [
        'image DPO 3:1: ours / trl',
        'image DPO 3:1: memory of ours / trl',
        'image DPO 3:1: cached / ours',
        'image DPO 1:1: ours / trl',
    ],
    'rm': ['text RM: ours / trl'],
    'shared': [
        'DPO 1:1, tokens 1.33: shared_prefix / padded',
        'DPO 4:1, tokens 1.67: shared_prefix / padded',
        'DPO 16:1, tokens 1.89: shared_prefix / padded',
    ],
    'grpo': [
        f'GRPO update, tower {tower}: {what}'
        for tower in ('frozen', 'trained')
        for what in ('shared_prefix / padded', 'shared_prefix / trl', 'memory of shared_prefix / trl')
    ],
    'online': [],
    'episodes': [
        'episodes of 4 turns by vLLM: history kept / computed again',
        'GRPO update on episodes: shared_prefix / padded',
    ],
    'environments': [f'environments {what}: waiting / step' for what in ('in this process', 'in 2 processes')],
    'grpo_step': ['a step of GRPO: ours / trl'],
    'own_pace': ['episodes by a server: own pace / in step'],
    'pictures': ['GRPO update on pictures: shared_prefix / padded'],
    'sampling': [],
    'generate': ['generate: one by one / 16 at once'],
    'serve': ['serve: 32 clients / one'],
    'codes': ['codes: range / whole head'],
    'emu3': ['Emu3-type SFT: packed / pixels'],
    'denoise': [
        f'{what} SFT{how}: ours / plain'
        for what in ('sd15', 'sd3', 'sd3 LoRA')
        for how in ('', ', one epoch with its preparation')
    ],
    'denoise_tiny': [
        f'tiny {what} SFT{how}: ours / plain'
        for what in ('sd15', 'sd3')
        for how in ('', ', one epoch with its preparation')
    ],
    'denoise_dpo': ['sd15 DPO: ours / plain', 'sd3 DPO: ours / plain'],
    'denoise_grpo': ['sd3 GRPO update: window / all steps'],
    'loss': ['loss memory: chunked / full logits', 'loss speed: chunked / full logits'],
    'media': ['media wait'],
    'long_row': [f'long row of {QUICK.row} tokens: 2 ranks / one, {what}' for what in ('wall time', 'memory')],
    'mixed': ['mixed: work of the busier rank / mean'],
    'startup': ['import align_anything', 'start to first optimizer step: run / bare script'],
}


@pytest.mark.extended
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_each_benchmark_runs_and_reports_its_ratios(tmp_path: Path) -> None:
    """All in one process, whose imports cost more than the tiny sizes."""
    pytest.importorskip('trl')
    out = tmp_path / 'ratios.json'
    command = [sys.executable, '-m', 'scripts.bench', *RATIOS, '--quick', '--json', str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=840)
    assert done.returncode == 0, done.stderr[-3000:]
    records = json.loads(out.read_text(encoding='utf-8'))
    assert [record['name'] for record in records] == [name for names in RATIOS.values() for name in names]
    assert all(record['value'] > 0 for record in records)
    for record in records:
        assert f'{"PASS" if record["passed"] else "FAIL"}  {record["value"]:6.3f}' in done.stdout


def test_sides_that_do_other_work_are_not_compared() -> None:
    same = {'ours': StepClock(losses=[0.6931], norms=[3.0]), 'trl': StepClock(losses=[0.69311], norms=[3.0001])}
    require_same_work(same)
    for other in (StepClock(losses=[0.6941], norms=[3.0]), StepClock(losses=[0.6931], norms=[3.01])):
        with pytest.raises(RuntimeError, match='ours 0.69310 and 3.00000'):
            require_same_work({**same, 'trl': other})


def test_sides_that_train_on_other_steps_have_other_gradients() -> None:
    sides = {'window': StepClock(losses=[0.0], norms=[1.0]), 'all': StepClock(losses=[0.0], norms=[4.0])}
    require_same_work(sides, same_gradient=False)
    sides['all'].losses[0] = 0.1
    with pytest.raises(RuntimeError, match='do not do the same work'):
        require_same_work(sides, same_gradient=False)


@pytest.mark.parametrize('family', FAMILIES)
def test_a_smaller_pipeline_is_one_of_its_family(family: str, tmp_path: Path) -> None:
    folder = pipeline(family, tmp_path / family, QUICK)
    spec = load_pipeline_spec(folder, Sizing((QUICK.picture, QUICK.picture)))
    sample = torch.randn(1, *spec.latent_shape(spec.default_size()))
    conditions = spec.stack(spec.encode_text(spec.open(torch.device('cpu')), ['some words']))
    predicted = spec.predict(load_denoiser(spec), sample, spec.levels(2, sample.shape[1:])[1:2], conditions, 1.0)
    assert predicted.shape == sample.shape and bool(predicted.isfinite().all())
    (file,) = (folder / spec.denoiser).glob('*.safetensors')
    assert denoiser_bytes(folder) == file.stat().st_size


def test_a_clock_can_count_a_part_of_each_step() -> None:
    clock = StepClock()
    for seconds in (9.0, 2.0, 4.0):
        clock.spend(seconds)
    assert clock.seconds == [2.0, 4.0]


def test_without_names_everything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    from scripts.bench import __main__ as command

    ran: list[str] = []
    benches = {name: lambda folder, size: ran.append(folder.name) or [] for name in ('one', 'two')}
    monkeypatch.setattr(command, 'BENCHES', benches)
    for names in ([], ['all'], ['two', 'one']):
        monkeypatch.setattr(sys, 'argv', ['bench', *names])
        assert command.main() == 0
    assert ran == ['one', 'two', 'one', 'two', 'two', 'one']


def test_a_ratio_passes_on_its_own_side_of_the_limit() -> None:
    assert Ratio('speed', 1.8, 1.7).passed and not Ratio('speed', 1.6, 1.7).passed
    assert Ratio('wait', 0.04, 0.05, at_most=True).passed and not Ratio('wait', 0.06, 0.05, at_most=True).passed


def test_the_best_round_counts_step_by_step() -> None:
    # The first mark only starts the clock: steps of 2 and 4 s, then of 3 and 1 s; the best are 2 + 1.
    rounds = [StepClock([10.0, 12.0, 16.0]).seconds, StepClock([20.0, 23.0, 24.0]).seconds]
    assert rounds == [[2.0, 4.0], [3.0, 1.0]]
    assert best_per_step(rounds) == 3.0


def test_a_child_returns_its_value_or_its_traceback() -> None:
    assert in_child(divmod, 7, 2) == (3, 1)
    with pytest.raises(RuntimeError, match='ZeroDivisionError'):
        in_child(divmod, 7, 0)


def test_lengths_are_spread_evenly() -> None:
    lengths = spread(random.Random(0), 64, 512, 15)
    assert sorted(lengths) == [64 + 32 * index for index in range(15)] and lengths != sorted(lengths)


def test_rows_have_the_lengths_that_they_should(tmp_path: Path) -> None:
    model = text_model(tmp_path / 'model', QUICK)
    spec = load_spec(str(model), model_max_length=4096)
    lengths = []
    for row in text_rows(model, QUICK, 5):
        turns = [{**turn, 'content': [{'type': 'text', 'text': turn['content']}]} for turn in row['messages']]
        example = spec.encode(turns)
        lengths.append(len(example))
        asked, answered = (len(spec.tokenizer(turn['content'])['input_ids']) for turn in row['messages'])
        assert 0 <= asked - answered <= 1
        # The answer and its end-of-turn token are trained, nothing else.
        assert sum(response.weights.sum() for response in example.responses) == answered + 1
    assert sorted(lengths) == [24, 34, 44, 54, 64]
    assert (FULL.shortest, FULL.longest) == (64, 512)
