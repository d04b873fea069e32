"""What runs of denoisers make of rows: prepared once, sorted by size, without prompts now and then, or left out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from align_anything.cli.main import main
from align_anything.models.diffusion.checkpoint import load_spec
from align_anything.models.diffusion.spec import DiffusionSpec
from align_anything.trainers.loops.offline import OfflineLoop
from tests.cli.test_inspection import Page
from tests.trainers.denoising import PICTURES, SHOWN, metrics, named, offline, online, write_digits
from tests.trainers.runs import die, lines, run, succeed, weights, write_rows
from tests.trainers.test_bad_rows import listed
from tests.trainers.test_dry_run import plain

Tiny = Callable[..., Path]


@pytest.fixture(scope='module')
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight digits to draw, each beside another one."""
    return write_digits(tmp_path_factory.mktemp('digits'))


def asked(text: Any, picture: str) -> dict[str, Any]:
    """A row for the template Messages."""
    shown = [{'type': 'image', 'image': picture}]
    return {'messages': [{'role': 'user', 'content': text}, {'role': 'assistant', 'content': shown}]}


def draw(folder: Path, name: str, size: tuple[int, int], colour: str = 'red', **how: Any) -> str:
    Image.new(how.pop('mode', 'RGB'), size, colour).save(folder / name, **how)
    return name


def losses(output: Path) -> list[float]:
    found = metrics(output, 'train/loss')
    assert found
    return found


def test_latents_and_texts_are_made_once(tiny: Tiny, rows: Path, tmp_path: Path) -> None:
    how = {'prepared_dir': tmp_path / 'kept', 'max_steps': 2}
    told = [succeed(offline(tmp_path / name, tiny('sd3'), rows, **how), 1, PICTURES) for name in ('one', 'two')]
    # Eight pictures, and as many prompts and the empty one as there are.
    prompts = len({json.loads(line)['question'] for line in rows.read_text().splitlines()}) + 1
    assert 'latents: 8 entries made' in told[0] and f'text embeddings: {prompts} entries made' in told[0]

    def no_encoders(rank: int) -> None:
        def refuse(*given: Any, **asked: Any) -> None:
            raise AssertionError('encoders were loaded')

        DiffusionSpec.open = refuse

    told.append(succeed(offline(tmp_path / 'three', tiny('sd3'), rows, **how), 1, PICTURES, no_encoders))
    for output in told[1:]:
        assert 'latents: 0 entries made' in output and 'text embeddings: 0 entries made' in output
    assert losses(tmp_path / 'one') == losses(tmp_path / 'two') == losses(tmp_path / 'three')
    # Another size is another latent, and the same prompts.
    other = succeed(offline(tmp_path / 'four', tiny('sd3'), rows, resolution=16, **how), 1, PICTURES)
    assert 'latents: 8 entries made' in other and 'text embeddings: 0 entries made' in other
    # And another length is other embeddings of the same latents.
    other = succeed(offline(tmp_path / 'five', tiny('sd3'), rows, max_sequence_length=9, **how), 1, PICTURES)
    assert 'latents: 0 entries made' in other and f'text embeddings: {prompts} entries made' in other


def test_a_run_that_was_killed_while_it_prepared_goes_on(tiny: Tiny, rows: Path, tmp_path: Path) -> None:
    def killed(rank: int) -> None:
        from align_anything.trainers.runs import prepare, prepared

        made, prepare.PACK_SECONDS = prepared.LatentsMaker.make, 0.0
        calls: list[int] = []

        def make(self: Any, *given: Any) -> Any:
            calls.append(1)
            if len(calls) == 3:
                die()
            return made(self, *given)

        prepared.LatentsMaker.make = make

    argv = offline(tmp_path / 'run', tiny('sd3'), rows, max_steps=2)
    (ended,) = run(argv, 1, PICTURES, killed)
    assert ended.code is None
    again = succeed([*argv, '--resume', 'auto'], 1, PICTURES)
    assert 'latents: 4 entries made' in again
    succeed(offline(tmp_path / 'whole', tiny('sd3'), rows, max_steps=2), 1, PICTURES)
    assert losses(tmp_path / 'run') == losses(tmp_path / 'whole')


@pytest.fixture(scope='module')
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of three aspect ratios: five square, three wide, two tall."""
    folder = tmp_path_factory.mktemp('shapes')
    sizes = [(64, 64)] * 5 + [(96, 48)] * 3 + [(48, 96)] * 2
    colours = ['red', 'green', 'blue', 'white', 'grey', 'red', 'green', 'blue', 'red', 'green']
    names = [
        draw(folder, f'{at}.png', size, colour) for at, (size, colour) in enumerate(zip(sizes, colours, strict=True))
    ]
    return write_rows(folder / 'rows.jsonl', [asked(f'picture {at}', name) for at, name in enumerate(names)])


def watched(folder: Path, several: bool = False) -> Callable[[int], None]:
    """Writes the shape, or the `several`, of the latents of each micro-batch of a rank, and whose they are."""

    def before(rank: int) -> None:
        step = OfflineLoop._step

        def watch(self: Any, loaded: Any) -> Any:
            with open(folder / f'{rank}.jsonl', 'a') as file:
                for batch in loaded.batches:
                    shapes = [list(own.sample.shape[1:]) for own in batch.inputs.sizes]
                    told = [shapes if several else shapes[0], [Path(name).name for name in batch.sources]]
                    file.write(json.dumps(told) + '\n')
            return step(self, loaded)

        OfflineLoop._step = watch

    return before


@pytest.mark.parametrize('ranks', [1, 2])
def test_a_micro_batch_has_pictures_of_one_size(ranks: int, tiny: Tiny, shapes: Path, tmp_path: Path) -> None:
    how = {'aspect_buckets': True, 'per_device_train_batch_size': 2 // ranks, 'eval_datasets': shapes}
    how |= {'eval_template': 'Messages', 'eval_template_kwargs': '{images: ""}', 'eval_strategy': 'epoch'}
    how |= {'per_device_eval_batch_size': 4}
    out = tmp_path / 'run'
    told = succeed(offline(out, tiny('sd3'), shapes, **how), ranks, PICTURES, watched(tmp_path))
    assert '32x32' in told and 'rows by size' in told
    seen = [lines(tmp_path / f'{rank}.jsonl') for rank in range(ranks)]
    for batches in zip(*seen, strict=True):
        # A rank without a row has the shape of the settings, and trains nothing.
        assert len({str(shape) for shape, sources in batches if sources}) == 1
    assert len({name for own in seen for _, sources in own for name in sources}) == 10
    sizes = {name: tuple(shape) for own in seen for shape, sources in own for name in sources}
    assert [*map(list(sizes.values()).count, ((4, 8, 8), (4, 6, 10), (4, 10, 6)))] == [5, 3, 2]
    assert metrics(out, 'train/samples')[-1] and not (out / 'skipped_samples.jsonl').exists()
    assert len(metrics(out, 'eval/loss')) == 1


@pytest.mark.extended
@pytest.mark.parametrize('ranks', [1, 2])
@pytest.mark.parametrize('family', ['sd3', 'sd15'])
def test_micro_batches_are_filled_by_tokens(family: str, ranks: int, tiny: Tiny, shapes: Path, tmp_path: Path) -> None:
    """With samples of several sizes where the denoiser takes them, and of one where it has convolutions."""
    out, several = tmp_path / 'run', family == 'sd3'
    square = 16 if several else 64
    how = {'aspect_buckets': True, 'max_length_per_batch': 3 * square, 'resolution': 32, 'epochs': 2}
    # Under ZeRO-3 ranks whose calls differ in number would wait for each other for ever.
    how |= {'ds_cfgs': 'ds_z3_config.json'} if ranks == 2 else {}
    told = succeed(offline(out, tiny(family), shapes, **how), ranks, PICTURES, watched(tmp_path, True))
    assert f'micro-batches filled to {3 * square} tokens' in told and 'rows by size' in told
    assert ('of several sizes' in plain(told)) == several and ('its convolutions' in plain(told)) != several
    seen = [batch for rank in range(ranks) for batch in lines(tmp_path / f'{rank}.jsonl')]
    assert sorted(name for _, sources in seen for name in sources) == sorted(
        2 * [Path(f'rows.jsonl:{row + 1}').name for row in range(10)]
    )
    sizes = [len({str(shape) for shape in shapes}) for shapes, sources in seen if sources]
    assert max(sizes) == (1 if not several else max(sizes)) and (max(sizes) > 1) == several
    assert max(len(sources) for _, sources in seen) == 3
    assert all(loss > 0 for loss in losses(out)) and not (out / 'skipped_samples.jsonl').exists()


def test_without_buckets_all_have_one_size(tiny: Tiny, shapes: Path, tmp_path: Path) -> None:
    succeed(offline(tmp_path / 'run', tiny('sd3'), shapes), 1, PICTURES, watched(tmp_path))
    assert {str(shape) for shape, _ in lines(tmp_path / '0.jsonl')} == {'[4, 8, 8]'}


def test_a_prompt_that_is_dropped_is_the_empty_one(tiny: Tiny, shapes: Path, tmp_path: Path) -> None:
    how = {'prompt_dropout': 1.0, 'max_steps': 2, 'max_sequence_length': 9}
    conditions: Path = tmp_path / 'conditions.pt'

    def before(rank: int) -> None:
        step = OfflineLoop._step

        def watch(self: Any, loaded: Any) -> Any:
            (batch,) = loaded.batches
            torch.save(dict(batch.inputs.conditions), conditions)
            return step(self, loaded)

        OfflineLoop._step = watch

    succeed(offline(tmp_path / 'run', tiny('sd3'), shapes, **how), 1, PICTURES, before)
    spec_conditions = torch.load(conditions)
    assert spec_conditions['text'].shape[1] == 77 + 9
    spec = load_spec(tiny('sd3'), text_length=9)
    (empty,) = spec.encode_text(spec.open(torch.device('cpu')), [''])
    for name, value in spec_conditions.items():
        for row in value:
            torch.testing.assert_close(row, empty[name], rtol=0, atol=1e-6)


def bad_rows(folder: Path) -> list[tuple[dict[str, Any], str | None]]:
    """Rows, and why each cannot be used; None for those that can."""
    (folder / 'broken.png').write_bytes(b'no picture')
    (folder / 'empty.png').write_bytes(b'')
    frames = [Image.new('P', (40, 40), colour) for colour in (3, 5)]
    frames[0].save(folder / 'moving.gif', save_all=True, append_images=frames[1:])
    whole = draw(folder, 'whole.png', (64, 64))
    (folder / 'torn.png').write_bytes((folder / whole).read_bytes()[:60])
    pictures = {
        'huge.png': draw(folder, 'huge.png', (3000, 40)),
        'tiny.png': draw(folder, 'tiny.png', (1, 1)),
        'clear.png': draw(folder, 'clear.png', (40, 40), (200, 0, 0, 30), mode='RGBA'),
        'grey.png': draw(folder, 'grey.png', (40, 40), 90, mode='L'),
    }
    talk = [{'role': 'user', 'content': 'x'}, {'role': 'assistant', 'content': 'no picture'}]
    twice = [*asked('x', whole)['messages'], *asked('y', whole)['messages']]
    return [
        (asked('a square', whole), None),
        *((asked(f'a {name}', name), None) for name in pictures),
        (asked('a moving one', 'moving.gif'), None),
        (asked('a broken one', 'broken.png'), 'is not an image'),
        (asked('an empty one', 'empty.png'), 'empty.png'),
        (asked('a torn one', 'torn.png'), 'torn.png'),
        (asked('one that is gone', 'gone.png'), 'does not exist'),
        (asked('', whole), 'empty user turn'),
        (asked(7, whole), 'int as content'),
        (asked(None, whole), 'null content'),
        ({'messages': talk}, 'the answer'),
        ({'messages': twice}, 'this model reads one user turn'),
        (
            {'messages': [{'role': 'system', 'content': 'Be brief.'}, *asked('x', whole)['messages']]},
            'this model reads one user turn: take out system turns',
        ),
    ]


@pytest.mark.parametrize('buckets', [False, True])
def test_rows_that_cannot_be_used_are_left_out_and_listed(buckets: bool, tiny: Tiny, tmp_path: Path) -> None:
    given = bad_rows(tmp_path)
    file = write_rows(tmp_path / 'rows.jsonl', [row for row, _ in given])
    how = {'max_skipped_ratio': 0.9, 'aspect_buckets': buckets or None}
    succeed(offline(tmp_path / 'run', tiny('sd3'), file, **how), 1, PICTURES)
    found = {int(source.rsplit(':', 1)[1]): reason for source, reason in listed(tmp_path / 'run').items()}
    numbers = min(found) - next(at for at, (_, why) in enumerate(given) if why)
    wanted = {at + numbers: why for at, (_, why) in enumerate(given) if why}
    assert found.keys() == wanted.keys(), found
    assert {at: found[at] for at, why in wanted.items() if why not in found[at]} == {}
    good = len(given) - len(wanted)
    assert sum(metrics(tmp_path / 'run', 'train/samples')) == good


def test_both_answers_of_a_pair_get_one_size(tiny: Tiny, tmp_path: Path) -> None:
    names = draw(tmp_path, 'wide.png', (96, 48)), draw(tmp_path, 'tall.png', (48, 96), 'blue')
    pairs = [{'question': 'x', 'picture': one, 'rejected': other} for one, other in (names, names[::-1])]
    file = write_rows(tmp_path / 'rows.jsonl', pairs)
    how = {**SHOWN, 'aspect_buckets': True, 'per_device_train_batch_size': 1}
    out = tmp_path / 'run'
    succeed(offline(out, tiny('sd3'), file, **how), 1, PICTURES, watched(tmp_path), named('dpo'))
    # That of the chosen one.
    seen = sorted(tuple(shape) for shape, _ in lines(tmp_path / '0.jsonl'))
    assert len(seen) == 2 and seen[0][1] < seen[0][2] and seen[1] == (seen[0][0], seen[0][2], seen[0][1])


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    'unknown class': (
        lambda index: index.update(_class_name='KolorsPipeline'),
        "a pipeline of class 'KolorsPipeline', which no family serves",
    ),
    'no class': (lambda index: index.pop('_class_name'), 'does not say which pipeline it is'),
    'no denoiser': (lambda index: index.pop('transformer'), 'has no transformer'),
    'missing folder': (lambda index: index.update(text_encoder_4=['transformers', 'X']), 'text_encoder_4 is missing'),
}


@pytest.mark.parametrize('name', BROKEN)
def test_a_pipeline_that_is_not_whole_is_told(name: str, tiny: Tiny, rows: Path, tmp_path: Path) -> None:
    change, told = BROKEN[name]
    model = shutil.copytree(tiny('sd3'), tmp_path / 'model')
    index = json.loads((model / 'model_index.json').read_text())
    change(index)
    (model / 'model_index.json').write_text(json.dumps(index))
    (ended,) = run(offline(tmp_path / 'run', model, rows), 1, PICTURES)
    assert ended.code == 2 and told in ended.output and 'Traceback' not in ended.output, ended.output


@pytest.mark.parametrize('name', ['sft', 'dpo', 'grpo'])
def test_a_dry_run_tells_latents_and_reads_no_weights(name: str, tiny: Tiny, rows: Path, tmp_path: Path) -> None:
    def reads_nothing(rank: int) -> None:
        from align_anything.trainers.runs import pipelines

        def refuse(*given: Any, **asked: Any) -> None:
            raise AssertionError('weights were read')

        DiffusionSpec.open = pipelines.load_denoiser = refuse

    argv = {'sft': offline, 'dpo': offline, 'grpo': online}[name]
    how = {'dpo': SHOWN, 'sft': {'aspect_buckets': True}}.get(name, {})
    command = argv(tmp_path / 'run', tiny('sd3'), rows, '--dry_run', **how)
    told = plain(succeed(command, 1, PICTURES, reads_nothing, named(name)))
    assert not (tmp_path / 'run').exists()
    assert 'draw the digit' in told and 'what is trained stands between ⟦ ⟧' in told
    assert 'tokens in the language model' not in told
    if name != 'grpo':
        assert told.count('⟦image: latents 4 × 8 × 8, 1 draws⟧') == {'sft': 3, 'dpo': 6}[name]


@pytest.mark.parametrize('name', ['sft', 'dpo', 'grpo'])
def test_inspect_shows_pictures_and_counts_draws(
    name: str, tiny: Tiny, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    template = 'Preference' if name == 'dpo' else 'Messages'
    kwargs = SHOWN['train_template_kwargs'] if name == 'dpo' else '{images: ""}'
    words = ['--model_name_or_path', str(tiny('sd3')), '--train_datasets', str(rows), '--train_template', template]
    words += ['--train_template_kwargs', kwargs, '--output_dir', str(tmp_path), '--num_workers', '0']
    words += ['--reward_functions', '[brightness]'] if name == 'grpo' else ['--draws_per_sample', '2']
    with pytest.raises(SystemExit) as leaving:
        main(['inspect', 'text_to_image', name, *words])
    assert leaving.value.code == 0
    page, told = Page((tmp_path / 'inspect.html').read_text()), capsys.readouterr().out
    body = page.text.split('all settings in force')[0]
    assert 'trained tokens' not in body and 'Trained tokens' not in body and 'trained tokens' not in told
    answers = {'sft': 8, 'dpo': 16, 'grpo': 0}[name]
    assert [tag for tag, _ in page.tags].count('img') == answers
    if answers:
        assert f'{answers} of 4 × 8 × 8' in page.text and '⟦image: latents 4 × 8 × 8, 2 draws⟧' in page.text


def test_completions_of_a_denoiser_are_pictures(tiny: Tiny, rows: Path, tmp_path: Path) -> None:
    out = tmp_path / 'run'
    succeed(online(out, tiny('sd3'), rows, log_completions=1, max_steps=1), 1, PICTURES, algorithm=named('grpo'))
    records = lines(out / 'completions.jsonl')
    assert len(records) == 4 and {record['response'] for record in records} == {'<image>'}
    pictures = [Image.open(out / name) for record in records for name in record['media']]
    assert [picture.size for picture in pictures] == [(32, 32)] * 4
    page = Page((out / 'completions.html').read_text())
    assert [tag for tag, _ in page.tags].count('img') == 4 and 'draw the digit' in page.text


def test_too_few_rows_for_a_step_are_a_step(tiny: Tiny, rows: Path, tmp_path: Path) -> None:
    one = write_rows(rows.parent / 'one.jsonl', [json.loads(rows.read_text().splitlines()[0])])
    model, out = tiny('sd3'), tmp_path / 'run'
    succeed(offline(out, model, one, per_device_train_batch_size=4), 2, PICTURES)
    assert metrics(out, 'train/samples') == [1]
    before, after = weights(model / 'transformer'), weights(out / 'slice_end' / 'transformer')
    assert any(not torch.equal(before[key], after[key]) for key in before)
