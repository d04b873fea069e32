"""The server over tiny checkpoints of every kind, asked by OpenAI's own client."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import numpy
import openai
import pytest
import soundfile
from PIL import Image

from align_anything.core.errors import ModelError, SettingsError
from align_anything.core.types import Video
from align_anything.datasets.media.writing import mp4
from align_anything.serve.run import open_server
from tests.harness.once import once
from tests.serve.common import SMALL, asked, client, file_uri, image_uri, serving, settings
from tests.trainers.test_scoring import with_head

RED = Image.new('RGB', (40, 30), 'red')
BLUE = Image.new('RGB', (40, 30), 'blue')
QUICK = {'max_tokens': 8, 'temperature': 0}
TOOL = {'type': 'function', 'function': {'name': 'f', 'parameters': {'type': 'object', 'properties': {}}}}


@pytest.fixture(scope='module')
def text(tiny: Callable[..., Path], shared_cache: Path) -> Iterator[tuple[str, str]]:
    """The address of a server of a model and a reward model, and the name of the model."""
    judge = once(shared_cache, 'served-judge', lambda folder: _judge(tiny('llama'), folder))
    model = str(tiny('qwen3'))
    with serving('--model_name_or_path', model, '--reward_model_name_or_path', str(judge)) as url:
        yield url, Path(model).name


def _judge(model: Path, folder: Path) -> None:
    folder.mkdir(parents=True)
    with_head(model, folder)


def ask(url: str, name: str, messages: Any, **more: Any) -> Any:
    given = asked(messages) if isinstance(messages, str) else messages
    return client(url).chat.completions.create(model=name, messages=given, **{**QUICK, **more})


def said(answer: Any) -> str:
    return answer.choices[0].message.content


def shown(part: dict[str, Any], words: str = 'What is it?') -> list[dict[str, Any]]:
    return [{'role': 'user', 'content': [part, {'type': 'text', 'text': words}]}]


def test_text_whole_streamed_and_again(text: tuple[str, str]) -> None:
    url, name = text
    whole = ask(url, name, 'hello')
    assert whole.usage.prompt_tokens > 0 and whole.usage.completion_tokens == 8
    assert whole.choices[0].finish_reason == 'length'
    stream = list(ask(url, name, 'hello', stream=True))
    assert ''.join(chunk.choices[0].delta.content or '' for chunk in stream) == said(whole)
    assert len(stream) > 5, 'piece by piece'
    warm = [said(ask(url, name, 'hello', temperature=1, seed=seed, max_tokens=12)) for seed in (1, 1, 2)]
    assert warm[0] == warm[1] != warm[2]
    many = ask(url, name, 'hello', temperature=1, seed=1, n=3, max_tokens=12)
    texts = [choice.message.content for choice in many.choices]
    assert len(set(texts)) == 3 and texts[0] == warm[0]
    assert said(ask(url, name, 'hello', temperature=1, extra_body={'top_k': 1})) == said(ask(url, name, 'hello'))


def test_a_stop_string_is_not_said(text: tuple[str, str]) -> None:
    url, name = text
    whole = said(ask(url, name, 'hello', max_tokens=20))
    stop = whole[3:5]
    answer = ask(url, name, 'hello', max_tokens=20, stop=[stop])
    assert said(answer) == whole[: whole.find(stop)] and answer.choices[0].finish_reason == 'stop'
    stream = ask(url, name, 'hello', max_tokens=20, stop=stop, stream=True)
    assert ''.join(chunk.choices[0].delta.content or '' for chunk in stream) == said(answer)


def test_sixty_four_at_once_are_answered_as_each_is_alone(text: tuple[str, str]) -> None:
    url, name = text
    prompts = [f'{"word " * (number % 7)}question {number}' for number in range(64)]
    alone = [said(ask(url, name, prompt)) for prompt in prompts[:8]]

    def one(number: int) -> str:
        if number % 2:
            return said(ask(url, name, prompts[number]))
        chunks = ask(url, name, prompts[number], stream=True)
        return ''.join(chunk.choices[0].delta.content or '' for chunk in chunks)

    with ThreadPoolExecutor(64) as pool:
        together = list(pool.map(one, range(64)))
    assert together[:8] == alone and len(set(together)) > 8
    told = httpx2.get(f'{url}/metrics').text
    values = dict(line.rsplit(' ', 1) for line in told.splitlines() if not line.startswith('#'))
    batches = float(values['align_anything_batch_responses_count'])
    assert float(values['align_anything_batch_responses_sum']) > 1.5 * batches, 'they were answered together'


@pytest.mark.extended
def test_all_sixty_four_and_sampled_ones_too(text: tuple[str, str]) -> None:
    url, name = text
    prompts = [f'{"word " * (number % 7)}question {number}' for number in range(64)]
    ways = [{'temperature': 0}, {'temperature': 0.8, 'seed': 3, 'top_p': 0.9}, {'temperature': 1, 'seed': 5, 'n': 2}]

    def one(number: int) -> list[str]:
        answer = ask(url, name, prompts[number], **ways[number % 3])
        return [choice.message.content for choice in answer.choices]

    alone = [one(number) for number in range(64)]
    with ThreadPoolExecutor(64) as pool:
        assert list(pool.map(one, range(64))) == alone


@pytest.mark.extended
def test_two_hundred_clients_of_a_model(text: tuple[str, str]) -> None:
    url, name = text
    prompts = [f'question {number}' for number in range(200)]
    alone = [said(ask(url, name, prompt)) for prompt in prompts]
    with ThreadPoolExecutor(200) as pool:
        assert list(pool.map(lambda prompt: said(ask(url, name, prompt)), prompts)) == alone
    told = httpx2.get(f'{url}/metrics').text
    assert 'align_anything_waiting 0.0' in told and 'align_anything_running 0.0' in told


def test_limits_of_the_model(text: tuple[str, str]) -> None:
    url, name = text
    with pytest.raises(openai.BadRequestError, match='longer than the 512 of this model'):
        ask(url, name, 'hello', max_tokens=600)
    with pytest.raises(openai.BadRequestError, match='the prompt has'):
        ask(url, name, 'word ' * 600)
    # Who names no limit gets what fits beside the prompt.
    answer = client(url).chat.completions.create(model=name, messages=asked('word ' * 60), stop=['\x00never'])
    assert answer.usage.total_tokens <= 512
    for more, message in (
        ({'extra_body': {'steps': 3}}, 'denoises nothing'),
        ({'extra_body': {'guidance_scale': 3}}, 'is of media'),
        ({'modalities': ['text', 'audio']}, 'no audio'),
    ):
        with pytest.raises(openai.BadRequestError, match=message):
            ask(url, name, 'hello', **more)


def test_tools_are_written_into_the_prompt(text: tuple[str, str]) -> None:
    url, name = text
    plain, tooled = ask(url, name, 'hello'), ask(url, name, 'hello', tools=[TOOL])
    assert tooled.usage.prompt_tokens > plain.usage.prompt_tokens + 50
    call = {'id': 'c', 'type': 'function', 'function': {'name': 'f', 'arguments': '{"a": 1}'}}
    turns = [
        *asked('x'),
        {'role': 'assistant', 'tool_calls': [call]},
        {'role': 'tool', 'tool_call_id': 'c', 'content': 'r'},
    ]
    assert ask(url, name, turns, tools=[TOOL]).usage.prompt_tokens > tooled.usage.prompt_tokens
    with pytest.raises(openai.BadRequestError, match='should be JSON'):
        call['function']['arguments'] = '{"a":'
        ask(url, name, turns, tools=[TOOL])


def test_rewards(text: tuple[str, str]) -> None:
    url, _ = text
    conversations = [[*asked('Why?'), {'role': 'assistant', 'content': answer}] for answer in ('Because.', 'No idea!')]
    answer = httpx2.post(f'{url}/v1/rewards', json={'conversations': conversations}).json()
    scores = [record['reward'] for record in answer['data']]
    assert answer['model'] == 'served-judge' and len(set(scores)) == 2
    one = httpx2.post(f'{url}/v1/rewards', json={'model': 'served-judge', 'messages': conversations[1]}).json()
    assert one['data'][0]['reward'] == pytest.approx(scores[1], abs=1e-5)
    names = [model.id for model in client(url).models.list()]
    assert names[1] == 'served-judge'
    wrong = httpx2.post(f'{url}/v1/rewards', json={'model': names[0], 'messages': conversations[0]})
    assert wrong.status_code == 404


def test_a_reward_model_alone(tiny: Callable[..., Path], shared_cache: Path) -> None:
    judge = once(shared_cache, 'served-judge', lambda folder: _judge(tiny('llama'), folder))
    with serving('--reward_model_name_or_path', str(judge)) as url:
        turns = [*asked('Why?'), {'role': 'assistant', 'content': 'Because.'}]
        assert httpx2.post(f'{url}/v1/rewards', json={'messages': turns}).status_code == 200
        refused = httpx2.post(f'{url}/v1/chat/completions', json={'model': 'x', 'messages': asked('x')})
        assert refused.status_code == 404 and 'gives none' in refused.json()['error']['message']
        assert httpx2.get(f'{url}/v1/models/other').status_code == 404


def test_pictures_and_clips(tiny: Callable[..., Path], tmp_path: Path) -> None:
    frames = numpy.stack([numpy.full((32, 32, 3), 40 * number, numpy.uint8) for number in range(4)])
    clip = tmp_path / 'clip.mp4'
    clip.write_bytes(mp4(Video(frames, numpy.arange(4) / 2, 2.0)))
    model = str(tiny('qwen2_vl'))
    with serving('--model_name_or_path', model, '--max_media', '3') as url:
        name = Path(model).name

        def image(picture: Any) -> dict[str, Any]:
            return {'type': 'image_url', 'image_url': {'url': image_uri(picture), 'detail': 'auto'}}

        red, blue = (said(ask(url, name, shown(image(picture)))) for picture in (RED, BLUE))
        assert red and blue and red != blue
        turns = [*shown(image(RED)), {'role': 'assistant', 'content': 'red'}, *asked('and now?')]
        assert ask(url, name, turns).usage.prompt_tokens > ask(url, name, asked('and now?')).usage.prompt_tokens + 4
        video = {'type': 'video_url', 'video_url': {'url': file_uri('video/mp4', clip)}}
        assert said(ask(url, name, shown(video)))
        bad: list[tuple[dict[str, Any], str]] = [
            ({'type': 'image_url', 'image_url': {'url': '/etc/hostname'}}, 'must come as data URIs'),
            ({'type': 'image_url', 'image_url': {'url': 'file:///etc/hostname'}}, 'must come as data URIs'),
            ({'type': 'image_url', 'image_url': {'url': 'http://127.0.0.1/a.png'}}, 'fetches no URLs'),
            ({'type': 'image_url', 'image_url': {'url': 'data:image/png;base64,@@@'}}, 'no base64'),
            ({'type': 'image_url', 'image_url': {'url': 'data:image/png;base64,AAAA'}}, 'is not an image'),
            (
                {'type': 'image_url', 'image_url': {'url': image_uri(RED)[:120]}},
                'base64|decoded|not an image',
            ),
            (
                {'type': 'video_url', 'video_url': {'url': image_uri(RED).replace('image', 'video')[:90] + 'A='}},
                'video',
            ),
            (
                {'type': 'input_audio', 'input_audio': {'data': 'AAAA', 'format': 'wav'}},
                'audio media, and this',
            ),
        ]
        for part, message in bad:
            with pytest.raises(openai.BadRequestError, match=message):
                ask(url, name, shown(part))
        with pytest.raises(openai.BadRequestError, match='4 media, and this server takes 3'):
            ask(url, name, [{'role': 'user', 'content': [image(RED)] * 4}])
        assert said(ask(url, name, shown(image(RED)))) == red, 'it goes on'
    with serving('--model_name_or_path', model, '--max_image_pixels', '1000', '--allow_urls', 'True') as url:
        with pytest.raises(openai.BadRequestError, match='over 1000 pixels'):
            ask(url, name, shown(image(RED)))
        with pytest.raises(openai.BadRequestError, match='no public address'):
            ask(url, name, shown({'type': 'image_url', 'image_url': {'url': 'http://127.0.0.1/a.png'}}))


def pixels_of(image: Any) -> numpy.ndarray:
    return numpy.asarray(Image.open(io.BytesIO(base64.b64decode(image.b64_json))), dtype=numpy.int64)


def wav_of(seconds: float, rate: int = 16000) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, 0.3 * numpy.sin(numpy.arange(int(seconds * rate)) / 20), rate, format='WAV')
    return file.getvalue()


def saved_samples(array: numpy.ndarray) -> str:
    file = io.BytesIO()
    numpy.save(file, array)
    return base64.b64encode(file.getvalue()).decode()


def test_sounds_and_omegas_contract(tiny: Callable[..., Path]) -> None:
    model = str(tiny('qwen2_audio'))
    with serving('--model_name_or_path', model, '--max_audio_seconds', '1', '--max_new_tokens', '8') as url:
        name = Path(model).name

        def sound(content: bytes, form: str = 'wav') -> dict[str, Any]:
            data = base64.b64encode(content).decode()
            return {'type': 'input_audio', 'input_audio': {'data': data, 'format': form}}

        assert said(ask(url, name, shown(sound(wav_of(0.5)))))
        with pytest.raises(openai.BadRequestError, match='longer than the 1 s'):
            ask(url, name, shown(sound(wav_of(1.5))))
        with pytest.raises(openai.BadRequestError, match='ends early|damaged'):
            ask(url, name, shown(sound(wav_of(1.0)[:9000])))
        health = httpx2.get(f'{url}/api/v1/health').json()
        assert health == {'status': 'healthy', 'initialization_status': {'model_loaded': True, 'error': None}}
        voice = {'audio_data': saved_samples(numpy.sin(numpy.arange(8000) / 20).astype('f4')), 'sample_rate': 16000}
        answer = httpx2.post(f'{url}/api/v1/v2t', json=voice)
        assert answer.status_code == 200 and isinstance(answer.json()['text'], str)
        refused = httpx2.post(f'{url}/api/v1/v2v', json=voice)
        assert refused.status_code == 400 and 'writes no audio' in refused.json()['error']['message']
        for bad in (
            {**voice, 'audio_data': 'AAAA'},
            {**voice, 'audio_data': saved_samples(numpy.ones(10))},
            {**voice, 'sample_rate': 0},
            {'audio_data': voice['audio_data']},
        ):
            answer = httpx2.post(f'{url}/api/v1/v2t', json=bad)
            assert answer.status_code == 400 and set(answer.json()) == {'error'}


def test_pictures_and_sounds_that_are_written(emitting: Callable[..., Path]) -> None:
    model = str(emitting('unified'))
    with serving('--model_name_or_path', model, '--max_new_tokens', '240') as url:
        name = Path(model).name
        made = client(url).images.generate(model=name, prompt='draw the digit two', n=2, extra_body={'seed': 1})
        pictures = [Image.open(io.BytesIO(base64.b64decode(image.b64_json))) for image in made.data]
        assert [picture.size for picture in pictures] == [(8, 8)] * 2
        assert pictures[0].tobytes() != pictures[1].tobytes()
        heard = client(url).audio.speech.create(
            model=name, input='sing do', voice='default', response_format='wav', extra_body={'seed': 2}
        )
        samples, rate = soundfile.read(io.BytesIO(heard.content))
        assert rate == 8000 and len(samples) > 0
        drawn = ask(url, name, 'draw the digit two', modalities=['image'], max_tokens=40)
        message = drawn.choices[0].message.model_dump()
        assert message['content'] is None
        assert message['images'][0]['image_url']['url'].startswith('data:image/png;base64,')
        stream = ask(url, name, 'draw', modalities=['image'], max_tokens=40, stream=True)
        deltas = [chunk.choices[0].delta.model_dump() for chunk in stream]
        assert sum(len(delta.get('images') or []) for delta in deltas) == 1
        assert 'images' not in ask(url, name, 'draw', modalities=['text']).choices[0].message.model_dump()
        voice = {'audio_data': saved_samples(numpy.sin(numpy.arange(2400) / 5).astype('f4')), 'sample_rate': 8000}
        answer = httpx2.post(f'{url}/api/v1/v2v', json=voice).json()
        samples = numpy.load(io.BytesIO(base64.b64decode(answer['audio_data'])), allow_pickle=False)
        assert samples.ndim == 1 and answer['sample_rate'] == 8000
        with pytest.raises(openai.BadRequestError, match='it is of text'):
            ask(url, name, 'draw', modalities=['image'], stop=['x'])
        with pytest.raises(openai.BadRequestError, match='has 18 tokens or more|tokens or more'):
            ask(url, name, 'draw', modalities=['image'], max_tokens=4)


def test_a_pipeline(tiny: Callable[..., Path]) -> None:
    model = str(tiny('sd15'))
    own = ('--rollout_steps', '2', '--served_model_name', 'painter')
    with serving('--model_name_or_path', model, *own, small=SMALL[:2]) as url:
        both = client(url).images.generate(model='painter', prompt='a red square', n=2, extra_body={'seed': 1})
        one = client(url).images.generate(model='painter', prompt='a red square', extra_body={'seed': 1})
        first, second, alone = (pixels_of(image) for image in (*both.data, *one.data))
        # What is added up in another order is rounded otherwise.
        assert numpy.abs(first - alone).max() <= 1 < numpy.abs(first - second).max()
        more = client(url).images.generate(
            model='painter', prompt='a red square', extra_body={'seed': 1, 'steps': 3, 'guidance_scale': 1.5}
        )
        assert numpy.abs(pixels_of(more.data[0]) - alone).max() > 1
        chat = client(url).chat.completions.create(model='painter', messages=asked('a red square'), seed=1)
        assert len(chat.choices[0].message.model_dump()['images']) == 1
        with pytest.raises(openai.BadRequestError, match='denoises and writes no tokens: leave out temperature'):
            client(url).chat.completions.create(model='painter', messages=asked('x'), temperature=0.5)
        with pytest.raises(openai.BadRequestError, match='size'):
            client(url).images.generate(model='painter', prompt='x', size='512x512')
        with pytest.raises(openai.BadRequestError, match='no audio'):
            client(url).audio.speech.create(model='painter', input='x', voice='default')


@pytest.mark.parametrize(
    ('argv', 'error', 'message'),
    [
        ((), SettingsError, 'model_name_or_path is required'),
        (('--model_name_or_path', 'nowhere/at/all'), (ModelError, SettingsError), 'nowhere/at/all'),
        (
            ('--model_name_or_path', 'x', '--learning_rate', '1e-3'),
            SettingsError,
            'learning_rate .* nothing is trained',
        ),
        (('--model_name_or_path', 'x', '--prt', '1'), SettingsError, "Did you mean 'port'"),
        (('--model_name_or_path', 'x', '--port', '99999'), SettingsError, 'port'),
        (('--model_name_or_path', 'x', '--vllm_args', 'y'), SettingsError, 'vllm_args .* use_vllm'),
        (('--model_name_or_path', 'x', '--use_vllm', 'True', '--queue_size', '3'), SettingsError, 'queue_size'),
    ],
)
def test_what_is_wrong_is_said_before_it_serves(argv: tuple[str, ...], error: Any, message: str) -> None:
    from align_anything.serve.run import serve

    with pytest.raises(error, match=message):
        serve(list(argv), {})


def test_a_model_that_is_not_there_is_one_message_and_no_traceback(caplog: pytest.LogCaptureFixture) -> None:
    from align_anything.cli.main import main

    with pytest.raises(SystemExit) as leaving:
        main(['serve', '--model_name_or_path', 'nowhere/at/all'])
    (told,) = [record for record in caplog.records if record.levelname == 'ERROR']
    assert leaving.value.code == 2 and told.exc_info is None and 'nowhere/at/all' in told.getMessage()


def test_a_reward_model_that_is_none(tiny: Callable[..., Path]) -> None:
    with pytest.raises(ModelError, match='has no score head'):
        open_server(settings(*SMALL, '--reward_model_name_or_path', str(tiny('llama'))))


def test_a_dry_run_opens_all_and_serves_nothing(tiny: Callable[..., Path], caplog: pytest.LogCaptureFixture) -> None:
    import logging

    from align_anything.serve.run import serve

    with caplog.at_level(logging.INFO, logger='align_anything'):
        serve([*SMALL, '--model_name_or_path', str(tiny('qwen3')), '--dry_run', '--port', '8763'], {})
    assert 'dry run:' in caplog.text and ':8763' in caplog.text
