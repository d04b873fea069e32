"""pi0 (Black et al., 2024, arXiv:2410.24164) of transformers: a PaliGemma reads a step, an expert beside it denoises.

A chunk is generated from noise by a flow. There is no history: each turn hangs on the pictures and the state of its own
step, and on what the first one says.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from align_anything.core.actions import Actions, ActionSpace, Statistics
from align_anything.core.errors import ModelError, SampleError
from align_anything.core.files import read_json
from align_anything.core.logging import get_logger
from align_anything.core.types import ACTION, Conversation, Example, Message, Need, Piece
from align_anything.models.acting.pieces import FRAMES, GOAL, LOOK, OBSERVATION, SAID, STATE, VALUES, observed
from align_anything.models.acting.spec import ActionSpec
from align_anything.models.action_space import read_action_space
from align_anything.models.diffusion.process import Flow, Process

logger = get_logger(__name__)
TEXT_TOKENS = 48
"""Most tokens of an instruction, its beginning and end included, as in openpi and lerobot."""
BLANK = -1
"""Stands in a goal where there is no token."""
COMPONENTS = {
    'vision_tower': ['model.vlm.vision_tower'],
    'mm_proj': ['model.vlm.multi_modal_projector'],
    'language_model': ['model.vlm.language_model'],
    'expert': ['model.dit', 'embed_action_time', 'action_out_proj'],
}
OF_ACTIONS, OF_STATES = ('actions_mean', 'actions_std'), ('state_mean', 'state_std')
PROCESSOR = 'processor_config.json'
EPSILON = 1e-8
"""What the processor of pi0 adds to standard deviations."""
OF_CHECKPOINT = 'checkpoint'
"""The name of the statistics that come with the processor of a checkpoint."""


class Pi0Spec(ActionSpec):
    """Encodes steps as the processor of pi0 does, but normalises by the action space.

    A unit is a draw of noise of a chunk, or a denoising step of it. Pictures lie in pieces as the model reads them.

    Attributes:
        config: of the checkpoint.
        processor: of the checkpoint.
        draws: draws of a noise level and noise for each chunk, offline.
        process: the noising process.
    """

    unit: ClassVar[str] = 'denoised action'
    process: ClassVar[Process] = Flow()

    def __init__(
        self,
        config: Any,
        processor: Any,
        space: ActionSpace,
        *,
        state: tuple[Tensor, Tensor] | None = None,
        draws: int = 1,
        source: str = '',
    ) -> None:
        """Raises ModelError for a processor and an action space that are not those of the model.

        `state` are the mean and the standard deviation of the numbers of a state; None leaves them as they are.
        """
        self.config, self.processor, self.tokenizer = config, processor, processor.tokenizer
        self.space, self.state, self.draws, self.source = space, state, draws, source
        self.model_type: str = config.model_type
        self.max_length = sys.maxsize
        self.meets: Need = 'transition'
        self.components = {name: list(own) for name, own in COMPONENTS.items()}
        self._check()

    def _check(self) -> None:
        config, space, problems = self.config, self.space, []
        vision = config.vlm_config.vision_config
        wanted = (vision.image_size // vision.patch_size) ** 2
        if self.processor.image_token_id != config.vlm_config.image_token_id:
            problems.append(
                f'the tokenizer writes pictures as token {self.processor.image_token_id}, and the model reads them at '
                f'{config.vlm_config.image_token_id}: it would see none'
            )
        if self.processor.image_seq_length != wanted:
            problems.append(
                f'the processor writes a picture as {self.processor.image_seq_length} tokens, and the model makes '
                f'{wanted} of it'
            )
        if space.names:
            problems.append('its actions are numbers, and those of its action space have names')
        if len(space.dimensions) > config.max_action_dim:
            problems.append(f'it has {config.max_action_dim} numbers in an action, not {len(space.dimensions)}')
        if space.chunk != config.chunk_size:
            problems.append(f'it says {config.chunk_size} steps in a chunk, and action_space.json has {space.chunk}')
        if self.state is not None and len(self.state[0]) > config.max_state_dim:
            problems.append(f'it has {config.max_state_dim} numbers in a state, not {len(self.state[0])}')
        if problems:
            raise ModelError(f'{self.source or "this pi0"} cannot be used: ' + '; '.join(problems) + '.')

    @property
    def dimensions(self) -> int:
        """How many numbers an action has; further ones, up to what the model says, are zeros."""
        return len(self.space.dimensions)

    @property
    def chunk_shape(self) -> tuple[int, int]:
        """Steps of a chunk and numbers of each, those that fill it up included."""
        return self.config.chunk_size, self.config.max_action_dim

    def reads_state(self, name: str) -> bool:
        """Tells whether a state of that name is read: any of them is."""
        return True

    # Encoding

    def _within(self, response: Piece, prompt: Piece) -> Piece:
        return response

    def _goal(self, messages: Conversation) -> Tensor:
        """The tokens of all that is said before the first action, filled up with BLANK."""
        text = _said_first(messages)
        images = self.processor.image_seq_length
        written = f'{self.processor.image_token * images}{self.tokenizer.bos_token}{text}\n'
        ids = self.tokenizer(written)['input_ids'][images:]
        if len(ids) > TEXT_TOKENS:
            raise SampleError(f'the instruction has {len(ids)} tokens, and the model reads {TEXT_TOKENS}: {text!r}')
        return torch.tensor([*ids, *[BLANK] * (TEXT_TOKENS - len(ids))], dtype=torch.long)

    def _observed(self, message: Message) -> Piece:
        pictures = [part['image'] for part in message['content'] if part['type'] == 'image']
        cameras = self.space.cameras
        if not pictures or (cameras and len(pictures) != len(cameras)):
            wanted = f'{len(cameras)} ({", ".join(cameras)})' if cameras else 'one at least'
            raise SampleError(f'a step shows {len(pictures)} pictures, and should show {wanted}')
        pixels = self.processor.image_processor([picture.convert('RGB') for picture in pictures], return_tensors='pt')[
            'pixel_values'
        ]
        numbers = [value for own in (message.get('state') or {}).values() for value in own]
        return observed({FRAMES: pixels[None], STATE: self._state(numbers)[None]}, len(pictures))

    def _state(self, numbers: Sequence[float]) -> Tensor:
        """The numbers of a state, normalised and filled up with zeros."""
        size = self.config.max_state_dim
        if len(numbers) > size:
            raise SampleError(f'the state of the body has {len(numbers)} numbers, and the model reads {size}')
        values = torch.tensor(numbers, dtype=torch.float64)
        if self.state is not None and numbers:
            mean, std = self.state
            if len(numbers) != len(mean):
                raise SampleError(f'the state of the body has {len(numbers)} numbers, and its statistics {len(mean)}')
            values = (values - mean) / (std + EPSILON)
        return torch.nn.functional.pad(values, (0, size - len(numbers))).float()

    def _acted(self, message: Message, weight: float) -> Piece:
        parts = [part for part in message['content'] if part['type'] == ACTION]
        if len(parts) != 1 or len(message['content']) != 1:
            raise SampleError('an assistant turn should hold one action and nothing else: this model says no words')
        actions: Actions = parts[0][ACTION]
        if actions.values is None:
            raise SampleError(f"the action is '{actions.names[0]}', and this model's are numbers")
        steps, (chunk, size) = len(actions), self.chunk_shape
        if not 1 <= steps <= chunk:
            raise SampleError(f'a turn holds {steps} steps, and this model says {chunk} at a time')
        values = self.space.normalized(actions.values, actions.dataset).float()
        # As if it stayed where it ended: what the model is shown there weighs nothing, and should be like actions.
        values = torch.cat([values, values[-1:].expand(chunk - steps, -1)])
        values = torch.nn.functional.pad(values, (0, size - values.shape[1]))
        weights = torch.full((self.draws,), weight / self.draws)
        return done(torch.arange(self.draws), weights, values, torch.arange(chunk) < steps)

    def decode(self, piece: Piece) -> list[dict[str, Any]]:
        """Returns a response as parts, the chunk of each turn one of them, in the numbers of the environment."""
        rows = zip(piece.media[VALUES], piece.media[SAID], strict=True)
        return [{'type': ACTION, ACTION: self.actions_of(values[said])} for values, said in rows]

    def actions_of(self, values: Tensor) -> Actions:
        """Returns the actions of what the model says, `(steps, at least dimensions)`."""
        return Actions(self.space.restored(values[:, : self.dimensions].double()), dataset=self.space.dataset)

    def blank(self) -> Example:
        """Returns an Example that every batch can hold: a black picture, nothing said, and nothing done."""
        vision = self.config.vlm_config.vision_config
        cameras = max(1, len(self.space.cameras))
        frames = torch.zeros(1, cameras, 3, vision.image_size, vision.image_size)
        prompt = observed({FRAMES: frames, STATE: torch.zeros(1, self.config.max_state_dim)}, cameras)
        goal = torch.full((1, TEXT_TOKENS), BLANK)
        goal[0, 0] = self.tokenizer.bos_token_id
        prompt.media[GOAL] = goal
        chunk = torch.zeros(self.chunk_shape)
        response = done(torch.zeros(1).long(), torch.zeros(1), chunk, torch.ones(len(chunk), dtype=torch.bool))
        return Example(prompt, [response], source='(empty micro-batch)')


def done(ids: Tensor, weights: Tensor, values: Tensor, said: Tensor) -> Piece:
    """Returns the piece of one chunk `(chunk, numbers)`, with as many units as it has `ids`."""
    return Piece(
        ids,
        weights,
        media={VALUES: values[None], SAID: said[None]},
        token_tensors={LOOK: torch.zeros(len(ids), dtype=torch.long)},
    )


def looks(ids: Tensor) -> Tensor:
    """Returns how many observations stand before or at each id of a piece, `(length,)`."""
    return (ids == OBSERVATION).cumsum(0)


def load_pi0_spec(source: str | Path, *, draws: int = 1, space: ActionSpace | None = None) -> Pi0Spec:
    """Reads the rules of a checkpoint, no weights; `space` stands in for its action space.

    What its processor says of the mean and standard deviation of actions and states counts where it is written in the
    checkpoint (transformers itself does not read it from there); numbers built into the class of the processor are
    those of another robot, and count nowhere. Where nothing is written, the space has no dimensions yet: a run makes
    them, and statistics, of its data. Raises ModelError for a checkpoint that cannot be used.
    """
    from transformers import AutoConfig, AutoProcessor

    config, processor = AutoConfig.from_pretrained(source), AutoProcessor.from_pretrained(source)
    written = _written(Path(source))
    space = space or read_action_space(source)
    if space is None:
        space = _space_of(written, config)
    else:
        _tell_mismatch(written, space, str(source))
    state = None
    if all(name in written for name in OF_STATES):
        state = tuple(torch.tensor(written[name], dtype=torch.float64) for name in OF_STATES)
    return Pi0Spec(config, processor, space, state=state, draws=draws, source=str(source))


def _said_first(messages: Conversation) -> str:
    """What is said before the first action."""
    texts: list[str] = []
    for message in messages:
        if message['role'] == 'assistant':
            break
        texts += [part['text'].strip() for part in message['content'] if part['type'] == 'text']
    text = ' '.join(text for text in texts if text)
    if not text:
        raise SampleError('the episode has no goal: the first turn should say in words what is to be done')
    return text


def _written(folder: Path) -> Mapping[str, Any]:
    file = folder / PROCESSOR
    return read_json(file) if file.is_file() else {}


def _space_of(written: Mapping[str, Any], config: Any) -> ActionSpace:
    if not all(name in written for name in OF_ACTIONS):
        return ActionSpace(normalization='mean_std', chunk=config.chunk_size, executed=config.chunk_size, pictures=None)
    mean, std = (tuple(map(float, written[name])) for name in OF_ACTIONS)
    # Mean-std normalisation reads neither bound; these are where a normal distribution has its percentiles.
    low, high = (tuple(m + sign * 2.326 * s for m, s in zip(mean, std, strict=True)) for sign in (-1, 1))
    statistics = Statistics(low, high, mean, std, (True,) * len(mean))
    return ActionSpace(
        dimensions=tuple(f'action_{number}' for number in range(len(mean))),
        normalization='mean_std',
        statistics={OF_CHECKPOINT: statistics},
        dataset=OF_CHECKPOINT,
        chunk=config.chunk_size,
        executed=config.chunk_size,
        pictures=None,
    )


def _tell_mismatch(written: Mapping[str, Any], space: ActionSpace, source: str) -> None:
    """Warns where the processor and the action space of a checkpoint normalise actions differently."""
    if not all(name in written for name in OF_ACTIONS) or not space.statistics:
        return
    theirs = [float(value) for name in OF_ACTIONS for value in written[name]]
    ours = [[*own.mean, *own.std] for own in space.statistics.values()]
    if space.normalization != 'mean_std' or not any(_near(theirs, own) for own in ours):
        logger.warning(
            '%s: processor_config.json normalises actions by %s = %s and %s, which are not the statistics in '
            'action_space.json. The latter hold.',
            source,
            OF_ACTIONS[0],
            written[OF_ACTIONS[0]],
            OF_ACTIONS[1],
        )


def _near(one: Sequence[float], other: Sequence[float]) -> bool:
    return len(one) == len(other) and all(
        abs(a - b) <= 1e-6 * max(1.0, abs(a)) for a, b in zip(one, other, strict=True)
    )
