"""What promtool says: of the metrics' names and format, and of the alerts and their unit tests."""

import shutil
import subprocess
from pathlib import Path

import pytest

from hamirt import exporter
from hamirt.model import Health, Node
from tests.support import TOP, need
from tests.unit.test_exporter import HEALTH, NODE, NOTHING, UNBORN

ALERTS = TOP / "deploy" / "prometheus" / "alerts.yml"
ALERTS_TEST = TOP / "deploy" / "prometheus" / "alerts_test.yml"
LINT_FOUND_SOMETHING = 3


def promtool(*arguments: str, given: bytes = b"") -> "subprocess.CompletedProcess[bytes]":
    """Run promtool to its end."""
    path = shutil.which("promtool")
    need("promtool", path is not None)
    return subprocess.run([str(path), *arguments], input=given, capture_output=True, timeout=60)


@pytest.mark.parametrize(("node", "health"), [(NODE, HEALTH), (NOTHING, UNBORN)], ids=["rich", "empty"])
def test_our_metrics_are_clean(node: Node, health: Health) -> None:
    text = exporter.render(node, health, hami=False)

    ended = promtool("check", "metrics", given=text)

    assert (ended.returncode, ended.stdout + ended.stderr) == (0, b"")


def test_promtool_finds_what_is_wrong_with_a_metric() -> None:
    text = exporter.render(NODE, HEALTH, hami=False).replace(
        b"hamirt_samples_total counter", b"hamirt_samples_total gauge"
    )

    ended = promtool("check", "metrics", given=text)

    assert ended.returncode == LINT_FOUND_SOMETHING
    assert b"hamirt_samples_total" in ended.stderr


def test_of_the_hami_metrics_it_dislikes_no_more_than_their_names() -> None:
    ended = promtool("check", "metrics", given=exporter.render(NODE, HEALTH, hami=True))

    assert ended.returncode == LINT_FOUND_SOMETHING
    disliked = {line.split(" ", 1)[0] for line in ended.stderr.decode().splitlines()}
    assert disliked == {
        "HostCoreUtilization",
        "HostGPUMemoryUsage",
        "hami_gpu_shared_count",
        "vGPU_device_memory_limit_in_bytes",
        "vGPU_device_memory_usage_in_bytes",
    }


def test_the_alerts_are_valid() -> None:
    ended = promtool("check", "rules", str(ALERTS))

    assert (ended.returncode, ended.stderr) == (0, b"")


def test_the_alerts_fire_when_they_should() -> None:
    ended = promtool("test", "rules", str(ALERTS_TEST))

    assert ended.returncode == 0, (ended.stdout + ended.stderr).decode()


def test_the_alerts_tests_can_fail(tmp_path: Path) -> None:
    broken = ALERTS.read_text().replace("hamirt_nvml_up == 0", "hamirt_nvml_up == 2")
    (tmp_path / ALERTS.name).write_text(broken)
    (tmp_path / ALERTS_TEST.name).write_text(ALERTS_TEST.read_text())

    ended = promtool("test", "rules", str(tmp_path / ALERTS_TEST.name))

    assert ended.returncode != 0


def test_every_alert_has_a_unit_test() -> None:
    alerts = {line.split()[-1] for line in ALERTS.read_text().splitlines() if "- alert:" in line}
    tested = {line.split()[-1] for line in ALERTS_TEST.read_text().splitlines() if "alertname:" in line}

    assert alerts == tested
    assert len(alerts) > 8
