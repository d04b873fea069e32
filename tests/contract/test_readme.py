"""What README.md says is so: its tables, its links, its make targets, and its commands, run on tiny models."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from align_anything.cli.families import families
from align_anything.cli.leaves import runs
from align_anything.configs.schema import RunCfgs
from align_anything.datasets.template_registry import get_template
from align_anything.trainers.pairs import PAIRS
from tests.datasets.clips import clip, sound, tone
from tests.harness.pairwise import in_tiers
from tests.trainers.runs import IMAGE, TEXT, run

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / 'README.md').read_text()
LMMS = (ROOT / 'docs' / 'lmms_finetune.md').read_text()
AUDIO, VIDEO = PAIRS['text_audio_to_text'], PAIRS['text_video_to_text']
COMMANDS = [
    shlex.split(block.replace('\\\n', ' '), comments=True)
    for block in re.findall(r'```bash\n(deepspeed .*?)```', README, re.DOTALL)
]
SMALL = '--max_steps 2 --gradient_accumulation_steps 1 --num_workers 0 --log_type none --save_total_limit 0'


def rows(heading: str) -> list[list[str]]:
    """The cells of the table under `heading`, without its head."""
    section = README.split(f'# {heading}\n')[1].split('\n#')[0]
    lines = [line for line in section.splitlines() if line.startswith('|')][2:]
    return [[cell.strip(' `') for cell in line.strip('|').split('|')] for line in lines]


def test_pairs_and_algorithms() -> None:
    head = re.search(r'\| modality pair \|(.*)\|\n', README).group(1)
    names = [name.strip().lower().replace(' ', '_').replace('+', '_plus') for name in head.split('|')]
    said = {
        pair: [name for name, mark in zip(names, marks, strict=True) if mark] for pair, *marks in rows('What works')
    }
    assert {pair: sorted(found) for pair, found in said.items()} == runs()


def test_families() -> None:
    known = {family.model_type: family for family in families()}
    for name, reads, writes, example in rows('Families'):
        family = known[name]
        assert (reads, writes) == (', '.join(sorted(family.reads)), ', '.join(sorted(family.writes))), name
        assert example in (*family.checkpoints, *family.ids.values()), name


def test_links_and_targets() -> None:
    for target in re.findall(r'\]\(([^)#]+)\)', README):
        assert (ROOT / target).exists(), target
    makefile = (ROOT / 'Makefile').read_text()
    for target in re.findall(r'make (\w+)', re.sub('makes', '', README)):
        assert re.search(rf'^{target}:', makefile, re.MULTILINE), target
    for script in re.findall(r'bash (scripts/\S+)', README):
        assert (ROOT / script).exists(), script


OWN_DATA = [(0, TEXT, 'qwen2'), (1, IMAGE, 'qwen2_5_vl'), (2, AUDIO, 'qwen2_audio'), (3, VIDEO, 'qwen2_5_vl')]


@pytest.mark.parametrize(
    ('number', 'pair', 'family'),
    in_tiers(OWN_DATA, OWN_DATA[:2]),
)
def test_a_run_on_ones_own_data(
    number: int, pair: object, family: str, tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launcher, module, name, *settings = COMMANDS[number]
    assert (launcher, module, name) == ('deepspeed', '--module', f'align_anything.trainers.{pair.name}.sft')
    monkeypatch.chdir(tmp_path)
    talk, heard, seen = re.findall(r'```json\n(.*)\n```', README)
    for name, row in (('conversations', talk), ('sounds', heard), ('clips', seen)):
        Path(f'{name}.jsonl').write_text(f'{row}\n' * 4)
    for name, content in ((json.loads(heard)['sound'], sound(tone(1.0))), (json.loads(seen)['clip'], clip([9] * 8))):
        Path(name).parent.mkdir()
        Path(name).write_bytes(content)
    Image.new('RGB', (40, 30), 'red').save('red.png')
    picture = {'question': 'What is it?', 'answer': 'A red square.', 'picture': 'red.png'}
    Path('pictures.jsonl').write_text(f'{json.dumps(picture)}\n' * 4)
    place = settings.index('--model_name_or_path') + 1
    settings[place] = str(tiny(family))
    ended = run([*settings, *SMALL.split()], pair=pair)
    assert ended[0].code == 0, ended[0].output
    saved = Path(settings[settings.index('--output_dir') + 1]) / 'slice_end'
    assert (saved / ('adapter_model.safetensors' if '--use_lora' in settings else 'model.safetensors')).exists()


def test_the_settings_named_for_users_of_lmms_finetune() -> None:
    keys = {key for group in RunCfgs.model_fields.values() for key in group.annotation.model_fields}
    known = keys | get_template('LMMS').option_defaults().keys()
    cells = [line.strip('|').split('|')[1] for line in LMMS.splitlines() if line.startswith('| ')][1:]
    spans = [span for cell in cells for span in re.findall('`([^`]+)`', cell)]
    named = {key for span in spans for key in re.findall(r'([a-z]\w+)(?::|$)', span.split(': ')[0] + ':')}
    named |= {key for span in spans for key in re.findall(r'([a-z]\w+):', span)}
    assert {'model_name_or_path', 'user_key', 'vision_lora'} <= named
    assert named <= known
    for target in re.findall(r'\]\(([^)#]+)', LMMS):
        assert (ROOT / 'docs' / target).exists(), target
