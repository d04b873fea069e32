"""The scripts of projects/any_to_text make models that its two commands train."""

from __future__ import annotations

import json
import re
import runpy
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from align_anything.datasets.template_registry import get_template
from align_anything.models.pretrained_model import load_spec
from align_anything.testing.tiny.encoders import build_encoder
from align_anything.trainers.pairs import PAIRS
from tests.datasets.clips import sound, tone
from tests.models.mixed import sound as audio
from tests.models.samples import assistant, user
from tests.trainers.runs import run

PROJECT = Path(__file__).resolve().parents[2] / 'projects' / 'any_to_text'
COMMANDS = [
    shlex.split(line)
    for block in re.findall(r'```bash\n(.*?)```', (PROJECT / 'README.md').read_text(), re.DOTALL)
    for line in block.replace('\\\n', ' ').splitlines()
]
SMALL = '--max_steps 1 --num_workers 0 --log_type none --save_total_limit 0 --ds_cfgs ds_z0_config.json --bf16 False'


@pytest.mark.parametrize('number', [0, 1])
def test_a_script_composes_what_the_commands_train(
    number: int, tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    python, script, *options = COMMANDS[number]
    assert python == 'python' and script.startswith('projects/any_to_text/')
    options += ['--language_model_path', str(tiny('llama'))]
    options += ['--vision_tower_path', str(build_encoder('clip', tmp_path / 'clip'))]
    options += ['--audio_tower_path', str(build_encoder('clap_fused', tmp_path / 'clap'))] * number
    # In this process: the script's own imports would take their seconds once more.
    monkeypatch.syspath_prepend(PROJECT)
    monkeypatch.setattr(sys, 'argv', [script, *options])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(PROJECT / Path(script).name), run_name='__main__')
    assert not ended.value.code
    model = Path(options[1])
    kind = json.loads((model / 'config.json').read_text())['model_type']
    assert kind == ('composed' if number else 'llava')
    if not number:
        return
    spec = load_spec(model)
    # The same clip is the same tensor each time: the extractor of a fused CLAP marks one at random.
    conversation = [user(audio(0.7), 'What?'), assistant('A tone.')]
    one, other = (spec.encode(conversation).prompt for _ in range(2))
    assert one.media.keys() == other.media.keys()
    assert all((one.media[name] == other.media[name]).all() for name in one.media)
    Path('tone.wav').write_bytes(sound(tone(0.4)))
    Image.new('RGB', (40, 30), 'red').save('red.png')
    turns = [{'role': 'user', 'content': '<audio><image>What?'}, {'role': 'assistant', 'content': 'A tone, and red.'}]
    row = json.dumps({'messages': turns, 'audios': ['tone.wav'], 'images': ['red.png']})
    Path('rows.jsonl').write_text(f'{row}\n' * 4)
    for launcher, flag, module, *settings in COMMANDS[2:]:
        assert (launcher, flag, module) == ('deepspeed', '--module', 'align_anything.trainers.any_to_text.sft')
        place, template = settings.index('--train_datasets'), settings.index('--train_template')
        end = settings.index('--output_dir')
        assert all(get_template(name) for name in settings[template + 1 : end])
        here = ['--train_datasets', 'rows.jsonl', '--train_template', 'Messages']
        (done,) = run([*settings[:place], *here, *settings[end:], *SMALL.split()], pair=PAIRS['any_to_text'])
        assert done.code == 0, done.output
    assert Path('output/joint/slice_end/model.safetensors').is_file()
