"""Subcommands of this room. Light to import: heavy packages are imported where a command runs."""

from pocketrank.command import Command

COMMANDS: tuple[Command, ...] = ()
