"""What masked diffusion asks of a model: a token that hides others, and attention that has no direction."""

import logging
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from flame.errors import ConfigError

log = logging.getLogger(__name__)


def fit_mask_token(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerFast) -> int:
    """Settles ``config.mask_token_id`` for a tokenizer; the vocabulary grows by a row where there is none to spare.

    The tokenizer's own mask token comes first, then the config's, then the first id past the tokenizer's.

    Raises:
        ConfigError: the mask token is an ordinary token of this tokenizer or its beginning, end of text or padding, so
            that hidden and written ones could not be told apart, or it is no row of the vocabulary.
    """
    if not hasattr(config, "mask_token_id"):
        raise ConfigError(f"family '{config.model_type}' has no mask_token_id; use task.name = 'causal_lm'")
    mask: Any = tokenizer.mask_token_id if tokenizer.mask_token_id is not None else config.mask_token_id
    if mask is None:
        mask = len(tokenizer)
        if mask >= config.vocab_size:
            log.warning("the vocabulary was raised to %d: its last row is the mask token", mask + 1)
            config.vocab_size = mask + 1
    elif not 0 <= mask < config.vocab_size:
        raise ConfigError(
            f"mask_token_id {mask} is no row of a vocabulary of {config.vocab_size}; set it to null, which adds one"
        )
    elif mask < len(tokenizer) and not _is_special(tokenizer, mask):
        raise ConfigError(
            f"mask_token_id {mask} of the model config is the ordinary token {tokenizer.convert_ids_to_tokens(mask)!r} "
            "of the tokenizer; set it to null, which adds a row"
        )
    for role in ("bos", "eos", "pad"):
        if mask == getattr(tokenizer, f"{role}_token_id"):
            raise ConfigError(
                f"mask_token_id {mask} is the tokenizer's {role} token {tokenizer.convert_ids_to_tokens(mask)!r}, "
                "which texts hold too; give the tokenizer a mask token of its own, or none and the config null"
            )
    config.mask_token_id = mask
    return mask


@torch.no_grad()
def sees_both_sides(model: PreTrainedModel) -> bool:
    """True if the first token's logits depend on the last token (of its block), and the last one's on the first."""
    length = min(8, getattr(model.config, "block_length", 0) or 8)
    ids = torch.randint(3, model.config.vocab_size, (1, length), generator=torch.Generator().manual_seed(0))
    plain = model(input_ids=ids).logits
    for changed, seen in ((-1, 0), (0, -1)):
        other = ids.clone()
        other[0, changed] = (other[0, changed] + 1) % model.config.vocab_size
        if torch.equal(model(input_ids=other).logits[0, seen], plain[0, seen]):
            return False
    return True


def _is_special(tokenizer: PreTrainedTokenizerFast, token: int) -> bool:
    added = tokenizer.added_tokens_decoder.get(token)
    return token in tokenizer.all_special_ids or (added is not None and added.special)
