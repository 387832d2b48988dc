"""What a run is: typed, frozen configurations, their presets and their command line.

Imports only the standard library and tyro, so that `--help` answers at once.
"""
