"""Complete recipes on checkable tasks, a folder each: `python -m examples.NAME.demo`."""
