"""`make demo`: a tiny Gemma 4 learns arithmetic word problems from nothing, on two CPU cores."""
