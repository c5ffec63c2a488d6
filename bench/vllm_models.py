"""Model folders for vLLM's `--load-format dummy`: geometry and tokenizer, and no weights, which vLLM makes up.

    python3 -m bench.vllm_models FOLDER

The geometries are those of public models, so that memory and time are as theirs. The tokenizer is ours: one token for
each word of WORDS, and <unk> for what is none.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

EMBED, RERANK, SMALL, LARGE = "bge-m3", "bge-reranker-v2-m3", "llama-1b", "llama-7b"
VOCABULARY = 32_000
_SYLLABLES = tuple(a + b for a, b in itertools.product("bcdfghjklmnprstvwz", "aeiou"))
WORDS = tuple(itertools.islice((a + b + c for a, b, c in itertools.product(_SYLLABLES, repeat=3)), 30_000))
"""What texts are made of."""

_ENCODER = {
    "model_type": "xlm-roberta",
    "vocab_size": 250_002,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "max_position_embeddings": 8194,
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-5,
    "hidden_act": "gelu",
    "position_embedding_type": "absolute",
    "bos_token_id": 0,
    "pad_token_id": 1,
    "eos_token_id": 2,
    "torch_dtype": "float32",
}
_ENCODER_SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
_GENERATOR_SPECIAL = ("<unk>", "<s>", "</s>")


def _generator(hidden: int, inner: int, layers: int, heads: int, kv_heads: int, context: int) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCABULARY,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": context,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10_000.0,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "bfloat16",
    }


GENERATORS = {
    SMALL: _generator(2048, 5632, 22, 32, 4, 2048),
    LARGE: _generator(4096, 14_336, 32, 32, 8, 4096),
}
"""1.1 and 7.2 billion parameters; a token takes 22 and 128 KiB of KV cache."""


def tokenizer(special: Sequence[str], single: Sequence[str], pair: Sequence[str]) -> dict[str, Any]:
    """Return a tokenizer.json. `single` and `pair` say what one text (A) and two (A, B) are wrapped in."""
    ids = {token: number for number, token in enumerate(special)}
    vocabulary = {token: number for number, token in enumerate((*special, *WORDS))}
    vocabulary |= {f"<unused{number}>": number for number in range(len(vocabulary), VOCABULARY)}

    def template(parts: Sequence[str]) -> list[dict[str, Any]]:
        kinds = [("Sequence" if part in "AB" else "SpecialToken", part) for part in parts]
        return [{kind: {"id": part, "type_id": 0}} for kind, part in kinds]

    wrapping = {part for part in (*single, *pair) if part not in "AB"}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": number, "content": token, "single_word": False, "lstrip": False, "rstrip": False}
            | {"normalized": False, "special": True}
            for token, number in ids.items()
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": template(single),
            "pair": template(pair),
            "special_tokens": {one: {"id": one, "ids": [ids[one]], "tokens": [one]} for one in sorted(wrapping)},
        },
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"},
    }


def _settings(length: int, names: dict[str, str]) -> dict[str, Any]:
    inputs = ["input_ids", "attention_mask"]
    return {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": length, "model_input_names": inputs} | {
        f"{name}_token": token for name, token in names.items()
    }


def files() -> dict[str, Any]:
    """Return the content of all files, by their paths below the folder."""
    marks = {"bos": "<s>", "cls": "<s>", "eos": "</s>", "sep": "</s>", "pad": "<pad>", "unk": "<unk>", "mask": "<mask>"}
    encoder = {
        "tokenizer.json": tokenizer(_ENCODER_SPECIAL, ("<s>", "A", "</s>"), ("<s>", "A", "</s>", "</s>", "B", "</s>")),
        "tokenizer_config.json": _settings(8192, marks),
    }
    stages = ("Transformer", "Pooling", "Normalize")
    found: dict[str, Any] = {f"{model}/{name}": text for model in (EMBED, RERANK) for name, text in encoder.items()}
    found |= {
        f"{EMBED}/config.json": _ENCODER | {"architectures": ["XLMRobertaModel"]},
        f"{EMBED}/modules.json": [
            {"idx": at, "name": str(at), "path": f"{at}_{stage}" if at else ""}
            | {"type": f"sentence_transformers.models.{stage}"}
            for at, stage in enumerate(stages)
        ],
        f"{EMBED}/sentence_bert_config.json": {"max_seq_length": 8192, "do_lower_case": False},
        f"{EMBED}/1_Pooling/config.json": {"word_embedding_dimension": 1024, "pooling_mode_cls_token": True}
        | {f"pooling_mode_{kind}": False for kind in ("mean_tokens", "max_tokens", "mean_sqrt_len_tokens")},
        f"{RERANK}/config.json": _ENCODER
        | {"architectures": ["XLMRobertaForSequenceClassification"]}
        | {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}},
    }
    for model, config in GENERATORS.items():
        names = {"bos": "<s>", "eos": "</s>", "unk": "<unk>", "pad": "</s>"}
        found |= {
            f"{model}/config.json": config,
            f"{model}/generation_config.json": {"bos_token_id": 1, "eos_token_id": 2},
            f"{model}/tokenizer.json": tokenizer(_GENERATOR_SPECIAL, ("<s>", "A"), ("<s>", "A", "<s>", "B")),
            f"{model}/tokenizer_config.json": _settings(config["max_position_embeddings"], names),
        }
    return found


def make(folder: Path) -> None:
    """Write all models below a folder."""
    for name, content in files().items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content) + "\n")


def main() -> int:
    """Write the models into the folder that the command line names; return the exit status."""
    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options.add_argument("folder", type=Path)
    folder = options.parse_args().folder
    make(folder)
    print("\n".join(str(folder / model) for model in (EMBED, RERANK, *GENERATORS)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
