"""The samples of docs/client.md and of the README run as they stand, but for the address."""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
import sys
from pathlib import Path
from types import FunctionType
from typing import Any

from tests.support.mesh import Mesh

ROOT = Path(__file__).parents[3]
ADDRESS = "127.0.0.1:50051"


def samples(page: str, mesh: Mesh) -> list[str]:
    found: list[str] = re.findall(
        r"^```python\n(.*?)^```$", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE
    )
    assert any(ADDRESS in each for each in found)
    return [each.replace(ADDRESS, mesh.address) for each in found]


async def test_the_samples_of_the_clients_page_continue_each_other(mesh: Mesh, capsys: Any) -> None:
    names: dict[str, Any] = {}
    for sample in samples("docs/client.md", mesh):
        code = compile(sample, "docs/client.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        if inspect.isawaitable(running := FunctionType(code, names)()):
            await running
    assert "temperature" in capsys.readouterr().out
    assert names["finished"].text.startswith(("yes, ", "no, "))


async def test_the_readmes_program_answers(mesh: Mesh) -> None:
    (program,) = samples("README.md", mesh)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    answer, complaint = await process.communicate()
    assert process.returncode == 0, complaint.decode()
    assert answer
