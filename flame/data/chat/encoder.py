"""The encoder of chat data: rows of any layout in, token ids with a loss mask out."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from flame.data.chat.conversation import Conversation, Unfit, strings
from flame.data.chat.layouts import PLAIN, layout_of, read_record
from flame.data.chat.template import ChatTemplate, Rendered
from flame.data.chat.tokens import ChatTokenizer
from flame.data.encoder import TextEncoder
from flame.data.sources.records import TEXT, BadRow, checked_text, cut_text
from flame.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Encoded = np.ndarray | list[np.ndarray] | BadRow
"""What a row becomes: one document, several, or none."""

_MOST_TURNS = 1000  # templates without {% generation %} are rendered twice for every answer


class ChatEncoder:
    """Encodes conversations, and rows of plain text, all of which is scored.

    Args:
        tokenizer: a fast HuggingFace tokenizer.
        template: the source of the chat template.
        max_tokens: longest conversation.
        too_long: what happens to longer ones: ``split`` between an answer and the next question, ``cut`` at their end,
            or ``skip``. All are counted.
        max_characters: longer ones are bad rows; longer plain text is cut into documents of as many bytes.
        add_bos: as in ``TextEncoder``, for plain text only; conversations have what the template writes.
        add_eos: likewise.
    """

    whole = True
    """Packing is not to cut what comes out: the rest of an answer is nothing without its question."""

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerFast",
        template: str,
        max_tokens: int,
        too_long: Literal["split", "cut", "skip"] = "split",
        max_characters: int = 1 << 20,
        add_bos: bool | None = None,
        add_eos: bool | None = True,
    ):
        names = {name: text for name, text in tokenizer.special_tokens_map.items() if isinstance(text, str)}
        special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
        self.template = ChatTemplate(template, names, special)
        self._text = TextEncoder(tokenizer, add_bos=add_bos, add_eos=add_eos)
        self._tokens = ChatTokenizer(tokenizer.backend_tokenizer, self.template)
        self.fingerprint = self._text.fingerprint
        self.vocab_size = self._text.vocab_size
        self.tokenizer_name = self._text.tokenizer_name
        self._max_tokens = max_tokens
        self._too_long = too_long
        self._max_characters = max_characters
        self._notes: list[tuple[str, str]] = []

    def encode(self, records: list[dict[str, Any]]) -> Sequence[Encoded]:
        """Returns the token ids of every record, int32, ``~id`` for tokens that are not to be predicted."""
        encoded: list[Encoded] = [np.empty(0, np.int32)] * len(records)
        rendered: dict[int, tuple[Conversation, Rendered]] = {}
        plain: dict[int, list[str]] = {}
        for index, record in enumerate(records):
            try:
                layout = layout_of(record)
                if layout == PLAIN:
                    plain[index] = self._texts(record)
                else:
                    rendered[index] = self._render(read_record(record, layout, self.template.knows_code))
            except Unfit as fault:
                encoded[index] = BadRow(fault.reason, "", fault.detail)
        documents = iter(self._text.encode([{TEXT: text} for texts in plain.values() for text in texts]))
        for index, texts in plain.items():
            found = [next(documents) for _ in texts]
            encoded[index] = found if len(found) > 1 else found[0]
        conversations = self._tokens.encode([text for _, text in rendered.values()])
        for (index, (conversation, _)), ids in zip(rendered.items(), conversations, strict=True):
            try:
                encoded[index] = self._fitted(conversation, ids)
            except Unfit as fault:
                encoded[index] = BadRow(fault.reason, "", fault.detail)
        return encoded

    def drain(self) -> list[tuple[str, str]]:
        """Hands over what was cut or left out since the last call: reasons to count by, with an example each."""
        notes, self._notes = self._notes, []
        return notes

    def ending(self) -> int | None:
        """The special token that ends an answer; None if the template writes none there.

        Raises:
            ConfigError: the template refuses a question and an answer.
        """
        turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        try:
            ids = self._encode([Conversation(turns)])[0]
        except Unfit as fault:
            raise ConfigError(f"the chat template cannot write a question and an answer: {fault}") from fault
        scored = ids[ids >= 0].tolist()
        return scored[-1] if scored and self._tokens.is_control(scored[-1]) else None

    def _texts(self, record: dict[str, Any]) -> list[str]:
        """The text of a row, in pieces that are documents of their own if it is very long."""
        checked = checked_text(record, TEXT, "")
        if isinstance(checked, BadRow):
            raise Unfit(checked.reason, checked.detail)
        texts = list(cut_text(checked[TEXT], self._max_characters))
        if len(texts) > 1:
            self._note("too long, cut into pieces", f"{len(checked[TEXT]):,} characters, over data.max_document_bytes")
        return texts

    def _render(self, conversation: Conversation) -> tuple[Conversation, Rendered]:
        size = sum(map(len, strings(conversation.messages)))
        if size > self._max_characters:
            raise Unfit("conversation too large", f"{size:,} characters, over data.max_document_bytes")
        if len(conversation.messages) > _MOST_TURNS and not self.template.marks_generation:
            raise Unfit("conversation of too many turns", f"{len(conversation.messages):,}, over {_MOST_TURNS:,}")
        return conversation, self.template.render(conversation)

    def _fitted(self, conversation: Conversation, ids: np.ndarray | Unfit) -> Encoded:
        if isinstance(ids, Unfit):
            raise ids
        if not (ids >= 0).any():
            raise Unfit("nothing to score", "the chat template writes nothing of what the assistant says")
        if len(ids) <= self._max_tokens:
            return ids
        if self._too_long == "skip":
            self._note("conversations too long, left out", f"{len(ids):,} tokens, over {self._max_tokens:,}")
            return []
        if self._too_long == "split" and len(conversation.exchanges) > 1:
            self._note("conversations too long, split", f"{len(ids):,} tokens, over {self._max_tokens:,}")
            return self._split(conversation)
        return self._cut(ids)

    def _split(self, conversation: Conversation) -> list[np.ndarray]:
        """As few conversations as fit, of consecutive exchanges, each after the system message."""
        exchanges = conversation.exchanges
        sizes = [len(ids) for ids in self._encode([conversation.part([exchange]) for exchange in exchanges])]
        groups, room = [], 0
        for exchange, size in zip(exchanges, sizes, strict=True):
            if size > room:
                groups.append([])
                room = self._max_tokens
            groups[-1].append(exchange)
            room -= size  # counts the system message with every exchange, so that a group is rarely longer than meant
        pieces = self._encode([conversation.part(group) for group in groups])
        return [ids for piece in pieces for ids in ([piece] if len(piece) <= self._max_tokens else self._cut(piece))]

    def _cut(self, ids: np.ndarray) -> list[np.ndarray]:
        """The beginning, if there is something to score in it."""
        size = f"{len(ids):,} tokens, over {self._max_tokens:,}"
        ids = ids[: self._max_tokens]
        if (ids >= 0).any():
            self._note("conversations too long, cut", size)
            return [ids]
        self._note("conversations whose question alone is too long", size)
        return []

    def _encode(self, conversations: list[Conversation]) -> list[np.ndarray]:
        """Encodes parts of a conversation that has been encoded whole."""
        encoded = self._tokens.encode([self.template.render(part) for part in conversations])
        for ids in encoded:
            if isinstance(ids, Unfit):
                raise ids
        return [ids for ids in encoded if isinstance(ids, np.ndarray)]

    def _note(self, reason: str, example: str) -> None:
        self._notes.append((reason, f"{reason} ({example})"))
