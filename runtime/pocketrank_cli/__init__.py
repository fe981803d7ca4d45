"""The command line: `cli` runs it, `command` is what a subcommand is made of, `commands` are those of a device.

No phone needs any of it, so it is not in `pocketrank`. Other rooms register their subcommands in the entry-point group
`pocketrank.commands`.
"""
