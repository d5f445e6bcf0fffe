"""GGUF files as folders that transformers reads, converted once into the user's cache.

The folder holds float32 weights, since a GGUF file's values do not fit bfloat16.
"""

import contextlib
import io
import sys
import tempfile
from pathlib import Path
from typing import cast

import torch
import transformers
from gguf import GGUFReader
from huggingface_hub import cached_assets_path
from safetensors import SafetensorError
from tokenizers import decoders, pre_tokenizers
from tokenizers.models import Unigram
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from schemabank.common.errors import InputError, first_line
from schemabank.common.files import sha256
from schemabank.common.memory import is_out_of_memory
from schemabank.common.writing import settle, writing_tensors
from schemabank.models.checks import COUNTS, check_counts

LOADING_ERRORS = (OSError, ValueError, RuntimeError, ImportError, SafetensorError)

# GGUF's name for SmolLM's split: every digit alone, then GPT-2's pattern. transformers (5.23) does
# the latter only, which tokenises "\n\n1" and "  1" unlike the original. llama.cpp has it right:
# https://github.com/ggml-org/llama.cpp/blob/00ad355e009e83abf98f96a6ded7193b95763681/src/llama-vocab.cpp
SINGLE_DIGIT_SPLIT = "smollm"
SPECIAL_TOKENS = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}  # ours: GGUF's


def converted(file_name: str, parts: tuple[Path, ...], *, origin: str) -> tuple[Path, str]:
    """Return the cached folder of a GGUF file's model, converted now if it is not there.

    Args:
        file_name: the file's own name.
        parts: the file, or the parts to be joined.
        origin: what to call it.

    Returns:
        The folder, and a line that says where the weights came from.

    Raises:
        InputError: the file cannot be converted, or there is no cache.
        OSError: the cache cannot be written, as on a full disk.

    The key holds the content's hash and the transformers version, since both decide the result.
    Two processes may convert at once; the first to rename its folder wins.
    """
    root = _models_cache(origin)
    key = f"{Path(file_name).stem}-{sha256(*parts)[:16]}"
    folder = root / f"{key}-transformers-{transformers.__version__}"
    if folder.is_dir():
        return folder, f"converted earlier from {origin}, reused from {folder}"
    with tempfile.TemporaryDirectory(dir=root, prefix=".converting-") as scratch:
        finished, gguf = Path(scratch, "model"), _join_parts(parts, Path(scratch, file_name))
        # Hides a bar that transformers' own switch does not reach; its log lines still pass.
        with contextlib.redirect_stderr(sys.stderr if sys.stderr.isatty() else io.StringIO()):
            _convert_file(gguf, finished, origin)
        try:
            settle(finished, folder)
        except OSError:
            if not folder.is_dir():
                raise
    return folder, f"converted from {origin}, cached in {folder}"


def _models_cache(origin: str) -> Path:
    """The folder of converted models in the user's cache."""
    try:
        return cached_assets_path(library_name="schemabank", namespace="models", subfolder="gguf")
    except (OSError, ValueError) as error:  # ValueError: a file stands where a folder should
        raise InputError(
            f"the GGUF file {origin!r} cannot be converted, since its place in the user's cache "
            f"cannot be made ({first_line(error)}): let HF_HOME name a folder that you may write to"
        ) from error


def _join_parts(parts: tuple[Path, ...], target: Path) -> Path:
    if len(parts) == 1:
        return parts[0]
    with target.open("wb") as file:
        file.writelines(part.read_bytes() for part in parts)
    return target


def _convert_file(gguf: Path, target: Path, origin: str) -> None:
    """Write the model and tokenizer in a GGUF file to a folder."""
    try:
        model, tokenizer = _load_gguf(gguf)
    except LOADING_ERRORS as error:
        if is_out_of_memory(error):
            raise
        raise InputError(
            f"The GGUF file {origin!r} could not be converted: {first_line(error)}; give an "
            f"intact one that transformers {transformers.__version__} reads, or a folder."
        ) from error
    with writing_tensors(target):
        model.save_pretrained(target)
        tokenizer.save_pretrained(target)


def _load_gguf(gguf: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Read the model, in float32, and the tokenizer of a GGUF file, both as they can be saved."""
    folder, file_name = str(gguf.parent), gguf.name
    reader = GGUFReader(gguf)
    counts = (field for key, field in reader.fields.items() if key.endswith(COUNTS))
    check_counts(file_name, {field.name: field.contents() for field in counts})
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file_name, dtype=torch.float32)
    # The weights are plain numbers now, yet transformers refuses to save a model with these traces.
    del model.config.quantization_config
    for trace in ("is_quantized", "quantization_method", "hf_quantizer"):
        delattr(model, trace)
    model.config.__dict__.pop("_model_name_or_path", None)  # GGUF's free-text title
    found = AutoTokenizer.from_pretrained(folder, gguf_file=file_name)
    tokenizer = cast(PreTrainedTokenizerFast, found)
    _restore_tokenizer(tokenizer, reader)
    return model, tokenizer


def _restore_tokenizer(tokenizer: PreTrainedTokenizerFast, reader: GGUFReader) -> None:
    """Set what transformers drops or gets wrong; 5.17 takes SmolLM2's begin token for its end."""
    facts = {k.removeprefix("tokenizer."): own.contents() for k, own in reader.fields.items()}
    if facts["ggml.model"] == "llama" and isinstance(tokenizer.backend_tokenizer.model, Unigram):
        # GGUF means merges by that name; 5.17 spells Gemma's texts letter by letter.
        raise ValueError("its tokenizer needs a newer transformers, such as 5.23")
    for token, gguf_token in SPECIAL_TOKENS.items():
        token_id = facts.get(f"ggml.{gguf_token}_token_id")
        text = None if token_id is None else tokenizer.convert_ids_to_tokens(token_id)
        setattr(tokenizer, f"{token}_token", text)
    tokenizer.chat_template = facts.get("chat_template")
    tokenizer.clean_up_tokenization_spaces = False  # it would delete spaces before punctuation
    if facts.get("ggml.pre") == SINGLE_DIGIT_SPLIT:
        backend = tokenizer.backend_tokenizer
        backend.normalizer, backend.decoder = None, decoders.ByteLevel()
        backend.model.unk_token, backend.model.byte_fallback = None, False
        by_digit = pre_tokenizers.Digits(individual_digits=True)
        by_pattern = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.pre_tokenizer = pre_tokenizers.Sequence([by_digit, by_pattern])
