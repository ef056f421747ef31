"""The doctor looks at this machine and at staged ones."""

import dataclasses
import socket
from types import SimpleNamespace

import pytest

from meshdns.core import paths, process
from meshdns.core.world import Nets
from meshdns.lab.compose import debian, doctor, engine, sdk


def test_this_machine_is_described_whatever_it_is():
    findings = doctor.examine(Nets(), "meshdns")
    assert {"python", "engine", "disk", "memory", "cpus", "kernel", "clock", "steal"} <= {f.name for f in findings}
    assert all(finding.detail for finding in findings)
    assert all(finding.mend for finding in findings if finding.state != "ok"), "each trouble names what mends it"


def test_no_engine_hides_what_only_an_engine_could_tell(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    findings = {finding.name: finding for finding in doctor.examine(Nets(), "meshdns")}
    assert findings["engine"].state == "missing"
    assert not {"compose", "images", "subnet 198.18.0.0/24"} & set(findings)


def test_a_busy_subnet_is_named_with_its_holder():
    taken = [("the docker network office", "198.18.0.0/16"), ("a route of this host", "10.0.0.0/8")]
    finding = doctor._subnet("198.18.0.0/24", taken)
    assert finding.state == "missing"
    assert "office" in finding.detail
    assert finding.mend == "docker network rm office"
    assert doctor._subnet("198.19.0.0/24", taken).state == "ok"


@pytest.mark.parametrize(
    ("name", "project", "state"),
    [
        ("meshdns_pods", "meshdns", "ok"),
        ("office-meshdns-x", "office", "missing"),
        ("office-meshdns-x", None, "missing"),
    ],
)
def test_a_network_is_ours_by_its_label_as_for_up(monkeypatch, name, project, state):
    labels = {"com.docker.compose.project": project} if project else None
    pool = [{"Subnet": "fd00::/64"}, {"Subnet": "198.18.0.0/24"}]
    network = {"Name": name, "Labels": labels, "IPAM": {"Config": pool}}
    engine_of = SimpleNamespace(api=SimpleNamespace(networks=lambda: [network]))
    monkeypatch.setattr(doctor, "host_routes", lambda: ["198.18.0.0/24"])  # the bridge's own route is no second holder
    monkeypatch.setattr(sdk, "client", lambda: engine_of)
    pods, world = doctor._subnets(Nets(), "meshdns")
    assert (pods.state, world.state) == (state, "ok")
    assert state == "ok" or name in pods.detail


def test_the_readme_asks_for_what_the_doctor_looks_for():
    needs = f"{doctor._MEMORY_BYTES / 1e9:g} GB of free memory and {doctor._DISK_BYTES / 1e9:g} GB of disk"
    assert needs in (paths.RESOURCES / "README.md").read_text()


def test_the_networks_looked_at_are_those_asked_for():
    assert [f.name for f in doctor._subnets(Nets("198.18.7", "198.19.7"), "meshdns")] == [
        "subnet 198.18.7.0/24",
        "subnet 198.19.7.0/24",
    ]
    (finding,) = doctor._subnets(Nets("10.0.0", "198.19.7"), "meshdns")
    assert (finding.state, "10.0.0.0/24" in finding.detail) == ("missing", True)


@pytest.mark.parametrize(
    ("controllers", "rootless", "state", "mend"),
    [
        ({"cpuset", "memory"}, False, "ok", ""),
        ({"cpuset"}, False, "warn", "cgroup_enable=memory"),
        ({"memory"}, True, "warn", "Delegate=cpu cpuset"),
        ({"cpuset", "memory"}, True, "warn", ""),
    ],
)
def test_cgroup_controllers_that_are_missing_are_told(controllers, rootless, state, mend):
    here = dataclasses.replace(engine.look(), cgroup=2, controllers=frozenset(controllers), rootless=rootless)
    finding = doctor._cgroup(here)
    assert finding.state == state
    assert mend in finding.mend
    assert all((f"no {name}" in finding.detail) == (name not in controllers) for name in ("cpuset", "memory"))


def test_host_routes_are_read_in_the_hosts_byte_order(tmp_path):
    header = "Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT\n"
    line = "docker0 000011AC 00000000 0001 0 0 0 0000FFFF 0 0 0\n"
    default = "eth0 00000000 010200C0 0003 0 0 0 00000000 0 0 0\n"
    table = tmp_path / "route"
    table.write_text(header + default + line)
    assert doctor.host_routes(table) == ["172.17.0.0/16"]
    assert doctor.host_routes(tmp_path / "absent") == []


def test_a_port_in_use_is_seen():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert doctor._port(taken.getsockname()[1]).state == "warn"


def test_the_table_puts_the_mend_under_its_trouble():
    text = doctor.table([doctor.Finding("a", "ok", "fine"), doctor.Finding("long", "missing", "gone", "apt-get x")])
    assert text.splitlines() == [
        "a     ok       fine",
        "long  missing  gone",
        "               -> apt-get x",
    ]


@pytest.mark.parametrize("version", ["12", "13"])
def test_a_mend_is_one_command_for_this_system(monkeypatch, version):
    here = debian.Distribution("debian", float(version))
    monkeypatch.setattr(debian, "distribution", lambda: here)
    monkeypatch.setattr(process, "run", lambda *argv, **_: process.Finished(argv, 127, "", f"{argv[0]}: absent"))
    finding = next(finding for finding in doctor._engine(engine.look()))
    assert finding.state == "missing"
    assert finding.mend.removeprefix("sudo ").startswith("apt-get install docker.io")
