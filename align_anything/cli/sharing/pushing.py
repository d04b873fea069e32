"""Putting a model on the Hugging Face hub."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError, safe_open

from align_anything.cli.sharing.files import WEIGHTS, Listing, model_files
from align_anything.cli.sharing.secrets import find_secrets
from align_anything.core.errors import HubError, ModelError, SettingsError
from align_anything.core.files import read_json, trained_model_in
from align_anything.core.logging import get_logger
from align_anything.engines.checkpoint import CARD_FILE
from align_anything.models.adapter import find_adapter
from align_anything.models.checkpoint import ADAPTER_CONFIG, check_checkpoint, stored_keys
from align_anything.models.diffusion.checkpoint import INDEX, LORA_FILE
from align_anything.models.diffusion.checkpoint import load_spec as load_pipeline_spec
from align_anything.models.diffusion.saved_lora import is_lora_folder, recorded_base, with_base
from align_anything.reporting.card import hub_base, is_hub_name, plain_card

logger = get_logger(__name__)
BASE = 'base_model_name_or_path'
LOGIN = 'Log in with `hf auth login`, or set HF_TOKEN to a token that may write.'


@dataclass(frozen=True)
class Upload:
    """What is to be uploaded of a folder: files as they are, or what they are replaced by; and what is left out."""

    listing: Listing
    contents: Mapping[Path, Path | bytes]

    def size(self, name: Path) -> int:
        """Bytes of a file."""
        content = self.contents[name]
        return len(content) if isinstance(content, bytes) else content.stat().st_size

    def __str__(self) -> str:
        rows = [f'{self.size(name):>16,}  {name}' for name in self.contents]
        total = sum(map(self.size, self.contents))
        lines = [f'{len(rows)} files, {total:,} bytes, of {self.listing.folder}:', *rows]
        if self.listing.left_out:
            lines += ['left out:']
            lines += [
                f'{self.listing.size(path):>16,}  {path}: {reason}' for path, reason in self.listing.left_out.items()
            ]
        return '\n'.join(lines)

    def check_secrets(self) -> None:
        """Raises SettingsError, naming file and line, when something to be uploaded looks like a secret."""
        found = find_secrets(self.contents)
        if found:
            raise SettingsError(
                [f'{finding}. Nothing was uploaded; take it out, and if it is one, revoke it.' for finding in found]
            )


def prepare(folder: str | Path, *, base: str | None = None, card: str | None = None) -> Upload:
    """Finds what there is to upload in `folder`: a model, an adapter or a pipeline, or the output folder of a run.

    An adapter says on the hub which model it belongs to by a name of the hub. A folder without a card gets a plain one.

    Args:
        base: hub name of the model under an adapter; None for the one that the adapter, or its model's card, records.
        card: what goes up in place of the card in the folder.

    Raises ModelError for a folder without a whole model, and for an adapter whose model has no name on the hub.
    """
    if not Path(folder).is_dir():
        raise ModelError(f'{folder} is no folder; name the one that the run saved, such as <output_dir>/slice_end.')
    folder = trained_model_in(folder) or Path(folder)
    listing = model_files(folder)
    _check_whole(folder, listing)
    contents: dict[Path, Path | bytes] = {path: folder / path for path in listing.kept}
    contents |= _renamed_base(folder, base)
    if card is not None:
        contents[Path(CARD_FILE)] = card.encode()
    elif not (folder / CARD_FILE).is_file():
        contents[Path(CARD_FILE)] = plain_card(folder, base or _base_name(folder)).encode()
    return Upload(listing, contents)


def send(
    upload: Upload, repo_id: str, *, public: bool = False, message: str | None = None, token: str | None = None
) -> str:
    """Uploads as one commit; returns the address. A repository that is not there is made, private unless `public`.

    Weights of an earlier upload that this one does not have are deleted with it, so that nobody loads both.

    Args:
        token: of the hub; None for $HF_TOKEN, or that of the login.

    Raises:
        SettingsError: `repo_id` is none, the repository is public without `public`, or a file holds a secret.
        HubError: the hub cannot be reached, or refuses.
    """
    check_repo_id(repo_id)
    upload.check_secrets()
    api = HfApi(token=token)
    try:
        url = api.create_repo(repo_id, private=not public, exist_ok=True)
        there = api.repo_info(url.repo_id)
        if there.private is False and not public:
            raise SettingsError(
                [f'{url.repo_id} is public, and everyone would see what is pushed: say --public, or name another one.']
            )
        if there.private and public:
            logger.warning('%s is private, and stays so; its settings on the hub make it public', url.repo_id)
        stale = [file.rfilename for file in there.siblings or [] if _is_stale(file.rfilename, upload)]
        operations = [CommitOperationAdd(name.as_posix(), content) for name, content in upload.contents.items()]
        operations += [CommitOperationDelete(name) for name in stale]
        api.create_commit(url.repo_id, operations, commit_message=message or f'Upload {upload.listing.folder.name}')
    # What uploads in the background fails with errors of its own.
    except (OSError, ValueError, RuntimeError, httpx2.HTTPError) as error:
        raise HubError(f'{repo_id}: {_told(error)}') from error
    return str(url)


def check_repo_id(repo_id: str) -> None:
    """Raises SettingsError for what is no name of a repository."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise SettingsError([f'REPO_ID: {error} Name it as owner/name.']) from error


def _told(error: Exception) -> str:
    if isinstance(error, OfflineModeIsEnabled):
        return 'the hub may not be reached while HF_HUB_OFFLINE is set.'
    if not isinstance(error, HfHubHTTPError) or error.response is None:
        return f'the hub cannot be reached: {error}'
    status = error.response.status_code
    # The first line names the request, which says nothing to who made it; the last what the server says.
    said = (error.server_message or str(error).strip().splitlines()[-1]).strip()
    return f'the hub refuses ({status}): {said}' + (f' {LOGIN}' if status in (401, 403) else '')


def _is_stale(name: str, upload: Upload) -> bool:
    is_weights = name.endswith((*WEIGHTS, '.bin')) or re.search(r'\.(safetensors|bin)\.index\.json$', name)
    return bool(is_weights) and Path(name) not in upload.contents


def _check_whole(folder: Path, listing: Listing) -> None:
    """Raises ModelError where `listing` is no model that could be loaded; opens files, and reads no weights."""
    weights = [path for path in listing.kept if path.name.endswith(WEIGHTS)]
    for path in weights:
        if path.suffix == '.safetensors':
            try:
                with safe_open(folder / path, 'pt'):
                    pass
            except (SafetensorError, OSError) as error:
                raise ModelError(f'{folder / path} is damaged or truncated ({error}).') from error
    if any(path.suffix == '.gguf' for path in weights) or is_lora_folder(folder):
        return
    if not weights:
        pickled = next((path for path, reason in listing.left_out.items() if reason.startswith('pickled')), None)
        why = f'; {pickled} is pickled, which runs code when it is loaded: save it as safetensors' if pickled else ''
        raise ModelError(f'{folder} has no weights, so that it holds no whole model{why}.')
    if (folder / INDEX).is_file():
        _check_pipeline(folder)
    elif find_adapter(folder) is None:
        config = folder / 'config.json'
        # Its own code would have to run for what else there is to check.
        if not config.is_file() or 'auto_map' not in read_json(config):
            check_checkpoint(folder)
        stored_keys(folder)


def _check_pipeline(folder: Path) -> None:
    spec = load_pipeline_spec(folder)
    for name in spec.configs:
        # Schedulers, tokenizers and processors have configurations of other names.
        if (folder / name / 'config.json').is_file() and not [*(folder / name).glob('*.safetensors')]:
            raise ModelError(f'{folder} holds no whole model: its {name} has no weights as safetensors.')


def _base_name(folder: Path) -> str | None:
    """The hub's name of the model under an adapter; None for a model, and for one without such a name."""
    if is_lora_folder(folder):
        recorded = recorded_base(folder)
    else:
        adapter = find_adapter(folder)
        recorded = None if adapter is None else adapter.base
    return None if recorded is None else hub_base(recorded)


def _renamed_base(folder: Path, base: str | None) -> Mapping[Path, bytes]:
    """The files of an adapter that name its model by a folder of this machine, with its name on the hub instead."""
    is_lora = is_lora_folder(folder)
    adapter = None if is_lora else find_adapter(folder)
    if base is not None and (not (is_lora or adapter) or not is_hub_name(base)):
        what = 'no name of a model on the hub' if is_lora or adapter else f'for adapters, and {folder} is a whole model'
        raise SettingsError([f'--base {base} is {what}.'])
    if not (is_lora or adapter):
        return {}
    recorded = recorded_base(folder) if is_lora else adapter.base
    name = base or _base_name(folder)
    if name is None:
        raise ModelError(
            f'{folder} holds an adapter without its model: it was trained on {recorded or "what it does not record"}, '
            f'which nobody finds on the hub. Name that with --base OWNER/NAME, or push the whole model '
            f'(align-anything merge {folder} OUT).'
        )
    return {} if name == recorded else dict(_with_base(folder, name, is_lora))


def _with_base(folder: Path, name: str, is_lora: bool) -> Iterator[tuple[Path, bytes]]:
    if is_lora:
        for file in sorted(folder.glob(f'{Path(LORA_FILE).stem}*.safetensors')):
            yield Path(file.name), with_base(file, name)
        return
    settings: dict[str, Any] = {**read_json(folder / ADAPTER_CONFIG), BASE: name}
    yield Path(ADAPTER_CONFIG), (json.dumps(settings, indent=2) + '\n').encode()
