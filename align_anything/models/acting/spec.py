"""The rules of models that act: everything about a checkpoint that is not its weights, the `Spec` of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import numpy
import torch
from PIL import Image
from torch import Tensor

from align_anything.core.actions import Actions, ActionSpace
from align_anything.core.errors import ModelError, SampleError
from align_anything.core.types import ACTION, Conversation, Example, MediaKind, Message, Need, Piece
from align_anything.models.acting.configuration import SpocConfig
from align_anything.models.acting.pieces import (
    FRAMES,
    GOAL,
    OBSERVATION,
    SAID,
    SENSORS,
    STATE,
    VALUES,
    acted,
    observed,
)
from align_anything.models.encoding import join, merge_media
from align_anything.models.rendering import TrainOn, first_differing_turn, shared_turns, trained_turns, weight_of

MEETS: Mapping[str, Need] = {'categorical': 'probability', 'gaussian': 'transition', 'l1': 'score'}


class ActionSpec:
    """Turns conversations into Examples and answers what policies, rollouts and exports must know of a checkpoint.

    A unit is a turn: one named action, or a chunk of numbers. Picklable, without weights.

    Attributes:
        config: of the checkpoint.
        tokenizer: of goals.
        space: what its actions are.
        max_length: most observations and actions of an episode together.
        meets: what the score of an action is, by its head.
    """

    unit: ClassVar[str] = 'action'
    reads: ClassVar[frozenset[MediaKind]] = frozenset({'image'})
    emits: ClassVar[frozenset[MediaKind]] = frozenset({ACTION})
    reads_audio_in_video: ClassVar[bool] = False
    audio_rate: ClassVar[None] = None
    processor: ClassVar[None] = None
    codes: None = None

    def __init__(
        self,
        config: SpocConfig,
        tokenizer: Any,
        space: ActionSpace,
        *,
        max_length: int,
        components: Mapping[str, Sequence[str]],
    ) -> None:
        """Raises ModelError for a space that is not that of the model's head."""
        self.config, self.tokenizer, self.space = config, tokenizer, space
        self.model_type: str = config.model_type
        self.max_length = min(max_length, 2 * config.max_steps)
        self.meets: Need = MEETS[config.head]
        self.components = {name: list(own) for name, own in components.items()}
        self._check()

    def act_in(self, space: ActionSpace) -> None:
        """Takes the space that a run made of that of the checkpoint. Raises ModelError for one of another shape."""
        self.space = space
        self._check()

    def _check(self) -> None:
        config, space = self.config, self.space
        wanted = {
            'named actions': (config.actions if config.head == 'categorical' else 0, len(space.names)),
            'dimensions': (config.dimensions, len(space.dimensions)),
            'steps in a chunk': (config.chunk, space.chunk),
            'cameras': (config.cameras, len(space.cameras)),
        }
        problems = [
            f'the model has {of_model} {what}, its action space {of_space}'
            for what, (of_model, of_space) in wanted.items()
            if of_model != of_space
        ]
        if problems:
            raise ModelError('config.json and action_space.json do not belong together: ' + '; '.join(problems) + '.')

    @cached_property
    def sensors(self) -> tuple[str, ...]:
        """The sensors of the model, in order."""
        return tuple(self.config.sensors)

    def reads_state(self, name: str) -> bool:
        """Tells whether a state of that name is read."""
        return name in self.sensors or self.config.state_size > 0

    # Encoding

    def encode(self, conversation: Conversation, train_on: TrainOn = 'all_assistant') -> Example:
        """Encodes an episode whose pictures are decoded: what it begins with, and as one response what follows.

        Raises SampleError for a row that is no episode of this model.
        """
        start = next((at for at, message in enumerate(conversation) if message['role'] == 'assistant'), None)
        if start is None:
            raise SampleError('the conversation has no assistant turn, so that nothing is done in it')
        return self._encoded([conversation], train_on, start)

    def encode_group(
        self,
        conversations: Sequence[Conversation],
        train_on: TrainOn = 'all_assistant',
        start: int | None = None,
        judged: bool = False,
    ) -> Example:
        """Encodes episodes that begin alike; see `Spec.encode_group`."""
        if start is None or shared_turns(conversations) < start:
            start = first_differing_turn(conversations)
        return self._encoded(conversations, train_on, start)

    def encode_prompt(self, messages: Conversation) -> Piece:
        """Encodes what the first action follows: a goal and pictures. Raises SampleError as `encode` does.

        Messages without pictures have none yet: an environment shows the first ones.
        """
        if not any(_pictures(message) for message in messages):
            return Piece(torch.zeros(0, dtype=torch.long), torch.zeros(0))
        goal = self._goal(messages)
        prompt = self._piece(messages, set(), self._begins(messages))
        if int(prompt.ids[-1]) != OBSERVATION:
            raise SampleError('the episode ends with an action, and pictures must follow it')
        prompt.media[GOAL] = goal[None]
        return prompt

    def encode_shown(self, messages: Conversation) -> Piece:
        """Encodes what an environment shows between two actions. Raises SampleError as `encode` does."""
        return self._piece(messages, set(), 0)

    def _encoded(self, conversations: Sequence[Conversation], train_on: TrainOn, start: int) -> Example:
        prompt = self.encode_prompt(conversations[0][:start])
        if not len(prompt):
            raise SampleError('the episode begins without pictures, which the first action should hang on')
        responses = [
            self._within(
                self._piece(turns[start:], {at - start for at in trained_turns(turns, train_on, start)}, 0), prompt
            )
            for turns in conversations
        ]
        if any(not response.units for response in responses):
            raise SampleError('no action to train is within model_cfgs.model_max_length')
        return Example(prompt, responses)

    def _within(self, response: Piece, prompt: Piece) -> Piece:
        """The response as far as it fits behind the prompt."""
        capacity = self.max_length - len(prompt)
        if len(response) <= capacity:
            return response
        ids, kept = response.ids[:capacity], {**response.media}
        for names, number in (((FRAMES, SENSORS, STATE), int((ids == OBSERVATION).sum())), ((VALUES, SAID), 0)):
            number = number if names[0] == FRAMES else int((ids != OBSERVATION).sum())
            kept |= {name: kept[name][:number] for name in names if name in kept}
        return Piece(
            ids,
            response.weights[:capacity],
            media=kept,
            media_counts={'image': self.config.cameras * int((ids == OBSERVATION).sum())},
            token_tensors={name: value[:capacity] for name, value in response.token_tensors.items()},
            truncated=True,
        )

    def _begins(self, messages: Conversation) -> int:
        """The number of the first message with pictures; those before it only say the goal."""
        return next(at for at, message in enumerate(messages) if _pictures(message))

    def _goal(self, messages: Conversation) -> Tensor:
        """The token ids of all that is said before the first action."""
        texts: list[str] = []
        for message in messages:
            if message['role'] == 'assistant':
                break
            texts += [part['text'].strip() for part in message['content'] if part['type'] == 'text']
        goal = ' '.join(text for text in texts if text)
        if not goal:
            raise SampleError('the episode has no goal: the first turn should say in words what is to be done')
        ids = self.tokenizer(goal)['input_ids']
        if len(ids) > self.config.goal_length:
            raise SampleError(
                f'the goal has {len(ids)} tokens, and the model reads {self.config.goal_length}: {goal!r}'
            )
        return torch.tensor(ids, dtype=torch.long)

    def _piece(self, messages: Conversation, trained: set[int], begins: int) -> Piece:
        """The observations and actions of messages; those in `trained` weigh something."""
        pieces: list[Piece] = []
        for at, message in enumerate(messages):
            if message['role'] == 'assistant':
                weight = weight_of(message) if at in trained else 0.0
                pieces.append(self._acted(message, weight))
            elif at >= begins:
                pieces.append(self._observed(message))
        for one, other in zip(pieces, pieces[1:], strict=False):
            if (int(one.ids[-1]) == OBSERVATION) == (int(other.ids[0]) == OBSERVATION):
                raise SampleError('pictures and actions should follow each other in turn: a step has one of each')
        return join(pieces, merge_media)

    def _acted(self, message: Message, weight: float) -> Piece:
        parts = [part for part in message['content'] if part['type'] == ACTION]
        if len(parts) != 1 or len(message['content']) != 1:
            raise SampleError('an assistant turn should hold one action and nothing else: this model says no words')
        actions: Actions = parts[0][ACTION]
        if self.config.head == 'categorical':
            if len(actions) != 1:
                raise SampleError(f'a turn holds {len(actions)} actions, and this model does one at a time')
            return acted(int(self.space.indices(actions)[0]), weight)
        if actions.values is None:
            raise SampleError(f"the action is '{actions.names[0]}', and this model's are numbers")
        steps = len(actions)
        if not 1 <= steps <= self.config.chunk:
            raise SampleError(f'a turn holds {steps} steps, and this model says {self.config.chunk} at a time')
        values = torch.zeros(self.config.chunk, self.config.dimensions)
        values[:steps] = self.space.normalized(actions.values, actions.dataset).float()
        return acted(0, weight, values, torch.arange(self.config.chunk) < steps)

    def _observed(self, message: Message) -> Piece:
        pictures = _pictures(message)
        others = {part['type'] for part in message['content']} - {'image', 'text'}
        if others:
            raise SampleError(f'a turn holds {" and ".join(sorted(others))} media, and this model sees pictures')
        cameras = ', '.join(self.space.cameras)
        if len(pictures) != self.config.cameras:
            raise SampleError(
                f'a step shows {len(pictures)} pictures, and should show {self.config.cameras}: {cameras}'
            )
        media = {FRAMES: torch.stack([self._pixels(picture) for picture in pictures])[None]}
        state = message.get('state') or {}
        if self.sensors:
            media[SENSORS] = torch.tensor([[self._sensed(state, name) for name in self.sensors]])
        if self.config.state_size:
            numbers = [value for name, own in state.items() if name not in self.sensors for value in own]
            if len(numbers) != self.config.state_size:
                raise SampleError(
                    f'the state of the body has {len(numbers)} numbers, and the model reads {self.config.state_size}'
                )
            media[STATE] = torch.tensor([numbers], dtype=torch.float32)
        return observed(media, self.config.cameras)

    def _sensed(self, state: Mapping[str, Sequence[float]], name: str) -> int:
        """What a sensor says; the last of its states stands for nothing known."""
        known = self.config.sensors[name]
        value, *others = state.get(name, (known - 1,))
        if others or not 0 <= value < known or int(value) != value:
            told = ', '.join(f'{number:g}' for number in (value, *others))
            raise SampleError(f"the sensor '{name}' says {told}, and should say a number from 0 to {known - 1}")
        return int(value)

    def _pixels(self, picture: Any) -> Tensor:
        """A picture `(3, height, width)` uint8 of the size that the model takes."""
        height, width = self.config.image_size
        picture = picture.convert('RGB')
        if picture.size != (width, height):
            picture = picture.resize((width, height), Image.Resampling.BICUBIC)
        return torch.from_numpy(numpy.array(picture)).permute(2, 0, 1)

    # What others ask

    def decode(self, piece: Piece) -> list[dict[str, Any]]:
        """Returns the actions of a response, in order, as parts."""
        ids = piece.ids[piece.ids != OBSERVATION]
        if self.config.head == 'categorical':
            return [{'type': ACTION, ACTION: self.space.named([number])} for number in ids.tolist()]
        # Where nothing was done yet there is nothing beside the observations.
        rows = zip(piece.media.get(VALUES, ()), piece.media.get(SAID, ()), strict=True)
        return [
            {
                'type': ACTION,
                ACTION: Actions(self.space.restored(values[said].double()), dataset=self.space.dataset),
            }
            for values, said in rows
        ]

    def merge_media(self, parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Joins the media of pieces that follow each other."""
        return merge_media(parts)

    def generation_prefix(self, messages: Conversation) -> str:
        """Returns nothing: no template writes anything in front of an action."""
        return ''

    def prefill(self, messages: Conversation) -> str:
        """Returns nothing: an action has no beginning."""
        return ''

    def blank(self) -> Example:
        """Returns an Example that every batch can hold: a black picture of no goal, and nothing done."""
        config = self.config
        media = {FRAMES: torch.zeros(1, config.cameras, 3, *config.image_size, dtype=torch.uint8)}
        if self.sensors:
            media[SENSORS] = torch.zeros(1, len(self.sensors), dtype=torch.long)
        if config.state_size:
            media[STATE] = torch.zeros(1, config.state_size)
        prompt = observed(media, config.cameras)
        prompt.media[GOAL] = torch.tensor([[self.tokenizer.pad_token_id]])
        values = None if config.head == 'categorical' else torch.zeros(config.chunk, config.dimensions)
        said = None if values is None else torch.ones(config.chunk, dtype=torch.bool)
        return Example(prompt, [acted(0, 0.0, values, said)], source='(empty micro-batch)')


class ActionTurns:
    """Encodes what an environment shows between the turns of a model that acts; see `models/turns.py`.

    Args:
        spec: of the model.
    """

    def __init__(self, spec: ActionSpec) -> None:
        self.spec = spec

    def check(self, tools: Sequence[Any]) -> None:
        """Raises ModelError where the environment has tools, which this model cannot call."""
        if tools:
            raise ModelError('the environment has tools, but a model that acts calls none: choose another environment.')

    def between(self, messages: Conversation, tools: Sequence[Any] = ()) -> Conversation:
        """Returns what is shown between two actions, as it is: no template writes anything around it."""
        return messages

    def piece(self, run: Conversation, said: Sequence[int]) -> Piece:
        """Returns the observation between two actions. Raises SampleError where it cannot be encoded."""
        return self.spec.encode_shown(run)


def _pictures(message: Message) -> list[Any]:
    return [part['image'] for part in message['content'] if part['type'] == 'image']
