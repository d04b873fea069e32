"""Uploads a checkpoint of a training, with its card, to the Hugging Face hub.

python upload_ckpt_hf.py --ckpt_dir output_checkpoints/experiment_1 --epoch 0 --hf_repo_id me/my_model
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import ModelCard

from align_anything.cli.sharing.pushing import prepare, send
from align_anything.core.errors import AlignAnythingError, HubError, ModelError
from align_anything.engines.checkpoint import CARD_FILE, MANIFEST
from align_anything.models.adapter import find_adapter
from align_anything.models.pretrained_model import load_spec

TAGS = ('any-to-any', 'omega', 'omegalabs', 'bittensor', 'agi')
TOKEN = 'HF_ACCESS_TOKEN'


def checkpoint_of(ckpt_dir: Path, epoch: int) -> Path:
    """Returns the last checkpoint that was saved in an epoch, counted from 0.

    Raises ModelError, which tells the epochs that there are, when there is none.
    """
    found = {}
    for manifest in ckpt_dir.glob(f'slice_*/{MANIFEST}'):
        if not manifest.parent.name.endswith('.old'):
            progress = json.loads(manifest.read_text(encoding='utf-8'))['progress']
            # What is saved when an epoch is through stands before the first step of the next one.
            own = progress['epoch'] - (progress['step_in_epoch'] == 0)
            found[manifest.parent] = own, progress['step'], manifest.parent.name
    of_epoch = [folder for folder, (own, _, _) in found.items() if own == epoch]
    if not of_epoch:
        there = ', '.join(f'{folder.name} (epoch {own})' for folder, (own, _, _) in sorted(found.items())) or 'none'
        raise ModelError(f'{ckpt_dir} has no checkpoint of epoch {epoch}; there is: {there}.')
    return max(of_epoch, key=lambda folder: found[folder][1:])


def require_model(folder: Path) -> None:
    """Raises ModelError when a checkpoint is not what the subnet takes: a whole model with its reader and its card."""
    if find_adapter(folder) is not None:
        raise ModelError(
            f'{folder} is an adapter without its model: merge it (align-anything merge {folder} OUT), or train with '
            'save_full_model: True.'
        )
    # It finds out whether configuration, tokenizer, processor and template are there.
    load_spec(folder, model_max_length=None)
    if not (folder / CARD_FILE).is_file():
        raise ModelError(f'{folder} has no card ({CARD_FILE}).')


def card_of(folder: Path, license_name: str | None) -> ModelCard:
    """Returns the card of the checkpoint with the tags of the subnet."""
    card = ModelCard.load(folder / CARD_FILE)
    card.data.tags = list(dict.fromkeys([*(card.data.tags or []), *TAGS]))
    if license_name is not None:
        card.data.license = license_name
    return card


def main(argv: Sequence[str] | None = None) -> None:
    """Uploads what the options name, as one commit."""
    parser = argparse.ArgumentParser(description='Uploads a checkpoint to the Hugging Face hub.')
    parser.add_argument('--ckpt_dir', type=Path, required=True, help='the output folder of the training')
    parser.add_argument('--epoch', type=int, required=True, help='number of the epoch, from 0')
    parser.add_argument('--hf_repo_id', required=True, help='the repository, such as omegalabsinc/any_to_any_v1')
    parser.add_argument('--license', help='name of the license, for the card; it depends on the base and the data')
    parser.add_argument('--public', action='store_true', help='make a new repository public; by default it is private')
    parser.add_argument('--dry-run', action='store_true', help='print the files and the card, and upload nothing')
    given = parser.parse_args(argv)
    message = f'Checkpoint of epoch {given.epoch}'
    try:
        folder = checkpoint_of(given.ckpt_dir, given.epoch)
        require_model(folder)
        card = card_of(folder, given.license)
        upload = prepare(folder, card=str(card))
        print(upload)
        if given.dry_run:
            print(f'{CARD_FILE}:\n{card}')
            upload.check_secrets()
            return
        print(send(upload, given.hf_repo_id, public=given.public, message=message, token=os.environ.get(TOKEN)))
    except HubError as error:
        parser.exit(1, f'{error} A token in {TOKEN} is used too.\n')
    except AlignAnythingError as error:
        parser.exit(2, f'{error}\n')


if __name__ == '__main__':
    main(sys.argv[1:])
