"""The command that composes a model, and what docs/composed.md says of it."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from PIL import Image

from align_anything.cli.composing import compose_settings
from align_anything.cli.main import main
from align_anything.configs.compose import READ_BY, MediaCfgs
from align_anything.configs.layers import JOINT_RATE, PROJECTION_RATE
from align_anything.core.errors import SettingsError
from align_anything.models.composed.plan import KNOWN, WITHIN
from align_anything.testing.tiny.__main__ import main as make_tiny
from align_anything.testing.tiny.encoders import ENCODERS, build_encoder
from align_anything.trainers.pairs import PAIRS
from tests.datasets.clips import sound, tone
from tests.harness.once import once
from tests.trainers.runs import run

PAGE = (Path(__file__).resolve().parents[2] / 'docs' / 'composed.md').read_text()
HUB = {
    'Qwen/Qwen3-0.6B': 'qwen3',
    'google/siglip-base-patch16-224': 'siglip',
    'openai/whisper-small': 'whisper',
}
SMALL = '--max_steps 1 --num_workers 0 --log_type none --save_total_limit 0 --ds_cfgs ds_z0_config.json --bf16 False'


@pytest.fixture
def local(
    tiny: Callable[..., Path], shared_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], str]:
    """`local(text)` is a text of the page with tiny parts in place of those of the hub; the working folder is new."""
    monkeypatch.chdir(tmp_path)
    folders = {}
    for hub, name in HUB.items():
        kept = (
            tiny(name)
            if name == 'qwen3'
            else once(shared_cache, f'part-{name}', lambda to, n=name: build_encoder(n, to))
        )
        folders[hub] = str(kept)
    return lambda text: re.sub('|'.join(map(re.escape, HUB)), lambda found: folders[found[0]], text)


def test_the_page_names_what_can_be_made_without_a_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    named = re.findall(r'`python -m align_anything.testing.tiny (.*?)`', PAGE)
    assert len(named) == 2 and not any(make_tiny(words.split()) for words in named)
    encoders = re.findall(r'`(\w+)`', PAGE.split('| kind | encoders')[1].split('\n\n')[0])
    assert {*encoders} - {'model_type', 'frames'} <= {*ENCODERS}


def call(words: list[str]) -> int:
    with pytest.raises(SystemExit) as ended:
        main(words)
    return ended.value.code or 0


def test_the_ten_lines_compose_and_train_in_two_stages(local: Callable[[str], str], tmp_path: Path) -> None:
    block = local(re.search(r'```bash\n(align-anything compose.*?)```', PAGE, re.DOTALL)[1])
    commands = [shlex.split(line) for line in block.replace('\\\n', ' ').splitlines()]
    assert len(block.splitlines()) <= 10 and len(commands) == 3
    assert call(commands[0][1:]) == 0
    config = json.loads(Path('output/composed_model/config.json').read_text())
    assert config['model_type'] == 'composed' and set(config['media']) == {'image', 'video', 'audio'}
    Path('tone.wav').write_bytes(sound(tone(0.4)))
    Image.new('RGB', (40, 30), 'red').save('red.png')
    turns = [{'role': 'user', 'content': '<audio><image>What?'}, {'role': 'assistant', 'content': 'A tone, and red.'}]
    row = json.dumps({'messages': turns, 'audios': ['tone.wav'], 'images': ['red.png']})
    for name in ('captions', 'dialogues'):
        Path(f'{name}.jsonl').write_text(f'{row}\n' * 4)
    for launcher, flag, module, *settings in commands[1:]:
        assert (launcher, flag, module) == ('deepspeed', '--module', 'align_anything.trainers.any_to_text.sft')
        (ended,) = run([*settings, *SMALL.split()], pair=PAIRS['any_to_text'])
        assert ended.code == 0, ended.output
    assert (tmp_path / 'output' / 'second' / 'slice_end' / 'model.safetensors').is_file()
    code = re.search(r'```python\n(.*?)```', PAGE, re.DOTALL)[1]
    exec(compile(code, 'composed.md', 'exec'), {'picture': Image.open('red.png')})


def test_a_file_of_settings_and_options_over_it(
    local: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    block = yaml.safe_load(local(re.search(r'```yaml\n(.*?)```', PAGE, re.DOTALL)[1]))
    Path('parts.yaml').write_text(yaml.safe_dump(block['model_cfgs']['compose']))
    words = 'compose --config parts.yaml --image.select pooled --audio.num_tokens=16 --audio.num_heads 2 --out made'
    assert call([*words.split(), '--with_code']) == 0
    media = json.loads(Path('made/config.json').read_text())['media']
    assert media['image']['select'] == 'pooled' and media['audio']['projector']['num_tokens'] == 16
    assert media['audio']['projector']['type'] == 'transformer' and Path('made/modeling_composed.py').is_file()
    capsys.readouterr()
    assert call('compose --config parts.yaml --out made'.split()) == 2
    assert 'not an empty folder' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('dotted', 'words'),
    [
        (['--image.slect', 'cls'], "Did you mean 'select'?"),
        (['--imag.select', 'cls'], "Did you mean 'image'?"),
        (['stray'], 'stray is no setting'),
        (['--nothing', '3'], '--nothing is no setting'),
        (['--image.select'], 'no setting'),
    ],
)
def test_wrong_words_are_told(dotted: list[str], words: str) -> None:
    with pytest.raises(SettingsError) as error:
        compose_settings({'language_model': 'a', 'image': ['b'], 'audio': None}, dotted, None)
    assert words in str(error.value)


def test_options_and_files_say_the_same(tmp_path: Path) -> None:
    file = tmp_path / 'parts.yaml'
    file.write_text('{language_model: a, image: {encoder: b, select: cls}}')
    found = compose_settings({'image': ['c'], 'projector': 'linear'}, ['--audio.encoder', 'd'], file)
    assert (found.image.encoder, found.image.select, found.audio.encoder) == ('c', 'cls', 'd')
    two = compose_settings({'language_model': 'a', 'image': ['b', 'c']}, [], None)
    assert two.image.encoders == ['b', 'c']
    file.write_text('[1, 2]')
    with pytest.raises(SettingsError, match='must hold a mapping'):
        compose_settings({}, [], file)


def test_the_page_names_every_setting_and_encoder() -> None:
    for name in [*MediaCfgs.model_fields, *READ_BY]:
        assert f'`{name}`' in PAGE or f'{name}:' in PAGE or f'.{name} ' in PAGE or name in ('encoder', 'projector'), (
            name
        )
    published = {name for kind in KNOWN.values() for name in kind if not name.endswith('_model')} | {
        name for name, (inner, _) in WITHIN.items() if inner
    }
    for name in published:
        assert f'`{name}`' in PAGE, name
    assert f'{PROJECTION_RATE:g}' == '0.001' and '1e-3' in PAGE and f'{JOINT_RATE:g}' == '2e-05' and '2e-5' in PAGE
