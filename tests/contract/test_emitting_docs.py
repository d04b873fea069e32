"""The commands and the code of docs/emitting.md: what they make without a download draws what is asked for."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from align_anything.cli.leaves import find_run
from align_anything.cli.main import main
from align_anything.models.media_tokens import add_media_tokens
from align_anything.testing.codecs import make_patch_codebook, make_spectrum_codebook
from align_anything.testing.emitting import melody
from align_anything.testing.sampling import sample_media
from align_anything.testing.tiny.__main__ import main as make_tiny
from align_anything.testing.tiny.judges import build_judge
from tests.projects.any2any import call
from tests.trainers.runs import lines, run

ROOT = Path(__file__).resolve().parents[2]
PAGE, README = (ROOT / 'docs' / 'emitting.md').read_text(), (ROOT / 'README.md').read_text()
Tiny = Callable[[str], Path]


def section(heading: str) -> str:
    return PAGE.split(f'\n## {heading}\n')[1].split('\n## ')[0]


def blocks(heading: str, language: str) -> list[str]:
    return re.findall(rf'```{language}\n(.*?)```', section(heading), re.DOTALL)


def commands(block: str) -> list[list[str]]:
    return [shlex.split(line) for line in block.replace('\\\n', ' ').splitlines()]


def train(words: list[str], *more: str) -> None:
    """Does what a launcher does with a line of the page."""
    launcher, flag, module, *argv = words
    assert (launcher, flag) == ('deepspeed', '--module')
    pair, kind = find_run(*module.split('.')[-2:])
    (ended,) = run([*argv, *more, '--num_workers', '0', '--log_type', 'none'], pair=pair, algorithm=kind)
    assert ended.code == 0, ended.output


def align_anything(words: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert not ended.value.code


def test_the_ten_lines_add_tokens_and_train(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = section('In ten lines')
    Path('pictures').mkdir()
    pictures = [Image.new('RGB', (64, 64), colour) for colour in ('red', 'green', 'blue', 'teal')]
    pictures[0].save('pictures/fox.png')
    (row,) = re.findall(r'`(\{"file_name".*?\})`', page)
    Path('pictures/metadata.jsonl').write_text(f'{row}\n' * 4)
    Path('prompts.jsonl').write_text('{"prompt": "A fox."}\n' * 4)
    make_patch_codebook('path/to/codec', pictures, size=(64, 64), patch=16, entries=4)
    (block,) = blocks('In ten lines', 'bash')
    names = {'Qwen/Qwen3-0.6B': tiny('qwen3'), 'openai/clip-vit-base-patch32': build_judge('clip', 'clip')}
    for name, folder in names.items():
        block = block.replace(name, str(folder))
    add, supervised, rewarded = commands(block)
    (first,) = re.findall(r'```bash\n(align-anything add-media-tokens.*?)```', README, re.DOTALL)
    first = first.replace('Qwen/Qwen3-0.6B', str(names['Qwen/Qwen3-0.6B']))
    assert commands(first) == [add, supervised]
    align_anything(add[1:])
    for words in (supervised, rewarded):
        train(words, '--max_steps', '1', '--gradient_accumulation_steps', '1', '--bf16', 'False')
    assert Path('output/drawing_grpo/slice_end/codecs/image/config.json').is_file()


def test_without_a_download_it_learns_to_draw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = blocks('Without a download', 'python')
    exec(compile(code, 'emitting.md', 'exec'), {})
    (block,) = blocks('Without a download', 'bash')
    make, add, supervised, preferred, rewarded = commands(block)
    assert make[:3] == ['python', '-m', 'align_anything.testing.tiny'] and make_tiny(make[3:]) == 0
    align_anything(add[1:])
    train(supervised)
    for words in (preferred, rewarded):
        train(words, '--max_steps', '1')
    assert '<img alt="" src="data:image/' in Path('output/squares_grpo/completions.html').read_text()
    for other in re.findall(r'`python -m align_anything.testing.tiny (.*?)`', section('Without a download')):
        assert make_tiny(other.split()) == 0

    (drawn,) = blocks('Pictures and sounds of a checkpoint', 'python')
    exec(compile(drawn, 'emitting.md', 'exec'), {})
    (asked,) = re.findall(r"'(\w+), please'", drawn)
    # It is the square that was learned, to the pixel.
    assert np.array_equal(Image.open(f'{asked}.png'), Image.open(f'squares/{asked}.png'))

    sounds = [melody([note]) for note in range(4)]
    codec = make_spectrum_codebook(tmp_path / 'sounds', sounds, entries=4)
    add_media_tokens('tiny_qwen2', {'audio': codec}, 'singing')
    (sound,) = sample_media('singing', 'audio', ['A tone.'], longest=100)
    (line,) = re.findall(r'`(soundfile.write\(.*?\))`', section('Pictures and sounds of a checkpoint'))
    exec(line, {'soundfile': soundfile, 'sound': sound})
    assert soundfile.info('tone.wav').samplerate == sounds[0].rate

    (script,) = blocks('Pictures and sounds of a checkpoint', 'bash')
    ((_, file, *argv),) = commands(script)
    ended = call(str(ROOT / file), *argv)
    assert ended.code == 0, ended.output
    assert [answer['response'] for answer in lines(tmp_path / 'output/generated/completions.jsonl')] == ['<image>'] * 4
