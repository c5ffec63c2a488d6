"""The daemon's settings: what a file says is taken as a whole, or refused with the line."""

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hamirt.daemon.settings import Settings, host_and_port, load, parse
from hamirt.errors import HamirtError
from tests.support import TOP


def test_an_empty_file_is_the_defaults() -> None:
    assert parse("") == Settings()


def test_the_file_for_operators_names_every_setting_with_its_default() -> None:
    file = TOP / "deploy" / "hamirt.toml"
    lines = [line.removeprefix("# ") for line in file.read_text().splitlines()]
    assignments = [line for line in lines if " = " in line and line.split(" = ")[0].replace("_", "").isalpha()]

    given = parse("\n".join(assignments))

    names = {line.split(" = ")[0] for line in assignments}
    assert names == {field.name for field in dataclasses.fields(Settings)}
    assert dataclasses.replace(given, admin_group=None, metrics_tls_cert=None, metrics_tls_key=None) == Settings()
    assert load(file) == Settings()


def test_every_setting_is_read() -> None:
    text = """
sample_seconds = 2
overcommit_ratio = 1.5
policy = "kill"
grace_seconds = 0
kill_after_seconds = 5.0
admin_group = "gpu"
tenants_per_user = 3
metrics_address = "[::1]:9400"
metrics_tls_cert = "/a"
metrics_tls_key = "/b"
compat_hami = true
log_format = "text"
"""

    assert parse(text) == Settings(2.0, 1.5, "kill", 0.0, 5.0, "gpu", 3, "[::1]:9400", "/a", "/b", True, "text")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("x = 1\n", "line 1: there is no setting 'x'; there are: sample_seconds, overcommit_ratio"),
        ('policy = "report"\n\npolcy = "kill"', "line 3: there is no setting 'polcy'"),
        ("[daemon]\npolicy = 'kill'", "line 1: there is no setting 'daemon'"),
        ("\nsample_seconds = 'often'", "line 2: sample_seconds has to be a number from 0.1 to 3600, not 'often'"),
        ("overcommit_ratio = 0.9", "line 1: overcommit_ratio has to be a number from 1 to 100, not 0.9"),
        ("overcommit_ratio = nan", "line 1: overcommit_ratio has to be a number from 1 to 100, not nan"),
        ("grace_seconds = true", "line 1: grace_seconds has to be a number from 0 to 3600, not True"),
        ("tenants_per_user = 1.5", "line 1: tenants_per_user has to be a whole number from 1 to 100000, not 1.5"),
        ("compat_hami = 1", "line 1: compat_hami has to be true or false, not 1"),
        ("policy = ['kill']", "line 1: policy has to be 'report' or 'kill'"),
        ("metrics_address = '9395'", "line 1: metrics_address has to be HOST:PORT such as '127.0.0.1:9395', or ''"),
        ("metrics_address = 'x:70000'", "line 1: metrics_address has to be HOST:PORT"),
        ("admin_group = ''", "line 1: admin_group has to be a text"),
        ("\nmetrics_tls_key = '/k'", "line 2: metrics_tls_cert and metrics_tls_key go together: name both"),
        ("policy = 'kill'\npolicy = 'kill'", "line 2: Cannot overwrite a value"),
        ("policy = 'kill", "line 1: Expected"),
        ("\n\nsample_seconds = \n", "line 3: Invalid value"),
    ],
)
def test_what_is_refused_with_its_line(text: str, says: str) -> None:
    with pytest.raises(HamirtError) as refusal:
        parse(text)

    assert str(refusal.value).startswith(says)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    missing, binary, huge = tmp_path / "missing", tmp_path / "binary", tmp_path / "huge"
    binary.write_bytes(b"policy = 'kill'\n# \xff\n")
    huge.write_bytes(b"#" * 100_000)

    with pytest.raises(HamirtError, match=f"^the settings {missing} can't be read: No such file"):
        load(missing)
    with pytest.raises(HamirtError, match=f"^{binary}, line 2: it is not UTF-8$"):
        load(binary)
    with pytest.raises(HamirtError, match=f"^the settings {huge} are longer than 65536 bytes"):
        load(huge)


@pytest.mark.parametrize(
    ("address", "place"),
    [("127.0.0.1:9395", ("127.0.0.1", 9395)), ("[::]:1", ("::", 1)), ("localhost:0", ("localhost", 0))],
)
def test_addresses(address: str, place: tuple[str, int]) -> None:
    assert host_and_port(address) == place


@given(st.text(max_size=200))
def test_any_text_is_settings_or_a_sentence(text: str) -> None:
    try:
        parse(text)
    except HamirtError as error:
        assert str(error).startswith("line ")
