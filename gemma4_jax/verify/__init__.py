"""Checking what a model wrote: what evaluation scores with and what preference pairs are made with."""
