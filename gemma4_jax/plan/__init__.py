"""What a model costs before anything runs, by arithmetic from its configuration.

`model`: parameters, FLOPs, caches, and the limits of one kind of chip. On a machine with a mesh: `workload`
says what is planned, `tree` which arrays there are and how a mesh cuts them, `memory` bytes of a device by
part, `traffic` what devices exchange and why, `network` how fast, `speed` the time of a step, `search` which
meshes fit. Nothing here starts a device. Not here: what compilers and machines make of it.
"""
