"""The configurations that the card of a dataset folder declares, as copies of hub repositories have them."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from align_anything.core.errors import DataError
from align_anything.core.registry import nearest

ABOUT = frozenset({'data_files', 'data_dir', 'default', 'description', 'version'})
"""Keys of a configuration that are no arguments of the reader."""


@dataclass(frozen=True)
class Declared:
    """One configuration.

    Attributes:
        folder: where its file patterns start.
        data_files: the patterns, by split or not; None for all files of the folder.
        arguments: what the card says about reading them, such as `sep` and `features`.
    """

    folder: Path
    data_files: Any = None
    arguments: dict[str, Any] = field(default_factory=dict)


def declared_configuration(folder: Path, name: str | None) -> Declared | None:
    """Returns the configuration called `name` that the card of `folder` declares, or its default one.

    None where the card declares none. Raises DataError for a card that cannot be read, and for a name that it lacks.
    """
    if not _declares(folder):
        return None
    from datasets.info import DatasetInfosDict
    from datasets.utils.metadata import MetadataConfigs
    from huggingface_hub import DatasetCard

    try:
        configs = MetadataConfigs.from_dataset_card_data(DatasetCard.load(folder / 'README.md').data)
        infos = DatasetInfosDict.from_directory(str(folder))
        usual = configs.get_default_config_name()
    except Exception as error:  # the libraries raise whatever a malformed card leads them to
        raise DataError(f'{folder}/README.md: its configs cannot be read: {error}') from error
    if name is None and usual is None:
        raise DataError(f"'{folder}' has several configurations: {', '.join(configs)}. Choose one with name.")
    chosen = name or usual
    if chosen not in configs:
        raise DataError(
            f"'{folder}' has no configuration '{chosen}'.{nearest(chosen, list(configs))} It has: {', '.join(configs)}."
        )
    said = configs[chosen]
    arguments = {key: value for key, value in said.items() if key not in ABOUT}
    features = infos[chosen].features if chosen in infos else None
    if features is not None:
        arguments.setdefault('features', features)
    return Declared(folder / (said.get('data_dir') or ''), said.get('data_files'), arguments)


def _declares(folder: Path) -> bool:
    card = folder / 'README.md'
    if not card.is_file():
        return False
    header = re.match(r'---\n(.*?)\n---', card.read_text(encoding='utf-8', errors='replace'), re.DOTALL)
    return header is not None and re.search(r'^configs:', header.group(1), re.MULTILINE) is not None
