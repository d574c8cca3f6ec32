"""A frozen causal language model of any Hugging Face architecture, run up to a cut and on from it.

Shapes: N documents, B rows of a minibatch, T tokens, D width, V vocabulary.
"""

import copy
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.utils import logging as transformers_logging

from kernels.frozen_linear import freeze_linears
from registry.errors import StateError, UnsupportedBackboneError
from tasks.learning.attach import find_blocks, width_of
from tasks.learning.backbones import Work, absent_weights, incomplete
from tasks.learning.language.packing import chunk, within_documents

STEP = 8
"""Padded lengths are multiples of this."""


class _Stop(Exception):  # noqa: N818  a signal, not an error
    """Carries the hidden states out of the model's own forward pass."""

    def __init__(self, hidden_BTD: Tensor) -> None:
        self.hidden_BTD = hidden_BTD


class LanguageBackbone:
    """Tokenises, encodes up to a cut, and gives copies that run on from there. Made by `load_language_backbone`.

    Its own modules are never changed: every pass runs in a copy whose weights are the same tensors, so threads and
    adapters share a backbone without meeting.
    """

    modality = "text"

    def __init__(self, model: nn.Module, tokenizer: Any, max_tokens: int = 64, rows: int = 4) -> None:
        self.model: Any = model.eval().requires_grad_(False)
        freeze_linears(self.model)
        self.tokenizer, self.max_tokens, self.rows = tokenizer, max_tokens, rows
        self.num_blocks = len(find_blocks(model))
        self.width = width_of(model)
        self.end = int(tokenizer.eos_token_id)
        self.work = Work()
        self.digest = self._digest()

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @cached_property
    def keeps_apart(self) -> bool:
        """Whether documents side by side do not see each other: convolutions and recurrences take no mask."""
        last_2TV = []
        for first in (range(4), range(4, 8)):
            inputs = self.inputs([[[*first], [*range(8, 12)]]], 8)
            with torch.inference_mode():
                last_2TV.append(self.model(**inputs.as_arguments()).logits[0, 4:])
        return bool((last_2TV[0] - last_2TV[1]).abs().max() < 1e-3 * last_2TV[0].abs().max())

    @cached_property
    def positions(self) -> int | None:
        """How many a table of learned ones holds, as in OPT and GPT-2; None where they are computed and do not end."""
        most, words = getattr(self.model.config, "max_position_embeddings", None), self.model.get_input_embeddings()
        tables = [m.num_embeddings for m in self.model.modules() if isinstance(m, nn.Embedding) and m is not words]
        return most if most and any(most <= rows <= most + 2 for rows in tables) else None  # OPT keeps two of its own

    def prompt(self, text: str, new_tokens: int = 1) -> list[int]:
        """The newest tokens of a prompt, as many as the context and the positions leave room for; without the end token
        that some tokenizers write, after which there is nothing to go on with. Raises StateError without any room."""
        room = self.max_tokens
        if self.positions is not None:  # the last new token is written and never read
            room = min(room, self.positions - new_tokens + 1)
        if room < 1:
            raise StateError(
                f"completion.new_tokens is {new_tokens}, {type(self.model).__name__} has {self.positions} learned "
                "positions; lower it"
            )
        ids = list(self.tokenizer(text, verbose=False)["input_ids"])
        return (ids[:-1] if ids[-1:] == [self.end] else ids)[-room:] or [self.end]

    def document(self, text: str) -> list[int]:
        """All tokens of a document, and the one that ends it."""
        return [*self.tokenizer(text, verbose=False)["input_ids"], self.end]

    def encode(self, texts: Sequence[str], cut: int) -> list[Tensor]:
        """Per document the states entering block `cut`, (T, D) float32 on the CPU; see `encode_tokens`."""
        return self.encode_tokens([self.document(text) for text in texts], cut)

    def encode_tokens(self, tokens: Sequence[Sequence[int]], cut: int) -> list[Tensor]:
        """What is longer than the context is read in parts that do not see each other.

        The bytes of a sequence's states depend on it alone: minibatches have a constant number of rows, and a part's
        padded length comes from its own length.
        """
        parts = [(n, part) for n, ids in enumerate(tokens) for part in chunk(ids, self.max_tokens)]
        if self.positions is not None and any(len(part) > self.positions for _, part in parts):
            raise UnsupportedBackboneError(
                f"max_tokens is {self.max_tokens}, {type(self.model).__name__} has {self.positions} learned positions, "
                "and a text needs more; lower max_tokens"
            )
        found: list[list[Tensor]] = [[] for _ in tokens]
        model, blocks = shared_copy(self.model)
        blocks[cut].forward = _stop
        states: list[Tensor] = [torch.empty(0)] * len(parts)
        for chosen, padded in self.minibatches([len(part) for _, part in parts]):
            inputs = self.rows_of([parts[i][1] for i in chosen], padded)
            hidden_BTD = _caught(model, inputs)
            self.work.forwards += cut * len(chosen)
            for row, i in enumerate(chosen):
                states[i] = hidden_BTD[row, : len(parts[i][1])].float().cpu().clone()
        for (n, _), state_TD in zip(parts, states, strict=True):
            found[n].append(state_TD)
        return [torch.cat(each) for each in found]

    def minibatches(self, lengths: Sequence[int]) -> Iterator[tuple[list[int], int]]:
        """Positions of at most `rows` sequences of one padded length, with that length."""
        buckets: dict[int, list[int]] = {}
        for i, length in enumerate(lengths):
            buckets.setdefault(-(-length // STEP) * STEP, []).append(i)
        for padded, members in sorted(buckets.items()):
            for first in range(0, len(members), self.rows):
                yield members[first : first + self.rows], padded

    def rows_of(self, sequences: Sequence[Sequence[int]], padded: int) -> "Inputs":
        """One sequence a row, in a minibatch of constant shape; rows that are missing are one token long."""
        missing = [[[self.end]]] * (self.rows - len(sequences))
        return self.inputs([[list(ids)] for ids in sequences] + missing, padded)

    def inputs(self, rows: Sequence[Sequence[Sequence[int]]], padded: int) -> "Inputs":
        """Rows of several sequences each, side by side: positions begin anew, and none sees another."""
        ids_BT = torch.full((len(rows), padded), self.end)
        position_BT, owner_BT = torch.zeros_like(ids_BT), torch.full_like(ids_BT, -1)
        for row, sequences in enumerate(rows):
            place = 0
            for number, ids in enumerate(sequences):
                span = slice(place, place + len(ids))
                ids_BT[row, span], owner_BT[row, span] = torch.as_tensor(list(ids)), number
                position_BT[row, span] = torch.arange(len(ids))
                place += len(ids)
        mask_B1TT = within_documents(owner_BT)
        return Inputs(*(each.to(self.device) for each in (ids_BT, position_BT, owner_BT, mask_B1TT)))

    def _digest(self) -> str:
        named = {
            k: v for k, v in self.model.config.to_dict().items() if k not in {"_name_or_path", "transformers_version"}
        }
        vocabulary = sorted(self.tokenizer.get_vocab().items())
        about = [named, vocabulary, self.end, self.max_tokens, self.rows, "frozen_linear"]
        digest = hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode())
        for name, weight in sorted(self.model.state_dict().items()):
            digest.update(name.encode())
            digest.update(weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class Inputs:
    """One minibatch as a model takes it; `owner` numbers the sequences of a row, -1 is padding."""

    ids_BT: Tensor
    position_BT: Tensor
    owner_BT: Tensor
    mask_B1TT: Tensor

    def as_arguments(self) -> dict[str, Any]:
        return {
            "input_ids": self.ids_BT,
            "position_ids": self.position_BT,
            "attention_mask": self.mask_B1TT,
            "use_cache": False,
        }


def shared_copy(model: nn.Module) -> tuple[Any, nn.ModuleList]:
    """Modules of one's own over the same weights, and its blocks: what is done to them reaches nobody else."""
    tensors = [*model.parameters(), *model.buffers()]
    copied = copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
    return copied, find_blocks(copied)


def _stop(hidden_states: Tensor, *_args: Any, **_kwargs: Any) -> Tensor:
    raise _Stop(hidden_states)


def _caught(model: Any, inputs: Inputs) -> Tensor:
    try:
        with torch.inference_mode():
            model(**inputs.as_arguments())
    except _Stop as caught:
        return caught.hidden_BTD
    raise UnsupportedBackboneError(f"{type(model).__name__} never calls its blocks one by one; use another model")


def load_language_backbone(folder: str, max_tokens: int = 64, rows: int = 4, device: str = "cpu") -> LanguageBackbone:
    """The causal language model of a local Hugging Face folder, frozen.

    Raises UnsupportedBackboneError for a folder that holds none, or a tokenizer without an end token.
    """
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            dtype=torch.float32,
            attn_implementation="sdpa",
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # told with those that are missing
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (ValueError, OSError) as error:
        first = str(error).split(".")[0]
        raise UnsupportedBackboneError(
            f"{folder}: {first}; give a folder with a causal language model whose attention torch computes"
        ) from error
    model, found = loaded
    if absent := absent_weights(found):
        raise incomplete(folder, absent)
    if tokenizer.eos_token_id is None:
        raise UnsupportedBackboneError(f"{folder}: its tokenizer has no end token; set eos_token in its configuration")
    # what the folder prefers (penalties, beams, forced tokens) would fill what a greedy completion leaves unsaid
    model.generation_config = GenerationConfig()
    return LanguageBackbone(model.to(device), tokenizer, max_tokens, rows)
