"""Which parameters fine-tuning trains (`config.finetune.trainable`, `config.finetune.lora_rank`)."""

from typing import Any

import jax
from ml_collections import ConfigDict

from privimage_jax.training import lora
from privimage_jax.training.state import merge_params, split_params


def split_trainable(section: ConfigDict, params: Any, key: jax.Array) -> tuple[dict, dict]:
    """(what is trained, what is kept), of nested parameters; `merge_trainable` puts the two together.

    Args:
      section: `config.finetune`.
      params: nested parameters.
      key: public, of the first values of low-rank factors.

    Raises:
      UserError: if the settings match no parameter.
    """
    if section.lora_rank:
        return lora.split(params, section.trainable, section.lora_rank, key)
    return split_params(params, section.trainable)


def merge_trainable(section: ConfigDict, trained: dict, kept: dict) -> dict:
    """The nested parameters of the model."""
    if section.lora_rank:
        return lora.merge(trained, kept, section.lora_scale)
    return merge_params(trained, kept)
