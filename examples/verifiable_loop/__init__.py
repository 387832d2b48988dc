"""`make demo-loop`: a tiny Gemma 4 unlearns its slips by rounds of verified preferences, on two CPU cores."""
