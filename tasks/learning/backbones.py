"""A frozen Hugging Face encoder, text or images, run block by block without a copy of its code.

Shapes: N records, B rows of a minibatch, T tokens (ragged: padded within a minibatch), D width.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoTokenizer
from transformers.utils import logging as transformers_logging

from kernels.candidate_eval import Adapt, Block, Shared
from kernels.frozen_linear import freeze_linears
from registry.errors import UnsupportedBackboneError
from tasks.learning.attach import SUPPORTED, AttachPoint, Joint, find_attach_points, find_blocks, width_of
from tasks.learning.images import Preprocessing, read_preprocessing, to_pixels

ImageInput = Image.Image | np.ndarray
Delta = Callable[[Tensor, Tensor | None], Tensor]
"""The residual before the MLP (B, T, D), and which of its tokens are real (B, T; None: all) -> what an adapter adds."""
OnBlock = Callable[[int, Joint, Tensor], None]  # block number, where adapters join, block output

STEP = 8  # to a multiple of which texts are padded
ROWS = 8
"""Of every minibatch, filled up or not: fewer waste less on ragged ones, more read the weights less often (0205)."""


@dataclass
class Work:
    """Block evaluations so far, in rows times blocks: what the benchmarks report instead of seconds."""

    forwards: int = 0
    backwards: int = 0


class _Stop(Exception):  # noqa: N818  a signal, not an error
    """Carries the embedded tokens out of the model's own forward pass."""

    def __init__(self, hidden_BTD: Tensor) -> None:
        self.hidden_BTD = hidden_BTD


class Backbone:
    """One frozen encoder: embed, run blocks i to j, pool. Made by `load_backbone`."""

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any | None,
        preprocessing: Preprocessing | None,
        max_tokens: int = 64,
        rows: int = ROWS,
        vocabulary: str = "",
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        freeze_linears(self.model)
        self.tokenizer, self.preprocessing, self.max_tokens, self.rows = tokenizer, preprocessing, max_tokens, rows
        self.modality = "text" if tokenizer is not None else "image"
        self.blocks = find_blocks(model)
        self.attach_points: list[AttachPoint] = find_attach_points(model, self.blocks)
        self.num_blocks = len(self.blocks)
        self.width = width_of(model)
        self.positions = _positions(model) if tokenizer is not None else None
        self.work = Work()
        self.digest = self._digest(vocabulary)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def encode(self, inputs: Sequence[str] | Sequence[ImageInput], cut: int) -> list[Tensor]:
        """Per record the unpadded hidden states entering block `cut`, (T, D) float32 on the CPU.

        The bytes of a record's states depend on that record alone: minibatches have a constant number of rows, and a
        record's padded length comes from its own length.
        """
        tokens = [self._tokens(item) for item in inputs]
        out: list[Tensor] = [torch.empty(0)] * len(tokens)
        for chosen, padded in self.minibatches(
            [len(t) for t in tokens] if self.modality == "text" else [1] * len(tokens)
        ):
            hidden_BTD, lengths_B = self._embed([tokens[i] for i in chosen], padded)
            with torch.inference_mode():
                hidden_BTD = self.run_blocks(hidden_BTD, lengths_B, 0, cut, count=len(chosen))
            for row, i in enumerate(chosen):
                out[i] = hidden_BTD[row, : int(lengths_B[row])].float().cpu().clone()
        return out

    def minibatches(self, lengths: Sequence[int], rows: int = 0) -> Iterator[tuple[list[int], int]]:
        """Positions of at most `rows` records (the backbone's own number) of one padded length, with that length."""
        rows = rows or self.rows
        step = STEP if self.modality == "text" else 1
        buckets: dict[int, list[int]] = {}
        for i, length in enumerate(lengths):
            buckets.setdefault(-(-length // step) * step, []).append(i)
        for padded, members in sorted(buckets.items()):
            for first in range(0, len(members), rows):
                yield members[first : first + rows], padded

    def pad(self, states: Sequence[Tensor], padded: int, rows: int) -> tuple[Tensor, Tensor]:
        """Ragged states to (rows, padded, D) and the lengths (rows,); rows that are missing are one zero token."""
        hidden_BTD = torch.zeros(rows, padded, self.width)
        lengths_B = torch.ones(rows, dtype=torch.long)
        for row, state_TD in enumerate(states):
            hidden_BTD[row, : len(state_TD)] = state_TD
            lengths_B[row] = len(state_TD)
        return hidden_BTD.to(self.device), lengths_B.to(self.device)

    def run_blocks(
        self,
        hidden_BTD: Tensor,
        lengths_B: Tensor,
        start: int,
        stop: int,
        deltas: Mapping[int, Delta] | None = None,
        on_block: OnBlock | None = None,
        count: int | None = None,
    ) -> Tensor:
        """The states entering block `stop`, from those entering `start`; `deltas` join the MLPs in parallel."""
        mask_BT = self.mask(hidden_BTD, lengths_B)
        mask_B11T = None if mask_BT is None else mask_BT[:, None, None]
        rows = len(hidden_BTD) if count is None else count
        for number in range(start, stop):
            with ExitStack() as hooks:
                delta = deltas.get(number) if deltas else None
                seen = self.attach_points[number].attach(hooks, delta and _seeing(delta, mask_BT))
                hidden_BTD = self.blocks[number](hidden_BTD, attention_mask=mask_B11T)
            self.work.forwards += rows
            self.work.backwards += rows * hidden_BTD.requires_grad
            if on_block is not None:
                on_block(number, Joint(*seen), hidden_BTD)
        return hidden_BTD

    def pool(self, hidden_BTD: Tensor, lengths_B: Tensor) -> Tensor:
        """(B, 2, D): an image's class token and the mean of its other tokens; of a text twice the mean of all."""
        if self.modality == "image":
            return torch.stack([hidden_BTD[:, 0], hidden_BTD[:, 1:].mean(1)], 1)
        mean_BD = mean_tokens(hidden_BTD, lengths_B)
        return torch.stack([mean_BD, mean_BD], 1)

    def halves(self, number: int, count: int) -> Block:
        """Block `number` for `kernels.candidate_eval`, its adapters at "mlp": cut where they join; `count` rows are
        counted as work."""
        point, block = self.attach_points[number], self.blocks[number]

        def enter(hidden_BTD: Tensor, mask_BT: Tensor | None) -> Joint:
            with ExitStack() as hooks:
                seen = point.attach(hooks, None)
                block(hidden_BTD, attention_mask=None if mask_BT is None else mask_BT[:, None, None])
            self.work.forwards += count
            return Joint(*seen)

        def leave(shared: Shared, _mask_BT: Tensor | None, adapt: Adapt) -> Tensor:
            joint = Joint(*shared)
            return point.finish(joint, adapt("mlp", joint.residual, torch.zeros_like(joint.residual)))

        return Block(enter, leave)

    def mask(self, hidden_BTD: Tensor, lengths_B: Tensor) -> Tensor | None:
        """(B, T), True where a token is real; None for images, whose tokens all are."""
        if self.modality == "image":
            return None
        return torch.arange(hidden_BTD.shape[1], device=hidden_BTD.device) < lengths_B[:, None]

    def _tokens(self, item: str | ImageInput) -> list[int] | Tensor:
        if isinstance(item, str):
            if self.tokenizer is None:
                raise ValueError("a text for an image backbone")
            found = list(self.tokenizer(item, truncation=True, max_length=self.max_tokens)["input_ids"])
            if self.positions is not None and len(found) > self.positions:
                raise UnsupportedBackboneError(
                    f"max_tokens is {self.max_tokens}, {type(self.model).__name__} has places for {self.positions}, "
                    f"and a text has more: begin under a new name with max_tokens {self.positions}"
                )
            return found
        if self.preprocessing is None:
            raise ValueError("an image for a text backbone")
        return to_pixels(item, self.preprocessing)

    def _embed(self, tokens: Sequence[list[int] | Tensor], padded: int) -> tuple[Tensor, Tensor]:
        """The states entering block 0, caught on their way in, and the number of real tokens of each row."""
        if self.tokenizer is None:
            pixels_BCHW = torch.zeros(self.rows, *tokens[0].shape)  # type: ignore[union-attr]
            pixels_BCHW[: len(tokens)] = torch.stack(tokens)  # type: ignore[arg-type]
            hidden_BTD = self._catch(pixel_values=pixels_BCHW.to(self.device))
            return hidden_BTD, torch.full((self.rows,), hidden_BTD.shape[1])
        ids_BT = torch.full((self.rows, padded), int(self.tokenizer.pad_token_id or 0))
        lengths_B = torch.ones(self.rows, dtype=torch.long)
        for row, ids in enumerate(tokens):
            ids_BT[row, : len(ids)] = torch.as_tensor(ids)
            lengths_B[row] = len(ids)
        return self._catch(input_ids=ids_BT.to(self.device)), lengths_B.to(self.device)

    def _catch(self, **inputs: Tensor) -> Tensor:
        def stop(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
            raise _Stop(args[0])

        handle = self.blocks[0].register_forward_pre_hook(stop)
        try:
            with torch.inference_mode():
                self.model(**inputs)
        except _Stop as caught:
            return caught.hidden_BTD
        finally:
            handle.remove()
        raise UnsupportedBackboneError(f"{type(self.model).__name__} never calls its first block; use an encoder")

    def _digest(self, source: str) -> str:
        config: Any = self.model.config
        named = {k: v for k, v in config.to_dict().items() if k not in {"_name_or_path", "transformers_version"}}
        # "frozen_linear": states kept from before it differ in their last bits, as on another kind of processor;
        # "two views": heads from before them have other features
        form = [self.max_tokens if self.tokenizer else 0, self.rows, "frozen_linear", "two views"]
        about = [named, repr(self.preprocessing), source, *form]
        digest = hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode())
        for name, weight in sorted(self.model.state_dict().items()):
            digest.update(name.encode())
            digest.update(weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


def _seeing(delta: Delta, real_BT: Tensor | None) -> Callable[[Tensor], Tensor]:
    return lambda hidden_BTD: delta(hidden_BTD, real_BT)


def mean_tokens(hidden_BTD: Tensor, lengths_B: Tensor) -> Tensor:
    """(B, D): the mean over the real tokens of each row."""
    real_BT = torch.arange(hidden_BTD.shape[1], device=hidden_BTD.device) < lengths_B[:, None]
    return (hidden_BTD * real_BT[..., None]).sum(1) / lengths_B[:, None]


def _positions(model: nn.Module) -> int | None:
    """The tokens that a text may have, padding included; None where positions are not learned."""
    for name, table in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(table, nn.Embedding):
            first = 0 if table.padding_idx is None else table.padding_idx + 1  # RoBERTa's count from there
            return (table.num_embeddings - first) // STEP * STEP
    return None


def load_backbone(folder: str, max_tokens: int = 64, rows: int = ROWS, device: str = "cpu") -> Backbone:
    """The encoder of a local Hugging Face folder, frozen.

    Raises UnsupportedBackboneError when the architecture has no blocks with an MLP to attach to, or lacks weights.
    """
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()  # the callers' own bar and JSON lines stay readable
    model = _load_model(folder).to(device)
    config: Any = model.config
    if hasattr(config, "image_size") and hasattr(config, "patch_size"):
        if getattr(config, "num_channels", 3) != 3:
            raise UnsupportedBackboneError(
                f"{folder} takes images of {config.num_channels} channels; use one for 3, red, green and blue"
            )
        return Backbone(model, None, read_preprocessing(Path(folder), config), rows=rows)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    vocabulary = hashlib.sha256(json.dumps(tokenizer.get_vocab(), sort_keys=True).encode()).hexdigest()
    return Backbone(model, tokenizer, None, max_tokens, rows, vocabulary=vocabulary)


def _load_model(folder: str) -> nn.Module:
    if not (Path(folder) / "config.json").is_file():  # transformers would look for an id of that name
        raise UnsupportedBackboneError(
            f"{folder!r} is no Hugging Face folder: it has no config.json; give another path"
        )
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        pooled = {"add_pooling_layer": False} if config.model_type in {"bert", "roberta", "vit", "deit"} else {}
        model, found = AutoModel.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,  # weights in a pickle are not opened
            dtype=torch.float32,
            attn_implementation="sdpa",
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # told with those that are missing
            **pooled,
        )
    except (OSError, SafetensorError) as error:
        raise UnsupportedBackboneError(
            f"{folder} has no readable model.safetensors ({str(error).splitlines()[0]}); weights in another format are "
            "not opened: write them with save_pretrained"
        ) from error
    except ValueError as error:
        first = str(error).split(".")[0]
        raise UnsupportedBackboneError(f"{folder}: {first}; {SUPPORTED}") from error
    absent = absent_weights(found)
    if all(name.startswith("pooler.") for name in absent):
        if absent:
            model.pooler = None  # nothing is read from it, and what was made up for it differs from load to load
        return model
    raise incomplete(folder, absent)


def absent_weights(found: Mapping[str, Any]) -> list[str]:
    """Weights that a folder does not hold, or in another shape: they were made up, anew in every process."""
    return sorted({*found["missing_keys"], *(name for name, *_ in found["mismatched_keys"])})


def incomplete(folder: str, absent: Sequence[str]) -> UnsupportedBackboneError:
    return UnsupportedBackboneError(
        f"{folder}: model.safetensors lacks {len(absent)} weights that config.json asks for, or has them in another "
        f"shape ({absent[0]}, ..); write both with save_pretrained"
    )
