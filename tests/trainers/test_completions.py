"""Responses with their prompts, media and rewards: in the file, on the page, on the console and in every tracker."""

from __future__ import annotations

import importlib.util
import io
import re
import sys
import types
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from align_anything.core.types import Audio, Conversation, Embedding, Example, Piece, Response, Video
from align_anything.reporting import step_page
from align_anything.reporting.completions import RESPONSES, Completions, shortened
from align_anything.reporting.console import TrainingConsole
from align_anything.reporting.html import STRIP_HEIGHT, strip_of
from align_anything.reporting.metrics import MetricsWriter
from align_anything.rollouts.experience import Rollout, complete
from tests.trainers.runs import lines
from tests.trainers.test_metrics import fake_wandb

NASTY = '<script>alert(1)</script> | **bold** `code` \x1b[2J & a\nsecond line'
WORDS = ('yes', NASTY, 'no')


def decode(piece: Piece) -> list[dict[str, Any]]:
    return [{'type': 'text', 'text': ' '.join(WORDS[number] for number in piece.ids.tolist())}]


SPEC: Any = types.SimpleNamespace(decode=decode, prefill=lambda asked: asked[-1].get('begun', ''))
PICTURE = Image.new('RGB', (200, 100), (250, 0, 0))
CLIP = Video(np.full((3, 50, 50, 3), 80, np.uint8), np.arange(3.0), 1.0)


def conversation(*media: tuple[str, Any], text: str = 'Is it <b>so</b>?') -> Conversation:
    parts = [{'type': kind, kind: item} for kind, item in media]
    return [{'role': 'user', 'content': [*parts, {'type': 'text', 'text': text}]}]


def response(ids: torch.Tensor, finished: bool) -> Response:
    per_unit = {'rollout': torch.zeros(len(ids))}
    made = Response(ids, torch.ones(len(ids)), per_unit=per_unit, finished=finished)
    made.parts = decode(made)
    return made


def rollout_of(*conversations: Conversation, responses: int = 2) -> Rollout:
    """To each prompt `yes`, then the nasty text; worth 1, 2, … and, but for the first prompt, all ended."""
    made = [[response(torch.tensor([n % 2]), finished=True) for n in range(responses)] for _ in conversations]
    made[0][-1] = response(torch.tensor([1, 2]), finished=False)
    examples = [
        Example(Piece(torch.tensor([2]), torch.zeros(1)), [], source=f'rows.jsonl:{n}', conversation=conversation)
        for n, conversation in enumerate(conversations, 1)
    ]
    numbers = torch.arange(1.0, 1 + responses * len(conversations))
    return Rollout(complete(examples, made), {'right': numbers, 'brief': -numbers}, numbers / 2)


def shown(folder: Path, *told: tuple[int, Rollout], log_type: str = 'none', resume_step: int | None = None) -> str:
    """What the console prints of rollouts that end at these steps."""
    screen = io.StringIO()
    console = TrainingConsole(total_steps=9, console=Console(file=screen, width=200, color_system=None))
    writer = MetricsWriter(folder, log_type, resume_step=resume_step)
    completions = Completions(folder, SPEC, console, writer, resume_step)
    for step, rollout in told:
        completions.write(step, rollout)
    completions.close()
    writer.close()
    console.close()
    return screen.getvalue()


class Page(HTMLParser):
    """The tags of a file, and the text of its cells."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.cells: list[str] = []
        self.texts: list[str] = []
        self.in_cell = False
        self.text = file.read_text()
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in ('td', 'th'):
            self.cells.append('')
            self.in_cell = True

    def handle_endtag(self, tag: str) -> None:
        self.in_cell = self.in_cell and tag not in ('td', 'th')

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        if self.in_cell:
            self.cells[-1] += data


def test_the_file_has_all_and_the_page_the_first_of_each_rollout(tmp_path: Path) -> None:
    first, second = rollout_of(conversation()), rollout_of(*[conversation()] * 12, responses=RESPONSES + 2)
    shown(tmp_path, (2, first), (4, second))
    records = lines(tmp_path / 'completions.jsonl')
    assert [record['step'] for record in records] == [2] * 2 + [4] * 12 * (RESPONSES + 2)
    assert records[1] == {
        'step': 2,
        'source': 'rows.jsonl:1',
        'prompt': 'no',
        'response': f'{NASTY} no',
        'finished': False,
        'reward': 1.0,
        'rewards': {'right': 2.0, 'brief': -2.0},
    }
    page = Page(tmp_path / 'completions.html')
    assert 'after step 2: 1 prompts, 2 responses, reward 0.75 (0.5 to 1)' in page.text
    assert 'after step 4: 12 prompts, 120 responses, reward 30.25 (0.5 to 60)' in page.text
    rows = [tag for tag, _ in page.tags].count('tr')
    assert rows == (1 + 2) + 8 * (1 + RESPONSES), 'it does not grow with the size of a rollout'


def test_the_page_shows_texts_as_they_are_and_media_small(tmp_path: Path) -> None:
    sound = Audio(np.zeros(1600, np.float32), 16000)
    shown(tmp_path, (2, rollout_of(conversation(('image', PICTURE), ('video', CLIP)), conversation(('audio', sound)))))
    page = Page(tmp_path / 'completions.html')
    assert page.cells[:10] == [
        *('response', 'reward', 'reward/right', 'reward/brief', 'tokens'),
        *('yes', '0.5', '1', '-1', '1'),
    ]
    assert page.cells[10:15] == [f'{NASTY} no', '1', '2', '-2', '2, clipped']
    tags = [tag for tag, _ in page.tags]
    assert tags.count('img') == 1 + 3 and tags.count('audio') == 1 and 'script' not in tags and 'b' not in tags
    assert not any(name.startswith('on') for _, attributes in page.tags for name in attributes)
    sources = [attributes['src'] for _, attributes in page.tags if 'src' in attributes]
    assert len(sources) == 5 and all(source.startswith('data:') for source in sources)


def test_every_value_on_the_page_is_escaped(tmp_path: Path) -> None:
    evil = '"><img src=x onerror=alert(1)></details><!-- ]]> {{ 7 * 7 }} \ud800 \r end'
    rollout = rollout_of(conversation(text=evil))
    (example,) = rollout.examples
    example.source, example.meta, example.conversation[0]['role'] = evil, {'ground_truth': evil}, evil
    for made in example.responses:
        made.parts = [{'type': 'text', 'text': evil}, {'type': evil, evil: None}]
    rollout.rewards = {evil: rollout.scores, 'other': rollout.scores}
    shown(tmp_path, (2, rollout))
    page = Page(tmp_path / 'completions.html')
    assert not {'img', 'script'} & {tag for tag, _ in page.tags} and '49' not in page.text.split('<body>')[1]
    assert [tag for tag, _ in page.tags].count('details') == 1 and page.text.count('</details>') == 1
    assert page.cells.count(f'reward/{evil}'.replace('\ud800', '?')) == 1
    assert page.texts.count(evil.replace('\ud800', '?')) >= 3, 'source, golden answer and question as they are'


def test_the_page_has_golden_answers_colours_and_orders(tmp_path: Path) -> None:
    rollout = rollout_of(*[conversation()] * 2, responses=3)
    for example, golden in zip(rollout.examples, ('<i>42</i>', None), strict=True):
        example.meta = {} if golden is None else {'ground_truth': golden}
    # The first prompt has the higher mean and the smaller spread; one response was not scored.
    rollout.scores = torch.tensor([5.0, 7.0, 6.0, 4.0, -2.0, float('nan')])
    rollout.rewards = {'right': rollout.scores, 'same': torch.ones(6)}
    shown(tmp_path, (2, rollout))
    assert lines(tmp_path / 'completions.jsonl')[-1]['rewards'] == {'right': None, 'same': 1.0}
    page = Page(tmp_path / 'completions.html')
    assert page.text.count('golden answer') == 1 and '<i>42</i>' in page.texts
    samples = [attributes['style'] for _, attributes in page.tags if attributes.get('class') == 'sample']
    assert samples == [
        '--rank:1;--spread-rank:0;--columns:4',
        '--rank:0;--spread-rank:1;--columns:4',
    ]
    rows = [attributes['style'] for tag, attributes in page.tags if tag == 'tr' and 'style' in attributes]
    # 7, 6, 5 and 4, -2, not scored.
    assert [row.split(';')[0] for row in rows] == [f'--rank:{rank}' for rank in (2, 0, 1, 0, 1, 2)]
    assert rows[2] == '--rank:1;--tokens:2', 'the last response to the first prompt has two tokens'
    shares = [attributes.get('style') for tag, attributes in page.tags if 'value' in (attributes.get('class') or '')]
    # From -2 to 7: 5 is 7/9 of the way; what is the same everywhere has no colour.
    assert shares[:6] == ['--share:0.778', '--share:0.778', None, '--share:1.0', '--share:1.0', None]
    assert shares[-3:] == [None, None, None] and page.cells.count('–') == 2


def test_the_page_shows_what_a_prompt_begins_of_the_answer(tmp_path: Path) -> None:
    thought, row = conversation(), conversation(text='Continue.')
    thought[-1]['begun'] = '<think>\n'
    row.append({'role': 'assistant', 'content': [{'type': 'text', 'text': 'It is'}], 'prefix': True, 'begun': 'It is'})
    shown(tmp_path, (2, rollout_of(thought, row)))
    page = Page(tmp_path / 'completions.html')
    assert [cell for cell in page.cells if cell.endswith('yes')] == ['<think>\nyes', 'It isyes']
    assert not any(attributes.get('class') == 'turn assistant' for _, attributes in page.tags), 'it stands there once'


def test_a_page_that_gets_too_large_goes_on_in_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_page, 'PAGE_BYTES', 1)
    told = [(step, rollout_of(conversation(text=f'step {step}'))) for step in range(1, 13)]
    shown(tmp_path, *told)
    pages = [tmp_path / f'completions{number}.html' for number in (*(f'.{n}' for n in range(1, 12)), '')]
    assert all(f'after step {step}:' in page.read_text() for step, page in enumerate(pages, 1))
    assert 'completions.2.html, completions.10.html' not in pages[-1].read_text()
    assert 'completions.9.html, completions.10.html, completions.11.html' in pages[-1].read_text()
    shown(tmp_path, resume_step=3)
    left = [step for step in range(1, 13) for page in pages if f'after step {step}:' in page.read_text()]
    assert left == [1, 2, 3]
    shown(tmp_path)
    assert not list(tmp_path.glob('completions*.html')), 'a new run begins with none'


def test_a_section_that_a_kill_tore_is_dropped(tmp_path: Path) -> None:
    shown(tmp_path, (2, rollout_of(conversation())))
    page = tmp_path / 'completions.html'
    whole = page.read_text()
    page.write_text(whole + '<details class="rollout" style="--step:3" open><summary>aft')
    shown(tmp_path, resume_step=4)
    assert page.read_text() == whole


def test_the_console_shows_a_few_on_lines_of_their_own(tmp_path: Path) -> None:
    text = shown(tmp_path, (2, rollout_of(*[conversation(('image', PICTURE), text='word ' * 100)] * 5, responses=3)))
    assert 'Responses after step 2' in text and 'reward/right' in text
    # 15 responses: every fourth of them.
    assert [f' -{number} ' in text for number in (1, 2, 5, 9, 13, 14)] == [True, False, True, True, True, False]
    assert '<image>word' in text and '…' in text and '<script>alert(1)</script>' in text
    assert '\x1b' not in text, 'a response does not clear the screen'


def test_nothing_is_repeated_or_lost_when_a_run_goes_on(tmp_path: Path) -> None:
    whole, broken = tmp_path / 'whole', tmp_path / 'broken'
    one, two, three, other = (rollout_of(conversation(text=text)) for text in ('one', 'two', 'three', 'not saved'))
    shown(whole, (2, one), (4, two), (6, three))
    shown(broken, (2, one), (4, two), (6, other))
    shown(broken, (6, three), resume_step=4)
    for name in ('completions.jsonl', 'completions.html'):
        assert (broken / name).read_text() == (whole / name).read_text()
    shown(broken, (2, other))
    assert (broken / 'completions.html.old').read_text() == (whole / 'completions.html').read_text()


def test_a_rank_without_prompts_shows_nothing(tmp_path: Path) -> None:
    assert shown(tmp_path, (2, Rollout([], {'right': torch.zeros(0)}, torch.zeros(0)))) == ''
    assert not (tmp_path / 'completions.html').exists() and lines(tmp_path / 'completions.jsonl') == []


def test_tensorboard_has_a_table_and_images_of_every_step(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
    from tensorboard.plugin_util import markdown_to_safe_html
    from tensorboard.util.tensor_util import make_ndarray

    pictured = rollout_of(conversation(('image', PICTURE)), conversation())
    shown(tmp_path, (2, pictured), (4, pictured), log_type='tensorboard')
    shown(tmp_path, (4, rollout_of(conversation())), log_type='tensorboard', resume_step=2)
    events = EventAccumulator(str(tmp_path / 'tensorboard'))
    events.Reload()
    first, second = events.Tensors('completions/text_summary')
    assert (first.step, second.step) == (2, 4), 'what was not saved is gone'
    table = tmp_path / 'table.html'
    table.write_text(markdown_to_safe_html(make_ndarray(first.tensor_proto).item().decode()))
    page = Page(table)
    assert page.cells[:5] == ['prompt', 'response', 'reward', 'reward/right', 'reward/brief']
    assert page.cells[5:10] == ['<image>Is it <b>so</b>?', 'yes', '0.5', '1', '-1']
    assert page.cells[11].startswith('<script>alert(1)</script> | **bold** `code`') and len(page.cells) == 5 * 5
    (picture,) = events.Tensors('completions/prompt 1')
    assert picture.step == 2
    with Image.open(io.BytesIO(make_ndarray(picture.tensor_proto)[2])) as image:
        assert image.size == (2 * STRIP_HEIGHT, STRIP_HEIGHT) and image.getpixel((50, 50)) == (250, 0, 0)


def test_wandb_has_the_media_in_a_column(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = fake_wandb()
    fake.Image = lambda picture: ('image', picture.size)
    fake.Table = lambda columns, data: types.SimpleNamespace(columns=columns, data=data)
    monkeypatch.setitem(sys.modules, 'wandb', fake)
    monkeypatch.setattr(importlib.util, 'find_spec', lambda _: object())
    shown(tmp_path, (2, rollout_of(conversation(('image', PICTURE)), conversation(text='x' * 9000))), log_type='wandb')
    (logged,) = fake.logged
    table = logged['completions']
    assert logged['step'] == 2
    assert table.columns == ['prompt', 'media', 'response', 'reward', 'reward/right', 'reward/brief']
    small = ('image', (2 * STRIP_HEIGHT, STRIP_HEIGHT))
    assert table.data[:2] == [
        ['<image>Is it <b>so</b>?', small, 'yes', 0.5, 1.0, -1.0],
        ['<image>Is it <b>so</b>?', small, f'{NASTY} no', 1.0, 2.0, -2.0],
    ]
    prompt, picture, *_ = table.data[2]
    assert picture is None and len(prompt) < 2100 and ' … ' in prompt


def test_clearml_has_a_table_and_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reported: list[dict[str, Any]] = []
    logger = types.SimpleNamespace(
        report_table=lambda **values: reported.append(values), report_image=lambda **values: reported.append(values)
    )
    task = types.SimpleNamespace(
        id='task-1',
        set_initial_iteration=lambda iteration: None,
        connect_configuration=lambda settings, name: None,
        get_logger=lambda: logger,
        close=lambda: None,
    )
    monkeypatch.setitem(
        sys.modules, 'clearml', types.SimpleNamespace(Task=types.SimpleNamespace(init=lambda **_: task))
    )
    monkeypatch.setattr(importlib.util, 'find_spec', lambda _: object())
    shown(tmp_path, (2, rollout_of(conversation(), conversation(('video', CLIP)))), log_type='clearml')
    table, picture = reported
    assert (table['iteration'], len(table['table_plot'])) == (2, 1 + 4)
    assert table['table_plot'][1] == ['Is it <b>so</b>?', 'yes', '0.5', '1.0', '-1.0']
    assert (picture['series'], picture['iteration']) == ('prompt 2', 2)
    assert picture['image'].size == (3 * 50, STRIP_HEIGHT)


def test_a_strip_has_all_there_is_to_see_and_no_more_than_eight() -> None:
    assert strip_of(conversation()) is None
    sound = Audio(np.zeros(1600, np.float32), 16000)
    assert strip_of(conversation(('audio', sound))) is None
    assert strip_of(conversation(('image', Embedding(sound.samples)))) is None
    strip = strip_of(conversation(('image', PICTURE), ('video', CLIP)))
    assert strip.size == (192 + 150, STRIP_HEIGHT)
    assert strip.getpixel((10, 50)) == (250, 0, 0) and strip.getpixel((200, 10)) == (80, 80, 80)
    assert strip.getpixel((200, 90)) == (0, 0, 0), 'nothing below the smaller frames'
    assert strip_of(conversation(*[('image', PICTURE)] * 20)).width == 8 * 192


def test_texts_lose_their_middle() -> None:
    assert shortened('abcdef', 6) == 'abcdef'
    assert shortened('abcdefgh', 4) == 'ab … gh'


def test_a_response_that_nobody_judged_has_no_score_anywhere(tmp_path: Path) -> None:
    """Its score is 0, which is no reward: with rewards below 0 it is not the best."""
    rollout = rollout_of(conversation(), responses=3)
    rollout.rewards = {'right': torch.tensor([-4.0, float('nan'), -2.0])}
    rollout.scores = torch.tensor([-4.0, 0.0, -2.0])
    shown(tmp_path, (2, rollout))
    page = Page(tmp_path / 'completions.html')
    assert '1 prompts, 3 responses, reward -3 (-4 to -2)' in page.text
    ranks = [re.search(r'--rank:(\d)', attributes['style'])[1] for tag, attributes in page.tags
             if tag == 'tr' and 'style' in attributes]  # fmt: skip
    assert ranks == ['1', '2', '0']


def test_the_beginning_of_an_answer_is_shown_with_it_and_not_as_the_question(tmp_path: Path) -> None:
    begun = {'role': 'assistant', 'content': [{'type': 'text', 'text': 'I say '}], 'prefix': True, 'begun': 'I say '}
    output = shown(tmp_path, (2, rollout_of([*conversation(text='Is it so?'), begun])))
    assert 'Is it so?' in output and 'I say yes' in output
    assert [cell for cell in Page(tmp_path / 'completions.html').cells if cell.startswith('I say ')][0] == 'I say yes'
