"""Which task a configuration describes, and what it learns from."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from config.embedder_schema import EmbedderConfig
from config.schema import Config
from model.embedder_task import EmbedderTask
from model.separator_task import SeparatorTask
from model.task import Task
from utils.errors import UserError


def with_sources(
    config: Config | EmbedderConfig, corpus: Sequence[str], embedder: str | None
) -> Config | EmbedderConfig:
    """The configuration with what `-d` and `-e` name. Raises UserError where they have no meaning."""
    if isinstance(config, EmbedderConfig):
        if embedder:
            raise UserError(f"-e {embedder}: this configuration trains an embedder of its own")
        if corpus:
            data = config.data.model_copy(update={"corpus": list(corpus)})
            config = config.model_copy(update={"data": data})
        return config
    if corpus:
        raise UserError(
            f"-d {corpus[0]}: a separator learns from a store, {config.store.folder} (store.folder); "
            "-d goes with generator.py, or with an embedder's configuration"
        )
    return config.model_copy(update={"embedder": embedder}) if embedder else config


def build_task(config: Config | EmbedderConfig, device: torch.device) -> Task:
    if isinstance(config, EmbedderConfig):
        return EmbedderTask(config, device)
    return SeparatorTask(config, device)
