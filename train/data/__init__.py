"""From JSONL files to batches of fixed shape, in an order that a seed fixes and a number resumes.

jsonl.py reads rows, rows.py turns a row into token sequences, prepared.py does so for a whole data set
and keeps the result, sequences.py makes arrays of them, packing.py puts short ones together,
pipeline.py makes batches.
"""
