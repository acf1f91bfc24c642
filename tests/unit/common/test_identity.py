from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from services.common import identity
from services.common.errors import Unauthenticated


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    return tmp_path / "keys.toml"


def test_a_created_key_names_its_tenant(keys: Path) -> None:
    key = identity.create_key(keys, "acme")
    assert identity.load(keys, None).authenticate(f"Bearer {key}").name == "acme"


def test_the_key_itself_is_not_stored(keys: Path) -> None:
    key = identity.create_key(keys, "acme")
    assert key not in keys.read_text()
    assert key.rpartition("_")[2] not in keys.read_text()
    assert keys.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("shown", [None, "", "Bearer", "Bearer hr_x", "Basic abc", "Bearer " + "a" * 10_000])
def test_without_a_key_nobody_enters(keys: Path, shown: str | None) -> None:
    identity.create_key(keys, "acme")
    with pytest.raises(Unauthenticated):
        identity.load(keys, None).authenticate(shown)


def test_another_secret_under_a_known_id_is_refused(keys: Path) -> None:
    key = identity.create_key(keys, "acme")
    forged = key[:-1] + ("0" if key[-1] != "0" else "1")
    with pytest.raises(Unauthenticated) as refused:
        identity.load(keys, None).authenticate(f"Bearer {forged}")
    assert refused.value.reason == "WRONG_KEY"


def test_a_revoked_key_is_refused_and_the_others_are_not(keys: Path) -> None:
    gone, kept = identity.create_key(keys, "acme"), identity.create_key(keys, "globex")
    assert identity.revoke_key(keys, gone.split("_")[1])
    assert not identity.revoke_key(keys, "no-such-id")
    directory = identity.load(keys, None)
    assert directory.authenticate(f"Bearer {kept}").name == "globex"
    with pytest.raises(Unauthenticated):
        directory.authenticate(f"Bearer {gone}")


def test_when_the_last_key_is_gone_nobody_enters(keys: Path) -> None:
    identity.revoke_key(keys, identity.create_key(keys, "acme").split("_")[1])
    directory = identity.load(keys, None)
    assert directory.guarded
    with pytest.raises(Unauthenticated):
        directory.authenticate(None)


def test_writers_lose_no_key(keys: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda at: identity.create_key(keys, f"tenant-{at}"), range(24)))
    directory = identity.load(keys, None)
    assert [directory.authenticate(f"Bearer {key}").name for key in made] == [
        f"tenant-{at}" for at in range(24)
    ]
    assert [entry.name for entry in keys.parent.iterdir()] == [keys.name]


def test_without_a_keys_file_everybody_is_the_local_tenant(keys: Path) -> None:
    assert identity.load(keys, None).authenticate(None).name == identity.LOCAL_TENANT


def test_the_tenants_file_sets_what_a_tenant_may_do(tmp_path: Path, keys: Path) -> None:
    tenants = tmp_path / "tenants.toml"
    tenants.write_text('[tenants.acme]\nweight = 3\nmax_class = "standard"\nconcurrent_requests = 2\n')
    key = identity.create_key(keys, "acme")
    tenant = identity.load(keys, tenants).authenticate(f"Bearer {key}")
    assert (tenant.weight, tenant.max_class, tenant.concurrent_requests) == (3, "standard", 2)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("[tenants.acme]\nweight = -1\n", "weight"),
        ("[tenants.acme]\nwieght = 1\n", "wieght: no such setting; there are weight, max_class"),
        ("[tenants.acme.standard]\nttft = 1\n", "ttft: no such setting; there are ttft_s, tpot_s"),
        ("[tenants.acme.standard]\nttft_s = 1\ntpot_s = 2\n", "standard: tpot_s 2 is longer"),
        ("[tenant.acme]\nweight = 1\n", r"tenant: only \[tenants.NAME\]"),
        ('[tenants.acme]\nmax_class = "urgent"\n', "max_class"),
        ("[tenants.acme\n", "not TOML"),
        ("tenants = 3\n", "tenants"),
        ("[tenants]\nacme = 5\n", "acme"),
        ('[tenants."../../x"]\n', "tenant's name"),
    ],
)
def test_a_wrong_tenants_file_is_named_with_its_place(tmp_path: Path, content: str, named: str) -> None:
    tenants = tmp_path / "tenants.toml"
    tenants.write_text(content)
    with pytest.raises(ValueError, match=named) as wrong:
        identity.load(None, tenants)
    assert str(tenants) in str(wrong.value)
    assert "\n" not in str(wrong.value)


@pytest.mark.parametrize(
    "content",
    [
        "keys = 5\n",
        "[keys]\n",
        "keys = [5]\n",
        '[[keys]]\nid = "a"\nsha256 = "ü"\ntenant = "a"\ncreated = ""\n',
        f'[[keys]]\nid = "a"\nsha256 = "{"0" * 64}"\ntenant = "../x"\ncreated = ""\n',
    ],
    ids=["a number", "a table", "a list of numbers", "no digest", "a path for a tenant"],
)
def test_a_wrong_keys_file_is_one_line(keys: Path, content: str) -> None:
    keys.write_text(content)
    with pytest.raises(ValueError, match=r"keys\.toml") as wrong:
        identity.load(keys, None)
    assert "\n" not in str(wrong.value)


NO_ROOM = """
import resource, sys
from pathlib import Path
from services.common import identity
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
try:
    identity.create_key(Path(sys.argv[1]), "globex")
except OSError as error:
    print(error.filename)
"""


def test_a_key_that_cannot_be_stored_leaves_the_others_and_names_the_file(keys: Path) -> None:
    identity.create_key(keys, "acme")
    before = keys.read_text()
    done = subprocess.run(
        [sys.executable, "-c", NO_ROOM, str(keys)], capture_output=True, text=True, timeout=60
    )
    assert done.stdout == f"{keys}\n"
    assert keys.read_text() == before
    assert list(keys.parent.iterdir()) == [keys]
