"""Memory by formula, for families whose forward pass looks at numbers and so does not run on fake tensors."""

from dataclasses import dataclass

from flame.spec import Job

_FLOAT32 = 4
_ITEMSIZE = {"float32": 4, "bfloat16": 2, "float16": 2}
_CHUNK = 2**25  # logits alive at a time where the loss is taken inside the head


@dataclass(frozen=True)
class Estimate:
    """Bytes of one rank."""

    unsharded: int
    activations: int
    other: int


def estimate(job: Job, layers: list[int], ends: list[int], in_flight: int, is_last: bool) -> Estimate:
    """What a rank holds besides its own shards.

    Args:
        job: the job, resolved.
        layers: parameters of each of the rank's decoder layers, gathered (but split by tensor parallelism).
        ends: the same of the modules around them.
        in_flight: micro-batches whose backward pass has not run.
        is_last: whether the rank computes the loss.
    """
    config = job.config
    layout, size = config.parallelism, _ITEMSIZE[config.training.mixed_precision_param]
    widest = sorted([*layers, *ends], reverse=True)
    kept = layout.fsdp_reshard_after_forward == "never" or layout.pipeline_parallel_degree > 1
    gathered = sum(widest) if kept else sum(widest[:2])
    rows = config.training.local_batch_size
    if layout.pipeline_parallel_degree > 1:
        rows = layout.pipeline_parallel_microbatch_size
    tokens = rows * config.training.seq_len // layout.context_parallel_degree
    activations = in_flight * tokens * len(layers) * token_bytes(job)
    # A gradient and what its reduction reads, in float32, of the two largest groups.
    other = 2 * _FLOAT32 * sum(widest[:2])
    if is_last:
        vocabulary = job.model_config.get_text_config().vocab_size // layout.tensor_parallel_degree
        inside = getattr(job.task, "loss_in_head", False)
        logits = min(_CHUNK, tokens * vocabulary) if inside else tokens * vocabulary
        other += logits * (size + 2 * _FLOAT32)
    return Estimate(gathered * size, activations, other)


def token_bytes(job: Job) -> int:
    """Activations of one decoder layer per token.

    Four times the hidden width around each of two norms (a float32 copy counts twice), queries, keys, values and the
    result of attention, and four times the inner width of the experts a token meets.
    """
    text, layout = job.model_config.get_text_config(), job.config.parallelism
    size, mode = _ITEMSIZE[job.config.training.mixed_precision_param], job.config.activation_checkpoint.mode
    hidden = text.hidden_size
    if mode == "full":
        return hidden * size
    heads = getattr(text, "num_attention_heads", None) or 1
    width = getattr(text, "head_dim", None) or hidden // heads
    queries, keys = heads * width, (getattr(text, "num_key_value_heads", None) or heads) * width
    inner = getattr(text, "moe_intermediate_size", None) or getattr(text, "intermediate_size", None) or 4 * hidden
    inner *= getattr(text, "num_experts_per_tok", None) or 1
    split = 2 * queries + 2 * keys + 4 * inner
    whole = (8 * hidden + split // layout.tensor_parallel_degree) * size
    option = job.config.activation_checkpoint.selective_ac_option
    if mode == "selective" and option.isdecimal():
        every = int(option)  # every n-th layer is recomputed
        return (hidden * size + (every - 1) * whole) // every
    return whole // 2 if mode == "selective" else whole


def in_flight(schedule: str, micro_batches: int, ranks: int, rank: int) -> int:
    """The most micro-batches of a pipeline rank that wait for their backward pass; for schedules with several stages
    per rank an upper bound."""
    return min(micro_batches, ranks - rank) if schedule.lower() == "1f1b" else micro_batches
