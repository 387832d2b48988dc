"""A Hugging Face folder of random weights that llama.cpp's converter takes: the model of the other benchmarks.

    python -m benchmarks.rivals.llama_folder benchmarks/configs/dense_40m.json FOLDER
    python LLAMA_CPP/convert_hf_to_gguf.py FOLDER --outtype bf16 --outfile MODEL.gguf
    python -m benchmarks.rivals.llama_decode MODEL.gguf --users 1 8 32 --prompt 512 --new 64

The weights are those that `benchmarks.engine` makes. The tokenizer is a stand-in of as many pieces as the
model has ids: the converter wants one, and the benchmark gives ids.
"""

import argparse
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
from tokenizers import Tokenizer, decoders, models

from gemma4_jax.build import build
from gemma4_jax.checkpoint.safetensors import read_json
from gemma4_jax.checkpoint.writing import save_huggingface
from gemma4_jax.errors import report_user_errors
from gemma4_jax.hf_config import config_from_hf
from gemma4_jax.model.transformer import init_params

_SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>")


def main() -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path, help="Hugging Face config.json")
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    with report_user_errors():
        config = config_from_hf(read_json(args.config))
        model = build(
            config, init_params(config, jax.random.key(0), jnp.float32), dtype=jnp.float32
        )
        save_huggingface(model, args.folder)
        shutil.copy(args.config, args.folder / "config.json")
        _write_tokenizer(args.folder, config.vocab_size)


def _write_tokenizer(folder: Path, size: int) -> None:
    pieces = [*_SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["a", "b", "ab"]  # the converter wants a merge
    pieces += [f"piece{i}" for i in range(size - len(pieces))]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    bpe = models.BPE(vocab=vocab, merges=[("a", "b")], unk_token="<unk>", byte_fallback=True)
    tokenizer = Tokenizer(bpe)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens(list(_SPECIAL))
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"}
    described = {"tokenizer_class": "PreTrainedTokenizerFast", **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(described))


if __name__ == "__main__":
    main()
