"""The page as a browser gets it: what it loads, and who may come in; in Chromium, a tiny run is clicked through."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from align_anything.cli.main import main
from align_anything.core.errors import SettingsError
from align_anything.serve.door import Door, Keys
from align_anything.serve.ui import runs
from align_anything.serve.ui.pages import ADDRESS, FRAMED, OWN, Pages, Walls
from align_anything.serve.ui.run import PASSWORD_VARIABLE, serve_page

PROBE = """
import json, sys, time
start = time.perf_counter()
from align_anything.serve.ui.app import make_app
from align_anything.serve.ui.page import Page
from align_anything.serve.ui.paths import Root
page = Page(Root(sys.argv[1]))
app = make_app(page)
seconds = time.process_time()
import gradio, fastapi.testclient
told = {'seconds': seconds, 'torch': 'torch' in sys.modules, 'analytics': gradio.analytics.analytics_enabled()}
fetched = []
real = app
import asyncio
async def ask(path):
    sent = []
    async def receive():
        return {'type': 'http.request', 'body': b''}
    async def send(event):
        sent.append(event)
    scope = {'type': 'http', 'method': 'GET', 'path': path, 'raw_path': path.encode(), 'query_string': b'',
             'headers': [(b'host', b'127.0.0.1:7860')], 'root_path': '', 'scheme': 'http', 'http_version': '1.1',
             'client': ('127.0.0.1', 1), 'server': ('127.0.0.1', 7860), 'app': None}
    await app(scope, receive, send)
    return sent[0]['status'], b''.join(event.get('body', b'') for event in sent[1:]).decode(errors='replace')
status, told['html'] = asyncio.run(ask('/'))
told['status'] = status
told['css'] = asyncio.run(ask('/theme.css'))[1]
print(json.dumps(told))
"""
SECONDS = 5.0
PAUSE = 180_000
"""Milliseconds that a step may take: a run loads torch several times."""
FLAGS = (
    *('--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run'),
    *('--disable-background-networking', '--disable-component-update', '--disable-sync'),
)
CHROMIUM = shutil.which('chromium')


def asked(app: Any, path: str = '/', **headers: str) -> tuple[int, dict[str, str]]:
    """The status and the headers that an application answers a GET with."""
    sent: list[Mapping[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {'type': 'http.request', 'body': b''}

    async def send(event: Mapping[str, Any]) -> None:
        sent.append(event)

    given = [(name.replace('_', '-').encode(), value.encode()) for name, value in headers.items()]
    asyncio.run(app({'type': 'http', 'method': 'GET', 'path': path, 'headers': given}, receive, send))
    return sent[0]['status'], {name.decode(): value.decode() for name, value in sent[0]['headers']}


async def well(scope: Any, receive: Any, send: Any) -> None:
    await send({'type': 'http.response.start', 'status': 200, 'headers': []})
    await send({'type': 'http.response.body', 'body': b''})


def test_it_starts_without_torch_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, '-c', PROBE, str(tmp_path)], capture_output=True, text=True, timeout=120, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told['status'] == 200 and not told['torch'] and not told['analytics']
    assert told['seconds'] < SECONDS, 'of the processor, whatever else this machine does'
    assert 'fonts.googleapis' not in told['html'] + told['css'] and 'system-ui' in told['css']
    assert not list(tmp_path.iterdir())


def test_pages_from_elsewhere_and_addresses_of_others_are_refused() -> None:
    app = Walls(well)
    status, headers = asked(app, host='127.0.0.1:7860')
    assert status == 200 and headers['content-security-policy'] == OWN
    assert asked(app, f'{ADDRESS}/x')[1]['content-security-policy'] == FRAMED and 'sandbox' in FRAMED
    assert asked(app, host='127.0.0.1:7860', origin='http://127.0.0.1:7860')[0] == 200
    for origin in ('http://evil.example', 'null', 'http://127.0.0.1:9999'):
        assert asked(app, host='127.0.0.1:7860', origin=origin)[0] == 403
    for path in ('/gradio_api/file=https://evil.example/x', '/gradio_api/proxy=http://evil.example'):
        assert asked(app, path)[0] == 403
    assert 'http' not in OWN.replace('https', 'http'), 'no other address is allowed'


async def endless(scope: Any, receive: Any, send: Any) -> None:
    await send({'type': 'http.response.start', 'status': 200, 'headers': []})
    await asyncio.sleep(60)


def test_what_a_page_listens_to_ends_with_the_server() -> None:
    sent: list[Mapping[str, Any]] = []

    async def send(event: Mapping[str, Any]) -> None:
        sent.append(event)

    async def run() -> None:
        scope = {'type': 'http', 'method': 'GET', 'path': '/', 'headers': []}
        task = asyncio.create_task(Walls(endless)(scope, None, send))
        await asyncio.sleep(0.01)
        task.cancel()
        await task

    asyncio.run(run())
    assert [event['type'] for event in sent] == ['http.response.start', 'http.response.body']


def test_a_password_is_asked_for_as_browsers_know_it() -> None:
    door = Door(well, Keys(['open-sesame']), '127.0.0.1', scheme=b'basic')
    status, headers = asked(door, host='localhost:7860')
    assert status == 401 and headers['www-authenticate'].startswith('Basic ')
    for given, allowed in (('me:open-sesame', 200), ('open-sesame', 401), ('me:wrong-word', 401), (':', 401)):
        header = f'Basic {base64.b64encode(given.encode()).decode()}'
        assert asked(door, host='localhost', authorization=header)[0] == allowed, given
    for header in ('Bearer open-sesame', 'Basic open-sesame', 'Basic \xff'):
        assert asked(door, host='localhost', authorization=header)[0] == 401
    assert asked(door, host='evil.example')[0] == 403


def test_only_reports_that_are_shown_can_be_asked_for(tmp_path: Path) -> None:
    pages = Pages()
    (tmp_path / 'a b.html').touch()
    name = pages.address(tmp_path / 'a b.html').removeprefix(f'{ADDRESS}/').partition('?')[0]
    assert pages.find(name) == tmp_path / 'a b.html' and 'sandbox' in pages.frame(tmp_path / 'a b.html')
    assert pages.find('../a b.html') is None
    (tmp_path / 'a b.html').unlink()
    assert pages.find(name) is None


def test_others_are_let_in_with_a_password_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PASSWORD_VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    for options in ({'share': True}, {'host': '0.0.0.0'}):
        with pytest.raises(SettingsError, match='--password_file'):
            serve_page(tmp_path, **options)
    (tmp_path / 'word').write_text('short')
    with pytest.raises(SettingsError, match='--password_file: a key'):
        serve_page(tmp_path, password_file=str(tmp_path / 'word'))
    with pytest.raises(SettingsError, match='no folder'):
        serve_page(tmp_path / 'nowhere')
    with socket.socket() as taken:
        taken.bind(('127.0.0.1', 0))
        taken.listen()
        with pytest.raises(SettingsError, match='is in use'):
            serve_page(tmp_path, port=taken.getsockname()[1])


def test_the_command_hands_its_options_on(monkeypatch: pytest.MonkeyPatch) -> None:
    from align_anything.serve.ui import run

    given: list[Any] = []
    monkeypatch.setattr(run, 'serve_page', lambda *args, **options: given.append((args, options)))
    with pytest.raises(SystemExit) as leaving:
        main(['ui', '--root', '/x', '--port', '1', '--share', '--password_file', 'p'])
    assert leaving.value.code == 0
    ((args, options),) = given
    assert args == (Path('/x'), '127.0.0.1', 1) and options['share'] and options['password_file'] == 'p'
    assert 'llava-hf/llava-1.5-7b-hf' in options['known']


def _missing(name: str) -> None:
    raise ModuleNotFoundError(name)


def test_without_gradio_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from align_anything.serve.ui.quick_gradio import import_gradio

    monkeypatch.delitem(sys.modules, 'gradio', raising=False)
    monkeypatch.setattr('importlib.import_module', _missing)
    with pytest.raises(SettingsError, match=r"pip install 'align-anything\[ui\]'"):
        import_gradio()


# In Chromium


@pytest.fixture
def folder(tmp_path: Path, tiny: Callable[..., Path]) -> Path:
    root = tmp_path / 'root'
    root.mkdir()
    for name in ('qwen2', 'llava'):
        shutil.copytree(tiny(name), root / 'models' / name)
    talk = 'What is the tallest mountain? Mount Everest. Which fish swims upstream? The salmon.'.split('? ')
    rows = [{'messages': [{'role': 'user', 'content': f'{talk[0]} {n}?'}, {'role': 'assistant', 'content': talk[1]}]} for n in range(8)]  # fmt: skip  # noqa: E501
    (root / 'rows.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
    Image.new('RGB', (40, 30), 'red').save(root / 'red.png')
    seen = {'instruction': 'What is it?', 'output': 'Red.', 'image': 'red.png'}
    (root / 'pictures.jsonl').write_text(json.dumps(seen) + '\n' + json.dumps({**seen, 'image': 'nowhere.png'}) + '\n')
    return root


@pytest.fixture
def address(folder: Path) -> Iterator[str]:
    """Where the page of the folder is to be served; the run that it starts ends with the test."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    yield f'http://127.0.0.1:{port}'
    runs.stop(folder / 'output' / 'one')
    if runs.wait(folder / 'output' / 'one', 60) == runs.RUNNING:
        runs.read_launch(folder / 'output' / 'one').process.kill()


def serve(folder: Path, address: str, log: Path) -> tuple[subprocess.Popen[bytes], float]:
    """Starts the command, and returns its process and the seconds until the page was there."""
    began = time.monotonic()
    words = ['ui', '--root', str(folder), '--port', address.rpartition(':')[2]]
    with open(log, 'ab') as out:
        process = subprocess.Popen(
            [sys.executable, '-m', 'align_anything.cli', *words], stdout=out, stderr=subprocess.STDOUT
        )
    while process.poll() is None:
        try:
            urllib.request.urlopen(address, timeout=5).read()
            return process, time.monotonic() - began
        except OSError:
            time.sleep(0.05)
    raise AssertionError(log.read_text())


class Browser:
    """What a person does with the page; each picture of it goes to a folder."""

    def __init__(self, page: Any, pictures: Path) -> None:
        self.page, self._pictures, self._number = page, pictures, 0
        page.set_default_timeout(PAUSE)

    def choose(self, name: str, text: str) -> None:
        self.page.fill(f'#{name} input', text)
        self.page.locator(f'#{name}').get_by_role('option', name=text, exact=True).click()
        self.page.keyboard.press('Escape')

    def write(self, name: str, text: str) -> None:
        self.page.fill(f'[id="{name}"] :is(input, textarea)', text)
        self.page.keyboard.press('Tab')

    def tab(self, name: str) -> None:
        self.page.get_by_role('tab', name=name, exact=True).click()

    def shows(self, name: str, *words: str) -> str:
        """Waits until a part shows some words, and returns all that it shows."""
        for text in words:
            self.page.locator(f'#{name}', has_text=text).wait_for(timeout=PAUSE)
        return self.page.inner_text(f'#{name}')

    def picture(self, name: str) -> None:
        self._number += 1
        self.page.wait_for_timeout(700)
        self.page.screenshot(path=self._pictures / f'{self._number:02d}_{name}.png', full_page=True)


@pytest.mark.slow
@pytest.mark.extended
@pytest.mark.timeout(1500)
@pytest.mark.skipif(CHROMIUM is None, reason='no Chromium on this machine (scripts/browser.sh)')
def test_a_whole_run_is_clicked_through(folder: Path, address: str, tmp_path: Path) -> None:
    from playwright.sync_api import sync_playwright

    pictures = Path(os.environ.get('ALIGN_ANYTHING_SCREENSHOTS', tmp_path / 'screenshots'))
    pictures.mkdir(parents=True, exist_ok=True)
    log = tmp_path / 'page.log'
    process, seconds = serve(folder, address, log)
    elsewhere: list[str] = []
    wrong: list[str] = []
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
            page = browser.new_page(viewport={'width': 1500, 'height': 1000})
            page.on('request', lambda request: elsewhere.append(request.url))
            page.on('pageerror', lambda error: wrong.append(str(error)))
            page.goto(address)
            user = Browser(page, pictures)
            try:
                _set_up(user)
                _start_and_stop(user, folder)
                # The page goes away, the run does not.
                process.send_signal(signal.SIGTERM)
                process.wait(60)
                process, _ = serve(folder, address, log)
                page.goto(address)
                _take_up(user, folder)
                _talk(user, folder)
                _look(user)
            finally:
                user.picture('last')
                browser.close()
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    strangers = [url for url in elsewhere if not url.startswith((address, 'data:', 'blob:'))]
    assert not strangers and not wrong, (strangers, wrong)
    assert 'Traceback' not in log.read_text(), log.read_text()
    assert seconds < 3 * SECONDS, 'until the page was there; of the processor it is less than 5 s, see above'


def _set_up(user: Browser) -> None:
    page = user.page
    page.wait_for_selector('text=Common settings')
    user.choose('model', 'models/qwen2')
    user.choose('datasets', 'rows.jsonl')
    user.choose('template', 'Messages')
    user.write('output_dir', '../outside')
    assert 'lies outside of' in user.shows('problems', 'output_dir')
    user.write('output_dir', 'output/one')
    user.shows('problems', 'can be run')
    # What was given stays while other pairs have other fields.
    user.write('train_cfgs.max_steps', '3000')
    user.choose('pair', 'text_image_to_text')
    page.wait_for_selector('[id="data_cfgs.image_folder"]', state='attached')
    user.choose('pair', 'text_to_text')
    page.wait_for_selector('[id="data_cfgs.image_folder"]', state='detached')
    user.write('train_cfgs.learning_rate', '-1')
    assert 'learning_rate' in user.shows('problems', 'must be')
    user.picture('problems')
    user.write('train_cfgs.learning_rate', '1e-3')
    page.uncheck('[id="train_cfgs.bf16"] input')
    user.write('devices', '1')
    assert '--max_steps 3000' in user.shows('command', '--num_gpus 1')
    assert 'bf16: false' in user.shows('yaml', 'learning_rate: 0.001')
    user.picture('set_up')
    user.write('memory', '80')
    page.click('#dry_run')
    assert 'of 80 GiB a device' in user.shows('output', 'Fits: ', 'This was a dry run')
    user.picture('dry_run')
    page.click('#inspect')
    frame = page.frame_locator('#output iframe')
    frame.get_by_text('Trained tokens stand between').wait_for(timeout=PAUSE)
    user.picture('inspect')


def _start_and_stop(user: Browser, folder: Path) -> None:
    page = user.page
    page.click('#start')
    user.shows('run_facts', 'running')
    page.wait_for_selector('#run_curves polyline', timeout=PAUSE)
    user.shows('run_log', 'step ')
    user.picture('curves')
    user.tab('Train')
    assert page.input_value('#model input') == 'models/qwen2', 'what was chosen stays'
    user.tab('Runs')
    page.click('#stop')
    user.shows('run_message', 'saves a checkpoint')
    user.shows('run_facts', 'stopped', 'slice_')
    user.picture('stopped')
    assert list((folder / 'output' / 'one').glob('slice_*/manifest.json'))


def _take_up(user: Browser, folder: Path) -> None:
    page = user.page
    user.tab('Runs')
    assert 'text_to_text sft' in user.shows('run_facts', 'stopped')
    (checkpoint,) = (folder / 'output' / 'one').glob('slice_*')
    step = int(checkpoint.name.removeprefix('slice_'))
    page.click('#resume')
    user.shows('run_message', 'goes on from')
    user.shows('run_facts', 'running')
    user.shows('run_log', f'after step {step} of')
    later = 'innerText.match(/last step\\s+(\\d+)/)'
    page.wait_for_function(f"() => +(document.querySelector('#run_facts').{later} || [])[1] > {step}", timeout=PAUSE)
    user.picture('resumed')
    page.click('#stop')
    user.shows('run_facts', 'stopped')


def _talk(user: Browser, folder: Path) -> None:
    page = user.page
    (checkpoint,) = (folder / 'output' / 'one').glob('slice_*')
    trained = checkpoint.relative_to(folder).as_posix()
    user.tab('Chat')
    user.choose('chat_model_1', trained)
    page.get_by_role('button', name='System prompt and sampling').nth(0).click()
    user.write('chat_max_new_tokens', '8')
    user.write('chat_more', '--bf16 False')
    page.fill('#chat_message textarea', 'What is the tallest mountain?')
    page.keyboard.press('Enter')
    page.wait_for_selector('#chat_said_1 .bot', timeout=PAUSE)
    user.picture('chat')
    user.choose('chat_model_1', 'models/llava')
    page.click('#chat_reset')
    page.set_input_files('#chat_message input[type=file]', folder / 'red.png')
    page.wait_for_selector('#chat_message img')
    page.fill('#chat_message textarea', 'What is it?')
    page.keyboard.press('Enter')
    page.wait_for_selector('#chat_said_1 .user img', timeout=PAUSE)
    page.wait_for_selector('#chat_said_1 .bot', timeout=PAUSE)
    user.picture('picture')
    user.tab('Compare')
    user.choose('compare_model_1', trained)
    user.choose('compare_model_2', 'models/qwen2')
    page.get_by_role('button', name='System prompt and sampling').nth(0).click()
    user.write('compare_max_new_tokens', '8')
    user.write('compare_more', '--bf16 False')
    page.fill('#compare_message textarea', 'What is the tallest mountain?')
    page.keyboard.press('Enter')
    for number in (1, 2):
        page.wait_for_selector(f'#compare_said_{number} .bot', timeout=PAUSE)
    user.picture('compare')


def _look(user: Browser) -> None:
    page = user.page
    user.tab('Data')
    user.choose('data_pair', 'text_image_to_text')
    user.choose('data_datasets', 'pictures.jsonl')
    user.choose('data_template', 'Instruction')
    page.click('#look')
    frame = page.frame_locator('#data_output iframe')
    frame.get_by_text('image 40 × 30').wait_for(timeout=PAUSE)
    assert 'nowhere.png' in frame.locator('body').inner_text()
    user.picture('data')
