"""A page on this machine that asks what to train and writes the YAML file for it.

python scripts/web_form.py configs/my_config.yaml [--port 8300]
"""

from __future__ import annotations

import argparse
import html
import secrets
import sys
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from mapping import ALGORITHM, File, Lora, Part, Projection, read_values

from align_anything.algorithms.base import find_algorithm
from align_anything.configs.schema import build_run_schema
from align_anything.configs.yaml_text import dump_yaml, parse_yaml
from align_anything.core.errors import AlignAnythingError, SettingsError
from align_anything.core.files import atomic_write_text, writable_folder
from align_anything.core.logging import get_logger
from align_anything.core.types import MEDIA_KINDS
from align_anything.trainers.launch import USER_ERROR

HOST, PORT = '127.0.0.1', 8300
MAX_BYTES = 2**16
TOKEN, MORE = 'token', 'more'
FORMS = ('', 'continuous', 'discrete')
LISTS = ('dataset', 'lora.target_modules', 'modalities.input', 'modalities.output')
OURS = {
    'num_train_epochs': ('train_cfgs', 'epochs'),
    'learning_rate': ('train_cfgs', 'learning_rate'),
    'per_device_train_batch_size': ('train_cfgs', 'per_device_train_batch_size'),
    'gradient_accumulation_steps': ('train_cfgs', 'gradient_accumulation_steps'),
    'max_seq_length': ('model_cfgs', 'model_max_length'),
    'output_dir': ('logger_cfgs', 'output_dir'),
}
"""Keys of the Hugging Face trainer that the page asks for, and the settings that they are."""
STYLE = (
    'body{font:16px system-ui;max-width:52rem;margin:2rem auto;padding:0 1rem}label{display:block;margin:.6rem 0}'
    'small{display:block;color:#555}input[type=text],textarea{width:100%;box-sizing:border-box}'
    'pre{background:#f3f3f3;padding:1rem;overflow:auto}.wrong{color:#a00}'
)
logger = get_logger('any2any')


def main(argv: Sequence[str] | None = None) -> None:
    """Serves the page until Ctrl-C. Ends with code 2 where the file exists, or the port cannot be had."""
    parser = argparse.ArgumentParser(description='A page on this machine that writes a YAML file.')
    parser.add_argument('file', type=Path, help='the YAML file to write')
    parser.add_argument('--port', type=int, default=PORT, help='port of 127.0.0.1; 0 takes any')
    given = parser.parse_args(argv)
    try:
        server = make_server(given.file, given.port)
    except AlignAnythingError as error:
        logger.error('%s:\n%s', type(error).__name__, error)
        sys.exit(USER_ERROR)
    logger.info('open http://%s:%d in a browser of this machine; Ctrl-C ends it', HOST, server.server_port)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        logger.info('ended')
    finally:
        server.server_close()


def make_server(file: Path, port: int) -> HTTPServer:
    """Returns a server of the page that writes `file`, bound to 127.0.0.1 and not yet serving.

    Raises SettingsError where the file exists, its folder cannot be written, or the port cannot be had.
    """
    if file.exists():
        raise SettingsError([f'{file} exists; name another file, or remove it.'])
    writable_folder(file.parent, 'the folder of the file')
    page = type('OwnPage', (Page,), {'file': file, 'token': secrets.token_urlsafe(), 'names': set()})
    try:
        server = HTTPServer((HOST, port), page)
    except (OSError, OverflowError) as error:
        raise SettingsError([f'--port {port}: {error}. Name another one, or 0 for any.']) from error
    page.names |= {f'{name}:{server.server_port}' for name in (HOST, 'localhost')}
    return server


class Page(BaseHTTPRequestHandler):
    """Answers requests for the page, and writes the file that it asks for.

    Other pages in the same browser know neither the `token` of its form nor the `names` of its server.
    """

    file: Path
    token: str
    names: set[str]

    def do_GET(self) -> None:
        """Shows the empty form."""
        if self._is_ours():
            self._show(form({}, self.token))

    def do_POST(self) -> None:
        """Writes the file, or shows what is wrong above the form."""
        if not self._is_ours():
            return
        length = self.headers.get('Content-Length', '')
        if not length.isdigit() or int(length) > MAX_BYTES:
            self._show('too large', HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
            return
        given = parse_qs(self.rfile.read(int(length)).decode('utf-8', 'replace'))
        if not secrets.compare_digest(given.pop(TOKEN, [''])[0].encode(), self.token.encode()):
            self._show('the form is of another start of this page; open it again', HTTPStatus.FORBIDDEN)
            return
        try:
            text = yaml_of(given)
        except AlignAnythingError as error:
            self._show(f'<pre class="wrong">{html.escape(str(error))}</pre>{form(given, self.token)}')
            return
        atomic_write_text(self.file, text)
        name = html.escape(str(self.file))
        self._show(
            f'<p>{name} is written. Train with</p><pre>python scripts/train_multimodal.py {name}</pre>'
            f'<pre>{html.escape(text)}</pre>{form(given, self.token)}'
        )

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing of requests."""

    def _is_ours(self) -> bool:
        if self.headers.get('Host') in self.names:
            return True
        self._show('this page is for browsers of this machine', HTTPStatus.FORBIDDEN)
        return False

    def _show(self, body: str, status: HTTPStatus = HTTPStatus.OK) -> None:
        page = f'<!doctype html><meta charset="utf-8"><title>Any2Any</title><style>{STYLE}</style>{body}'.encode()
        self.send_response(status)
        self.send_header('Content-Type', 'text/html; charset=utf-8')
        self.send_header('Content-Length', str(len(page)))
        self.end_headers()
        self.wfile.write(page)


def yaml_of(given: Mapping[str, Sequence[str]]) -> str:
    """Returns the YAML text of what a form was given, by names of fields. Raises SettingsError with all that is wrong.

    A field that is empty is no key of the file.
    """
    values: dict[str, Any] = {}
    for name, texts in given.items():
        texts = [text.strip() for text in texts if text.strip()]
        if not texts or name == MORE:
            continue
        into, *path = values, *name.split('.')
        for key in path[:-1]:
            into = into.setdefault(key, {})
        into[path[-1]] = _value(name, texts)
    try:
        more = parse_yaml(given.get(MORE, [''])[0]) or {}
    except ValueError as error:
        raise SettingsError([f'further keys: {error}.']) from error
    if not isinstance(more, dict):
        raise SettingsError(['further keys: write a key and its value on each line, such as seed: 1.'])
    twice = sorted(values.keys() & more.keys())
    if twice:
        raise SettingsError([f'further keys: {key} has a field of its own.' for key in twice])
    read_values({**values, **more}, 'form')
    return dump_yaml({**values, **more})


def _value(name: str, texts: Sequence[str]) -> Any:
    if name in LISTS:
        return [word for text in texts for line in text.splitlines() for word in line.replace(',', ' ').split()]
    return parse_yaml(texts[0])


def form(given: Mapping[str, Sequence[str]], token: str) -> str:
    """Returns the form with what it was given before."""
    groups = {
        group: field.annotation for group, field in build_run_schema(find_algorithm(ALGORITHM)).model_fields.items()
    }
    described = {name: groups[group].model_fields[key].description for name, (group, key) in OURS.items()}

    def text(name: str, told: str | None) -> str:
        value = html.escape(', '.join(given.get(name, [])))
        return _label(name, told, f'<input type="text" name="{name}" value="{value}">')

    def choice(name: str, options: Sequence[str], told: str | None) -> str:
        chosen = given.get(name, [''])[0]
        made = ''.join(f'<option{" selected" if option == chosen else ""}>{option}</option>' for option in options)
        return _label(name, told, f'<select name="{name}">{made}</select>')

    def boxes(name: str) -> str:
        held = given.get(name, ['text'])
        made = ''.join(
            f'<input type="checkbox" name="{name}" value="{kind}"{" checked" if kind in held else ""}> {kind} '
            for kind in ('text', *MEDIA_KINDS)
        )
        return _label(name, 'What is read.' if name.endswith('input') else 'What is written.', made)

    own, part = _told(File), _told(Part)
    media = ''.join(
        f'<fieldset><legend>{kind}</legend>'
        + text(f'encoders.{kind}.model', 'Encoder of what goes in continuously.')
        + text(f'decoders.{kind}.model', 'Codec of what goes in or comes out as discrete tokens.')
        + choice(f'tokenizers.{kind}', FORMS, part['tokenizer_type'].replace('The same as `tokenizers` of', 'Form of'))
        + '</fieldset>'
        for kind in MEDIA_KINDS
    )
    truth = ('', 'true', 'false')
    more = html.escape(given.get(MORE, [''])[0])
    return (
        '<h1>What to train</h1><form method="post">'
        + f'<input type="hidden" name="{TOKEN}" value="{token}">'
        + text('model_name_or_path', own['model_name_or_path'])
        + text('dataset', own['dataset'])
        + boxes('modalities.input')
        + boxes('modalities.output')
        + media
        + choice('projection.type', ('', 'mlp', 'linear', 'transformer', 'expand'), Projection.__doc__)
        + choice('train_projection_only', truth, own['train_projection_only'])
        + choice('freeze_llm', truth, own['freeze_llm'])
        + choice('use_peft', truth, own['use_peft'])
        + text('lora.r', f'{Lora.__doc__} Their rank.')
        + text('lora.target_modules', 'Layers that get one, such as q_proj, v_proj; by default every linear one.')
        + ''.join(text(name, told) for name, told in described.items())
        + _label(MORE, 'Further keys, as YAML.', f'<textarea name="{MORE}" rows="4">{more}</textarea>')
        + '<p><button>Write the file</button></p></form>'
    )


def _label(name: str, told: str | None, field: str) -> str:
    return f'<label>{name}<small>{html.escape(told or "")}</small>{field}</label>'


def _told(kind: type) -> dict[str, str]:
    return {name: field.description or '' for name, field in kind.model_fields.items()}


if __name__ == '__main__':
    main()
