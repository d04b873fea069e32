"""The commands of projects/omega do what its README says, on a hub in a folder and models of a few thousand weights."""

from __future__ import annotations

import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from datasets import Dataset
from huggingface_hub import ModelCard
from safetensors.torch import load_file

from align_anything.trainers.pairs import PAIRS
from tests.harness.hub import TOKEN, fake_hub
from tests.harness.once import once
from tests.trainers.runs import run

PROJECT = Path(__file__).resolve().parents[2] / 'projects' / 'omega'
DIM = 1024
HEADER = '<|start_header_id|>{}<|end_header_id|>\n\n'
SMALL = '--max_steps 2 --gradient_accumulation_steps 1 --per_device_train_batch_size 2 --num_workers 0 --log_type none'
SMALL += ' --save_interval 1 --bf16 False --ds_cfgs ds_z0_config.json --eval_size 4'
COLOURS = 'red green blue'.split()


def vector(colour: str, number: int) -> list[float]:
    """What an encoder might make of something of a colour, the first numbers telling it."""
    generator = numpy.random.default_rng(number)
    made = generator.normal(size=DIM) * 0.1
    made[COLOURS.index(colour)] += 8
    return made.tolist()


def rows(count: int, make: Callable[[str, int], dict[str, Any]], start: int = 0) -> Dataset:
    return Dataset.from_list([make(COLOURS[number % 3], number) for number in range(start, start + count)])


def video(colour: str, number: int) -> dict[str, Any]:
    return {'video_id': str(number), 'description': f'A {colour} thing.', 'video_embed': vector(colour, number)}


def caption(colour: str, number: int) -> dict[str, Any]:
    return {'caption': f'Something {colour}.', 'ib_embed': vector(colour, number), 'clip_embed': [0.5] * 8}


def talk(colour: str, number: int) -> dict[str, Any]:
    turns = [{'from': 'human', 'value': '<image>\nWhich colour?'}, {'from': 'gpt', 'value': colour}]
    return {'caption': turns, 'ib_embed': vector(colour, number)}


def text(colour: str, number: int) -> dict[str, Any]:
    start = f'<|begin_of_text|>{HEADER.format("user")}Say {colour}.<|eot_id|>{HEADER.format("assistant")}'
    return {'input': start, 'output': f'{colour}<|eot_id|>', 'source': 'airoboros'}


def _write_hub(folder: Path, language_model: Path) -> None:
    shutil.copytree(language_model, folder / 'meta-llama/Meta-Llama-3-8B-Instruct')
    (folder / 'meta-llama/Meta-Llama-3-8B-Instruct/original').mkdir()
    (folder / 'meta-llama/Meta-Llama-3-8B-Instruct/original/params.json').write_text('{}')
    data = {
        **{
            f'omegalabsinc/omega-multimodal/default/train/01HX{number}.parquet': rows(12, video, 12 * number)
            for number in range(4)
        },
        'nimapourjafar/coco_llava_instruct/output.parquet': rows(9, talk),
        'nimapourjafar/vision_flan/output.parquet': rows(9, talk),
        'nimapourjafar/sam_llava/output.parquet': rows(9, caption),
        'jondurbin/bagel-llama-3-v1.0/bagel-input-output-v1.0.parquet': rows(512, text),
    }
    for name, dataset in data.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        dataset.to_parquet(folder / name)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the project that the test stands in."""
    shutil.copytree(PROJECT, tmp_path / 'omega')
    monkeypatch.chdir(tmp_path / 'omega')
    monkeypatch.syspath_prepend(str(tmp_path / 'omega'))
    return tmp_path / 'omega'


@pytest.fixture
def hub(tiny: Callable[..., Path], shared_cache: Path) -> Path:
    """A folder with the repositories that are downloaded, made small."""
    return once(shared_cache, 'omega-hub', lambda folder: _write_hub(folder, tiny('llama')))


def commands(*words: str) -> list[list[str]]:
    """The commands that make would run, also where the tests themselves were started by make."""
    around = {key: value for key, value in os.environ.items() if key not in ('MAKEFLAGS', 'MAKELEVEL', 'MFLAGS')}
    asked = ['make', '--dry-run', '--no-print-directory', *words]
    done = subprocess.run(asked, capture_output=True, text=True, check=True, env=around)
    return [shlex.split(line) for line in done.stdout.replace('\\\n', ' ').splitlines()]


def python(script: str, *arguments: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """Runs a script in this process, since its imports would take their seconds once more; returns its exit code."""
    monkeypatch.setattr(sys, 'argv', [script, *arguments])
    try:
        runpy.run_path(script, run_name='__main__')
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def test_the_targets_make_from_a_download_to_an_upload(
    project: Path, hub: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def make(*words: str) -> str:
        for command in commands(*words):
            assert command[0] == 'python'
            assert python(*command[1:], monkeypatch=monkeypatch) == 0, capsys.readouterr()
        return capsys.readouterr().out

    make('download-everything', f'DOWNLOAD=--source {hub} --shards 2')
    shards = [path.name for path in sorted(Path('ds').rglob('01HX*'))]
    assert shards == ['01HX1.parquet', '01HX2.parquet', '01HX3.parquet']
    assert Path('ds/held_out/omega_multimodal/default/train/01HX1.parquet').is_file()
    wider = '--model_cfgs.compose.video.perception_tokens 3'
    assert wider.rpartition(' ')[0] in Path('README.md').read_text()
    (command,) = commands('finetune-x1', f'OPTIONS={SMALL} {wider}')
    launched = 'deepspeed --num_gpus 1 --module align_anything.trainers.any_to_text.sft'.split()
    assert command[: len(launched)] == launched
    (done,) = run(command[len(launched) :], pair=PAIRS['any_to_text'])
    assert done.code == 0, done.output
    folder = Path('output_checkpoints/experiment_1')
    assert 'skipped' not in done.output and not (folder / 'skipped_samples.jsonl').exists()
    (composed,) = folder.glob('composed-*')
    before, after = (load_file(made / 'model.safetensors') for made in (composed, folder / 'slice_end'))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name for name in before if 'projector' in name} <= changed
    wide = {kind: len(after[f'model.multi_modal_projector.{kind}.layers.3.bias']) for kind in ('image', 'video')}
    assert wide['image'] / 2 == wide['video'] / 3
    assert {name.split('.')[-2] for name in changed if 'projector' not in name} == {'q_proj', 'v_proj'}
    answer = make('gen', 'PROMPT=Say red.')
    assert answer.strip()
    captioned = make('mmgen')
    assert captioned.count('in the row: A ') == 3
    numpy.save('v.npy', numpy.array([vector('red', 0)], numpy.float32))
    assert make('mmgen', 'VIDEO=v.npy') and make('mmgen', 'IMAGE=v.npy', 'PROMPT=What is in {image} here?')
    measured = json.loads(make('eval'))
    assert measured['rows'] == 12 and measured['skipped'] == 0
    assert 0 <= measured['choice_accuracy'] <= 1 and 0 < measured['loss'] < 20
    for target in ('eval_baseline', 'eval_finetune'):
        assert json.loads(make(target, 'EVAL=--size 4')).keys() == {'loss', 'rows', 'skipped'}
    listed = make('upload', 'REPO=me/model --dry-run')
    assert '  model.safetensors\n' in listed and '- bittensor' in listed
    assert 'manifest.json: state of a run' in listed.split('README.md:')[0]


def test_each_number_of_devices_has_its_target(project: Path) -> None:
    (one,), (eight,), (every,) = (commands(f'finetune-x{number}', 'CKPT_OUTPUT=here') for number in ('1', '8', 'N'))
    assert '--num_gpus 1 ' in ' '.join(one) and '--gradient_accumulation_steps' not in one
    assert '--num_gpus 8 ' in ' '.join(eight) and '--num_gpus' not in every
    for command in (eight, every):
        assert command[-2:] == ['--gradient_accumulation_steps', '32']
        assert command[command.index('--output_dir') + 1] == 'here'


def test_the_container_is_built_and_started(project: Path) -> None:
    own, ours, started, attached = commands('build-and-run')
    assert own == 'docker build --tag align-anything ../..'.split() and ours == 'docker build --tag a2a .'.split()
    assert started[:2] == ['docker', 'run'] and started[-4:] == ['--detach', '--name', 'a2a', 'a2a']
    assert attached == ['docker', 'attach', 'a2a']
    assert (PROJECT.parents[1] / 'Dockerfile').is_file()
    assert 'FROM align-anything\n' in Path('Dockerfile').read_text()


def test_the_readme_names_only_what_there_is(project: Path) -> None:
    words = Path('README.md').read_text()
    targets = set(re.findall(r'make ([\w-]+)', words))
    assert {'build-and-run', 'download-everything', 'finetune-x1', 'finetune-x8', 'gen', 'mmgen', 'eval'} <= targets
    for target in targets:
        assert commands(target), target
    for script in set(re.findall(r'(?<![\w/])\w+\.py\b', words)):
        assert Path(script).is_file(), script


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (['no_such'], 'there is no no_such'),
        (['omega_multimodal', '--shards', '0'], '--shards must be 1 or more'),
        (['vision_flan', '--source', 'nowhere'], 'nimapourjafar/vision_flan has none of the files output.parquet'),
    ],
)
def test_a_download_says_what_is_missing(
    arguments: list[str],
    words: str,
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert python('download.py', *arguments, monkeypatch=monkeypatch) != 0
    assert words in capsys.readouterr().err


def test_a_dry_run_lists_and_fetches_nothing(
    project: Path, hub: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ['base_model', 'bagel', '--source', str(hub), '--dry-run']
    assert python('download.py', *arguments, monkeypatch=monkeypatch) == 0
    listed = capsys.readouterr().out
    assert 'model.safetensors -> checkpoints/Meta-Llama-3-8B-Instruct/model.safetensors' in listed
    assert 'original' not in listed and '-> ds/bagel/bagel-input-output-v1.0.parquet' in listed
    assert not Path('checkpoints').exists() and not Path('ds').exists()


def saved(folder: Path, model: Path, epoch: int, step: int, steps_in_epoch: int) -> None:
    """A checkpoint as a run saves it, with a card."""
    shutil.copytree(model, folder)
    progress = {'epoch': epoch, 'step': step, 'step_in_epoch': steps_in_epoch}
    (folder / 'manifest.json').write_text(json.dumps({'progress': progress}))
    (folder / 'README.md').write_text('---\ntags:\n- sft\n---\n# A model\n')
    (folder / 'state').mkdir()
    (folder / 'state' / 'optimizer.pt').write_text('large')


def test_the_checkpoint_of_an_epoch_is_uploaded_with_its_card(
    project: Path, tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, where in {
        'slice_4': (0, 4, 4),
        'slice_6': (1, 6, 2),
        'slice_8': (2, 8, 0),
        'slice_end': (2, 12, 4),
    }.items():
        saved(Path('out') / name, tiny('llama'), *where)
    marked = (tiny('llama') / 'config.json').read_bytes() + b' '
    Path('out/slice_8/config.json').write_bytes(marked)
    command = ['upload_ckpt_hf.py', '--ckpt_dir', 'out', '--hf_repo_id', 'me/model', '--license', 'llama3', '--epoch']
    with fake_hub(monkeypatch, token=None) as running:
        assert python(*command, '1', monkeypatch=monkeypatch) == 1
        assert 'Log in' in (told := capsys.readouterr().err) and 'HF_ACCESS_TOKEN' in told
        monkeypatch.setenv('HF_ACCESS_TOKEN', TOKEN)
        assert python(*command, '1', monkeypatch=monkeypatch) == 0
        assert capsys.readouterr().out.endswith(f'{running.url}/me/model\n')
    repo = running.repos['me/model']
    assert repo.private and repo.commits == ['Checkpoint of epoch 1']
    # What is through with epoch 1 is saved before the first step of epoch 2.
    assert repo.files['config.json'] == marked
    assert {'config.json', 'model.safetensors', 'tokenizer.json', 'README.md'} <= repo.files.keys()
    assert not {'manifest.json', 'state/optimizer.pt'} & repo.files.keys()
    card = ModelCard(repo.files['README.md'].decode())
    assert card.data.tags == ['sft', 'any-to-any', 'omega', 'omegalabs', 'bittensor', 'agi']
    assert card.data.license == 'llama3' and '# A model' in card.text
    assert python(*command, '7', monkeypatch=monkeypatch) == 2
    assert 'no checkpoint of epoch 7; there is: slice_4 (epoch 0), slice_6 (epoch 1)' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('missing', 'words'),
    [('model.safetensors', 'has no weights'), ('config.json', 'config.json'), ('README.md', 'has no card')],
)
def test_what_lacks_a_file_is_not_uploaded(
    missing: str,
    words: str,
    project: Path,
    tiny: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    saved(Path('out/slice_end'), tiny('llama'), 0, 4, 4)
    (Path('out/slice_end') / missing).unlink()
    command = 'upload_ckpt_hf.py --ckpt_dir out --hf_repo_id me/model --epoch 0 --dry-run'.split()
    assert python(*command, monkeypatch=monkeypatch) == 2
    assert words in capsys.readouterr().err


def metas_logits(state: dict[str, torch.Tensor], config: Any, ids: list[int], vector: torch.Tensor, at: int) -> Any:
    """A Llama as Meta and OMEGA compute it: rotary positions in neighbouring pairs, the vector's tokens put in."""

    def norm(hidden: torch.Tensor, name: str) -> torch.Tensor:
        return hidden * (hidden.square().mean(-1, keepdim=True) + config.rms_norm_eps).rsqrt() * state[name]

    def turned(heads: torch.Tensor) -> torch.Tensor:
        pairs = torch.view_as_complex(heads.unflatten(-1, (-1, 2)).contiguous())
        return torch.view_as_real(pairs * turns[:, None]).flatten(-2)

    projector = torch.nn.Sequential(*(state[f'layer{number}'] for number in range(4)))
    hidden = state['tok_embeddings.weight'][ids]
    tokens = projector(vector).unflatten(0, (-1, hidden.shape[1]))
    hidden = torch.cat([hidden[:at], tokens, hidden[at + len(tokens) :]])
    size, base = config.head_dim, config.rope_parameters['rope_theta']
    rates = base ** (-torch.arange(0, size, 2).float() / size)
    turns = torch.polar(torch.ones(()), torch.arange(len(ids)).float()[:, None] * rates)
    mask = torch.full((len(ids), len(ids)), float('-inf')).triu(1)
    for layer in range(config.num_hidden_layers):
        name = f'layers.{layer}.'
        normed = norm(hidden, f'{name}attention_norm.weight')
        q, k, v = (
            (normed @ state[f'{name}attention.{part}.weight'].T).unflatten(-1, (-1, size))
            for part in ('wq', 'wk', 'wv')
        )
        q, k = turned(q), turned(k)
        k, v = (part.repeat_interleave(q.shape[1] // k.shape[1], 1) for part in (k, v))
        weights = (torch.einsum('qhd,khd->hqk', q, k) / size**0.5 + mask).softmax(-1)
        read = torch.einsum('hqk,khd->qhd', weights, v).flatten(1)
        hidden = hidden + read @ state[f'{name}attention.wo.weight'].T
        normed = norm(hidden, f'{name}ffn_norm.weight')
        first, second, third = (state[f'{name}feed_forward.w{part}.weight'] for part in (1, 2, 3))
        hidden = hidden + (torch.nn.functional.silu(normed @ first.T) * (normed @ third.T)) @ second.T
    return norm(hidden, 'norm.weight') @ state['output.weight'].T


def test_a_checkpoint_of_omegas_trainer_computes_the_same(
    project: Path, tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import transformers

    torch.manual_seed(0)
    shutil.copytree(tiny('llama'), 'llama')
    # As many rows behind its tokens as OMEGA's tags take.
    small = transformers.AutoModelForCausalLM.from_pretrained('llama')
    small.resize_token_embeddings(448)
    small.save_pretrained('llama')
    config = small.config
    size, kv, inner = config.hidden_size, config.num_key_value_heads * config.head_dim, config.intermediate_size
    shapes = {'tok_embeddings': (config.vocab_size, size), 'output': (config.vocab_size, size), 'norm': (size,)}
    for layer in range(config.num_hidden_layers):
        parts = {'wq': (size, size), 'wk': (kv, size), 'wv': (kv, size), 'wo': (size, size)}
        shapes |= {f'layers.{layer}.attention.{name}': shape for name, shape in parts.items()}
        parts = {'w1': (inner, size), 'w2': (size, inner), 'w3': (inner, size)}
        shapes |= {f'layers.{layer}.feed_forward.{name}': shape for name, shape in parts.items()}
        shapes |= {f'layers.{layer}.{name}_norm': (size,) for name in ('attention', 'ffn')}
    state = {f'{name}.weight': torch.randn(shape) * 0.2 for name, shape in shapes.items()}
    wide = 2 * size
    layers = [torch.nn.Linear(6, wide), torch.nn.GELU(), torch.nn.LayerNorm(wide), torch.nn.Linear(wide, wide)]
    projector = torch.nn.Sequential(*layers).requires_grad_(False)
    written = {f'tok_embeddings.proj_to_llama.{name}': value for name, value in projector.state_dict().items()}
    unused = {'output.proj_from_llama.0.weight': torch.ones(2, 2)}
    torch.save(state | written | unused, 'meta_model_0.pt')
    command = 'convert_ckpt.py --ckpt meta_model_0.pt --language_model llama --out made'.split()
    assert python(*command, monkeypatch=monkeypatch) == 0, capsys.readouterr()
    from align_anything.models.composed.register import register

    register()
    processor = transformers.AutoProcessor.from_pretrained('made')
    model = transformers.AutoModelForImageTextToText.from_pretrained('made').eval()
    assert set(model.config.media) == {'image', 'video', 'audio'}
    vocabulary = processor.tokenizer.get_vocab()
    # OMEGA's tokenizer has other ids for its tags and for what ends a turn.
    first = vocabulary['<|begin_of_text|>'] + 9
    names = [f'<|{end}_{kind}|>' for kind in ('image', 'video', 'audio') for end in ('start', 'end')]
    theirs = {name: first + number for number, name in enumerate([*names, '<|eot_id|>'])}
    vector = torch.randn(6)
    for kind, argument in {'image': 'images', 'video': 'videos', 'audio': 'audio'}.items():
        text = f'one <|start_{kind}|><{kind}><|end_{kind}|> two<|eot_id|>'
        inputs = processor(text=[text], return_tensors='pt', add_special_tokens=False, **{argument: [vector.numpy()]})
        ids = inputs['input_ids'][0].tolist()
        at = ids.index(vocabulary[f'<{kind}>'])
        assert ids[at : at + 2] == [vocabulary[f'<{kind}>']] * 2 and ids[at + 2] != ids[at]
        back = {vocabulary[name]: number for name, number in theirs.items()}
        given = [0 if token == ids[at] else back.get(token, token) for token in ids]
        numbered = {f'layer{number}': layer for number, layer in enumerate(layers)}
        wanted = metas_logits(state | numbered, config, given, vector, at)
        with torch.no_grad():
            found = model(**inputs).logits[0]
        plain = [token for token in range(config.vocab_size) if token not in theirs.values() and token not in back]
        torch.testing.assert_close(found[:, plain], wanted[:, plain], atol=1e-4, rtol=1e-4)
        for own, number in back.items():
            torch.testing.assert_close(found[:, own], wanted[:, number], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ('state', 'words'),
    [
        ({'norm.weight': torch.ones(4)}, "OMEGA's trainer did not write it"),
        ({'tok_embeddings.proj_to_llama.0.weight': torch.ones(8, 6)}, "OMEGA's trainer did not write it"),
        (None, 'cannot be read as weights'),
    ],
)
def test_other_files_are_no_checkpoints_of_omega(
    state: Any, words: str, project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if state is None:
        Path('meta.pt').write_text('no weights')
    else:
        torch.save(state, 'meta.pt')
    command = 'convert_ckpt.py --ckpt meta.pt --language_model nowhere --out made'.split()
    assert python(*command, monkeypatch=monkeypatch) == 2
    assert words in capsys.readouterr().err and not Path('made').exists()


@pytest.mark.extended
def test_perception_tokens_tell_what_the_vectors_hold(
    project: Path, hub: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The caption of a video is found among others after training; with the vectors of other videos it is not."""
    for name, start in {'train.parquet': 0, 'held_out.parquet': 300}.items():
        rows(60, video, start).to_parquet(name)
    shuffled = Dataset.from_list(
        [{**video(COLOURS[n % 3], n), 'video_embed': vector(COLOURS[(n + 1) % 3], n)} for n in range(300, 360)]
    )
    shuffled.to_parquet('shuffled.parquet')
    # One request for all: a toy's few captions could be told by the way they are asked for.
    options = '{caption: description, videos: video_embed, requests: ["Caption the {kind}."]}'
    settings = ['--config', 'lesson.yaml', '--train_datasets', 'train.parquet', '--train_template', 'Captioning']
    settings += ['--train_template_kwargs', options, '--output_dir', 'out', '--stage', 'joint', '--bf16', 'False']
    settings += '--learning_rate 3e-3 --lr_groups.mm_proj 3e-3 --max_steps 90 --num_workers 0'.split()
    settings += (
        '--per_device_train_batch_size 12 --log_type none --ds_cfgs ds_z0_config.json --save_total_limit 0'.split()
    )
    part = f'{{precomputed_dim: {DIM}, projector: expand, num_tokens: 2}}'
    language_model = hub / 'meta-llama/Meta-Llama-3-8B-Instruct'
    Path('lesson.yaml').write_text(f'model_cfgs: {{compose: {{language_model: {language_model}, video: {part}}}}}\n')
    (done,) = run(settings, pair=PAIRS['any_to_text'])
    assert done.code == 0, done.output
    found = {}
    for name in ('held_out.parquet', 'shuffled.parquet'):
        command = ['evaluate.py', '--model', 'out/slice_end', '--rows', name, '--template', 'Captioning']
        assert python(*command, '--template_kwargs', options, '--choice', monkeypatch=monkeypatch) == 0
        found[name] = json.loads(capsys.readouterr().out)
    assert found['held_out.parquet']['choice_accuracy'] >= 0.95, found
    assert found['shuffled.parquet']['choice_accuracy'] <= 0.05, found


@pytest.mark.extended
def test_a_rank_with_text_alone_trains_beside_one_with_vectors(project: Path, hub: Path) -> None:
    """Under every ZeRO stage alike, a kind that no row has among those that the model reads."""
    rows(8, video).to_parquet('videos.parquet')
    rows(8, text).to_parquet('texts.parquet')
    part = f'{{precomputed_dim: {DIM}, projector: expand, num_tokens: 2}}'
    language_model = hub / 'meta-llama/Meta-Llama-3-8B-Instruct'
    parts = f'language_model: {language_model}, image: {part}, video: {part}'
    Path('parts.yaml').write_text(f'model_cfgs: {{compose: {{{parts}}}}}\n')
    settings = ['--config', 'parts.yaml', '--train_datasets', '[videos.parquet, texts.parquet]']
    settings += ['--train_template', '[Captioning, Bagel_Llama3]', '--train_mixing', 'round_robin', '--bf16', 'False']
    settings += ['--train_template_kwargs', '[{videos: video_embed}, {}]', '--lr_scheduler_type', 'constant']
    settings += '--learning_rate 1e-3 --max_steps 3 --num_workers 0 --log_type none --save_total_limit 0'.split()
    models = []
    for stage in (0, 3):
        own = ['--output_dir', f'stage_{stage}', '--ds_cfgs', f'ds_z{stage}_config.json']
        done = run([*settings, *own], ranks=2, pair=PAIRS['any_to_text'])
        assert [one.code for one in done] == [0, 0], done[0].output
        models.append(load_file(f'stage_{stage}/slice_end/model.safetensors'))
    (composed,) = Path('stage_0').glob('composed-*')
    before = load_file(composed / 'model.safetensors')
    for name, value in models[0].items():
        torch.testing.assert_close(models[1][name], value, atol=1e-5, rtol=0)
        moved = not torch.equal(value, before[name])
        assert moved is ('projector.image' not in name), name
