"""Training programs: `python -m train.sft` and `python -m train.dpo`."""
