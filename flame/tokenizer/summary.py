"""What is printed when a tokenizer has been trained."""

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from flame.tokenizer.special_tokens import ROLES, SpecialTokens


def training_summary(
    folder: Path,
    how: str,
    tokenizer: Tokenizer,
    special: SpecialTokens,
    asked: int,
    seconds: float,
    read: Sequence[str],
    tried: Sequence[str],
) -> str:
    """Says in one screen what came out.

    Args:
        folder: Where the tokenizer was saved.
        how: Kind, pattern, backend.
        tokenizer: The tokenizer.
        special: Its special tokens.
        asked: The size of the vocabulary that was asked for.
        seconds: What the training took, reading included.
        read: Lines about what was read.
        tried: Some of the texts that it was trained on.
    """
    size = tokenizer.get_vocab_size()
    roles = {role: token for role in ROLES if (token := getattr(special, role))}
    # A token may play several parts.
    parts = {token: [role for role, other in roles.items() if other == token] for token in special.tokens}
    named = [f"{token} ({', '.join(parts[token])})" if parts[token] else token for token in special.tokens]
    lines = [("tokenizer", how), ("vocabulary", f"{size:,} tokens")]
    if size < asked:
        lines.append(("", f"{asked - size:,} fewer than asked for: the text holds no more that is worth a token"))
    lines.append(("special", " ".join(named) or "none"))
    if "eos" not in roles:
        lines.append(("", "no eos token: set data.add_eos = false in jobs that use it"))
    if special.chat_template:
        lines.append(("chat", "chat_template.jinja, for apply_chat_template"))
    lines += [("read", line) for line in read]
    lines.append(("took", f"{seconds:.1f} s"))
    tokens = sum(map(len, tokenizer.encode_batch_fast(list(tried), add_special_tokens=False)))
    size_tried = sum(len(text.encode()) for text in tried)
    lines.append(("bytes/token", f"{size_tried / max(1, tokens):.2f} on {size_tried / 1e6:.1f} MB of the same text"))
    lines.append(("use", f'model.tokenizer_path = "{folder}"'))
    return "\n".join(f"{label:<12} {text}" for label, text in lines)
