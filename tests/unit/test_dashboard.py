"""The Grafana dashboard and the alerts ask for metrics and labels that the exporter has; the layout holds together."""

import json
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from hamirt import exporter
from tests.support import TOP, need
from tests.unit.test_exporter import HEALTH, NODE

DASHBOARD = TOP / "deploy" / "grafana" / "hamirt.json"
ALERTS = TOP / "deploy" / "prometheus" / "alerts.yml"
COLUMNS = 24
BUCKET = {"histogram": ("_bucket", "le")}
"""What queries ask for of a histogram: what is added to its name, and the label."""
LABELS = {
    metric.name + BUCKET.get(metric.type, ("", ""))[0]: {
        *metric.labels, *BUCKET.get(metric.type, ())[1:], "job", "instance",
    }
    for metric in exporter.METRICS
}  # fmt: skip
ALL_LABELS = set().union(*LABELS.values())
MADE_LABELS = {"driver", "gpu_time"}  # by label_replace
# What Grafana puts in before it asks.
VARIABLES = {"$__rate_interval": "1m", "$instance": "n1|n2", "$tenant": ".*", "$gpu": "GPU-aa|GPU-bb"}


def board() -> dict[str, Any]:
    read: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return read


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = board()["panels"]
    return found


def expressions() -> Iterator[str]:
    """Yield every query of a panel, as Prometheus gets it."""
    for panel in panels():
        for target in panel.get("targets", []):
            expression: str = target["expr"]
            for name, value in VARIABLES.items():
                expression = expression.replace(name, value)
            yield expression


def test_ids_and_references_are_unique() -> None:
    ids = Counter(panel["id"] for panel in panels())

    assert [number for number, count in ids.items() if count > 1] == []
    for panel in panels():
        references = [target["refId"] for target in panel.get("targets", [])]
        assert len(references) == len(set(references)), panel["title"]
        assert (panel["type"] == "row") == (not references), panel["title"]


def cells(panel: dict[str, Any]) -> set[tuple[int, int]]:
    at = panel["gridPos"]
    return {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}


def test_panels_do_not_overlap_and_leave_no_hole() -> None:
    taken = {panel["id"]: cells(panel) for panel in panels()}

    for (one, first), (other, second) in combinations(taken.items(), 2):
        assert not first & second, f"panels {one} and {other} overlap"
    everything = set().union(*taken.values())
    bottom = max(y for _x, y in everything) + 1
    assert everything == {(x, y) for x in range(COLUMNS) for y in range(bottom)}


def test_every_panel_says_what_it_shows() -> None:
    drawn = [panel for panel in panels() if panel["type"] != "row"]

    assert [panel["title"] for panel in drawn if not panel["description"].endswith(".")] == []
    assert len({panel["title"] for panel in drawn}) == len(drawn) > 15


def test_the_data_source_is_chosen_and_never_built_in() -> None:
    uids = set(re.findall(r'"uid": "([^"]+)"', DASHBOARD.read_text()))

    assert uids == {"${datasource}", "-- Grafana --", "hamirt-node"}
    assert board()["id"] is None


def test_every_variable_is_declared_and_used() -> None:
    text = json.dumps(panels()) + json.dumps(board()["templating"])
    declared = {variable["name"] for variable in board()["templating"]["list"]}

    # $1 is a group of label_replace
    used = set(re.findall(r"\$\{?([a-z]\w*)", text))

    assert used == declared


@pytest.mark.parametrize("source", [DASHBOARD, ALERTS], ids=["dashboard", "alerts"])
def test_every_metric_that_is_asked_for_is_exported(source: Path) -> None:
    asked = set(re.findall(r"\bhamirt_\w+", source.read_text()))

    assert asked - set(LABELS) == set()
    assert len(asked) > 8


def test_the_dashboard_shows_all_but_a_few_metrics() -> None:
    asked = set(re.findall(r"\bhamirt_\w+", DASHBOARD.read_text()))

    assert set(LABELS) - asked == {
        "hamirt_gpu_handover_seconds_total",
        "hamirt_gpu_memory_caps_bytes",  # unclaimed is made of these two
        "hamirt_gpu_memory_foreign_bytes",
        "hamirt_gpu_mig_enabled",
        "hamirt_gpu_open",
        "hamirt_supervisor_up",  # up says it
        "hamirt_tenant_ganged",
        "hamirt_tenant_gate_free_seconds_total",
        "hamirt_tenant_gpu_time_share_sampled",
        "hamirt_tenant_problem",  # the table's reason says it
        "hamirt_tenant_waiting_threads",  # throttled is their sum over time
        "hamirt_tenant_weight",
    }


@pytest.mark.parametrize("source", [DASHBOARD, ALERTS], ids=["dashboard", "alerts"])
def test_every_label_that_is_selected_by_is_exported(source: Path) -> None:
    text = source.read_text().replace('\\"', '"')
    for metric, selector in re.findall(r"\b(hamirt_\w+)\{([^}]*)\}", text):
        asked = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", selector))
        assert asked <= LABELS[metric], f"{metric} has no {asked - LABELS[metric]}"
    for group in re.findall(r"\b(?:by|on|group_left) \(([^)]*)\)", text):
        assert set(re.split(r",\s*", group)) <= ALL_LABELS | MADE_LABELS, group


@pytest.mark.parametrize("legend", sorted(set(re.findall(r"\{\{(\w+)\}\}", DASHBOARD.read_text()))))
def test_every_label_in_a_legend_is_exported(legend: str) -> None:
    assert legend in ALL_LABELS


def promtool(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run promtool to its end."""
    path = shutil.which("promtool")
    need("promtool", path is not None)
    return subprocess.run([str(path), *arguments], capture_output=True, text=True, timeout=60)


def test_every_query_parses(tmp_path: Path) -> None:
    rules = [{"record": f"query:{number}", "expr": text} for number, text in enumerate(expressions())]
    file = tmp_path / "rules.yml"
    file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))

    ended = promtool("check", "rules", str(file))

    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert f"{len(rules)} rules found" in ended.stdout
    assert "$" not in "".join(rule["expr"] for rule in rules).replace('"$1"', "")


def test_every_query_finds_something_on_a_rich_node(tmp_path: Path) -> None:
    # given what a scrape of such a node leaves in Prometheus
    series = [{"series": 'up{job="hamirt", instance="n1"}', "values": "1x20"}]
    for line in exporter.render(NODE, HEALTH, hami=False).decode().splitlines():
        name, brace, labels = line.rpartition(" ")[0].partition("{")
        if not line.startswith("#"):
            target = f'{{job="hamirt", instance="n1"{"," if brace else "}"}'
            series.append({"series": name + target + labels, "values": f"{float(line.split()[-1]):f}x20"})
    found = {"eval_time": "5m", "exp_samples": [{"labels": "{}", "value": 1}]}
    tests = [{"expr": f"count({text}) > bool 0", **found} for text in expressions()]
    file = tmp_path / "test.yml"
    file.write_text(json.dumps({"tests": [{"interval": "15s", "input_series": series, "promql_expr_test": tests}]}))

    ended = promtool("test", "rules", str(file))

    assert ended.returncode == 0, ended.stdout + ended.stderr
