"""The same measurements made on other stacks, in an environment that has them. Not part of the product."""
