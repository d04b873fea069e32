"""`align-anything serve`: from settings to a server that listens."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from align_anything.configs.resolve import Resolved
from align_anything.core.asgi import MEBIBYTE, bound_socket, serve_app
from align_anything.core.errors import SettingsError
from align_anything.core.logging import get_logger
from align_anything.serve.door import Keys, is_local, read_keys
from align_anything.serve.settings import ANY, Serve, name_of
from align_anything.trainers.launch import quieten_libraries, settings_of
from align_anything.trainers.pairs import Pair

if TYPE_CHECKING:
    from align_anything.serve.judging import RewardModel
    from align_anything.serve.server import Server

logger = get_logger(__name__)

AUDIO_SECONDS = 600.0
"""Of the longest clip in a request, where `max_audio_seconds` does not say."""


def serve(argv: Sequence[str], environ: Mapping[str, str] | None = None) -> None:
    """Serves the checkpoint that the settings name, until SIGTERM or Ctrl-C, and then finishes what runs.

    Raises SettingsError and ModelError before it listens.
    """
    resolved = settings_of(ANY, Serve, argv, os.environ if environ is None else environ)
    quieten_libraries()
    own, models = resolved.algorithm, resolved.cfgs.model_cfgs
    if models.model_name_or_path is None and models.reward_model_name_or_path is None:
        problem = 'is required: name a checkpoint, or reward_model_name_or_path to judge alone.'
        raise SettingsError([f'model_cfgs.model_name_or_path {problem}'])
    keys = read_keys(own.api_key_file)
    if not keys and not is_local(own.host):
        logger.warning(
            'no API key: whoever reaches %s:%d is answered. --api_key_file, or the environment variable '
            'ALIGN_ANYTHING_API_KEY, asks for one.',
            own.host,
            own.port,
        )
    if resolved.cfgs.vllm_cfgs.use_vllm:
        from align_anything.serve.vllm_server import run_vllm

        run_vllm(resolved, keys)
        return
    with bound_socket(own.host, own.port) as bound:
        _require_libraries()
        from align_anything.serve.app import make_app

        server = open_server(resolved, keys)
        if resolved.dry_run:
            logger.info('dry run: %s opened; it would be served at http://%s:%d/v1', server.name, own.host, own.port)
            return
        app = make_app(server)
        logger.info('%s at http://%s:%d/v1', server.name, own.host, own.port)
        try:
            serve_app(app, bound)
        finally:
            server.close()


def open_server(resolved: Resolved, keys: Sequence[str] = ()) -> Server:
    """Opens the models of the settings, and returns the server of them. Raises SettingsError and ModelError."""
    from align_anything.serve.checkpoint import Checkpoint
    from align_anything.serve.messages import MediaLimits
    from align_anything.serve.server import Limits, Server
    from align_anything.trainers.runs.generator import open_generator

    cfgs, own = resolved.cfgs, resolved.algorithm
    body = own.max_body_mib * MEBIBYTE
    media = MediaLimits(
        own.max_media,
        own.max_image_pixels,
        cfgs.data_cfgs.max_audio_seconds or AUDIO_SECONDS,
        cfgs.data_cfgs.allow_urls,
        body,
    )
    models = cfgs.model_cfgs
    limits = Limits(body, own.request_timeout, models.generation_batch_size or 1, own.queue_size, media)
    judge = None if models.reward_model_name_or_path is None else open_judge(resolved)
    answerer, name = None, ''
    if models.model_name_or_path is not None:
        # Which of the requests are answered together is the server's affair.
        answerer = Checkpoint(open_generator(resolved), media)
        name = own.served_model_name or name_of(models.model_name_or_path)
    return Server(name or judge.name, answerer, judge, limits, Keys(keys), own.host)


def open_judge(resolved: Resolved) -> RewardModel:
    """Opens the reward model of the settings. Raises ModelError for one that has no score head."""
    from align_anything.serve.judging import RewardModel
    from align_anything.trainers.runs.assembly import make_collator, open_scorer
    from align_anything.trainers.runs.model_checks import require_positions
    from align_anything.trainers.runs.roles import ModelJudge, require_head, spec_of_role

    cfgs = resolved.cfgs
    models = cfgs.model_cfgs
    source, longest = models.reward_model_name_or_path, models.reward_model_max_length
    require_head(source)
    spec = spec_of_role(cfgs, source)
    if longest is not None:
        require_positions(spec.config, source, longest, 'model_cfgs.reward_model_max_length')
        spec.max_length = longest
    pair = Pair('any_to_text', spec.reads, frozenset(), needs_all=False)
    scorer = open_scorer(cfgs, make_collator(cfgs, spec, pair, resolved.algorithm), source)
    size = cfgs.train_cfgs.per_device_eval_batch_size
    name = name_of(source)
    return RewardModel(name, ModelJudge(source, scorer, spec, size, spec.max_length))


def _require_libraries() -> None:
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise SettingsError([f"the server needs {error.name}: pip install 'align-anything[serve]'"]) from error
