"""The same signatures as the references in `model/`, with kernels or collectives inside."""
