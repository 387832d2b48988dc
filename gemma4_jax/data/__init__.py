"""Data sets in files: rows of any known kind and format -> tokens with loss masks.

files.py finds files and numbers their rows, whatever they are stored as (jsonl.py, parquet.py,
array_record.py); formats.py recognises what a row says; encode.py turns it into tokens. Not here: batches
and how they are kept (train/data), what messages may hold (gemma4_jax/text).
"""
