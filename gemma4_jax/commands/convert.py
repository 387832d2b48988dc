"""Convert a model between a Hugging Face folder and one of ours (Orbax).

By default SRC becomes the other kind. The weights keep their type unless --dtype is given; the tokenizer
comes along.
"""

import argparse
import sys
import time
from pathlib import Path

from gemma4_jax.errors import UserError, unknown

KINDS = {"huggingface": "a Hugging Face folder", "orbax": "a folder of ours"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `gemma4 convert` takes."""
    parser.add_argument("source", metavar="SRC", help="folder to read")
    parser.add_argument("target", metavar="DST", help="folder to write")
    parser.add_argument(
        "--to", metavar="KIND", help="huggingface or orbax (default: what SRC is not)"
    )
    parser.add_argument(
        "--dtype", metavar="NAME", help="float32, bfloat16 or float16 (default: as stored in SRC)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace DST if it exists")


def run(arguments: argparse.Namespace) -> None:
    """Read, write, and say so."""
    source, target = Path(arguments.source), Path(arguments.target)
    if arguments.to is not None and arguments.to not in KINDS:
        raise unknown("kind of folder", arguments.to, KINDS)
    if target.exists():
        if source.exists() and (
            target.samefile(source) or target.resolve() in source.resolve().parents
        ):
            raise UserError(f"{target} is or holds SRC itself; choose another folder")
        if not target.is_dir():
            raise UserError(f"{target} is a file; give the name of a folder")
        if any(target.iterdir()) and not arguments.overwrite:
            raise UserError(f"{target} exists; choose another folder or pass --overwrite")

    from gemma4_jax.build import dtype_named
    from gemma4_jax.checkpoint import describe, load, save, save_huggingface
    from gemma4_jax.checkpoint.store import is_store

    config = describe(source).config  # before any reading: is it a model folder at all?
    kind = "orbax" if is_store(source) else "huggingface"
    to = arguments.to or ("huggingface" if kind == "orbax" else "orbax")
    dtype = arguments.dtype or _stored_dtype(source, kind)
    dtype_named(dtype)  # refused before anything is said or read
    start = time.perf_counter()
    _note(f"reading {source}, {KINDS[kind]}, as {dtype}: {config.name}, {config.num_layers} layers")
    model = load(source, dtype=dtype)
    _note(f"writing {target}, {KINDS[to]}")
    (save if to == "orbax" else save_huggingface)(model, target, overwrite=arguments.overwrite)
    size = sum(file.stat().st_size for file in target.rglob("*") if file.is_file())
    _note(f"done: {size / 1e9:.2f} GB in {time.perf_counter() - start:.1f} s")


def _stored_dtype(folder: Path, kind: str) -> str:
    """What a folder's weights are stored in; of a mixed one, what most of its numbers are."""
    from gemma4_jax.checkpoint.description import CONFIG
    from gemma4_jax.checkpoint.safetensors import DTYPES, read_folder, read_json

    if kind == "orbax":
        return str(read_json(folder / CONFIG)["dtype"])  # `save` wrote it
    count: dict[str, int] = {}
    for tensor in read_folder(folder).values():
        name = DTYPES[tensor.dtype].name if tensor.dtype in DTYPES else ""
        count[name] = count.get(name, 0) + tensor.nbytes
    dtype = max(count, key=lambda name: count[name], default="")
    return dtype if dtype in ("float32", "bfloat16", "float16") else "float32"


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
