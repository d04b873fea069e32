"""Every launch script names what exists, and trains a tiny model of its family when it is pointed at one."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
from PIL import Image

from align_anything.algorithms.base import known_algorithms
from align_anything.algorithms.online import Online
from align_anything.cli.leaves import find_run
from align_anything.core.actions import ActionSpace
from align_anything.datasets.formatters.chores import CAMERAS as VIEWS
from align_anything.datasets.formatters.chores_tasks import STRETCH_ACTIONS
from align_anything.datasets.template_registry import make_formatter
from align_anything.testing.acting import build_acting
from align_anything.testing.episodes import episodes, write_chores, write_libero
from align_anything.testing.tiny.judges import JUDGES, build_judge
from align_anything.trainers.launch import settings_of
from align_anything.trainers.pairs import PAIRS
from align_anything.trainers.runs.checks import check_online
from align_anything.trainers.runs.rewarding import make_rewards
from tests.datasets.clips import sound, tone
from tests.models.stand_ins import FAMILIES as STAND_INS
from tests.models.stand_ins import build
from tests.models.stand_ins.openvla import build_openvla
from tests.policies.acting.worlds import SMALL as SMALL_ACTING
from tests.trainers.runs import run
from tests.trainers.test_scoring import with_head

ROOT = Path(__file__).resolve().parents[2]
# A set: the name of online DPO ends as that of DPO does.
SCRIPTS = sorted({path for name in known_algorithms() for path in (ROOT / 'scripts').glob(f'*/*_{name}.sh')})
NAMES = [path.stem for path in SCRIPTS]
# Beside those of supervised training, which all train here, one or two of each algorithm with media of each kind.
ALSO_TRAINED = (
    'llama_dpo llama_kto qwen2_rm qwen2_cost_model qwen2_orpo llama_simpo qwen2_cpo llava_cost_model qwen2_vl_rm '
    'qwen2_audio_dpo qwen2_5_vl_video_dpo llava_saferlhf qwen2_vl_grpo sd3_dpo sd3_grpo '
    'qwen_image_edit_grpo sd3_nft sd15_dpo audioldm_dpo text_to_video_sd_dpo wan_grpo clip_rm'
).split()
TRAINED = [path for path in SCRIPTS if path.stem.endswith('_sft') or path.stem in ALSO_TRAINED]

# What `make test` runs: a script for each pair, and for each kind of algorithm one of those that no test trains.
FIRST_TRAINED = (
    'sd3_dpo wan_sft flux_kontext_sft llama_dpo own_data_sft qwen2_audio_sft qwen2_vl_video_sft '
    'qwen2_5_omni_thinker_sft drawing_sft speaking_sft illustrating_sft unified_sft spoc_sft'
).split()
FIRST_DRY = 'qwen2_grpo llava_ppo qwen2_audio_rm'.split()

# Where the folder of a script is not the family that it trains.
FAMILIES = {'gemma3_text_sft': 'gemma3_text', 'own_data_sft': 'qwen2_5_vl', 'qwen_vl_sft': 'qwen'}
# What models with tokens for media write, of scripts that train such.
EMITTING = {
    'drawing_sft': 'drawing',
    'speaking_sft': 'singing',
    'illustrating_sft': 'drawing',
    'editing_sft': 'drawing',
    'unified_sft': 'unified',
}
# The optimizer of an offloading run is compiled on first use, which takes longer than all tests here.
SETTINGS = {
    'qwen3_moe_sft': {'ZERO_STAGE_FILE': 'ds_z2_config.json'},
    **dict.fromkeys(('wan_sft', 'wan_dpo'), {'NUM_FRAMES': 1, 'RESOLUTION': 32}),
    'wan_grpo': {'NUM_FRAMES': 1, 'RESOLUTION': 32, 'PER_DEVICE_TRAIN_BATCH_SIZE': 4},
    **dict.fromkeys(('text_to_video_sd_sft', 'text_to_video_sd_dpo'), {'NUM_FRAMES': 4}),
    **dict.fromkeys(('flux_kontext_sft', 'qwen_image_edit_grpo'), {'RESOLUTION': 32}),
}
# Folders of scripts that train pipelines of diffusers.
PIPELINES = ('sd15', 'sd3', 'audioldm', 'text_to_video_sd', 'wan', 'flux_kontext', 'qwen_image_edit')

SMALL = '--max_steps 2 --num_workers 0 --log_type none --save_total_limit 0'.split()
# Scripts of online algorithms set these themselves.
ROLLOUT = {
    'NUM_GENERATIONS': 2,
    'PER_DEVICE_PROMPT_BATCH_SIZE': 2,
    'GRADIENT_ACCUMULATION_STEPS': 1,
    'ROLLOUT_STEPS': 4,
}

PICTURE = {'image': 'picture.png', 'question': 'What is it?'}
CHOSEN = {**PICTURE, 'chosen': 'A red square.', 'rejected': 'A dog.'}
RANKED = {'prompt': 'What is it?', 'response_1': 'A tone.', 'response_2': 'Nothing.', 'overall_response': 1}
SAFETY = {'safer_response_id': 1, 'is_response_0_safe': False, 'is_response_1_safe': True}
HARMFUL = {'response_1': 'So.', 'response_2': 'No.', 'response_1_harmless_rate': -2, 'response_2_harmless_rate': 2}
TURNS = [{'role': 'user', 'content': 'Hi'}, {'role': 'assistant', 'content': 'Hello'}]
ASKED = {'input_text': 'Draw it.', 'input_image': 'picture.png'}
ROWS: dict[str, dict[str, Any]] = {
    'Alpaca': {'instruction': 'Add the numbers.', 'input': '1, 2', 'output': '3'},
    'Math-Zero-RL': {'prompt': 'What is 1 + 2?', 'answer': '3'},
    'GSM8K': {'question': 'What is 1 + 2?', 'answer': '1 + 2 = 3 #### 3'},
    'Messages': {'messages': [*TURNS, {'role': 'user', 'content': 'Bye'}, {'role': 'assistant', 'content': 'See you'}]},
    'PKUSafeRLHF': {'prompt': 'How?', 'response_0': 'Like this.', 'response_1': 'No.', 'better_response_id': 0},
    'PKUSafeRLHF_Cost': {'prompt': 'How?', 'response_0': 'Like this.', 'response_1': 'No.', **SAFETY},
    'Preference': {'chosen': TURNS, 'rejected': [TURNS[0], {'role': 'assistant', 'content': 'No'}]},
    'Unpaired': {'prompt': TURNS[:1], 'completion': TURNS[1:], 'label': True},
    'SafeRLHF_V_Cost': {**PICTURE, **HARMFUL, 'safer_response_id': 2},
    'RLAIFV': CHOSEN,
    'SPA_VL': CHOSEN,
    'A-OKVQA': {**PICTURE, 'choices': ['red', 'blue'], 'correct_choice_idx': 0, 'rationales': ['It is not blue.']},
    'OCRVQA': {'image': 'picture.png', 'questions': ['Who?', 'When?'], 'answers': ['A. Writer', '1999']},
    'Instruction': {**PICTURE, 'answer': 'A red square.'},
    'LibriSpeech': {'audio': 'tone.wav', 'text': 'Nothing is said.'},
    'ANYTHING_TI2TI': {
        'question': 'What is it? Draw another one.',
        'image_url': 'picture.png',
        'response': 'A red square.',
        'output_image_url': 'picture.png',
    },
    'AA_TA2T': {**RANKED, 'audio_path': 'tone.wav'},
    'Pickapic': {'caption': 'A square.', 'jpg_0': 'picture.png', 'jpg_1': 'other.png', 'label_0': 1, 'label_1': 0},
    'Prompts': {'Prompt': 'A red square.'},
    'Webvid': {'caption': 'A square gets brighter.', 'video_path': 'clip'},
    'DiffusionDB': {'prompt': 'A red square.', 'image': 'picture.png'},
    'TTS': {'text_normalized': 'A tone.', 'audio': 'tone.wav'},
    'ti2ti': {
        'input_text': 'Draw it.',
        'input_image': 'picture.png',
        'output_text': 'So.',
        'output_image': 'picture.png',
    },
    'WavCaps': {'answer': 'A tone.', 'context': 'tone.wav'},
    'AA_T2A': {'prompt': 'A tone.', 'response_1': 'tone.wav', 'response_2': 'higher.wav', 'overall_audio': 1},
    'SafeSora': {
        'prompt_text': 'A square gets brighter.',
        'video_0': {'video_path': 'clip'},
        'video_1': {'video_path': 'darker'},
        'helpfulness': 'video_1',
    },
    'AA_TV2T': {**RANKED, 'video_path': 'clip'},
}


def write_arm(folder: Path) -> Path:
    """Demonstrations of LIBERO whose actions have the seven numbers of an arm."""
    import h5py

    with h5py.File(write_libero(folder, episodes(3, 5, 2, 4)), 'r+') as file:
        for demonstration in file['data'].values():
            moves = demonstration['actions'][:]
            del demonstration['actions']
            demonstration['actions'] = numpy.concatenate([moves[:, :2], moves[:, :2] / 2, moves], 1)
    return folder


# Of templates that read folders of files.
FOLDERS = {'Chores': lambda folder: write_chores(folder, episodes(3, 5, 2, 4)), 'Libero': write_arm}
# Of scripts that name the columns themselves.
DRAWN = {'role': 'assistant', 'content': [{'type': 'text', 'text': 'So: '}, {'type': 'image', 'image': 'picture.png'}]}
ROW = {
    'editing_sft': {'source_img': 'picture.png', 'instruction': 'Make it blue.', 'target_img': 'other.png'},
    'flux_kontext_sft': {'edit_prompt': 'Make it blue.', 'input_image': 'picture.png', 'edited_image': 'other.png'},
    'qwen_image_edit_grpo': {'instruction': 'Make it blue.', 'source_img': 'picture.png'},
    'unified_sft': {'messages': [TURNS[0], DRAWN]},
    'qwen2_vl_grpo': {'image': 'picture.png', 'problem': 'How many?', 'solution': '<answer> 3 </answer>'},
}


def named(scripts: list[Path], first: list[str]) -> list[Any]:
    """Parameters: the scripts under their names, all but those named `first` left to `make extended`."""
    assert {*first} <= {path.stem for path in scripts}
    return [
        pytest.param(path, id=path.stem, marks=() if path.stem in first else pytest.mark.extended) for path in scripts
    ]


# Stands in for the launcher: writes down how it was called. In bash, which starts sooner than Python.
RECORDER = """#!/usr/bin/env bash
printf '%s\\0' "$@" > argv
env -0 > environment
"""
PORT = '23456'

Called = tuple[str, str, list[str], dict[str, str]]


@pytest.fixture
def call(tmp_path: Path) -> Callable[..., Called]:
    """Runs a script with the recorder as launcher; returns the pair, algorithm, settings and environment of the run."""
    shim = tmp_path / 'bin' / 'deepspeed'
    shim.parent.mkdir()
    shim.write_text(RECORDER)
    shim.chmod(0o755)

    def called(script: Path, *more: str, **header: Any) -> Called:
        # A port that is given need not be found, which takes longer than the rest of a script.
        given = {**os.environ, 'PATH': f'{shim.parent}:{os.environ["PATH"]}', 'MASTER_PORT': PORT}
        given |= {key: str(value) for key, value in header.items()}
        done = subprocess.run(['bash', script, *more], cwd=tmp_path, env=given, capture_output=True, text=True)
        assert done.returncode == 0 and not done.stderr, done.stderr
        argv, environment = recorded(tmp_path)
        assert argv[:3] == ['--log_level', header.get('DEEPSPEED_LOG_LEVEL', 'error'), '--master_port']
        assert argv[3] == given['MASTER_PORT'] or not given['MASTER_PORT'] and 1024 <= int(argv[3]) < 65536
        assert argv[4] == '--module'
        pair, algorithm = re.fullmatch(r'align_anything\.trainers\.(\w+)\.(\w+)', argv[5]).groups()
        return pair, algorithm, argv[6:], environment

    return called


def recorded(folder: Path) -> tuple[list[str], dict[str, str]]:
    """The arguments of the launcher, and of its environment what settings can be given by."""
    argv, environment = ((folder / name).read_text().split('\0')[:-1] for name in ('argv', 'environment'))
    found = dict(entry.split('=', 1) for entry in environment)
    return argv, {key: value for key, value in found.items() if key == 'ZERO_STAGE_FILE' or key.startswith('ALIGN_')}


@pytest.mark.parametrize('script', SCRIPTS, ids=NAMES)
def test_it_names_what_exists(script: Path, call: Callable[..., Called]) -> None:
    required = {'TRAIN_DATASETS': 'rows.jsonl'} if script.stem == 'own_data_sft' else {}
    pair, algorithm, argv, environment = call(script, **required)
    assert importlib.util.find_spec(f'align_anything.trainers.{pair}.{algorithm}')
    # Raises for a key, a value or a DeepSpeed file that does not exist.
    resolved = settings_of(*find_run(pair, algorithm), argv, environment)
    cfgs = resolved.cfgs
    make_formatter(cfgs.data_cfgs.train_template, cfgs.data_cfgs.train_template_kwargs)
    assert cfgs.logger_cfgs.output_dir == f'output/{script.stem}'
    assert '/' in cfgs.model_cfgs.model_name_or_path
    if isinstance(resolved.algorithm, Online):
        # Both raise for what a run cannot do: functions that do not exist, or nothing that rewards.
        make_rewards(cfgs)
        check_online(cfgs, resolved.algorithm)
        judges = re.findall(r'output/(\w+)/slice_end', script.read_text())
        assert {*judges} <= {*NAMES}, 'each judge that is not given is made by a script'


def aimed(
    script: Path, call: Callable[..., Called], made: Callable[[str], Path], folder: Path, *more: str
) -> tuple[list[str], dict[str, Any]]:
    """The settings that a script gives a run on a tiny model and rows in `folder`, and how to start that run."""
    text = script.read_text()
    template = re.search(r'TRAIN_TEMPLATE:-([\w-]+)', text).group(1)
    rows = folder / 'rows.jsonl'
    if template in FOLDERS:
        rows = FOLDERS[template](folder / 'PickupType')
    else:
        rows.write_text(f'{json.dumps(ROW.get(script.stem, ROWS[template]))}\n' * 4)
    write_media(folder)
    model = made(script.stem)
    header = {
        'MODEL_NAME_OR_PATH': model,
        'TRAIN_DATASETS': rows,
        'TRAIN_NAME': '',
        'TRAIN_SPLIT': 'train',
        **dict.fromkeys(('VIDEO_FOLDER', 'AUDIO_FOLDER'), folder),
        'OUTPUT_DIR': folder / 'trained',
        **ROLLOUT,
        **SETTINGS.get(script.stem, {}),
    }
    if 'REWARD_MODEL' in text:
        (folder / 'judge').mkdir()
        judge = with_head(model, folder / 'judge')
        header |= dict.fromkeys(('REWARD_MODEL_NAME_OR_PATH', 'COST_MODEL_NAME_OR_PATH'), judge)
    steps = '--max_new_tokens 4' if 'PROMPT_BATCH' in text else '--gradient_accumulation_steps 1'
    if '--rollout_steps' in text:
        steps = ''
    pair, name, argv, environment = call(script, *SMALL, *steps.split(), *more, **header)
    how = {'pair': PAIRS[pair], 'before': lambda _: os.environ.update(environment)}
    return argv, {**how, 'algorithm': known_algorithms()[name]}


@pytest.fixture
def made(tiny: Callable[..., Path], emitting: Callable[..., Path], tmp_path: Path) -> Callable[[str], Path]:
    """`made('llava_sft')` returns a tiny model of the kind that the script of that name trains."""

    def model(name: str) -> Path:
        if name == 'spoc_sft':
            space = ActionSpace(names=tuple(STRETCH_ACTIONS.values()), cameras=VIEWS)
            return build_acting(tmp_path / name, space, **SMALL_ACTING)
        if name == 'openvla_sft':
            return build_openvla(tmp_path / name)
        if name in EMITTING:
            return emitting(EMITTING[name])
        family = FAMILIES.get(name) or next(path.parent.name for path in SCRIPTS if path.stem == name)
        if family in STAND_INS:
            return build(family, tmp_path / family)
        return build_judge(family, tmp_path / family) if family in JUDGES else tiny(family)

    return model


@pytest.mark.parametrize('script', named(TRAINED, FIRST_TRAINED))
def test_it_trains(script: Path, call: Callable[..., Called], made: Callable[[str], Path], tmp_path: Path) -> None:
    argv, how = aimed(script, call, made, tmp_path)
    ended = run(argv, **how)
    assert ended[0].code == 0, ended[0].output
    output = tmp_path / 'trained'
    saved = {path.name for path in (output / 'slice_end').iterdir()}
    of_pipeline = script.parent.name in PIPELINES
    adapter = 'pytorch_lora_weights.safetensors' if of_pipeline else 'adapter_model.safetensors'
    whole = 'model_index.json' if of_pipeline else 'model.safetensors'
    assert (adapter if '--use_lora' in argv else whole) in saved
    steps = [json.loads(line) for line in (output / 'metrics.jsonl').read_text().splitlines()]
    assert [record['step'] for record in steps if 'train/loss' in record] == [1, 2]


@pytest.mark.parametrize('script', named(sorted({*SCRIPTS} - {*TRAINED}), FIRST_DRY))
def test_a_dry_run_gets_to_its_end(
    script: Path, call: Callable[..., Called], made: Callable[[str], Path], tmp_path: Path
) -> None:
    """Of those that no test trains: they read their data and fit their model."""
    argv, how = aimed(script, call, made, tmp_path, '--dry_run')
    ended = run(argv, **how)
    assert ended[0].code == 0 and 'This was a dry run' in ended[0].output, ended[0].output
    assert not (tmp_path / 'trained').exists()


def write_media(folder: Path) -> None:
    """Writes the images, the video and the audio that the rows name."""
    Image.new('RGB', (40, 30), 'red').save(folder / 'picture.png')
    Image.new('RGB', (30, 40), 'blue').save(folder / 'other.png')
    (folder / 'tone.wav').write_bytes(sound(tone(1.0)))
    (folder / 'higher.wav').write_bytes(sound(tone(1.0, hertz=880.0)))
    for name, brightness in (('clip', 60), ('darker', 20)):
        (folder / name).mkdir()
        for number in range(4):
            Image.new('RGB', (40, 30), (brightness * number, 0, 0)).save(folder / name / f'{number}.png')


def test_a_script_works_from_any_folder_and_takes_further_settings(call: Callable[..., Called]) -> None:
    script = ROOT / 'scripts' / 'qwen2' / 'qwen2_sft.sh'
    _, _, argv, _ = call(script, '--epochs', '7', MODEL_NAME_OR_PATH='a folder/of mine')
    assert argv[argv.index('--epochs') + 1] == '7'
    assert argv[argv.index('--model_name_or_path') + 1] == 'a folder/of mine'
    assert argv[argv.index('--train_name') + 1] == 'main'
    assert '--train_name' not in call(script, TRAIN_NAME='')[2]


def test_a_given_port_is_kept_and_a_found_one_is_free(call: Callable[..., Called], tmp_path: Path) -> None:
    script = ROOT / 'scripts' / 'opt' / 'opt_sft.sh'
    call(script, MASTER_PORT='34567')
    assert recorded(tmp_path)[0][3] == '34567'
    call(script, MASTER_PORT='')
    assert recorded(tmp_path)[0][3] not in ('34567', PORT)


def test_the_launcher_tells_more_where_it_is_asked(call: Callable[..., Called]) -> None:
    call(ROOT / 'scripts' / 'opt' / 'opt_sft.sh', DEEPSPEED_LOG_LEVEL='info')


def test_own_data_must_be_named(tmp_path: Path) -> None:
    script = ROOT / 'scripts' / 'own_data' / 'own_data_sft.sh'
    done = subprocess.run(['bash', script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0 and 'TRAIN_DATASETS=rows.jsonl' in done.stderr
