"""Whole runs of pipelines that edit: what they read of a prompt beside its text, and rows that lack it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from align_anything.cli.main import main
from align_anything.models.diffusion.checkpoint import load_spec
from align_anything.models.diffusion.prepared import Prompt
from align_anything.models.diffusion.spec import Sizing
from align_anything.trainers.loops.offline import OfflineLoop
from align_anything.trainers.pairs import PAIRS
from tests.cli.test_inspection import Page
from tests.harness.pairwise import first_of, in_tiers
from tests.models.diffusion.cases import whole_pipeline
from tests.trainers.denoising import PICTURES, REWARDS, metrics, named, offline, online
from tests.trainers.runs import lines, run, succeed, write_rows
from tests.trainers.test_bad_rows import listed
from tests.trainers.test_denoising_runs import broken_loading, changed
from tests.trainers.test_dry_run import plain

Tiny = Callable[..., Path]
EDITS = PAIRS['text_image_to_image']
SHOWN = 'answers: image, prompt: edit_prompt, images: input_image'
EDITED = {'template': 'Instruction', 'train_template_kwargs': f'{{{SHOWN}, response: edited_image}}', 'resolution': 32}
PAIRED = {
    **EDITED,
    'template': 'Preference',
    'train_template_kwargs': f'{{{SHOWN}, chosen: edited_image, rejected: worse_image}}',
}
ASKED = {**EDITED, 'template': 'Prompts', 'train_template_kwargs': '{prompt: edit_prompt, images: input_image}'}
HOW: dict[str, dict[str, Any]] = {
    'sft': EDITED,
    'dpo': PAIRED,
    'kto': {**PAIRED, 'per_device_train_batch_size': 4},
    'grpo': {**ASKED, 'guidance_scale': 2.0},
    'nft': ASKED,
    'online_dpo': ASKED,
    'ppo': ASKED,
}
FAMILIES = 'flux_kontext flux_fill qwen_image_edit qwen_image_edit_plus'.split()
# Each algorithm with one family, and each family with one algorithm.
RUNS = [
    *((family, name) for family in ('flux_kontext', 'qwen_image_edit') for name in HOW),
    *((family, name) for family in ('flux_fill', 'qwen_image_edit_plus') for name in ('sft', 'grpo')),
]
FIRST = [
    ('flux_kontext', 'dpo'),
    ('flux_kontext', 'nft'),
    ('flux_fill', 'sft'),
    ('qwen_image_edit', 'grpo'),
    ('qwen_image_edit_plus', 'sft'),
]


def picture(folder: Path, name: str, seed: int, size: tuple[int, int] = (40, 40)) -> str:
    """Writes a picture of noise, and its mask beside it; returns its name."""
    random = numpy.random.default_rng(seed)
    Image.fromarray(random.integers(0, 256, (size[1], size[0], 3), numpy.uint8)).save(folder / name)
    mask = Image.new('L', size)
    mask.paste(255, (size[0] // 2, 0, *size))
    mask.save(folder / f'mask_{name}')
    return name


def edits(folder: Path, count: int = 4, size: tuple[int, int] = (40, 40)) -> list[dict[str, Any]]:
    """Rows as those of InstructPix2Pix, with a worse edit too."""
    return [
        {
            'edit_prompt': f'make it number {at}',
            'input_image': picture(folder, f'from_{at}.png', at, size),
            'edited_image': picture(folder, f'to_{at}.png', 100 + at, size),
            'worse_image': picture(folder, f'worse_{at}.png', 200 + at, size),
        }
        for at in range(count)
    ]


def masked(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same rows, their images to edit with a mask."""
    return [row | {'input_image': [row['input_image'], f'mask_{row["input_image"]}']} for row in rows]


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`rows.jsonl` with edits, `masked.jsonl` with those of images with masks, and `rewards.py`."""
    folder = tmp_path_factory.mktemp('edits')
    rows = edits(folder)
    write_rows(folder / 'rows.jsonl', rows)
    write_rows(folder / 'masked.jsonl', masked(rows))
    (folder / 'rewards.py').write_text(REWARDS)
    return folder


def rows_for(family: str, folder: Path) -> Path:
    return folder / ('masked.jsonl' if family == 'flux_fill' else 'rows.jsonl')


@pytest.mark.parametrize(('family', 'name'), in_tiers(RUNS, FIRST))
def test_every_algorithm_trains_edits(family: str, name: str, tiny: Tiny, folder: Path, tmp_path: Path) -> None:
    out, argv = tmp_path / 'run', online if named(name).generates else offline
    how = {'max_steps': 2, **HOW[name]}
    succeed(argv(out, tiny(family), rows_for(family, folder), **how), 1, EDITS, algorithm=named(name))
    norms = metrics(out, 'train/grad_norm')
    assert norms and all(norm > 0 for norm in norms) and changed(tiny(family), out)
    if name == 'grpo':
        assert metrics(out, 'train/ratio')[0] == pytest.approx(1, abs=1e-6)
        assert metrics(out, 'train/rollout_drift')[0] == 0


@pytest.mark.parametrize('family', first_of(['flux_kontext', 'qwen_image_edit'], 'flux_kontext'))
def test_adapters_of_partitioned_editors_are_loaded_by_pipelines(
    family: str, tiny: Tiny, folder: Path, tmp_path: Path
) -> None:
    how = {**EDITED, 'use_lora': True, 'r': 4, 'ds_cfgs': 'ds_z3_config.json', 'per_device_train_batch_size': 1}
    succeed(offline(tmp_path / 'run', tiny(family), folder / 'rows.jsonl', **how), 2, EDITS)
    saved = tmp_path / 'run' / 'slice_end'
    pipeline = whole_pipeline(tiny(family))
    pipeline.load_lora_weights(str(saved))
    state = pipeline.transformer.state_dict()
    loaded = [tensor for name, tensor in state.items() if 'lora_B' in name]
    assert loaded and all(bool(tensor.any()) for tensor in loaded)
    assert len(load_file(saved / 'pytorch_lora_weights.safetensors')) == 2 * len(loaded)


def watched(file: Path) -> Callable[[int], None]:
    """Keeps the conditions and the shape of the latents of each micro-batch that holds rows."""

    def before(rank: int) -> None:
        step, kept = OfflineLoop._step, []

        def watch(self: Any, loaded: Any) -> Any:
            batches = [batch for batch in loaded.batches if batch.sources]
            kept.extend((list(batch.inputs.sample.shape[1:]), dict(batch.inputs.conditions)) for batch in batches)
            torch.save(kept, file)
            return step(self, loaded)

        OfflineLoop._step = watch

    return before


def encoded(model: Path, image: Path, text: str) -> dict[str, torch.Tensor]:
    """What the denoiser is given of a text and an image, made anew."""
    spec = load_spec(model, Sizing(resolution=(32, 32)))
    with Image.open(image) as opened:
        prompt = Prompt(text, (opened.convert('RGB'),), (32, 32))
    frozen = spec.open(torch.device('cpu'))
    return spec.encode_read(frozen, [spec.read(prompt)])[0] | spec.encode_pictures(frozen, prompt)


@pytest.mark.parametrize('family', first_of(['qwen_image_edit', 'flux_kontext'], 'qwen_image_edit'))
def test_a_dropped_prompt_still_has_its_image(family: str, tiny: Tiny, folder: Path, tmp_path: Path) -> None:
    row = edits(folder, 1)
    file, model = write_rows(folder / 'one.jsonl', row), tiny(family)
    for dropout, text in ((0.0, row[0]['edit_prompt']), (1.0, '')):
        how = {**EDITED, 'prompt_dropout': dropout, 'max_steps': 1}
        succeed(offline(tmp_path / text, model, file, **how), 1, EDITS, watched(tmp_path / 'kept.pt'))
        ((_, given),) = torch.load(tmp_path / 'kept.pt')
        wanted = encoded(model, folder / row[0]['input_image'], text)
        assert given.keys() == wanted.keys()
        for name, value in wanted.items():
            torch.testing.assert_close(given[name][0], value, rtol=0, atol=1e-5)


def test_what_a_prompt_shows_is_encoded_once(tiny: Tiny, folder: Path, tmp_path: Path) -> None:
    how = {**PAIRED, 'prepared_dir': tmp_path / 'kept', 'max_steps': 1}
    for model, texts in ((tiny('flux_kontext'), 5), (tiny('qwen_image_edit'), 4)):
        runs = [offline(tmp_path / f'{model.name}{at}', model, folder / 'rows.jsonl', **how) for at in range(2)]
        first, second = (succeed(argv, 1, EDITS, algorithm=named('dpo')) for argv in runs)
        # The empty prompt is one for all where its image is not read, and is not asked for where it is.
        assert f'text embeddings: {texts} entries made' in first
        assert 'pictures of prompts: 4 entries made' in first and 'latents: 8 entries made' in first
        for what in ('text embeddings', 'pictures of prompts', 'latents'):
            assert f'{what}: 0 entries made' in second


def test_an_image_to_edit_gets_the_size_of_the_answer(tiny: Tiny, tmp_path: Path) -> None:
    rows = []
    for number, size in enumerate([(96, 48), (48, 96), (96, 48), (48, 96)]):
        (row,) = edits(tmp_path, 1, size)
        names = {key: picture(tmp_path, f'{number}_{key}.png', number, size) for key in row if key != 'edit_prompt'}
        # Some are of another shape than what becomes of them.
        names['input_image'] = picture(tmp_path, f'{number}.png', 10 + number, (64, 64) if number else size)
        rows.append(row | names)
    file = write_rows(tmp_path / 'rows.jsonl', rows)
    how = {**EDITED, 'resolution': 64, 'aspect_buckets': True, 'per_device_train_batch_size': 2}
    succeed(offline(tmp_path / 'run', tiny('flux_kontext'), file, **how), 1, EDITS, watched(tmp_path / 'kept.pt'))
    seen = torch.load(tmp_path / 'kept.pt')
    shapes = {tuple(shape) for shape, _ in seen}
    assert len(shapes) == 2 and all(list(given['source'].shape) == [2, *shape] for shape, given in seen)


def test_a_rank_without_rows_edits_nothing(tiny: Tiny, folder: Path, tmp_path: Path) -> None:
    file, out = write_rows(folder / 'three.jsonl', edits(folder, 3)), tmp_path / 'run'
    succeed(offline(out, tiny('qwen_image_edit'), file, **EDITED, per_device_train_batch_size=1), 2, EDITS)
    assert metrics(out, 'train/samples')[-1] and len(metrics(out, 'train/grad_norm')) == 2


REFUSED: dict[str, tuple[str, str, Any, str]] = {
    'no image': ('flux_kontext', 'text_image_to_image', lambda row: row | {'input_image': []}, 'holds none'),
    'two images': (
        'qwen_image_edit',
        'text_image_to_image',
        lambda row: row | {'input_image': [row['input_image']] * 2},
        'read a text and the image to edit, and of media the user turn holds image, image',
    ),
    'no mask': ('flux_fill', 'text_image_to_image', lambda row: row, 'its mask, white where it is painted'),
    'a mask of another size': (
        'flux_fill',
        'text_image_to_image',
        lambda row: row | {'input_image': [row['input_image'], 'small.png']},
        'should be of one size, but are 8 × 8 and 40 × 40 pixels',
    ),
    'no editor': ('sd3', 'text_image_to_image', lambda row: row, 'takes no image'),
    'no image to edit': ('flux_kontext', 'text_to_image', lambda row: row, 'read a text and the image to edit'),
}


@pytest.mark.parametrize('why', REFUSED)
def test_rows_that_no_pipeline_edits_are_refused_before_it_loads(why: str, tiny: Tiny, tmp_path: Path) -> None:
    family, pair, change, told = REFUSED[why]
    Image.new('L', (8, 8)).save(tmp_path / 'small.png')
    file = write_rows(tmp_path / 'rows.jsonl', [change(row) for row in edits(tmp_path)])
    settings = dict(EDITED)
    if pair == 'text_to_image':
        settings['train_template_kwargs'] = "{answers: image, prompt: edit_prompt, images: '', response: edited_image}"
    (ended,) = run(offline(tmp_path / 'run', tiny(family), file, **settings), 1, PAIRS[pair], broken_loading)
    assert ended.code == 2 and 'Traceback' not in ended.output, ended.output
    assert told in plain(ended.output), ended.output


def test_a_row_without_its_image_is_left_out_and_listed(tiny: Tiny, tmp_path: Path) -> None:
    rows = edits(tmp_path)
    rows[1]['input_image'] = []
    file, out = write_rows(tmp_path / 'rows.jsonl', rows), tmp_path / 'run'
    succeed(offline(out, tiny('flux_kontext'), file, **EDITED, max_skipped_ratio=0.5), 1, EDITS)
    (reason,) = listed(out).values()
    assert 'the image to edit' in reason and sum(metrics(out, 'train/samples')) == 3


def test_edits_are_previewed(tiny: Tiny, folder: Path, tmp_path: Path) -> None:
    out, images = tmp_path / 'run', [folder / name for name in ('from_0.png', 'from_1.png')]
    asked = {'preview_prompts': '[brighter, brighter]', 'preview_images': f'[{images[0]}, {images[1]}]'}
    how = {**EDITED, **asked, 'preview_steps': 2, 'preview_guidance': 2.0, 'max_steps': 1}
    succeed(offline(out, tiny('qwen_image_edit'), folder / 'rows.jsonl', **how), 1, EDITS)
    assert len(list((out / 'previews').glob('*/*_1.png'))) == 4
    page = plain((out / 'previews.html').read_text())
    assert page.count('brighter') == 4


@pytest.mark.parametrize(
    ('family', 'pair', 'images', 'told'),
    [
        ('flux_kontext', EDITS, None, '0 for the 2 preview_prompts, beside each of which'),
        ('flux_fill', EDITS, '[from_0.png]', 'reads the image to fill and its mask, white where it is painted, so'),
        ('sd3', PICTURES, '[from_0.png]', 'reads no image'),
        ('flux_kontext', EDITS, '[gone.png, gone.png]', 'gone.png'),
    ],
)
def test_previews_of_other_images_are_refused(
    family: str, pair: Any, images: str | None, told: str, tiny: Tiny, folder: Path, tmp_path: Path
) -> None:
    settings = {**EDITED, 'preview_prompts': '[brighter, darker]', 'preview_images': images}
    if pair is PICTURES:
        settings['train_template_kwargs'] = "{answers: image, prompt: edit_prompt, images: '', response: edited_image}"
    argv = offline(tmp_path / 'run', tiny(family), rows_for(family, folder), **settings)
    (ended,) = run(argv, 1, pair, broken_loading)
    assert ended.code == 2 and 'diffusion_cfgs.preview_images' in ended.output, ended.output
    assert told in plain(ended.output)


def test_a_dry_run_tells_what_is_edited(tiny: Tiny, folder: Path, tmp_path: Path) -> None:
    argv = offline(tmp_path / 'run', tiny('flux_kontext'), folder / 'rows.jsonl', '--dry_run', **EDITED)
    told = plain(succeed(argv, 1, EDITS, broken_loading))
    assert 'make it number' in told and told.count('⟦image: latents 4 × 8 × 8, 1 draws⟧') == 3


def test_edits_are_shown_and_judged_with_what_was_asked(tiny: Tiny, folder: Path, tmp_path: Path) -> None:
    (tmp_path / 'seen.py').write_text(
        'def near(completions):\n'
        '    users = [item.conversation[0]["content"] for item in completions]\n'
        '    assert all([part["type"] for part in parts] == ["image", "text"] for parts in users)\n'
        '    return [float(item.message["content"][0]["image"].getpixel((0, 0))[0]) for item in completions]\n'
    )
    out, how = tmp_path / 'run', {'reward_functions': f'[{tmp_path}/seen.py:near]', 'log_completions': 1}
    succeed(online(out, tiny('flux_kontext'), folder / 'rows.jsonl', **ASKED, **how), 1, EDITS, algorithm=named('grpo'))
    assert len(lines(out / 'completions.jsonl')) == 8


def test_edits_are_judged_beside_what_they_were_made_from(tiny: Tiny, folder: Path, tmp_path: Path) -> None:
    out, how = tmp_path / 'run', {**PAIRED, 'resolution': None, 'model_max_length': 512, 'max_steps': 2}
    succeed(offline(out, tiny('qwen2_5_vl'), folder / 'rows.jsonl', **how), 1, EDITS, algorithm=named('rm'))
    assert len(metrics(out, 'train/grad_norm')) == 2 and all(norm > 0 for norm in metrics(out, 'train/grad_norm'))


def test_inspect_shows_the_image_and_its_edit(
    tiny: Tiny, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ['--model_name_or_path', str(tiny('flux_kontext')), '--train_datasets', str(folder / 'rows.jsonl')]
    words += ['--train_template', 'Instruction', '--train_template_kwargs', EDITED['train_template_kwargs']]
    words += ['--resolution', '32', '--output_dir', str(tmp_path), '--num_workers', '0']
    with pytest.raises(SystemExit) as leaving:
        main(['inspect', 'text_image_to_image', 'sft', *words])
    assert leaving.value.code == 0
    page = Page((tmp_path / 'inspect.html').read_text())
    assert [tag for tag, _ in page.tags].count('img') == 8 and 'make it number 3' in page.text
