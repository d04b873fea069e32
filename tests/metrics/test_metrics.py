"""Each metric on answers whose worth is known."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from align_anything.core.errors import DataError, SampleError, SettingsError
from align_anything.core.types import Audio, Video
from align_anything.metrics.base import Metric, make_metrics, metric_names
from align_anything.metrics.functions.choice import chosen
from align_anything.metrics.functions.composition import count_in, name_of, shows
from align_anything.metrics.functions.error_rate import fewest_errors, words_of
from align_anything.metrics.functions.exact_match import matches
from align_anything.metrics.functions.vqa import normalised, soft_accuracy
from align_anything.metrics.regions import regions_of
from align_anything.metrics.samples import read_samples
from align_anything.testing.shapes import COLOURS, SHAPES, draw_shape
from tests.metrics.common import folder_of, samples_of


def metric(name: str, **options: Any) -> Metric:
    (made,) = make_metrics([name], {name: options})
    return made


def values(folder: Path, name: str, *rows: dict[str, Any], **options: Any) -> list[float | None]:
    return list(metric(name, **options).measure(samples_of(folder, *rows)).values)


@pytest.mark.parametrize(
    ('answer', 'references', 'worth'),
    [
        ('The Eiffel Tower.', ['eiffel tower'], 1),
        ('eiffel', ['eiffel tower'], 0),
        ('Paris', ['Lyon', 'PARIS!'], 1),
        ('thesis', ['sis'], 0),
        ('?', ['!'], 0),
        ('+', ['+'], 1),
        ('', ['the'], 0),
        ('巴黎。', ['巴黎'], 1),
    ],
)
def test_exact_match(answer: str, references: list[str], worth: float) -> None:
    assert matches(answer, references) == worth


def test_exact_match_of_what_was_answered(tmp_path: Path) -> None:
    thought = {'says': ['<think>Lyon?</think><answer>Paris</answer>', '<think>Paris'], 'answer': 'paris'}
    assert values(tmp_path, 'exact_match', thought, {'says': ['42'], 'answer': 42}) == [1.0, 0.0, 1.0]
    own = {'says': ['a Cat'], 'meta': {'golden': ['dog', 'cat']}}
    assert values(tmp_path, 'exact_match', own, column='golden') == [1.0]
    assert values(tmp_path, 'exact_match', own, column='golden', normalise=False) == [0.0]
    with pytest.raises(DataError, match=re.escape('rows.jsonl:1 has no reference answer')):
        values(tmp_path, 'exact_match', own)


CITIES = ['New York', 'York', 'Paris', 'the sea']


@pytest.mark.parametrize(
    ('answer', 'letter'),
    [
        ('C', 'C'), ('(c)', 'C'), ('The answer is B.', 'B'), ('\\boxed{D}', 'D'), ('paris', 'C'), ('Sea.', 'D'),
        ('It is New York, I think', 'A'), ('York', 'B'), ('Paris or the sea', None), ('B or C', None), ('Rome', None),
    ],
)  # fmt: skip
def test_choice_by_letter_or_text(answer: str, letter: str | None) -> None:
    assert chosen(answer, CITIES, 'ABCD') == letter


def test_golden_choices(tmp_path: Path) -> None:
    def row(says: str, answer: Any, **meta: Any) -> dict[str, Any]:
        return {'says': [says], 'answer': answer, 'meta': {'choices': CITIES, **meta}}

    found = metric('choice').measure(samples_of(tmp_path, row('C', 'Paris'), row('York', 'B'), row('so so', 'A')))
    assert found.values == [1.0, 1.0, 0.0] and found.details == {'undecided': 1}
    assert values(tmp_path, 'choice', row('A', 'x', right=0), row('A', 'x', right=3), column='right') == [1.0, 0.0]
    assert values(tmp_path, 'choice', {'says': ['b'], 'answer': 'B'}) == [1.0]
    with pytest.raises(DataError, match="'Rome' is none of the choices ABCD"):
        values(tmp_path, 'choice', row('A', 'Rome'))


@pytest.mark.parametrize(
    ('said', 'plain'),
    [
        ('The two dogs.', '2 dogs'), ("it's a dont", "it's don't"), ('dont', "don't"), ('couldntve', "couldn't've"),
        ("couldn'tve", "couldn't've"), ('red/blue', 'red blue'), ('red / blue', 'red blue'), ('1,000', '1000'),
        ('3.5', '3.5'), ('U.S.', 'us'), ('None', '0'), ('well-known', 'well known'), ('\tYes,\n sir!', 'yes sir'),
    ],
)  # fmt: skip
def test_answers_are_normalised_as_the_benchmark_does(said: str, plain: str) -> None:
    assert normalised(said) == plain


@pytest.mark.parametrize(
    ('same', 'worth'),
    # Of ten, each left out in turn: those who said it leave one fewer.
    [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)],
)
def test_soft_accuracy_leaves_each_person_out_once(same: int, worth: float) -> None:
    assert soft_accuracy('A dog', ['dog'] * same + ['cat'] * (10 - same)) == pytest.approx(worth, abs=1e-12)


def test_vqa_reads_the_answers_of_people(tmp_path: Path) -> None:
    people = [{'answer': 'two', 'answer_id': n} for n in range(3)] + [{'answer': '3', 'answer_id': 9}] * 7
    assert values(tmp_path, 'vqa', {'says': ['2'], 'meta': {'answers': people}}) == [pytest.approx(0.9)]
    with pytest.raises(DataError, match='use exact_match'):
        values(tmp_path, 'vqa', {'says': ['2'], 'meta': {'answers': ['2']}})


def test_error_rates_are_of_all_words(tmp_path: Path) -> None:
    assert fewest_errors(words_of('a cat sat'), [words_of('The cat sat down.'), words_of('A cat sat on')]) == (1, 4)
    rows = ({'says': ['the cat'], 'answer': 'The cat!'}, {'says': ['no'], 'answer': 'one two three'})
    found = metric('wer').measure(samples_of(tmp_path, *rows))
    assert found.values == [0.0, 3.0] and found.counts == [2.0, 3.0] and metric('wer').traits.lower_is_better
    assert metric('wer', plain=False).measure(samples_of(tmp_path, *rows)).values == [2.0, 3.0]
    found = metric('cer').measure(samples_of(tmp_path, {'says': ['天气好'], 'answer': '天气很好'}))
    assert found.values == [1.0] and found.counts == [4.0]
    with pytest.raises(DataError, match='nothing but punctuation'):
        values(tmp_path, 'wer', {'says': ['x'], 'answer': '…'})


def test_rewards_are_metrics(tmp_path: Path) -> None:
    rows = ({'says': ['ab', 'abcd'], 'prompt': 'Say it.'},)
    (tmp_path / 'own.py').write_text('def letters(completions):\n    return [len(c.response) for c in completions]\n')
    assert values(tmp_path / 'a', f'{tmp_path}/own.py:letters', *rows) == [2.0, 4.0]
    assert {'exact_match', 'fid', 'clip_score', 'clap_score', 'transcript'} <= {*metric_names()}
    assert metric_names().count('exact_match') == 1


def test_names_and_options_are_checked_all_at_once() -> None:
    with pytest.raises(SettingsError) as found:
        make_metrics(['exact_mach', 'fid', 'vqa', 'lm_eval:x'], {'vqa': {'colum': 1}, 'wer': {}})
    said = str(found.value)
    for words in (
        "there is no metric 'exact_mach'. Did you mean 'exact_match'?",
        "metric 'fid' needs the option 'encoder'",
        "metric 'vqa' has no option 'colum'. Did you mean 'column'?",
        "'wer' is not among the tasks",
    ):
        assert words in said


def test_shapes_are_told_without_a_model() -> None:
    random = np.random.default_rng(0)
    right = total = 0
    for colour in COLOURS:
        for shape in SHAPES:
            for _ in range(5):
                (region, *others) = regions_of(draw_shape(colour, shape, random))
                assert region.colour == colour and not others
                right += region.form == shape
                total += 1
    assert right / total > 0.9


def drawn(*shapes: tuple[str, str, tuple[int, int]]) -> Image.Image:
    """A picture of shapes of 40 pixels at these places."""
    picture = Image.new('RGB', (200, 200), 'white')
    draw = ImageDraw.Draw(picture)
    for shape, colour, (x, y) in shapes:
        box = (x, y, x + 40, y + (40 if shape != 'bar' else 15))
        (draw.ellipse if shape == 'circle' else draw.rectangle)(box, fill=colour)
    return picture


def test_things_are_counted_by_colour_and_form(tmp_path: Path) -> None:
    two_red = drawn(('circle', 'red', (10, 10)), ('circle', 'red', (100, 100)), ('square', 'blue', (10, 120)))
    regions = regions_of(two_red)
    assert sorted((region.colour, region.form) for region in regions) == [
        ('blue', 'square'), ('red', 'circle'), ('red', 'circle'),
    ]  # fmt: skip
    assert shows(regions, [{'count': 2, 'colour': 'red', 'shape': 'circle'}, {'count': 1, 'colour': 'blue'}])
    assert not shows(regions, [{'count': 1, 'colour': 'red', 'shape': 'circle'}])
    assert not shows(regions, [{'count': 2, 'colour': 'green'}])
    assert regions_of(Image.new('RGB', (32, 32), 'white')) == []
    asked = {'meta': {'objects': [{'color': 'crimson', 'shape': 'circle', 'count': 2}]}, 'media': [two_red]}
    wrong = {'meta': {'objects': [{'colour': 'blue', 'shape': 'bar'}]}, 'media': [two_red]}
    none = {'meta': {'objects': [{'colour': 'blue'}]}}
    assert values(tmp_path, 'shapes', asked, wrong, none) == [1.0, 0.0, 0.0]
    with pytest.raises(DataError, match='should be a list of records'):
        values(tmp_path, 'shapes', {'media': [two_red]})
    with pytest.raises(DataError, match="has {'colours': 'red'}"):
        values(tmp_path, 'shapes', {'media': [two_red], 'meta': {'objects': [{'colours': 'red'}]}})


def test_counts_in_words() -> None:
    assert [count_in(text) for text in ('There are 12.', 'Two dogs', 'None.', 'often', 'no idea')] == [
        12, 2, 0, None, None,
    ]  # fmt: skip
    assert name_of({'colour': 'red', 'object': 'fox'}) == 'red foxes' and name_of({'object': 'dog'}) == 'dogs'


def test_a_model_that_reads_pictures_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        {'meta': {'objects': [{'object': 'dog', 'count': 2}, {'object': 'cat'}]}, 'media': [drawn()]},
        {'meta': {'objects': [{'colour': 'red', 'object': 'car'}]}, 'media': [drawn()]},
    ]
    asked: list[str] = []

    def answers(model: str, questions: Any, batch_size: int, device: str | None) -> list[str]:
        asked.extend(words for _, words in questions)
        return ['two', '1', 'many']

    monkeypatch.setattr('align_anything.metrics.functions.composition.ask', answers)
    found = metric('objects', model='m').measure(samples_of(tmp_path, *rows))
    assert found.values == [1.0, 0.0] and found.details == {'questions': 3, 'without_a_number': 1}
    assert asked[2] == 'How many red cars are in the picture? Answer with one number.'


def test_scores_are_compared_with_ties_as_half(tmp_path: Path) -> None:
    ours = samples_of(tmp_path / 'a', {'says': ['x', 'y'], 'scores': [1.0, 3.0]}, {'scores': [2.0]}, {'scores': [None]})
    theirs = samples_of(tmp_path / 'b', {'says': ['x', 'y'], 'scores': [1.0, 2.0]}, {'scores': [5.0]})
    found = metric('win_rate').measure(ours, theirs)
    assert found.values == [0.25, 1.0, 0.0, None] and found.details == {'ties': 0, 'not_compared': 1}
    assert metric('win_rate', score='model').measure(ours, theirs).values == found.values
    with pytest.raises(DataError, match="no score 'other'"):
        metric('win_rate', score='other').measure(ours, theirs)


def test_media_are_read_back_and_damage_is_told(tmp_path: Path) -> None:
    sound = Audio(np.linspace(-1, 1, 800, dtype=np.float32), 16000)
    frames = np.random.default_rng(0).integers(0, 256, (40, 20, 30, 3), np.uint8)
    clip = Video(frames, np.arange(40) / 8, 8.0, sound)
    (sample,) = samples_of(tmp_path, {'media': [drawn(), sound, clip], 'says': ['so']})
    assert [part['type'] for part in sample.parts()] == ['text', 'image', 'audio', 'video']
    (again,) = sample.media('video')
    assert (again.frames == frames).all() and again.timestamps == pytest.approx(clip.timestamps)
    assert again.fps == pytest.approx(8) and (again.audio.samples == sound.samples).all()
    assert (np.asarray(sample.media('image')[0]) == np.asarray(drawn())).all()
    assert (sample.media('audio')[0].samples == sound.samples).all()
    still = Video(np.zeros((3, 8, 8, 3), np.uint8), np.arange(3) / 8, 8.0)
    (frozen,) = samples_of(tmp_path / 'still', {'media': [still]})
    assert len(frozen.media('video')[0].frames) == 1
    (tmp_path / 'media' / '00000000' / 'response_0_1.png').write_bytes(b'no picture')
    with pytest.raises(SampleError, match='response_0_1.png cannot be read'):
        sample.parts()
    with pytest.raises(DataError, match='it is no output_dir of align-anything generate'):
        read_samples(tmp_path / 'x')
    (tmp_path / 'generations.jsonl').write_text(json.dumps({'row': 1}) + '\n')
    with pytest.raises(DataError, match='is damaged'):
        read_samples(tmp_path)
    line = {'row': 0, 'messages': [], 'responses': [{'text': 'a\u2028b\x85c'}]}
    (tmp_path / 'generations.jsonl').write_text(json.dumps(line, ensure_ascii=False) + '\n', encoding='utf-8')
    assert read_samples(tmp_path)[0].text == 'a\u2028b\x85c'
    with pytest.raises(DataError, match='holds no response'):
        read_samples(folder_of(tmp_path / 'x', []))
