"""Commands for people: accounts, friends, messages."""

import rich_click as click

commands: list[click.Command] = []
