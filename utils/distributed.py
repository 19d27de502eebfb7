"""The place of this process among those that torchrun has started; alone, it is the first of one."""

from __future__ import annotations

import os

from utils.errors import UserError


def rank() -> int:
    return _number("RANK", 0)


def world_size() -> int:
    return _number("WORLD_SIZE", 1)


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdecimal():
        raise UserError(f"the environment has {name}={text}, expected a number as torchrun sets it")
    return int(text)
