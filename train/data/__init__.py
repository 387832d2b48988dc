"""From rows of data to batches of fixed shape, in an order that a seed fixes and a number resumes.

gemma4_jax/data reads rows and turns each into token sequences; prepared.py does so for a whole data set and
keeps the result, mixture.py joins several, sequences.py makes arrays, packing.py puts short rows together,
order.py says which come when, pipeline.py makes batches.
"""
