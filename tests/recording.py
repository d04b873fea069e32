"""Short runs of every leaf, recorded before code is moved about and compared, bit for bit, after it.

    PYTHONHASHSEED=0 python -m tests.recording record FILE [--only REGEX]
    PYTHONHASHSEED=0 python -m tests.recording compare FILE [--only REGEX]

A case is a pair, an algorithm, a layout, a ZeRO stage and a number of ranks. FILE holds what its run wrote: metrics
(losses and gradient norms among them), skipped rows, scores, generated responses, and a digest of the trained weights.
Numbers repeat on one machine with the same packages, so FILE is for nobody else. Checkpoints and data are made once, in
`FILE.work`. `record` leaves alone what stands in FILE; `compare` ends with 1 when a case differs, is missing or fails.
It reaches the library through the leaves and the command that makes tiny checkpoints: little that may move is named.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import multiprocessing
import os
import random
import re
import runpy
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from unittest import mock

# Before anything imports torch or tokenizers, as in conftest.py.
os.environ |= {'OMP_NUM_THREADS': '1', 'TOKENIZERS_PARALLELISM': 'false', 'CUDA_VISIBLE_DEVICES': ''}
os.environ |= {'HF_HUB_OFFLINE': '1', 'HF_DATASETS_OFFLINE': '1', 'DS_ACCELERATOR': 'cpu'}

import torch  # noqa: E402
from PIL import Image  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

from tests.datasets.clips import clip, sound, tone  # noqa: E402
from tests.harness.ranks import RanksError, run_ranks  # noqa: E402

PAIRS = {
    'text_to_text': (('qwen2',), ('',)),
    'text_image_to_text': (('llava', 'qwen2_vl'), ('image', 'image', '')),
    'text_audio_to_text': (('qwen2_audio',), ('audio', 'audio', '')),
    'text_video_to_text': (('qwen2_vl',), ('video', 'video', '')),
    'any_to_text': (('qwen2_5_omni_thinker',), ('image', 'video', 'audio', '')),
}
"""The families that take turns in the cases of a pair, and the media that take turns in its rows."""
OFFLINE = dict.fromkeys('dpo simpo orpo cpo rm rm_score'.split(), 'Preference')
OFFLINE |= {'sft': 'Instruction', 'kto': 'Unpaired', 'cost_model': 'PKUSafeRLHF_Cost'}
"""Their templates; the algorithms that generate responses take prompts of `Instruction`."""
GROUP_BASED = 'grpo rloo online_dpo multi_ppo reinforce_plus_plus'.split()
# vLLM starts slowly and has tests of its own; ppo_vllm is among the variants, where transformers generates.
ALGORITHMS = (*OFFLINE, *GROUP_BASED, 'ppo', 'ppo_remote_rm', 'saferlhf')
LAYOUTS = ('padded', 'packed', 'shared_prefix')
WORDS = 'sun sea tree stone bird cloud river field house road lamp door fish salt wind star moon hill'.split()
Case = tuple[str, int, dict[str, Any]]  # the leaf, how many ranks, the settings

LORA = {'use_lora': True, 'r': 4}
EVALUATED = {'eval_strategy': 'steps', 'eval_interval': 1}
FROZEN = {'freeze_vision_tower': True, 'feature_cache_dir': 'out/features', 'sample_cache_dir': 'out/samples'}
ACCUMULATED = {'gradient_accumulation_steps': 2, 'gradient_checkpointing': True, 'weight_decay': 0.1, 'train_on': 'all'}
GIVEN = {'ptx_datasets': 'data/text_to_text-held-out.jsonl', 'ptx_template': 'Instruction', 'ptx_coeff': 1.0}
VARIANTS: dict[str, dict[str, Any]] = {
    'text_to_text/sft/lora/zero-2/ranks-2': LORA,
    'text_to_text/dpo/lora/zero-3/ranks-2': LORA,
    'text_to_text/grpo/lora/zero-2/ranks-2': {**LORA, 'log_completions': 1},
    'text_to_text/ppo/lora/zero-3/ranks-2': {**LORA, 'bootstrap_truncated': True, 'normalize_reward': True},
    'text_to_text/sft/dora/zero-0/ranks-1': {**LORA, 'use_dora': True, 'save_full_model': True},
    'text_to_text/sft/filled/zero-2/ranks-2': {'max_length_per_batch': 160, 'group_by_length': True},
    'text_to_text/grpo/filled/zero-3/ranks-2': {'max_length_per_batch': 160, 'loss_type': 'cispo', 'beta': 0.0},
    'text_to_text/sft/stream/zero-0/ranks-2': {'streaming': True},
    'text_to_text/sft/accumulated/zero-3/ranks-2': ACCUMULATED,
    'any_to_text/sft/mixed/zero-0/ranks-1': {'train_datasets': '[data/text_to_text.jsonl, data/any_to_text.jsonl]'},
    'text_to_text/dpo/best/zero-0/ranks-1': {**EVALUATED, 'save_best': 'reward_accuracy'},
    'text_to_text/dpo/cached/zero-2/ranks-2': {'reference_cache_dir': 'out/cache', 'loss_type': '[ipo, sigmoid]'},
    'text_to_text/kto/cached/zero-3/ranks-1': {'reference_cache_dir': 'out/cache'},
    'text_to_text/grpo/gspo/zero-2/ranks-2': {'importance_level': 'sequence', 'dynamic_sampling_rounds': 1},
    'text_to_text/ppo/given/zero-2/ranks-2': {**GIVEN, 'kl_target': 1e-3, 'kl_horizon': 60, 'kl_loss_coeff': 0.1},
    'text_to_text/ppo_vllm/transformers/zero-0/ranks-2': {'use_vllm': False},
    'text_image_to_text/sft/frozen/zero-2/ranks-2': FROZEN,
    'text_image_to_text/cost_model/pictures/zero-2/ranks-1': {'train_template': 'SafeRLHF_V_Cost'},
    'text_image_to_text/dpo/lora/zero-3/ranks-2': {**LORA, 'vision_lora': True},
    'any_to_text/sft/heard/zero-2/ranks-1': {'audio_in_video': True, 'lr_groups': '{mm_proj: 0.01}'},
    'any_to_text/grpo/shown/zero-3/ranks-1': {'log_completions': 1},
}


def cases() -> dict[str, Case]:
    """All cases by name: with text each algorithm in each layout, elsewhere each of them once, and the variants."""
    given = {}
    for place, pair in enumerate(PAIRS):
        for number, algorithm in enumerate(ALGORITHMS):
            for turn in range(place, place + (1 if place else 3)):
                layout, stage = LAYOUTS[(number + turn) % 3], (0, 2, 3)[(number // 3 + turn) % 3]
                name = f'{pair}/{algorithm}/{layout}/zero-{stage}/ranks-{1 + (number + number // 3 + turn) % 2}'
                evaluated = EVALUATED if (number + 2 * turn) % 4 == 0 and algorithm != 'rm_score' else {}
                given[name] = {'layout': layout, **evaluated}
    return {name: make_case(name, number, more) for number, (name, more) in enumerate((given | VARIANTS).items())}


def make_case(name: str, number: int, more: dict[str, Any]) -> Case:
    """The case of a name, `pair/algorithm/what it is about/zero-<stage>/ranks-<number>`."""
    pair, algorithm, _, zero, ranks = name.split('/')
    family = PAIRS[pair][0][number % len(PAIRS[pair][0])]
    tiny, reward, cost = (f'models/{kind}-{family}' for kind in ('tiny', 'rm', 'cost_model'))
    steps = 2 if pair == 'text_to_text' else 1
    values: dict[str, Any] = {
        'model_name_or_path': reward if algorithm == 'rm_score' else tiny, 'output_dir': 'out/run',
        'train_datasets': f'data/{pair}.jsonl', 'train_template': OFFLINE.get(algorithm, 'Instruction'),
        'ds_cfgs': f'ds_z{zero[-1]}_config.json', 'bf16': False, 'num_workers': 0, 'num_frames': 4,
        'model_max_length': 1024, 'max_skipped_ratio': 0.5, 'per_device_eval_batch_size': 2,
    }  # fmt: skip
    if algorithm != 'rm_score':
        values |= {
            'max_steps': steps + 1, 'per_device_train_batch_size': 2, 'learning_rate': 1e-3,
            'gradient_checkpointing': False, 'lr_scheduler_type': 'linear', 'lr_warmup_ratio': 0.0,
            'log_type': 'none', 'save_total_limit': 0, 'eval_strategy': 'no',
        }  # fmt: skip
    if 'eval_strategy' in more:
        values |= {'eval_datasets': f'data/{pair}-held-out.jsonl', 'eval_template': values['train_template']}
    if algorithm not in OFFLINE:
        values |= {
            'per_device_prompt_batch_size': 2, 'num_generations': 2, 'max_new_tokens': 6, 'max_steps': 2 * steps,
            'reward_model_name_or_path': reward, 'reward_functions': '[length, repetition]',
            'reward_kwargs': '{length: {max_length: 8, cache: 8}, repetition: {ngram: 1}}',
        }  # fmt: skip
        values |= {} if algorithm in GROUP_BASED else {'reward_critic_model_name_or_path': reward, 'critic_lr': 1e-3}
        values |= {'cost_model_name_or_path': cost, 'threshold': -10.0} if algorithm == 'saferlhf' else {}
    return f'align_anything.trainers.{pair}.{algorithm}', int(ranks[-1]), values | more


def write_data(folder: Path) -> None:
    """Writes for each pair rows that the templates of all its cases can read, some of them bad, and their media."""
    folder.mkdir(parents=True)
    for number in range(3):
        Image.new('RGB', (40 + 16 * number, 56), (60 * number, 90, 160)).save(folder / f'image-{number}.png')
        hertz, levels = 200.0 * (number + 1), [40 * number + 20 * frame for frame in range(6)]
        (folder / f'audio-{number}.wav').write_bytes(sound(tone(0.5 + 0.2 * number, hertz=hertz)))
        (folder / f'video-{number}.mp4').write_bytes(clip(levels, audio=tone(0.6, hertz=hertz)))
    for pair, (_, kinds) in PAIRS.items():
        for name, count in ((pair, 14), (f'{pair}-held-out', 4)):
            generator = random.Random(name)
            rows = [json.dumps(make_row(kinds, number, generator)) + '\n' for number in range(count)]
            (folder / f'{name}.jsonl').write_text(''.join(rows))


def make_row(kinds: tuple[str, ...], number: int, generator: random.Random) -> dict[str, Any]:
    """A row with the columns of all templates; of rows that are text every seventh has no prompt."""
    words = [' '.join(generator.choices(WORDS, k=generator.randrange(2, 7))) for _ in range(9)]
    kind, suffix = kinds[number % len(kinds)], {'image': 'png', 'audio': 'wav', 'video': 'mp4'}
    media = {name: f'{name}-{number % 3}.{suffix[name]}' if name == kind else None for name in kinds if name}
    return {
        'prompt': f'<{kind}> {words[0]}' if kind else None if len(kinds) == 1 and number % 7 == 3 else words[0],
        'history': [] if kind or number % 3 else [words[1:3]], 'output': words[3], 'label': number % 2 == 0,
        'chosen': f'{words[4]} yes', 'rejected': f'{words[5]} no', 'margin': 0.5 * (number % 3),
        'response_0': words[6], 'response_1': words[7], 'response_2': words[8], 'safer_response_id': 1,
        'is_response_0_safe': number % 3 == 0, 'is_response_1_safe': True,
        'response_1_harmless_rate': 1, 'response_2_harmless_rate': number % 3 - 1, **media,
    }  # fmt: skip


class Service(BaseHTTPRequestHandler):
    """Rewards a response by its letters."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({'rewards': [sum(text.encode()) % 7 / 7 for text in asked['responses']]}).encode())

    log_message = mock.Mock()


def in_rank(rank: int, work: Path, module: str, words: list[str]) -> list[str]:
    """Runs a module as its command line would, all that it says in `out/<rank>.log`; returns what it imported."""
    os.chdir(work)
    os.dup2(os.open(f'out/{rank}.log', os.O_CREAT | os.O_WRONLY), 1)
    os.dup2(1, 2)
    sys.argv = [module, *words]
    try:
        runpy.run_module(module, run_name='__main__')
    except SystemExit as leaving:
        if leaving.code:
            raise RuntimeError(Path(f'out/{rank}.log').read_text()[-3000:]) from leaving
    return [name for name in sys.modules if name.startswith(('align_anything.', 'transformers.models.'))]


def run(work: Path, module: str, ranks: int, words: list[str]) -> None:
    """Runs a module in `ranks` processes, in an empty folder `out`. Raises RanksError."""
    shutil.rmtree(work / 'out', ignore_errors=True)
    (work / 'out').mkdir()
    # What one run imported, whatever its name is by now, no later rank has to.
    for name in run_ranks(in_rank, ranks, 600.0, (work, module, words))[0]:
        with suppress(ImportError):  # transformers has second names for some modules
            importlib.import_module(name)


def run_case(work: Path, case: Case) -> None:
    """Runs a case after making what it needs: tiny checkpoints, and some with a score head trained on them."""
    leaf, ranks, settings = case
    for model in map(str, settings.values()):
        if not model.startswith('models/') or (work / model).exists():
            continue
        kind, family = model.removeprefix('models/').split('-')
        if kind == 'tiny':
            run(work, 'align_anything.models.tiny', 1, [family, '--out', 'out/run/slice_end'])
        else:
            pair = next(pair for pair, (families, _) in PAIRS.items() if family in families)
            run_case(work, make_case(f'{pair}/{kind}//zero-0/ranks-1', PAIRS[pair][0].index(family), {}))
        (work / 'models').mkdir(exist_ok=True)
        (work / 'out/run/slice_end').rename(work / model)
    run(work, leaf, ranks, [word for key, value in settings.items() for word in (f'--{key}', str(value))])


def written(work: Path) -> dict[str, Any]:
    """What the last run has written."""
    files = {file.stem: file.read_text().replace(str(work), '.') for file in (work / 'out/run').glob('*.jsonl')}
    found: dict[str, Any] = {name: [*map(json.loads, text.splitlines())] for name, text in files.items()}
    found.pop('timings', None)
    weights = (work / 'out/run/slice_end').glob('*.safetensors')
    tensors = sorted(item for file in weights for item in load_file(file).items())
    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(f'{name} {tensor.dtype} {tuple(tensor.shape)}'.encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return found | ({'weights': digest.hexdigest()} if tensors else {})


def differences(was: Any, now: Any, where: str = '') -> Iterator[str]:
    """Yields where two records differ, with both values; numbers are alike when their texts are."""
    if isinstance(was, list) and isinstance(now, list):
        was, now = dict(enumerate(was)), dict(enumerate(now))
    if isinstance(was, dict) and isinstance(now, dict):
        for key in {**was, **now}:
            yield from differences(was.get(key), now.get(key), f'{where} {key}')
    elif repr(was) != repr(now):
        yield f'{where}: {was!r} was recorded, now {now!r}'


def main() -> int:
    """Records or compares; returns the exit status."""
    parser = argparse.ArgumentParser(prog='python -m tests.recording')
    parser.add_argument('what', choices=('record', 'compare'))
    parser.add_argument('file', type=Path, metavar='FILE')
    parser.add_argument('--only', default='', metavar='REGEX', help='cases whose name it finds')
    given = parser.parse_args()
    known = json.loads(given.file.read_text()) if given.file.exists() else {}
    chosen = {name: case for name, case in cases().items() if re.search(given.only, name)}
    if given.what == 'record':
        chosen = {name: case for name, case in chosen.items() if name not in known}
    work = given.file.with_name(f'{given.file.name}.work').resolve()
    if not (work / 'data').exists():
        write_data(work / 'data')
    warm()
    # A process of its own: ranks are forked from one without threads.
    server = HTTPServer(('127.0.0.1', 0), Service)
    multiprocessing.get_context('fork').Process(target=server.serve_forever, daemon=True).start()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that neither it nor ranks outlive a killed recording
    bad, start = 0, time.monotonic()
    for name, case in chosen.items():
        begun, problems = time.monotonic(), []
        if name.split('/')[1] == 'ppo_remote_rm':
            case[2]['remote_rm_url'] = f'http://127.0.0.1:{server.server_port}/'
        try:
            run_case(work, case)
            found = written(work)
            if given.what == 'compare':
                problems = [*differences(known[name], found)] if name in known else ['not in the file']
            else:
                known[name] = found
                given.file.with_suffix('.part').write_text(json.dumps(known, indent=1))
                given.file.with_suffix('.part').replace(given.file)
        except RanksError as error:
            problems = [str(error)[-3000:]]
        bad += bool(problems)
        print(f'{name}: {time.monotonic() - begun:.1f} s', *problems, sep='\n    ', flush=True)
    print(f'{given.what}: {len(chosen)} cases, {bad} of them bad, {time.monotonic() - start:.0f} s')
    return int(bool(bad))


def warm() -> None:
    """Imports before forking what every run needs, and plots nothing."""
    # Curves would take longer than all the rest.
    figure = importlib.import_module('matplotlib.figure').Figure = mock.MagicMock()
    figure.return_value.savefig = lambda path, **_: Path(path).touch()
    importlib.import_module('matplotlib.backends.backend_agg').FigureCanvasAgg = mock.MagicMock()
    libraries = ('datasets', 'deepspeed', 'peft', 'torchvision', 'transformers.integrations')
    for name in (*libraries, *(leaf for leaf, *_ in cases().values())):
        importlib.import_module(name)


if __name__ == '__main__':
    sys.exit(main())
