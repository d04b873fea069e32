"""What is pushed is the model and nothing else, to who was asked for, and a secret stops it."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from align_anything.cli.main import main
from align_anything.cli.sharing.files import model_files
from align_anything.cli.sharing.pushing import prepare, send
from align_anything.core.errors import HubError, ModelError, SettingsError
from tests.harness.hub import TOKEN, FakeHub, Repo, fake_hub

Tiny = Callable[..., Path]
NEVER = {
    '.env': 'HF_TOKEN=x',
    '.git/config': '',
    'state/mp_rank_00_model_states.pt': '',
    'ema/model.safetensors': '',
    'manifest.json': '{}',
    'optimizer.pt': '',
    'training_args.bin': '',
    'trainer_state.json': '{}',
    'pytorch_model.bin': '',
    'deploy.pem': '',
    'id_ed25519': '',
    'hf_token': '',
    'credentials.json': '{}',
    'rollouts/7.jsonl': '{}',
    'completions.jsonl': '{}',
    'metrics.jsonl': '{}',
    'train.json': '[]',
    'rows.parquet': '',
    'run.log': '',
    'events.out.tfevents.1': '',
    'settings.yaml': '',
    'hub.py': '',
    'photo.png': '',
    'what.xyz': '',
}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with fake_hub(monkeypatch) as running:
        yield running


@pytest.fixture
def run_folder(tiny: Tiny, tmp_path: Path) -> Path:
    """The output folder of a run, full of what is not for others."""
    model = tmp_path / 'run' / 'slice_end'
    shutil.copytree(tiny('qwen2'), model)
    for name, text in NEVER.items():
        (model / name).parent.mkdir(parents=True, exist_ok=True)
        (model / name).write_text(text)
    (model / 'curve.png').write_bytes(b'curve')
    (model / 'README.md').write_text('---\ntags:\n- dpo\n---\n# Results\n\n![curve](curve.png)\n')
    (tmp_path / 'run' / 'metrics.jsonl').write_text('{}')
    return tmp_path / 'run'


def left(folder: Path) -> dict[str, str]:
    return {path.as_posix(): reason for path, reason in model_files(folder).left_out.items()}


def test_a_run_is_pushed_privately_without_what_is_not_the_model(
    run_folder: Path, tiny: Tiny, hub: FakeHub, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit) as leaving:
        main(['push', str(run_folder), 'me/model'])
    assert leaving.value.code == 0
    *_, url = capsys.readouterr().out.splitlines()
    assert url == f'{hub.url}/me/model'
    repo = hub.repos['me/model']
    assert repo.private and repo.commits == ['Upload slice_end']
    own = {file.name for file in tiny('qwen2').iterdir()}
    assert repo.files.keys() == {*own, 'README.md', 'curve.png'}
    for name, content in repo.files.items():
        (tmp_path / 'down').mkdir(exist_ok=True)
        (tmp_path / 'down' / name).write_bytes(content)
    there, here = (AutoModelForCausalLM.from_pretrained(each) for each in (tmp_path / 'down', tiny('qwen2')))
    assert all(torch.equal(tensor, here.state_dict()[name]) for name, tensor in there.state_dict().items())
    assert '![curve](curve.png)' in repo.files['README.md'].decode()


def test_a_dry_run_lists_files_with_sizes_and_what_is_left_out_and_why(
    run_folder: Path, hub: FakeHub, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as leaving:
        main(['push', str(run_folder), 'me/model', '--dry_run'])
    assert leaving.value.code == 0 and not hub.requests
    kept, _, rest = capsys.readouterr().out.partition('left out:')
    size = (run_folder / 'slice_end' / 'model.safetensors').stat().st_size
    assert f'{size:,}  model.safetensors' in kept and '.env' not in kept
    for name in NEVER:
        assert f'  {name.partition("/")[0]}: ' in rest, name
    told = left(run_folder / 'slice_end')
    assert told['state'] == 'state of a run, the optimizer among it' and told['.env'] == 'hidden'
    assert told['deploy.pem'] == told['hf_token'] == told['credentials.json'] == 'a key'
    assert told['completions.jsonl'] == told['train.json'] == 'data' and told['run.log'] == 'a log'
    assert told['pytorch_model.bin'].startswith('pickled')


def test_a_link_out_of_the_folder_stays(tiny: Tiny, tmp_path: Path) -> None:
    folder = tmp_path / 'model'
    folder.mkdir()
    for file in tiny('qwen2').iterdir():
        (folder / file.name).symlink_to(file)
    (tmp_path / 'private').write_text('x')
    (folder / 'vocab.txt').symlink_to(tmp_path / 'private')
    (folder / 'merges.txt').symlink_to(tmp_path / 'nowhere')
    listing = model_files(folder)
    assert {path.name for path in listing.kept} == {file.name for file in tiny('qwen2').iterdir()}
    assert {path.name for path in listing.left_out} == {'vocab.txt', 'merges.txt'}
    assert listing.size(Path('merges.txt')) == 0


SECRETS = {
    'hub': ('config.json', '{"note": "' + 'hf_' + 'Q' * 34 + '"}', 'a token of the Hugging Face hub'),
    'api': ('README.md', '# Use\n\nexport KEY=' + 'sk-proj-' + 'a1' * 20, 'a key of an API'),
    'url': ('README.md', '\n\nhttps://me:' + 'word@host.example', 'a password in an address'),
    'named': ('chat_template.jinja', 'api_key = "' + 'Zz09' * 6 + '"', 'a key under its name'),
    'private': ('LICENSE', '-----BEGIN RSA ' + 'PRIVATE KEY-----', 'a private key'),
}


@pytest.mark.parametrize('kind', SECRETS)
def test_a_secret_stops_the_push_and_is_named_but_not_shown(
    kind: str, tiny: Tiny, hub: FakeHub, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(tiny('qwen2'), tmp_path / 'model')
    name, text, told = SECRETS[kind]
    (tmp_path / 'model' / name).write_text((tmp_path / 'model' / name).read_text() if kind == 'hub' else text)
    if kind == 'hub':
        config = json.loads((tmp_path / 'model' / name).read_text()) | json.loads(text)
        (tmp_path / 'model' / name).write_text(json.dumps(config))
    with caplog.at_level(logging.ERROR), pytest.raises(SystemExit) as leaving:
        main(['push', str(tmp_path / 'model'), 'me/model', '--dry_run'])
    assert leaving.value.code == 2 and f'{name}, line {text.count(chr(10)) + 1}: {told}' in caplog.text
    assert text.splitlines()[-1] not in caplog.text and not hub.requests


def test_secrets_of_this_machine_are_looked_for_in_weights_too(
    tiny: Tiny, hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny('qwen2'), tmp_path / 'model')
    monkeypatch.setenv('SERVICE_PASSWORD', 'correct horse battery')
    (tmp_path / 'model' / 'README.md').write_text('# A\ncorrect horse battery\n')
    with pytest.raises(SettingsError, match=r'README.md, line 2: the value of \$SERVICE_PASSWORD'):
        send(prepare(tmp_path / 'model'), 'me/model')
    (tmp_path / 'model' / 'README.md').unlink()
    save_file({'w': torch.zeros(1)}, tmp_path / 'model' / 'extra.safetensors', {'note': TOKEN})
    with pytest.raises(SettingsError, match='extra.safetensors, line 1: the token that you are logged in with'):
        send(prepare(tmp_path / 'model'), 'me/model')
    assert not hub.requests


def test_what_holds_no_whole_model_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    shutil.copytree(tiny('qwen2'), tmp_path / 'model')
    weights = tmp_path / 'model' / 'model.safetensors'
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match='damaged or truncated'):
        prepare(tmp_path / 'model')
    weights.rename(tmp_path / 'model' / 'pytorch_model.bin')
    with pytest.raises(ModelError, match='has no weights.*pytorch_model.bin is pickled'):
        prepare(tmp_path / 'model')
    (tmp_path / 'empty').mkdir()
    with pytest.raises(ModelError, match='no whole model'):
        prepare(tmp_path / 'empty')
    with pytest.raises(ModelError, match='is no folder'):
        prepare(tmp_path / 'nowhere')
    save_file({'w': torch.zeros(1)}, tmp_path / 'empty' / 'model.safetensors')
    with pytest.raises(ModelError, match='has no config.json'):
        prepare(tmp_path / 'empty')


def test_an_adapter_names_its_model_on_the_hub(tiny: Tiny, hub: FakeHub, tmp_path: Path) -> None:
    save_file({'w': torch.zeros(1)}, tmp_path / 'adapter_model.safetensors')
    settings = {'peft_type': 'LORA', 'base_model_name_or_path': str(tiny('qwen2'))}
    (tmp_path / 'adapter_config.json').write_text(json.dumps(settings))
    with pytest.raises(ModelError, match='an adapter without its model.*--base OWNER/NAME'):
        prepare(tmp_path)
    with pytest.raises(SettingsError, match='no name of a model on the hub'):
        prepare(tmp_path, base=str(tiny('qwen2')))
    send(prepare(tmp_path, base='Qwen/Qwen2.5-7B'), 'me/adapter')
    files = hub.repos['me/adapter'].files
    assert json.loads(files['adapter_config.json']) == settings | {'base_model_name_or_path': 'Qwen/Qwen2.5-7B'}
    card = ModelCard(files['README.md'].decode())
    assert (card.data.base_model, card.data.library_name) == ('Qwen/Qwen2.5-7B', 'peft')
    with pytest.raises(SettingsError, match='for adapters'):
        prepare(tiny('qwen2'), base='Qwen/Qwen2.5-7B')


@pytest.mark.extended
def test_a_pipeline_is_whole(tiny: Tiny, tmp_path: Path) -> None:
    shutil.copytree(tiny('sd3'), tmp_path / 'pipeline')
    (tmp_path / 'pipeline' / 'samples').mkdir()
    upload = prepare(tmp_path / 'pipeline')
    stored = {file.relative_to(tiny('sd3')) for file in tiny('sd3').rglob('*') if file.is_file()}
    assert {*upload.contents} == {*stored, Path('README.md')} and Path('samples') in upload.listing.left_out
    (tmp_path / 'pipeline' / 'vae' / 'diffusion_pytorch_model.safetensors').unlink()
    with pytest.raises(ModelError, match='vae has no weights'):
        prepare(tmp_path / 'pipeline')


def test_the_adapter_of_a_pipeline_names_it(hub: FakeHub, tmp_path: Path) -> None:
    (tmp_path / 'lora').mkdir()
    told = {'transformer.r': 4, 'transformer.base_model_name_or_path': str(tmp_path)}
    file = tmp_path / 'lora' / 'pytorch_lora_weights.safetensors'
    save_file({'transformer.x.lora_A.weight': torch.ones(4, 2)}, file, {'lora_adapter_metadata': json.dumps(told)})
    send(prepare(tmp_path / 'lora', base='stabilityai/stable-diffusion-3'), 'me/lora')
    file.write_bytes(hub.repos['me/lora'].files[file.name])
    with safe_open(file, 'pt') as opened:
        again = json.loads(opened.metadata()['lora_adapter_metadata'])
        assert torch.equal(opened.get_tensor('transformer.x.lora_A.weight'), torch.ones(4, 2))
    assert again == told | {'transformer.base_model_name_or_path': 'stabilityai/stable-diffusion-3'}


def test_who_sees_it_is_what_was_asked_for(tiny: Tiny, hub: FakeHub) -> None:
    upload = prepare(tiny('qwen2'))
    hub.repos['me/open'] = Repo(private=False)
    with pytest.raises(SettingsError, match='me/open is public.*--public'):
        send(upload, 'me/open')
    assert not hub.repos['me/open'].files
    send(upload, 'me/open', public=True)
    send(upload, 'me/new', public=True)
    assert not hub.repos['me/new'].private and hub.repos['me/open'].files.keys() == hub.repos['me/new'].files.keys()


def test_weights_of_an_earlier_push_do_not_stay_beside_the_new(tiny: Tiny, hub: FakeHub) -> None:
    older = {'model-00001-of-00002.safetensors': b'', 'model.safetensors.index.json': b'', 'notes.md': b''}
    hub.repos['me/model'] = Repo(private=True, files=dict(older))
    send(prepare(tiny('qwen2')), 'me/model')
    files = hub.repos['me/model'].files
    assert not {*older} - {'notes.md'} & files.keys() and {'notes.md', 'model.safetensors'} <= files.keys()


@pytest.mark.parametrize(
    ('case', 'told'),
    [
        ('login', r'refuses \(401\): Invalid username or password. Log in'),
        ('forbidden', r'refuses \(403\).*Log in'),
        ('broken', r'refuses \(400\)'),
        ('offline', 'may not be reached while HF_HUB_OFFLINE'),
        ('away', 'cannot be reached'),
    ],
)
def test_a_hub_that_refuses_is_one_line(
    case: str, told: str, tiny: Tiny, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = prepare(tiny('qwen2'))
    if case == 'login':
        monkeypatch.setenv('HF_TOKEN', 'hf_' + 'x' * 40)
    elif case == 'forbidden':
        hub.fails['/commit/'] = 403
    elif case == 'broken':
        hub.fails['/preupload/'] = 400
    elif case == 'offline':
        monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
    else:
        monkeypatch.setattr('huggingface_hub.constants.ENDPOINT', 'http://127.0.0.1:9')
    with pytest.raises(HubError, match=told) as error:
        send(upload, 'me/model')
    assert '\n' not in str(error.value) and 'hf_' not in str(error.value)


def test_a_name_that_is_none_is_refused_before_anything(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match='REPO_ID: .*owner/name'):
        send(None, 'a/b/c')


def test_what_actions_mean_goes_along(tmp_path: Path) -> None:
    for name in ('model.safetensors', 'action_space.json', 'action_statistics.json'):
        (tmp_path / name).write_text('{}')
    assert {path.name for path in model_files(tmp_path).kept} == {'model.safetensors', 'action_space.json'}
