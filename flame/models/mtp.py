"""Multi-token prediction: layers behind the last one that predict tokens further ahead (DeepSeek-V3,
https://arxiv.org/abs/2412.19437, section 2.2).

Layer ``k`` (1, 2 ...) takes the hidden state of position t of the layer before it (for the first: of the model, after
its last norm) and the embedding of token t + k, and predicts token t + k + 1 through the model's own head:

    h_k = Norm(Layer(M [Norm(Emb(x_{t+k})); Norm(h_{k-1})]))

They are called as in the hub's checkpoints: ``model.layers.N.enorm``, ``hnorm``, ``eh_proj``, ``shared_head.norm`` and
the layer's own names, N counting on from the model's layers; transformers drafts with them
(``generate(use_mtp=True)``).
"""

from collections.abc import Sequence
from typing import Any, Protocol, cast

import torch
import torch.nn as nn
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.masking_utils import create_causal_mask

from flame.data.batch import Inputs
from flame.errors import ConfigError
from flame.losses import IGNORE_INDEX
from flame.models.head import output_head

_IDS, _LABELS = "mtp_ids_{}", "mtp_labels_{}"


class _Decoder(Protocol):
    layers: nn.ModuleList
    rotary_emb: nn.Module


def further_layers(config: PreTrainedConfig) -> int:
    """How many tokens beyond the next one a config has layers for.

    Raises:
        ConfigError: it says no whole number from 0.
    """
    depth = getattr(config.get_text_config(), "num_mtp_layers", None) or 0
    if not isinstance(depth, int) or depth < 0:
        raise ConfigError(f"num_nextn_predict_layers = {depth!r} of the model config must be a whole number from 0")
    return depth


def let_go_of_further_layers(cls: type[PreTrainedModel], config: PreTrainedConfig) -> None:
    """Lets ``cls`` load weights that have further layers it lacks; transformers knows the published numbers only."""
    if not (depth := further_layers(config)):
        return
    first = config.get_text_config().num_hidden_layers
    numbers = "|".join(str(first + index) for index in range(depth))
    known = cls._keys_to_ignore_on_load_unexpected or []
    cls._keys_to_ignore_on_load_unexpected = [*known, rf"layers\.({numbers})\."]


def add_further_layers(cls: type[PreTrainedModel], config: PreTrainedConfig) -> None:
    """Gives every future instance of ``cls`` the layers its config asks for.

    Its forward pass then takes ``further_ids``, a list with token ids [B, T] for every layer, and returns with them a
    pair: the usual outputs, and the further logits [B, T, V] of each layer.

    Args:
        cls: a class of the job's own, whose instances nobody has made yet.
        config: of the model.

    Raises:
        ConfigError: the config asks for none, or the family's layers differ by their number.
    """
    depth, family = further_layers(config), config.model_type
    if not depth:
        raise ConfigError(
            f"task.mtp_loss_weight: the config of '{family}' asks for no further layers; give it "
            "num_nextn_predict_layers, or set the weight to 0"
        )
    text = config.get_text_config()
    if getattr(text, "layer_types", None) is not None or not hasattr(text, "get_mtp_config"):
        raise ConfigError(
            f"task.mtp_loss_weight: the layers of '{family}' differ by their number, which flame cannot train further "
            "ones for; set it to 0"
        )
    usual_post_init, usual_forward = cls.post_init, cls.forward

    def post_init(self: Any) -> None:
        usual_post_init(self)  # first, so that the model begins with the weights it has without these layers
        _append_layers(self, depth)
        self.init_weights()  # of what is new

    def forward(self: Any, *args: Any, further_ids: Sequence[Tensor] | None = None, **kwargs: Any) -> Any:
        if further_ids is None:
            return usual_forward(self, *args, **kwargs)
        last: list[Tensor] = []
        handle = self.get_decoder().register_forward_hook(
            lambda module, inputs, output: last.append(output.last_hidden_state)
        )
        try:
            outputs = usual_forward(self, *args, **kwargs)
        finally:
            handle.remove()
        return outputs, _further_logits(self, last[0], further_ids, **kwargs)

    cls.post_init, cls.forward = post_init, forward  # type: ignore[method-assign]


def _append_layers(model: PreTrainedModel, depth: int) -> None:
    decoder = cast(_Decoder, model.get_decoder())
    config, last = model.config.get_text_config(), decoder.layers[-1]
    own = config.get_mtp_config()
    norm = next(type(module) for name, module in last.named_modules() if "norm" in name)
    kind = type(type(last).__name__, (_FurtherLayer, type(last)), {"__module__": type(last).__module__})
    for index in range(depth):
        layer = kind(own, index)
        layer.add_ends(own, norm)
        for module in layer.modules():
            if getattr(module, "config", None) is own:
                vars(module)["config"] = (
                    config  # what the job sets later, such as the attention function, holds here too
                )
        decoder.layers.append(layer)


class _FurtherLayer(nn.Module):
    """What goes in front of a family's layer class."""

    def add_ends(self, config: PreTrainedConfig, norm: type[nn.Module]) -> None:
        """Adds what joins state and embedding before the layer, and the norm after it."""
        width, options = config.hidden_size, {"eps": config.rms_norm_eps}
        self.states_first = bool(getattr(config, "mtp_hidden_states_first", False))
        self.enorm, self.hnorm = norm(width, **options), norm(width, **options)
        self.eh_proj = nn.Linear(2 * width, width, bias=False)
        self.shared_head = nn.ModuleDict({"norm": norm(width, **options)})

    def forward(self, states: Tensor, embeddings: Tensor, **options: Any) -> Tensor:
        """States of the layer before and embeddings, both [B, T, H] -> states [B, T, H]."""
        parts = [self.enorm(embeddings), self.hnorm(states)]
        joined = self.eh_proj(torch.cat(parts[::-1] if self.states_first else parts, dim=-1))
        hidden = super().forward(joined, **options)
        return self.shared_head["norm"](hidden[0] if isinstance(hidden, tuple) else hidden)


def _further_logits(
    model: PreTrainedModel,
    states: Tensor,
    further_ids: Sequence[Tensor],
    position_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
    **_: Any,
) -> list[Tensor]:
    """The logits of every further layer. Positions are the model's own: attention sees their differences only."""
    decoder, embed, head = cast(_Decoder, model.get_decoder()), model.get_input_embeddings(), output_head(model)
    assert head is not None
    if position_ids is None:
        position_ids = torch.arange(states.shape[1], device=states.device).unsqueeze(0)
    # By position: transformers calls the cache by another name since 5.24.
    mask = create_causal_mask(model.config.get_text_config(), states, attention_mask, None, position_ids)
    rotation = decoder.rotary_emb(states, position_ids=position_ids)
    logits = []
    for layer, ids in zip(decoder.layers[-len(further_ids) :], further_ids, strict=True):
        states = layer(states, embed(ids), position_embeddings=rotation, attention_mask=mask, position_ids=position_ids)
        logits.append(head(states))  # families with a soft cap have been refused
    return logits


def with_further_tokens(inputs: Inputs, labels: Tensor, depth: int) -> Inputs:
    """Adds what layer k needs: the token k positions on, and its label; both [B, T], on whole sequences.

    A position has no label where the row, or its document, ends before the token to predict.
    """
    made = dict(inputs)
    ids, positions = inputs["input_ids"], inputs.get("position_ids")
    for ahead in range(1, depth + 1):
        targets = _shifted(labels, ahead, IGNORE_INDEX)
        if positions is not None:
            targets = targets.masked_fill(_shifted(positions, ahead, -1) != positions + ahead, IGNORE_INDEX)
        made[_IDS.format(ahead)] = _shifted(ids, ahead, 0)
        made[_LABELS.format(ahead)] = targets
    return made


def take_further_tokens(inputs: Inputs) -> tuple[Inputs, list[Tensor], list[Tensor]]:
    """Separates the usual inputs from what ``with_further_tokens`` added: ids and labels by layer."""
    depth = sum(name.startswith(_IDS.format("")) for name in inputs)
    names = [[kind.format(ahead) for ahead in range(1, depth + 1)] for kind in (_IDS, _LABELS)]
    taken = {*names[0], *names[1]}
    usual = {name: value for name, value in inputs.items() if name not in taken}
    ids, labels = ([inputs[name] for name in group] for group in names)
    return usual, ids, labels


def _shifted(values: Tensor, ahead: int, fill: int) -> Tensor:
    """[B, T] moved ``ahead`` positions to the front."""
    moved = torch.full_like(values, fill)
    moved[:, : max(values.shape[1] - ahead, 0)] = values[:, ahead:]
    return moved
