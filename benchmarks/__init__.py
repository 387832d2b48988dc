"""Programs that measure; each prints one JSON line per result. How to read them: docs/log.md."""
