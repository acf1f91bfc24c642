"""The first question to a new mesh: that it answers, and how long a person waited for the first word."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

from services.cli.errors import no_chat_template, one_line
from services.cli.up.mesh import MeshPlan
from services.cli.up.screen import Screen

if TYPE_CHECKING:
    from headrace.client import Headrace

MAX_TOKENS = 120


async def ask(plan: MeshPlan, prompt: str, began_s: float, screen: Screen) -> bool:
    """Streams the greedy answer to standard output. Returns whether there was one.

    Args:
        began_s: monotonic moment at which the command began.
    """
    from headrace.client import Headrace, HeadraceError

    api_key = os.environ.get("HEADRACE_API_KEY")
    if api_key is None and _keys_needed(plan):
        screen.say("No first prompt: this mesh asks for an API key; set HEADRACE_API_KEY.")
        return True
    screen.say(f"\n> {prompt}")
    async with Headrace(plan.public, api_key=api_key) as mesh:
        try:
            await _ask(mesh, prompt, began_s, screen)
        except HeadraceError as error:
            screen.say(f"The first prompt failed: {one_line(error)}")
            return False
    return True


def _keys_needed(plan: MeshPlan) -> bool:
    from services.common.identity import load

    return bool(load(plan.state.keys, None).keys)


async def _ask(mesh: Headrace, prompt: str, began_s: float, screen: Screen) -> None:
    """As a turn of a chat; a model without a template for these continues the prompt."""
    from headrace.client import HeadraceError

    try:
        await _stream(mesh, {"messages": [("user", prompt)]}, began_s, screen)
    except HeadraceError as error:
        if not no_chat_template(error):
            raise
        await _stream(mesh, {"prompt": prompt}, began_s, screen)


async def _stream(mesh: Headrace, asked: dict[str, Any], began_s: float, screen: Screen) -> None:
    asked_s = time.monotonic()
    first_s: float | None = None
    async with mesh.generate(**asked, max_tokens=MAX_TOKENS, temperature=0) as answer:
        async for event in answer:
            first_s = first_s or (time.monotonic() if event.text else None)
            screen.write(event.text)
    screen.write("\n")
    if first_s is not None:
        since = f"{first_s - asked_s:.2f} s after the question, {first_s - began_s:.1f} s after the command"
        screen.say(f"First token {since}.")
