"""Keys and values of a recurrent-depth model, for tokens that ran different numbers of steps."""

import re
from collections.abc import Callable

import torch
from transformers import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast

from .configuration_huginn_raven import RavenConfig

CACHE = "cache" if "cache" in CausalLMOutputWithPast.__dataclass_fields__ else "past_key_values"
"""What transformers calls the cache of models and their outputs: ``cache`` since 5.24."""
POLICIES = ("full", "latest", "available", "always-last", "skip", "randomized")
_ANCHORED = 8  # steps of ``compress-anchor`` that keep slots of their own


class RavenCache(Cache):
    """One slot of keys and values for every layer and step: prelude i has slot i, layer j of step t of the core has
    ``prelude + t * core + j``, layer i of the coda has ``-1 - i``.

    A token that ran fewer steps than another one asks for has nothing in the later slots. What attention sees instead:

    ``full``: nothing may be missing, else ValueError; ``latest``, ``available``: the token's newest entry of an earlier
    step in the same layer; ``always-last``: of every earlier token its last step, whichever is asked for; ``skip``:
    attention passes over tokens without an entry; ``randomized``: any earlier step of the token, for comparison.
    The official names carry the number of layers: ``latest-m4``.

    Slots of the core can be shared, to save memory: ``compress-sN`` uses N of them in turn (N = 16 keeps 4 steps of 4
    layers), ``compress-rN`` gives N neighbours one, ``compress-anchor`` keeps the first 8 steps and then one step's
    slots for all others. Written behind the policy: ``latest-m4-compress-s16``.

    Args:
        config: of the model.
        lookup: policy and sharing.

    Raises:
        ValueError: no such policy, or one made for another number of layers.
    """

    def __init__(self, config: RavenConfig, lookup: str = "latest") -> None:
        super().__init__(layers=[])
        self.prelude, self.core = config.n_layers_in_prelude, config.n_layers_in_recurrent_block
        policy, _, sharing = lookup.partition("compress-")
        name, _, layers = policy.rstrip("-").partition("-m")
        self.lookup, self.policy, self.sharing = lookup, name or "latest", sharing
        if self.policy not in POLICIES or (layers and layers != str(self.core)):
            raise ValueError(f"cache_lookup '{lookup}': the policies are {', '.join(POLICIES)}, with -m{self.core}")
        if sharing and not re.fullmatch(r"[sr][1-9]\d*|anchor", sharing):
            raise ValueError(f"cache_lookup '{lookup}': slots are shared by compress-sN, compress-rN, compress-anchor")
        self.reset()

    def reset(self) -> None:
        """Forgets everything."""
        self.keys: dict[int, torch.Tensor] = {}  # slot -> [B, G, T, D]
        self.values: dict[int, torch.Tensor] = {}
        self.own: dict[int, torch.Tensor] = {}  # slot -> [B, T], false where the token has no entry of its own
        self.last: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # layer of the core -> deepest entries
        self.latent: torch.Tensor | None = None  # [B, 1, H], the last state of the newest token
        self.seen = 0

    def begin(self, tokens: int) -> None:
        """Begins a pass over so many new tokens; masks are made before."""
        self.seen += tokens
        self.latent = None

    def slot(self, index: int, active: torch.Tensor | None = None) -> "CacheSlot":
        """The slot that a block reads and writes.

        Args:
            index: which, before sharing.
            active: [B, Q], the tokens of the pass that write; None: all.
        """
        return CacheSlot(self, index, active)

    def shared(self, index: int) -> int:
        """The slot that ``index`` is kept in."""
        step = index - self.prelude
        if step < 0 or not self.sharing:
            return index
        if self.sharing == "anchor":
            own = _ANCHORED * self.core
            return index if step < own else self.prelude + own + (step - own) % self.core
        number = int(self.sharing[1:])
        return self.prelude + (step % number if self.sharing[0] == "s" else step // number)

    def earlier(self, index: int) -> int:
        """The slot of the same layer one step before slot ``index``; itself where there is none."""
        back = max(1, self.core // int(self.sharing[1:])) if self.sharing.startswith("r") else self.core
        return index - back if index - back >= self.prelude else index

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """How many tokens it holds."""
        return self.seen

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """Keys that attention over ``query_length`` new tokens will see, and the first one's number."""
        return self.seen + query_length, 0

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """-1: it grows."""
        return -1

    def clear_last_k_entries(self, k: int) -> None:
        """Takes the newest ``k`` tokens out again."""
        if not 0 <= k <= self.seen:
            raise ValueError(f"{k} tokens cannot be taken out of a cache of {self.seen}")
        self.seen -= k
        self.latent = None
        for held in (self.keys, self.values):
            held.update({index: states[:, :, : self.seen] for index, states in held.items()})
        self.own = {index: flags[:, : self.seen] for index, flags in self.own.items()}
        self.last = {
            layer: (key[:, :, : self.seen], value[:, :, : self.seen]) for layer, (key, value) in self.last.items()
        }

    def crop(self, tokens_to_remove: int) -> None:
        """transformers' way to take tokens out: -n takes the newest n, a positive number is how many stay."""
        k = -tokens_to_remove if tokens_to_remove <= 0 else max(self.seen - tokens_to_remove, 0)
        self.clear_last_k_entries(k)

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Keeps these rows."""
        self._rows(lambda states: states.index_select(0, beam_idx.to(states.device)))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keeps these rows."""
        self._rows(lambda states: states[indices])

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeats every row."""
        self._rows(lambda states: states.repeat_interleave(repeats, dim=0))

    def _rows(self, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        for held in (self.keys, self.values, self.own):
            held.update({index: change(states) for index, states in held.items()})
        self.last = {layer: (change(key), change(value)) for layer, (key, value) in self.last.items()}
        self.latent = None if self.latent is None else change(self.latent)

    @property
    def batch_size(self) -> int:
        """Rows; -1 before the first pass."""
        return len(next(iter(self.keys.values()))) if self.keys else -1

    @property
    def is_initialized(self) -> bool:
        """Whether it holds anything."""
        return bool(self.keys)

    @property
    def is_croppable(self) -> bool:
        """Taking tokens out leaves no trace."""
        return True

    @property
    def one_by_one(self) -> bool:
        """Whether a pass over several tokens computes what one pass for each of them does.

        Not so where a token sees of those before it another step than its own: in a pass of their own these have
        written their last step before it begins, in a common one they have come as far as it has.
        """
        return self.policy != "always-last" and not self.sharing

    @property
    def nbytes(self) -> int:
        """Memory of keys and values."""
        held = (*self.keys.values(), *self.values.values(), *(states for pair in self.last.values() for states in pair))
        return sum(states.numel() * states.element_size() for states in held)


class CacheSlot:
    """A slot in one pass: writes what is new and gives what attention is to see."""

    def __init__(self, cache: RavenCache, index: int, active: torch.Tensor | None) -> None:
        self.cache, self.index, self.active = cache, cache.shared(index), active
        self.layer = (index - cache.prelude) % cache.core if index >= cache.prelude else None

    def update(
        self, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Writes the entries of the newest tokens, [B, G, Q, D], and looks up those of all tokens.

        Args:
            key: after rotation.
            value: like key.
            mask: what the attention implementation takes for all tokens.

        Returns:
            [B, G, T, D] twice, and the mask.
        """
        self._write(key, value)
        cache, index = self.cache, self.index
        keys, values = cache.keys[index], cache.values[index]
        if self.layer is None or cache.policy in ("latest", "available"):
            return keys, values, mask  # what is missing was filled when it was written
        if cache.policy == "always-last":
            return *self._deepest(keys, values, key.shape[2]), mask
        if cache.own[index].all():
            return keys, values, mask
        if cache.policy == "full":
            raise ValueError(
                "cache_lookup 'full': a token ran fewer steps than are asked for now; use 'latest' where steps differ"
            )
        if cache.policy == "skip":
            return keys, values, self._without_missing(mask, key)
        return *self._at_random(keys, values), mask

    def _write(self, key: torch.Tensor, value: torch.Tensor) -> None:
        """Where a token has no entry of its own, that of the step before is put, which is the newest it has."""
        cache, index = self.cache, self.index
        start = cache.seen - key.shape[2]
        active = self.active
        if active is None:
            active = torch.ones(key.shape[0], key.shape[2], dtype=torch.bool, device=key.device)
        source = cache.earlier(index) if self.layer is not None else index
        for held, new in ((cache.keys, key), (cache.values, value)):
            states = held.get(index, new[:, :, :0])
            if states.shape[2] < start:
                states = torch.cat([states, held[source][:, :, states.shape[2] : start]], dim=2)
            now = new
            if self.active is not None:
                rest = states if states.shape[2] == cache.seen else held[source]
                now = torch.where(active[:, None, :, None], new, rest[:, :, start:])
            held[index] = torch.cat([states[:, :, :start], now], dim=2)
        flags = cache.own.get(index, active[:, :0])
        was = flags[:, start:] if flags.shape[1] == cache.seen else torch.zeros_like(active)
        missing = flags.new_zeros(len(flags), max(start - flags.shape[1], 0))
        cache.own[index] = torch.cat([flags[:, :start], missing, was | active], dim=1)

    def _deepest(self, keys: torch.Tensor, values: torch.Tensor, new: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Of every earlier token the entries of its last step; of new ones those of this step."""
        assert self.layer is not None
        start = self.cache.seen - new
        held = self.cache.last.get(self.layer, (keys[:, :, :start], values[:, :, :start]))
        keys = torch.cat([held[0][:, :, :start], keys[:, :, start:]], dim=2)
        values = torch.cat([held[1][:, :, :start], values[:, :, start:]], dim=2)
        self.cache.last[self.layer] = keys, values
        return keys, values

    def _without_missing(self, mask: torch.Tensor | None, key: torch.Tensor) -> torch.Tensor:
        """The mask without tokens that have no entry here; without any, the causal one for boolean masks."""
        own = self.cache.own[self.index][:, None, None, :]  # [B, 1, 1, T]
        if mask is None:
            count, seen = key.shape[2], self.cache.seen
            return own & torch.ones(count, seen, dtype=torch.bool, device=key.device).tril(seen - count)
        if mask.dtype == torch.bool:
            return mask & own
        return mask.masked_fill(~own, torch.finfo(mask.dtype).min)

    def _at_random(self, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Of every token the entries of a step drawn among those it ran up to here."""
        cache, index = self.cache, self.index
        count = torch.zeros_like(cache.own[index], dtype=torch.float32)
        while True:
            flags = cache.own[index]
            here = torch.zeros_like(count, dtype=torch.bool)
            here[:, : flags.shape[1]] = flags
            count += here
            taken = (here & (torch.rand_like(count) * count < 1))[:, None, : flags.shape[1], None]
            width = flags.shape[1]
            keys, values = (
                torch.cat([torch.where(taken, held[:, :, :width], states[:, :, :width]), states[:, :, width:]], dim=2)
                for held, states in ((cache.keys[index], keys), (cache.values[index], values))
            )
            if cache.earlier(index) == index:
                return keys, values
            index = cache.earlier(index)
