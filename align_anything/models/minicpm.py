"""What MiniCPM-V and MiniCPM-o share: images in slices, features at `<unk>`, one dictionary as forward argument."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from align_anything.models.body import BodyWithin
from align_anything.models.own_code import AUDIO, IMAGE, OwnCodeEncoder, Written, by_kind, stretches
from align_anything.models.rendering import Run

IMAGE_PLACEHOLDER, AUDIO_PLACEHOLDER = '(<image>./</image>)', '(<audio>./</audio>)'
FEATURE_TOKEN = '<unk>'


class MiniCPMEncoder(OwnCodeEncoder):
    """Writes images and audio as the processors of MiniCPM do, numbered over the whole conversation."""

    def written(self, run: Run, first_number: int) -> tuple[list[Written], dict[str, Tensor]]:
        """Returns the tokens of each medium and the tensors: slices of images, and spectra of audio clips."""
        images, audio_clips = by_kind(run, 'image'), by_kind(run, 'audio')
        texts: dict[str, list[Written]] = {}
        tensors: dict[str, Tensor] = {}
        if images:
            found = self.processor.image_processor([images], return_tensors='pt')
            # Images are numbered from zero.
            texts['image'] = [
                self._marked(self.processor.image_processor.get_slice_image_placeholder(size, number), IMAGE)
                for number, size in enumerate(found['image_sizes'][0], first_number - 1)
            ]
            slices = found['pixel_values'][0]
            tensors['pixel_values'] = torch.nn.utils.rnn.pad_sequence(
                [part.movedim(-1, 0) for part in slices], batch_first=True
            ).movedim(1, -1)
            tensors['tgt_sizes'] = found['tgt_sizes'][0].long()
        if audio_clips:
            samples = list(self.arguments({'audio': audio_clips})['audio'])
            features, lengths, spelled = self.processor.audio_feature_extract(
                [samples], None, False, audio_clips[0].rate
            )
            texts['audio'] = [self._marked(text, AUDIO) for text in spelled[0]]
            tensors['audio_features'], tensors['audio_feature_lens'] = features, lengths[0].long()
        waiting = {kind: iter(entries) for kind, entries in texts.items()}
        return [next(waiting[kind]) for kind, _ in run.media], tensors

    def _marked(self, text: str, mark: int) -> Written:
        ids = self.tokenizer(text, add_special_tokens=False)['input_ids']
        return Written(ids, [mark if token in self.media_token_ids else 0 for token in ids])


class AccustomedMiniCPM(BodyWithin):
    """Puts a batch into the one dictionary that the checkpoint's own forward pass takes."""

    def infer_batch(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        media_marks: Tensor | None = None,
        pixel_values: Tensor | None = None,
        tgt_sizes: Tensor | None = None,
        audio_features: Tensor | None = None,
        audio_feature_lens: Tensor | None = None,
        **inputs: Any,
    ) -> dict[str, Any]:
        """Returns the arguments of the checkpoint's own forward pass: `data`, and what goes on to the text model.

        Args:
            input_ids, position_ids: `(rows, length)`.
            media_marks: where features stand, `(rows, length)`: 1 for images, 2 for audio clips.
            pixel_values: slices of all images, `(slices, 3, patch, longest)`; `tgt_sizes` `(slices, 2)` has their
                patches by side.
            audio_features: spectra of all audio clips, `(audio, mels, longest)`; `audio_feature_lens` `(audio,)`.
        """
        marks = torch.zeros_like(input_ids) if media_marks is None else media_marks
        data: dict[str, Any] = {
            'input_ids': input_ids,
            'position_ids': position_ids,
            'image_bound': stretches(marks, IMAGE),
            'audio_bounds': stretches(marks, AUDIO),
            'pixel_values': [[] for _ in input_ids],
            'tgt_sizes': [[] for _ in input_ids],
            'audio_features': [],
            'audio_feature_lens': [],
        }
        if pixel_values is not None:
            counts = [len(bound) for bound in data['image_bound']]
            data['tgt_sizes'] = list(tgt_sizes.split(counts))
            widths = tgt_sizes.prod(-1) * pixel_values.shape[2]
            slices = [part[..., :width] for part, width in zip(pixel_values, widths.tolist(), strict=True)]
            data['pixel_values'] = [[slices.pop(0) for _ in range(count)] for count in counts]
        if audio_features is not None:
            data['audio_features'] = audio_features
            data['audio_feature_lens'] = list(audio_feature_lens.split([len(bound) for bound in data['audio_bounds']]))
        return {'data': data, **inputs}

    def body(self, **inputs: Any) -> Any:
        """Returns the text model's output, its `last_hidden_state` `(rows, length, size)`."""
        batch = self.infer_batch(**inputs)
        data = batch.pop('data')
        embeds, _ = self.get_vllm_embedding(data)
        audio_clips = iter(data['audio_features'])
        for row, (bounds, lengths) in enumerate(zip(data['audio_bounds'], data['audio_feature_lens'], strict=False)):
            for (begin, end), length in zip(bounds.tolist(), lengths, strict=True):
                # One by one: the checkpoint's code does not hide all of the padding behind the shorter of two.
                audio = {'audio_features': next(audio_clips)[None, :, :length], 'audio_feature_lens': [length[None]]}
                found = self.get_audio_embedding(audio, self.config.audio_chunk_length)[0][0]
                embeds[row, begin:end] = found.to(embeds.dtype)
        return self.llm.model(input_ids=None, inputs_embeds=embeds, position_ids=data['position_ids'], **batch)

    def prepare_inputs_for_generation(self, *args: Any, **inputs: Any) -> Any:
        """Returns what the text model does; adapters ask for it."""
        return self.llm.prepare_inputs_for_generation(*args, **inputs)

    def forward(self, data: dict[str, Any] | None = None, **inputs: Any) -> Any:
        """Returns what the checkpoint's own forward pass does, for its `data` or for a batch by names."""
        return super().forward(data, **inputs) if data is not None else super().forward(**self.infer_batch(**inputs))
